"""Which rows of the pool are remembered: rules that keep a bounded sample of a stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

State = dict[str, Tensor]

_NO_CLASS = 2**20  # sorts empty places behind every real class
_NO_TIME = 2**40  # more examples than any stream has


class Memory(NamedTuple):
    """A rule for what to remember; the memory itself is a state of tensors, filled places first.

    A memory may carry more than rows: tensors with an entry for each place, given to `empty` and, for the new examples,
    to `add` under the same names, are kept in the state beside `rows` and move with them.

    Attributes:
        empty: (name=[M, ...], ...) -> state, with `rows` [M] = -1.
        add: (state, rows [B], y [B], u [B], name=[B, ...], ...) -> state after seeing `rows`; -1 pads are never
            remembered.
        pick: (state, u [R]) -> rows [R], drawn independently and uniformly from the memory; -1 while it is empty.
        slots: (state, u [R]) -> the places [R] that `pick` reads.
    """

    empty: Callable[..., State]
    add: Callable[..., State]
    pick: Callable[[State, Tensor], Tensor]
    slots: Callable[[State, Tensor], Tensor]

    def stored(self, state: State, u: Tensor, name: str) -> Tensor:
        """What is kept as `name` [R, ...] beside the rows that `pick` draws by the same `u` [R]."""
        return state[name].index_select(0, self.slots(state, u))


def _slots(state: State, u: Tensor) -> Tensor:
    # For the largest u below 1, u * n is n less more than half its last digit, which never rounds up to n.
    return (u * (state["rows"] >= 0).sum()).long()


def _pick(state: State, u: Tensor) -> Tensor:
    return state["rows"].gather(0, _slots(state, u))


def _seen(state: State, rows: Tensor, y: Tensor, rank: Tensor, more: State) -> State:
    """What is remembered and what is new, one after the other; a pad has rank -1, below every real rank."""
    if rank.shape != rows.shape:
        raise ValueError(f"remembering {len(rows)} rows takes as many uniform numbers, and got {len(rank)}: have "
                         "`draws` ask for them beside those that `pick` takes, and give each its own part of `view.u`")
    real = rows >= 0
    y = torch.where(real, y, 0) if y.dim() == 1 else torch.zeros_like(rows)  # only classes are remembered by
    new = {"rows": rows, "y": y, "rank": torch.where(real, rank, -1.0)}
    new |= {k: torch.where(real.view(-1, *[1] * (v.dim() - 1)), v, 0) for k, v in more.items()}
    return {k: torch.cat([v, new[k]]) for k, v in state.items()}


def _kept(seen: State, places: Tensor) -> State:
    return {k: v.gather(0, places) if v.dim() == 1 else v.index_select(0, places) for k, v in seen.items()}


def _place(group: Tensor) -> Tensor:
    """Where each one stands in its group, 0, 1, ...; `group` is sorted."""
    at = torch.arange(len(group), device=group.device)
    first = torch.cat([at[:1] == 0, group[1:] != group[:-1]])
    return at - torch.where(first, at, 0).cummax(0).values


def _empty(capacity: int) -> Callable[..., State]:
    def empty(**more: Tensor) -> State:
        return {
            "rows": torch.full((capacity,), -1, dtype=torch.int64),
            "y": torch.zeros(capacity, dtype=torch.int64),
            "rank": torch.full((capacity,), -1.0, dtype=torch.float64),
            **more,
        }

    return empty


def reservoir(capacity: int) -> Memory:
    """A uniform sample of everything seen: after n examples each is kept with probability min(1, M / n).

    Every example gets an independent uniform rank and the M largest ranks are kept, which is exact for any batch size,
    where most published code draws replacement places that collide or are off by one.

    Source: Vitter 1985, "Random sampling with a reservoir", in the form by random keys.
    """

    def add(state: State, rows: Tensor, y: Tensor, u: Tensor, **more: Tensor) -> State:
        seen = _seen(state, rows, y, u, more)
        return _kept(seen, seen["rank"].topk(capacity).indices)

    return Memory(_empty(capacity), add, _pick, _slots)


def class_balanced(capacity: int) -> Memory:
    """An equal share for every class seen, and within a class a uniform sample of its examples.

    Each class's examples stand in the order of their ranks, and the memory is filled place by place: every class's
    first, every class's second, and so on; ties in the last round go to the larger rank. A class with fewer examples
    than its share leaves the rest to the others.

    Source: the balanced sampler of GDumb (Prabhu et al. 2020), with a reservoir inside each class in place of "first
        come", as CBRS (Chrysakis & Moens 2020) does.
    """

    def add(state: State, rows: Tensor, y: Tensor, u: Tensor, **more: Tensor) -> State:
        seen = _seen(state, rows, y, u, more)
        group = torch.where(seen["rank"] >= 0, seen["y"], _NO_CLASS)
        # One key sorts by class, then by falling rank: ranks lie in [0, 1).
        order = (group + (1 - seen["rank"]) / 4).argsort(stable=True)
        rank = seen["rank"].gather(0, order)
        key = torch.where(rank >= 0, _place(group.gather(0, order)) + (1 - rank) / 4, torch.inf)
        return _kept(seen, order.gather(0, key.topk(capacity, largest=False).indices))

    return Memory(_empty(capacity), add, _pick, _slots)


def ring(capacity: int, n_classes: int) -> Memory:
    """The latest examples of every class, `capacity // n_classes` of each; the rest of the capacity stays empty.

    Of two examples in one batch the one that stands behind is the later.

    Raises:
        ValueError: where there is no place for every class.

    Source: the ring buffer of Chaudhry et al. 2019, arXiv:1902.10486, a first-in-first-out queue for each class.
    """
    share = capacity // n_classes
    if share < 1:
        raise ValueError(f"a ring over {n_classes} classes needs a capacity of {n_classes} or more, got {capacity}")

    def add(state: State, rows: Tensor, y: Tensor, u: Tensor, **more: Tensor) -> State:
        # The rank is the time of arrival; the latest of all is always kept, so the clock is in the memory.
        now = state["rank"].max() + 1 + torch.arange(len(rows), device=rows.device)
        seen = _seen(state, rows, y, now, more)
        group = torch.where(seen["rank"] >= 0, seen["y"], _NO_CLASS)
        order = (group * _NO_TIME - seen["rank"].long()).argsort(stable=True)
        place = _place(group.gather(0, order))
        best = torch.where(place < share, seen["rank"].gather(0, order), -1.0).topk(capacity)
        kept = _kept(seen, order.gather(0, best.indices))
        return kept | {"rank": best.values, "rows": torch.where(best.values >= 0, kept["rows"], -1)}

    return Memory(_empty(capacity), add, _pick, _slots)


def greedy(capacity: int) -> Memory:
    """Fills up, then trades what is kept against what is less like the rest; `rank` holds each one's score.

    An example comes with a score c in [0, 2], small where it is unlike the memory. With the memory full and c < 1, one
    place i is drawn with probability C_i / sum C and given to the example with probability C_i / (C_i + c). `add` takes
    the scores as `score` [B] and two numbers an example, u [2 B]: the draws of the places, then those of the trades.

    Source: Aljundi et al. 2019, arXiv:1903.08671, the greedy algorithm.
    """

    def add(state: State, rows: Tensor, y: Tensor, u: Tensor, score: Tensor) -> State:
        kept, score = (state["rows"], state["y"], state["rank"]), score.to(state["rank"].dtype)
        at = torch.arange(capacity, device=rows.device)
        # One after the other: what an example meets depends on those before it.
        for new in zip(rows.split(1), y.split(1), score.split(1), *(half.split(1) for half in u.chunk(2)), strict=True):
            row, label, c, where, chance = new
            total = kept[2].clamp(min=0).cumsum(0)
            drawn = (total <= where * total[-1:]).sum(0, keepdim=True).clamp(max=capacity - 1)
            full, old = kept[2][-1:] >= 0, kept[2].gather(0, drawn)
            place = torch.where(full, drawn, (kept[2] >= 0).sum(0, keepdim=True))
            take = (row >= 0) & (~full | ((c < 1) & (chance * (old + c) < old)))
            here = take & (at == place)
            kept = (torch.where(here, row, kept[0]), torch.where(here, label, kept[1]), torch.where(here, c, kept[2]))
        return dict(zip(("rows", "y", "rank"), kept, strict=True))

    return Memory(_empty(capacity), add, _pick, _slots)


# What a strategy may be asked to remember by: (capacity, n_classes) -> the rule.
RULES: dict[str, Callable[[int, int], Memory]] = {
    "reservoir": lambda capacity, n_classes: reservoir(capacity),
    "class-balanced": lambda capacity, n_classes: class_balanced(capacity),
    "ring": ring,
}
