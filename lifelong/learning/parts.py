"""What a strategy's author writes: a Part, whose hooks see a View of one learner.

A sum of parts learns by steps. This is a step, in order, and where the hooks of its parts stand in it:

    before a task      begin                 all rows of the task are known; may change the parameters

    at every step   1  recall                each part names the rows that it rehearses now
                    2  (fetch)               the batch and all recalled rows are fetched in one gather
                    3  (forward) weights     scores of all of them, in one pass
                    4  criterion, loss       the losses of the parts are added to the batch's cross-entropy
                    5  (gradient)            of the sum with respect to the trained parameters
                    6  grads                 each part in turn may transform the gradient
                    7  (update)              the optimizer moves the parameters
                    8  step                  each part's state is renewed; may change the parameters

    after a task       task                  all rows of the task are known; may change the parameters

    to answer          weights, predict

Steps in parentheses are the learner's own. `init` makes a part's state before the first task.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lifelong.data.pool import Pool
from lifelong.learning.learner import Initialization, State
from lifelong.learning.losses import Loss, Slice, cross_entropy
from lifelong.learning.memory import Memory
from lifelong.networks.net import Net, Params
from lifelong.vmap import Deferred, resolved

_NONE: Any = None  # a field of a view that its hook does not have
Count = int | Callable[[int], int]  # a number, or (batch size) -> number


def BATCH(batch_size: int) -> int:  # noqa: N802
    """As many numbers as the batch has rows, in `Part.draws`."""
    return batch_size


class _View(NamedTuple):
    state: Any
    params: Any
    net: Net
    pool: Pool
    u: Any = _NONE
    task: Tensor = _NONE
    batch: Slice = _NONE
    recalled: Any = _NONE
    grads: Any = _NONE
    own: Any = _NONE
    generator: torch.Generator = _NONE


class View(_View):
    """What a hook of a part sees. A field that a hook does not have is None.

    Attributes:
        state: the part's own state.
        params: the network's parameters; after the update in `step` and `task`.
        net: the network: `net.apply(params, x)` are scores. In a sum with a part that has `weights`, it applies the
            weights of this task.
        pool: examples by row: `pool.fetch(rows)`, and `n_classes`, `n_tasks`, `classes`, `scenario`.
        u: the part's own uniform numbers in [0, 1). Of a part whose `draws` is a dict, `u.name` are the numbers of
            that name; of another, a tensor. In `begin` and `task` a tensor with one number for each row of the task.
        task: 0-d, the number of the task; always 0 where boundaries are not told.
        batch: the task's batch. In `recall`, `grads`, `begin` and `task` it has `rows` and `weight` only.
        recalled: what this part recalled, in `criterion` and `loss`; a dict of slices where `recall` returned a dict.
        grads: the gradient that moved the parameters, in `step`.
        own: the part's own trained parameters, of a part with `params`.
        generator: for random initial values, in `init` and `params`. For random values later on, draw them in `init`
            and keep them in the state.

    `batch` and `recalled` are `lifelong.Slice`s; their scores are those before the update. `net` is a `lifelong.Net`,
    `pool` a `lifelong.Pool`. The gradient of the loss of other rows is
    `torch.func.grad(lifelong.batch_loss(view.net, view.pool, rows))(view.params)`.
    """

    __slots__ = ()
    state: State = property(lambda self: resolved(self[0]))  # type: ignore[assignment]
    params: Params = property(lambda self: resolved(self[1]))  # type: ignore[assignment]
    u: Any = property(lambda self: resolved(self[4]))
    grads: Params = property(lambda self: resolved(self[8]))  # type: ignore[assignment]
    own: Params = property(lambda self: resolved(self[9]))  # type: ignore[assignment]


@dataclass(frozen=True)
class Part:
    """One ingredient of a gradient learner, written for one learner: no tensor here has an axis of seeds.

    Every hook is optional and takes a `View`. `begin`, `step` and `task` return the state with the same entries and
    shapes as `init` gave it, or `(state, params)`: the parameters in the dict `params` replace those of the learner,
    the others stay. The order of the hooks is drawn at the head of this module (`help(lifelong.learning.parts)`).
    The random numbers of a part depend on its name, so the same rule under two names gives two results.

    Attributes:
        init: (view) -> state, a dict of tensors or of such dicts; before the first task.
        params: (view) -> further parameters by name that the optimizer trains; hooks see them as `view.own`.
        draws: the uniform numbers that a step needs: how many, or by name how many. `BATCH` stands for as many as the
            batch has rows; (batch size) -> number is any other function of it.
        begin: (view) -> state, before each task, with all rows of the task in `view.batch.rows`.
        recall: (view) -> rows [R] to rehearse in this step, or a dict of such rows by name; -1 is no row. They share
            one forward pass with the batch.
        criterion: (view) -> loss in place of the batch's cross-entropy; at most one part of a sum has it.
        loss: (view) -> loss that is added. A loss is a `Loss` (`cross_entropy`, `squared_error`, `quadratic`, and
            their sums), whose gradient is known, or a 0-d tensor, which autograd differentiates at about twice the
            price of a small network's step.
        grads: (view, grads) -> grads, a transform of the gradient; parts in the order of the sum.
        step: (view) -> state, after each update.
        task: (view) -> state, after each task, with all rows of the task in `view.batch.rows`.
        weights: (view, params) -> the parameters that the network is applied with in task `view.task`, in training,
            where the gradient flows back through it, and in prediction, which must then be told the task.
        predict: (view, x [n, *shape]) -> scores [n, C], in place of the network's; at most one part of a sum has it.
        data: the rows that a task trains on: its own ('task'), those of all tasks so far ('seen') or of all ('all').
        boundaries: whether it must be told where tasks end; a part with `begin` or `task` usually must.
        pixels: whether it needs examples as they are, not as the features of a start that stays as it is.
        classes: whether it needs targets that are classes, and so cannot learn regression.
    """

    init: Callable[[View], State] | None = None
    draws: Count | Mapping[str, Count] = 0
    recall: Callable[[View], Any] | None = None
    criterion: Callable[[View], Loss | Tensor] | None = None
    loss: Callable[[View], Loss | Tensor] | None = None
    grads: Callable[[View, Params], Params] | None = None
    step: Callable[[View], Any] | None = None
    task: Callable[[View], Any] | None = None
    weights: Callable[[View, Params], Params] | None = None
    predict: Callable[[View, Tensor], Tensor] | None = None
    begin: Callable[[View], Any] | None = None
    params: Callable[[View], Params] | None = None
    data: str = "task"
    boundaries: bool = False
    pixels: bool = False
    classes: bool = False

    def __add__(self, other: object) -> Sum:
        return Sum((self,)) + other

    def __radd__(self, other: object) -> Sum:
        return Sum() + other + self


@dataclass(frozen=True)
class Sum:
    """Parts, and at most one start, that are trained together: `er() + ewc()` is one strategy.

    Attributes:
        terms: in the order of the sum.
    """

    terms: tuple[Part | Initialization, ...] = ()

    def __add__(self, other: object) -> Sum:
        if isinstance(other, Sum):
            return Sum((*self.terms, *other.terms))
        if isinstance(other, (Part, Initialization)):
            return Sum((*self.terms, other))
        what = f"the {type(other).__name__} {other!r}"
        if isinstance(other, (int, float)):
            what = f"the number {other}"
        elif callable(other) and hasattr(other, "__name__"):
            what = f"the class or function {other.__name__}: call it first"
        raise TypeError(f"a part can be added to parts and to a start, and this is {what}")

    def __radd__(self, other: object) -> Sum:
        return Sum() + other + self


class Numbers:
    """The uniform numbers of a part in one step, by the names in its `draws`: `view.u.pick`."""

    def __init__(self, u: Tensor | Deferred, at: Mapping[str, slice]) -> None:
        """`at` says by name where the numbers stand in `u`; see `positions`."""
        self._u, self._at = u, at

    def __getattr__(self, name: str) -> Tensor:
        if name not in self._at:
            raise AttributeError(f"this part draws no numbers called {name!r}; its `draws` has {', '.join(self._at)}")
        numbers: Tensor = resolved(self._u)[self._at[name]]
        return numbers


def counted(draws: Count | Mapping[str, Count], batch_size: int) -> int | dict[str, int]:
    """How many uniform numbers a part's `draws` asks for with batches of this size, in all or by name."""
    def number(count: Count) -> int:
        return count(batch_size) if callable(count) else count

    if isinstance(draws, Mapping):
        return {name: number(count) for name, count in draws.items()}
    return number(draws)


