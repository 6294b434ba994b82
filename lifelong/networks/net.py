"""Networks: pure functions of their parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lifelong.networks.norms import moved
from lifelong.randomness import generator
from lifelong.vmap import lifted

Params = dict[str, Tensor]
Back = Callable[[Tensor, Collection[str]], Params]


class Gate(NamedTuple):
    """The gate of a network whose features are multiplied by a mask that the network computes, as in ANML.

    Attributes:
        mask: (params, x) -> the mask [B, F] of the features.
        features: (params, x, mask) -> `Net.features` with this mask.
    """

    mask: Callable[[Params, Tensor], Tensor]
    features: Callable[[Params, Tensor, Tensor], Tensor]


class Net(NamedTuple):
    """A network whose parameters are data, so that many lanes can be trained as one.

    Attributes:
        init: (generator) -> params.
        apply: (params, x [B, *shape]) -> scores [B, C].
        features: (params, x) -> the last hidden layer [B, F]; None if the network does not define it.
        head: names of the output layer's parameters, whose first axis is the output units.
        vjp: `apply` with a hand-written derivative, if that is faster than autograd: (params, x [..., B, *shape]) ->
            scores [..., B, C], back; back(gradient of scores, names) -> gradients of these params. For one lane, or
            with a leading axis on all tensors for a stack of lanes.
        fresh: (params, x) -> features normalised by the batch's own statistics, and these statistics under their names
            in `still`; None for networks without batch normalisation. `features` and `apply` use the statistics in
            `params`, so that an example's scores do not depend on its batch.
        still: names of parameters without gradient: the statistics of batch normalisation.
        train: (params, x [B, *shape], real [B] bool, u [draws] or None) -> scores [B, C] in training, and the
            parameters in `still` after it. Batch normalisation uses the statistics of the batch's real examples, and
            updates the running ones as torch.nn.BatchNorm2d does by default. In a sum, the batch and all replayed
            examples share one pass and its statistics; some published code passes them one after the other. None if
            scores in training are those of `apply`.
        draws: number of uniform numbers, float64 in [0, 1), that `train` needs as `u`, for example for dropout.
        gate: the gate of the features; None if there is none.
        dtype: the precision of the computation; None for that of the parameters.
    """

    init: Callable[[torch.Generator], Params]
    apply: Callable[[Params, Tensor], Tensor]
    features: Callable[[Params, Tensor], Tensor] | None = None
    head: tuple[str, ...] = ()
    vjp: Callable[[Params, Tensor], tuple[Tensor, Back]] | None = None
    fresh: Callable[[Params, Tensor], tuple[Tensor, Params]] | None = None
    still: tuple[str, ...] = ()
    train: Callable[[Params, Tensor, Tensor, Tensor | None], tuple[Tensor, Params]] | None = None
    draws: int = 0
    gate: Gate | None = None
    dtype: torch.dtype | None = None

    def passes(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Net:
        """The network with every pass, a function (params, x, ...), replaced by `wrap` of it."""
        every: dict[str, Any] = self._asdict()
        every |= {name: wrap(f) for name, f in every.items() if callable(f) and name != "init"}
        return Net(**every | {"gate": self.gate and Gate(wrap(self.gate.mask), wrap(self.gate.features))})


def shapes_of(net: Net) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by name; the parameters are only drawn if `Net.init` cannot run without."""
    try:
        with torch.device("meta"), _Undrawn():
            params = net.init(generator(0, "init"))
    except Exception:  # it reads a number out of a tensor, or makes a tensor outside torch
        params = net.init(generator(0, "init"))
    return {name: tuple(p.shape) for name, p in params.items()}


