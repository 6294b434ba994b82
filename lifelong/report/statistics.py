"""Comparisons of strategies: differences, intervals, tests, effect sizes, and the number of seeds needed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lifelong import metrics
from lifelong.report.group import Group, alike, diverged, seeds, sees_all
from lifelong.spec.run import OptionError
from lifelong.store.records import Run

LEVEL = 0.05  # significance level of every test
POWER = 0.8
MOST = 10_000  # larger numbers of seeds are reported as "more than 10,000"
LOWER = {"forgetting", "intransigence"}  # metrics for which lower values are better
PARTS = "parts"  # the reference that compares every sum with each of its parts


class Difference(NamedTuple):
    """The difference between two strategies in one metric.

    Attributes:
        mean: mean difference.
        low, high: ends of its 95 % t interval; NaN with one seed.
        n: number of seeds that both have; if unpaired, the smaller number of seeds.
        paired: whether the differences are between equal seeds.
        p: two-sided p-value of the sign-flip permutation test; if unpaired, of Welch's t test.
        effect: Cohen's d_z = mean / standard deviation of the paired differences; if unpaired, Cohen's d with the root
            of the mean of both variances.
    """

    mean: float
    low: float
    high: float
    n: int
    paired: bool
    p: float
    effect: float


def difference(mine: Mapping[int, float], theirs: Mapping[int, float]) -> Difference:
    """The difference `mine` - `theirs` of values by seed.

    It is paired over the seeds that both have. With fewer than 2 such seeds it is unpaired, if each has 2 seeds or
    more; otherwise only the mean difference is given.
    """
    both = [seed for seed in mine if seed in theirs]
    if len(both) < 2 and min(len(mine), len(theirs)) > 1:
        return _unpaired(np.array(list(mine.values())), np.array(list(theirs.values())))
    if not both:
        mean = float(np.mean(list(mine.values())) - np.mean(list(theirs.values())))
        return Difference(mean, np.nan, np.nan, 1, False, np.nan, np.nan)
    a, b = (np.array([values[seed] for seed in both]) for values in (mine, theirs))
    mean, half, p = metrics.paired_difference(a, b)
    return Difference(mean, mean - half, mean + half, len(both), True, p, _ratio(mean, _spread(a - b)))


def _unpaired(a: metrics.Array, b: metrics.Array) -> Difference:
    """The unpaired difference by Welch's t test, for unequal variances."""
    from scipy.special import stdtr, stdtrit

    mean, own = float(a.mean() - b.mean()), [_spread(x) ** 2 / len(x) for x in (a, b)]
    error, n = math.sqrt(sum(own)), min(len(a), len(b))
    effect = _ratio(mean, math.sqrt((_spread(a) ** 2 + _spread(b) ** 2) / 2))
    if not error:
        return Difference(mean, mean, mean, n, False, float(mean == 0), effect)
    degrees = sum(own) ** 2 / sum(v**2 / (len(x) - 1) for v, x in zip(own, (a, b), strict=True))
    half = float(stdtrit(degrees, 1 - LEVEL / 2)) * error
    return Difference(mean, mean - half, mean + half, n, False, float(2 * stdtr(degrees, -abs(mean) / error)), effect)


def _spread(x: metrics.Array) -> float:
    """The standard deviation; 0 if the values differ by rounding only."""
    found = float(x.std(ddof=1)) if len(x) > 1 else np.nan
    return 0.0 if found < 1e-12 * (1 + abs(float(x.mean()))) else found


def _ratio(mean: float, spread: float) -> float:
    return mean / spread if spread else math.copysign(math.inf, mean) if mean else np.nan


def power(n: int, effect: float, level: float = LEVEL, paired: bool = True) -> float:
    """The exact power (noncentral t) of a two-sided t test for a true `effect` with `n` seeds (each, if unpaired)."""
    from scipy.special import nctdtr, stdtrit

    degrees, centre = (n - 1, abs(effect) * math.sqrt(n)) if paired else (2 * n - 2, abs(effect) * math.sqrt(n / 2))
    edge = float(stdtrit(degrees, 1 - level / 2))
    if centre - edge > 30:  # nctdtr fails here, and the power is 1
        return 1.0
    other = float(nctdtr(degrees, centre, -edge))  # NaN from a centre of 5.8 on, where it is 0 to nine digits
    return float(1 - nctdtr(degrees, centre, edge)) + (0.0 if math.isnan(other) else other)


