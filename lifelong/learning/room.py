"""Estimates of the memory that training takes."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lifelong.learning.lanes import Lanes
from lifelong.learning.learner import State
from lifelong.networks.net import Net, Params
from lifelong.vmap import tree


def state_bytes(lanes: Lanes) -> tuple[int, int]:
    """Bytes of the state of one lane, and of the parameters in it."""
    _, state, params = _of_one(lanes)
    return state, params


def _of_one(lanes: Lanes) -> tuple[State, int, int]:
    """The state of one lane, its bytes, and the bytes of its parameters."""
    one = replace(lanes, at=lanes.at[:1], hyper={k: v[:1] for k, v in lanes.hyper.items()}, stacked=False)
    state, found = one.init(), {"state": 0, "params": 0}

    def add(name: str, leaf: Tensor) -> None:
        found[name] += leaf.numel() * leaf.element_size()

    tree(lambda leaf: add("state", leaf), state)
    tree(lambda leaf: add("params", leaf), state.get("params", {}))
    return state, found["state"], found["params"]


def training_bytes(lanes: Lanes, batch_size: int) -> tuple[int, int]:
    """Estimate of the bytes that one lane takes in training, and the bytes of its parameters.

    The estimate counts the state twice, because a step makes a new one; a gradient and a temporary; the examples of a
    step, in the pool's format and in the network, and the tensors that autograd keeps for them; and as many replayed
    examples.
    """
    one, state, params = _of_one(lanes)
    example = math.prod(lanes.stream.shape) * (9 + 8 * lanes.dtype.itemsize)
    if lanes.net and lanes.net.vjp is None:
        example += _kept_by_autograd(lanes, lanes.net, one["params"])
    return 2 * state + 2 * params + 2 * batch_size * example, params


def _kept_by_autograd(lanes: Lanes, net: Net, params: Params) -> int:
    """Bytes that autograd keeps per example: those of two minus those of one, because it always keeps the weights."""
    sizes = []
    leaves = {k: p.detach().requires_grad_() for k, p in params.items()}
    for n in (1, 2):
        kept: list[int] = []

        def pack(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(tensor.numel() * tensor.element_size())
            return tensor

        x = lanes.pool.real(torch.zeros(n, *lanes.stream.shape, dtype=lanes.stream.x.dtype, device=lanes.device))
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            net.apply(leaves, x)
        sizes.append(sum(kept))
    return sizes[1] - sizes[0]
