"""Networks whose arithmetic is done in bfloat16, between parameters, examples and scores in float32."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from lifelong.networks.net import Back, Net, Params
from lifelong.vmap import lifted

LOW = torch.bfloat16


Vjp = Callable[[Params, Tensor], tuple[Tensor, Back]]


def in_bfloat16(net: Net) -> Net:
    """`net` with its forward and backward pass in bfloat16: its inputs are rounded, and what it returns is float32.

    Parameters, gradients once they are made, optimizers, losses and whatever parts remember stay in float32.
    """
    kept = tuple(name.rpartition(".")[0] + "." for name in net.still)  # a running mean would lose what a step adds

    def rounded(f: Callable[..., Any]) -> Callable[..., Any]:
        def call(params: Params, *x: Tensor) -> Any:
            low = {k: p if k.startswith(kept) else _packed(p) for k, p in params.items()}
            return _wide(f(low, *(t if t.dtype == torch.bool else _packed(t) for t in x)), x[0].dtype)

        return call

    return net._replace(apply=rounded(net.apply), features=net.features and rounded(net.features),
                        vjp=net.vjp and _by_hand(net.vjp), fresh=net.fresh and rounded(net.fresh),
                        mask=net.mask and rounded(net.mask), gated=net.gated and rounded(net.gated), dtype=LOW,
                        train=net.train and rounded(net.train))


def _by_hand(vjp: Vjp) -> Vjp:
    def low(params: Params, x: Tensor) -> tuple[Tensor, Back]:
        scores, back = vjp({k: p.to(LOW) for k, p in params.items()}, x.to(LOW))

        def wide(grad: Tensor, names: Collection[str]) -> Params:
            return {k: g.to(grad.dtype) for k, g in back(grad.to(LOW), names).items()}

        return scores.to(x.dtype), wide

    return low


def _packed(value: Tensor) -> Tensor:
    """In bfloat16, images and kernels channels last, which makes a convolution about twice as fast on a CPU."""
    low = value.to(LOW)
    return low if value.dim() != 4 or lifted() else low.contiguous(memory_format=torch.channels_last)


def _wide(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype)
    if isinstance(value, dict):
        return {k: _wide(v, dtype) for k, v in value.items()}
    return tuple(_wide(v, dtype) for v in value)
