"""Importance of parameters: Fisher information and sensitivity; inner products of gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lifelong.data.pool import Pool
from lifelong.data.problem import log_probabilities
from lifelong.learning.losses import example_losses
from lifelong.networks.net import Net, Params
from lifelong.spec.bounds import one_of


def chunks(rows: Tensor, weight: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """`rows` [n] and `weight` [n] in chunks of `size`, for passes over a whole task."""
    yield from zip(rows.split(size), weight.split(size), strict=True)


AT_ONCE = 2**26  # numbers in the gradients of single examples kept at once, for each lane
LABELS = ("exact", "sampled", "empirical", "batched")


def fisher(net: Net, params: Params, pool: Pool, rows: Tensor, weight: Tensor, labels: str = "exact",
           size: int = 256, u: Tensor | None = None) -> Params:
    """Diagonal Fisher information of every parameter: the mean over examples of squared per-example gradients.

    Args:
        net, params: the network and its parameters.
        pool, rows: the pool, and the rows [n] of the examples.
        weight: weights [n] of the examples, which sum to 1.
        labels: 'exact' takes the expectation over the network's own predictions, sum over c of p(c|x) g_c^2;
            'sampled' draws one of these labels per example; 'empirical' uses the stored label; 'batched' squares the
            mean gradient of a mini-batch at the stored labels and averages over mini-batches.
        size: examples processed at once; for 'batched' the size of the mini-batches, in the order of `rows`.
        u: [n] uniform numbers for 'sampled'.

    Returns:
        Importance >= 0, in the shape of each parameter.

    In regression the prediction is a Gaussian around the K outputs with variance K / 2, whose negative log-likelihood
    is the mean squared error: 'exact' sums 2 / K times the squared gradient of each output.

    Source: Kirkpatrick et al. 2017, arXiv:1612.00796; Martens 2020, arXiv:1412.1193 for the expectations. 'batched' is
        the estimate of Avalanche. It shrinks as the batch grows, so a suitable strength depends on the batch size.
    """
    if one_of("labels", labels, LABELS) == "batched":
        return _batch_squares(net, params, pool, rows, weight, size)
    if not pool.problem.classes:
        if labels != "exact":
            raise ValueError(f"labels={labels!r} is about classes: for {pool.problem.name} use 'exact' or 'batched'")
        return _over_examples(net, params, pool, rows, weight, "gaussian", size)
    return _over_examples(net, params, pool, rows, weight, "exact" if labels == "exact" else "empirical", size,
                          u if labels == "sampled" else None)


def sensitivity(net: Net, params: Params, pool: Pool, rows: Tensor, weight: Tensor, size: int = 256) -> Params:
    """Sensitivity of the scores to every parameter: the mean over examples of |d ||F(x)||^2 / d parameter|.

    F(x) are the scores, before any softmax, of the units that compete for the example. Arguments as in `fisher`.

    Source: Aljundi et al. 2018, arXiv:1711.09601.
    """
    return _over_examples(net, params, pool, rows, weight, "norm", size)


def _over_examples(net: Net, params: Params, pool: Pool, rows: Tensor, weight: Tensor, measure: str, size: int,
                   u: Tensor | None = None) -> Params:
    x, _ = pool.fetch(rows[:1])
    sums = _layer_sums
    if not _Layers(params).cover(net, x):  # then a gradient of every parameter is kept for each example
        sums, size = example_sums, max(1, min(size, AT_ONCE // sum(p.numel() for p in params.values())))
    total = {k: torch.zeros_like(p) for k, p in params.items()}
    for i, (part, w) in enumerate(chunks(rows, weight, size)):
        x, y = pool.fetch(part)
        allowed = pool.rivals(y)
        if allowed is None:
            allowed = torch.ones(len(y), pool.n_classes, dtype=torch.bool, device=y.device)
        if u is not None:
            y = _drawn(log_probabilities(net.apply(params, x), allowed), u[i * size:i * size + len(part)])
        for k, value in sums(net, params, x, y, w, allowed, measure).items():
            total[k] = total[k] + value
    return total


def _drawn(log_p: Tensor, u: Tensor) -> Tensor:
    """For each example the class [B] at which the cumulative sum of its probabilities exceeds `u`."""
    below = log_p.double().exp().cumsum(-1)
    # Scaled by the sum, which rounding may leave below 1; classes of probability 0 are never drawn.
    return (below <= (u * below[:, -1]).unsqueeze(-1)).sum(-1).clamp(max=log_p.shape[-1] - 1)


def _batch_squares(net: Net, params: Params, pool: Pool, rows: Tensor, weight: Tensor, size: int) -> Params:
    total, count = {k: torch.zeros_like(p) for k, p in params.items()}, weight.new_zeros(())
    for part, w in chunks(rows, weight, size):
        share = w.sum()
        w = w / share.clamp(min=torch.finfo(w.dtype).tiny)
        losses = example_losses(net, pool, part)
        grads = torch.func.grad(lambda params, losses=losses, w=w: (losses(params) * w).sum())(params)
        total = {k: total[k] + g.square() for k, g in grads.items()}
        count = count + (share > 0)  # a batch of padding only does not count
    return {k: value / count.clamp(min=1) for k, value in total.items()}


class _Measure(NamedTuple):
    """The values that are differentiated for every example, and the function applied to their gradients.

    Attributes:
        values: (scores [B, C], allowed [B, C]) -> the values [B, K].
        picks: (values, y [B], weight [B]) -> (k [B], weight [B]) for each value whose gradient is used.
        size: elementwise function of a gradient; its value at a product is the product of its values.
    """

    values: Callable[[Tensor, Tensor], Tensor]
    picks: Callable[[Tensor, Tensor, Tensor], Iterator[tuple[Tensor, Tensor]]]
    size: Callable[[Tensor], Tensor]


def _every(log_p: Tensor, y: Tensor, weight: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for c in range(log_p.shape[-1]):
        yield torch.full_like(y, c), weight * log_p[:, c].exp()


def _stored(log_p: Tensor, y: Tensor, weight: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    yield y, weight


def _length(scores: Tensor, allowed: Tensor) -> Tensor:
    return scores.masked_fill(~allowed, 0.0).square().sum(-1, keepdim=True)


def _only(values: Tensor, y: Tensor, weight: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    yield torch.zeros_like(weight, dtype=torch.int64), weight


def _outputs(values: Tensor, y: Tensor, weight: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for k in range(values.shape[-1]):
        yield torch.full_like(weight, k, dtype=torch.int64), weight


def _standardised(scores: Tensor, allowed: Tensor) -> Tensor:
    return scores * (2 / scores.shape[-1]) ** 0.5


_MEASURES = {
    "exact": _Measure(log_probabilities, _every, torch.square),
    "empirical": _Measure(log_probabilities, _stored, torch.square),
    "norm": _Measure(_length, _only, torch.abs),
    "gaussian": _Measure(_standardised, _outputs, torch.square),
}


def example_sums(net: Net, params: Params, x: Tensor, y: Tensor, weight: Tensor, allowed: Tensor,
                 measure: str) -> Params:
    """Weighted sum of the sizes of per-example gradients, for any network: computes one gradient per example."""
    values, picks, size = _MEASURES[measure]
    total = {k: torch.zeros_like(p) for k, p in params.items()}
    for pick, w in picks(values(net.apply(params, x), allowed), y, weight):
        for k, g in _example_grads(net, params, x, allowed, pick, values).items():
            total[k] = total[k] + torch.tensordot(w, size(g), dims=1)
    return total


def _example_grads(net: Net, params: Params, x: Tensor, allowed: Tensor, pick: Tensor,
                   values: Callable[[Tensor, Tensor], Tensor]) -> Params:
    """The gradient [B, ...] of the picked value of every example, separately."""

    def one(params: Params, x: Tensor, allowed: Tensor, k: Tensor) -> Tensor:
        return values(net.apply(params, x.unsqueeze(0)), allowed.unsqueeze(0)).squeeze(0).gather(0, k.view(1)).squeeze()

    grads: Params = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0, 0))(params, x, allowed, pick)
    return grads


class _Recorded(NamedTuple):
    """A forward pass through linear layers; the gradient of an example in a layer is its delta times its input.

    Attributes:
        values: [B, K], the differentiated values.
        pull: (weights of the values [B, K]) -> the deltas [B, outputs] of every layer.
        inputs: [B, inputs] of every layer.
        layers: names of every layer's weight and bias; None if it has no bias.
        masks: masks of the masked parameters, by name.
    """

    values: Tensor
    pull: Callable[[Tensor], tuple[list[Tensor]]]
    inputs: list[Tensor]
    layers: list[tuple[str, str | None]]
    masks: dict[str, Tensor]

    def deltas(self, pick: Tensor) -> list[Tensor]:
        """The gradients of the picked values with respect to the output of every layer."""
        return self.pull(F.one_hot(pick, self.values.shape[-1]).to(self.values.dtype))[0]


def _recorded(net: Net, params: Params, x: Tensor, allowed: Tensor,
              values: Callable[[Tensor, Tensor], Tensor]) -> _Recorded:
    probe = _Layers(params)
    probe.cover(net, x[:1])
    taps = [x.new_zeros(len(x), params[w].shape[0]) for w, _ in probe.layers]

    def forward(taps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        with _Layers(params, taps) as layers:
            scores = net.apply(params, x)
        return values(scores, allowed), layers.inputs

    out, pull, inputs = torch.func.vjp(forward, taps, has_aux=True)  # type: ignore[misc]
    return _Recorded(out, pull, inputs, probe.layers, probe.masks)


def _layer_sums(net: Net, params: Params, x: Tensor, y: Tensor, weight: Tensor, allowed: Tensor,
                measure: str) -> Params:
    """As `example_sums`, for networks of linear layers at the cost of one batch gradient per value."""
    values, picks, size = _MEASURES[measure]
    seen = _recorded(net, params, x, allowed, values)
    sums = [x.new_zeros(len(x), params[w].shape[0]) for w, _ in seen.layers]
    for k, w in picks(seen.values, y, weight):
        sums = [s + size(d) * w.unsqueeze(-1) for s, d in zip(sums, seen.deltas(k), strict=True)]
    total = {}
    for (name, bias), delta, a in zip(seen.layers, sums, seen.inputs, strict=True):
        total[name] = delta.mT @ size(a)  # the inputs are the same for every value
        if bias is not None:
            total[bias] = delta.sum(0)
    return {k: torch.where(seen.masks[k], v, 0.0) if k in seen.masks else v for k, v in total.items()}


def gradient_products(net: Net, params: Params, pool: Pool, rows: Tensor) -> Tensor:
    """Inner products [R, R] of the cross-entropy gradients of all pairs of `rows` [R].

    Networks of linear layers need no per-example gradients: the product of two gradients is (a.a' + 1)(d.d'), summed
    over layers, with inputs a and deltas d; the 1 is for the bias.
    """
    x, y = pool.fetch(rows)
    rivals = pool.rivals(y)
    if rivals is None:
        rivals = torch.ones(len(y), pool.n_classes, dtype=torch.bool, device=y.device)
    total, probe = x.new_zeros(len(y), len(y)), _Layers(params)
    if probe.cover(net, x[:1]) and not probe.masks:
        seen = _recorded(net, params, x, rivals, log_probabilities)
        for (_, bias), a, d in zip(seen.layers, seen.inputs, seen.deltas(y), strict=True):
            total = total + (a @ a.mT + (bias is not None)) * (d @ d.mT)
        return total
    for g in _example_grads(net, params, x, rivals, y, log_probabilities).values():
        flat = g.reshape(len(y), -1)
        total = total + flat @ flat.mT
    return total


class _Layers(TorchFunctionMode):
    """Records the linear layers of a forward pass and adds a tap to the output of each.

    A parameter may be masked first by `torch.where(mask, parameter, 0.0)`, as parts with `weights` do.
    """

    def __init__(self, params: Params, taps: list[Tensor] | None = None) -> None:
        super().__init__()
        self.params = params
        self.names = {id(p): name for name, p in params.items()}
        self.taps = taps
        self.inputs: list[Tensor] = []
        self.layers: list[tuple[str, str | None]] = []
        self.masks: dict[str, Tensor] = {}
        self.alive: list[Tensor] = []  # keeps these tensors, so that their ids are not reused
        self.other = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        used = [self.names[id(a)] for a in (*args, *(kwargs or {}).values()) if id(a) in self.names]
        if not used or isinstance(out, (int, torch.Size)):
            return out
        name = used[0]
        if func is torch.Tensor.to:  # in a network that computes in another precision
            self.names[id(out)] = name
            self.alive.append(out)
            return out
        blank = func is torch.where and not kwargs and isinstance(args[2], float) and args[2] == 0
        if blank and out.shape == args[1].shape and name not in self.masks:
            self.names[id(out)] = name
            self.masks[name] = args[0]
            self.alive.append(out)
            return out
        if func is not F.linear or kwargs or args[0].dim() != 2 or id(args[1]) not in self.names:
            self.other = True
            return out
        self.inputs.append(args[0].to(self.params[name].dtype))
        self.layers.append((name, used[1] if len(used) > 1 else None))
        return out if self.taps is None else out + self.taps[len(self.inputs) - 1].to(out.dtype)

    def cover(self, net: Net, x: Tensor) -> bool:
        """Whether every parameter is used once, as weight or bias of a linear layer on plain vectors."""
        with self:
            net.apply(self.params, x)
        used = [name for layer in self.layers for name in layer if name is not None]
        return not self.other and sorted(used) == sorted(self.params)
