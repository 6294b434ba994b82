"""Losses of one lane."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lifelong.data.pool import Pool
from lifelong.networks.net import Net, Params


class Slice(NamedTuple):
    """Some examples inside a step: the batch, or what one part recalled.

    Attributes:
        rows: [B]; -1 is no example.
        weight: [B], sums to 1 over the real rows; all 0 while there is none.
        x: [B, *shape]; y: [B], output units.
        scores: [B, C] of the network before the update.
        rivals: [B, C] bool, the units that compete in the loss; None: all.
    """

    rows: Tensor
    weight: Tensor
    x: Tensor
    y: Tensor
    scores: Tensor
    rivals: Tensor | None = None


def cross_entropy(seen: Slice) -> Tensor:
    """Weighted cross-entropy of a slice over the units that compete for each example; 0 where it is empty."""
    return _nll(log_probabilities(seen.scores, seen.rivals), seen.y, seen.weight)


def log_probabilities(scores: Tensor, allowed: Tensor | None) -> Tensor:
    """Log-probabilities over the allowed units; a finite stand-in for -inf keeps 0 * -inf away."""
    return (scores if allowed is None else scores.masked_fill(~allowed, -1e30)).log_softmax(-1)


def _nll(log_p: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    return -(log_p.gather(-1, y.unsqueeze(-1)).squeeze(-1) * weight).sum(-1)


def cross_entropy_vjp(scores: Tensor, y: Tensor, weight: Tensor, rivals: Tensor | None) -> tuple[Tensor, Tensor]:
    """`cross_entropy` of scores [..., B, C] and its gradient with respect to them, by hand; any leading axes."""
    log_p = log_probabilities(scores, rivals)
    loss = _nll(log_p, y, weight)
    grad = log_p.exp_()
    at = y.unsqueeze(-1)
    grad = grad.scatter(-1, at, grad.gather(-1, at) - 1)
    return loss, grad.mul_(weight.unsqueeze(-1))


def each(net: Net, pool: Pool, rows: Tensor) -> Callable[[Params], Tensor]:
    """The cross-entropy [R] of each of `rows` [R] as a function of the parameters."""
    x, y = pool.fetch(rows)
    rivals = pool.rivals(y)

    def losses(params: Params) -> Tensor:
        scores = net.apply(params, x)
        scores = scores if rivals is None else scores.masked_fill(~rivals, -torch.inf)
        return F.cross_entropy(scores, y, reduction="none")

    return losses


def fit(net: Net, pool: Pool, rows: Tensor, weight: Tensor, u: Tensor | None = None) -> Callable[[Params], Tensor]:
    """The cross-entropy of `rows` [R], weighted by `weight` [R], as a function of the parameters; as in training, where
    batch normalisation uses the statistics of these rows, and not the running ones.

    `u` [net.draws] are the random numbers of the pass; in a hook, `view.net` has those of the step.
    """
    both = practice(net, pool, rows, weight, u)
    return lambda params: both(params)[0]


def practice(net: Net, pool: Pool, rows: Tensor, weight: Tensor,
             u: Tensor | None = None) -> Callable[[Params], tuple[Tensor, Params]]:
    """As `fit`, with the running statistics of batch normalisation after the pass, without gradient."""
    if net.train is None:
        losses = each(net, pool, rows)
        return lambda params: ((losses(params) * weight).sum(), {})
    train, (x, y) = net.train, pool.fetch(rows)
    rivals = pool.rivals(y)

    def loss(params: Params) -> tuple[Tensor, Params]:
        scores, moved = train(params, x, rows >= 0, u)
        return _nll(log_probabilities(scores, rivals), y, weight), moved

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
