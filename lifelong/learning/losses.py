"""Losses of one lane: as data whose gradients are known, and as functions of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lifelong.data.pool import Pool
from lifelong.data.problem import cross_entropy_vjp
from lifelong.networks.net import Net, Params
from lifelong.vmap import resolved


class _Slice(NamedTuple):
    rows: Any
    weight: Any
    x: Any
    y: Any
    scores: Any
    name: str = "batch"
    at: slice | None = None  # where the slice stands in `x`, `y` and `scores`; None: they are its own


class Slice(_Slice):
    """Some of the examples of a step: the batch, or what one part recalled.

    Attributes:
        rows: [B] rows of the pool; -1 is no example.
        weight: [B], sums to 1 over the real examples; all 0 while there is none.
        x: [B, *shape], the examples.
        y: [B], their output units.
        scores: [B, C] of the network before the update.
        name: which slice of the step it is.
    """

    __slots__ = ()
    rows: Tensor = property(lambda self: resolved(self[0]))  # type: ignore[assignment]
    weight: Tensor = property(lambda self: resolved(self[1]))  # type: ignore[assignment]
    x: Tensor = property(lambda self: self._cut(2))  # type: ignore[assignment]
    y: Tensor = property(lambda self: self._cut(3))  # type: ignore[assignment]
    scores: Tensor = property(lambda self: self._cut(4))  # type: ignore[assignment]

    def _cut(self, field: int) -> Any:
        whole = resolved(self[field])
        return whole if self.at is None else whole[self.at]


class Penalty(NamedTuple):
    """strength / 2 * the sum over parameters of importance * (parameter - anchor)^2."""

    strength: float | Tensor
    anchor: Params
    importance: Params


class _Loss(NamedTuple):
    entropies: Mapping[str, Tensor] = {}
    gradients: Mapping[str, Tensor] = {}
    values: tuple[Tensor, ...] = ()
    penalties: tuple[Penalty, ...] = ()
    free: tuple[Tensor, ...] = ()


class Loss(_Loss):
    """A loss as data. Its gradient is known, except for what is `free`, which autograd differentiates.

    Losses add, to each other and to 0-d tensors, and are multiplied and divided by numbers and 0-d tensors. Parts
    return them from `loss` and `criterion`; the step evaluates all cross-entropies of a pass in one call.

    Attributes:
        entropies: slice name -> weight [B] of the cross-entropy of each of its examples; weights count as constants.
        gradients: slice name -> gradient [B, C] with respect to its scores.
        values: 0-d each, the values of the losses whose gradients are in `gradients`.
        penalties: quadratic penalties on the network's parameters. The logged loss leaves them out.
        free: 0-d each, functions of scores and parameters for autograd.
    """

    __slots__ = ()

    def __add__(self, other: Loss | Tensor | float) -> Loss:  # type: ignore[override]
        if not isinstance(other, Loss):
            if type(other) is int and other == 0:  # of sum(losses)
                return self
            other = Loss(free=(_number(other),))
        return Loss(_summed(self.entropies, other.entropies), _summed(self.gradients, other.gradients),
                    self.values + other.values, self.penalties + other.penalties, self.free + other.free)

    __radd__ = __add__

    def __mul__(self, factor: float | Tensor) -> Loss:  # type: ignore[override]
        return self._scaled(lambda value: factor * value)

    __rmul__ = __mul__  # type: ignore[assignment]

    def __truediv__(self, divisor: float | Tensor) -> Loss:
        return self._scaled(lambda value: value / divisor)

    def detached(self) -> Loss:
        """The same with everything but what is free as a constant to autograd."""
        return Loss({name: weight.detach() for name, weight in self.entropies.items()},
                    {name: gradient.detach() for name, gradient in self.gradients.items()},
                    tuple(value.detach() for value in self.values), self.penalties, self.free)

    def _scaled(self, scale: Callable[[Any], Any]) -> Loss:
        return Loss({name: scale(weight) for name, weight in self.entropies.items()},
                    {name: scale(gradient) for name, gradient in self.gradients.items()},
                    tuple(map(scale, self.values)),
                    tuple(one._replace(strength=scale(one.strength)) for one in self.penalties),
                    tuple(map(scale, self.free)))


def _number(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.dim():
        got = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ValueError(f"a loss must be a Loss or one number, a tensor without axes; got {got}")
    return value


def _summed(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if not a or not b:
        return a or b
    return {**a, **b, **{name: a[name] + b[name] for name in a if name in b}}


def cross_entropy(examples: Slice, weight: Tensor | None = None, competing: Tensor | None = None) -> Loss:
    """The mean cross-entropy of a slice; 0 where the slice is empty. In a stream whose problem is another, it is the
    mean loss of that problem.

    Args:
        examples: the batch or what was recalled.
        weight: [B], the weight of each example in place of `examples.weight`; it counts as a constant.
        competing: [B, C] bool, the units over which each example's probabilities are taken; None: in task-incremental
            streams the units of the example's task, in other streams all units.
    """
    weight = examples.weight if weight is None else weight
    if competing is None:
        return Loss(entropies={examples.name: weight})
    with torch.no_grad():
        value, gradient = cross_entropy_vjp(examples.scores, examples.y, weight, competing)
    return Loss(gradients={examples.name: gradient}, values=(value,))


def squared_error(examples: Slice, target: Tensor, strength: float | Tensor = 1.0,
                  competing: Tensor | None = None) -> Loss:
    """`strength` times the squared difference of scores and `target` [B, C], the mean over units and examples.

    Args:
        examples: the batch or what was recalled.
        target: what the scores should be; it counts as a constant.
        strength: factor of the loss.
        competing: [B, C] bool, the units that are compared; None: all.
    """
    with torch.no_grad():
        gap = examples.scores - target
        weight = (2 * strength * examples.weight).unsqueeze(-1)
        if competing is None:
            weight = weight / gap.shape[-1]
        else:
            weight = weight * competing / competing.sum(-1, keepdim=True)
        gradient = weight * gap
        return Loss(gradients={examples.name: gradient}, values=((gap * gradient).sum() / 2,))


def quadratic(anchor: Params, importance: Params, strength: float | Tensor = 1.0) -> Loss:
    """strength / 2 * the sum over parameters of importance * (parameter - anchor)^2.

    Args:
        anchor: parameter name -> where the penalty is 0, of the parameter's shape.
        importance: parameter name -> 0 or more, of the parameter's shape or 0-d.
        strength: 0 is no penalty.
    """
    return Loss(penalties=(Penalty(strength, anchor, importance),))


def penalty_gradient(penalty: Penalty, params: Params) -> Params:
    """The gradient of a penalty of one lane, or of a stack [L] of lanes, with respect to `params`."""
    strength, anchor, importance = penalty
    return {k: (p - anchor[k]).mul_(along(importance[k], p)).mul_(along(strength, p))
            for k, p in params.items() if k in anchor}


def along(number: float | Tensor, leaf: Tensor) -> Any:
    """`number` in a shape that multiplies `leaf`: a tensor [L] has one value for each entry of the first axis."""
    if not isinstance(number, Tensor) or number.dim() == leaf.dim():
        return number
    return number.to(leaf.dtype).reshape(number.shape + (1,) * (leaf.dim() - number.dim()))


def mean_weights(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights [..., R] that are equal over the real rows and sum to 1; all 0 where every row is -1."""
    real = (rows >= 0).to(dtype)
    return real / real.sum(-1, keepdim=True).clamp(min=1)


