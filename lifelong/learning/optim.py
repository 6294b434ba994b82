"""Optimizers whose update works for one learner and for a stack of learners alike."""

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
    """An optimizer as a pair of functions.

    Attributes:
        init: (params) -> the state of one lane, a dict of tensors.
        update: (params, grads, state) -> None. Writes the new values into `params` and `state`. Tensors may have a
            leading axis of L lanes; a hyper-parameter is a number, or a tensor [L] with one number per lane.
    """

    init: Callable[[Params], Params]
    update: Callable[[Params, Params, Params], None]


_fused_adam = getattr(torch, "_fused_adam_", None)  # as in torch.optim.Adam(fused=True); torch.vmap does not support it


def _by_lane(leaves: list[Tensor], step: Tensor) -> list[Tensor]:
    """The leaves of every lane, lane after lane, if `step` has an axis of lanes; otherwise the leaves themselves."""
    if step.dim() == 0:
        return leaves
    return [leaf for lane in zip(*(leaf.unbind() for leaf in leaves), strict=True) for leaf in lane]


def _as(leaf: Tensor, value: Tensor) -> Tensor:
    """`value` with the strides of `leaf`."""
    return value if value.stride() == leaf.stride() else torch.empty_like(leaf).copy_(value)


def _spread(number: Number, leaf: Tensor) -> Number:
    """`number` in a shape that broadcasts against `leaf`: one value per lane goes along the first axis."""
    if not isinstance(number, Tensor):
        return number
    return number.to(leaf.dtype).reshape(number.shape + (1,) * (leaf.dim() - number.dim()))


def _decayed(params: Params, grads: Params, weight_decay: Number) -> Params:
    if isinstance(weight_decay, float) and weight_decay == 0:
        return grads
    return {k: g + _spread(weight_decay, g) * params[k] for k, g in grads.items()}


def sgd(lr: float = 0.1, momentum: float = 0.0, weight_decay: float = 0.0) -> Optimizer:
    """Stochastic gradient descent, as in `torch.optim.SGD`.

    Args:
        lr: step size, above 0.
        momentum: momentum factor, at least 0 and below 1; 0 is plain SGD.
        weight_decay: weight_decay * parameter is added to the gradient; 0 or more.
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
    """Adam, as in `torch.optim.Adam`; the moments are kept from task to task.

    Args:
        lr: step size, above 0.
        beta1: decay rate of the running mean of gradients, in [0, 1).
        beta2: decay rate of the running mean of squared gradients, in [0, 1).
        eps: added to the square root of the second moment; 0 or more.
        weight_decay: weight_decay * parameter is added to the gradient (not decoupled); 0 or more.

    Source: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1.
    """
    above(0, lr=lr)
    at_least(0, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)
    below(1, beta1=beta1, beta2=beta2)

    def init(params: Params) -> Params:
        moments = {f"{m}.{k}": torch.zeros_like(p) for m in ("mean", "square") for k, p in params.items()}
        return moments | {"step": torch.zeros(())}

    hyper: dict[str, Number] = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
    per_lane: list[Tensor] = [value for value in hyper.values() if isinstance(value, Tensor)]
    groups: dict[tuple[float, ...], list[int]] = {}  # the lanes of each combination of values, which are read once

    def fused(params: Params, grads: Params, state: Params) -> None:
        assert _fused_adam is not None
        for i in range(len(per_lane[0]) if per_lane else 1) if not groups else ():
            values = tuple(float(v[i]) if isinstance(v, Tensor) else v for v in hyper.values())
            groups.setdefault(values, []).append(i)
        state["step"].add_(1)
        # The kernel reads memory in order, so a gradient needs the strides of its parameter.
        tensors = [list(params.values()), [_as(p, grads[k]) for k, p in params.items()],
                   [state[f"mean.{k}"] for k in params], [state[f"square.{k}"] for k in params]]
        lists = [_by_lane(leaves, state["step"]) for leaves in tensors]
        lists.append([step for step in _by_lane([state["step"]], state["step"]) for _ in params])
        n = len(params)
        for values, lanes in groups.items():
            leaves = lists if len(groups) == 1 else [[leaf for i in lanes for leaf in leaves[i * n:(i + 1) * n]]
                                                     for leaves in lists]
            _fused_adam(*leaves[:4], [], leaves[4], **dict(zip(hyper, values, strict=True)), amsgrad=False,
                        maximize=False)

    @torch.no_grad()
    def update(params: Params, grads: Params, state: Params) -> None:
        if _fused_adam is not None and not lifted() and all(value.dim() == 1 for value in per_lane):
            fused(params, grads, state)  # one pass over the parameters, where the formulas below take ten
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
    """The factor of a step size that decays along half a cosine: 1 at step 0, 0 at step `steps`."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))