def positions(counts: Mapping[str, int]) -> dict[str, slice]:
    """By name where a part's numbers stand among all that it draws."""
    ends = itertools.accumulate(counts.values())
    return {name: slice(end - count, end) for (name, count), end in zip(counts.items(), ends, strict=True)}


def rehearse(memory: Memory | Callable[[Pool], Memory], replay: int = 0, **hooks: Any) -> Part:
    """The part that remembers the stream and learns each batch together with remembered examples.

    Its state is the memory's. At every step it recalls `replay` remembered rows, adds their cross-entropy to the loss,
    and then shows the batch to the memory.

    Args:
        memory: what is remembered, or (pool) -> what is remembered, where the rule depends on the number of classes.
        replay: remembered examples rehearsed at every step, drawn with replacement; 0: as many as the batch has.
        hooks: fields of `Part` in place of those that rehearsal has, for example another `loss`; None drops one. The
            numbers of `view.u.keep` go to `memory.add`, those of `view.u.pick` to `memory.pick`. To keep more with
            every example, give `init` and `step` (see `lifelong.Memory`), and read what is kept in `loss` by
            `memory.stored(view.state, view.u.pick, name)`.
    """
    def of(view: View) -> Memory:
        return memory if isinstance(memory, Memory) else memory(view.pool)

    part = Part(
        init=lambda view: of(view).empty(),
        draws={"keep": BATCH, "pick": replay or BATCH},
        recall=lambda view: of(view).pick(view.state, view.u.pick),
        loss=lambda view: cross_entropy(view.recalled),
        step=lambda view: of(view).add(view.state, view.batch.rows, view.batch.y, view.u.keep))
    return replace(part, **hooks)
