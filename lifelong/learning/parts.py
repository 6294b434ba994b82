"""What a strategy's author writes: a Part, whose hooks see a View."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lifelong.data.pool import Pool
from lifelong.learning.learner import State
from lifelong.learning.losses import Slice as Slice
from lifelong.learning.losses import cross_entropy
from lifelong.networks.net import Net
from lifelong.networks.net import Params as Params

_NONE: Any = None  # what a view's field is for a hook that it makes no sense for


class View(NamedTuple):
    """What a hook of a part sees. Fields that make no sense for a hook are None.

    Attributes:
        state: the part's own state.
        params: the network's parameters; after the update in `step` and `task`.
        net: the network: `net.apply(params, x)`; of a sum in which a part has `weights`, as it is applied in this task.
        pool: examples by row: `pool.fetch(rows)`, and `n_classes`, `n_tasks`, `classes`, `scenario`.
        u: the part's own uniform numbers [draws]; in `task` one for each row of the task.
        task: 0-d, number of the task.
        batch: the task's batch; in `recall` and `task` only its `rows` and `weight`.
        recalled: what this part recalled, in `loss` and `slope`.
        grads: the gradient that moved the parameters, in `step`.
        generator: for random initial state, in `init`.
    """

    state: State
    params: Params
    net: Net
    pool: Pool
    u: Tensor = _NONE
    task: Tensor = _NONE
    batch: Slice = _NONE
    recalled: Slice = _NONE
    grads: Params = _NONE
    generator: torch.Generator = _NONE


@dataclass(frozen=True)
class Part:
    """One ingredient of a gradient learner; every hook is optional and takes a `View`.

    Attributes:
        init: (view) -> state, before the first task.
        draws: uniform numbers that a step needs: a number, or (B) -> number.
        recall: (view) -> rows [R] to rehearse now; -1 for none. They share one forward pass with the batch.
        criterion: (view) -> 0-d, in place of the batch's cross-entropy; at most one part of a sum has it.
        loss: (view) -> 0-d, added to the task's loss.
        slope: (view) -> 0-d, [R, C]: a loss of the scores of what it recalled, added to the task's, and its gradient by
            them; as a `loss` without autograd, which takes longer than all else in a small step.
        pull: (view) -> the gradient of a penalty on the parameters alone; like a loss, but several times cheaper than
            differentiating one. It is added to the gradient before any transform; the logged loss leaves it out.
        grads: (view, grads) -> grads, a transform of the summed gradient, in the order of the sum.
        step: (view) -> state, after each update.
        task: (view) -> state, after each task, with all its rows in `view.batch.rows`.
        weights: (view, params) -> params that the network is applied with in task `view.task`, in training, where the
            gradient flows back through it, and in prediction, which must then be told the task.
        predict: (view, x [n, *shape]) -> scores [n, C], in place of the network's; at most one part of a sum has it.
        data: which rows a task trains on: 'task', 'seen' (so far) or 'all'.
        boundaries: whether it must be told where tasks end; a part with a `task` hook usually must.
        pixels: whether it needs examples as they are, not as the features of a start that stays as it is.
    """

    init: Callable[[View], State] | None = None
    draws: int | Callable[[int], int] = 0
    recall: Callable[[View], Tensor] | None = None
    criterion: Callable[[View], Tensor] | None = None
    loss: Callable[[View], Tensor] | None = None
    slope: Callable[[View], tuple[Tensor, Tensor]] | None = None
    pull: Callable[[View], Params] | None = None
    grads: Callable[[View, Params], Params] | None = None
    step: Callable[[View], State] | None = None
    task: Callable[[View], State] | None = None
    weights: Callable[[View, Params], Params] | None = None
    predict: Callable[[View, Tensor], Tensor] | None = None
    data: str = "task"
    boundaries: bool = False
    pixels: bool = False


def rehearsal(view: View) -> Tensor:
    """The `loss` of a part that learns what it recalls: cross-entropy. The engine knows its derivative."""
    return cross_entropy(view.recalled)
