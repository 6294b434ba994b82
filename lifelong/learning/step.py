"""The step of a sum of parts, for all lanes of a stack at once.

Hooks are written for one lane and lifted; everything else here works on stacked tensors [L, ...], or on those of one
lane. Losses are data (`lifelong.learning.losses.Loss`): the cross-entropies of a pass are one call, known gradients are
added, and autograd is asked only for what is free.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lifelong.learning.learner import Batch, State
from lifelong.learning.losses import Loss, cross_entropy_vjp, penalty_gradient
from lifelong.networks.net import Back, Params

AUGMENT = "augment"  # the source of the numbers that a step's examples are augmented by
NETWORK = "network"  # the source of the numbers that the network itself draws, for example for dropout


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
        free: whether some loss needs autograd; found out at the first step.
    """

    learner: Any
    each: Callable[[Callable[..., Any]], Callable[..., Any]]
    fetch: Callable[[Tensor, list[Tensor], Tensor | None], tuple[Tensor, Tensor]]
    competing: Callable[[Tensor], Tensor | None]
    forward: Callable[[Params, Tensor], tuple[Tensor, Back]] | None = None
    train: Callable[..., tuple[Tensor, Back, Params]] | None = None
    free: bool = False

    @torch.no_grad()
    def __call__(self, state: State, batch: Batch) -> tuple[State, dict[str, Tensor]]:
        """One step; every lane's loss [L], or 0-d, is logged."""
        params, parts = state["params"], state["parts"]
        rows = self._recall(params, parts, batch) if self._uses("recall") else {}
        x, y = self.fetch(batch.rows, list(rows.values()), batch.u.get(AUGMENT))
        trained = self.learner.trained(params)
        scores, back, statistics = self._scores(params, trained, parts, batch, rows, x)
        loss, seen, leaves = self._losses(params, trained, parts, batch, rows, x, y, scores)
        value, gradient = self._gradient_by_scores(loss, batch, rows, y, scores)
        direct: Params = {}
        if loss.free:
            value, gradient, direct = self._differentiated(loss, value, gradient, seen, leaves)
        grads = self._summed(back(gradient, trained.keys()), direct, trained, loss)
        if self._uses("grads"):
            grads = self._transform(params, parts, batch, grads)
        self.learner.optimizer.update(trained, grads, state["optimizer"])
        for k, moved in statistics.items():
            if not self.learner.start.frozen(k):
                params[k].copy_(moved)
        if self._uses("step"):
            axis, n = batch.rows.dim() - 1, batch.rows.shape[-1]
            states, replaced = self._after(params, parts, batch, grads,
                                           *(t.narrow(axis, 0, n) for t in (x, y, scores)))
            for k, p in replaced.items():
                params[k].copy_(p)
            state = state | {"parts": unaliased(parts | states, params)}
        return state, {"loss": value}

    def _uses(self, hook: str) -> bool:
        return any(getattr(part, hook) for part in self.learner.parts.values())

    # ---- the lifted functions; every tensor that goes through the lift costs about a microsecond

    @cached_property
    def _recall(self) -> Callable[..., dict[str, Tensor]]:
        return self.each(lambda learner, pool, *args: learner.recall(pool, *args))

    @cached_property
    def _apply(self) -> Callable[..., Tensor]:
        return self.each(lambda learner, pool, params, parts, task, x: learner.applied(pool, params, parts, task, x))

    @cached_property
    def _train(self) -> Callable[..., tuple[Tensor, Params]]:
        return self.each(lambda learner, pool, *args: learner.net.train(*args))

    @cached_property
    def _said(self) -> Callable[..., tuple[Any, ...]]:
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
            given = (x, real) if u is None else (x, real, u)
            return _by_autograd(lambda leaves: self._train(params | leaves, *given), trained)
        if self.forward:
            return *self.forward(params, x), {}
        return _by_autograd(lambda leaves: (self._apply(params | leaves, parts, batch.task, x), {}), trained)

    def _losses(self, params: Params, trained: Params, parts: State, batch: Batch, rows: dict[str, Tensor], x: Tensor,
                y: Tensor, scores: Tensor) -> tuple[Loss, Tensor, Params]:
        """The losses of the parts with the batch's own, and the leaves that what is free is differentiated by."""
        seen, leaves, loss = scores, trained, Loss()
        if self.free:
            seen, leaves = scores.detach().requires_grad_(), _leaves(trained)
        if self._uses("loss") or self._uses("criterion"):
            with torch.set_grad_enabled(self.free):
                loss = Loss(*self._said(params | leaves, parts, batch, rows, x, y, seen))
            if loss.free and not self.free:
                self.free = True
                return self._losses(params, trained, parts, batch, rows, x, y, scores)
        return loss if self._uses("criterion") else Loss({"batch": batch.weight}) + loss, seen, leaves

    def _gradient_by_scores(self, loss: Loss, batch: Batch, rows: dict[str, Tensor], y: Tensor,
                            scores: Tensor) -> tuple[Tensor, Tensor]:
        """The value of all losses whose gradient is known, and that gradient with respect to the scores of the pass."""
        sizes = {"batch": batch.rows, **rows}
        weights = [loss.entropies[name].detach() if name in loss.entropies else
                   r.new_zeros(r.shape, dtype=batch.weight.dtype) for name, r in sizes.items()]
        value, gradient = cross_entropy_vjp(scores.detach(), y, torch.cat(weights, -1), self.competing(y))
        first = 0
        for name, r in sizes.items():
            if name in loss.gradients:
                gradient.narrow(-2, first, r.shape[-1]).add_(loss.gradients[name].detach())
            first += r.shape[-1]
        for more in loss.values:
            value = value + more.detach()
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
        found = {}
        for k, p in trained.items():
            g, more = grads.get(k), direct.get(k)
            found[k] = g + more if g is not None and more is not None else g if g is not None else \
                more if more is not None else torch.zeros_like(p)
        for penalty in loss.penalties:
            pull = penalty_gradient(penalty, trained)
            found = {k: g + pull[k] if k in pull else g for k, g in found.items()}
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
