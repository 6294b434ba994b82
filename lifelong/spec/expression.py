"""Parses expressions such as `er(capacity=200) + ewc(strength=50)`, and builds their objects."""

from __future__ import annotations

import ast
import difflib
import inspect
import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from lifelong.spec import plugins
from lifelong.spec.catalogue import (
    KINDS,
    _is_sequence,
    catalogue,
    hyper_parameters,
    lookup,
    type_name,
)


@dataclass(frozen=True)
class Term:
    """One call of an expression.

    Attributes:
        name: name as typed, without the file: `er`, or `my_strategy`.
        factory: the function or class that builds the object.
        given: the typed hyper-parameters; lists stay lists.
        path: the file of the factory; None for the catalogue.
    """

    name: str
    factory: Callable[..., Any]
    given: Mapping[str, Any] = field(default_factory=dict)
    path: str | None = None

    @property
    def findable(self) -> bool:
        """Whether the factory can be found again by its name, in the catalogue or in a file."""
        return self.path is not None or "." in self.name or any(
            self.name in catalogue(kind) and catalogue(kind)[self.name].load() is self.factory for kind in KINDS)

    @property
    def learned(self) -> bool:
        """Whether it is a start that must be learned before it is used."""
        return getattr(self.factory, "pretrained", False)

    def resolved(self) -> dict[str, Any]:
        """All hyper-parameters with their values, including defaults."""
        return {k: p.default for k, p in hyper_parameters(self.factory).items()} | dict(self.given)

    def __str__(self) -> str:
        defaults = {k: p.default for k, p in hyper_parameters(self.factory).items()}
        # In the factory's order, so that the order of typing does not change the run.
        args = ", ".join(f"{k}={literal(self.given[k])}" for k, v in defaults.items()
                         if k in self.given and self.given[k] != v)
        where = "" if not self.path else f"{self.path}:" if _PLAIN.fullmatch(self.path) else f"{self.path!r}:"
        return f"{where}{self.name}({args})" if args else f"{where}{self.name}"


def literal(value: Any) -> str:
    """A value as written in an expression; the shortest text that reads back as the same number."""
    if isinstance(value, list):
        return "[" + ", ".join(map(literal, value)) + "]"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else repr(value)


