"""A report from saved runs alone: tables with their definitions, tests between strategies, forgetting curves."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lifelong import metrics
from lifelong.metrics import Array
from lifelong.report.tables import Comparison as Comparison
from lifelong.report.tables import Group as Group
from lifelong.report.tables import comparisons as comparisons
from lifelong.report.tables import diverged, summary
from lifelong.report.tables import groups as groups
from lifelong.report.tables import rows as rows
from lifelong.store import Run

_NAMED = ("stream", "stream_options", "told_task", "label", "status")


def write(runs: Sequence[Run], folder: str | os.PathLike[str]) -> list[Path]:
    """Paths of the report written into `folder`: report.md, table.csv, seeds.csv, and figures of each group.

    Every file is written whole under a temporary name and then renamed; the same runs give the same bytes (PNG: with
    the same matplotlib). Needs matplotlib.
    """
    from lifelong.report import figures

    files = {"report.md": markdown(runs, figures=True).encode()}
    files |= {"table.csv": table_csv(runs).encode(), "seeds.csv": seeds_csv(runs).encode()}
    for group in groups(runs):
        for name, draw in (("curves", figures.curves), ("tasks", figures.tasks)):
            figure = draw(group)
            for kind in ("svg", "png"):
                files[f"{group.slug}-{name}.{kind}"] = figures.encoded(figure, kind)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    return [_replaced(target / name, content) for name, content in files.items()]


def _replaced(path: Path, content: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def markdown(runs: Sequence[Run], figures: bool = False) -> str:
    """The report as Markdown, a section per group of comparable runs.

    Args:
        runs: in the order wanted; bounds move to the ends of their group.
        figures: whether to embed the figures that `write` puts beside it.
    """
    sections = ["# Report" if runs else "# Report\n\nThere are no runs to report on."]
    return "\n\n".join(sections + [_section(group, figures) for group in groups(runs)]) + "\n"


def cells(group: Group) -> tuple[list[str], list[list[str]]]:
    """Header and lines of a group's table as short strings: percent, mean ± half width of the 95 % t interval.

    `(3/5)` behind a number: 3 of 5 seeds were measured. `–`: none was, or the metric does not apply to this run.
    """
    found = [group.values(i) for i in range(len(group.runs))]
    names = [name for name in metrics.definitions if any(name in values for values in found)]
    lines = []
    for run, label, values in zip(group.runs, group.labels, found, strict=True):
        name = label + (" (diverged)" if diverged(run) else "")
        numbers = [percent(values[metric]) if metric in values else "–" for metric in names]
        lines.append([name, *numbers, str(len(run.accuracy))])
    return ["strategy", *(name.replace("_", " ") for name in names), "seeds"], lines


def percent(values: Array) -> str:
    """Values [S] as `mean ± half width` in percent; two decimals where one would hide the half width."""
    mean, half_width, n = summary(values)
    if not n:
        return "–"
    digits = 2 if 0 < round(100 * half_width, 2) < 0.1 else 1
    text = f"{round(100 * mean, digits) + 0.0:.{digits}f}"  # + 0.0: no "-0.0"
    text += f" ± {100 * half_width:.{digits}f}" if n > 1 else ""
    return text if n == len(values) else f"{text} ({n}/{len(values)})"


def _section(group: Group, figures: bool) -> str:
    header, lines = cells(group)
    table = ["| " + " | ".join(header) + " |", "|" + "|".join([" --- ", *[" ---: "] * (len(header) - 1)]) + "|"]
    for run, label, line in zip(group.runs, group.labels, lines, strict=True):
        name = _code(label) + (" **diverged**" if diverged(run) else "")
        table.append("| " + " | ".join([name, *line[1:]]) + " |")
    blocks = [f"## {group.title}", f"All runs: {group.common}." if group.common else "", "\n".join(table)]
    blocks += [_notes(group, header, lines), _lengths(group)]
    blocks += [_fates(group), _compared(group), _pictures(group) if figures else ""]
    shown = [name for name in metrics.definitions if name.replace("_", " ") in header]
    defined = [f"- {name.replace('_', ' ')}: {metrics.definitions[name]}" for name in shown]
    blocks += ["a[t,k] is the accuracy on task k after task t of T; t = 0 is the untrained learner."]
    return "\n\n".join(block for block in [*blocks, "\n".join(defined), _made_with(group)] if block)


def _code(label: str) -> str:
    return "`" + label.replace("|", "\\|") + "`"


def _notes(group: Group, header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """What a reader of this table must know, a sentence each."""
    notes = ["In percent; mean over seeds ± half width of its 95 % t interval."]
    if any(len(run.accuracy) == 1 for run in group.runs):
        notes.append("One seed gives no interval.")
    text = " ".join(cell for line in lines for cell in line[1:])
    if "–" in text:
        notes.append("–: not measured, or not defined for this run.")
    if "/" in text:
        notes.append("(n/S): over the n of S seeds that were measured to the end, which flatters.")
    if group.runs[0].accuracy.shape[-1] == 1:
        notes.append("Forgetting and transfer need two tasks.")
    elif group.unseen:
        notes.append("Forward transfer is not defined here: unseen classes cannot be answered.")
    if group.reference is not None and "intransigence" in header:
        name = group.labels[group.reference]
        notes.append(f"Intransigence is against {_code(name)} on the same seeds.")
        if name.startswith("joint"):
            notes.append("It meets all tasks from the first step; the paper's reference, `cumulative`, was not run.")
    return " ".join(notes)


def _lengths(group: Group) -> str:
    """The table of accuracy by length, of a stream that has lengths."""
    header, lines = length_cells(group)
    if not lines:
        return ""
    table = ["| " + " | ".join(header) + " |", "|" + " --- |" * 2 + " ---: |" * (len(header) - 2)]
    table += ["| " + " | ".join([_code(label), *cells]) + " |" for label, *cells in lines]
    said = ("Over all classes met so far, each weighing the same: `test` on held-out examples, `train` on those that "
            "were learned.")
    return "\n".join(table) + "\n\n" + said


def length_cells(group: Group) -> tuple[list[str], list[list[str]]]:
    """Header and lines of a group's table by length, as `cells`; no lines for a stream without lengths."""
    if not group.options.get("lengths"):
        return [], []
    lines = [[label, kind, *(percent(v) for v in values.T)] for label, run in zip(group.labels, group.runs, strict=True)
             for kind, values in by_length(run).items()]
    return ["classes", "", *map(str, group.options["lengths"])], lines


