"""Metrics as other frameworks compute them, for comparison with their tables: [..., 1 + T, T] -> [...].

Every metric follows the code of the framework, also where the code differs from its paper. Arrays are those of
`lifelong.metrics`: a[t,k] is the accuracy on task k after task t, and row 0 is the untrained learner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lifelong import metrics
from lifelong.metrics import Array
from lifelong.spec.run import OptionError

Metric = Callable[[ArrayLike], Array]


class Theirs(NamedTuple):
    """A metric of another framework.

    Attributes:
        name: its name in that framework.
        formula: its formula in the notation of `lifelong.metrics`.
        metric: the function.
    """

    name: str
    formula: str
    metric: Metric


class Framework(NamedTuple):
    """Another framework.

    Attributes:
        title: its name, with the version or commit of the code.
        metrics: the metrics that it prints at the end of a stream.
        remark: differences that the formulas do not show.
    """

    title: str
    metrics: tuple[Theirs, ...]
    remark: str


def _whole(metric: Metric) -> Metric:
    """The metric divided by T instead of T - 1."""
    def over_all(accuracy: ArrayLike) -> Array:
        tasks = np.shape(accuracy)[-1]
        return metric(accuracy) * (tasks - 1) / tasks if tasks > 1 else np.zeros(np.shape(accuracy)[:-2])
    return over_all


def _negated(accuracy: ArrayLike) -> Array:
    """Forgetting as the negative backward transfer."""
    return -metrics.backward_transfer(accuracy)


def _never_negative(accuracy: ArrayLike) -> Array:
    """Mammoth's forgetting: the maximum is over all rows from the one before the task was learned to the last."""
    a = np.asarray(accuracy, dtype=np.float64)
    counted = np.tril(np.ones(a.shape[-2:], dtype=bool))  # row k - 1 of task k, counted from 1, and all below
    counted[0] = False
    best = np.where(counted, a, -np.inf).max(-2)  # NaN if one of them was not measured
    return _mean((best - a[..., -1, :])[..., :-1])


def _mean(terms: Array) -> Array:
    found: Array = terms.mean(-1) if terms.shape[-1] else np.full(terms.shape[:-1], np.nan)
    return found


def _lower(accuracy: ArrayLike, offset: int) -> tuple[Array, Array]:
    """Rows 1 to T of the array, and a mask [T, T] of the entries `offset` or more below the diagonal."""
    a = np.asarray(accuracy, dtype=np.float64)[..., 1:, :]
    return a, np.tri(a.shape[-1], k=-offset, dtype=bool)


def _triangle(accuracy: ArrayLike, offset: int, count: int) -> Array:
    a, below = _lower(accuracy, offset)
    found: Array = np.where(below, a, 0.0).sum((-2, -1)) / count if count else np.zeros(a.shape[:-2])
    return found