def seeds_needed(effect: float, level: float = LEVEL, paired: bool = True) -> int | None:
    """The smallest number of seeds for 80 % power of a t test at `level`; None if it exceeds 10,000."""
    if not effect or math.isnan(effect):
        return None
    low, high = 1, 2
    while power(high, effect, level, paired) < POWER:
        low, high = high, 2 * high
        if high > 2 * MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, effect, level, paired) >= POWER else (middle, high)
    return high if high <= MOST else None


def flips_needed(n_tests: int) -> int:
    """The smallest number of seeds with which the sign-flip test can reach .05, Holm-adjusted over `n_tests` tests."""
    return math.ceil(math.log2(2 * n_tests / LEVEL))


class Comparison(NamedTuple):
    """The comparison of a run with a reference in one metric.

    Attributes:
        run, reference: indices of the two runs in the group.
        metric: name of the metric.
        difference: the difference run - reference; None if it cannot be computed.
        p: p-value, Holm-adjusted over the comparisons of the group in this metric.
        smallest_p: the smallest value that `p` could have with these seeds.
        needed: number of seeds for 80 % power at level .05 divided by the number of comparisons if the observed
            difference is the true one, but at least as many as the sign-flip test needs; None if it exceeds 10,000 or
            there is no difference.
        problem: why there is no difference.
    """

    run: int
    reference: int
    metric: str
    difference: Difference | None
    p: float
    smallest_p: float
    needed: int | None
    problem: str

    @property
    def significant(self) -> bool:
        """Whether the difference is significant at level .05."""
        return self.difference is not None and self.p <= LEVEL


def comparisons(group: Group, metric: str = "average_accuracy", reference: str | None = None) -> list[Comparison]:
    """The comparisons of all runs of a group with the reference, in the order of the table.

    Args:
        group: the runs.
        metric: name of a metric that all runs have.
        reference: a label or strategy; None, or one that the group does not have, is its first run. `parts` compares
            every sum with each of its parts, and tuned sums with parts at the values to which these were tuned.
    """
    return _tested(group, metric, pairs(group, reference))


def checked_reference(groups: Sequence[Group], reference: str | None) -> None:
    """Raises OptionError if no group has the reference."""
    if reference in (None, PARTS) or any(group.find(str(reference)) is not None for group in groups):
        return
    labels = list(dict.fromkeys(label for group in groups for label in group.labels))
    near = difflib.get_close_matches(str(reference), labels, 3, 0.3) or labels[:8]
    raise OptionError(f"reference must be a strategy in the report, or {PARTS}; got {reference!r}, but the report has "
                      f"{', '.join(map(repr, near)) or 'no runs'}", "reference")


def pairs(group: Group, reference: str | None = None) -> list[tuple[int, int]]:
    """The pairs (run, reference) that are compared."""
    if reference == PARTS:
        return [(i, j) for i, run in enumerate(group.runs) for n, part in enumerate(terms(run.spec["strategy"]))
                for j, other in enumerate(group.runs)
                if i != j and ((other.spec["strategy"] == part and alike(run, other)) or _tuned_part(run, n, other))]
    j = group.find(reference) if reference is not None else 0
    return [(i, j or 0) for i in range(len(group.runs)) if i != (j or 0)]


def _tuned_part(run: Run, n: int, other: Run) -> bool:
    """Whether `other` is the n-th part of the sum `run` up to the values to which each was tuned."""
    made = [one.about.get("tuned") for one in (run, other)]
    if not all(isinstance(one, Mapping) for one in made) or terms(other.spec["strategy"]):
        return False
    free = {name for one in made for name in (one or {}).get("chosen") or {}}

    def fixed(name: str, hyper: Mapping[str, object]) -> tuple[str, dict[str, object]]:
        name = name.partition("(")[0]
        return name, {k: v for k, v in hyper.items() if f"{name}.{k}" not in free}

    def learned(one: Run, part: str, k: int) -> list[tuple[str, dict[str, object]]]:
        hyper = one.spec["hyper"]
        return [fixed(part, hyper["strategy"][k]), fixed(one.spec["optimizer"], hyper["optimizer"])]

    same = learned(run, terms(run.spec["strategy"])[n], n) == learned(other, other.spec["strategy"], 0)
    return same and alike(run, other, "optimizer")


