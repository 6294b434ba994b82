"""Networks whose arithmetic is done in bfloat16, between parameters, examples and scores in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lifelong.networks.net import Net, Params
from lifelong.vmap import lifted

LOW = torch.bfloat16


def in_bfloat16(net: Net) -> Net:
    """`net` with its forward and backward pass in bfloat16: its inputs are rounded, and what it returns is float32.

    Parameters, gradients once they are made, optimizers, losses and whatever parts remember stay in float32.
    """
    # Scales, shifts and statistics of batch normalisation stay: a running mean would lose what a step adds to it.
    kept = tuple(name.rpartition(".")[0] + "." for name in net.still)

    def rounded(f: Callable[..., Any]) -> Callable[..., Any]:
        def call(params: Params, x: Tensor, *more: Tensor | None) -> Any:
            low = {k: p if k in net.still or k.startswith(kept) else _packed(p) for k, p in params.items()}
            # What has the precision of the examples, such as a gate's mask, is rounded with them; truth values and the
            # random numbers of a step, which are float64, are not.
            given = (_packed(t) if t is not None and t.dtype == x.dtype else t for t in more)
            return _wide(f(low, _packed(x) if x.is_floating_point() else x, *given), _precision(params, x))

        return call

    return net.passes(rounded)._replace(dtype=LOW)


def _precision(params: Params, x: Tensor) -> torch.dtype:
    """The precision of what is returned: that of the examples or, where these are integers, of the parameters."""
    return x.dtype if x.is_floating_point() else next(iter(params.values())).dtype


def _packed(value: Tensor) -> Tensor:
    """In bfloat16, images and kernels channels last, which makes a convolution about twice as fast on a CPU."""
    low = value.to(LOW)
    return low if value.dim() != 4 or lifted() else low.contiguous(memory_format=torch.channels_last)


def _wide(value: Any, dtype: torch.dtype) -> Any:
    """What a pass returns: its tensors in `dtype`, and its derivative as a function between tensors in `dtype`."""
    if isinstance(value, Tensor):
        return value.to(dtype)
    if isinstance(value, dict):
        return {k: _wide(v, dtype) for k, v in value.items()}
    if callable(value):
        return lambda grad, names: _wide(value(grad.to(LOW), names), grad.dtype)
    return tuple(_wide(v, dtype) for v in value)
