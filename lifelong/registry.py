"""Names to objects: the catalogue, and expressions such as `er(capacity=200) + ewc(strength=50)`."""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib.util
import inspect
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast

KINDS = ("streams", "strategies", "starts", "sources", "models", "optimizers", "augmentations")

# Filled in by the framework where a factory names them; everything else is a hyper-parameter.
CONTEXT = ("net", "shape", "n_classes", "n_tasks", "seed", "seeds", "data", "device", "training", "learned")

BRIDGE = "avalanche."  # names that begin so are those of Avalanche's own strategies


def at_least(low: float, **values: Any) -> None:
    """Raises ValueError for a number below `low`, named as the user typed it; tensors (lanes) were checked before."""
    for name, value in values.items():
        if isinstance(value, (int, float)) and not value >= low:
            raise ValueError(f"{name} must be {low} or more, got {value}")


def above(low: float, **values: Any) -> None:
    """Raises ValueError for a number not above `low`; tensors (lanes) were checked before."""
    for name, value in values.items():
        if isinstance(value, (int, float)) and not value > low:
            raise ValueError(f"{name} must be above {low}, got {value}")


def at_most(high: float, **values: Any) -> None:
    """Raises ValueError for a number above `high`; tensors (lanes) were checked before."""
    for name, value in values.items():
        if isinstance(value, (int, float)) and not value <= high:
            raise ValueError(f"{name} must be {high} or less, got {value}")


def below(high: float, **values: Any) -> None:
    """Raises ValueError for a number not below `high`; tensors (lanes) were checked before."""
    for name, value in values.items():
        if isinstance(value, (int, float)) and not value < high:
            raise ValueError(f"{name} must be below {high}, got {value}")


def one_of(name: str, value: str, choices: Iterable[str]) -> str:
    """`value`, or ValueError where it is none of `choices`."""
    if value not in (choices := list(choices)):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


@dataclass(frozen=True)
class Term:
    """One call of an expression.

    Attributes:
        name: as typed, without the file: `er`, or `my_strategy`.
        factory: what builds the object.
        given: the hyper-parameters that were typed; lists are kept as lists.
        path: the file it comes from; None: the catalogue.
    """

    name: str
    factory: Callable[..., Any]
    given: Mapping[str, Any] = field(default_factory=dict)
    path: str | None = None

    @property
    def findable(self) -> bool:
        """Whether the name leads back to the factory: it is in the catalogue or in a file."""
        return self.path is not None or self.name.startswith(BRIDGE) or any(
            self.name in catalogue(kind) and catalogue(kind)[self.name].load() is self.factory for kind in KINDS)

    @property
    def learned(self) -> bool:
        """Whether it is a start that must be learned before it is used."""
        return getattr(self.factory, "pretrained", False)

    def resolved(self) -> dict[str, Any]:
        """Every hyper-parameter with its value, defaults filled in."""
        return {k: p.default for k, p in hyper_parameters(self.factory).items()} | dict(self.given)

    def __str__(self) -> str:
        defaults = {k: p.default for k, p in hyper_parameters(self.factory).items()}
        # In the factory's order, so that however it was typed it is one and the same run.
        args = ", ".join(f"{k}={_literal(self.given[k])}" for k, v in defaults.items()
                         if k in self.given and self.given[k] != v)
        where = f"{self.path}:" if self.path else ""
        return f"{where}{self.name}({args})" if args else f"{where}{self.name}"


