"""Which rows of the pool are remembered: rules that keep a bounded sample of a stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

State = dict[str, Tensor]

_NO_CLASS = 2**20  # sorts empty places behind every real class


class Memory(NamedTuple):
    """A rule for what to remember; the memory itself is a state of tensors, filled places first.

    Attributes:
        empty: () -> state, with `rows` [M] = -1.
        add: (state, rows [B], y [B], u [B]) -> state after seeing `rows`; -1 pads are never remembered.
        pick: (state, u [R]) -> rows [R], drawn independently and uniformly from the memory; -1 while it is empty.
        slots: (state, u [R]) -> the places [R] that `pick` reads, for parts that remember more than rows.
    """

    empty: Callable[[], State]
    add: Callable[[State, Tensor, Tensor, Tensor], State]
    pick: Callable[[State, Tensor], Tensor]
    slots: Callable[[State, Tensor], Tensor]


def _slots(state: State, u: Tensor) -> Tensor:
    filled = (state["rows"] >= 0).sum()
    # u * filled can round up to `filled` itself.
    return torch.minimum((u * filled).long(), filled - 1).clamp(min=0)


def _pick(state: State, u: Tensor) -> Tensor:
    return state["rows"].gather(0, _slots(state, u))


def _seen(state: State, rows: Tensor, y: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Remembered and new rows together: rows, y and rank; a pad has rank -1, below every real rank."""
    rank, y = torch.where(rows >= 0, u, -1.0), torch.where(rows >= 0, y, 0)
    return torch.cat([state["rows"], rows]), torch.cat([state["y"], y]), torch.cat([state["rank"], rank])


def _kept(rows: Tensor, y: Tensor, rank: Tensor, places: Tensor) -> State:
    return {"rows": rows.gather(0, places), "y": y.gather(0, places), "rank": rank.gather(0, places)}


def _empty(capacity: int) -> Callable[[], State]:
    def empty() -> State:
        return {
            "rows": torch.full((capacity,), -1, dtype=torch.int64),
            "y": torch.zeros(capacity, dtype=torch.int64),
            "rank": torch.full((capacity,), -1.0, dtype=torch.float64),
        }

    return empty


def reservoir(capacity: int) -> Memory:
    """A uniform sample of everything seen: after n examples each is kept with probability min(1, M / n).

    Every example gets an independent uniform rank and the M largest ranks are kept, which is exact for any batch size,
    where most published code draws replacement places that collide or are off by one.

    Source: Vitter 1985, "Random sampling with a reservoir", in the form by random keys.
    """

    def add(state: State, rows: Tensor, y: Tensor, u: Tensor) -> State:
        rows, y, rank = _seen(state, rows, y, u)
        return _kept(rows, y, rank, rank.topk(capacity).indices)

    return Memory(_empty(capacity), add, _pick, _slots)


def class_balanced(capacity: int) -> Memory:
    """An equal share for every class seen, and within a class a uniform sample of its examples.

    Each class's examples stand in the order of their ranks, and the memory is filled place by place: every class's
    first, every class's second, and so on; ties in the last round go to the larger rank. A class with fewer examples
    than its share leaves the rest to the others.

    Source: the balanced sampler of GDumb (Prabhu et al. 2020), with a reservoir inside each class in place of "first
        come", as CBRS (Chrysakis & Moens 2020) does.
    """

    def add(state: State, rows: Tensor, y: Tensor, u: Tensor) -> State:
        rows, y, rank = _seen(state, rows, y, u)
        group = torch.where(rank >= 0, y, _NO_CLASS)
        # One key sorts by class, then by falling rank: ranks lie in [0, 1).
        order = (group + (1 - rank) / 4).argsort(stable=True)
        sorted_group = group.gather(0, order)
        at = torch.arange(len(order), device=rows.device)
        first = torch.cat([at[:1] == 0, sorted_group[1:] != sorted_group[:-1]])
        place = at - torch.where(first, at, 0).cummax(0).values
        rank = rank.gather(0, order)
        key = torch.where(rank >= 0, place + (1 - rank) / 4, torch.inf)
        best = key.topk(capacity, largest=False).indices
        return _kept(rows.gather(0, order), y.gather(0, order), rank, best)

    return Memory(_empty(capacity), add, _pick, _slots)


RULES: dict[str, Callable[[int], Memory]] = {"reservoir": reservoir, "class-balanced": class_balanced}
