"""A learned start as the network of a stream: its trainable parameters, and features of its frozen part."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lifelong.data.pool import Pool
from lifelong.networks.mlp import mlp
from lifelong.networks.net import Net, Params, shapes_of
from lifelong.starts.weights import Weights


def installed(weights: Weights, shape: tuple[int, ...], n_classes: int, scenario: str, *, adapt: str = "all",
              head: str = "auto", length: float = 0.0, power: float = 1.0, quarter_turns: int = 1,
              device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Net:
    """The network of a stream that continues from a start; its parameters are exactly those that are trained.

    Running statistics of batch normalisation (`Net.still`) are always frozen.

    It is applied in training as in answering: batch normalisation by the statistics that the start came with, and
    without dropout.

    Args:
        weights: a learned start.
        shape: shape of the stream's examples.
        n_classes: output units on the stream.
        scenario: scenario of the stream; a start of several domains keeps its output layer on a domain-incremental
            stream.
        adapt: the parameters that are trained: 'head' (the output layer), 'ungated' (all but a gate) or 'all'.
        head: 'new' initialises the output layer at random, 'zero' at 0, and 'kept' keeps it; 'auto' keeps it if the
            classes can be the same and initialises it at random otherwise.
        length: features are scaled to this length; 0 leaves them as they are.
        power: features are first raised to this power, keeping their sign.
        quarter_turns: how many rotations of the image by 90 degrees, 1 to 4, give features; the features of each are
            scaled to length 1 and concatenated. 1 uses the image alone, without this scaling.
        device, dtype: device and type of the frozen parameters.

    Raises:
        ValueError: the start does not fit the stream.
    """
    name, about = weights.about["start"], weights.about
    if tuple(about["shape"]) != tuple(shape):
        raise ValueError(f"{name} was learned on examples of shape {tuple(about['shape'])}, but the stream's examples "
                         f"have shape {tuple(shape)}")
    net = weights.net(n_classes)
    same = about["units"] == n_classes
    if head == "kept" and not same:
        raise ValueError(f"{name} has {about['units']} output units, but the stream needs {n_classes}, so its output "
                         "layer cannot be kept; use head='new'")
    transformed = quarter_turns > 1 or power != 1
    if transformed and (adapt != "head" or head == "kept"):
        raise ValueError("power and quarter_turns need a new output layer on frozen features: use adapt='head' and "
                         "head='new'")
    if quarter_turns > 1 and (len(shape) != 3 or shape[1] != shape[2]):
        raise ValueError(f"quarter_turns={quarter_turns} needs square images, but the stream's examples have shape "
                         f"{tuple(shape)}")
    kept = head == "kept" or (head == "auto" and about["domains"] > 1 and scenario == "domain" and same
                              and not transformed)
    loaded = {k: p.to(device, dtype) for k, p in weights.params.items()}
    shapes = shapes_of(net)
    for k, shape_needed in shapes.items():
        if k not in net.head and (k not in loaded or loaded[k].shape != shape_needed):
            raise ValueError(f"{name} does not fit {about['model']}: {k} should have shape {shape_needed}, but "
                             + (f"has {tuple(loaded[k].shape)}" if k in loaded else "is missing"))
    trained = [k for k in shapes if _trains(k, net, adapt)]
    frozen = {k: loaded[k] for k in shapes if k not in trained}
    # The features of every turn, side by side, are as many times as wide.
    wide = mlp((quarter_turns * shapes[net.head[0]][1],), n_classes, ()) if quarter_turns > 1 else None

    def init(g: torch.Generator) -> Params:
        params = net.init(g)
        if wide:
            params |= dict(zip(net.head, wide.init(g).values(), strict=True))
        if head == "zero":
            params |= {k: torch.zeros_like(params[k]) for k in net.head}
        return {k: params[k] if k in net.head and not kept else loaded[k].to("cpu").to(params[k].dtype)
                for k in trained}

    def features(params: Params, x: Tensor) -> Tensor:
        if net.features is None:
            raise ValueError(f"{about['model']} does not say what its features are")
        turns = [_raised(net.features(frozen | params, torch.rot90(x, quarters, (-2, -1)) if quarters else x), power)
                 for quarters in range(quarter_turns)]
        z = torch.cat([F.normalize(turn, dim=-1) for turn in turns], -1) if quarter_turns > 1 else turns[0]
        return length * F.normalize(z, dim=-1) if length else z

    def apply(params: Params, x: Tensor) -> Tensor:
        if not length and not transformed:
            return net.apply(frozen | params, x)
        return F.linear(features(params, x), *((frozen | params)[k] for k in net.head))

    return net._replace(init=init, apply=apply, features=features if net.features else None,
                        vjp=None if frozen or length or transformed else net.vjp, fresh=None, still=(), train=None,
                        draws=0)


def _raised(z: Tensor, power: float) -> Tensor:
    return z if power == 1 else z.sign() * z.abs()**power


def _trains(name: str, net: Net, adapt: str) -> bool:
    return name not in net.still and {"all": True, "head": name in net.head,
                                      "ungated": not name.startswith("gate")}[adapt]


def only_head(net: Net) -> bool:
    """Whether the only trained parameters of an installed network are a linear layer on its features."""
    return net.features is not None and set(shapes_of(net)) == set(net.head)


@torch.no_grad()
def encoded(net: Net, pool: Pool, used: Tensor | None = None, at_once: int = 512) -> Tensor:
    """Features [N, F] of the examples of a pool without warps, each computed once.

    Args:
        net: an installed network of which only the output layer is trained.
        pool: the examples.
        used: rows whose features are needed; the other rows of the result are 0. None computes all.
        at_once: examples per batch.
    """
    if net.features is None:
        raise ValueError("this network does not say what its features are")
    used = torch.arange(len(pool.y)) if used is None else used
    parts = [net.features({}, pool.fetch(rows)[0]) for rows in used.to(pool.y.device).split(at_once)]
    z = parts[0].new_zeros(len(pool.y), *parts[0].shape[1:])
    return z.index_copy_(0, used.to(z.device), torch.cat(parts))
