"""Losses of one lane, and how important each parameter is to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lifelong.models import Net, Params
from lifelong.stream import Pool


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
    return _nll(_log_p(seen.scores, seen.rivals), seen.y, seen.weight)


def _log_p(scores: Tensor, allowed: Tensor | None) -> Tensor:
    """Log-probabilities over the allowed units; a finite stand-in for -inf keeps 0 * -inf away."""
    return (scores if allowed is None else scores.masked_fill(~allowed, -1e30)).log_softmax(-1)


def _nll(log_p: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    return -(log_p.gather(-1, y.unsqueeze(-1)).squeeze(-1) * weight).sum(-1)


def cross_entropy_vjp(scores: Tensor, y: Tensor, weight: Tensor, rivals: Tensor | None) -> tuple[Tensor, Tensor]:
    """`cross_entropy` of scores [..., B, C] and its gradient with respect to them, by hand; any leading axes."""
    log_p = _log_p(scores, rivals)
    loss = _nll(log_p, y, weight)
    grad = log_p.exp_()
    grad.scatter_add_(-1, y.unsqueeze(-1), grad.new_full((), -1.0).expand(*y.shape, 1))
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


def fit(net: Net, pool: Pool, rows: Tensor, weight: Tensor) -> Callable[[Params], Tensor]:
    """The cross-entropy of `rows` [R], weighted by `weight` [R], as a function of the parameters."""
    losses = each(net, pool, rows)
    return lambda params: (losses(params) * weight).sum()


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


def chunks(rows: Tensor, weight: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """`rows` [n] and `weight` [n] in pieces of `size`, for passes over a whole task."""
    yield from zip(rows.split(size), weight.split(size), strict=True)


def fisher(net: Net, params: Params, pool: Pool, rows: Tensor, weight: Tensor, labels: str = "exact",
           size: int = 256) -> Params:
    """Diagonal Fisher information of every parameter: the mean over examples of squared per-example gradients.

    Args:
        net, params: the network at the point of interest.
        pool, rows: [n] examples; weight: [n], sums to 1 over them.
        labels: 'exact' takes the expectation over the network's own answers, sum over c of p(c|x) g_c^2;
            'empirical' takes the label that is stored.
        size: examples handled at once.

    Returns:
        importance >= 0 of the shape of each parameter.

    Source: Kirkpatrick et al. 2017, arXiv:1612.00796; Martens 2020, arXiv:1412.1193 for the two expectations. Never
        the square of a batch's mean gradient, which shrinks with the batch.
    """
    if labels not in ("exact", "empirical"):
        raise ValueError(f"fisher: labels must be 'exact' or 'empirical', got {labels!r}")
    x, _ = pool.fetch(rows[:1])
    squares = _layer_squares if _Layers(params).cover(net, x) else example_squares
    total = {k: torch.zeros_like(p) for k, p in params.items()}
    for part, w in chunks(rows, weight, size):
        x, y = pool.fetch(part)
        rivals = pool.rivals(y)
        if rivals is None:
            rivals = torch.ones(len(y), pool.n_classes, dtype=torch.bool, device=y.device)
        for k, value in squares(net, params, x, y, w, rivals, labels).items():
            total[k] = total[k] + value
    return total


def _answers(log_p: Tensor, y: Tensor, weight: Tensor, labels: str) -> Iterator[tuple[Tensor, Tensor]]:
    """(c [B], weight [B]) of each label whose gradient is squared."""
    if labels == "empirical":
        yield y, weight
    else:
        for c in range(log_p.shape[-1]):
            yield torch.full_like(y, c), weight * log_p[:, c].exp()


def example_squares(net: Net, params: Params, x: Tensor, y: Tensor, weight: Tensor, allowed: Tensor,
                    labels: str) -> Params:
    """Weighted sum of squared per-example gradients, for any network: one gradient an example."""
    total = {k: torch.zeros_like(p) for k, p in params.items()}
    for c, w in _answers(_log_p(net.apply(params, x), allowed), y, weight, labels):
        for k, g in _example_grads(net, params, x, allowed, c).items():
            total[k] = total[k] + torch.tensordot(w, g.square(), dims=1)
    return total


def _example_grads(net: Net, params: Params, x: Tensor, allowed: Tensor, c: Tensor) -> Params:
    """The gradient [B, ...] of log p(c) of every example by itself."""

    def one(params: Params, x: Tensor, allowed: Tensor, c: Tensor) -> Tensor:
        return _log_p(net.apply(params, x.unsqueeze(0)).squeeze(0), allowed).gather(0, c.unsqueeze(0)).squeeze()

    grads: Params = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0, 0))(params, x, allowed, c)
    return grads


class _Recorded(NamedTuple):
    """A forward pass through linear layers: an example's gradient is, by layer, its delta times its input.

    Attributes:
        log_p: [B, C].
        pull: (weights of log_p [B, C]) -> the deltas [B, outputs] of every layer.
        inputs: [B, inputs] of every layer.
        layers: names of every layer's weight and bias, None without.
    """

    log_p: Tensor
    pull: Callable[[Tensor], tuple[list[Tensor]]]
    inputs: list[Tensor]
    layers: list[tuple[str, str | None]]

    def deltas(self, c: Tensor) -> list[Tensor]:
        """The gradients of log p(c) by every layer's output."""
        return self.pull(F.one_hot(c, self.log_p.shape[-1]).to(self.log_p.dtype))[0]


