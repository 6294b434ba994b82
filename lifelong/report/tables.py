"""The tables of a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lifelong import metrics
from lifelong.metrics import Array
from lifelong.report.costs import COSTS
from lifelong.report.document import Cell, Code, Column, Table, Words, cell, joined, words
from lifelong.report.frameworks import framework
from lifelong.report.group import Group, by_length, diverged, percent, seeds, summary
from lifelong.report.score import Score
from lifelong.report.sentences import p_value
from lifelong.report.statistics import Comparison, best
from lifelong.store.records import Run, digest

_INTERVAL = "In percent; mean over seeds ± half width of its 95 % t interval."
_RAW = ("mean", "half width", "seeds measured")
_T = "a[t,k] is the {} on task k after task t of T; t = 0 is the untrained learner."


def tables_of(group: Group, other: Sequence[str] = ()) -> list[Table]:
    """The tables of a group that are printed in a terminal: metrics, accuracy by length, other frameworks' metrics."""
    return [metric_table(group), *length_table(group), *(theirs(group, name) for name in other)]


def measured(values: Array, score: Score, mark: str = "") -> Cell:
    """A cell with the mean and interval of the values [S] of one metric."""
    mean, half, n = summary(values)
    return Cell((percent(values, score),), (_or_none(mean), _or_none(half), n), mark)


def metric_table(group: Group) -> Table:
    """The metrics of all strategies, with the best of each marked."""
    found = [group.values(i) for i in range(len(group.runs))]
    names = [name for name in metrics.definitions if any(name in values for values in found)]
    marks: dict[tuple[int, str], str] = {}
    needed: list[int] = []
    for name in names:
        top, tied, short = best(group, name)
        needed += [short] if short else []
        marks |= {(i, name): "tied" for i in tied} | ({(top, name): "best"} if top is not None else {})
    rows = []
    for i, values in enumerate(found):
        cells = [measured(values[name], group.score, marks.get((i, name), "")) if name in values else cell("–")
                 for name in names]
        rows.append((_name(group, i), *cells, cell(str(len(group.runs[i].accuracy)), len(group.runs[i].accuracy))))
    columns = (Column("strategy"), *(Column(group.score.named(name), _RAW) for name in names), Column("seeds", ("",)))
    return Table(f"{group.slug}-metrics", (), columns, tuple(rows), joined([
        _metric_notes(group, names, rows), _mark_note(marks, max(needed, default=None)),
        (_T.format(group.score.name),)]),
        tuple((f"{group.score.named(name)}: {metrics.definitions[name]}",) for name in names))


def _name(group: Group, i: int) -> Cell:
    return cell(words(Code(group.labels[i]), " (diverged)" if diverged(group.runs[i]) else ""))


def _metric_notes(group: Group, names: Sequence[str], rows: Sequence[tuple[Cell, ...]]) -> Words:
    """The notes below the table of metrics."""
    notes: list[Words] = [(_INTERVAL if group.score.percent else _INTERVAL.removeprefix("In percent; ").capitalize(),)]
    if any(len(run.accuracy) == 1 for run in group.runs):
        notes.append(("One seed gives no interval.",))
    text = " ".join(piece for row in rows for one in row[1:] for piece in one.text)
    if "–" in text:
        notes.append(("–: not measured, or not defined for this run.",))
    if "/" in text:
        notes.append(("(n/S): mean over the n of S seeds that were measured to the end, which overestimates the run.",))
    if group.n_tasks == 1:
        notes.append(("Forgetting and transfer need two tasks.",))
    elif group.unseen:
        notes.append(("Forward transfer is not defined here, because a learner cannot predict unseen classes.",))
    if group.reference is not None and "intransigence" in names:
        name = group.labels[group.reference]
        notes.append(("The reference of intransigence is ", Code(name), " on the same seeds."))
        if name.startswith("joint"):
            notes.append(("It is trained on all tasks from the first step; the reference of the paper, ",
                          Code("cumulative"), ", was not run."))
    return joined(notes)


def _mark_note(marks: Mapping[Any, str], needed: int | None) -> Words:
    if not marks:
        return ()
    said = "Bold: the best mean, excluding cumulative and joint. "
    if needed:
        return (said + "No difference from the best can be significant with so few seeds; at least "
                f"{needed} are needed.",)
    return (said + "≈: not significantly different from the best (p > .05, paired sign-flip permutation test over "
            "seeds, Holm-adjusted over the strategies).",)


def length_table(group: Group) -> list[Table]:
    """The accuracy of all strategies by length, for a stream that has lengths; otherwise no table."""
    if not group.options.get("lengths"):
        return []
    rows = tuple((cell(Code(label)), cell(kind), *(measured(v, group.score) for v in values.T))
                 for label, run in zip(group.labels, group.runs, strict=True)
                 for kind, values in by_length(run).items())
    columns = (Column("classes"), Column(""), *(Column(str(n), _RAW) for n in group.options["lengths"]))
    return [Table(f"{group.slug}-lengths", (), columns, rows, (
        "Over all classes seen so far, with equal weight for every class; test: on held-out examples, train: on the "
        "training examples.",))]