class _Undrawn(TorchFunctionMode):
    """Drops the argument `generator` for tensors on the meta device, which do not accept it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return func(*args, **{k: v for k, v in kwargs.items() if k != "generator" or "device" in kwargs})


def _uniform(shape: tuple[int, ...], fan_in: int, g: torch.Generator) -> Tensor:
    bound = 1 / math.sqrt(fan_in)
    return (torch.rand(shape, generator=g) * 2 - 1) * bound


def layer(params: Params, name: str, outputs: int, shape: tuple[int, ...], g: torch.Generator) -> None:
    """Adds a layer with torch's default initialisation: weights and biases uniform in +-1/sqrt(fan in)."""
    fan_in = math.prod(shape)
    params[f"{name}.weight"] = _uniform((outputs, *shape), fan_in, g)
    params[f"{name}.bias"] = _uniform((outputs,), fan_in, g)


def looped(net: Net) -> Callable[[Params, Tensor], tuple[Tensor, Back]]:
    """`Net.vjp` of a stack by autograd, lane by lane: convolutions on a CPU are slower when lanes are batched."""

    def vjp(params: Params, x: Tensor) -> tuple[Tensor, Back]:
        return _by_lane(params, len(x), lambda i, lane: (net.apply(lane, x[i]), {}))[:2]

    return vjp


def looped_train(net: Net) -> Callable[[Params, Tensor, Tensor, Tensor | None], tuple[Tensor, Back, Params]]:
    """`Net.train` and its derivative for a stack by autograd, lane by lane.

    (params, x, real, u) -> scores, back as in `Net.vjp`, and the parameters in `still` after the pass.
    """
    train = net.train
    assert train is not None
    return lambda params, x, real, u: _by_lane(
        params, len(x), lambda i, lane: train(lane, x[i], real[i], None if u is None else u[i]))


def _by_lane(params: Params, n: int, f: Callable[[int, Params], tuple[Tensor, Params]]) -> tuple[Tensor, Back, Params]:
    lanes = [{k: p[i].detach().requires_grad_() for k, p in params.items()} for i in range(n)]
    with torch.enable_grad():
        found = [f(i, lane) for i, lane in enumerate(lanes)]

    def back(grad: Tensor, names: Collection[str]) -> Params:
        wanted = [name for name in params if name in names]
        every = [torch.autograd.grad(found[i][0], [lane[k] for k in wanted], grad[i], materialize_grads=True)
                 for i, lane in enumerate(lanes)]
        return {name: torch.stack(column) for name, column in zip(wanted, zip(*every, strict=True), strict=True)}

    return (torch.stack([scores.detach() for scores, _ in found]), back,
            {k: torch.stack([more[k] for _, more in found]) for k in found[0][1]})


Through = Callable[..., Tensor]


def classifier(init: Callable[[torch.Generator], Params], through: Through, still: tuple[str, ...] = ()) -> Net:
    """A network whose scores are linear in the features of images.

    Args:
        init: as in `Net`, with `head.weight` and `head.bias`.
        through: (params, x, own, real) -> features [B, F]; for the last two, which default to None, see `normalised`.
        still: names of the statistics of batch normalisation; () if there are none.
    """
    head = ("head.weight", "head.bias")

    def apply(params: Params, x: Tensor) -> Tensor:
        return F.linear(through(params, x), *(params[k] for k in head))

    def fresh(params: Params, x: Tensor) -> tuple[Tensor, Params]:
        own: Params = {}
        z = through(params, x, own)
        return z, {k: own[k] for k in still}

    def train(params: Params, x: Tensor, real: Tensor, u: Tensor | None = None) -> tuple[Tensor, Params]:
        own: Params = {}
        # On a CPU the check is cheap: padding is left out, so that torch's fused normalisation can be used.
        at = real.nonzero().flatten() if x.device.type == "cpu" and not lifted() else real[:0]
        if len(at) == 0:
            return F.linear(through(params, x, own, real), *(params[k] for k in head)), moved(params, own)
        scores = F.linear(through(params, x if len(at) == len(x) else x[at], own), *(params[k] for k in head))
        if len(at) < len(x):
            scores = scores.new_zeros(len(x), scores.shape[1]).index_copy(0, at, scores)
        return scores, moved(params, own)

    if not still:
        return Net(init, apply, through, head)
    return Net(init, apply, through, head, fresh=fresh, still=still, train=train)
