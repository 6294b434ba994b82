"""Reports on saved runs: tables with definitions, statistical tests between strategies, and figures."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lifelong.files import write as write_file
from lifelong.report import figures
from lifelong.report.canvas import looks, prepare
from lifelong.report.document import Block, Picture, Table, Words, csv_text, table_csv
from lifelong.report.document import markdown as _markdown
from lifelong.report.fewshot import fewshot_rows as fewshot_rows
from lifelong.report.fewshot import result_tables as result_tables
from lifelong.report.frameworks import framework as framework
from lifelong.report.group import Group as Group
from lifelong.report.group import by_length as by_length
from lifelong.report.group import groups as groups
from lifelong.report.group import percent as percent
from lifelong.report.group import rows as rows
from lifelong.report.html import page
from lifelong.report.latex import latex as latex
from lifelong.report.sections import document as document
from lifelong.report.sections import leader as leader
from lifelong.report.selection import Selection as Selection
from lifelong.report.selection import select as select
from lifelong.report.statistics import Comparison as Comparison
from lifelong.report.statistics import checked_reference as checked_reference
from lifelong.report.statistics import comparisons as comparisons
from lifelong.report.tables import tables_of as tables_of
from lifelong.store.records import Run

_NAMED = ("stream", "stream_options", "told_task", "label", "status")


def write(runs: Sequence[Run], folder: str | os.PathLike[str], *, reference: str | None = None,
          other: Sequence[str] = (), only: Sequence[str] = (), damaged: Sequence[str] = (),
          unfinished: Sequence[Words] = (), left_out: int = 0,
          evaluations: Sequence[Mapping[str, Any]] = ()) -> list[Path]:
    """Writes a report into `folder` and returns the paths of its files. It needs matplotlib but not torch.

    report.html is a single self-contained page. report.md has the same content with links to the figures. tables/ has
    every table as LaTeX and CSV, figures/ has every figure as SVG, PDF and PNG, and seeds.csv has every value of every
    seed. Every file is written completely under a temporary name and then renamed. The same runs give the same bytes
    (PNG and PDF only with the same version of matplotlib).

    Args:
        runs: the runs, in the order of the tables; bounds move to the ends of their table.
        folder: the folder, which is created if necessary.
        reference: the label or strategy that the others are compared with; a stream that lacks it, and the default,
            use the first run of the table. `parts` compares every sum with each of its parts, and tuned sums with
            tuned parts.
        other: frameworks whose metrics are shown as well: gem, avalanche, mammoth, continuum.
        only: names of the figures to draw; empty draws all.
        damaged, unfinished, left_out: as found by `select`; they are listed at the end.
        evaluations: records of few-shot evaluations.

    Raises:
        LookupError: `other` names an unknown framework.
    """
    blocks = document(runs, reference, other, damaged, unfinished, left_out, evaluations)
    if only:
        blocks = [b for b in blocks if not isinstance(b, Picture) or b.name.rsplit("-", 1)[-1] in only]
    drawn = _drawn(groups(runs), [b.name for b in blocks if isinstance(b, Picture)])
    files = {"report.html": page(blocks, {name: kinds["svg"] for name, kinds in drawn.items()}).encode(),
             "report.md": _markdown(blocks, "figures").encode()}
    files |= {"seeds.csv": seeds_csv(runs).encode()} if runs else {}
    files |= _table_files(blocks)
    files |= {f"figures/{name}.{kind}": content for name, kinds in drawn.items() for kind, content in kinds.items()}
    target = Path(folder)
    for place in {(target / name).parent for name in files}:
        place.mkdir(parents=True, exist_ok=True)
    # Not synchronised to disk, because a report can be made again.
    return [write_file(target / name, content, sync=False) for name, content in files.items()]


def _table_files(blocks: Sequence[Block]) -> dict[str, bytes]:
    tables = [block for block in blocks if isinstance(block, Table)]
    return {f"tables/{table.name}.{kind}": one(table).encode() for table in tables
            for kind, one in (("tex", latex), ("csv", table_csv))}


def _drawn(found: Sequence[Group], names: Sequence[str]) -> dict[str, dict[str, bytes]]:
    """The figures by name, each as svg, pdf and png; many figures are drawn by several processes.

    The processes are forked, which is safe if there is no other thread and torch, whose threads do not survive a fork,
    is not loaded.
    """
    look = looks(found)
    todo = [(figure, group, {label: look[label] for label in group.labels}) for group in found
            for figure in figures.FIGURES if f"{group.slug}-{figure}" in names]
    many, cores = len(todo) > 10, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if many and cores > 1 and "torch" not in sys.modules and threading.active_count() == 1:
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        prepare()
        with ProcessPoolExecutor(min(cores, 8), get_context("fork")) as pool:
            several = list(pool.map(figures.draw, *zip(*todo, strict=True)))
    else:
        several = [figures.draw(*one) for one in todo]
    return {f"{group.slug}-{name}": kinds for (name, group, _), kinds in zip(todo, several, strict=True)}


def markdown(runs: Sequence[Run], reference: str | None = None, other: Sequence[str] = (),
             evaluations: Sequence[Mapping[str, Any]] = ()) -> str:
    """The report as Markdown, without figures; the arguments are those of `write`."""
    return _markdown(document(runs, reference, other, evaluations=evaluations))


def seeds_csv(runs: Sequence[Run]) -> str:
    """All values as CSV, one line per run, metric and seed.

    The columns are stream, stream_options (JSON), told_task, label, status, metric, seed and value, a fraction that is
    empty if it was not measured.
    """
    lines = [
        [*_named(row), name, seed, value]
        for row in rows(runs)
        for name, found in row["metrics"].items()
        for seed, value in zip(row["seeds"], found["values"], strict=True)
    ]
    return csv_text([*_NAMED, "metric", "seed", "value"], lines)


def _named(row: Mapping[str, Any]) -> list[Any]:
    return [json.dumps(row[name], sort_keys=True) if name == "stream_options" else row[name] for name in _NAMED]