# ---- functions of the parameters, for parts and learners that differentiate by torch.func.grad


def example_losses(net: Net, pool: Pool, rows: Tensor) -> Callable[[Params], Tensor]:
    """The loss [R] of each of `rows` [R] as a function of the parameters: the cross-entropy, or that of the problem.

    Batch normalisation uses its running statistics.
    """
    x, y = pool.fetch(rows)
    competing = pool.rivals(y)
    return lambda params: pool.problem.example_loss(net.apply(params, x), y, competing)


def batch_loss(net: Net, pool: Pool, rows: Tensor, weight: Tensor | None = None,
               u: Tensor | None = None) -> Callable[[Params], Tensor]:
    """The mean loss of `rows` [R] as a function of the parameters, in training; see `example_losses`.

    Batch normalisation uses the statistics of these rows.

    Args:
        net: the network.
        pool: the examples.
        rows: [R]; -1 is no example.
        weight: [R], the weight of each example; None: equal over the real rows.
        u: [net.draws], the random numbers of the pass; a hook leaves them out, since `view.net` has those of the step.
    """
    loss = batch_loss_and_statistics(net, pool, rows, weight, u)
    return lambda params: loss(params)[0]


def batch_loss_and_statistics(net: Net, pool: Pool, rows: Tensor,
                              weight: Tensor | None = None,
                              u: Tensor | None = None) -> Callable[[Params], tuple[Tensor, Params]]:
    """`batch_loss`, and the running statistics of batch normalisation after the pass, which have no gradient."""
    weight = mean_weights(rows, pool.dtype) if weight is None else weight
    if net.train is None:
        losses = example_losses(net, pool, rows)
        return lambda params: ((losses(params) * weight).sum(), {})
    train, (x, y) = net.train, pool.fetch(rows)
    competing = pool.rivals(y)

    def loss(params: Params) -> tuple[Tensor, Params]:
        scores, statistics = train(params, x, rows >= 0, u)
        return (pool.problem.example_loss(scores, y, competing) * weight).sum(), statistics

    return loss


def distillation(scores: Tensor, teacher: Tensor, units: Tensor, temperature: float | Tensor) -> Tensor:
    """Divergence [B] of a learner's answers from its teacher's, over some units: T^2 KL(p_teacher || p).

    Args:
        scores: of the learner [B, C].
        teacher: scores of the teacher [B, C].
        units: [C] bool, the units compared; 0 is returned where there is none.
        temperature: T, above 0; both score vectors are divided by it.

    Source: Hinton et al. 2015, arXiv:1503.02531 (the factor T^2 keeps the gradient's size); it differs from
        cross-entropy against the teacher by the teacher's entropy, which has no gradient.
    """
    # A finite stand-in for -inf: with no unit at all the result stays finite and is zeroed below.
    hide = torch.where(units, 0.0, -1e30)
    log_p = (scores / temperature + hide).log_softmax(-1)
    log_q = (teacher / temperature + hide).log_softmax(-1)
    terms = log_q.exp() * (log_q - log_p)
    return torch.where(units, terms, 0.0).sum(-1) * temperature**2
