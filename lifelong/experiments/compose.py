"""Builds a learner from the terms of a sum."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from lifelong.learning.composition import gradient_learner
from lifelong.learning.learner import Initialization, Learner
from lifelong.learning.parts import Part, Sum
from lifelong.spec import expression
from lifelong.spec.expression import Term


def compose(terms: list[Term], context: Mapping[str, Any], optimizer: Any = None,
            hyper: Mapping[tuple[int, str], Any] | None = None) -> Any:
    """The learner of a sum of terms: a `Learner`, or an object with observe, end_task and predict.

    Args:
        terms: at most one start and any number of parts, or one whole learner.
        context: values for the parameters in `CONTEXT`; `net` for gradient learners.
        optimizer: the optimizer of gradient learners.
        hyper: (position, name) -> value that replaces a term's own, for example the number of one lane.

    Raises:
        ValueError: the sum is invalid; the message gives the reason.
    """
    start = context.get("start")
    own: list[dict[str, Any]] = [{} for _ in terms]
    for (position, name), value in (hyper or {}).items():
        own[position][name] = value
    built = [(term, expression.build(term, context, **values)) for term, values in zip(terms, own, strict=True)]
    built = [(term, thing) for term, made in built for thing in (made.terms if isinstance(made, Sum) else (made,))]
    objects = [start if start and isinstance(thing, Initialization) and thing.recipe else thing for _, thing in built]
    terms = [term for term, _ in built]
    for term, thing in zip(terms, objects, strict=True):
        imperative = (hasattr(thing, "observe") or hasattr(thing, "learn_task")) and hasattr(thing, "predict")
        if not isinstance(thing, (Initialization, Learner, Part)) and not imperative:
            raise ValueError(f"{term.name} makes a {type(thing).__name__}: a strategy is a Part, a sum of Parts, a "
                             "Learner, a start, or an object with observe(x, y, task), end_task() and predict(x)")
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