def build(term: Term, context: Mapping[str, Any], **hyper: Any) -> Any:
    """The object of a term.

    Args:
        term: a term with single values, no lists.
        context: values for the parameters in `CONTEXT` that the factory names.
        hyper: values that replace the term's, for example one lane's tensor.

    Raises:
        ValueError: the factory refuses its arguments; the message starts with the term's name.
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


def digests(terms: Iterable[Term]) -> dict[str, str]:
    """The digests of the files that some terms come from and of what they import, by path; see `plugins.digests`."""
    found: dict[str, str] = {}
    for path in sorted({t.path for t in terms if t.path}):
        found |= plugins.digests(path)
    return found


# ---- expressions

# A path with other characters than these is quoted, 'my files/mine.py':name, unless there is such a file.
_PLAIN = re.compile(r"""[^\s+()=,'"][^\s+()=,'"]*\.py""")
_NAME = r"(?P<name{}>[A-Za-z_]\w*)"
# All other quoted text is a value, such as the model of a start, and stays unchanged.
_FILE = re.compile(rf"""(?P<path1>{_PLAIN.pattern}):{_NAME.format(1)}"""
                   rf"""|(?P<path2>'[^']+\.py'|"[^"]+\.py"):{_NAME.format(2)}"""
                   r"""|'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
_QUOTED_TERM = re.compile(rf"""((?:^|\+)\s*)(['"])([^'"]+\.py):{_NAME.format("")}\2""")
_HYPHENS = re.compile(r"^\s*[A-Za-z][\w-]*")


def parse(text: str, kind: str = "strategies") -> list[Term]:
    """The terms of an expression `name(key=literal, ...) + ...`, which is parsed and never evaluated.

    Args:
        text: the expression; names are in the catalogue or, as `./file.py:name`, in a file.
        kind: the part of the catalogue; terms of a strategy may also be starts.

    Raises:
        ValueError: the text is not such an expression, or an argument has the wrong type.
        LookupError: unknown name or hyper-parameter; the message suggests the nearest ones.
    """
    files: list[tuple[str, str]] = []

    def stand_in(match: re.Match[str]) -> str:
        if match["path1"] is None and match["path2"] is None:
            return match[0]
        files.append((match["path1"] or match["path2"][1:-1], match["name1"] or match["name2"]))
        return f"__file{len(files) - 1}__"

    plain = _FILE.sub(stand_in, _QUOTED_TERM.sub(r"\1\2\3\2:\4", _quoted(text)))
    if kind in ("streams", "sources"):
        plain = _HYPHENS.sub(lambda m: m[0].replace("-", "_"), plain)
    try:
        if "\0" in plain:  # ast.parse raises different errors in different Pythons
            raise SyntaxError
        nodes = _summands(ast.parse(plain.strip(), mode="eval").body)
        return [_term(node, files, kind) for node in nodes]
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"cannot read {text!r}: write name(key=value) + name, for example "
                         "\"er(capacity=200) + ewc(strength=50)\"") from None


def _quoted(text: str) -> str:
    """`text` with quotes around the paths of existing files whose characters would otherwise have to be quoted."""
    out, done = "", 0
    for end in re.finditer(r"\.py(?=:[A-Za-z_])", text):
        for start in (done, *(plus.end() for plus in re.finditer(r"\+\s*", text[:end.end()]) if plus.end() > done)):
            path = text[start:end.end()].strip()
            if not _PLAIN.fullmatch(path) and not re.search(r"""['"]$|^['"]""", path) and os.path.isfile(path):
                out, done = f"{out}{text[done:start]}{path!r}", end.end()
                break
    return out + text[done:]


def _summands(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _summands(node.left) + _summands(node.right)
    return [node]


def _term(node: ast.expr, files: list[tuple[str, str]], kind: str) -> Term:
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    name, path = ast.unparse(call.func), ""
    if not isinstance(call.func, ast.Name) and not re.fullmatch(r"\w+\.\w+", name):
        raise SyntaxError
    if match := re.fullmatch(r"__file(\d+)__", name):
        path, name = files[int(match[1])]
    if len({k.arg for k in call.keywords}) < len(call.keywords):
        raise ValueError(f"{name}: {call.keywords[-1].arg} is given twice")
    if call.args or any(k.arg is None for k in call.keywords):
        raise ValueError(f"{name}: write arguments as name=value")
    if path:
        factory = plugins.load_file(path, name)
    elif kind in ("streams", "sources"):
        name = name.replace("_", "-")
        factory = lookup(kind, re.sub(r"-v\d+$", "", name))
    elif kind == "strategies" and name in catalogue("starts"):
        factory = lookup("starts", name)
    else:
        factory = lookup(kind, name)
    return Term(name, factory, {k.arg or "": _value(name, factory, k) for k in call.keywords}, path or None)


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


def _typed(name: str, p: inspect.Parameter, value: Any) -> Any:
    """`value` in the type of the parameter's annotation, or else of its default; ValueError for another type."""
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


def single(text: str, kind: str) -> list[Term]:
    """The terms of an expression of one object of a kind, one term for every combination of listed values.

    Raises:
        ValueError: the expression is a sum; and as in `parse`.
    """
    terms = parse(text, kind)
    if len(terms) > 1:
        raise ValueError(f"{text!r}: one of the {kind} is needed, not a sum")
    return [term for (term,) in settings(terms)]


def settings(terms: list[Term]) -> list[list[Term]]:
    """Every combination of listed values, each as terms with single values."""
    choices = []
    for term in terms:
        keys = list(term.given)
        values = [v if isinstance(v, list) else [v] for v in term.given.values()]
        choices.append([Term(term.name, term.factory, dict(zip(keys, combination, strict=True)), term.path)
                        for combination in itertools.product(*values)])
    return [list(combination) for combination in itertools.product(*choices)]


def written(terms: Iterable[Term]) -> str:
    """The expression of some terms without default values, used as label in figures and tables."""
    return " + ".join(map(str, terms))
