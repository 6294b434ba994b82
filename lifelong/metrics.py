"""Continual-learning metrics and statistics of comparisons: one function per equation, [..., 1 + T, T] -> [...].

`a[t, k]` is the accuracy on task k after task t, both counted from 1; row 0 is the untrained learner. Leading axes may
be seeds, strategies or anything else. An accuracy that was not measured is NaN; a metric that needs it is NaN too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

definitions: Mapping[str, str] = MappingProxyType(
    {
        "average_accuracy": "(1/T) Σ_{k=1..T} a[T,k] (Lopez-Paz & Ranzato 2017, arXiv:1706.08840)",
        "average_incremental_accuracy": "(1/T) Σ_{t=1..T} (1/t) Σ_{k=1..t} a[t,k] (Rebuffi et al. 2017, "
        "arXiv:1611.07725, with equal weight for every task)",
        "forgetting": "(1/(T-1)) Σ_{k=1..T-1} (max_{1≤t≤T-1} a[t,k] - a[T,k]); negative if the last task helped "
        "(Chaudhry et al. 2018, arXiv:1801.10112, eq. 3)",
        "backward_transfer": "(1/(T-1)) Σ_{k=1..T-1} (a[T,k] - a[k,k]) (Lopez-Paz & Ranzato 2017, arXiv:1706.08840)",
        "forward_transfer": "(1/(T-1)) Σ_{k=2..T} (a[k-1,k] - a[0,k]) (Lopez-Paz & Ranzato 2017, arXiv:1706.08840, "
        "with the untrained learner of the same seed as their baseline b)",
        "learning_accuracy": "(1/T) Σ_{k=1..T} a[k,k] (Riemer et al. 2019, arXiv:1810.11910)",
        "intransigence": "(1/T) Σ_{k=1..T} (a*[k,k] - a[k,k]), a* = the reference learner on the same seeds (Chaudhry "
        "et al. 2018, arXiv:1801.10112, where it is defined for one k; here it is the mean over all k)",
    }
)

_EXACT = 16  # 2^16 sign flips take 70 ms; beyond, flips are drawn
_DRAWS = 10_000


def _checked(accuracy: ArrayLike) -> Array:
    a = np.asarray(accuracy, dtype=np.float64)
    if a.ndim < 2 or a.shape[-1] < 1 or a.shape[-2] != a.shape[-1] + 1:
        raise ValueError(
            f"accuracy must be [..., 1 + T, T]: one column per task and one row more, row 0 for the untrained learner "
            f"(NaN if it was not tested); got shape {a.shape}"
        )
    return a


def _mean(terms: Array) -> Array:
    """Mean over the last axis; NaN, without numpy's warning, if that axis is empty."""
    return terms.mean(-1) if terms.shape[-1] else np.full(terms.shape[:-1], np.nan)


def _after_learning(a: Array) -> Array:
    """The accuracy on each task right after it was learned, [..., T]."""
    learned: Array = np.diagonal(a[..., 1:, :], axis1=-2, axis2=-1)
    return learned


def average_accuracy(accuracy: ArrayLike) -> Array:
    """Mean accuracy over all tasks after the last one: (1/T) sum_k a[T, k].

    Args:
        accuracy: [..., 1 + T, T].

    Source: Lopez-Paz & Ranzato 2017, arXiv:1706.08840.
    """
    return _mean(_checked(accuracy)[..., -1, :])


def average_curve(accuracy: ArrayLike, sizes: ArrayLike | None = None) -> Array:
    """Mean accuracy over the tasks seen so far, after each task, [..., T]: (1/t) sum_{k <= t} a[t, k].

    Args:
        accuracy: [..., 1 + T, T]; the accuracies on tasks not yet seen are ignored.
        sizes: the weight n[k] of each task, [T], for example its number of classes; the result is then
            sum_{k <= t} n[k] a[t, k] / sum_{k <= t} n[k]. None weighs all tasks equally.

    Raises:
        ValueError: `sizes` does not have one weight per task.
    """
    a = _checked(accuracy)
    n = np.ones(a.shape[-1]) if sizes is None else np.asarray(sizes, dtype=np.float64)
    if n.shape != a.shape[-1:]:
        raise ValueError(f"sizes must have one weight for each of the {a.shape[-1]} tasks; got shape {n.shape}")
    seen: Array = np.tril(np.where(np.tri(a.shape[-1], dtype=bool), a[..., 1:, :], 0) * n).sum(-1)
    return seen / np.cumsum(n)


