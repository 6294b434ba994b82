"""A learned start as the network of a stream: what of it moves, and the features of what does not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lifelong.data.distort import turned
from lifelong.data.pool import Pool
from lifelong.networks.mlp import mlp
from lifelong.networks.net import Net, Params, shapes
from lifelong.starts.weights import Weights

# ---- in use


def installed(weights: Weights, shape: tuple[int, ...], n_classes: int, scenario: str, *, adapt: str = "all",
              head: str = "auto", length: float = 0.0, power: float = 1.0, views: int = 1,
              device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Net:
    """The network that learning goes on with: its parameters are those that move, never `Net.still`, and nothing else.

    It is applied in training as in answering: batch normalisation by the statistics that the start came with, and
    without dropout.

    Args:
        weights: a learned start.
        shape: of the stream's examples.
        n_classes: output units on the stream.
        scenario: of the stream; a start of several domains keeps its output layer on a domain-incremental stream.
        adapt: 'head', 'ungated' (all but a gate) or 'all': what moves.
        head: 'new' draws the output layer anew, 'zero' has it begin at 0, 'kept' keeps it, 'auto' keeps it where the
            classes can be the same and else draws it anew.
        length: features are scaled to this length; 0: they are as they are.
        power: of features, first, with their sign.
        views: quarter turns of an image whose features, each of length 1, stand side by side; 1: the image's alone.
        device, dtype: of what does not move.

    Raises:
        ValueError: where the start does not fit the stream.
    """
    name, about = weights.about["start"], weights.about
    if tuple(about["shape"]) != tuple(shape):
        raise ValueError(f"{name} was learned on examples of shape {tuple(about['shape'])}, and the stream's are of "
                         f"shape {tuple(shape)}")
    net = weights.net(n_classes)
    same = about["units"] == n_classes
    if head == "kept" and not same:
        raise ValueError(f"{name} has {about['units']} output units and the stream needs {n_classes}: its output layer "
                         "cannot be kept; use head='new'")
    seen = views > 1 or power != 1
    if seen and (adapt != "head" or head == "kept"):
        raise ValueError("power and views are for a new output layer on features that stay as they are: adapt='head', "
                         "head='new'")
    if views > 1 and (len(shape) != 3 or shape[1] != shape[2]):
        raise ValueError(f"views={views} turns square images, and the stream's are of shape {tuple(shape)}")
    kept = head == "kept" or (head == "auto" and about["domains"] > 1 and scenario == "domain" and same and not seen)
    loaded = {k: p.to(device, dtype) for k, p in weights.params.items()}
    needed = shapes(net)
    for k, size in needed.items():
        if k not in net.head and (k not in loaded or loaded[k].shape != size):
            raise ValueError(f"{name} does not fit {about['model']}: {k} should be {size}, and "
                             + (f"is {tuple(loaded[k].shape)}" if k in loaded else "is missing"))
    moving = [k for k in needed if _moves(k, net, adapt)]
    still = {k: loaded[k] for k in needed if k not in moving}
    # The features of every turn, side by side, are as many times as wide.
    new = mlp((views * needed[net.head[0]][1],), n_classes, ()) if views > 1 else None

    def init(g: torch.Generator) -> Params:
        fresh = net.init(g)
        if new:
            fresh |= dict(zip(net.head, new.init(g).values(), strict=True))
        if head == "zero":
            fresh |= {k: torch.zeros_like(fresh[k]) for k in net.head}
        return {k: fresh[k] if k in net.head and not kept else loaded[k].to("cpu").to(fresh[k].dtype) for k in moving}

    def features(params: Params, x: Tensor) -> Tensor:
        if net.features is None:
            raise ValueError(f"{about['model']} does not say what its features are")
        own = [_raised(net.features(still | params, turned(x, quarters)), power) for quarters in range(views)]
        z = torch.cat([F.normalize(one, dim=-1) for one in own], -1) if views > 1 else own[0]
        return length * F.normalize(z, dim=-1) if length else z

    def apply(params: Params, x: Tensor) -> Tensor:
        if not length and not seen:
            return net.apply(still | params, x)
        return F.linear(features(params, x), *((still | params)[k] for k in net.head))

    return net._replace(init=init, apply=apply, features=features if net.features else None,
                        vjp=None if still or length or seen else net.vjp, fresh=None, still=(), train=None, draws=0)


def _raised(z: Tensor, power: float) -> Tensor:
    return z if power == 1 else z.sign() * z.abs()**power


def _moves(name: str, net: Net, adapt: str) -> bool:
    return name not in net.still and {"all": True, "head": name in net.head,
                                      "ungated": not name.startswith("gate")}[adapt]


def only_head(net: Net) -> bool:
    """Whether nothing of an installed network moves but a linear layer on its features."""
    return net.features is not None and set(shapes(net)) == set(net.head)


@torch.no_grad()
def encoded(net: Net, pool: Pool, used: Tensor | None = None, at_once: int = 512) -> Tensor:
    """Features [N, F] of every example of a pool without warps, computed once; of those that are not `used`, zeros."""
    if net.features is None:
        raise ValueError("this network does not say what its features are")
    used = torch.arange(len(pool.y)) if used is None else used
    parts = [net.features({}, pool.fetch(rows)[0]) for rows in used.to(pool.y.device).split(at_once)]
    z = parts[0].new_zeros(len(pool.y), *parts[0].shape[1:])
    return z.index_copy_(0, used.to(z.device), torch.cat(parts))
