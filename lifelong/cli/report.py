"""`lifelong report`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lifelong.cli.errors import say
from lifelong.cli.options import Json, Store
from lifelong.cli.tables import print_tables

if TYPE_CHECKING:
    from lifelong.report import Group, Selection


def report(
    runs: Annotated[list[Path] | None, typer.Argument(
        help="Stores, or folders of single runs. Default: the store that --store names.")] = None,
    store: Store = Path("runs"),
    out: Annotated[Path | None, typer.Option(help="Folder to write the report to. Default: the folder report in the "
                                                  "store.")] = None,
    stream: Annotated[list[str] | None, typer.Option(help="Only streams that match this name or pattern, such as "
                                                          "'split-*'. Can be given more than once.")] = None,
    strategy: Annotated[list[str] | None, typer.Option(help="Only strategies that match this name or pattern, such as "
                                                            "'er*'. Can be given more than once.")] = None,
    since: Annotated[str | None, typer.Option(help="Only runs that finished on or after this date, such as "
                                                   "2026-11-20.")] = None,
    reference: Annotated[str | None, typer.Option(
        help="Strategy that the others are compared with; parts compares every sum with each of its parts. Default: "
             "the first strategy of each table.")] = None,
    as_: Annotated[list[str] | None, typer.Option(
        "--as", help="Also compute the metrics as gem, avalanche, mammoth or continuum does. Can be given more than "
                     "once.")] = None,
    as_json: Json = False,
) -> None:
    """Write a report of stored runs: tables, figures and statistical tests.

    Nothing is trained. Runs that are damaged or unfinished are listed and left out.
    """
    from lifelong import report as reports

    others = tuple(dict.fromkeys(as_ or ()))
    for name in others:
        reports.framework(name)
    places = runs or [store]
    found = reports.select([place for place in places if runs or place.is_dir()], stream or (), strategy or (), since)
    for problem in found.damaged:
        say(problem)
    if not found.runs and not found.evaluations:
        for words in found.unfinished:
            say("".join(words))
        raise LookupError(_nothing(places, stream, strategy, since))
    groups = reports.groups(found.runs)
    reports.checked_reference(groups, reference)
    if as_json:
        rows = [*reports.rows(found.runs), *reports.fewshot_rows(found.evaluations)]
        print(json.dumps(rows, indent=2, allow_nan=False))
    else:
        folder = out or (Path("report") if (places[0] / "run.json").exists() else places[0] / "report")
        paths = reports.write(found.runs, folder, reference=reference, other=others, damaged=found.damaged,
                              unfinished=found.unfinished, left_out=found.left_out, evaluations=found.evaluations)
        _print(found, groups, others)
        _print_files(paths, folder)
    raise typer.Exit(3 if found.damaged else 0)


def _print(found: Selection, groups: Sequence[Group], others: Sequence[str]) -> None:
    from lifelong import report as reports

    for group in groups:
        print_tables(reports.tables_of(group, others), group.title)
        print("".join(reports.leader(group)))
    print_tables(reports.result_tables(found.evaluations), "Few-shot, percent")
    for words in found.unfinished:
        print(f"not finished: {''.join(words)}")


def _print_files(paths: Sequence[Path], folder: Path) -> None:
    page, text, *_ = paths
    below = [str(path.parent) for path in paths if path.parent != folder]
    print(f"page: {page}\ntext: {text}\n{len(below)} tables and figures: {', '.join(dict.fromkeys(below))}")


def _nothing(places: Sequence[Path], stream: list[str] | None, strategy: list[str] | None, since: str | None) -> str:
    """The sentence that says that no run was found."""
    conditions = [f"of {', '.join(stream)}" if stream else "", f"by {', '.join(strategy)}" if strategy else "",
                  f"since {since}" if since else ""]
    what = " ".join(["no finished run or few-shot evaluation", *filter(None, conditions)])
    return (f"there is {what} in {', '.join(map(str, places))}; make one first, for example with `lifelong run "
            "rotated-digits`")