def _continuum_accuracy(accuracy: ArrayLike) -> Array:
    tasks = np.shape(accuracy)[-1]
    return _triangle(accuracy, 0, tasks * (tasks + 1) // 2)


def _continuum_forward(accuracy: ArrayLike) -> Array:
    tasks = np.shape(accuracy)[-1]
    return _triangle(accuracy, 1, tasks * (tasks - 1) // 2)


def _continuum_backward(accuracy: ArrayLike) -> Array:
    a, below = _lower(accuracy, 2)
    tasks = a.shape[-1]
    change = a - np.diagonal(a, axis1=-2, axis2=-1)[..., None, :]
    found: Array = np.where(below, change, 0.0).sum((-2, -1)) / max(1, tasks * (tasks - 1) // 2)
    return found


def _continuum_forgetting(accuracy: ArrayLike) -> Array:
    a, below = _lower(accuracy, 0)
    tasks = a.shape[-1]
    if tasks < 3:
        return np.zeros(a.shape[:-2])
    earlier = np.where(below, a, -np.inf)[..., :tasks - 2, :tasks - 2].max(-2)
    found: Array = (earlier - a[..., -1, :tasks - 2]).sum(-1) / (tasks - 1)
    return found


FRAMEWORKS: Mapping[str, Framework] = MappingProxyType({
    "gem": Framework("the code of GEM, facebookresearch/GradientEpisodicMemory, metrics/metrics.py, commit 1919989", (
        Theirs("Final Accuracy", "(1/T) Σ_{k=1..T} a[T,k]", metrics.average_accuracy),
        Theirs("Backward", "(1/T) Σ_{k=1..T} (a[T,k] - a[k,k]): divided by T, whereas the paper and lifelong divide by "
               "T-1", _whole(metrics.backward_transfer)),
        Theirs("Forward", "(1/T) Σ_{k=2..T} (a[k-1,k] - a[0,k]): divided by T, whereas the paper and lifelong divide "
               "by T-1", _whole(metrics.forward_transfer)),
    ), "It omits the last test example of each task but divides by the number of all, so its accuracies are lower by "
       "up to one example in m. It prints fractions."),
    "avalanche": Framework("Avalanche 0.6.0, evaluation/metrics", (
        Theirs("Top1_Acc_Stream", "(1/T) Σ_{k=1..T} a[T,k]", metrics.average_accuracy),
        Theirs("StreamBWT", "(1/(T-1)) Σ_{k=1..T-1} (a[T,k] - a[k,k])", metrics.backward_transfer),
        Theirs("StreamForgetting", "(1/(T-1)) Σ_{k=1..T-1} (a[k,k] - a[T,k]): the negative backward transfer, whereas "
               "Chaudhry et al. and lifelong use the best earlier accuracy", _negated),
        Theirs("StreamForwardTransfer", "(1/(T-1)) Σ_{k=2..T} (a[k-1,k] - a[0,k])", metrics.forward_transfer),
    ), "Its stream accuracy is the mean over test examples, which is equal if all tasks have equally many. Transfer "
       "and forgetting need an evaluation on the whole stream before training and after every experience. It prints "
       "fractions."),
    "mammoth": Framework("Mammoth, utils/metrics.py, commit 07bd157, and utils/training.py, commit 032b8a0", (
        Theirs("accuracy", "(1/T) Σ_{k=1..T} a[T,k]", metrics.average_accuracy),
        Theirs("bwt", "(1/(T-1)) Σ_{k=1..T-1} (a[T,k] - a[k,k])", metrics.backward_transfer),
        Theirs("forgetting", "(1/(T-1)) Σ_{k=1..T-1} (max_{k-1≤t≤T, t≥1} a[t,k] - a[T,k]): the maximum includes the "
               "last row, so it is never negative", _never_negative),
        Theirs("fwt", "(1/(T-1)) Σ_{k=2..T} (a[k-1,k] - a[0,k])", metrics.forward_transfer),
    ), "On class-incremental streams its learners predict only among the classes seen so far, so its a[t,k] before the "
       "last row is higher than that of lifelong, whose learners predict among all classes. It prints percent."),
    "continuum": Framework("Continuum, continuum/metrics, commits 265a985 and 15167bf", (
        Theirs("accuracy", "(1/T) Σ_{k=1..T} a[T,k]", metrics.average_accuracy),
        Theirs("average_incremental_accuracy", "(1/T) Σ_{t=1..T} (1/t) Σ_{k=1..t} a[t,k]",
               metrics.average_incremental_accuracy),
        Theirs("accuracy_A", "(2/(T(T+1))) Σ_{t=1..T} Σ_{k≤t} a[t,k] (Díaz-Rodríguez et al. 2018)",
               _continuum_accuracy),
        Theirs("backward_transfer", "(2/(T(T-1))) Σ_{t=3..T} Σ_{k≤t-2} (a[t,k] - a[k,k]): over all rows; its loop "
               "omits the previous task, k = t-1", _continuum_backward),
        Theirs("forward_transfer", "(2/(T(T-1))) Σ_{t=2..T} Σ_{k<t} a[t,k]: a mean of accuracies on tasks that were "
               "already learned, which is not a transfer", _continuum_forward),
        Theirs("forgetting", "(1/(T-1)) Σ_{k=1..T-2} (max_{k≤t≤T-2} a[t,k] - a[T,k]): its loops omit task T-1 and row "
               "T-1", _continuum_forgetting),
    ), "Its accuracies are means over test examples, which are equal if all tasks have equally many. It prints "
       "fractions."),
})


def framework(name: str) -> Framework:
    """The framework of this name in `FRAMEWORKS`.

    Raises:
        LookupError: where there is none of this name.
    """
    if name not in FRAMEWORKS:
        raise OptionError(f"as must be one of {', '.join(FRAMEWORKS)}; got {name!r}", "as")
    return FRAMEWORKS[name]
