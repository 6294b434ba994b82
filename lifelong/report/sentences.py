"""Comparisons in words, for a reader who wants no table."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lifelong import metrics
from lifelong.report.document import Code, Words, words
from lifelong.report.group import Group
from lifelong.report.statistics import Comparison

_MORE = {"average_accuracy": ("ends {} higher than ", "ends {} lower than "),
         "forgetting": ("forgets {} more than ", "forgets {} less than ")}
_SAME = {"average_accuracy": "ends as high as ", "forgetting": "forgets as much as "}


def p_value(p: float) -> str:
    """Two digits that count; – where there was no test."""
    return "–" if math.isnan(p) else f"{p:.2g}" if p >= 1e-4 else "< 0.0001"


def _equals(p: float) -> str:
    return p_value(p) if p < 1e-4 else f"= {p_value(p)}"


def counted(several: Sequence[int]) -> str:
    """How many seeds: `S = 5 seeds`, or from how few to how many."""
    low, high = min(several), max(several)
    return f"S = {low} seed" + "s" * (low > 1) if low == high else f"S = {low} to {high} seeds"


def verdict(group: Group, one: Comparison) -> Words:
    """A comparison as one sentence or two: the difference, its interval, the seeds, and whether they settle it."""
    score = group.score
    mine, other = Code(group.labels[one.run]), Code(group.labels[one.reference])
    d = one.difference
    if d is None:
        return words(mine, " is not compared with ", other, f" in {score.named(one.metric)}: {one.problem}.")
    up, down = _MORE[one.metric]
    size = score.change(abs(d.mean)) + " points" * score.percent
    said = words(mine, " ", _SAME[one.metric] if d.mean == 0 else (up if d.mean > 0 else down).format(size), other)
    seeds = f"{d.n} seed" + "s" * (d.n > 1) + ("" if d.paired else " at least, unpaired: they share fewer than two")
    if math.isnan(d.low):
        return words(said, f" ({seeds}): one seed gives no interval and no test.")
    low, high = (d.low, d.high) if d.mean >= 0 else (-d.high, -d.low)
    said = words(said, f" (95 % interval {score.change(low)} to {score.change(high)}, {seeds}")
    if one.told:
        return words(said, f"; p {_equals(one.p)}).")
    many = "about " + f"{max(one.needed, d.n + 1):,} would" if one.needed else "more than 10,000 would be needed"
    if one.needed is None and math.isnan(d.effect):
        return words(said, "): no seed differs.")
    if one.smallest_p > 0.05 and low > 0:
        return words(said, f"). The sign-flip test cannot confirm that with {d.n} seeds: {many}.")
    if one.smallest_p > 0.05:
        return words(said, f"). {d.n} seeds cannot settle this: {many}.")
    return words(said, f"; p {_equals(one.p)}). These seeds do not tell the two apart: {many}.")


def fate(group: Group, i: int) -> Words:
    """How far a diverged run got."""
    run = group.runs[i]
    curve, reached = metrics.average_curve(run.accuracy), np.isfinite(run.accuracy[:, 1:]).any(-1)
    ended, whole = int(reached[:, -1].sum()), np.flatnonzero(reached.all(0))
    why = f" ({run.about['note']})" if run.about.get("note") else ""
    said = words(Code(group.labels[i]), f" diverged{why}; {ended} of {len(curve)} seeds reached the end; ")
    if not len(whole):
        return words(said, "after no task was every seed measured.")
    t = int(whole[-1])
    if not np.isfinite(curve[:, t]).all():
        return words(said, f"task {t + 1} is the last after which every seed was measured.")
    mean = group.score.interval(float(curve[:, t].mean()), math.nan)
    return words(said, f"after task {t + 1}, the last with every seed, {mean} on average so far.")


def begun(group: Group, i: int) -> Words | None:
    """What a learned start knew before the first task, where that is at least half of what is known after the last."""
    run = group.runs[i]
    first, last = run.accuracy[:, 0].mean(), run.accuracy[:, -1].mean()
    if "start" not in run.spec or not first >= last / 2 > 0:
        return None
    return words(Code(group.labels[i]), f" tells {100 * first:.1f} % before its first task and {100 * last:.1f} % "
                 f"after the last: the stream taught it {group.score.change(last - first, sign=True)} points.")
