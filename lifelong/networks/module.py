"""How a torch module becomes a network: its batch normalisation, dropout and buffers included."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable
from functools import partial
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from lifelong.networks.net import Net, Params
from lifelong.networks.norms import by_batch, by_running, followed
from lifelong.randomness import many
from lifelong.vmap import lifted


def from_module(make: Callable[[], nn.Module], x: Tensor) -> Net:
    """The network that `make()` builds; every lane gets weights of its own, drawn as the module draws them.

    The module is called with a batch [B, *shape] and returns scores [B, C]. A method `features(x)` may return its last
    hidden layer [B, F], which learners without gradients need. `Net.apply` is the module after `eval()`, `Net.train`
    the module after `train()`, with these differences:

    - Batch normalisation uses the statistics of the batch's real examples. The running statistics are parameters of
      the network, named as the module's buffers and listed in `Net.still`.
    - Dropout takes its random numbers from the step's own in place of torch's global generator, so that a run can be
      stacked and resumed. This holds for every function of `torch.nn.functional` called dropout, for the layers that
      call them, and for the dropout of attention.
    - All other buffers are constants that all lanes share. They follow the device and the precision of the examples;
      integers stay integers. Random ones are drawn once, from a fixed seed.

    Args:
        make: builds the module, with weights drawn from torch's global generator.
        x: two or more examples [B, *shape] to try the module on.

    Raises:
        ValueError: for a module that needs more than a batch of examples, or does not return scores; whose training
            changes buffers other than by batch normalisation, or draws random numbers other than by dropout; whose
            batch normalisation keeps no running statistics, or averages them over all batches (`momentum=None`).
    """
    training = _drawn(make, 0).train()
    name = type(training).__name__
    _check(training, name)
    answering = copy.deepcopy(training).eval()
    learned, tried = _tried(training, x, name, u=torch.tensor([0.5], dtype=torch.float64))
    answered, _ = _tried(answering, x, name)
    still = tuple(k for k, _ in training.named_buffers() if k in tried.seen)
    buffers = {k for k, _ in training.named_buffers()}
    owned = [k for k, _ in _tensors(training) if k in still or k not in buffers]
    linear = [layer for layer, m in training.named_modules() if isinstance(m, nn.Linear)]
    head = tuple(k for k in owned if linear and k.rpartition(".")[0] == linear[-1])
    hidden = _Features(answering) if _has_features(answering, x, name) else None

    def init(g: torch.Generator) -> Params:
        module = _drawn(make, int(torch.randint(2**62, (), generator=g, device="cpu")))
        return {k: p.detach().clone() for k, p in _tensors(module) if k in owned}

    def apply(params: Params, x: Tensor) -> Tensor:
        return _called(answering, _Pass(params, still), x)

    def train(params: Params, x: Tensor, real: Tensor, u: Tensor | None = None) -> tuple[Tensor, Params]:
        # Where it costs nothing to know that all examples are real, torch's fused normalisation is used.
        every = x.device.type == "cpu" and not lifted() and bool(real.all())
        seen = _Pass(params, still, None if every else real, u)
        scores = _called(training, seen, x)
        return scores, {k: seen.running[k].detach() for k in still}

    def features(params: Params, x: Tensor) -> Tensor:
        assert hidden is not None
        return _called(hidden, _Pass(params, still), x)

    def fresh(params: Params, x: Tensor) -> tuple[Tensor, Params]:
        assert hidden is not None
        seen = _Pass(params, still, own=True)
        z = _called(hidden, seen, x)
        return z, {k: seen.seen.get(k, params[k]).detach() for k in still}

    trains = still or tried.calls or not torch.equal(learned, answered)
    return Net(init, apply, features if hidden else None, head, fresh=fresh if hidden and still else None,
               still=still, train=train if trains else None, draws=1 if tried.calls else 0)


def _drawn(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _tensors(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return *module.named_parameters(), *module.named_buffers()


class _Features(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module.features(x)  # type: ignore[operator]


def _called(module: nn.Module, seen: _Pass, x: Tensor) -> Tensor:
    """What `module`, or the module inside a `_Features`, returns for `x` with the parameters of a pass."""
    prefix = "module." if isinstance(module, _Features) else ""
    dtype = x.dtype if x.is_floating_point() else next(p.dtype for k, p in seen.params.items() if k not in seen.still)
    tensors = {prefix + k: p for k, p in seen.params.items()}
    for name, buffer in module.named_buffers():
        if name not in tensors:
            tensors[name] = buffer.to(x.device, dtype if buffer.is_floating_point() else buffer.dtype)
    with seen:
        return torch.func.functional_call(module, tensors, (x,))


# ---- what is ours inside a pass


class _Refused(ValueError):
    """What a module does that a network cannot; the sentence goes on after the module's name."""


