"""Starts that were learned: their files, and the networks that learning goes on with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as packed
from torch import Tensor

from lifelong import registry, store
from lifelong.models import Net, Params, mlp
from lifelong.randomness import generator
from lifelong.stream import Pool
from lifelong.views import turned

FORMAT = 1
ADAPT = ("head", "ungated", "all")
HEADS = ("auto", "new", "zero", "kept")


@dataclass(frozen=True)
class Weights:
    """A learned start.

    Attributes:
        params: by name.
        about: what it was learned from, how, and by which version; JSON values.
    """

    params: Params
    about: Mapping[str, Any]

    def net(self, n_classes: int) -> Net:
        """Its network with `n_classes` output units.

        Raises:
            LookupError: where its network is in a file that is not here.
            ValueError: where that file is no longer what it was.
        """
        term, was = here("model", self.about)[0], self.about.get("sources", {})
        if term.path and term.path in was and registry.file_digest(term.path) != was[term.path]:
            raise ValueError(f"{self.about['start']} was learned with the network in {term.path}, which has changed "
                             "since: put it back as it was, or learn the start anew")
        return network(self.about["model"], tuple(self.about["shape"]), n_classes)


def here(what: str, about: Mapping[str, Any]) -> list[registry.Term]:
    """The terms of the 'model' or the 'strategy' of a start.

    Raises:
        LookupError: where they are in a file that is not here.
    """
    try:
        return registry.parse(str(about[what]), "models" if what == "model" else "strategies")
    except LookupError as error:
        raise LookupError(f"{about['start']} was learned as {about[what]}: {error.args[0]}; paths are from the folder "
                          "that the command is typed in") from None


def network(model: str, shape: tuple[int, ...], n_classes: int) -> Net:
    """The network of an expression; ValueError where it makes something else."""
    terms = registry.parse(model, "models")
    net = registry.build(terms[0], {"shape": shape, "n_classes": n_classes})
    if not isinstance(net, Net):
        raise ValueError(f"{model}: a start needs a Net, and this makes a {type(net).__name__}")
    return net


# ---- files


def save(path: Path, weights: Weights) -> None:
    """Writes a start's file, whole or not at all.

    Raises:
        StoreError: where that cannot be done.
    """
    about = dict(weights.about) | {"format": FORMAT, "sha256": checksum(weights.params)}
    params = {k: p.contiguous() for k, p in weights.params.items()}
    store.write(path, packed(params, {"lifelong": json.dumps(about, allow_nan=False)}))


def load(path: Path) -> Weights:
    """The start in a file.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: where it is no start's, or is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: make it with `lifelong pretrain SOURCE START --out {path}`")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("lifelong", "null"))
            params = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or no start ({error}); move it away and make it anew with `lifelong "
                         "pretrain`") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"{path} holds weights, but not those of a start of this version of lifelong: make it with "
                         "`lifelong pretrain`")
    if about.get("sha256") != checksum(params):
        raise ValueError(f"{path} is damaged (its weights are not those that were written); move it away and make it "
                         "anew with `lifelong pretrain`")
    return Weights(params, about)


def checksum(params: Params) -> str:
    """sha256 of parameters: their names, kinds, shapes and bytes."""
    content = hashlib.sha256()
    for name in sorted(params):
        p = params[name].contiguous()
        content.update(f"{name}{p.dtype}{tuple(p.shape)}".encode())
        content.update(p.flatten().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def begun(net: Net, weights: Weights, known: bool) -> Net:
    """`net` with parameters that begin as those of another start.

    Args:
        known: whether that was learned on the same classes; else the output layer is drawn anew.

    Raises:
        ValueError: where its network is another.
    """
    example = net.init(generator(0, "init"))
    taken = {k: weights.params[k] for k, p in example.items()
             if k in weights.params and weights.params[k].shape == p.shape}
    missing = [k for k in example if k not in taken and k not in net.head]
    if missing:
        raise ValueError(f"learning cannot begin with {weights.about['start']}, which is of {weights.about['model']}: "
                         f"it has no {missing[0]} of shape {tuple(example[missing[0]].shape)}")
    if not known or any(k not in taken for k in net.head):
        taken = {k: p for k, p in taken.items() if k not in net.head}
    return net._replace(init=lambda g: net.init(g) | {k: p.clone() for k, p in taken.items()})


# ---- in use


def installed(weights: Weights, shape: tuple[int, ...], n_classes: int, scenario: str, *, adapt: str = "all",
              head: str = "auto", length: float = 0.0, power: float = 1.0, views: int = 1,
              device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Net:
    """The network that learning goes on with: its parameters are those that move, never `Net.still`, and nothing else.

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
    example = net.init(generator(0, "init"))
    for k, p in example.items():
        if k not in net.head and (k not in loaded or loaded[k].shape != p.shape):
            raise ValueError(f"{name} does not fit {about['model']}: {k} should be {tuple(p.shape)}, and "
                             + (f"is {tuple(loaded[k].shape)}" if k in loaded else "is missing"))
    moving = [k for k in example if _moves(k, net, adapt)]
    still = {k: loaded[k] for k in example if k not in moving}

    def init(g: torch.Generator) -> Params:
        fresh = net.init(g)
        if views > 1:
            wide = mlp((views * fresh[net.head[0]].shape[1],), n_classes, ()).init(g)
            fresh |= dict(zip(net.head, wide.values(), strict=True))
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
                        vjp=None if still or length or seen else net.vjp, fresh=None, still=(), train=None)


def _raised(z: Tensor, power: float) -> Tensor:
    return z if power == 1 else z.sign() * z.abs()**power


def _moves(name: str, net: Net, adapt: str) -> bool:
    return name not in net.still and {"all": True, "head": name in net.head,
                                      "ungated": not name.startswith("gate")}[adapt]


def only_head(net: Net) -> bool:
    """Whether nothing of an installed network moves but a linear layer on its features."""
    return net.features is not None and set(net.init(generator(0, "init"))) == set(net.head)


@torch.no_grad()
def encoded(net: Net, pool: Pool, used: Tensor | None = None, at_once: int = 512) -> Tensor:
    """Features [N, F] of every example of a pool without warps, computed once; of those that are not `used`, zeros."""
    if net.features is None:
        raise ValueError("this network does not say what its features are")
    used = torch.arange(len(pool.y)) if used is None else used
    parts = [net.features({}, pool.fetch(rows)[0]) for rows in used.to(pool.y.device).split(at_once)]
    z = parts[0].new_zeros(len(pool.y), *parts[0].shape[1:])
    return z.index_copy_(0, used.to(z.device), torch.cat(parts))
