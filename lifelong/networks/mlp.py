"""The multi-layer perceptron, with a hand-written derivative."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from lifelong.networks.net import Back, Net, Params, layer


def mlp(shape: tuple[int, ...], n_classes: int, hidden: Sequence[int] = (100, 100)) -> Net:
    """A multi-layer perceptron with ReLU.

    Args:
        shape: shape of one example.
        n_classes: number of output units.
        hidden: width of each hidden layer; () is a linear classifier.
    """
    if any(width < 1 for width in hidden):
        raise ValueError(f"mlp: hidden widths must be 1 or more, got {tuple(hidden)}")
    widths = [math.prod(shape), *hidden]

    def init(g: torch.Generator) -> Params:
        params: Params = {}
        for i, (a, b) in enumerate(pairwise(widths)):
            layer(params, f"hidden{i}", b, (a,), g)
        layer(params, "head", n_classes, (widths[-1],), g)
        return params

    def features(params: Params, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for i in range(len(hidden)):
            x = F.linear(x, params[f"hidden{i}.weight"], params[f"hidden{i}.bias"]).relu()
        return x

    def apply(params: Params, x: Tensor) -> Tensor:
        return F.linear(features(params, x), params["head.weight"], params["head.bias"])

    layers = [(f"{name}.weight", f"{name}.bias") for name in (*(f"hidden{i}" for i in range(len(hidden))), "head")]

    def vjp(params: Params, x: Tensor) -> tuple[Tensor, Back]:
        inputs = [x.flatten(-len(shape))]
        for weight, bias in layers[:-1]:
            inputs.append(_affine(params[weight], params[bias], inputs[-1]).relu_())

        def back(grad: Tensor, names: Collection[str]) -> Params:
            grads: Params = {}
            last = next((i for i, (weight, bias) in enumerate(layers) if weight in names or bias in names), len(layers))
            for i in range(len(layers) - 1, last - 1, -1):
                weight, bias = layers[i]
                if weight in names:
                    # For one example an outer product, because a matrix product takes twice as long.
                    grads[weight] = grad.mT * inputs[i] if grad.shape[-2] == 1 else grad.mT @ inputs[i]
                if bias in names:
                    grads[bias] = grad.sum(-2)
                if i > last:  # the derivative of relu is 1 where its value is above 0
                    grad = torch.ops.aten.threshold_backward(grad @ params[weight], inputs[i], 0)
            return grads

        return _affine(params["head.weight"], params["head.bias"], inputs[-1]), back

    return Net(init, apply, features, ("head.weight", "head.bias"), vjp)


def _affine(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """A dense layer of x [B, F] of one lane, or [L, B, F] of a stack."""
    if x.dim() == 2:
        return F.linear(x, weight, bias)
    return torch.baddbmm(bias.unsqueeze(-2), x, weight.mT)