def theirs(group: Group, name: str) -> Table:
    """The metrics as another framework computes them."""
    them = framework(name)
    kept = [one for one in them.metrics if not (group.unseen and one.metric is metrics.forward_transfer)]
    rows = tuple((_name(group, i), *(measured(one.metric(run.accuracy), group.score) for one in kept))
                 for i, run in enumerate(group.runs))
    return Table(f"{group.slug}-as-{name}", (f"As computed by {them.title}.",),
                 (Column("strategy"), *(Column(one.name, _RAW) for one in kept)), rows,
                 ("In percent here; " * group.score.percent + "mean over seeds ± half width of its 95 % t interval. "
                  + them.remark,),
                 tuple((f"{one.name}: {one.formula}",) for one in kept))


def comparison_table(group: Group, compared: Mapping[str, Sequence[Comparison]]) -> Table:
    """All comparisons with their differences, intervals, tests, effect sizes and numbers of seeds needed."""
    rows = []
    for name, found in compared.items():
        for one in found:
            named = (cell(Code(group.labels[one.run])), cell(Code(group.labels[one.reference])),
                     cell(group.score.named(name)))
            rows.append((*named, *_compared(one, group.score)))
    columns = (Column("strategy"), Column("reference"), Column("metric"),
               Column("difference" + " (points)" * group.score.percent, ("",)),
               Column("95 % interval", ("low", "high")), Column("seeds", ("",)), Column("p", ("",)),
               Column("adjusted p", ("",)), Column("effect size", ("",)), Column("seeds needed", ("",)))
    return Table(f"{group.slug}-comparisons", (), columns, tuple(rows), joined(_test_notes(compared)))


def _compared(one: Comparison, score: Score) -> tuple[Cell, ...]:
    d = one.difference
    if d is None:
        return (cell(one.problem), *[cell("–")] * 6)
    needed = "–" if d.n < 2 or np.isnan(d.effect) else "> 10,000" if one.needed is None else f"{one.needed:,}"
    effect = "–" if np.isnan(d.effect) else f"{d.effect:.2f}".replace("inf", "∞")
    interval = "–" if np.isnan(d.low) else f"{score.change(d.low)} to {score.change(d.high)}"
    numbers = [_or_none(score.scale * v) for v in (d.low, d.high)]
    return (cell(score.change(d.mean, True), score.scale * d.mean), cell(interval, *numbers),
            cell(f"{d.n}" + " unpaired" * (not d.paired), d.n), cell(p_value(d.p), _or_none(d.p)),
            cell(p_value(one.p), _or_none(one.p)), cell(effect, _or_none(d.effect)), cell(needed, one.needed))


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _test_notes(compared: Mapping[str, Sequence[Comparison]]) -> list[Words]:
    found = [one.difference for several in compared.values() for one in several if one.difference]
    notes = ["Difference: strategy minus reference on the same seeds, with its 95 % t interval. p: two-sided sign-flip "
             "permutation test (exact up to 16 seeds); adjusted p: Holm-adjusted over the comparisons of a metric. "
             "Effect size: d_z, the mean of the paired differences divided by their standard deviation."]
    if any(not one.paired for one in found):
        notes.append("Unpaired: the two runs share fewer than two seeds; interval and p are those of Welch's t test, "
                     "the effect size is Cohen's d with the root of the mean variance, and seeds is the smaller "
                     "number.")
    notes.append("Seeds needed: for 80 % power of the two-sided t test (exact, noncentral t) at level .05 divided by "
                 "the number of comparisons, if the observed difference and standard deviation are the true ones; at "
                 "least as many as the sign-flip test needs to reach .05.")
    return [(note,) for note in notes]


def task_table(group: Group) -> Table:
    """The accuracy on every task after the last one; with more than 10 tasks the tasks are rows."""
    final = [run.accuracy[:, -1] for run in group.runs]
    note: Words = (group.score.named("Accuracy on each task after the last one, a[T,k]") + ", in percent"
                   * group.score.percent + "; mean over seeds ± half width of its 95 % t interval.",)
    if any(np.isnan(values).any() for values in final):
        note = (*note, " –: not measured.")
    if group.n_tasks <= 10:
        columns = (Column("strategy"), *(Column(f"task {k + 1}", _RAW) for k in range(group.n_tasks)))
        rows = [(_name(group, i), *(measured(values[:, k], group.score) for k in range(group.n_tasks)))
                for i, values in enumerate(final)]
    else:
        columns = (Column("task", ("",)), *(Column(label, _RAW) for label in group.labels))
        rows = [(cell(str(k + 1), k + 1), *(measured(values[:, k], group.score) for values in final))
                for k in range(group.n_tasks)]
    return Table(f"{group.slug}-tasks", (), columns, tuple(rows), note)


