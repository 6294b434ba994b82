"""Networks as pure functions of their parameters, and how any torch module becomes one."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lifelong.networks.norms import moved
from lifelong.vmap import lifted

Params = dict[str, Tensor]
Back = Callable[[Tensor, Collection[str]], Params]


class Net(NamedTuple):
    """A network whose parameters are data, so that many lanes can be trained as one.

    Attributes:
        init: (generator) -> params.
        apply: (params, x [B, *shape]) -> scores [B, C].
        features: (params, x) -> the last hidden layer [B, F]; None where the network does not say what that is.
        head: names of the output layer's parameters.
        vjp: `apply` and its derivative by hand, where that is faster than autograd: (params, x [..., B, *shape]) ->
            scores [..., B, C], back; back(gradient of scores, names) -> gradients of these params. For one lane, or
            with a leading axis on everything for a stack of lanes.
        fresh: (params, x) -> features normalised by the batch's own statistics, and those under their names in
            `still`; None for networks without batch normalisation. `features` and `apply` use the statistics in
            `params`, so that an example's scores do not depend on its batch.
        still: names of parameters that no gradient moves: the statistics of batch normalisation.
        mask: (params, x) -> what a gate multiplies the features by, [B, F]; None where there is no gate.
        gated: (params, x, mask) -> `features` with this mask in place of the gate's own.
        dtype: what it calculates in; None: in the precision of its parameters.
        layout: how the weights of convolutions lie in memory while a start is learned, as measured on a CPU.
        train: (params, x [B, *shape], real [B] bool) -> scores [B, C] in training, normalised by the statistics of the
            batch's real examples, and the parameters in `still` after it: running statistics, moved as
            torch.nn.BatchNorm2d does by default. None: scores are those of `apply`. In a sum one pass serves the batch
            and all rehearsed examples, so the statistics are of both together, where some published code passes them
            one after the other.
    """

    init: Callable[[torch.Generator], Params]
    apply: Callable[[Params, Tensor], Tensor]
    features: Callable[[Params, Tensor], Tensor] | None = None
    head: tuple[str, ...] = ()
    vjp: Callable[[Params, Tensor], tuple[Tensor, Back]] | None = None
    fresh: Callable[[Params, Tensor], tuple[Tensor, Params]] | None = None
    still: tuple[str, ...] = ()
    mask: Callable[[Params, Tensor], Tensor] | None = None
    gated: Callable[[Params, Tensor, Tensor], Tensor] | None = None
    dtype: torch.dtype | None = None
    layout: torch.memory_format = torch.channels_last
    train: Callable[..., tuple[Tensor, Params]] | None = None
    draws: int = 0


def _uniform(shape: tuple[int, ...], fan_in: int, g: torch.Generator) -> Tensor:
    bound = 1 / math.sqrt(fan_in)
    return (torch.rand(shape, generator=g) * 2 - 1) * bound


def layer(params: Params, name: str, outputs: int, shape: tuple[int, ...], g: torch.Generator) -> None:
    """torch's default: weights and biases uniform in +-1/sqrt(fan in)."""
    fan_in = math.prod(shape)
    params[f"{name}.weight"] = _uniform((outputs, *shape), fan_in, g)
    params[f"{name}.bias"] = _uniform((outputs,), fan_in, g)


def looped(net: Net) -> Callable[[Params, Tensor], tuple[Tensor, Back]]:
    """`Net.vjp` of a stack by autograd, lane after lane: convolutions on a CPU are slower when lanes are batched."""

    def vjp(params: Params, x: Tensor) -> tuple[Tensor, Back]:
        return _by_lane(params, len(x), lambda i, lane: (net.apply(lane, x[i]), {}))[:2]

    return vjp


def looped_train(net: Net) -> Callable[..., tuple[Tensor, Back, Params]]:
    """The same of `Net.train`: (params, x, real, u) -> scores, back, and the parameters in `still` after it."""
    train = net.train
    assert train is not None
    return lambda params, x, real, u=None: _by_lane(params, len(x), lambda i, lane: train(
        lane, x[i], real[i], *([] if u is None else [u[i]])))


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
    """The network whose scores are linear in the features of images.

    Args:
        init: as of `Net`; with `head.weight` and `head.bias`.
        through: (params, x, own, real) -> features [B, F]; for the last two, which default to None, see `normalised`.
        still: names of the statistics of batch normalisation; () where there are none.
    """
    head = ("head.weight", "head.bias")

    def apply(params: Params, x: Tensor) -> Tensor:
        return F.linear(through(params, x), *(params[k] for k in head))

    def fresh(params: Params, x: Tensor) -> tuple[Tensor, Params]:
        own: Params = {}
        z = through(params, x, own)
        return z, {k: own[k] for k in still}

    def train(params: Params, x: Tensor, real: Tensor) -> tuple[Tensor, Params]:
        own: Params = {}
        # Where it costs nothing to know which are real, the others are left out, and torch's fused normalisation does.
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


def from_module(make: Callable[[], nn.Module]) -> Net:
    """The network that `make()` builds; every lane gets weights of its own, drawn as the module draws them.

    A module may name its last hidden layer by a method `features(x)`; learners without gradients need it.

    Raises:
        ValueError: for a module with state outside its parameters (batch normalisation with running statistics) or
            with randomness of its own (dropout): neither can be stacked or resumed.
    """
    example = make()
    if list(example.buffers()):
        raise ValueError(f"{type(example).__name__} keeps buffers ({next(iter(example.named_buffers()))[0]}): use "
                         "GroupNorm, or BatchNorm with track_running_stats=False")
    for module in example.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            raise ValueError(f"{type(example).__name__} has dropout, whose random numbers cannot be repeated: set p=0")

    def init(g: torch.Generator) -> Params:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=g)))
            return {name: p.detach().clone() for name, p in make().named_parameters()}

    def apply(params: Params, x: Tensor) -> Tensor:
        return torch.func.functional_call(example, params, (x,))

    def features(params: Params, x: Tensor) -> Tensor:
        return torch.func.functional_call(_Features(example), {f"module.{k}": p for k, p in params.items()}, (x,))

    linear = [name for name, m in example.named_modules() if isinstance(m, nn.Linear)]
    head = tuple(n for n, _ in example.named_parameters() if linear and n.rpartition(".")[0] == linear[-1])
    return Net(init, apply, features if hasattr(example, "features") else None, head)


class _Features(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.module.features(x)  # type: ignore[operator]
        return features
