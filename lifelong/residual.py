"""A residual network with batch normalisation, sized for small images and a processor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from lifelong.models import Net, Params, norm_layer, normalised


def resnet(shape: tuple[int, ...], n_classes: int, widths: Sequence[int] = (32, 64, 160, 320)) -> Net:
    """A residual network: a convolution, then a block of two at every width but the first, then a linear head.

    Everything is of 3x3 with batch normalisation and ReLU; after the first convolution and between blocks the maximum
    of 2x2 is kept. Features are the last block's output, averaged over places. Around the image, its edge is repeated:
    paper goes on as paper.

    Args:
        shape: of one example, [channels, height, width].
        n_classes: output units.
        widths: channels of the first convolution and of each block, 2 or more numbers.

    Source: He et al. 2016, arXiv:1512.03385, with pooling in place of strides, which a processor has no fast
        derivative of; batch normalisation is Ioffe & Szegedy 2015, arXiv:1502.03167.
    """
    widths = tuple(widths)
    if len(shape) != 3 or min(shape[1:]) < 2 ** (len(widths) - 1):
        raise ValueError(f"resnet(widths={widths}) needs images [channels, height, width] of "
                         f"{2 ** (len(widths) - 1)} pixels or more a side, got examples of shape {tuple(shape)}")
    if len(widths) < 2 or any(width < 1 for width in widths):
        raise ValueError(f"resnet: widths must be two numbers or more, each 1 or more, got {widths}")
    layers = {"conv0": (widths[0], shape[0], 3)}
    for i, (a, b) in enumerate(pairwise(widths), 1):
        layers |= {f"conv{i}a": (b, a, 3), f"conv{i}b": (b, b, 3), f"short{i}": (b, a, 1)}

    def init(g: torch.Generator) -> Params:
        params: Params = {}
        for name, (outputs, inputs, side) in layers.items():
            fan_out = outputs * side * side
            params[f"{name}.weight"] = torch.randn(outputs, inputs, side, side, generator=g) * math.sqrt(2 / fan_out)
            norm_layer(params, f"{name}.norm", outputs, "batch")
        bound = 1 / math.sqrt(widths[-1])
        params["head.weight"] = (torch.rand(n_classes, widths[-1], generator=g) * 2 - 1) * bound
        params["head.bias"] = (torch.rand(n_classes, generator=g) * 2 - 1) * bound
        return params

    def through(params: Params, x: Tensor, own: Params | None = None) -> Tensor:
        def layer(name: str, x: Tensor) -> Tensor:
            weight = params[f"{name}.weight"]
            x = F.conv2d(x, weight, padding=0 if name == "conv0" else weight.shape[-1] // 2)
            return normalised(params, f"{name}.norm", x, "batch", own)

        x = F.pad(x, (1, 1, 1, 1), "replicate").contiguous(memory_format=torch.channels_last)
        x = F.max_pool2d(layer("conv0", x).relu(), 2)
        for i in range(1, len(widths)):
            x = F.max_pool2d(x, 2) if i > 1 else x
            x = (layer(f"conv{i}b", layer(f"conv{i}a", x).relu()) + layer(f"short{i}", x)).relu()
        return x.float().mean((2, 3)) if x.dtype == torch.bfloat16 else x.mean((2, 3))

    def fresh(params: Params, x: Tensor) -> tuple[Tensor, Params]:
        own: Params = {}
        return through(params, x, own), own

    def apply(params: Params, x: Tensor) -> Tensor:
        return F.linear(through(params, x), params["head.weight"], params["head.bias"])

    still = tuple(f"{name}.norm.{k}" for name in layers for k in ("mean", "var"))
    return Net(init, apply, through, ("head.weight", "head.bias"), fresh=fresh, still=still)