_SAID = {"stream", "stream_name", "stream_options", "strategy", "hyper", "model", "optimizer", "format", "code",
         "sources", "data", "boundaries"}


def settings_table(group: Group) -> Table:
    """All hyper-parameters of every run, including those with default values."""
    fields = [name for name in dict.fromkeys(name for run in group.runs for name in run.spec) if name not in _SAID]
    fields = [name for name in fields if any(run.spec.get(name) is not None for run in group.runs)]
    tuned = dict.fromkeys(str(made.get("criterion", "a criterion that was not recorded")) for run in group.runs
                          if isinstance(made := run.about.get("tuned"), Mapping))
    rows = []
    for i, run in enumerate(group.runs):
        hyper = run.spec.get("hyper") or {}
        own = [str(run.spec.get(kind, "–")) for kind in ("model", "optimizer")]
        filled = [_values(hyper.get("strategy")), *(joined_values(hyper.get(k), name)
                                                   for k, name in zip(("model", "optimizer"), own, strict=True))]
        rows.append((_name(group, i), *(cell(Code(text)) if text else cell("–") for text in filled),
                     *(cell(Code(_text(run.spec[name]))) if run.spec.get(name) is not None else cell("–")
                       for name in fields), *([cell(_tuned(run))] if tuned else [])))
    columns = tuple(Column(name.replace("_", " ")) for name in ("strategy", "hyper-parameters", "model", "optimizer",
                                                                *fields, *["tuned"] * bool(tuned)))
    notes = ["The hyper-parameters of a sum are in the order of its terms, separated by semicolons.",
             *(f"Tuned by: {one}." for one in tuned)]
    return Table(f"{group.slug}-settings", (), columns, tuple(rows), (" ".join(notes),))


def _tuned(run: Run) -> Words:
    """What tuning chose, out of how many settings, on which seeds or stream, and its cost."""
    made = run.about.get("tuned")
    if not isinstance(made, Mapping):
        return ("–",)
    seeds, other = made.get("seeds"), made.get("on")
    on = [" of ", Code(joined_values({k: v for k, v in other.items() if k != "stream"}, str(other.get("stream"))))] \
        if isinstance(other, Mapping) else []
    on += [f" ({both['classes']} classes and {both['images']} images of it are tested on here)"] \
        if isinstance(both := made.get("overlap"), Mapping) else []
    seeded = f" on seeds {seeds[0]} to {seeds[1]}" if isinstance(seeds, list) and len(seeds) == 2 else ""
    seconds = made.get("cost_s")
    cost = f", {seconds:,.0f} s" if isinstance(seconds, int | float) else ""
    tried = f", best of {made.get('settings', '?')} settings{seeded}"
    return words(Code(_values(made.get("chosen")) or "–"), tried, *on, cost)


def joined_values(hyper: object, name: str) -> str:
    """The name of an expression with the values of all its hyper-parameters."""
    filled = _values(hyper)
    return f"{name.split('(')[0]}({filled})" if filled else name


# Hyper-parameters of a start that apply after it was learned; runs of version 0.1 call quarter_turns views.
_USED = {"file", "adapt", "head", "length", "power", "quarter_turns", "views"}


def _values(hyper: object) -> str:
    if isinstance(hyper, Mapping) and hyper.get("file") and "adapt" in hyper:  # the others are recorded in the file
        hyper = {key: value for key, value in hyper.items() if key in _USED}
    if isinstance(hyper, Mapping):
        return ", ".join(f"{key}={_text(value)}" for key, value in hyper.items())
    return "; ".join(_values(term) or "–" for term in hyper) if isinstance(hyper, list) else ""


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


_MADE = ("status", "commit", "version", "torch", "device", "processor", "threads", "lanes", "finished")


def provenance_table(group: Group) -> Table:
    """The code, machine, time and cost of every run."""
    rows = []
    for i, run in enumerate(group.runs):
        rows.append((_name(group, i), cell(Code(digest(run.spec))), cell(_text(seeds(run)).strip("[]")),
                     *(cell(Code(str(run.about[name]))) if run.about.get(name) is not None else cell("–")
                       for name in _MADE), *_costs(run)))
    columns = (*(Column(name) for name in ("strategy", "run", "seeds", *_MADE)), Column("seconds", ("",)),
               *(Column(kind.title, ("",)) for kind in COSTS))
    return Table(f"{group.slug}-provenance", (), columns, tuple(rows), (
        "Run: the digest of the specification, with which the folder's name ends. Commit: + marks uncommitted changes. "
        "Seconds: of the whole stack in which the run was trained. Costs: "
        + "; ".join(kind.definition for kind in COSTS) + ".",))


def _costs(run: Run) -> tuple[Cell, ...]:
    found = [run.about.get("seconds"), *(kind.of(run) for kind in COSTS)]
    return tuple(cell("–") if value is None else cell(f"{value:,.0f}" if value >= 100 or value == int(value)
                                                      else f"{value:.3g}", value) for value in found)