def terms(strategy: str) -> list[str]:
    """The parts of a sum, or an empty list if `strategy` is not a sum; a + within brackets or quotes does not count."""
    found, depth, quote = [""], 0, ""
    for letter in strategy:
        quote = "" if letter == quote else quote or (letter if letter in "'\"" else "")
        depth += 0 if quote else (letter in "([{") - (letter in ")]}")
        if letter == "+" and not depth and not quote:
            found.append("")
        else:
            found[-1] += letter
    return [term.strip() for term in found] if len(found) > 1 else []


def _tested(group: Group, metric: str, which: Sequence[tuple[int, int]]) -> list[Comparison]:
    found: list[tuple[int, int, Difference | None, str]] = []
    for i, j in which:
        problem = next((why for k in (i, j) if (why := _missing(group, k, metric))), "")
        mine, theirs = (dict(zip(seeds(group.runs[k]), group.values(k)[metric], strict=True)) for k in (i, j))
        found.append((i, j, None if problem else difference(mine, theirs), problem))
    adjusted = metrics.holm([np.nan if d is None else d.p for _, _, d, _ in found])
    tests = max(1, int(np.isfinite(adjusted).sum()))
    least = metrics.holm([np.nan if d is None or np.isnan(d.p) else metrics.smallest_p(d.n) if d.paired else 0.0
                          for _, _, d, _ in found])
    return [Comparison(i, j, metric, d, float(p), float(q), _needed(d, tests), problem)
            for (i, j, d, problem), p, q in zip(found, adjusted, least, strict=True)]


def _missing(group: Group, i: int, metric: str) -> str:
    """Why a metric of run `i` cannot be compared; empty if it can."""
    values = group.values(i)[metric]
    n = int((~np.isfinite(values)).sum())
    if n == len(values) and not diverged(group.runs[i]):
        return "a run was not evaluated often enough for this metric"
    return f"{n} of {len(values)} seeds of a run were not measured to the end" if n else ""


def _needed(one: Difference | None, tests: int) -> int | None:
    if one is None or one.n < 2 or math.isnan(one.effect):
        return None
    enough = 2 if math.isinf(one.effect) else seeds_needed(one.effect, LEVEL / tests, one.paired)
    return enough and max(enough, flips_needed(tests) if one.paired else 2)


def best(group: Group, metric: str) -> tuple[int | None, list[int], int | None]:
    """The run with the best mean, the runs that do not differ significantly from it, and the number of seeds needed.

    Every run that is not an upper bound and was measured to the end is compared with the best by the paired sign-flip
    test, Holm-adjusted. The third value is None if some comparison can be significant with its number of seeds;
    otherwise it is the number of seeds needed, and the second value is empty.
    """
    found = {i: values[metric] for i in range(len(group.runs)) if not sees_all(group.runs[i])
             and metric in (values := group.values(i)) and np.isfinite(values[metric]).all()}
    if len(found) < 2:
        return None, [], None
    top = (min if metric in LOWER else max)(found, key=lambda i: found[i].mean())
    tested = [one for one in _tested(group, metric, [(i, top) for i in found if i != top]) if one.difference]
    if all(not one.smallest_p <= LEVEL for one in tested):
        return top, [], flips_needed(len(tested))
    return top, [one.run for one in tested if one.p > LEVEL], None


def ranks(groups: Sequence[Group]) -> tuple[list[str], list[Group], metrics.Array]:
    """Labels, groups and ranks [groups, labels] of the strategies that were run on all streams.

    Ranks are by mean average accuracy; 1 is the best, and equal means share the mean of their ranks. Runs with a seed
    that was not measured to the end are excluded, and so are the scores of runs that were given the task.
    """
    own = [group for group in groups if not group.told_task]
    means = [{label: float(v.mean()) for i, label in enumerate(group.labels)
              if np.isfinite(v := group.values(i)["average_accuracy"]).all()} for group in own]
    labels = [label for label in (means[0] if means else {}) if all(label in one for one in means)]
    if len(own) < 2 or len(labels) < 2:
        return [], [], np.zeros((0, 0))
    x = np.array([[one[label] for label in labels] for one in means])
    above, level = (x[:, None, :] > x[:, :, None]).sum(-1), (x[:, None, :] == x[:, :, None]).sum(-1)
    return labels, own, 1 + above + (level - 1) / 2
