"""Residual networks: one that is sized for small images and a CPU, and the three that are called ResNet-18."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from lifelong.networks.net import Net, Params, classifier
from lifelong.networks.norms import NORMS, norm_layer, normalised
from lifelong.spec.bounds import one_of
from lifelong.vmap import lifted


def resnet(shape: tuple[int, ...], n_classes: int, widths: Sequence[int] = (32, 64, 160, 320)) -> Net:
    """A residual network: a convolution, a block of two convolutions for each further width, and a linear head.

    Convolutions are 3x3 (1x1 in shortcuts), with batch normalisation and ReLU. 2x2 max pooling follows the first
    convolution and separates the blocks. Features are the last block's output, averaged over positions. The image is
    padded by repeating its edge, which continues a plain background.

    Args:
        shape: shape of one example, [channels, height, width].
        n_classes: number of output units.
        widths: channels of the first convolution and of each block, 2 or more numbers.

    Source: He et al. 2016, arXiv:1512.03385, with pooling instead of strides, whose derivative is slow on a CPU; batch
        normalisation is Ioffe & Szegedy 2015, arXiv:1502.03167.
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
        _head(params, n_classes, widths[-1], g)
        return params

    def through(params: Params, x: Tensor, own: Params | None = None, real: Tensor | None = None) -> Tensor:
        def layer(name: str, x: Tensor) -> Tensor:
            weight = params[f"{name}.weight"]
            x = F.conv2d(x, weight, padding=0 if name == "conv0" else weight.shape[-1] // 2)
            return normalised(params, f"{name}.norm", x, "batch", own, real)

        x = F.pad(x, (1, 1, 1, 1), "replicate")
        x = x if lifted() else x.contiguous(memory_format=torch.channels_last)  # vmap supports no other format
        x = F.max_pool2d(layer("conv0", x).relu(), 2)
        for i in range(1, len(widths)):
            x = F.max_pool2d(x, 2) if i > 1 else x
            x = (layer(f"conv{i}b", layer(f"conv{i}a", x).relu()) + layer(f"short{i}", x)).relu()
        # In bfloat16 a mean of many numbers would be rounded at every addition.
        return x.float().mean((2, 3)).to(params["head.weight"].dtype) if x.dtype == torch.bfloat16 else x.mean((2, 3))

    return classifier(init, through, tuple(f"{name}.norm.{k}" for name in layers for k in ("mean", "var")))


def resnet18(shape: tuple[int, ...], n_classes: int, width: int = 20, norm: str = "batch", stem: str = "small",
             pool: int = 4) -> Net:
    """ResNet-18 for small images: a convolution, eight blocks of two, three of which halve the image, a linear head.

    Convolutions are 3x3 without biases, with normalisation and ReLU; a block whose input and output differ in shape
    adds the input through a 1x1 convolution. The arguments give the networks that papers call ResNet-18:

        resnet18                                  the reduced one of GEM: 640 features (2x2 squares of 160 channels)
                                                  for 84x84 and 64x64 pixels, 160 for 32x32
        resnet18(width=64, pool=0)                that of DER on Tiny-ImageNet: 512 features
        resnet18(width=64, pool=0, stem='large')  that of A-GEM and ORTHOG-SUBSPACE on mini-ImageNet: 512 features

    Args:
        shape: shape of one example, [channels, height, width].
        n_classes: number of output units.
        width: channels of the first convolution and the first two blocks; 2, 4 and 8 times as many after each halving.
        norm: 'batch' (see `Net.train`), 'group', 'instance' or 'none'.
        stem: the first convolution, of stride 1: 'small' is 3x3, 'large' is 7x7; no pooling follows it.
        pool: side of the squares of average pooling, which do not overlap; a remainder at the edge is left out. 0
            averages over all positions.

    Source: He et al. 2016, arXiv:1512.03385; reduced in the code of Lopez-Paz & Ranzato 2017, arXiv:1706.08840. Weights
        have torch's default initialisation, as in that code.
    """
    if len(shape) != 3:
        raise ValueError(f"resnet18 needs images [channels, height, width], got examples of shape {tuple(shape)}")
    if width < 1 or pool < 0:
        raise ValueError(f"resnet18: width must be 1 or more and pool 0 or more, got width={width}, pool={pool}")
    one_of("norm", norm, NORMS)
    edge = {"small": 3, "large": 7}[one_of("stem", stem, ("small", "large"))]
    last = [-(-side // 8) for side in shape[1:]]
    if pool > min(last):
        raise ValueError(f"resnet18: images of {shape[1]}x{shape[2]} pixels leave a map of {last[0]}x{last[1]}, which "
                         f"has no square of pool={pool}: use pool=0, the average of all of it")
    if norm == "instance" and math.prod(last) == 1:
        raise ValueError(f"resnet18: images of {shape[1]}x{shape[2]} pixels shrink to one pixel, of which instance "
                         "normalisation leaves nothing: use norm='group'")
    layers = {"conv0": (width, shape[0], edge)}
    widths = [width] + [width * 2**(i // 2) for i in range(8)]
    for i, (a, b) in enumerate(pairwise(widths), 1):
        layers |= {f"conv{i}a": (b, a, 3), f"conv{i}b": (b, b, 3)} | ({f"short{i}": (b, a, 1)} if a != b else {})
    squares = 1 if pool == 0 else math.prod(side // pool for side in last)

    def init(g: torch.Generator) -> Params:
        params: Params = {}
        for name, (outputs, inputs, side) in layers.items():
            bound = 1 / math.sqrt(inputs * side * side)
            params[f"{name}.weight"] = (torch.rand(outputs, inputs, side, side, generator=g) * 2 - 1) * bound
            norm_layer(params, f"{name}.norm", outputs, norm)
        _head(params, n_classes, widths[-1] * squares, g)
        return params

    def through(params: Params, x: Tensor, own: Params | None = None, real: Tensor | None = None) -> Tensor:
        def layer(name: str, x: Tensor, stride: int = 1) -> Tensor:
            weight = params[f"{name}.weight"]
            x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
            return normalised(params, f"{name}.norm", x, norm, own, real)

        x = layer("conv0", x).relu()
        for i in range(1, 9):
            down = f"short{i}" in layers
            straight = layer(f"short{i}", x, 2) if down else x
            x = (layer(f"conv{i}b", layer(f"conv{i}a", x, 2 if down else 1).relu()) + straight).relu()
        return F.avg_pool2d(x, pool).flatten(1) if pool else x.mean((2, 3))

    return classifier(init, through, tuple(f"{name}.norm.{k}" for name in layers for k in ("mean", "var"))
                      if norm == "batch" else ())


def _head(params: Params, n_classes: int, features: int, g: torch.Generator) -> None:
    bound = 1 / math.sqrt(features)
    params["head.weight"] = (torch.rand(n_classes, features, generator=g) * 2 - 1) * bound
    params["head.bias"] = (torch.rand(n_classes, generator=g) * 2 - 1) * bound
