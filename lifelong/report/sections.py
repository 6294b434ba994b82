"""What a report says: its sections, tables and captions, from runs alone."""

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

_HOW = "Intervals are those of each difference alone; p is after Holm over the comparisons of a metric."
COMPARED = ("average_accuracy", "forgetting")


def section(group: Group, reference: str | None = None, other: Sequence[str] = ()) -> list[Block]:
    """All about one group.

    Args:
        group: comparable runs.
        reference: what the others are compared with; see `comparisons`.
        other: names of frameworks whose metrics are shown too.
    """
    names = [name for name in COMPARED if name in group.values(0)]
    compared = {name: comparisons(group, name, reference) for name in names}
    blocks: list[Block] = [Heading(2, group.title)]
    blocks += [Paragraph((f"All runs: {group.common}.",))] if group.common else []
    said = [verdict(group, one) for found in compared.values() for one in found]
    blocks += [Heading(3, "In words"), Paragraph(leader(group))]
    blocks += [Paragraph((_HOW,)), Bullets(tuple(said))] if said else []
    known = tuple(knew for i in range(len(group.runs)) if (knew := begun(group, i)))
    blocks += [Bullets(known)] if known else []
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
    """Which strategy ends highest, and who is not told from it."""
    top, tied, needed = best(group, "average_accuracy")
    if top is None:
        return (f"{len(group.runs)} strategy, no other to set beside it." if len(group.runs) == 1 else
                "Fewer than two strategies were measured to the end." if any(map(diverged, group.runs)) else
                f"The average {group.score.name} after the last task was measured for fewer than two strategies.",)
    aside = [*(["cumulative and joint"] if any(map(sees_all, group.runs)) else []),
             *(["what was not measured to the end"] if any(map(diverged, group.runs)) else [])]
    said = words(f"Highest average {group.score.name}" + (f", {' and '.join(aside)} aside: " if aside else ": "),
                 Code(group.labels[top]), ", ", percent(group.values(top)["average_accuracy"], group.score),
                 " %" * group.score.percent)
    if needed:
        return words(said, f"; too few seeds to tell it from any other (that takes {needed}).")
    if tied:  # those with too few seeds among them
        others = [words(Code(group.labels[i])) for i in tied]
        return words(said, "; not told from it: ", joined(others, ", "), ".")
    return words(said, "; the seeds tell it from every other (p after Holm over the comparisons with it).")


# ---- figures


def pictures(group: Group, only: Sequence[str] = ()) -> list[Block]:
    """The figures that this group has something to show in, each with its definition, S, and the kind of interval."""
    return [Picture(f"{group.slug}-{name}", (caption(group, name),), f"{titled(group, name)}: {group.title}")
            for name in figures.drawable(group) if not only or name in only]


# ---- across streams, and what is not in the tables


def across(found: Sequence[Group]) -> list[Block]:
    """Ranks of the strategies that were run on every stream."""
    labels, own, place = ranks(found)
    if not labels:
        return []
    mean = place.mean(0)
    rows = tuple((cell(Code(labels[i])), cell(f"{mean[i]:.2f}", float(mean[i])),
                  *(cell(f"{r:g}", float(r)) for r in place[:, i])) for i in np.argsort(mean, kind="stable"))
    columns = (Column("strategy"), Column("average rank", ("",)), *(Column(group.title, ("",)) for group in own))
    note = ("Rank by mean average accuracy among the strategies that were measured to the end on all of these "
            "streams, 1 the highest; equal means share their ranks. No test: ranks on a few streams, chosen and not "
            "drawn, carry no p-value; Friedman's is for ten streams or more.")
    return [Heading(2, "Across streams"), Table("across-streams", (), columns, rows, (note,))]


def not_shown(damaged: Sequence[str], unfinished: Sequence[Words], found: Sequence[Group],
              left_out: int) -> list[Block]:
    """Whatever is not whole, damaged, unfinished or diverged; and how many were not asked for."""
    ended = [words(Code(group.labels[i]), f" on {group.title}", f": {run.about['note']}" * bool(run.about.get("note")))
             for group in found if not group.told for i, run in enumerate(group.runs) if diverged(run)]
    several = [("Damaged, and left as they are:", [(text,) for text in damaged]), ("Not finished:", unfinished),
               ("Diverged, in the tables with what was measured:", ended)]
    blocks: list[Block] = [block for title, items in several if items
                           for block in (Paragraph((title,)), Bullets(tuple(items)))]
    blocks += [Paragraph((f"Finished, and not asked for: {left_out}.",))] if left_out else []
    return [Heading(2, "Not whole, or not shown"), *blocks] if blocks else []


def everything(found: Sequence[Group], evaluations: Sequence[Record] = ()) -> Words:
    """What there is, in a sentence."""
    runs = [run for group in found if not group.told for run in group.runs]
    streams = len({group.title for group in found if not group.told})
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
    """A report, block by block; see `lifelong.report.write`."""
    found = groups(runs)
    blocks: list[Block] = [Heading(1, "Report")]
    if not found and not evaluations:
        return [*blocks, Paragraph(("There are no runs to report on.",)), *not_shown(damaged, unfinished, (), left_out)]
    blocks += [Paragraph(everything(found, evaluations))]
    for group in found:
        blocks += section(group, reference, other)
    return [*blocks, *across(found), *fewshot_section(evaluations), *not_shown(damaged, unfinished, found, left_out)]
