"""Makes an experiment from expressions: parses them into specs, and checks these before training."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from lifelong.data.stream import Stream
from lifelong.experiments.complete import SHARED, completed
from lifelong.experiments.complete import device as device
from lifelong.experiments.experiment import Experiment
from lifelong.learning.learner import Initialization, Learner
from lifelong.learning.parts import Part, Sum
from lifelong.spec import catalogue, expression, plugins
from lifelong.spec.expression import Term
from lifelong.spec.run import OptionError, Options, Spec

# ---- streams


def make_stream(text: str, options: Options, extra: Mapping[str, Any] | None = None,
                seeds: Sequence[int] | None = None) -> Stream:
    """The stream of an expression such as `split-mnist(tasks=5)`.

    Args:
        text: name and options.
        options: seeds and data folder.
        extra: further options from the command line, by name.
        seeds: the seeds; None uses 0 to `options.seeds` - 1.

    Raises:
        LookupError: unknown stream or option.
        ValueError, FileNotFoundError: raised by the stream.
    """
    return named_stream(text, options, extra, seeds)[1]


def named_stream(text: str, options: Options, extra: Mapping[str, Any] | None = None,
                 seeds: Sequence[int] | None = None) -> tuple[str, Stream]:
    """The expression of a stream, as written by `canonical`, and the stream, see `make_stream`."""
    term = _asked(text, extra)
    stream = expression.build(term, {"seeds": range(options.seeds) if seeds is None else seeds, "data": options.data})
    if not isinstance(stream, Stream):
        raise ValueError(f"{term.name} makes a {type(stream).__name__}, not a Stream")
    if term.path:
        stream = replace(stream, options={**stream.options, "file": plugins.file_digest(term.path)[:10]})
    elif term.name not in (re.sub(r"-v\d+$", "", term.name), stream.name):
        raise LookupError(f"there is no {term.name} here: this version of lifelong has {stream.name}")
    return canonical(text, extra, stream), stream


def canonical(text: str, extra: Mapping[str, Any] | None, stream: Stream) -> str:
    """The expression of `stream` without default options, and with its version if it is in the catalogue."""
    term = _asked(text, extra)
    plain = re.sub(r"-v\d+$", "", term.name)
    versioned = term.path is None and re.fullmatch(re.escape(plain) + r"-v\d+", stream.name)
    return str(replace(term, name=stream.name) if versioned else term)


def _asked(text: str, extra: Mapping[str, Any] | None) -> Term:
    """The term of a stream's expression with the further options `extra`."""
    term = expression.parse(text, "streams")[0]
    known = catalogue.hyper_parameters(term.factory)
    for name in extra or {}:
        if name not in known:
            raise LookupError(f"{term.name} has no option {name!r}; it has {', '.join(known)}")
        if name in term.given and term.given[name] != (extra or {})[name]:
            raise ValueError(f"{name} is given twice: {term.given[name]!r} in {text!r} and {(extra or {})[name]!r} as "
                             "an option")
    term = replace(term, given={**term.given, **(extra or {})})
    for name, value in term.given.items():
        if isinstance(value, list):
            raise ValueError(f"{term.name}: {name} takes one value; run each stream by itself")
    return term


# ---- specs


def prepare(stream: str | Stream, strategies: Sequence[Any], options: Options = Options(),
            extra: Mapping[str, Any] | None = None) -> Experiment:
    """An experiment, after all checks that are possible before training.

    Args:
        stream: an expression, or a Stream made for `options.seeds` seeds.
        strategies: expressions, or Parts, sums of Parts, Learners, classes, and functions that make them.
        options: options of the runs.
        extra: further options of the stream.

    Raises:
        LookupError, ValueError, TypeError, ImportError, OSError: invalid arguments; the message is one sentence.
    """
    text, built = named_stream(stream, options, extra) if isinstance(stream, str) else (stream.name, stream)
    asked = [spec for strategy in strategies for spec in asked_for(text, built, strategy, options)]
    with plugins.trusting_records() if options.trust else nullcontext():
        return completed(built, _told_apart(asked), options, named=isinstance(stream, str))


def asked_for(text: str, stream: Stream, strategy: Any, options: Options) -> list[Spec]:
    """A spec for every combination of the listed values of a strategy, the model and the optimizer."""
    models = expression.single(options.model or stream.defaults.get("model", "mlp"), "models")
    optimizers = expression.single(options.optimizer or stream.defaults.get("optimizer", "sgd"), "optimizers")
    every = expression.settings(_terms(strategy))
    for term in (term for terms in every for term in terms if term.learned and options.model):
        raise OptionError(f"model must be left out, for {term.name} brings its own network; another one is written "
                          f"{term.name}(model=...)", "model")
    same = {name: getattr(options, name) for name in SHARED}
    return [Spec(stream=text, strategy=expression.written(terms), terms_given=tuple(terms), optimizer=str(optimizer),
                 model=None if any(term.learned for term in terms) else str(model),
                 overlap=options.overlap or None, **same)
            for terms in every for model in models for optimizer in optimizers]


def _terms(strategy: Any) -> list[Term]:
    if isinstance(strategy, str):
        return expression.parse(strategy)
    if isinstance(strategy, Sum):
        return [term for summand in strategy.terms for term in _terms(summand)]
    if isinstance(strategy, (Part, Learner, Initialization)):
        return [Term("strategy", lambda: strategy)]
    if callable(strategy):
        catalogue.hyper_parameters(strategy)
        return [Term(strategy.__name__, strategy)]
    raise TypeError(f"a strategy is an expression, a Part, a sum of Parts, a Learner, or a class or a function that "
                    f"makes one; got a "
                    f"{type(strategy).__name__} (of an object that learns, give the class: every seed needs its own)")


def _told_apart(specs: Iterable[Spec]) -> list[Spec]:
    """The same specs, with numbers added to different Python objects of the same name."""
    seen: dict[str, list[Any]] = {}
    found = []
    for spec in specs:
        given = seen.setdefault(spec.strategy, [])
        mine = [term.factory for term in spec.terms]
        if mine not in given:
            given.append(mine)
        number = given.index(mine) + 1
        found.append(replace(spec, strategy=f"{spec.strategy} ({number})") if number > 1 else spec)
    return found
