"""The catalogue: names to factories, and the hyper-parameters that a factory has."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
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


_TRUSTED: ContextVar[frozenset[Path] | None] = ContextVar("trusted", default=None)  # None: every file


class Untrusted(PermissionError):
    """A record names a Python file that the user did not name."""

    field, fields = "trust", ("trust",)  # the option that the message names


@contextmanager
def trusting(paths: Iterable[str]) -> Iterator[None]:
    """A context in which only the user's Python files at `paths` may be run, whatever a record names."""
    token = _TRUSTED.set(frozenset(Path(path).resolve() for path in paths))
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def check_trusted(path: str) -> None:
    """Raises Untrusted if the Python file at `path` must not be run here, see `trusting`."""
    trusted = _TRUSTED.get()
    if trusted is not None and Path(path).resolve() not in trusted:
        raise Untrusted(f"{path} is named in a record, and no Python file is run because a record names it: read "
                        f"{path}, and use trust if it may be run")


def load_file(path: str, name: str) -> Callable[..., Any]:
    """The object called `name` in a Python file of the user.

    Raises:
        LookupError: the file does not exist or lacks the name.
        Untrusted: the file must not be run, see `trusting`.
        ImportError: running the file failed; the message gives the reason.
    """
    file = Path(path)
    check_trusted(path)
    if not file.is_file():
        raise LookupError(f"there is no file {path}")
    # The module name depends on the content, so a changed file is another module. It is compiled here, because Python's
    # loader would use the bytecode of an earlier content of equal size that was written in the same second.
    code = file.read_bytes()
    content = hashlib.sha256(code).hexdigest()
    unique = "lifelong_file_" + hashlib.sha256(f"{file.resolve()}\0{content}".encode()).hexdigest()[:16]
    if unique not in sys.modules:
        spec = importlib.util.spec_from_file_location(unique, file)
        if spec is None or spec.loader is None:
            raise LookupError(f"{path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[unique] = module
        try:
            # Without this file's __future__ import, which would turn the annotations into strings.
            exec(compile(code, str(file), "exec", dont_inherit=True), module.__dict__)
        except BaseException as error:
            del sys.modules[unique]
            if isinstance(error, KeyboardInterrupt):
                raise
            raise ImportError(f"{path} does not import: {type(error).__name__}: {error}") from error
    found = getattr(sys.modules[unique], name, None)
    if not callable(found):
        names = [n for n, v in vars(sys.modules[unique]).items() if callable(v) and not n.startswith("_")
                 and getattr(v, "__module__", unique) == unique]
        near = difflib.get_close_matches(name, names, 3, 0.4) or names
        raise LookupError(f"{path} has no {name!r}" + (f"; it has {', '.join(near)}" if near else ""))
    factory: Callable[..., Any] = found
    return factory


def file_digest(path: str) -> str:
    """sha256 of a plug-in file; a changed file is another strategy."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def type_name(p: inspect.Parameter) -> str:
    """The type of a parameter in words: its annotation, or else the type of its default."""
    if p.annotation is p.empty:
        return type(p.default).__name__
    if isinstance(p.annotation, type) and not hasattr(p.annotation, "__args__"):
        return p.annotation.__name__
    return str(p.annotation)


def _is_sequence(p: inspect.Parameter) -> bool:
    return any(word in type_name(p) for word in ("Sequence", "tuple", "list"))
