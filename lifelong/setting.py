"""What a run is made of: options, and a strategy, model and optimizer with single values; sums become learners."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any

from lifelong import registry
from lifelong.learner import Initialization, Learner, Part, gradient_learner
from lifelong.registry import Term


@dataclass(frozen=True)
class Options:
    """How runs are made; None stands for the stream's own default.

    Attributes:
        seeds: how many: 0..seeds-1.
        epochs: passes over each task's data.
        steps: steps a task, in place of epochs.
        batch_size: examples a step.
        optimizer, model: expressions.
        eval_every: also measure every this many steps inside a task.
        device: 'auto', 'cpu' or 'cuda'.
        dtype: 'float32' or 'float64'; 'bfloat16' is float32 with the network's forward and backward pass in bfloat16.
        data: folder of the raw data.
        save_every: seconds between checkpoints.
        overlap: whether a start may have been learned on classes that the stream tests on.
        memory: GiB that training may take; None: what is free. Lanes that do not fit together are trained in turn.
        augment: how images are changed at random where they are learned, an expression, or 'none'.
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

    def __post_init__(self) -> None:
        registry.at_least(1, **{"--seeds": self.seeds})
        given = {"--epochs": self.epochs, "--steps": self.steps, "--batch-size": self.batch_size}
        registry.at_least(1, **{name: value for name, value in given.items() if value is not None})
        registry.at_least(0, **{"--eval-every": self.eval_every})
        registry.one_of("--dtype", self.dtype, ("float32", "float64", "bfloat16"))
        registry.at_least(0, **{"--save-every": self.save_every})
        registry.above(0, **{"--memory": 1 if self.memory is None else self.memory})
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give --epochs or --steps, not both")


def compose(terms: list[Term], context: Mapping[str, Any], optimizer: Any = None,
            hyper: Mapping[tuple[int, str], Any] | None = None) -> Any:
    """The learner that a sum of terms stands for: a `Learner`, or an object with observe, end_task and predict.

    Args:
        terms: at most one start and any number of parts, or one whole learner.
        context: values for the parameters in `CONTEXT`; `net` for gradient learners.
        optimizer: for gradient learners.
        hyper: (position, name) -> value in place of a term's own, for example one lane's number.

    Raises:
        ValueError: for a sum that makes no sense, with the reason.
    """
    start = context.get("start")
    own: list[dict[str, Any]] = [{} for _ in terms]
    for (position, name), value in (hyper or {}).items():
        own[position][name] = value
    objects = [registry.build(term, context, **values) for term, values in zip(terms, own, strict=True)]
    objects = [start if start and isinstance(thing, Initialization) and thing.recipe else thing for thing in objects]
    for term, thing in zip(terms, objects, strict=True):
        imperative = (hasattr(thing, "observe") or hasattr(thing, "learn_task")) and hasattr(thing, "predict")
        if not isinstance(thing, (Initialization, Learner, Part)) and not imperative:
            raise ValueError(f"{term.name} makes a {type(thing).__name__}: a strategy is a Part, a Learner, a start, "
                             "or an object with observe(x, y, task), end_task() and predict(x)")
        if len(terms) > 1 and not isinstance(thing, (Part, Initialization)):
            if len(terms) == 2 and start and isinstance(thing, Learner) and "net" in signature(term.factory).parameters:
                return thing  # a whole learner, on the network of a start
            raise ValueError(f"{term.name} is a whole learner with steps of its own: it cannot be added to "
                             f"{', '.join(t.name for t in terms if t is not term)}")
    if not isinstance(objects[0], (Part, Initialization)):
        return objects[0]
    starts = [thing for thing in objects if isinstance(thing, Initialization)]
    if len(starts) > 1:
        raise ValueError("a sum can have one start: learning begins in one place")
    parts: dict[str, Part] = {}
    for i, (term, thing) in enumerate(zip(terms, objects, strict=True)):
        if isinstance(thing, Part):
            twins = sum(earlier.name == term.name for earlier in terms[:i])
            parts[f"{term.name}_{twins + 1}" if twins else term.name] = thing
    return gradient_learner(context["net"], optimizer, parts, starts[0] if starts else None)


@dataclass(frozen=True)
class Setting:
    """One run to be: a strategy, a model and an optimizer, all with single values; and how these were chosen, if so."""

    terms: list[Term]
    model: Term
    optimizer: Term
    spec: Mapping[str, Any]
    tuned: Mapping[str, Any] | None = None

    @cached_property
    def reals(self) -> dict[tuple[Any, str], float]:
        """The real-valued hyper-parameters by (place, name): they may differ between the lanes of a stack."""
        return {(place, name): value for place, term in self._places() for name, value in term.resolved().items()
                if registry.is_real(term.factory, name) and isinstance(value, float)}

    @cached_property
    def frame(self) -> str:
        """Everything else: settings with equal frames fit into one stack."""
        fixed = [[term.path, term.name, {k: v for k, v in term.resolved().items() if (place, k) not in self.reals}]
                 for place, term in self._places()]
        others = {k: v for k, v in self.spec.items() if k not in ("strategy", "optimizer", "hyper")}
        return json.dumps([fixed, others], sort_keys=True, default=str)

    @property
    def start(self) -> str | None:
        """The expression of the start that must be learned first, if there is one."""
        return next((str(term) for term in self.terms if term.learned), None)

    def _places(self) -> list[tuple[Any, Term]]:
        return [*enumerate(self.terms), ("optimizer", self.optimizer)]
