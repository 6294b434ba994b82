"""Optimizers that work leaf by leaf, so that one lane or a stack of lanes is updated by the same calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lifelong.spec.bounds import above, at_least, below
from lifelong.vmap import lifted

Params = dict[str, Tensor]
Number = float | Tensor


class Optimizer(NamedTuple):
    """How parameters move.

    Attributes:
        init: (params) -> state of tensors, for one lane.
        update: (params, grads, state) -> None; writes into params and state, which the caller owns. Leaves may carry
            a leading axis of lanes; hyper-parameters are numbers, or tensors [L] with one number a lane.
    """

    init: Callable[[Params], Params]
    update: Callable[[Params, Params, Params], None]


_fused_adam = getattr(torch, "_fused_adam_", None)  # what torch.optim.Adam(fused=True) calls; it cannot be lifted


def _by_lane(leaves: list[Tensor], like: Tensor) -> list[Tensor]:
    """The leaves lane by lane where `like`, the steps taken, has lanes, for each lane may have taken its own number."""
    if like.dim() == 0:
        return leaves
    return [leaf for lane in zip(*(leaf.unbind() for leaf in leaves), strict=True) for leaf in lane]


def _as(leaf: Tensor, value: Tensor) -> Tensor:
    """`value` with the strides of `leaf`."""
    return value if value.stride() == leaf.stride() else torch.empty_like(leaf).copy_(value)


def _spread(number: Number, leaf: Tensor) -> Number:
    """`number` in a shape that multiplies `leaf`: one value a lane goes along the first axis."""
    if not isinstance(number, Tensor):
        return number
    return number.to(leaf.dtype).reshape(number.shape + (1,) * (leaf.dim() - number.dim()))


def _decayed(params: Params, grads: Params, weight_decay: Number) -> Params:
    if isinstance(weight_decay, float) and weight_decay == 0:
        return grads
    return {k: g + _spread(weight_decay, g) * params[k] for k, g in grads.items()}


def sgd(lr: float = 0.1, momentum: float = 0.0, weight_decay: float = 0.0) -> Optimizer:
    """Stochastic gradient descent, as torch.optim.SGD.

    Args:
        lr: step size, above 0.
        momentum: 0 keeps no memory of past gradients; below 1.
        weight_decay: adds weight_decay * parameter to the gradient.
    """
    above(0, lr=lr)
    at_least(0, momentum=momentum, weight_decay=weight_decay)
    below(1, momentum=momentum)
    plain = not isinstance(momentum, Tensor) and momentum == 0

    def init(params: Params) -> Params:
        return {} if plain else {k: torch.zeros_like(p) for k, p in params.items()}

    @torch.no_grad()
    def update(params: Params, grads: Params, state: Params) -> None:
        moves = _decayed(params, grads, weight_decay)
        if not plain:
            for k, g in moves.items():
                state[k].mul_(_spread(momentum, g)).add_(g)
            moves = state
        if isinstance(lr, Tensor):
            for k, p in params.items():
                p.sub_(_spread(lr, p) * moves[k])
        else:
            torch._foreach_add_(list(params.values()), [moves[k] for k in params], alpha=-lr)

    return Optimizer(init, update)


def adam(lr: float = 0.001, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8,
         weight_decay: float = 0.0) -> Optimizer:
    """Adam, as torch.optim.Adam; its moments live on from task to task.

    Args:
        lr: step size, above 0.
        beta1: decay of the mean of gradients, in [0, 1).
        beta2: decay of the mean of squared gradients, in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: adds weight_decay * parameter to the gradient (not decoupled).

    Source: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1.
    """
    above(0, lr=lr)
    at_least(0, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)
    below(1, beta1=beta1, beta2=beta2)

    def init(params: Params) -> Params:
        moments = {f"{m}.{k}": torch.zeros_like(p) for m in ("mean", "square") for k, p in params.items()}
        return moments | {"step": torch.zeros(())}

    every: dict[str, Number] = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
    differ: list[Tensor] = [value for value in every.values() if isinstance(value, Tensor)]
    groups: dict[tuple[float, ...], list[int]] = {}  # lanes by their numbers, which are read once

    @torch.no_grad()
    def update(params: Params, grads: Params, state: Params) -> None:
        if _fused_adam is not None and not lifted() and all(value.dim() == 1 for value in differ):
            for i in range(len(differ[0]) if differ else 1) if not groups else ():
                numbers = tuple(float(v[i]) if isinstance(v, Tensor) else v for v in every.values())
                groups.setdefault(numbers, []).append(i)
            # One pass over the parameters where the formulas below take ten.
            state["step"].add_(1)
            # It walks through memory, so a gradient must lie as its parameter does.
            moved = [list(params.values()), [_as(p, grads[k]) for k, p in params.items()],
                     [state[f"mean.{k}"] for k in params], [state[f"square.{k}"] for k in params]]
            lists = [_by_lane(leaves, state["step"]) for leaves in moved]
            lists.append([step for step in _by_lane([state["step"]], state["step"]) for _ in params])
            n = len(params)
            for numbers, lanes in groups.items():
                leaves = lists if len(groups) == 1 else [[leaf for i in lanes for leaf in each[i * n:(i + 1) * n]]
                                                         for each in lists]
                own = dict(zip(every, numbers, strict=True))
                _fused_adam(*leaves[:4], [], leaves[4], **own, amsgrad=False, maximize=False)
            return
        grads = _decayed(params, grads, weight_decay)
        step = state["step"].add_(1).double()
        size, root = lr / (1 - beta1**step), (1 - beta2**step).sqrt()
        for k, p in params.items():
            g, mean, square = grads[k], state[f"mean.{k}"], state[f"square.{k}"]
            mean.mul_(_spread(beta1, g)).add_(g * _spread(1 - beta1, g))
            square.mul_(_spread(beta2, g)).add_(g * g * _spread(1 - beta2, g))
            p.sub_(mean / (square.sqrt() / _spread(root, g) + _spread(eps, g)) * _spread(size, g))

    return Optimizer(init, update)


def falling(step: int, steps: int) -> float:
    """The share of a step size that is left at step `step` of `steps`, from 1 to nearly 0 along half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))
