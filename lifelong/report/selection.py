"""The selection of runs and evaluations for a report, by folder, stream, strategy and date."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lifelong import store
from lifelong.report.document import Code, Words
from lifelong.spec.run import OptionError
from lifelong.store.records import Run


@dataclass(frozen=True)
class Selection:
    """The selected runs and evaluations, and what else is in the folders.

    Attributes:
        runs: the selected finished runs, without duplicates.
        evaluations: the records of the selected few-shot evaluations, without duplicates.
        damaged: one sentence about each damaged run or evaluation.
        unfinished: one sentence about each run that was begun or failed.
        left_out: the number of finished runs and evaluations that were not selected.
    """

    runs: tuple[Run, ...] = ()
    evaluations: tuple[Mapping[str, Any], ...] = ()
    damaged: tuple[str, ...] = ()
    unfinished: tuple[Words, ...] = ()
    left_out: int = 0


def select(places: Sequence[Path], streams: Sequence[str] = (), strategies: Sequence[str] = (),
           since: str | None = None) -> Selection:
    """Selects runs and few-shot evaluations from stores.

    Args:
        places: stores, or folders of single runs. A run that is in several of them with equal results counts once.
        streams: names of streams, with or without version, or patterns such as `split-*`; empty selects all. For
            evaluations they are compared with the source of the classes.
        strategies: strategies as they were run, or patterns such as `er*`; empty selects all. For evaluations they are
            compared with the start.
        since: an ISO date or time, in UTC unless it has a time zone; only what finished then or later is selected.

    Raises:
        FileNotFoundError: a place is not a folder.
        ValueError: `since` is not a date.
    """
    begin = _moment(since) if since is not None else None
    found: dict[tuple[str, Any], Run] = {}
    measured: dict[str, Mapping[str, Any]] = {}
    damaged: list[str] = []
    unfinished: list[Words] = []
    left_out = 0
    for place in places:
        runs, problems, begun = _contents(place)
        damaged += problems
        unfinished += [said for spec, said in begun if spec is None or _asked(_named(spec), streams, strategies)]
        for run in runs:
            if _late(run.about, begin) and _asked(_named(run.spec), streams, strategies):
                found.setdefault((store.digest(run.spec), run.about.get("sha256")), run)
            else:
                left_out += 1
        evaluations, problems = store.evaluations(place)
        damaged += problems
        for one in evaluations:
            if _late(one, begin) and _asked((str(one["source"]), str(one["start"])), streams, strategies):
                measured.setdefault(_result(one), one)
            else:
                left_out += 1
    return Selection(tuple(found.values()), tuple(measured.values()), tuple(damaged), tuple(unfinished), left_out)


def _result(evaluation: Mapping[str, Any]) -> str:
    return store.digest([evaluation[name] for name in (*store.QUESTION, "accuracy", "half_width", "transductive")])


def _late(about: Mapping[str, Any], begin: datetime | None) -> bool:
    at = str(about.get("finished", ""))
    return begin is None or (at[:4].isdigit() and _moment(at) >= begin)


def _contents(place: Path) -> tuple[list[Run], list[str], list[tuple[Mapping[str, Any] | None, Words]]]:
    """The finished runs, one sentence about each damaged run, and the runs without a result."""
    if not place.is_dir():
        raise FileNotFoundError(f"there is no folder {place} of runs; streams are chosen with --stream, strategies "
                                "with --strategy")
    if re.search(r"--[0-9a-f]{16}$", place.name):
        if not (place / "run.json").exists():
            return [], [], [(None, (Code(place.name), " has no result"))]
        try:
            return [store.load(place)], [], []
        except store.StoreError as error:
            return [], [str(error)], []
    runs, problems = store.runs(place)
    return runs, problems, _begun(place)


def _begun(root: Path) -> list[tuple[Mapping[str, Any] | None, Words]]:
    found: list[tuple[Mapping[str, Any] | None, Words]] = []
    for shop in store.Workshop.all(root):
        for spec in shop.specs:
            if not (store.folder(root, spec) / "run.json").exists():
                found.append((spec, (Code(spec["strategy"]), " on ", Code(store.stream_name(spec)), " was begun and is "
                                     "not finished; the command that began it goes on from its last checkpoint")))
    for file in sorted(root.glob("*/error.txt")):
        if not (file.parent / "run.json").exists():
            last = (file.read_text(errors="replace").strip().splitlines() or [""])[-1]
            found.append((None, (Code(file.parent.name), " failed: ", Code(last[:200]))))
    return found


def _named(spec: Mapping[str, Any]) -> tuple[str, str]:
    return store.stream_name(spec), str(spec.get("strategy"))


def _asked(named: tuple[str, str], streams: Sequence[str], strategies: Sequence[str]) -> bool:
    stream, strategy = named
    names = (stream, re.sub(r"-v\d+$", "", stream))
    return ((not streams or any(_fits(name, asked) for name in names for asked in streams))
            and (not strategies or any(_fits(strategy, asked) for asked in strategies)))


def _fits(name: str, asked: str) -> bool:
    return name == asked or fnmatch.fnmatchcase(name, asked)


def _moment(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise OptionError(f"since must be a date such as 2026-11-20 or 2026-11-20T08:00; got {text!r}",
                          "since") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
