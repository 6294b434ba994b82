"""Passes through torch modules with this project's batch normalisation and dropout instead of torch's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lifelong.networks.net import Params
from lifelong.networks.norms import by_batch, by_running, followed
from lifelong.randomness import many
from lifelong.vmap import lifted


class Refused(ValueError):
    """A module does something that a network cannot do; the message continues after the name of the module."""


class Pass(TorchFunctionMode):
    """One pass through a module, as a context that replaces the calls of torch.nn.functional in `_REPLACED`.

    Functions are replaced instead of layers, which also covers subclasses of torch's layers and functions that a module
    calls itself.

    Attributes:
        params: the network's parameters, the same tensor objects that the module uses.
        still: names of the running statistics among them.
        real: [B] bool, the examples whose statistics batch normalisation uses in training; None for all.
        u: [1], the uniform number from which all random numbers of the pass are derived; None if there is none.
        own: whether batch normalisation uses the batch's statistics in evaluation too.
        running: the running statistics by name, after the batches so far.
        statistics: the batch's own statistics, by the name of the running ones.
        draws: number of draws of random numbers so far.
    """

    def __init__(self, params: Params, still: Iterable[str], real: Tensor | None = None, u: Tensor | None = None,
                 own: bool = False) -> None:
        super().__init__()
        self.params, self.still, self.real, self.u, self.own = params, still, real, u, own
        self.names = {id(params[k]): k for k in still}
        self.running = {k: params[k] for k in still}
        self.statistics: Params = {}
        self.draws = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        replacement = _REPLACED.get(func)
        if replacement is None:
            return func(*args, **(kwargs or {}))
        return replacement(self, func, *args, **(kwargs or {}))

    def uniform(self, shape: Iterable[int]) -> Tensor:
        """Uniform numbers in [0, 1), different at every call."""
        if self.u is None:
            raise Refused("draws random numbers in a pass that has none: dropout is for training alone, and "
                          "`Net.train` needs the step's random numbers, as many as `Net.draws` says")
        self.draws += 1
        shape = tuple(shape)
        return many(many(self.u[0], self.draws)[-1], math.prod(shape)).view(shape)

    def batch_norm(self, func: Any, x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor | None = None,
                   bias: Tensor | None = None, training: bool = False, momentum: float = 0.1,
                   eps: float = 1e-5) -> Tensor:
        """torch.nn.functional.batch_norm, with the statistics of the real examples in training."""
        if mean is not None and var is not None and not training and not self.own:
            return by_running(x, mean, var, weight, bias, eps)
        if mean is None or var is None or id(mean) not in self.names or id(var) not in self.names:
            raise Refused("has batch normalisation without running statistics in buffers of its own: an example's "
                          "scores would depend on the examples beside it; use track_running_stats=True, or GroupNorm")
        if self.real is not None and len(self.real) != len(x):
            raise Refused(f"has batch normalisation of {len(x)} rows for {len(self.real)} examples, so that it cannot "
                          "leave out rows that are no examples: keep the batch as the first dimension")
        weight = torch.ones_like(mean) if weight is None else weight
        bias = torch.zeros_like(mean) if bias is None else bias
        images = x if x.dim() == 4 else x.reshape(*x.shape[:2], -1, 1)
        centre, spread = self.names[id(mean)], self.names[id(var)]
        out, own_mean, own_var, count = by_batch(images, weight, bias, self.real, eps)
        self.statistics |= {centre: own_mean, spread: own_var}
        self.running[centre], self.running[spread] = followed(self.running[centre], self.running[spread], own_mean,
                                                              own_var, count, momentum)
        return out.reshape(x.shape)

    def dropout(self, func: Any, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """Any dropout function of torch.nn.functional; it never modifies its input."""
        if not training or not 0 < p <= 1:
            return func(x, p=p, training=training)
        axes = x.dim()
        if func in _WHOLE:  # drops whole channels [B, C]; an input with fewer dimensions is one example
            axes = 1 if x.dim() == _WHOLE[func] else 2
        keep = self.uniform((*x.shape[:axes], *(1 for _ in x.shape[axes:]))) >= p
        if func in (F.alpha_dropout, F.feature_alpha_dropout):
            low = -1.7580993408473766  # selu of minus infinity
            scale = 0.0 if p == 1 else ((low**2 * p + 1) * (1 - p))**-0.5
            return torch.where(keep, x, low) * scale - low * scale * p
        return x * (keep.to(x.dtype) * (0.0 if p == 1 else 1 / (1 - p)))

    def attention(self, func: Any, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
                  dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
                  enable_gqa: bool = False) -> Tensor:
        """torch.nn.functional.scaled_dot_product_attention; with dropout or under vmap computed step by step."""
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
        """torch.nn.functional.multi_head_attention_forward, with the dropout of this pass.

        A mode does not see the functions that this function calls, so its code is run with these two names replaced.
        """
        ours = {"dropout": partial(self.dropout, F.dropout),
                "scaled_dot_product_attention": partial(self.attention, F.scaled_dot_product_attention)}
        again = FunctionType(func.__code__, func.__globals__ | ours, func.__name__, func.__defaults__, func.__closure__)
        again.__kwdefaults__ = func.__kwdefaults__
        return again(*args, **kwargs)


_REPLACED: dict[Any, Callable[..., Any]] = {
    F.batch_norm: Pass.batch_norm,
    F.scaled_dot_product_attention: Pass.attention,
    F.multi_head_attention_forward: Pass.heads,
} | dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
                  Pass.dropout)
# For the functions that drop whole channels, the number of dimensions of an input that is one example.
_WHOLE = {F.dropout1d: 2, F.dropout2d: None, F.dropout3d: 4, F.feature_alpha_dropout: None}
