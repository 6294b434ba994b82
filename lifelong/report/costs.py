"""What a run cost, as far as its record says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from lifelong.store.records import Run

_OTHERS = re.compile(r"\bavalanche\.|\.py:|\b(joint|cumulative)\b")


class Cost(NamedTuple):
    """A kind of cost: its title with its unit, its definition, and what it is of a run; None: not recorded."""

    title: str
    definition: str
    of: Callable[[Run], float | None]


def seconds(run: Run) -> float | None:
    """Seconds a seed: those of the stack that the run was trained in, shared equally by its lanes."""
    whole, lanes = (_number(run, name) for name in ("seconds", "lanes"))
    return float(whole) / float(lanes) if whole and lanes else None


def steps_per_second(run: Run) -> float | None:
    """Steps of all lanes of the stack in a second, evaluation included."""
    steps, each = run.logs.get("steps"), seconds(run)
    return float(steps.sum(-1).mean()) / each if steps is not None and each else None


def megabytes(run: Run) -> float | None:
    """Of one seed's state after its first initialisation: parameters, optimizer and whatever the strategy keeps."""
    size = _number(run, "state_bytes")
    return size / 1e6 if size else None


def stored(run: Run) -> float | None:
    """Examples that may be stored at once: the `capacity` of all terms together; None where a term's is not known, as
    of a strategy of somebody else's, or is no number, as of one that has all tasks' examples at hand."""
    terms = (run.spec.get("hyper") or {}).get("strategy")
    if not isinstance(terms, list) or _OTHERS.search(str(run.spec.get("strategy"))):
        return None
    return float(sum(_capacities(terms)))


def _capacities(terms: list[Any]) -> Iterator[int]:
    for term in terms:
        if isinstance(term, Mapping) and isinstance(term.get("capacity"), int):
            yield term["capacity"]


def _number(run: Run, name: str) -> float | None:
    """A number of the record that is above 0; None where it has none."""
    value = run.about.get(name)
    return float(value) if isinstance(value, int | float) and value > 0 else None


COSTS = (
    Cost("seconds a seed",
         "seconds a seed: by the clock, whatever else the machine did, of the stack trained at once, evaluation "
         "included, shared by its lanes", seconds),
    Cost("steps a second", "steps a second: of all lanes of the stack together, evaluation included", steps_per_second),
    Cost("state (MB)", "state: one seed's parameters, optimizer and whatever the strategy keeps, without the stored "
         "examples themselves, which are kept as their row numbers", megabytes),
    Cost("stored examples", "stored examples: as many as capacity allows", stored),
)
