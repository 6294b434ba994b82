"""Convolutional networks: the four-layer network of few-shot learning, and those of OML and ANML."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lifelong.networks.net import Gate, Net, Params, classifier, layer
from lifelong.networks.norms import NORMS, norm_layer, normalised
from lifelong.spec.bounds import one_of


def conv4(shape: tuple[int, ...], n_classes: int, width: int = 32, norm: str = "group", down: str = "stride") -> Net:
    """Four 3x3 convolutions that each halve the image, with normalisation and ReLU, then a linear head.

    Group normalisation (one group) keeps no statistics, so an example's scores do not depend on its batch. For batch
    normalisation see `Net.train`.

    Args:
        shape: shape of one example, [channels, height, width].
        n_classes: number of output units.
        width: channels of every layer.
        norm: 'group', 'batch', 'instance' or 'none'.
        down: 'stride' (convolutions of stride 2) or 'pool' (of stride 1, then 2x2 max pooling).

    Source: the stride-2 network of MAML on Omniglot (Finn et al. 2017, arXiv:1703.03400), which has batch
        normalisation and 64 channels; with `down='pool'` the Conv4-64 of ProtoNet (Snell et al. 2017,
        arXiv:1703.05175).
    """
    if len(shape) != 3:
        raise ValueError(f"conv4 needs images [channels, height, width], got examples of shape {tuple(shape)}")
    if width < 1:
        raise ValueError(f"conv4: width must be 1 or more, got {width}")
    one_of("norm", norm, NORMS)
    one_of("down", down, ("stride", "pool"))
    sides = [list(shape[1:])]
    for _ in range(4):
        sides.append([(s - 1) // 2 + 1 if down == "stride" else s // 2 for s in sides[-1]])
    if min(sides[4]) < 1:
        raise ValueError(f"conv4: {shape[1]}x{shape[2]} pixels cannot be halved four times; use down='stride'")
    seen = sides[1:] if down == "stride" else sides[:4]
    if norm == "instance" and any(math.prod(side) == 1 for side in seen):
        raise ValueError(f"conv4: images of {shape[1]}x{shape[2]} pixels shrink to one pixel, of which instance "
                         "normalisation leaves nothing: use norm='group'")

    def init(g: torch.Generator) -> Params:
        params: Params = {}
        for i in range(4):
            layer(params, f"conv{i}", width, (shape[0] if i == 0 else width, 3, 3), g)
            norm_layer(params, f"norm{i}", width, norm)
        layer(params, "head", n_classes, (width * math.prod(sides[4]),), g)
        return params

    def through(params: Params, x: Tensor, own: Params | None = None, real: Tensor | None = None) -> Tensor:
        for i in range(4):
            x = F.conv2d(x, params[f"conv{i}.weight"], params[f"conv{i}.bias"], stride=2 if down == "stride" else 1,
                         padding=1)
            x = normalised(params, f"norm{i}", x, norm, own, real)
            # Pooling before ReLU gives the same result with a quarter of the numbers for ReLU.
            x = (x if down == "stride" else F.max_pool2d(x, 2)).relu()
        return x.flatten(1)

    still = tuple(f"norm{i}.{what}" for i in range(4) for what in ("mean", "var")) if norm == "batch" else ()
    return classifier(init, through, still)

_HEAD = ("head.weight", "head.bias")
# The strides of OML, and strides that also leave 3x3 of images of 28x28.
_STRIDES = ((2, 1, 2, 1, 2, 2), (2, 1, 1, 1, 1, 1))


def _kaiming(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    """Normal numbers with variance 2 / fan in."""
    return torch.randn(shape, generator=g) * math.sqrt(2 / math.prod(shape[1:]))


def _images(name: str, shape: tuple[int, ...], **widths: int) -> None:
    if len(shape) != 3:
        raise ValueError(f"{name} needs images [channels, height, width], got examples of shape {tuple(shape)}")
    for what, width in widths.items():
        if width < 1:
            raise ValueError(f"{name}: {what} must be 1 or more, got {width}")


def oml_net(shape: tuple[int, ...], n_classes: int, width: int = 256) -> Net:
    """Six 3x3 convolutions with ReLU, without padding or normalisation, then a linear head.

    Strides are 2, 1, 2, 1, 2, 2, which reduce 84x84 pixels to 3x3. For images that are too small for these, such as
    28x28, strides are 2, 1, 1, 1, 1, 1, which reduce 28x28 pixels to 3x3.

    Args:
        shape: shape of one example, [channels, height, width].
        n_classes: number of output units.
        width: channels of every layer.

    Source: Javed & White 2019, arXiv:1905.12588, in the authors' later code, which has one linear layer where the
        paper has two; the strides for small images are this project's.
    """
    _images("oml_net", shape, width=width)
    for strides in _STRIDES:
        sides = list(shape[1:])
        for stride in strides:
            sides = [(s - 3) // stride + 1 for s in sides]
        if min(sides) > 0:
            break
    else:
        raise ValueError(f"oml_net needs images of 24x24 pixels or more, got examples of shape {tuple(shape)}")

    def init(g: torch.Generator) -> Params:
        params: Params = {}
        for i in range(6):
            params[f"conv{i}.weight"] = _kaiming((width, shape[0] if i == 0 else width, 3, 3), g)
            params[f"conv{i}.bias"] = torch.zeros(width)
        params["head.weight"] = _kaiming((n_classes, width * sides[0] * sides[1]), g)
        params["head.bias"] = torch.zeros(n_classes)
        return params

    def features(params: Params, x: Tensor) -> Tensor:
        for i, stride in enumerate(strides):
            x = F.conv2d(x, params[f"conv{i}.weight"], params[f"conv{i}.bias"], stride=stride).relu()
        return x.flatten(1)

    def apply(params: Params, x: Tensor) -> Tensor:
        return F.linear(features(params, x), *(params[k] for k in _HEAD))

    return Net(init, apply, features, _HEAD)


def anml_net(shape: tuple[int, ...], n_classes: int, width: int = 256, gate: int = 112) -> Net:
    """A prediction network whose features are multiplied by the output, in (0, 1), of a neuromodulatory network.

    Both have three 3x3 convolutions without padding, with instance normalisation, ReLU, and 2x2 max pooling after the
    first two. Names of the parameters of the neuromodulatory network begin with `gate`.

    Args:
        shape: shape of one example, [channels, height, width]; [1, 28, 28] in the paper.
        n_classes: number of output units.
        width: channels of the prediction network.
        gate: channels of the neuromodulatory network.

    Source: Beaulieu et al. 2020, arXiv:2002.09571. The authors' batch normalisation processes one image at a time,
        which is this instance normalisation. Convolutions have no biases, because the normalisation removes them.
    """
    _images("anml_net", shape, width=width, gate=gate)
    sides = [(((s - 2) // 2 - 2) // 2) - 2 for s in shape[1:]]
    if min(sides) < 1:
        raise ValueError(f"anml_net needs images of 18x18 pixels or more, got examples of shape {tuple(shape)}")
    area = sides[0] * sides[1]

    def init(g: torch.Generator) -> Params:
        params: Params = {}
        for prefix, channels in (("", width), ("gate.", gate)):
            for i in range(3):
                params[f"{prefix}conv{i}.weight"] = _kaiming((channels, shape[0] if i == 0 else channels, 3, 3), g)
                params[f"{prefix}norm{i}.weight"] = torch.ones(channels)
                params[f"{prefix}norm{i}.bias"] = torch.zeros(channels)
        params["gate.out.weight"] = _kaiming((width * area, gate * area), g)
        params["gate.out.bias"] = torch.zeros(width * area)
        params["head.weight"] = _kaiming((n_classes, width * area), g)
        params["head.bias"] = torch.zeros(n_classes)
        return params

    def stack(params: Params, prefix: str, x: Tensor) -> Tensor:
        for i in range(3):
            x = F.conv2d(x, params[f"{prefix}conv{i}.weight"])
            x = F.group_norm(x, x.shape[1], params[f"{prefix}norm{i}.weight"], params[f"{prefix}norm{i}.bias"])
            # Pooling before ReLU gives the same result with a quarter of the numbers for ReLU.
            x = (F.max_pool2d(x, 2) if i < 2 else x).relu()
        return x.flatten(1)

    def mask(params: Params, x: Tensor) -> Tensor:
        return F.linear(stack(params, "gate.", x), params["gate.out.weight"], params["gate.out.bias"]).sigmoid()

    def gated(params: Params, x: Tensor, mask: Tensor) -> Tensor:
        return stack(params, "", x) * mask

    def features(params: Params, x: Tensor) -> Tensor:
        return gated(params, x, mask(params, x))

    def apply(params: Params, x: Tensor) -> Tensor:
        return F.linear(features(params, x), *(params[k] for k in _HEAD))

    return Net(init, apply, features, _HEAD, gate=Gate(mask, gated))
