"""The step of a sum of parts, for all lanes of a stack at once.

Hooks are written for one lane and lifted; everything else here works on stacked tensors [L, ...], or on those of one
lane. Losses are data (`lifelong.learning.losses.Loss`): the cross-entropies of a pass are one call, known gradients are
added, and autograd is asked only for what is free.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lifelong.data.problem import CLASSIFICATION, Problem
from lifelong.learning.learner import AUGMENT, NETWORK, Batch, State
from lifelong.learning.losses import Loss, along, mean_weights
from lifelong.networks.net import Back, Params
from lifelong.vmap import Deferred

Slices = dict[str, tuple[Tensor, Tensor, slice]]


@dataclass
class Step:
    """(state, batch) -> state, logs: one step of all lanes; the parameters and the optimizer's state are written into.

    Attributes:
        learner: the `GradientLearner` that is stepped; its optimizer moves all lanes.
        each: (f) -> f of all lanes, where f(learner, pool, *tensors) is a function of one lane.
        fetch: (rows of the batch, rows that were recalled, augmenting numbers or None) -> examples and output units of
            all of them, in one gather.
        competing: (y) -> the output units that compete in the loss with each of `y`, or None: all.
        forward: `Net.vjp` for all lanes; None: the network goes through `each` and autograd.
        train: likewise for `Net.train`: (params, x, real, u) -> scores, back, statistics.
        problem: what a right answer is; its loss is that of the batch, and the cross-entropy of every part.
        free: whether some loss needs autograd; found out at the first step.
    """

    learner: Any
    each: Callable[[Callable[..., Any]], Callable[..., Any]]
    fetch: Callable[[Tensor, list[Tensor], Tensor | None], tuple[Tensor, Tensor]]
    competing: Callable[[Tensor], Tensor | None]
    forward: Callable[[Params, Tensor], tuple[Tensor, Back]] | None = None
    train: Callable[..., tuple[Tensor, Back, Params]] | None = None
    problem: Problem = CLASSIFICATION
    free: bool = False
    _names: tuple[str, ...] | None = None

    @torch.no_grad()
    def __call__(self, state: State, batch: Batch) -> tuple[State, dict[str, Tensor]]:
        """One step; every lane's loss [L], or 0-d, is logged."""
        params, seen = state["params"], Deferred(state["params"])
        parts = {name: Deferred(own) for name, own in state["parts"].items()}
        numbers: dict[str, Any] = {name: Deferred(u) for name, u in batch.u.items()}
        given = Batch(batch.rows, batch.weight, numbers, batch.task)
        rows = self._recall(seen, parts, given) if "recall" in self._hooks else {}
        x, y = self.fetch(batch.rows, list(rows.values()), batch.u.get(AUGMENT))
        trained = self._trained(params)
        slices = _slices(batch, rows)
        scores, back, statistics = self._scores(params, trained, state["parts"], batch, rows, x)
        loss, by_scores, leaves = self._losses(params, trained, parts, given, slices, x, y, scores)
        value, gradient = self._gradient_by_scores(loss, slices, y, scores)
        direct: Params = {}
        if loss.free:
            value, gradient, direct = self._differentiated(loss, value, gradient, by_scores, leaves)
        grads = self._summed(back(gradient, trained.keys()), direct, trained, loss)
        if "grads" in self._hooks:
            grads = self._transform(seen, parts, given, grads)
        self.learner.optimizer.update(trained, grads, state["optimizer"])
        for k, moved in statistics.items():
            if not self.learner.start.frozen(k):
                params[k].copy_(moved)
        if "step" in self._hooks:
            states, replaced = self._after(Deferred(params), parts, given, Deferred(grads), slices["batch"][2],
                                           Deferred(x), Deferred(y), Deferred(scores))
            for k, p in replaced.items():
                params[k].copy_(p)
            state = state | {"parts": state["parts"] | unaliased(states, params)}
        return state, {"loss": value}

    @cached_property
    def _hooks(self) -> frozenset[str]:
        """The hooks that any part has."""
        return frozenset(field.name for part in self.learner.parts.values() for field in fields(part)
                         if callable(getattr(part, field.name)))

    def _trained(self, params: Params) -> Params:
        if self._names is None:
            self._names = tuple(self.learner.trained(params))
        return {k: params[k] for k in self._names}

    # ---- the lifted functions; every tensor that goes through the lift costs about a microsecond

    @cached_property
    def _recall(self) -> Callable[..., dict[str, Tensor]]:
        return self.each(lambda learner, pool, *args: learner.recall(pool, *args))

    @cached_property
    def _apply(self) -> Callable[..., Tensor]:
        return self.each(lambda learner, pool, params, parts, task, x: learner.applied(pool, params, parts, task, x))

    @cached_property
    def _train(self) -> Callable[..., tuple[Tensor, Params]]:
        return self.each(lambda learner, pool, *args: learner.trained_pass(pool, *args))

    @cached_property
    def _said(self) -> Callable[..., Loss]:
        return self.each(lambda learner, pool, *args: learner.losses(pool, *args))

    @cached_property
    def _transform(self) -> Callable[..., Params]:
        return self.each(lambda learner, pool, *args: learner.transform(pool, *args))

    @cached_property
    def _after(self) -> Callable[..., tuple[State, Params]]:
        return self.each(lambda learner, pool, *args: learner.after(pool, *args))

    # ---- the pieces of a step

    def _scores(self, params: Params, trained: Params, parts: State, batch: Batch, rows: dict[str, Tensor],
                x: Tensor) -> tuple[Tensor, Back, Params]:
        """Scores of all examples of the step, their derivative, and the network's statistics after the pass."""
        net = self.learner.net
        if net.train:
            real, u = torch.cat([batch.rows, *rows.values()], -1) >= 0, batch.u.get(NETWORK)
            if self.train:
                return self.train(params, x, real, u)
            return _by_autograd(lambda leaves: self._train(params | leaves, parts, batch.task, x, real, *(
                [] if u is None else [u])), trained)
        if self.forward:
            return *self.forward(params, x), {}
        return _by_autograd(lambda leaves: (self._apply(params | leaves, parts, batch.task, x), {}), trained)

    def _losses(self, params: Params, trained: Params, parts: State, given: Batch, slices: Slices, x: Tensor,
                y: Tensor, scores: Tensor) -> tuple[Loss, Tensor, Params]:
        """The losses of the parts with the batch's own, and the leaves that what is free is differentiated by."""
        batch = Loss({"batch": slices["batch"][1]})
        if self._hooks.isdisjoint(("loss", "criterion")):
            return batch, scores, trained
        by_scores, leaves, seen = scores, trained, params
        if self.free:
            by_scores, leaves = scores.detach().requires_grad_(), _leaves(trained)
            seen = params | leaves
        with torch.enable_grad() if self.free else nullcontext():
            loss = self._said(Deferred(seen), parts, given, {
                name: (Deferred(rows), Deferred(weight), at) for name, (rows, weight, at) in slices.items()},
                Deferred(x), Deferred(y), Deferred(by_scores))
        if loss.free and not self.free:
            self.free = True
            return self._losses(params, trained, parts, given, slices, x, y, scores)
        loss = loss if "criterion" in self._hooks else batch + loss
        return loss.detached() if self.free else loss, by_scores, leaves

    def _gradient_by_scores(self, loss: Loss, slices: Slices, y: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The value of all losses whose gradient is known, and that gradient with respect to the scores of the pass."""
        weights = [loss.entropies[name] if name in loss.entropies else torch.zeros_like(weight)
                   for name, (_, weight, _) in slices.items()]
        weight = torch.cat(weights, -1) if len(weights) > 1 else weights[0]
        value, gradient = self.problem.loss(scores, y, weight, self.competing(y))
        for name, more in loss.gradients.items():
            at = slices[name][2]
            gradient.narrow(-2, at.start, at.stop - at.start).add_(more)
        for one in loss.values:
            value = value + one
        return value, gradient

    def _differentiated(self, loss: Loss, value: Tensor, gradient: Tensor, seen: Tensor,
                        leaves: Params) -> tuple[Tensor, Tensor, Params]:
        """Value and gradient with what is free added, and the gradients of that with respect to the parameters."""
        # A lane's loss depends on its own parameters alone, so the gradient of the sum is every lane's own.
        with torch.enable_grad():
            free = functools.reduce(torch.add, loss.free)
            if not free.requires_grad:  # it counts in the loss, and moves nothing
                return value + free, gradient, {}
            by, *direct = torch.autograd.grad(free.sum(), [seen, *leaves.values()], allow_unused=True)
        return (value + free.detach(), gradient if by is None else gradient + by,
                {k: g for k, g in zip(leaves, direct, strict=True) if g is not None})

    def _summed(self, grads: Params, direct: Params, trained: Params, loss: Loss) -> Params:
        """The gradient of everything that is minimised, with respect to every trained parameter."""
        for k, more in direct.items():
            grads[k] = grads[k] + more if k in grads else more
        # In the order of the parameters, however the derivative was found: some transforms sum over them.
        grads = {k: grads[k] if k in grads else torch.zeros_like(p) for k, p in trained.items()}
        for strength, anchor, importance in loss.penalties:
            names = [k for k in trained if k in anchor]
            pulls = list(torch._foreach_sub([trained[k] for k in names], [anchor[k] for k in names]))
            for factor in ([along(importance[k], trained[k]) for k in names],
                           [along(strength, trained[k]) for k in names] if isinstance(strength, Tensor) else strength):
                torch._foreach_mul_(pulls, factor)
            grads |= dict(zip(names, torch._foreach_add([grads[k] for k in names], pulls), strict=True))
        return grads


def _slices(batch: Batch, rows: dict[str, Tensor]) -> Slices:
    """By name the rows and weights of some examples of a pass, and where they stand in it: the batch comes first."""
    found, first = {"batch": (batch.rows, batch.weight, slice(0, batch.rows.shape[-1]))}, batch.rows.shape[-1]
    for name, r in rows.items():
        found[name] = (r, mean_weights(r, batch.weight.dtype), slice(first, first + r.shape[-1]))
        first += r.shape[-1]
    return found


def _leaves(params: Params) -> Params:
    return {k: p.detach().requires_grad_() for k, p in params.items()}


def _by_autograd(f: Callable[[Params], tuple[Tensor, Params]], trained: Params) -> tuple[Tensor, Back, Params]:
    leaves = _leaves(trained)
    with torch.enable_grad():
        scores, statistics = f(leaves)

    def back(gradient: Tensor, names: Collection[str]) -> Params:
        wanted = {k: leaves[k] for k in names}
        return dict(zip(wanted, torch.autograd.grad(scores, list(wanted.values()), gradient, materialize_grads=True),
                        strict=True))

    return scores.detach(), back, statistics


def unaliased(state: State, params: Params) -> State:
    """`state` with a copy of each tensor that shares memory with `params`, which the next step overwrites."""
    taken = {p.untyped_storage().data_ptr() for p in params.values()}

    def own(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: own(v) for k, v in value.items()}
        return value.clone() if value.untyped_storage().data_ptr() in taken else value

    copied: State = own(state)
    return copied