def _recorded(net: Net, params: Params, x: Tensor, allowed: Tensor) -> _Recorded:
    probe = _Layers(params)
    probe.cover(net, x[:1])
    taps = [x.new_zeros(len(x), params[w].shape[0]) for w, _ in probe.layers]

    def forward(taps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        with _Layers(params, taps) as layers:
            scores = net.apply(params, x)
        return _log_p(scores, allowed), layers.inputs

    log_p, pull, inputs = torch.func.vjp(forward, taps, has_aux=True)  # type: ignore[misc]
    return _Recorded(log_p, pull, inputs, probe.layers)


def _layer_squares(net: Net, params: Params, x: Tensor, y: Tensor, weight: Tensor, allowed: Tensor,
                   labels: str) -> Params:
    """The same for networks of linear layers at a batch's price: an example's gradient is delta times input."""
    seen = _recorded(net, params, x, allowed)
    squares = [x.new_zeros(len(x), params[w].shape[0]) for w, _ in seen.layers]
    for c, w in _answers(seen.log_p, y, weight, labels):
        squares = [s + d.square() * w.unsqueeze(-1) for s, d in zip(squares, seen.deltas(c), strict=True)]
    total = {}
    for (name, bias), square, a in zip(seen.layers, squares, seen.inputs, strict=True):
        total[name] = square.mT @ a.square()  # the inputs are the same for every label
        if bias is not None:
            total[bias] = square.sum(0)
    return total


def gradient_products(net: Net, params: Params, pool: Pool, rows: Tensor) -> Tensor:
    """Inner products [R, R] of the gradients that the cross-entropy has at every two of `rows` [R].

    Networks of linear layers need no gradient an example: two gradients' product is (a.a' + 1)(d.d'), summed over
    layers, with inputs a and deltas d; the 1 stands for the bias.
    """
    x, y = pool.fetch(rows)
    rivals = pool.rivals(y)
    if rivals is None:
        rivals = torch.ones(len(y), pool.n_classes, dtype=torch.bool, device=y.device)
    total = x.new_zeros(len(y), len(y))
    if _Layers(params).cover(net, x[:1]):
        seen = _recorded(net, params, x, rivals)
        for (_, bias), a, d in zip(seen.layers, seen.inputs, seen.deltas(y), strict=True):
            total = total + (a @ a.mT + (bias is not None)) * (d @ d.mT)
        return total
    for g in _example_grads(net, params, x, rivals, y).values():
        total = total + g.flatten(1) @ g.flatten(1).mT
    return total


class _Layers(TorchFunctionMode):
    """Watches a forward pass for linear layers, and adds a tap to each one's output."""

    def __init__(self, params: Params, taps: list[Tensor] | None = None) -> None:
        super().__init__()
        self.params = params
        self.names = {id(p): name for name, p in params.items()}
        self.taps = taps
        self.inputs: list[Tensor] = []
        self.layers: list[tuple[str, str | None]] = []
        self.other = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        used = [self.names[id(a)] for a in (*args, *(kwargs or {}).values()) if id(a) in self.names]
        if not used:
            return out
        if func is not F.linear or kwargs or args[0].dim() != 2 or id(args[1]) not in self.names:
            self.other = True
            return out
        self.inputs.append(args[0])
        self.layers.append((used[0], used[1] if len(used) > 1 else None))
        return out if self.taps is None else out + self.taps[len(self.inputs) - 1]

    def cover(self, net: Net, x: Tensor) -> bool:
        """Whether every parameter is used once, as weight or bias of a linear layer on plain vectors."""
        with self:
            net.apply(self.params, x)
        used = [name for layer in self.layers for name in layer if name is not None]
        return not self.other and sorted(used) == sorted(self.params)
