"""The results of a report as sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lifelong import metrics
from lifelong.report.document import Code, Words, words
from lifelong.report.group import Group
from lifelong.report.statistics import Comparison

_MORE = {"average_accuracy": ("has an average accuracy {} higher than ", "has an average accuracy {} lower than "),
         "forgetting": ("forgets {} more than ", "forgets {} less than ")}
_SAME = {"average_accuracy": "has the same average accuracy as ", "forgetting": "forgets as much as "}


def p_value(p: float) -> str:
    """A p-value with two significant digits; – if there was no test."""
    return "–" if math.isnan(p) else f"{p:.2g}" if p >= 1e-4 else "< 0.0001"


def _equals(p: float) -> str:
    return p_value(p) if p < 1e-4 else f"= {p_value(p)}"


def counted(several: Sequence[int]) -> str:
    """The number of seeds, such as `S = 5 seeds`, or its range."""
    low, high = min(several), max(several)
    return f"S = {low} seed" + "s" * (low > 1) if low == high else f"S = {low} to {high} seeds"


def verdict(group: Group, one: Comparison) -> Words:
    """A comparison in one or two sentences: the difference, its interval, the seeds, and whether it is significant."""
    score = group.score
    mine, other = Code(group.labels[one.run]), Code(group.labels[one.reference])
    d = one.difference
    if d is None:
        return words(mine, " is not compared with ", other, f" in {score.named(one.metric)}: {one.problem}.")
    up, down = _MORE[one.metric]
    size = score.change(abs(d.mean)) + " points" * score.percent
    relation = _SAME[one.metric] if d.mean == 0 else (up if d.mean > 0 else down).format(size)
    said = words(mine, " ", score.named(relation), other)
    seeds = f"{d.n} seed" + "s" * (d.n > 1) + ("" if d.paired else " or more, unpaired because they share fewer than 2")
    if math.isnan(d.low):
        return words(said, f" ({seeds}). One seed gives neither an interval nor a test.")
    low, high = (d.low, d.high) if d.mean >= 0 else (-d.high, -d.low)
    said = words(said, f" (95 % interval {score.change(low)} to {score.change(high)}, {seeds}")
    if one.significant:
        return words(said, f"; p {_equals(one.p)}).")
    needed = f"about {max(one.needed, d.n + 1):,}" if one.needed else "more than 10,000"
    if one.needed is None and math.isnan(d.effect):
        return words(said, "): all seeds have equal values.")
    if one.smallest_p > 0.05:
        return words(said, f"). With {d.n} seeds the adjusted p cannot reach .05; {needed} seeds would be needed.")
    return words(said, f"; p {_equals(one.p)}). The difference is not significant; {needed} seeds would be needed.")


def fate(group: Group, i: int) -> Words:
    """How far a diverged run was measured."""
    run = group.runs[i]
    curve, reached = metrics.average_curve(run.accuracy), np.isfinite(run.accuracy[:, 1:]).any(-1)
    ended, whole = int(reached[:, -1].sum()), np.flatnonzero(reached.all(0))
    why = f" ({run.about['note']})" if run.about.get("note") else ""
    said = words(Code(group.labels[i]), f" diverged{why}; {ended} of {len(curve)} seeds reached the end. ")
    if not len(whole):
        return words(said, "There is no task after which every seed was measured.")
    t = int(whole[-1])
    if not np.isfinite(curve[:, t]).all():
        return words(said, f"Task {t + 1} is the last after which every seed was measured.")
    mean = group.score.interval(float(curve[:, t].mean()), math.nan)
    return words(said, f"After task {t + 1}, the last that every seed reached, the average {group.score.name} over the "
                 f"tasks seen so far was {mean}{' %' * group.score.percent}.")


def begun(group: Group, i: int) -> Words | None:
    """The average accuracy of a learned start before the first task, if it is at least half of the final one."""
    run = group.runs[i]
    first, last = run.accuracy[:, 0].mean(), run.accuracy[:, -1].mean()
    if "start" not in run.spec or not first >= last / 2 > 0:
        return None
    return words(Code(group.labels[i]), f" has an average accuracy of {100 * first:.1f} % before the first task and "
                 f"{100 * last:.1f} % after the last: training on the stream changed it by "
                 f"{group.score.change(last - first, sign=True)} points.")
