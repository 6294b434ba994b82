"""What a strategy is: a Learner, or Parts that `gradient_learner` sums to one; written for one lane."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lifelong.data.pool import Pool
from lifelong.learning.losses import Slice as Slice
from lifelong.networks.net import Net
from lifelong.networks.net import Params as Params

AUGMENT = "augment"  # the source of the numbers that a step's examples are augmented by
NETWORK = "network"  # the source of those that the network needs in training, for example for dropout
State = dict[str, Any]  # nested dicts of tensors, so that it stacks, is saved, and is compared


class Batch(NamedTuple):
    """What a learner is given at a step, or, at the end of a task, all the rows of that task.

    Attributes:
        rows: [B] rows of the pool; -1 where a batch is shorter than its lane-mates'.
        weight: [B], sums to 1 over the real rows, 0 at pads: a mean is `(value * weight).sum()`.
        u: source name -> uniform numbers in [0, 1), as many as `Learner.draws` asked for; after a task one a row.
        task: 0-d, the number of the task; always 0 where boundaries are not told.
    """

    rows: Tensor
    weight: Tensor
    u: dict[str, Tensor]
    task: Tensor


@dataclass(frozen=True)
class Learner:
    """The waist: everything that learns from a stream, as pure functions of a state (nested dicts of tensors).

    Attributes:
        init: (seed, pool) -> state.
        observe: (state, pool, batch) -> state, logs; logs is a dict of 0-d tensors, with `loss` where there is one.
        predict: (state, pool, x [n, *shape]) -> scores [n, C]; with `told`, (state, pool, x, task), the 0-d number of
            the task that all of `x` belong to.
        end_task: (state, pool, batch) -> state; batch has all rows of the task.
        draws: (B) -> how many uniform numbers a step needs, by source name.
        data: which rows a task trains on: its own ('task'), those of all tasks so far ('seen'), or of all ('all').
        boundaries: whether it must be told where tasks end.
        told: whether it must be told the task to answer, as in task-incremental streams.
        stages: of a sum of parts, the pieces of its step, which the engine lifts faster than `observe`.
    """

    init: Callable[[int, Pool], State]
    observe: Callable[[State, Pool, Batch], tuple[State, dict[str, Tensor]]]
    predict: Callable[..., Tensor]
    end_task: Callable[[State, Pool, Batch], State] = lambda state, pool, batch: state
    draws: Callable[[int], dict[str, int]] = lambda batch_size: {}
    data: str = "task"
    boundaries: bool = False
    told: bool = False
    stages: Any = None


@dataclass(frozen=True)
class Initialization:
    """Where learning starts (a "start" for short): parameters, and which of them stay.

    Attributes:
        params: (net, seed) -> params.
        frozen: (name) -> whether training must leave this parameter; OML freezes its representation, ANML its gate.
        net: the network that the start brings along; None: the one chosen for the run.
        recipe: how it is learned, of a start that must be: see `lifelong.start`.
        use: how such a start is used, by name.
        learned: what it learned beside its network's parameters, for whole learners on its features.
    """

    params: Callable[[Net, int], Params]
    frozen: Callable[[str], bool] = lambda name: False
    net: Net | None = None
    recipe: Any = None
    use: Mapping[str, Any] = field(default_factory=dict)
    learned: Mapping[str, Tensor] = field(default_factory=dict)


def real(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights [..., R] that are equal over the real rows and sum to 1; all 0 where there is none."""
    present = (rows >= 0).to(dtype)
    return present / present.sum(-1, keepdim=True).clamp(min=1)


def apart(state: State, params: Params) -> State:
    """`state` with a copy wherever it shares memory with `params`, which the next step overwrites."""
    taken = {p.untyped_storage().data_ptr() for p in params.values()}

    def own(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: own(v) for k, v in value.items()}
        return value.clone() if value.untyped_storage().data_ptr() in taken else value

    copied: State = own(state)
    return copied
