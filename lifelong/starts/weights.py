"""Starts that were learned: their files, and the networks that learning goes on with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as packed

from lifelong import store
from lifelong.networks.net import Net, Params, shapes_of
from lifelong.spec import expression, plugins

FORMAT = 2  # of format 1, nothing proves what a file says of itself
ADAPT = ("head", "ungated", "all")
HEADS = ("auto", "new", "zero", "kept")


@dataclass(frozen=True)
class Weights:
    """A learned start.

    Attributes:
        params: by name.
        about: what it was learned from, how, and by which version; JSON values.
        trusted: whether Python files that `about` names may be run though the user did not name them.
    """

    params: Params
    about: Mapping[str, Any]
    trusted: bool = False

    def net(self, n_classes: int) -> Net:
        """Its network with `n_classes` output units.

        Raises:
            LookupError: where its network is in a file that is not here.
            PermissionError: where it is in a file that the user did not name.
            ValueError: where that file is no longer what it was.
        """
        term, was = here("model", self)[0], self.about.get("sources", {})
        now = plugins.digests(term.path) if term.path and term.path in was else {}
        for path in [path for path, digest in now.items() if was.get(path) != digest]:
            raise ValueError(f"{self.about['start']} was learned with the network in {term.path}, and {path} has "
                             "changed since: put it back as it was, or learn the start anew")
        with plugins.of_record(self.trusted):
            return network(self.about["model"], tuple(self.about["shape"]), n_classes)


def here(what: str, weights: Weights) -> list[expression.Term]:
    """The terms of the 'model' or the 'strategy' of a start.

    Raises:
        LookupError: where they are in a file that is not here.
        PermissionError: where they are in a file that the user did not name.
    """
    about = weights.about
    try:
        with plugins.of_record(weights.trusted):
            return expression.parse(str(about[what]), "models" if what == "model" else "strategies")
    except LookupError as error:
        raise LookupError(f"{about['start']} was learned as {about[what]}: {error.args[0]}; paths are from the folder "
                          "that the command is typed in") from None


def network(model: str, shape: tuple[int, ...], n_classes: int) -> Net:
    """The network of an expression; ValueError where it makes something else."""
    terms = expression.parse(model, "models")
    net = expression.build(terms[0], {"shape": shape, "n_classes": n_classes})
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
    about["about_sha256"] = _digest(about)
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
    if not isinstance(about, dict) or about.get("format") not in (1, FORMAT):
        raise ValueError(f"{path} holds weights, but not those of a start of this version of lifelong: make it with "
                         "`lifelong pretrain`")
    if about["format"] == FORMAT and about.pop("about_sha256", None) != _digest(about):
        raise ValueError(f"{path} is damaged (what it says of itself is not what was written); move it away and make "
                         "it anew with `lifelong pretrain`")
    if about.get("sha256") != checksum(params):
        raise ValueError(f"{path} is damaged (its weights are not those that were written); move it away and make it "
                         "anew with `lifelong pretrain`")
    for name, p in params.items():
        if not p.is_floating_point() or not bool(p.isfinite().all()):
            raise ValueError(f"{path}: the parameter {name} is of {p.dtype} or not finite; make the start anew with "
                             "`lifelong pretrain`")
    return Weights(params, about, plugins.records_trusted())


def _digest(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


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
    needed = shapes_of(net)
    taken = {k: weights.params[k] for k, size in needed.items()
             if k in weights.params and weights.params[k].shape == size}
    missing = [k for k in needed if k not in taken and k not in net.head]
    if missing:
        raise ValueError(f"learning cannot begin with {weights.about['start']}, which is of {weights.about['model']}: "
                         f"it has no {missing[0]} of shape {needed[missing[0]]}")
    if not known or any(k not in taken for k in net.head):
        taken = {k: p for k, p in taken.items() if k not in net.head}
    return net._replace(init=lambda g: net.init(g) | {k: p.clone() for k, p in taken.items()})