def average_incremental_accuracy(accuracy: ArrayLike) -> Array:
    """Mean of `average_curve` over the stream: (1/T) sum_t (1/t) sum_{k <= t} a[t, k].

    Args:
        accuracy: [..., 1 + T, T].

    Source: Rebuffi et al. 2017, arXiv:1611.07725. The paper averages over test examples; here every task has the same
        weight. The two agree if all tasks have equally many test examples.
    """
    return _mean(average_curve(accuracy))


def forgetting(accuracy: ArrayLike) -> Array:
    """Mean drop from each task's best earlier accuracy: (1/(T-1)) sum_{k < T} (max_{1 <= t < T} a[t, k] - a[T, k]).

    The maximum excludes row 0 and the last row, so the result is negative if the last task improved the others;
    several frameworks include the last row and never report a gain. NaN for a stream of one task.

    Args:
        accuracy: [..., 1 + T, T]. Accuracies on a task before it was learned may be missing (NaN): the maximum is then
            over the other rows.

    Source: Chaudhry et al. 2018, arXiv:1801.10112, eq. 3.
    """
    a = _checked(accuracy)[..., 1:, :-1]
    early = np.triu(np.ones(a.shape[-2:], dtype=bool), 1)
    earlier = np.where(early & np.isnan(a), -np.inf, a)[..., :-1, :]
    return _mean(earlier.max(-2, initial=-np.inf) - a[..., -1, :])


def forgetting_curve(accuracy: ArrayLike) -> Array:
    """`forgetting` over the tasks learned so far, after each task, [..., T]; NaN after the first task.

    Args:
        accuracy: [..., 1 + T, T].

    Source: Chaudhry et al. 2018, arXiv:1801.10112, eq. 3, at every k.
    """
    a = _checked(accuracy)
    return np.stack([forgetting(a[..., :2 + t, :1 + t]) for t in range(a.shape[-1])], -1)


def backward_transfer(accuracy: ArrayLike) -> Array:
    """Mean change in each task's accuracy since it was learned: (1/(T-1)) sum_{k < T} (a[T, k] - a[k, k]).

    NaN for a stream of one task. The authors' code divides by T and therefore reports (T-1)/T of this value.

    Args:
        accuracy: [..., 1 + T, T].

    Source: Lopez-Paz & Ranzato 2017, arXiv:1706.08840.
    """
    a = _checked(accuracy)
    return _mean((a[..., -1, :] - _after_learning(a))[..., :-1])


def forward_transfer(accuracy: ArrayLike) -> Array:
    """Mean gain on each task just before it is learned: (1/(T-1)) sum_{k > 1} (a[k-1, k] - a[0, k]).

    NaN for a stream of one task. The metric is meaningless for class-incremental streams, because a learner cannot
    predict classes that it has not seen.

    Args:
        accuracy: [..., 1 + T, T].

    Source: Lopez-Paz & Ranzato 2017, arXiv:1706.08840. Their baseline b is row 0 here: the untrained learner of the
        same seed.
    """
    a = _checked(accuracy)
    before = np.diagonal(a, axis1=-2, axis2=-1)  # row k - 1, task k, counted from 1
    return _mean((before - a[..., 0, :])[..., 1:])


def learning_accuracy(accuracy: ArrayLike) -> Array:
    """Mean accuracy on each task right after it was learned: (1/T) sum_k a[k, k].

    Args:
        accuracy: [..., 1 + T, T].

    Source: Riemer et al. 2019, arXiv:1810.11910.
    """
    return _mean(_after_learning(_checked(accuracy)))


