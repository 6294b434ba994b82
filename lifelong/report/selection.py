"""What a report is of: found in folders, chosen by stream, strategy and date; what is left out is listed."""

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
    """What to report on, and what else lies in the folders.

    Attributes:
        runs: finished ones that were asked for, each once.
        evaluations: records of few-shot evaluations that were asked for, each once.
        damaged: a sentence each.
        unfinished: a sentence each, of runs that were begun or failed.
        left_out: how many finished runs and evaluations were not asked for.
    """

    runs: tuple[Run, ...] = ()
    evaluations: tuple[Mapping[str, Any], ...] = ()
    damaged: tuple[str, ...] = ()
    unfinished: tuple[Words, ...] = ()
    left_out: int = 0


def select(places: Sequence[Path], streams: Sequence[str] = (), strategies: Sequence[str] = (),
           since: str | None = None) -> Selection:
    """The runs and few-shot evaluations in `places` that were asked for.

    Args:
        places: stores, or folders of single runs. What lies in several with equal results is taken once.
        streams: names, with or without their version, or patterns such as `split-*`; none: all. An evaluation is of
            the source that its classes come from.
        strategies: expressions as they were run, or patterns such as `er*`; none: all. An evaluation is of its start.
        since: an ISO date or time (UTC unless it says otherwise): only what was finished then or later.

    Raises:
        FileNotFoundError: where a place that was named is no folder.
        ValueError: where `since` is no date.
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
    """Finished runs, a sentence for each damaged one, and those that have no result."""
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
