"""Networks that compute in bfloat16, with parameters, examples and scores in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lifelong.networks.net import Net, Params
from lifelong.vmap import lifted

LOW = torch.bfloat16


def in_bfloat16(net: Net) -> Net:
    """`net` with its forward and backward pass in bfloat16: inputs are rounded, and outputs are float32.

    Parameters, their gradients, optimizers, losses and the states of parts stay in float32.
    """
    # Scales, shifts and statistics of batch normalisation are not rounded, which would lose updates of a running mean.
    kept = tuple(name.rpartition(".")[0] + "." for name in net.still)

    def rounded(f: Callable[..., Any]) -> Callable[..., Any]:
        def call(params: Params, x: Tensor, *more: Tensor | None) -> Any:
            low = {k: p if k in net.still or k.startswith(kept) else _packed(p) for k, p in params.items()}
            # Tensors in the precision of the examples, such as a gate's mask, are rounded with them; booleans and the
            # random numbers of a step, which are float64, are not.
            given = (_packed(t) if t is not None and t.dtype == x.dtype else t for t in more)
            return _wide(f(low, _packed(x) if x.is_floating_point() else x, *given), _precision(params, x))

        return call

    return net.passes(rounded)._replace(dtype=LOW)


def _precision(params: Params, x: Tensor) -> torch.dtype:
    """The precision of the outputs: that of the examples or, if these are integers, of the parameters."""
    return x.dtype if x.is_floating_point() else next(iter(params.values())).dtype


def _packed(value: Tensor) -> Tensor:
    """`value` in bfloat16; images and kernels with channels last, about twice as fast in convolutions on a CPU."""
    low = value.to(LOW)
    return low if value.dim() != 4 or lifted() else low.contiguous(memory_format=torch.channels_last)


def _wide(value: Any, dtype: torch.dtype) -> Any:
    """The outputs of a pass: tensors in `dtype`, and the derivative as a function between tensors in `dtype`."""
    if isinstance(value, Tensor):
        return value.to(dtype)
    if isinstance(value, dict):
        return {k: _wide(v, dtype) for k, v in value.items()}
    if callable(value):
        return lambda grad, names: _wide(value(grad.to(LOW), names), grad.dtype)
    return tuple(_wide(v, dtype) for v in value)
