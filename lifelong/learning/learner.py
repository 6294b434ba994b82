"""What everything that learns from a stream has in common: pure functions of a state, written for one learner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from lifelong.data.pool import Pool
from lifelong.networks.net import Net, Params

AUGMENT = "augment"  # the source of the numbers that a step's examples are augmented by
NETWORK = "network"  # the source of the numbers that the network itself draws, for example for dropout
State = dict[str, Any]  # nested dicts of tensors, so that it can be stacked, saved and compared


class Batch(NamedTuple):
    """What a learner is given at a step; before and after a task, all rows of that task.

    Attributes:
        rows: [B] rows of the pool; -1 where a batch is shorter than those of the lanes beside it.
        weight: [B], sums to 1 over the real rows, 0 at pads: a mean is `(value * weight).sum()`.
        u: source name -> uniform numbers in [0, 1), as many as `Learner.draws` asked for; before and after a task one
            for each row.
        task: 0-d, the number of the task; always 0 where boundaries are not told.
    """

    rows: Tensor
    weight: Tensor
    u: dict[str, Tensor]
    task: Tensor


@dataclass(frozen=True)
class Learner:
    """Everything that learns from a stream, as pure functions of a state (nested dicts of tensors).

    Attributes:
        init: (seed, pool) -> state.
        observe: (state, pool, batch) -> state, logs; logs is a dict of 0-d tensors, with `loss` where there is one.
        predict: (state, pool, x [n, *shape]) -> scores [n, C]; with `told`, (state, pool, x, task), where task is the
            0-d number of the task that all of `x` belong to.
        end_task: (state, pool, batch) -> state; the batch has all rows of the task.
        begin_task: (state, pool, batch) -> state, before a task's first step, likewise; None: nothing happens then.
        draws: (batch size) -> how many uniform numbers a step needs, by source name.
        data: the rows that a task trains on: its own ('task'), those of all tasks so far ('seen'), or of all ('all').
        boundaries: whether it must be told where tasks end.
        told: whether it must be told the task to answer, as in task-incremental streams.
        classes: whether it needs targets that are classes, and so cannot learn regression.
    """

    init: Callable[[int, Pool], State]
    observe: Callable[[State, Pool, Batch], tuple[State, dict[str, Tensor]]]
    predict: Callable[..., Tensor]
    end_task: Callable[[State, Pool, Batch], State] = lambda state, pool, batch: state
    draws: Callable[[int], dict[str, int]] = lambda batch_size: {}
    data: str = "task"
    boundaries: bool = False
    told: bool = False
    begin_task: Callable[[State, Pool, Batch], State] | None = None
    classes: bool = False


@dataclass(frozen=True)
class Initialization:
    """Where learning begins (a "start" for short): the first parameters, and which of them stay.

    Attributes:
        params: (net, seed) -> params.
        frozen: (name) -> whether training must leave this parameter; OML freezes its representation, ANML its gate.
        net: the network that the start brings along; None: the network chosen for the run.
        recipe: of a start that must be learned, how it is learned: see `lifelong.starts`.
        use: of such a start, how it is used on a stream, by name.
        learned: what was learned beside the network's parameters, for whole learners on the start's features.
    """

    params: Callable[[Net, int], Params]
    frozen: Callable[[str], bool] = lambda name: False
    net: Net | None = None
    recipe: Any = None
    use: Mapping[str, Any] = field(default_factory=dict)
    learned: Mapping[str, Tensor] = field(default_factory=dict)


def out_of_range(scores: Tensor) -> Tensor:
    """Where scores are NaN or plus infinity, of the shape of `scores`."""
    return scores.isnan() | scores.isposinf()