def _literal(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else repr(value)


def hyper_parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a factory that a user may set, by name; those the framework fills in are left out.

    Raises:
        TypeError: where one of them has no default.
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
    """Whether a hyper-parameter is a real number, and so may differ from lane to lane; never of a start's learning."""
    if getattr(factory, "pretrained", False):
        return False
    p = hyper_parameters(factory)[name]
    return p.annotation in (float, "float") or (p.annotation is p.empty and isinstance(p.default, float))


def build(term: Term, context: Mapping[str, Any], **hyper: Any) -> Any:
    """The object of a term.

    Args:
        term: with single values, no lists.
        context: values for the parameters in `CONTEXT` that the factory names.
        hyper: values that replace the term's, for example one lane's tensor.

    Raises:
        ValueError: with the term's name in front, for whatever the factory refuses.
    """
    named = inspect.signature(term.factory).parameters
    wanted = {k: v for k, v in context.items() if k in named}
    try:
        return term.factory(**wanted, **{**term.given, **hyper})
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(term.name) else f"{term.name}: {text}") from None
    except (LookupError, OSError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if term.path is None:
            raise
        raise ValueError(f"{term.name}: {type(error).__name__}: {error} (in {term.path})") from error


# ---- the catalogue


@cache
def catalogue(kind: str) -> dict[str, Any]:
    """Entry points of a kind ('streams', 'strategies', 'starts', 'sources', 'models', ...) by name, not yet loaded."""
    return {e.name: e for e in sorted(entry_points(group=f"lifelong.{kind}"), key=lambda e: e.name)}


def lookup(kind: str, name: str) -> Callable[..., Any]:
    """The factory called `name`.

    Raises:
        LookupError: for an unknown name, with the nearest ones.
    """
    if kind == "strategies" and name.startswith(BRIDGE):
        bridged: Callable[..., Any] = importlib.import_module("lifelong.avalanche").factory(name.removeprefix(BRIDGE))
        return bridged
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
    """The names most like `name`, joined by "or"; empty where none is."""
    known = list(known)
    return " or ".join(difflib.get_close_matches(name, known, 3, 0.5) or [k for k in known if k.startswith(name)][:3])


_SINGULAR = {"streams": "stream", "strategies": "strategy", "starts": "start", "sources": "source",
             "models": "model", "optimizers": "optimizer", "augmentations": "augmentation"}


def load_file(path: str, name: str) -> Callable[..., Any]:
    """The object called `name` in a Python file of the user's.

    Raises:
        LookupError: where the file does not exist or lacks the name.
        ImportError: where running the file fails, with the reason.
    """
    file = Path(path)
    if not file.is_file():
        raise LookupError(f"there is no file {path}")
    # By content too: a file that was changed is another module. It is compiled here, for Python's own loader would take
    # the bytecode of a former content of equal size that was written in the same second.
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
            # Not with the __future__ of this file, which would make strings of its annotations.
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
    """sha256 of a plug-in file: another content is another strategy."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def digests(terms: Iterable[Term]) -> dict[str, str]:
    """`file_digest` of the files that some terms come from, by path."""
    return {path: file_digest(path) for path in sorted({t.path for t in terms if t.path})}


# ---- expressions

# What stands in quotes is a value, such as the model of a start, and stays as it is.
_FILE = re.compile(r"""(?P<path>[^\s+()=,'"][^\s+()=,]*\.py):(?P<name>[A-Za-z_]\w*)"""
                   r"""|'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
_HYPHENS = re.compile(r"^\s*[A-Za-z][\w-]*")


def parse(text: str, kind: str = "strategies") -> list[Term]:
    """The terms of an expression `name(key=literal, ...) + ...`; it is read, never evaluated.

    Args:
        text: names come from the catalogue or, as `./file.py:name`, from a file.
        kind: which part of the catalogue; a strategy's terms may also be starts.

    Raises:
        ValueError: for text that is no such expression, or an argument of the wrong type.
        LookupError: for an unknown name or hyper-parameter, with the nearest ones.
    """
    files: list[tuple[str, str]] = []

    def stand_in(match: re.Match[str]) -> str:
        if match["path"] is None:
            return match[0]
        files.append((match["path"], match["name"]))
        return f"__file{len(files) - 1}__"

    plain = _FILE.sub(stand_in, text)
    if kind in ("streams", "sources"):
        plain = _HYPHENS.sub(lambda m: m[0].replace("-", "_"), plain)
    try:
        if "\0" in plain:  # of which ast.parse says another error in each Python
            raise SyntaxError
        nodes = _summands(ast.parse(plain.strip(), mode="eval").body)
        return [_term(node, files, kind) for node in nodes]
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"cannot read {text!r}: write name(key=value) + name, for example "
                         "\"er(capacity=200) + ewc(strength=50)\"") from None


def _summands(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _summands(node.left) + _summands(node.right)
    return [node]


def _term(node: ast.expr, files: list[tuple[str, str]], kind: str) -> Term:
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    name, path = ast.unparse(call.func), None
    if not isinstance(call.func, ast.Name) and not re.fullmatch(re.escape(BRIDGE) + r"\w+", name):
        raise SyntaxError
    if len({k.arg for k in call.keywords}) < len(call.keywords):
        raise ValueError(f"{name}: {call.keywords[-1].arg} is given twice")
    if call.args or any(k.arg is None for k in call.keywords):
        raise ValueError(f"{name}: write arguments as name=value")
    if match := re.fullmatch(r"__file(\d+)__", name):
        path, name = files[int(match[1])]
        factory = load_file(path, name)
    elif kind in ("streams", "sources"):
        name = name.replace("_", "-")
        factory = lookup(kind, re.sub(r"-v\d+$", "", name))
    elif kind == "strategies" and name in catalogue("starts"):
        factory = lookup("starts", name)
    else:
        factory = lookup(kind, name)
    return Term(name, factory, {k.arg or "": _value(name, factory, k) for k in call.keywords}, path)


def _value(name: str, factory: Callable[..., Any], keyword: ast.keyword) -> Any:
    known = hyper_parameters(factory)
    key = keyword.arg or ""
    if key not in known:
        near = difflib.get_close_matches(key, known, 2, 0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known) or 'none'}"
        raise LookupError(f"{name} has no hyper-parameter {key!r}; {hint}")
    try:
        value = ast.literal_eval(keyword.value)
    except (ValueError, TypeError, SyntaxError):
        raise ValueError(f"{name}: {key} must be a plain value such as 10, 0.5, 'name' or [1, 10]") from None
    if isinstance(value, list) and _is_sequence(known[key]) and not any(isinstance(v, (list, tuple)) for v in value):
        value = tuple(value)
    if isinstance(value, list):
        if not value:
            raise ValueError(f"{name}: {key} was given an empty list")
        return [_typed(name, known[key], v) for v in value]
    return _typed(name, known[key], value)


_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "int": (int, "an integer"), "float": ((int, float), "a number"), "str": (str, "a string in quotes"),
    "bool": (bool, "True or False"),
}


def type_name(p: inspect.Parameter) -> str:
    """The type of a parameter in words: its annotation, or else the type of its default."""
    if p.annotation is p.empty:
        return type(p.default).__name__
    if isinstance(p.annotation, type) and not hasattr(p.annotation, "__args__"):
        return p.annotation.__name__
    return str(p.annotation)


def _is_sequence(p: inspect.Parameter) -> bool:
    return any(word in type_name(p) for word in ("Sequence", "tuple", "list"))


def _typed(name: str, p: inspect.Parameter, value: Any) -> Any:
    """`value` as the parameter's annotation, or else its default, says."""
    options = [part.strip() for part in type_name(p).split("|")]
    if value is None and ("None" in options or p.default is None):
        return None
    if isinstance(value, (list, tuple)) and _is_sequence(p):
        whole = "int" not in type_name(p) or all(type(v) is int for v in value)
        if not whole:
            raise ValueError(f"{name}: {p.name} must be whole numbers in brackets, got {value!r}")
        return tuple(value)
    if _is_sequence(p):
        raise ValueError(f"{name}: {p.name} must be numbers in brackets such as (100, 100), got {value!r}")
    for option in options:
        kind, _ = _TYPES.get(option, (object, ""))
        if isinstance(value, kind) and (not isinstance(value, bool) or option == "bool" or kind is object):
            if option == "float":
                value = float(cast(float, value))
                if not math.isfinite(value):
                    break
            return value
    said = " or ".join(_TYPES[o][1] for o in options if o in _TYPES)
    raise ValueError(f"{name}: {p.name} must be {said}, got {value!r}")


def settings(terms: list[Term]) -> list[list[Term]]:
    """Every combination of the values in lists, each as terms with single values."""
    choices = []
    for term in terms:
        keys = list(term.given)
        values = [v if isinstance(v, list) else [v] for v in term.given.values()]
        choices.append([Term(term.name, term.factory, dict(zip(keys, combination, strict=True)), term.path)
                        for combination in itertools.product(*values)])
    return [list(combination) for combination in itertools.product(*choices)]


def written(terms: Iterable[Term]) -> str:
    """The expression of some terms, without what is default: the label of a curve and the row of a table."""
    return " + ".join(map(str, terms))