def intransigence(accuracy: ArrayLike, reference: ArrayLike) -> Array:
    """Mean shortfall on each new task against a reference learner: (1/T) sum_k (a*[k, k] - a[k, k]).

    Args:
        accuracy: [..., 1 + T, T].
        reference: a*, the accuracy array of a learner that is trained on tasks 1..k together at row k (`cumulative`);
            leading axes broadcast.

    Raises:
        ValueError: the two arrays have different numbers of tasks.

    Source: Chaudhry et al. 2018, arXiv:1801.10112. The paper defines it for one k; here it is the mean over all k.
    """
    a, best = _checked(accuracy), _checked(reference)
    if a.shape[-1] != best.shape[-1]:
        raise ValueError(f"reference must have {a.shape[-1]} tasks, as accuracy has; got shape {best.shape}")
    return _mean(_after_learning(best) - _after_learning(a))


def mean_interval(values: ArrayLike, level: float = 0.95, axis: int = 0) -> tuple[Array, Array]:
    """Mean over seeds and the half width of its t interval, t_{n-1} * s / sqrt(n).

    Args:
        values: at least one value along `axis`; the half width of a single value is NaN.
        level: coverage of the interval, inside (0, 1).
        axis: the axis of the seeds.

    Raises:
        ValueError: there are no values, or `level` is outside (0, 1).
    """
    from scipy.special import stdtrit  # imported here because the import takes 0.2 s

    x = np.asarray(values, dtype=np.float64)
    if not 0 < level < 1:
        raise ValueError(f"level must be inside (0, 1), such as 0.95; got {level}")
    n = x.shape[axis]
    if n == 0:
        raise ValueError(f"an interval needs at least one value along axis {axis}; got shape {x.shape}")
    mean = x.mean(axis)
    if n == 1:
        return mean, np.full_like(mean, np.nan)
    return mean, float(stdtrit(n - 1, (1 + level) / 2)) * x.std(axis, ddof=1) / np.sqrt(n)


class Paired(NamedTuple):
    """The difference between two strategies on the same seeds: its mean, the half width of its t interval, and p."""

    mean: float
    half_width: float
    p: float


def paired_difference(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Paired:
    """Mean of a - b, the half width of its t interval, and the two-sided p-value of the sign-flip permutation test.

    p is the share of sign flips of the differences whose |mean| is at least the observed one. Up to 16 seeds all 2^S
    flips are counted, so p is exact; beyond that 10,000 flips are drawn with a fixed seed and the data are counted as
    one more. If a value is NaN, so is the result.

    Args:
        a: one value per seed [S].
        b: the values of the other strategy [S], in the same order of seeds.
        level: coverage of the interval, inside (0, 1).

    Raises:
        ValueError: `a` and `b` are not two arrays [S] of equal length.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"paired values must be two arrays [S] of equal length; got shapes {x.shape} and {y.shape}")
    d = x - y
    mean, half_width = mean_interval(d, level)
    return Paired(float(mean), float(half_width), _sign_flip_p(d))


def _sign_flip_p(d: Array) -> float:
    if np.isnan(d).any():
        return float("nan")
    # The tolerance counts sums as equal that differ only by rounding.
    as_extreme = np.abs(_flips(len(d)) @ d) >= np.abs(d.sum()) - 1e-9 * np.abs(d).sum()
    return float(as_extreme.mean())


@lru_cache(4)  # a report tests hundreds of differences over the same number of seeds
def _flips(n: int) -> Array:
    """Signs [flips, n] of `n` differences: all 2^n combinations, or the identity and 10,000 random ones."""
    if n <= _EXACT:
        up = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    else:
        up = np.vstack([np.ones((1, n), dtype=int), np.random.default_rng(0).integers(0, 2, (_DRAWS, n))])
    signs: Array = 2.0 * up.astype(np.float64) - 1
    return signs


def smallest_p(n_seeds: int) -> float:
    """The smallest p that `paired_difference` can give with `n_seeds`: 2 / 2^S while exact, 1 / 10,001 beyond."""
    return 2.0 / 2**n_seeds if n_seeds <= _EXACT else 1.0 / (_DRAWS + 1)


def holm(p_values: ArrayLike) -> Array:
    """Holm's step-down adjusted p-values [m], in the order given.

    The i-th smallest of m p-values becomes max_{j <= i} min(1, (m - j + 1) p_(j)). A NaN stays NaN and does not count
    as a test.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)[: int(np.isfinite(p).sum())]
    adjusted = np.full(p.shape, np.nan)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, np.arange(len(order), 0, -1) * p[order]))
    return adjusted