class _Pass(TorchFunctionMode):
    """One pass through a module, in which batch normalisation and dropout are ours.

    Attributes:
        params: the network's parameters, as the module is given them.
        still: names of the running statistics among them.
        real: [B] bool, the examples whose statistics batch normalisation uses in training; None: all.
        u: [1], the random number that all of this pass's are made of; None: there is none.
        own: whether batch normalisation uses the batch's own statistics also in evaluation.
        running: the running statistics by name, as training has moved them so far.
        seen: the batch's own statistics by name.
        calls: how often random numbers were asked for.
    """

    def __init__(self, params: Params, still: Iterable[str], real: Tensor | None = None, u: Tensor | None = None,
                 own: bool = False) -> None:
        super().__init__()
        self.params, self.still, self.real, self.u, self.own = params, still, real, u, own
        self.names = {id(params[k]): k for k in still}
        self.running = {k: params[k] for k in still}
        self.seen: Params = {}
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        ours = _OURS.get(func)
        return func(*args, **(kwargs or {})) if ours is None else ours(self, func, *args, **(kwargs or {}))

    def uniform(self, shape: Iterable[int]) -> Tensor:
        """Numbers in [0, 1), others at every call."""
        if self.u is None:
            raise _Refused("draws random numbers in a pass that has none: dropout is for training alone, and "
                           "`Net.train` needs the step's random numbers, as many as `Net.draws` says")
        self.calls += 1
        shape = tuple(shape)
        return many(many(self.u[0], self.calls)[-1], math.prod(shape)).view(shape)

    def batch_norm(self, func: Any, x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor | None = None,
                   bias: Tensor | None = None, training: bool = False, momentum: float = 0.1,
                   eps: float = 1e-5) -> Tensor:
        if mean is not None and var is not None and not training and not self.own:
            return by_running(x, mean, var, weight, bias, eps)
        if mean is None or var is None or id(mean) not in self.names or id(var) not in self.names:
            raise _Refused("has batch normalisation without running statistics in buffers of its own: an example's "
                           "scores would depend on the examples beside it; use track_running_stats=True, or GroupNorm")
        if self.real is not None and len(self.real) != len(x):
            raise _Refused(f"has batch normalisation of {len(x)} rows for {len(self.real)} examples, so that it cannot "
                           "leave out rows that are no examples: keep the batch as the first dimension")
        weight = torch.ones_like(mean) if weight is None else weight
        bias = torch.zeros_like(mean) if bias is None else bias
        images = x if x.dim() == 4 else x.reshape(*x.shape[:2], -1, 1)
        centre, spread = self.names[id(mean)], self.names[id(var)]
        out, own_mean, own_var, count = by_batch(images, weight, bias, self.real, eps)
        self.seen |= {centre: own_mean, spread: own_var}
        self.running[centre], self.running[spread] = followed(self.running[centre], self.running[spread], own_mean,
                                                              own_var, count, momentum)
        return out.reshape(x.shape)

    def dropout(self, func: Any, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """`func`, one of torch.nn.functional's that are called dropout; never in place."""
        if not training or not 0 < p <= 1:
            return func(x, p=p, training=training)
        axes = x.dim()
        if func in _WHOLE:  # channels [B, C] are dropped whole; torch takes fewer dimensions for those of one example
            axes = 1 if x.dim() == _WHOLE[func] else 2
        keep = self.uniform((*x.shape[:axes], *(1 for _ in x.shape[axes:]))) >= p
        if func in (F.alpha_dropout, F.feature_alpha_dropout):
            low = -1.7580993408473766  # what selu leaves of minus infinity
            scale = 0.0 if p == 1 else ((low**2 * p + 1) * (1 - p))**-0.5
            return torch.where(keep, x, low) * scale - low * scale * p
        return x * (keep.to(x.dtype) * (0.0 if p == 1 else 1 / (1 - p)))

    def attention(self, func: Any, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
                  dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
                  enable_gqa: bool = False) -> Tensor:
        """torch.nn.functional.scaled_dot_product_attention, which torch does not have a fast form of under vmap."""
        if dropout_p == 0 and not lifted():
            return func(query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)
        if enable_gqa:
            key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
        weights = query @ key.mT * (query.shape[-1]**-0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(weights.shape[-2:], dtype=torch.bool, device=weights.device).tril()
        if attn_mask is not None:
            weights = weights.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else (
                weights + attn_mask)
        return self.dropout(F.dropout, weights.softmax(-1), dropout_p) @ value

    def heads(self, func: FunctionType, *args: Any, **kwargs: Any) -> Any:
        """torch.nn.functional.multi_head_attention_forward: torch's own code, in which dropout and attention are ours,
        since a mode is not told of what is called inside such a function."""
        ours = {"dropout": partial(self.dropout, F.dropout),
                "scaled_dot_product_attention": partial(self.attention, F.scaled_dot_product_attention)}
        again = FunctionType(func.__code__, func.__globals__ | ours, func.__name__, func.__defaults__, func.__closure__)
        again.__kwdefaults__ = func.__kwdefaults__
        return again(*args, **kwargs)


_OURS: dict[Any, Callable[..., Any]] = {
    F.batch_norm: _Pass.batch_norm,
    F.scaled_dot_product_attention: _Pass.attention,
    F.multi_head_attention_forward: _Pass.heads,
} | dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
                  _Pass.dropout)
# Of the functions that drop whole channels, the dimensions of an input that is one example.
_WHOLE = {F.dropout1d: 2, F.dropout2d: None, F.dropout3d: 4, F.feature_alpha_dropout: None}


# ---- what is refused


class _Trial(_Pass):
    """A pass that is refused where it draws random numbers that are not the step's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = torch.get_rng_state()
        out = super().__torch_function__(func, types, args, kwargs)
        if not torch.equal(before, torch.get_rng_state()):
            raise _Refused(f"draws random numbers by {func.__name__}, which could not be repeated when a run is "
                           "resumed: only dropout, by layers or functions of torch.nn, is given the step's own")
        return out


def _tried(module: nn.Module, x: Tensor, name: str, u: Tensor | None = None) -> tuple[Tensor, _Pass]:
    """The scores of some examples, and the pass; a sentence on what a network cannot do."""
    before = {k: (b, b._version) for k, b in module.named_buffers()}
    seen = _Trial({k: b for k, (b, _) in before.items()}, before, torch.ones(len(x), dtype=torch.bool), u)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), seen:
            scores = module(x)
    except _Refused as error:
        raise ValueError(f"{name} {error}") from None
    except Exception as error:
        raise ValueError(f"{name} cannot be applied to a batch of {len(x)} examples, {list(x.shape)}: "
                         f"{type(error).__name__}: {error}") from error
    after = dict(module.named_buffers())
    for k in before.keys() | after.keys():
        if k not in before or after.get(k) is not before[k][0] or after[k]._version != before[k][1]:
            raise ValueError(f"{name} changes its buffer {k} when it is called, which a network can do with the "
                             "statistics of batch normalisation alone: make it a constant")
    if not isinstance(scores, Tensor) or scores.dim() != 2 or len(scores) != len(x):
        said = f"a tensor {list(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
        raise ValueError(f"{name} must return scores [{len(x)}, classes] of {len(x)} examples, and returned {said}")
    return scores, seen


def _has_features(module: nn.Module, x: Tensor, name: str) -> bool:
    """Whether the module says what its last hidden layer is; many have maps [B, C, H, W] under that name."""
    if not hasattr(module, "features"):
        return False
    try:
        with torch.no_grad():
            z = module.features(x)  # type: ignore[operator]
    except Exception as error:
        raise ValueError(f"{name}.features cannot be applied to a batch of {len(x)} examples, {list(x.shape)}: "
                         f"{type(error).__name__}: {error}") from error
    return isinstance(z, Tensor) and z.dim() == 2 and len(z) == len(x)


def _check(module: nn.Module, name: str) -> None:
    """Refuses what the layers show without a pass, and leaves out their counts of batches."""
    if any(nn.parameter.is_lazy(p) for _, p in _tensors(module)):
        raise ValueError(f"{name} has lazy layers, whose sizes are unknown before the first batch: give their sizes")
    needed = [p.name for p in inspect.signature(module.forward).parameters.values()
              if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if len(needed) > 1:
        raise ValueError(f"{name} takes several inputs ({', '.join(needed)}), and a network is given the examples "
                         "alone: give the others a default")
    for layer, norm in module.named_modules():
        if isinstance(norm, _BatchNorm):
            if norm.track_running_stats and norm.momentum is None:
                raise ValueError(f"{name}.{layer} averages its statistics over all batches (momentum=None), for which "
                                 "a network keeps no count: give it a momentum, for example 0.1")
            norm.num_batches_tracked = None  # it would count in place, for that average alone
