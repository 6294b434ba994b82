"""The section about few-shot evaluations in a report, from their records alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lifelong import store
from lifelong.report.document import Block, Cell, Code, Column, Heading, Table, cell, words
from lifelong.report.group import distinguished
from lifelong.report.tables import joined_values

Record = Mapping[str, Any]
_NOTE = ("In percent; mean over episodes ± half width of its 95 % t interval. The interval is for this start only; it "
         "does not cover starts learned with other seeds. Queries: per class. Each query by itself: batch "
         "normalisation, if any, uses statistics that do not depend on the queries; transductive: it uses the "
         "statistics of all queries of an episode. –: not measured, or the network has no batch normalisation.")
# Properties that distinguish starts with equal names.
_DISTINGUISHING: tuple[Callable[[Record], object], ...] = (
    lambda one: "learned from " + source(one["learned_from"], one["learned_with"]),
    lambda one: one["model"],
    lambda one: f"begun with {one['begun'].get('strategy')}" if one["begun"] else "begun at random",
    lambda one: one["learning_precision"],
    lambda one: f"seed {one['learning_seed']}",
    lambda one: f"weights {one['sha256'][:10]}",
)


def fewshot_section(records: Sequence[Record]) -> list[Block]:
    """The blocks about the evaluations; none if there are no evaluations."""
    if not records:
        return []
    return [Heading(2, "Few-shot"), *result_tables(records),
            Heading(3, "Training of the starts"), start_table(records),
            Heading(3, "Provenance of the evaluations"), provenance_table(records)]


def result_tables(records: Sequence[Record]) -> list[Table]:
    """One table per source, with one row per evaluation, sorted by way, shots and start."""
    by_source: dict[str, list[tuple[str, Record]]] = {}
    for label, one in _ordered(records):
        by_source.setdefault(_key(one), []).append((label, one))
    slugs = [_slug(labelled[0][1]["source"]) for labelled in by_source.values()]
    tables = []
    for (key, labelled), slug in zip(by_source.items(), slugs, strict=True):
        counts = ("way", "shots", "queries"), ("episodes", *["seed"] * (len({one["seed"] for _, one in labelled}) > 1))
        columns = (Column("start"), *(Column(name, ("",)) for name in counts[0]),
                   *(Column(mode, ("mean", "half width")) for mode in ("each query by itself", "transductive")),
                   *(Column(name, ("",)) for name in counts[1]))
        rows = tuple((_name(label, one), *(_count(one[name]) for name in counts[0]), _accuracy(one),
                      _accuracy(one["transductive"]), *(_count(one[name]) for name in counts[1]))
                     for label, one in labelled)
        first = labelled[0][1]
        tables.append(Table("few-shot-" + slug + (f"-{store.digest(key)[:6]}" if slugs.count(slug) > 1 else ""),
                            words("Classes from ", Code(source(first["source"], first["source_options"])), "."),
                            columns, rows, (_NOTE,)))
    return tables


def start_table(records: Sequence[Record]) -> Table:
    """How every start was learned."""
    starts = {(label, one["sha256"]): one for label, one in _ordered(records)}
    begun = any(one["begun"] for one in starts.values())
    rows = []
    for (label, _), one in starts.items():
        learned: list[object] = [source(one["learned_from"], one["learned_with"])]
        learned += [(one["begun"] or {}).get("strategy")] if begun else []
        made = [one["learning_precision"], one["learning_seed"], one["learning_commit"], one["learning_version"],
                one["sha256"][:10], one["model"], joined_values(one["hyper"], str(one["start"]))]
        rows.append((cell(Code(label)), *map(_told, learned), _count(one["steps"]), _count(one["learning_seconds"]),
                     *map(_told, made)))
    columns = (*map(Column, ("start", "learned from", *["begun with"] * begun)),
               *(Column(name, ("",)) for name in ("outer steps", "seconds")), *map(Column, (
                   "precision", "seed", "commit", "version", "weights", "model", "all hyper-parameters")))
    return Table("few-shot-starts", (), columns, tuple(rows), (
        "Seconds: wall-clock time, including any other load on the machine. Commit: + marks uncommitted changes. "
        "Weights: beginning of their checksum.",))


_MADE = ("answer", "seed", "commit", "version", "torch", "device", "processor", "threads", "finished")


def provenance_table(records: Sequence[Record]) -> Table:
    """The code, machine and time of every evaluation."""
    rows = tuple((_name(label, one), cell(Code(source(one["source"], one["source_options"]))),
                  cell(f"{one['way']}-way {one['shots']}-shot, {one['queries']} queries"),
                  cell(Code(store.evaluation_file(Path(), one).stem[-16:])), *(_told(one.get(name)) for name in _MADE),
                  _count(one.get("seconds"))) for label, one in _ordered(records))
    columns = (*map(Column, ("start", "source", "episodes", "record", "classifier", *_MADE[1:])),
               Column("seconds", ("",)))
    return Table("few-shot-provenance", (), columns, rows, (
        "Record: the end of the name of its file. Seed: seed of the episodes, which are the same for every start.",))


def fewshot_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The records with the labels of their starts, in the order of the tables."""
    return [{"kind": "few-shot", "label": label, **one} for label, one in _ordered(records)]


def source(name: str, options: Record) -> str:
    """A source as it is typed, without options that are None, False or 0."""
    said = ", ".join(f"{key}={value!r}" for key, value in options.items() if value)
    return name + (f"({said})" if said else "")


def _ordered(records: Sequence[Record]) -> list[tuple[str, Record]]:
    """The records with the labels of their starts, sorted by source, way, shots and start."""
    labels = [str(one["start"]) for one in records]
    for further in _DISTINGUISHING:
        labels = distinguished(labels, [str(further(one)) for one in records])

    def place(labelled: tuple[str, Record]) -> tuple[object, ...]:
        label, one = labelled
        words = [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", label)]
        return _key(one), one["way"], one["shots"], words, one["queries"], one["episodes"], one["seed"]

    return sorted(zip(labels, records, strict=True), key=place)


def _key(one: Record) -> str:
    return json.dumps([one["source"], one["source_options"]], sort_keys=True)


def _slug(name: str) -> str:
    return re.sub(r"[^\w.]+", "-", name).strip("-")


def _name(label: str, one: Record) -> Cell:
    remark = f" (learned on {one['overlap']} of these classes: not a few-shot result)" if one["overlap"] else ""
    remark = " (learned on unnamed classes, possibly these)" if one["overlap"] == "unknown" else remark
    return cell(words(Code(label), remark))


def _accuracy(part: Record | None) -> Cell:
    if part is None:
        return cell("–")
    mean, half = part["accuracy"], part["half_width"]
    return cell(f"{100 * mean:.2f} ± {100 * half:.2f}", mean, half)


def _told(value: object) -> Cell:
    return cell("–") if value is None else cell(Code(str(value)))


def _count(value: float | None) -> Cell:
    return cell("–") if value is None else cell(f"{value:,.0f}", value)
