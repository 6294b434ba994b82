"""The catalogue: names to factories, and the hyper-parameters that a factory has."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import entry_points
from typing import Any, NamedTuple

KINDS = ("streams", "strategies", "starts", "sources", "models", "optimizers", "augmentations")

# Parameters that the framework provides if a factory names them; all others are hyper-parameters.
CONTEXT = ("net", "shape", "n_classes", "n_tasks", "seed", "seeds", "data", "device", "training", "learned")


def hyper_parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a factory that a user may set, by name; those that the framework provides are left out.

    Raises:
        TypeError: one of them has no default.
    """
    found = {}
    for name, p in inspect.signature(factory).parameters.items():
        if name in CONTEXT or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        if p.default is p.empty:
            raise TypeError(f"{factory.__name__}: hyper-parameter {name!r} needs a default")
        found[name] = p
    return found


def is_real(factory: Callable[..., Any], name: str) -> bool:
    """Whether a hyper-parameter is a real number, which may differ between lanes; False for those of pretraining."""
    if getattr(factory, "pretrained", False):
        return False
    p = hyper_parameters(factory)[name]
    return p.annotation in (float, "float") or (p.annotation is p.empty and isinstance(p.default, float))


# ---- the catalogue


class Bridge(NamedTuple):
    """The factories of another framework, under names such as `avalanche.GEM`; an entry point of `lifelong.bridges`.

    Attributes:
        factory: (kind, name without the prefix) -> factory; LookupError for an unknown name.
        distribution: the installed package whose version is recorded with every run.
    """

    factory: Callable[[str, str], Callable[..., Any]]
    distribution: str


@cache
def catalogue(kind: str) -> dict[str, Any]:
    """Entry points of a kind ('streams', 'strategies', 'starts', 'sources', 'models', ...) by name, not yet loaded."""
    return {e.name: e for e in sorted(entry_points(group=f"lifelong.{kind}"), key=lambda e: e.name)}


def bridge(name: str) -> Bridge:
    """The bridge that a dotted name belongs to; LookupError if no bridge has this prefix."""
    known, prefix = catalogue("bridges"), name.partition(".")[0]
    if prefix not in known:
        raise LookupError(f"there is no framework called {prefix!r} whose {name!r} could be used; known: "
                          f"{', '.join(known)}")
    found: Bridge = known[prefix].load()
    return found


def lookup(kind: str, name: str) -> Callable[..., Any]:
    """The factory called `name`.

    Raises:
        LookupError: unknown name; the message suggests the nearest ones.
    """
    if "." in name:
        return bridge(name).factory(kind, name.partition(".")[2])
    known = catalogue(kind)
    if name not in known:
        if kind == "strategies":
            known = known | catalogue("starts")  # either may be a term of a sum
        near = nearest(name, known)
        elsewhere = [other for other in KINDS if name in catalogue(other)]
        hint = f"did you mean {near}?" if near else f"known: {', '.join(known)}"
        if elsewhere:
            hint = f"it is one of the {elsewhere[0]}"
        raise LookupError(f"there is no {_SINGULAR[kind]} called {name!r}; {hint}")
    factory: Callable[..., Any] = known[name].load()
    return factory


def nearest(name: str, known: Iterable[str]) -> str:
    """The names most similar to `name`, joined by "or"; empty if none is similar."""
    known = list(known)
    return " or ".join(difflib.get_close_matches(name, known, 3, 0.5) or [k for k in known if k.startswith(name)][:3])


_SINGULAR = {"streams": "stream", "strategies": "strategy", "starts": "start", "sources": "source",
             "models": "model", "optimizers": "optimizer", "augmentations": "augmentation"}


def type_name(p: inspect.Parameter) -> str:
    """The type of a parameter in words: its annotation, or else the type of its default."""
    if p.annotation is p.empty:
        return type(p.default).__name__
    if isinstance(p.annotation, type) and not hasattr(p.annotation, "__args__"):
        return p.annotation.__name__
    return str(p.annotation)


def _is_sequence(p: inspect.Parameter) -> bool:
    return any(word in type_name(p) for word in ("Sequence", "tuple", "list"))