def by_length(run: Run) -> dict[str, Array]:
    """Accuracy after each of a stream's `lengths` over all classes met so far, `test` and `train`, [S, T] each."""
    lengths = run.spec["stream_options"]["lengths"]
    kinds = {"test": run.accuracy}
    if "accuracy_train" in run.logs:
        kinds["train"] = run.logs["accuracy_train"]
    return {kind: metrics.average_curve(a, np.diff([0, *lengths])) for kind, a in kinds.items()}


def _fates(group: Group) -> str:
    """How far each diverged run got."""
    lines = []
    for run, label in zip(group.runs, group.labels, strict=True):
        curve = metrics.average_curve(run.accuracy)
        ended, whole = int(np.isfinite(curve[:, -1]).sum()), np.flatnonzero(np.isfinite(curve).all(0))
        why = f" ({run.about['note']})" if run.about.get("note") else ""
        said = f"- {_code(label)} diverged{why}; {ended} of {len(curve)} seeds reached the end; "
        if len(whole):
            t = int(whole[-1])
            said += f"after task {t + 1}, the last with every seed, {100 * curve[:, t].mean():.1f} on average so far."
        else:
            said += "after no task was every seed measured."
        lines += [said] if diverged(run) else []
    return "\n".join(lines)


def _compared(group: Group) -> str:
    """Every strategy against the first: difference, interval, and p or why there is none."""
    found = {one.label: one for one in comparisons(group)}
    if len(group.runs) == 1:
        return ""
    head = (
        f"Against {_code(group.labels[0])}, average accuracy in percentage points, paired by seed; ± is the 95 % t "
        f"interval of the difference alone, p is the two-sided sign-flip permutation test after Holm over {len(found)}."
    )
    if any(one.smallest_p > 0.05 for one in found.values()):
        head += f" For p to reach .05 it takes {math.ceil(math.log2(2 * len(found) / 0.05))} seeds."
    lines = [f"- {_code(label)}: {_verdict(found.get(label))}" for label in group.labels[1:]]
    return "\n".join([head, "", *lines])


def _verdict(one: Comparison | None) -> str:
    if one is None:
        return "not compared, since not every seed of both was measured to the end"
    mean, half_width, _ = one.difference
    said = f"{100 * mean:+.1f}" + (f" ± {100 * half_width:.1f}" if one.n > 1 else "")
    seeds = f"{one.n} seed" + "s" * (one.n > 1)
    if one.smallest_p > 0.05:
        return f"{said}; not enough seeds to tell (smallest possible p = {one.smallest_p:.2g} with {seeds})"
    return f"{said}, p = {one.p:.2g} ({seeds})"


def _pictures(group: Group) -> str:
    about = {"curves": "average accuracy over the tasks seen so far", "tasks": "accuracy of each task"}
    return "\n\n".join(
        f"[![{group.title}: {text} as the stream goes on]({group.slug}-{name}.png)]({group.slug}-{name}.svg)"
        for name, text in about.items()
    )


def _made_with(group: Group) -> str:
    said = []
    for name in ("device", "threads", "torch", "version", "commit"):
        values = dict.fromkeys(str(run.about[name]) for run in group.runs if run.about.get(name) is not None)
        said += [f"{name} {' / '.join(values)}"] if values else []
    counts = sorted({len(run.accuracy) for run in group.runs})
    return "Made with: " + ", ".join([*said, f"seeds {' / '.join(map(str, counts))}"]) + "."


def table_csv(runs: Sequence[Run]) -> str:
    """A line per run and metric, for a spreadsheet.

    Columns: stream, stream_options (JSON), told_task, label, status, metric, mean, half_width, n_seeds. `mean` and
    `half_width` (of the 95 % t interval) are fractions over the `n_seeds` that were measured; empty = not measured.
    """
    columns = ("mean", "half_width", "n_seeds")
    lines = [
        [*_named(row), name, *(found[column] for column in columns)]
        for row in rows(runs)
        for name, found in row["metrics"].items()
    ]
    return _csv([*_NAMED, "metric", *columns], lines)


def seeds_csv(runs: Sequence[Run]) -> str:
    """A line per run, metric and seed: the columns of `table_csv` up to `metric`, then seed and value (a fraction)."""
    lines = [
        [*_named(row), name, seed, value]
        for row in rows(runs)
        for name, found in row["metrics"].items()
        for seed, value in zip(row["seeds"], found["values"], strict=True)
    ]
    return _csv([*_NAMED, "metric", "seed", "value"], lines)


def _named(row: Mapping[str, Any]) -> list[Any]:
    return [json.dumps(row[name], sort_keys=True) if name == "stream_options" else row[name] for name in _NAMED]


def _csv(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    return text.getvalue()
