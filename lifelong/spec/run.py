"""Runs as data: the spec that identifies a run, its conversion to and from JSON, and the options of runs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from lifelong.spec import bounds, catalogue, expression
from lifelong.spec.evaluation import Evaluation
from lifelong.spec.expression import Term

FORMAT = 2  # incremented whenever the JSON of a run changes


class OptionError(ValueError):
    """An option has an invalid value; the message names the option as in Python.

    Attributes:
        field: the option's name, for example `batch_size`.
        fields: all options that the message names.
    """

    def __init__(self, sentence: str, *names: str) -> None:
        super().__init__(sentence)
        self.field, self.fields = names[0], names


def at_least(low: float, **options: float) -> None:
    """Raises OptionError for an option below `low`."""
    for name, value in options.items():
        _check(name, lambda name=name, value=value: bounds.at_least(low, **{name: value}))


def one_of(name: str, value: str, choices: Iterable[str]) -> str:
    """`value`; raises OptionError if it is not one of `choices`."""
    _check(name, lambda: bounds.one_of(name, value, choices))
    return value


def _check(name: str, check: Any) -> None:
    try:
        check()
    except ValueError as error:
        raise OptionError(str(error), name) from None


@dataclass(frozen=True)
class Options:
    """Options of runs; None stands for the stream's default.

    Attributes:
        seeds: number of seeds, 0..seeds-1.
        epochs: passes over each task's data.
        steps: steps per task, instead of epochs.
        batch_size: examples per step.
        optimizer, model: expressions.
        eval_every: number of steps between additional evaluations inside a task; 0 for none.
        device: 'auto', 'cpu' or 'cuda'.
        dtype: 'float32' or 'float64'; 'bfloat16' is float32 with the network's forward and backward pass in bfloat16.
        data: folder of the raw data.
        save_every: seconds between checkpoints; 0 makes one after every step and every task.
        overlap: whether a start may have been learned on classes that the stream tests on.
        memory: GiB that training may use; None uses 80 % of what is free. Lanes that do not fit are trained in turns.
        augment: random augmentation of training images, an expression, or 'none'.
        evaluate: tasks to evaluate after each task, see `Evaluation`.
        trust: whether Python files that only the file of a start names may be run.

    Raises:
        OptionError: a number is out of range or a name is unknown.
    """

    seeds: int = 5
    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    model: str | None = None
    eval_every: int = 0
    device: str = "auto"
    dtype: str = "float32"
    data: str | None = None
    save_every: float = 30.0
    memory: float | None = None
    overlap: bool = False
    augment: str | None = None
    evaluate: str | None = None
    trust: bool = False

    def __post_init__(self) -> None:
        _check_budget(self)
        at_least(0, save_every=self.save_every)
        if self.memory is not None and not self.memory > 0:
            raise OptionError(f"memory must be above 0, got {self.memory}", "memory")


def _check_budget(asked: Options | Spec) -> None:
    at_least(1, seeds=asked.seeds)
    given = {"epochs": asked.epochs, "steps": asked.steps, "batch_size": asked.batch_size}
    at_least(1, **{name: value for name, value in given.items() if value is not None})
    at_least(0, eval_every=asked.eval_every)
    one_of("dtype", asked.dtype, ("float32", "float64", "bfloat16"))
    _check("evaluate", lambda: Evaluation.parse(asked.evaluate or "all"))
    if asked.epochs is not None and asked.steps is not None:
        raise OptionError("give epochs or steps, not both", "epochs", "steps")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One run as JSON values, which may come from a file, a record, the command line or Python.

    A user gives a stream, a strategy and options; None stands for the stream's default. `prepare` fills in all other
    fields, and then the spec identifies the run: equal specs are the same run.

    Attributes:
        stream, strategy, model, optimizer, augment: expressions, with single values.
        epochs, steps, batch_size, seeds, eval_every, dtype, evaluate: see `Options`.
        overlap: number of test classes that the start was learned on, or 'unknown'. In a spec written by a user, true
            allows such classes.
        boundaries: whether the learner is told where a task ends.
        stream_name: the stream's name with its version.
        stream_options: all options of the stream, with their values.
        data: digest of the stream's examples, units and tasks.
        hyper: all hyper-parameters of `strategy` (one mapping per term), `model` and `optimizer`, with their values.
        start: digest of the weights of a start that was learned before; otherwise the source and recipe of the start.
        code: digest of every user file that the run depends on, by path; version of every bridged package.
        terms_given: terms of a strategy that was given as Python objects, which its expression cannot name.
        tuned: how the hyper-parameters were chosen; it does not identify the run.

    Raises:
        OptionError: a number is out of range or a name is unknown.
    """

    stream: str
    strategy: str
    model: str | None = None
    optimizer: str | None = None
    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    seeds: int = 5
    eval_every: int = 0
    dtype: str = "float32"
    augment: str | None = None
    evaluate: str | None = None
    overlap: bool | int | str | None = None
    boundaries: bool | None = None
    stream_name: str | None = None
    stream_options: Mapping[str, Any] | None = None
    data: str | None = None
    hyper: Mapping[str, Any] | None = None
    start: str | Mapping[str, Any] | None = None
    code: Mapping[str, str] | None = None
    terms_given: tuple[Term, ...] = field(default=(), compare=False, repr=False)
    tuned: Mapping[str, Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _check_budget(self)

    # ---- JSON

    def to_json(self) -> dict[str, Any]:
        """JSON values from which `from_json` makes an equal spec; fields that are None are left out."""
        values = {name: getattr(self, name) for name in _KINDS}
        return {"format": FORMAT} | {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_json(cls, values: object) -> Spec:
        """The spec of JSON values written by `to_json`, a record of format 1 or 2, or a user.

        Raises:
            ValueError: another format, a missing or unknown key, or a value of the wrong type.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"a spec is a JSON object with a stream and a strategy, got a {type(values).__name__}")
        number = values.get("format", FORMAT)
        if number == 1 and type(number) is int:
            values = _of_format_1(values)
        elif number != FORMAT or type(number) is not int:
            raise ValueError(f"a spec of format {number!r} cannot be read by this version of lifelong, which knows "
                             f"formats 1 and {FORMAT}: use a later version")
        own = {name: value for name, value in values.items() if name != "format"}
        for name, value in own.items():
            _check_value(name, value)
        if missing := [name for name in ("stream", "strategy") if name not in own]:
            raise ValueError(f"a spec needs a {missing[0]}, and this one has {', '.join(map(repr, own)) or 'nothing'}")
        return cls(**own)

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that identify the run."""
        return digest(self.to_json())

    # ---- expressions

    @cached_property
    def terms(self) -> list[Term]:
        """The terms of the strategy."""
        return list(self.terms_given) or expression.parse(self.strategy)

    @cached_property
    def model_term(self) -> Term:
        """The term of the model."""
        return expression.parse(self.model or "", "models")[0]

    @cached_property
    def optimizer_term(self) -> Term:
        """The term of the optimizer."""
        return expression.parse(self.optimizer or "", "optimizers")[0]

    @property
    def start_term(self) -> Term | None:
        """The start among the terms that must be learned first; None if there is none."""
        return next((term for term in self.terms if term.learned), None)

    # ---- stacks

    @cached_property
    def reals(self) -> dict[tuple[Any, str], float]:
        """The real-valued hyper-parameters by (place, name), which may differ between the lanes of a stack."""
        return {(place, name): value for place, term in self._places() for name, value in term.resolved().items()
                if catalogue.is_real(term.factory, name) and isinstance(value, float)}

    @cached_property
    def frame(self) -> str:
        """Everything else, as text: specs with equal frames fit into one stack."""
        fixed = [[term.path, term.name, {k: v for k, v in term.resolved().items() if (place, k) not in self.reals}]
                 for place, term in self._places()]
        others = {k: v for k, v in self.to_json().items() if k not in ("strategy", "optimizer", "hyper")}
        return json.dumps([fixed, [id(term.factory) for term in self.terms if not term.findable], others],
                          sort_keys=True, default=str)

    def _places(self) -> list[tuple[Any, Term]]:
        return [*enumerate(self.terms), ("optimizer", self.optimizer_term)]


def digest(spec: Any) -> str:
    """Sixteen hexadecimal digits that identify JSON values, independent of the order of their keys."""
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_TYPES: dict[str, tuple[type, str]] = {"str": (str, "a string"), "int": (int, "an integer"),
                                       "bool": (bool, "true or false"), "Mapping[str, Any]": (dict, "an object"),
                                       "Mapping[str, str]": (dict, "an object"), "None": (type(None), "null")}
# The keys of the JSON, and the allowed types of their values.
_KINDS = {one.name: str(one.type).split(" | ") for one in fields(Spec) if one.compare}


def _check_value(name: object, value: object) -> None:
    """Raises ValueError if a spec has no such key, or the value has a wrong type."""
    if name not in _KINDS:
        near = catalogue.nearest(str(name), _KINDS)
        raise ValueError(f"a spec has no key {name!r}; " + (f"did you mean {near}?" if near
                                                            else f"it has {', '.join(_KINDS)}"))
    kinds = _KINDS[str(name)]
    if not any(isinstance(value, _TYPES[kind][0]) and (kind == "bool" or not isinstance(value, bool))
               for kind in kinds):
        said = " or ".join(_TYPES[kind][1] for kind in kinds if kind != "None")
        raise ValueError(f"{name} of a spec must be {said}, got {json.dumps(value, default=str)}")
    if "Mapping[str, str]" in kinds and isinstance(value, dict) and not all(
            isinstance(one, str) for one in value.values()):
        raise ValueError(f"{name} of a spec must be an object of strings, got {json.dumps(value, default=str)}")


def _of_format_1(values: Mapping[str, Any]) -> dict[str, Any]:
    """A spec of format 1 converted to format 2: the stream's name and options become its expression."""
    own = {name: value for name, value in values.items() if name not in ("format", "sources", "stream")}
    options = own.get("stream_options")
    if not isinstance(options, Mapping) or not isinstance(values.get("stream"), str):
        raise ValueError("a spec of format 1 needs a stream and its stream_options")
    if "file" in options:
        raise ValueError(f"a spec of format 1 does not say which file the stream {values['stream']} comes from, so the "
                         "run cannot be made again from it: name the stream and the strategy anew")
    given = ", ".join(f"{name}={expression.literal(value)}" for name, value in options.items() if name != "tuning")
    return own | {"stream": f"{values['stream']}({given})", "stream_name": values["stream"],
                  "strategy": re.sub(r"\bviews=", "quarter_turns=", str(values.get("strategy"))),
                  "hyper": _renamed(values.get("hyper")), "code": values.get("sources")}


def _renamed(hyper: Any) -> Any:
    """Hyper-parameters of format 1, with `views` of a start renamed to `quarter_turns`."""
    if isinstance(hyper, list):
        return [_renamed(one) for one in hyper]
    if isinstance(hyper, Mapping):
        return {"quarter_turns" if name == "views" and "adapt" in hyper else name: _renamed(value)
                for name, value in hyper.items()}
    return hyper
