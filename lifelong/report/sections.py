"""The sections of a report: its text, tables and figures, from runs alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lifelong.report import figures
from lifelong.report.captions import caption, titled
from lifelong.report.costs import seconds
from lifelong.report.document import (
    Block,
    Bullets,
    Code,
    Column,
    Heading,
    Paragraph,
    Picture,
    Table,
    Words,
    cell,
    joined,
    words,
)
from lifelong.report.fewshot import Record, fewshot_section
from lifelong.report.group import Group, diverged, groups, percent, sees_all
from lifelong.report.sentences import begun, fate, verdict
from lifelong.report.statistics import best, comparisons, ranks
from lifelong.report.tables import (
    comparison_table,
    length_table,
    metric_table,
    provenance_table,
    settings_table,
    task_table,
    theirs,
)
from lifelong.store.records import Run

_HOW = "Intervals are those of the differences; p-values are Holm-adjusted over the comparisons of a metric."
COMPARED = ("average_accuracy", "forgetting")


def section(group: Group, reference: str | None = None, other: Sequence[str] = ()) -> list[Block]:
    """The section about one group of runs.

    Args:
        group: comparable runs.
        reference: the run that the others are compared with, as in `comparisons`.
        other: names of frameworks whose metrics are shown as well.
    """
    names = [name for name in COMPARED if name in group.values(0)]
    compared = {name: comparisons(group, name, reference) for name in names}
    blocks: list[Block] = [Heading(2, group.title)]
    blocks += [Paragraph((f"All runs: {group.common}.",))] if group.common else []
    said = [verdict(group, one) for found in compared.values() for one in found]
    blocks += [Heading(3, "Summary"), Paragraph(leader(group))]
    blocks += [Paragraph((_HOW,)), Bullets(tuple(said))] if said else []
    starts = tuple(sentence for i in range(len(group.runs)) if (sentence := begun(group, i)))
    blocks += [Bullets(starts)] if starts else []
    fates = tuple(fate(group, i) for i, run in enumerate(group.runs) if diverged(run))
    blocks += [Bullets(fates)] if fates else []
    blocks += [Heading(3, "Metrics"), metric_table(group), *length_table(group)]
    blocks += [theirs(group, name) for name in other]
    drawn = pictures(group)
    blocks += [Heading(3, "Figures"), *drawn] if drawn else []
    blocks += [Heading(3, "Comparisons"), comparison_table(group, compared)] if any(compared.values()) else []
    blocks += [Heading(3, group.score.named("Accuracy of each task")), task_table(group)]
    blocks += [Heading(3, "Settings"), settings_table(group), Heading(3, "Provenance"), provenance_table(group)]
    return blocks


def leader(group: Group) -> Words:
    """Which strategy has the highest average accuracy, and which do not differ significantly from it."""
    top, tied, needed = best(group, "average_accuracy")
    if top is None:
        return ("There is only one strategy, so nothing is compared." if len(group.runs) == 1 else
                "Fewer than two strategies were measured to the end." if any(map(diverged, group.runs)) else
                f"The average {group.score.name} after the last task was measured for fewer than two strategies.",)
    excluded = [*(["cumulative and joint"] if any(map(sees_all, group.runs)) else []),
                *(["runs not measured to the end"] if any(map(diverged, group.runs)) else [])]
    said = words(f"Highest average {group.score.name}", f" (without {' and '.join(excluded)})" * bool(excluded), ": ",
                 Code(group.labels[top]), ", ", percent(group.values(top)["average_accuracy"], group.score),
                 " %" * group.score.percent, ". ")
    if needed:
        return words(said, f"No difference from it can be significant with so few seeds; at least {needed} are needed.")
    if tied:  # including runs with too few seeds
        return words(said, "Not significantly different: ", joined([words(Code(group.labels[i])) for i in tied], ", "),
                     ".")
    return words(said, "It differs significantly from every other strategy (p Holm-adjusted over these comparisons).")


# ---- figures


def pictures(group: Group, only: Sequence[str] = ()) -> list[Block]:
    """The figures of a group, each with a caption that gives its definition, S, and the kind of interval."""
    return [Picture(f"{group.slug}-{name}", (caption(group, name),), f"{titled(group, name)}: {group.title}")
            for name in figures.drawable(group) if not only or name in only]


# ---- across streams, and runs that are not in the tables


def across(found: Sequence[Group]) -> list[Block]:
    """The ranks of the strategies that were run on every stream."""
    labels, own, place = ranks(found)
    if not labels:
        return []
    mean = place.mean(0)
    rows = tuple((cell(Code(labels[i])), cell(f"{mean[i]:.2f}", float(mean[i])),
                  *(cell(f"{r:g}", float(r)) for r in place[:, i])) for i in np.argsort(mean, kind="stable"))
    columns = (Column("strategy"), Column("average rank", ("",)), *(Column(group.title, ("",)) for group in own))
    note = ("Ranks by mean average accuracy among the strategies that were measured to the end on all of these "
            "streams; 1 is the highest, and equal means share the mean of their ranks. No test is made: the streams "
            "are few and not a random sample, and Friedman's test needs ten or more.")
    return [Heading(2, "Across streams"), Table("across-streams", (), columns, rows, (note,))]


def not_shown(damaged: Sequence[str], unfinished: Sequence[Words], found: Sequence[Group],
              left_out: int) -> list[Block]:
    """The damaged, unfinished and diverged runs, and how many finished ones were not selected."""
    ended = [words(Code(group.labels[i]), f" on {group.title}", f": {run.about['note']}" * bool(run.about.get("note")))
             for group in found if not group.told_task for i, run in enumerate(group.runs) if diverged(run)]
    lists = [("Damaged (the files were not changed):", [(text,) for text in damaged]), ("Unfinished:", unfinished),
             ("Diverged (the tables show what was measured):", ended)]
    blocks: list[Block] = [block for title, items in lists if items
                           for block in (Paragraph((title,)), Bullets(tuple(items)))]
    blocks += [Paragraph((f"Finished but not selected: {left_out}.",))] if left_out else []
    return [Heading(2, "Incomplete and omitted runs"), *blocks] if blocks else []


def everything(found: Sequence[Group], evaluations: Sequence[Record] = ()) -> Words:
    """The number of runs, streams and evaluations, in one sentence."""
    runs = [run for group in found if not group.told_task for run in group.runs]
    streams = len({group.title for group in found if not group.told_task})
    hours = sum((seconds(run) or 0.0) * len(run.accuracy) for run in runs) / 3600
    last = max((str(about["finished"]) for about in (*(run.about for run in runs), *evaluations)
                if about.get("finished")), default="")
    counts = [_counted(len(runs), "run") + " on " + _counted(streams, "stream")] if runs else []
    counts += [_counted(len(evaluations), "few-shot evaluation")] if evaluations else []
    text = " and ".join(counts) + (f", {hours:.1f} hours of training" if hours >= 0.1 else "")
    return (text + (f"; the last finished {last}." if last else "."),)


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" + "s" * (n != 1)


def document(runs: Sequence[Run], reference: str | None = None, other: Sequence[str] = (), damaged: Sequence[str] = (),
             unfinished: Sequence[Words] = (), left_out: int = 0, evaluations: Sequence[Record] = ()) -> list[Block]:
    """The blocks of a report; the arguments are those of `lifelong.report.write`."""
    found = groups(runs)
    blocks: list[Block] = [Heading(1, "Report")]
    if not found and not evaluations:
        return [*blocks, Paragraph(("There are no runs to report.",)), *not_shown(damaged, unfinished, (), left_out)]
    blocks += [Paragraph(everything(found, evaluations))]
    for group in found:
        blocks += section(group, reference, other)
    return [*blocks, *across(found), *fewshot_section(evaluations), *not_shown(damaged, unfinished, found, left_out)]
