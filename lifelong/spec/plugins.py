"""Python files of the user: which may be run, how they are loaded, and what identifies their content."""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

_TRUSTED: ContextVar[frozenset[Path] | None] = ContextVar("trusted", default=None)  # None: every file
_RECORDS: ContextVar[bool] = ContextVar("records", default=False)  # whether records may name files, as with --trust
_NAMED: set[Path] = set()  # the files that the user named in this process


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


@contextmanager
def trusting_records() -> Iterator[None]:
    """A context in which start files may name Python files, as with the option --trust."""
    token = _RECORDS.set(True)
    try:
        yield
    finally:
        _RECORDS.reset(token)


def records_trusted() -> bool:
    """Whether this is called inside `trusting_records`."""
    return _RECORDS.get()


@contextmanager
def of_record(trusted: bool) -> Iterator[None]:
    """A context for what a record names: only files that the user named too are run, unless the record is trusted."""
    token = _TRUSTED.set(frozenset(_NAMED) if _TRUSTED.get() is None and not trusted else _TRUSTED.get())
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


class _Loaded(NamedTuple):
    """A file that was run: its module, and the modules of the user that it imported, by name with their digests."""

    module: ModuleType
    imported: dict[str, str]


_LOADED: dict[str, _Loaded] = {}  # by the name of the module, which depends on the file and its content


def load_file(path: str, name: str) -> Callable[..., Any]:
    """The object called `name` in a Python file of the user.

    A file is run once. It is run again if it has changed, or if a module of the user that it imports has changed; such
    modules are then imported again.

    Raises:
        LookupError: the file does not exist or lacks the name.
        Untrusted: the file must not be run, see `trusting`.
        ImportError: running the file failed; the message gives the reason.
    """
    check_trusted(path)
    if _TRUSTED.get() is None:
        _NAMED.add(Path(path).resolve())
    if not Path(path).is_file():
        raise LookupError(f"there is no file {path}")
    module = _module(path)
    found = getattr(module, name, None)
    if not callable(found):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")
                 and getattr(v, "__module__", module.__name__) == module.__name__]
        near = difflib.get_close_matches(name, names, 3, 0.4) or names
        raise LookupError(f"{path} has no {name!r}" + (f"; it has {', '.join(near)}" if near else ""))
    factory: Callable[..., Any] = found
    return factory


def _module(path: str) -> ModuleType:
    file = Path(path)
    # The module name depends on the content, so a changed file is another module. It is compiled here, because Python's
    # loader would use the bytecode of an earlier content of equal size that was written in the same second.
    code = file.read_bytes()
    content = hashlib.sha256(code).hexdigest()
    unique = "lifelong_file_" + hashlib.sha256(f"{file.resolve()}\0{content}".encode()).hexdigest()[:16]
    if unique in sys.modules and unique in _LOADED:
        loaded = _LOADED[unique]
        if all(_now(name) == was for name, was in loaded.imported.items()):
            return loaded.module
        for name in loaded.imported:
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
    spec = importlib.util.spec_from_file_location(unique, file)
    if spec is None or spec.loader is None:
        raise LookupError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module
    from lifelong.surroundings import kept

    try:
        with kept():
            # Without this file's __future__ import, which would turn the annotations into strings.
            exec(compile(code, str(file), "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        del sys.modules[unique]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ImportError(f"{path} does not import: {type(error).__name__}: {error}") from error
    _LOADED[unique] = _Loaded(module, {name: _digest(place) for name, place in _imported(code, "")})
    return module


# ---- what identifies the content of a file


def digests(path: str) -> dict[str, str]:
    """By path the sha256 of a Python file, and of the user's own modules that it imports, directly or not.

    Modules of Python, of installed packages and of lifelong are left out. A file that has not been run has no imported
    modules here.
    """
    found, folder = {path: _digest(Path(path))}, os.path.dirname(path)
    for _, place in _imported(Path(path).read_bytes(), ""):
        beside = os.path.relpath(place, os.path.realpath(folder or "."))
        found[os.path.join(folder, beside)] = _digest(place)
    return found


def file_digest(path: str) -> str:
    """One sha256 for all of `digests`; that of the file itself if it imports no other file of the user."""
    found = digests(path)
    if len(found) == 1:
        return found[path]
    return hashlib.sha256("\0".join(sorted(found.values())).encode()).hexdigest()


def _digest(place: Path) -> str:
    return hashlib.sha256(place.read_bytes()).hexdigest()


def _now(module: str) -> str:
    """The digest of an imported module's file as it is now; empty if there is no such file."""
    place = _place(module)
    return _digest(place) if place else ""


def _imported(code: bytes, package: str, seen: set[str] | None = None) -> list[tuple[str, Path]]:
    """The modules of the user that some code imports, directly or not: their names and files."""
    seen, found = set() if seen is None else seen, []
    for name in sorted(_all_names(code, package) - seen):
        seen.add(name)
        if place := _place(name):
            found.append((name, place))
            inside = name if place.name == "__init__.py" else name.rpartition(".")[0]
            found += _imported(place.read_bytes(), inside, seen)
    return found


@lru_cache(4096)  # a run has many specs, and a file may import a large package
def _all_names(code: bytes, package: str) -> frozenset[str]:
    """The names of all modules that some code may load."""
    try:
        return frozenset(name for node in ast.walk(ast.parse(code)) for name in _names(node, package))
    except (SyntaxError, ValueError):
        return frozenset()


def _names(node: ast.AST, package: str) -> Iterator[str]:
    """The names of modules that an import statement may load."""
    if isinstance(node, ast.Import):
        whole = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[:len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        whole = [base, *(f"{base}.{alias.name}" for alias in node.names)]
    else:
        return
    for name in whole:
        parts = name.split(".")
        yield from (".".join(parts[:i + 1]) for i in range(len(parts)))


_FOREIGN = tuple({os.path.realpath(path) + os.sep for path in (
    *sysconfig.get_paths().values(), *(str(Path(__file__).resolve().parents[2] / name) for name in (
        "lifelong", "strategies", "streams")))})


def _place(name: str) -> Path | None:
    """The file of a loaded module that is the user's own."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py"):
        return None
    place = os.path.realpath(file)
    if place.startswith(_FOREIGN) or "site-packages" in place or "dist-packages" in place:
        return None
    return Path(place) if os.path.isfile(place) else None
