"""The costs of a run, from its record: time, speed, size of the state, stored examples."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from lifelong.store.records import Run

_OTHERS = re.compile(r"\bavalanche\.|\.py:|\b(joint|cumulative)\b")


class Cost(NamedTuple):
    """A kind of cost.

    Attributes:
        title: its name with the unit.
        definition: its definition for a reader.
        of: (run) -> its value, or None if it was not recorded.
    """

    title: str
    definition: str
    of: Callable[[Run], float | None]


def seconds(run: Run) -> float | None:
    """Seconds per seed: those of the stack in which the run was trained, divided by its number of lanes."""
    whole, lanes = (_number(run, name) for name in ("seconds", "lanes"))
    return float(whole) / float(lanes) if whole and lanes else None


def steps_per_second(run: Run) -> float | None:
    """Steps per second of all lanes of the stack together, including evaluation."""
    steps, each = run.logs.get("steps"), seconds(run)
    return float(steps.sum(-1).mean()) / each if steps is not None and each else None


def megabytes(run: Run) -> float | None:
    """Size in MB of the initial state of one seed: parameters, optimizer state and the strategy's state."""
    size = _number(run, "state_bytes")
    return size / 1e6 if size else None


def stored(run: Run) -> float | None:
    """The maximum number of stored examples: the sum of the `capacity` of all terms.

    None if the capacity of a term is unknown, as for strategies from files and Avalanche, or if a strategy uses the
    examples of all tasks.
    """
    terms = (run.spec.get("hyper") or {}).get("strategy")
    if not isinstance(terms, list) or _OTHERS.search(str(run.spec.get("strategy"))):
        return None
    return float(sum(_capacities(terms)))


def _capacities(terms: list[Any]) -> Iterator[int]:
    for term in terms:
        if isinstance(term, Mapping) and isinstance(term.get("capacity"), int):
            yield term["capacity"]


def _number(run: Run, name: str) -> float | None:
    """A number of the record if it is above 0, or None."""
    value = run.about.get(name)
    return float(value) if isinstance(value, int | float) and value > 0 else None


COSTS = (
    Cost("seconds per seed",
         "seconds per seed: wall-clock time of the stack in which the run was trained, including evaluation and any "
         "other load on the machine, divided by the number of lanes", seconds),
    Cost("steps per second", "steps per second: of all lanes of the stack together, including evaluation",
         steps_per_second),
    Cost("state (MB)", "state: parameters, optimizer state and strategy state of one seed; stored examples count as "
         "their row numbers", megabytes),
    Cost("stored examples", "stored examples: the maximum by capacity", stored),
)
