"""Checks whether parts can be summed."""

from __future__ import annotations

from lifelong.learning.learner import AUGMENT, NETWORK
from lifelong.learning.parts import Part
from lifelong.networks.net import Net


def check_sum(net: Net, parts: dict[str, Part]) -> None:
    """Raises ValueError, with the reason, if the parts cannot be summed on this network."""
    _check_names(parts)
    _check_bounds(parts)
    _check_weights(net, parts)


def _check_names(parts: dict[str, Part]) -> None:
    for name in parts:
        if name in ("batch", AUGMENT, NETWORK):
            raise ValueError(f"a part cannot be called {name}, which names something else in every step: give it "
                             "another name")


def _check_bounds(parts: dict[str, Part]) -> None:
    if len({part.data for part in parts.values()} - {"task"}) > 1:
        raise ValueError("a sum can have one bound: joint and cumulative each decide which rows a task trains on")
    for hook, what in (("criterion", "the loss of the batch"), ("predict", "the answer")):
        if len(both := [name for name, part in parts.items() if getattr(part, hook)]) > 1:
            raise ValueError(f"{' and '.join(both)} cannot be summed: each puts its own in place of {what}")


def _check_weights(net: Net, parts: dict[str, Part]) -> None:
    """Refuses sums of a part that has separate weights for each task and one that uses several tasks at once."""
    for one, part in parts.items():
        if not part.weights:
            continue
        if net.still:
            raise ValueError(f"{one} gives every task weights of its own, and batch normalisation has statistics that "
                             "tasks share: use a network with norm='group'")
        for other, mate in parts.items():
            if one != other and mate.weights:
                raise ValueError(f"{one} and {other} cannot be summed: each gives every task weights of its own")
            if one != other and (mate.recall or mate.grads or mate.data != "task"):
                raise ValueError(f"{one} and {other} cannot be summed: {one} gives every task weights of its own, and "
                                 f"{other} looks at other tasks' examples with those of this one")
