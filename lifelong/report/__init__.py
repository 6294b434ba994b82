"""A report from saved runs alone: tables with their definitions, tests between strategies, figures, one page."""

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
    """Paths of the report written into `folder`; needs matplotlib, and no torch.

    report.html is one page that needs no other file; report.md is the same with links to the figures; tables/ has every
    table as LaTeX and CSV, figures/ every figure as SVG, PDF and PNG, and seeds.csv every value of every seed. Every
    file is written whole under a temporary name and then renamed; the same runs give the same bytes (PNG and PDF: with
    the same matplotlib).

    Args:
        runs: in the order wanted; bounds move to the ends of their group.
        folder: is made where it is not there.
        reference: the label or strategy that others are compared with (where a stream lacks it, and by default, the
            first of its table); `parts`: every sum is compared with each of its parts, tuned ones with tuned ones.
        other: frameworks whose metrics are shown too: gem, avalanche, mammoth, continuum.
        only: names of the figures wanted; none: all.
        damaged, unfinished, left_out: what `select` found beside the runs, to be listed.
        evaluations: records of few-shot evaluations.
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
    # Not forced to the disk, for a report can be made again.
    return [write_file(target / name, content, sync=False) for name, content in files.items()]


def _table_files(blocks: Sequence[Block]) -> dict[str, bytes]:
    tables = [block for block in blocks if isinstance(block, Table)]
    return {f"tables/{table.name}.{kind}": one(table).encode() for table in tables
            for kind, one in (("tex", latex), ("csv", table_csv))}


def _drawn(found: Sequence[Group], names: Sequence[str]) -> dict[str, dict[str, bytes]]:
    """The figures by name, each as svg, pdf and png: on two processes or more where there are many.

    A process is forked, which is safe where no other thread runs and torch, whose threads do not survive it, is not
    there.
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
    """The report as Markdown, without figures; arguments as of `write`."""
    return _markdown(document(runs, reference, other, evaluations=evaluations))


def seeds_csv(runs: Sequence[Run]) -> str:
    """A line per run, metric and seed: stream, stream_options (JSON), told_task, label, status, metric, seed, value (a
    fraction; empty = not measured)."""
    lines = [
        [*_named(row), name, seed, value]
        for row in rows(runs)
        for name, found in row["metrics"].items()
        for seed, value in zip(row["seeds"], found["values"], strict=True)
    ]
    return csv_text([*_NAMED, "metric", "seed", "value"], lines)


def _named(row: Mapping[str, Any]) -> list[Any]:
    return [json.dumps(row[name], sort_keys=True) if name == "stream_options" else row[name] for name in _NAMED]
