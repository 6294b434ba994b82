"""Checks of hyper-parameters: each raises ValueError with the name that the user typed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


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
    """`value`; raises ValueError if it is not one of `choices`."""
    if value not in (choices := list(choices)):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value
