"""Which strategies differ, by how much, how surely, and how many seeds would tell."""

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

LEVEL = 0.05  # of every test
POWER = 0.8
MOST = 10_000  # seeds: where more were needed, "more than" is said
LOWER = {"forgetting", "intransigence"}  # metrics of which less is better
PARTS = "parts"  # the reference that stands for: every sum against each of its parts


class Difference(NamedTuple):
    """One strategy's metric less another's.

    Attributes:
        mean: of the difference.
        low, high: its 95 % t interval; NaN with one seed.
        n: seeds that both have; unpaired: of the one that has fewer.
        paired: whether differences of the same seeds were taken.
        p: two-sided, of the sign-flip permutation test; unpaired, of Welch's t test.
        effect: paired, Cohen's d_z = mean / standard deviation of the differences; unpaired, Cohen's d, with the root
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
    """`mine` less `theirs`, values by seed: paired on the seeds that both have, unpaired where these are fewer than 2.

    One seed that both have gives a mean alone, unless each has two seeds or more.
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
    """Welch's t: variances may differ."""
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
    """Standard deviation; of values equal but for their last bits, 0."""
    found = float(x.std(ddof=1)) if len(x) > 1 else np.nan
    return 0.0 if found < 1e-12 * (1 + abs(float(x.mean()))) else found


def _ratio(mean: float, spread: float) -> float:
    return mean / spread if spread else math.copysign(math.inf, mean) if mean else np.nan


def power(n: int, effect: float, level: float = LEVEL, paired: bool = True) -> float:
    """Chance that a two-sided t test with `n` seeds (of each, unpaired) finds a true `effect`: exact, noncentral t."""
    from scipy.special import nctdtr, stdtrit

    degrees, centre = (n - 1, abs(effect) * math.sqrt(n)) if paired else (2 * n - 2, abs(effect) * math.sqrt(n / 2))
    edge = float(stdtrit(degrees, 1 - level / 2))
    if centre - edge > 30:  # beyond what nctdtr computes, and certain
        return 1.0
    other = float(nctdtr(degrees, centre, -edge))  # NaN where it is 0 to nine digits, from a centre of 5.8 on
    return float(1 - nctdtr(degrees, centre, edge)) + (0.0 if math.isnan(other) else other)


def seeds_needed(effect: float, level: float = LEVEL, paired: bool = True) -> int | None:
    """The fewest seeds with which a t test at `level` finds a true `effect` with 80 % power; None: over 10,000."""
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
    """Seeds with which the sign-flip test can reach .05 at all, after Holm over `n_tests`."""
    return math.ceil(math.log2(2 * n_tests / LEVEL))


class Comparison(NamedTuple):
    """A strategy against a reference in one metric; `difference` is None, and `problem` says why, where it has none.

    Attributes:
        run, reference: their places in the group.
        p: after Holm over the comparisons of the group in this metric.
        smallest_p: the least that it could have been with these seeds.
        needed: seeds that would tell, were the difference seen the true one: for 80 % power at .05 over the number of
            comparisons, and as many as the sign-flip test takes; None: over 10,000, or no difference at all.
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
    def told(self) -> bool:
        """Whether the seeds tell the two apart."""
        return self.difference is not None and self.p <= LEVEL


def comparisons(group: Group, metric: str = "average_accuracy", reference: str | None = None) -> list[Comparison]:
    """Every run against the reference, in the order of the table.

    Args:
        group: whose runs.
        metric: the name of one that all of them have.
        reference: a label or strategy of the group; None, or one that the group lacks: its first; `parts`: every sum
            against each of its parts; of runs that were tuned, against the part at the values that it was tuned to.
    """
    return _tested(group, metric, pairs(group, reference))


def checked_reference(groups: Sequence[Group], reference: str | None) -> None:
    """Raises OptionError, with what there is, for a reference that no group has."""
    if reference in (None, PARTS) or any(group.find(str(reference)) is not None for group in groups):
        return
    labels = list(dict.fromkeys(label for group in groups for label in group.labels))
    near = difflib.get_close_matches(str(reference), labels, 3, 0.3) or labels[:8]
    raise OptionError(f"reference must be a strategy of the report, or {PARTS}; got {reference!r}, and there is "
                      f"{', '.join(map(repr, near)) or 'no run'}", "reference")


def pairs(group: Group, reference: str | None = None) -> list[tuple[int, int]]:
    """Which run is compared with which."""
    if reference == PARTS:
        return [(i, j) for i, run in enumerate(group.runs) for n, part in enumerate(terms(run.spec["strategy"]))
                for j, other in enumerate(group.runs)
                if i != j and ((other.spec["strategy"] == part and alike(run, other)) or _tuned_part(run, n, other))]
    j = group.find(reference) if reference is not None else 0
    return [(i, j or 0) for i in range(len(group.runs)) if i != (j or 0)]


def _tuned_part(run: Run, n: int, other: Run) -> bool:
    """Whether `other` is the n-th part of the sum `run` but for values that each was tuned to."""
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
    """The parts of a sum, none of what is no sum; a + inside brackets or quotes adds nothing up."""
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
    """Why a metric of run `i` cannot be compared; nothing where it can."""
    values = group.values(i)[metric]
    n = int((~np.isfinite(values)).sum())
    if n == len(values) and not diverged(group.runs[i]):
        return "its evaluations do not tell it"
    return f"{n} of {len(values)} seeds of it were not measured to the end" if n else ""


def _needed(one: Difference | None, tests: int) -> int | None:
    if one is None or one.n < 2 or math.isnan(one.effect):
        return None
    enough = 2 if math.isinf(one.effect) else seeds_needed(one.effect, LEVEL / tests, one.paired)
    return enough and max(enough, flips_needed(tests) if one.paired else 2)


def best(group: Group, metric: str) -> tuple[int | None, list[int], int | None]:
    """The run with the best mean, those that the seeds do not tell from it, and how many seeds that would take.

    Compared are runs that are no bound and were measured to the end, each with the best, by the paired sign-flip test
    after Holm. The third is None where some comparison has seeds enough; else no run is said to be told, or not.
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
    """Labels, groups and ranks [groups, labels] by mean average accuracy, 1 the best, of what was run on all streams.

    Equal means share the mean of their ranks. Runs of which a seed was not measured to the end, and second scores of
    the same runs (told the task), are left out; so are groups that have no two of the labels.
    """
    own = [group for group in groups if not group.told]
    means = [{label: float(v.mean()) for i, label in enumerate(group.labels)
              if np.isfinite(v := group.values(i)["average_accuracy"]).all()} for group in own]
    labels = [label for label in (means[0] if means else {}) if all(label in one for one in means)]
    if len(own) < 2 or len(labels) < 2:
        return [], [], np.zeros((0, 0))
    x = np.array([[one[label] for label in labels] for one in means])
    above, level = (x[:, None, :] > x[:, :, None]).sum(-1), (x[:, None, :] == x[:, :, None]).sum(-1)
    return labels, own, 1 + above + (level - 1) / 2
