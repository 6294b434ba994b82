"""Rehearsal memories: rules that keep a sample of bounded size from a stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

State = dict[str, Tensor]

_NO_CLASS = 2**20  # sorts empty slots behind every real class
_NO_TIME = 2**40  # more examples than any stream has


class Memory(NamedTuple):
    """A rule that decides which examples are remembered.

    The memory itself is a state, a dict of tensors with M slots: `rows` of the pool (-1 in empty slots), their classes
    `y`, and their `rank`. Filled slots come first. The state may keep further tensors with one entry per slot, for
    example the scores of remembered examples: pass them to `empty` with their initial values and to `add` with the
    values of the new examples, under the same names.

    Attributes:
        empty: (name=[M, ...], ...) -> the state of an empty memory.
        add: (state, rows [B], y [B], u [B], name=[B, ...], ...) -> the state after a batch; rows of -1 are padding and
            are never remembered.
        pick: (state, u [R]) -> rows [R], drawn independently and uniformly from the memory; -1 if it is empty.
        slots: (state, u [R]) -> the slots [R] that `pick` reads with the same `u`.
    """

    empty: Callable[..., State]
    add: Callable[..., State]
    pick: Callable[[State, Tensor], Tensor]
    slots: Callable[[State, Tensor], Tensor]

    def stored(self, state: State, u: Tensor, name: str) -> Tensor:
        """What is kept as `name` [R, ...] beside the rows that `pick` draws by the same `u` [R]."""
        return state[name].index_select(0, self.slots(state, u))


def _slots(state: State, u: Tensor) -> Tensor:
    # u * n never rounds up to n: for the largest u below 1 it is n minus more than half a unit in the last place.
    return (u * (state["rows"] >= 0).sum()).long()


def _pick(state: State, u: Tensor) -> Tensor:
    return state["rows"].gather(0, _slots(state, u))


def _seen(state: State, rows: Tensor, y: Tensor, rank: Tensor, more: State) -> State:
    """The state's entries followed by the new ones; padding has rank -1, below every real rank."""
    if rank.shape != rows.shape:
        raise ValueError(f"adding {len(rows)} rows to a memory needs {len(rows)} uniform numbers, got {len(rank)}; "
                         "name them in `draws`, for example draws={'keep': BATCH}, and pass `view.u.keep`")
    real = rows >= 0
    y = torch.where(real, y, 0) if y.dim() == 1 else torch.zeros_like(rows)  # only classes are remembered by
    new = {"rows": rows, "y": y, "rank": torch.where(real, rank, -1.0)}
    new |= {k: torch.where(real.view(-1, *[1] * (v.dim() - 1)), v, 0) for k, v in more.items()}
    return {k: torch.cat([v, new[k]]) for k, v in state.items()}


def _kept(seen: State, indices: Tensor) -> State:
    return {k: v.gather(0, indices) if v.dim() == 1 else v.index_select(0, indices) for k, v in seen.items()}


def _position(group: Tensor) -> Tensor:
    """The position 0, 1, ... of each element within its group; `group` is sorted."""
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
    """A uniform sample of all examples seen: after n examples each is kept with probability min(1, M / n).

    Every example gets an independent uniform rank, and the M largest ranks are kept. This is exact for any batch size,
    whereas most published code draws the slots to replace, which may collide or be off by one.

    Args:
        capacity: M, 1 or more.

    Source: Vitter 1985, "Random sampling with a reservoir", in the formulation with random keys.
    """

    def add(state: State, rows: Tensor, y: Tensor, u: Tensor, **more: Tensor) -> State:
        seen = _seen(state, rows, y, u, more)
        return _kept(seen, seen["rank"].topk(capacity).indices)

    return Memory(_empty(capacity), add, _pick, _slots)


def class_balanced(capacity: int) -> Memory:
    """An equal share of the memory for every class seen, with a uniform sample of its examples.

    The examples of a class are sorted by rank, and the memory takes the first of every class, the second of every
    class, and so on; in the last round the larger ranks win. A class with fewer examples than its share leaves the
    remaining slots to the others.

    Args:
        capacity: number of slots, 1 or more.

    Source: the balanced sampler of GDumb (Prabhu et al. 2020), but with a reservoir within each class, as in CBRS
        (Chrysakis & Moens 2020), instead of its first examples.
    """

    def add(state: State, rows: Tensor, y: Tensor, u: Tensor, **more: Tensor) -> State:
        seen = _seen(state, rows, y, u, more)
        group = torch.where(seen["rank"] >= 0, seen["y"], _NO_CLASS)
        # One key sorts by class and then by decreasing rank: with ranks in [0, 1), or -1 for padding, (1 - rank) / 4
        # is below 1.
        order = (group + (1 - seen["rank"]) / 4).argsort(stable=True)
        rank = seen["rank"].gather(0, order)
        key = torch.where(rank >= 0, _position(group.gather(0, order)) + (1 - rank) / 4, torch.inf)
        return _kept(seen, order.gather(0, key.topk(capacity, largest=False).indices))

    return Memory(_empty(capacity), add, _pick, _slots)


def ring(capacity: int, n_classes: int) -> Memory:
    """The latest `capacity // n_classes` examples of every class; the remaining slots stay empty.

    Within a batch, later positions count as later examples.

    Args:
        capacity: number of slots, at least `n_classes`.
        n_classes: number of classes of the whole stream.

    Raises:
        ValueError: `capacity` is smaller than `n_classes`.

    Source: the ring buffer of Chaudhry et al. 2019, arXiv:1902.10486: one first-in-first-out queue per class.
    """
    share = capacity // n_classes
    if share < 1:
        raise ValueError(f"a ring memory for {n_classes} classes needs a capacity of {n_classes} or more, "
                         f"got {capacity}")

    def add(state: State, rows: Tensor, y: Tensor, u: Tensor, **more: Tensor) -> State:
        # The rank is the time of arrival. The latest example is always kept, so the memory contains the current time.
        now = state["rank"].max() + 1 + torch.arange(len(rows), device=rows.device)
        seen = _seen(state, rows, y, now, more)
        group = torch.where(seen["rank"] >= 0, seen["y"], _NO_CLASS)
        order = (group * _NO_TIME - seen["rank"].long()).argsort(stable=True)
        position = _position(group.gather(0, order))
        best = torch.where(position < share, seen["rank"].gather(0, order), -1.0).topk(capacity)
        kept = _kept(seen, order.gather(0, best.indices))
        return kept | {"rank": best.values, "rows": torch.where(best.values >= 0, kept["rows"], -1)}

    return Memory(_empty(capacity), add, _pick, _slots)


def greedy(capacity: int) -> Memory:
    """A memory that fills up and then prefers examples that are unlike the others; `rank` holds the scores.

    Every example comes with a score c in [0, 2], which is small if the example is unlike the memory. If the memory is
    full and c < 1, a slot i is drawn with probability C_i / sum C, where C are the scores in the memory, and its
    example is replaced with probability C_i / (C_i + c).

    `add` takes the scores as `score` [B] and two uniform numbers per example, u [2 B]: first those that draw the
    slots, then those that decide the replacements.

    Args:
        capacity: number of slots, 1 or more.

    Source: Aljundi et al. 2019, arXiv:1903.08671, the greedy algorithm.
    """

    def add(state: State, rows: Tensor, y: Tensor, u: Tensor, score: Tensor) -> State:
        kept, score = (state["rows"], state["y"], state["rank"]), score.to(state["rank"].dtype)
        slots = torch.arange(capacity, device=rows.device)
        # One example at a time, because each depends on the memory that the previous one left.
        for new in zip(rows.split(1), y.split(1), score.split(1), *(half.split(1) for half in u.chunk(2)), strict=True):
            row, label, c, u_slot, u_replace = new
            total = kept[2].clamp(min=0).cumsum(0)
            drawn = (total <= u_slot * total[-1:]).sum(0, keepdim=True).clamp(max=capacity - 1)
            full, old = kept[2][-1:] >= 0, kept[2].gather(0, drawn)
            slot = torch.where(full, drawn, (kept[2] >= 0).sum(0, keepdim=True))
            keep = (row >= 0) & (~full | ((c < 1) & (u_replace * (old + c) < old)))
            to = keep & (slots == slot)
            kept = (torch.where(to, row, kept[0]), torch.where(to, label, kept[1]), torch.where(to, c, kept[2]))
        return dict(zip(("rows", "y", "rank"), kept, strict=True))

    return Memory(_empty(capacity), add, _pick, _slots)


# The rules that a strategy's hyper-parameter `memory` may name: (capacity, n_classes) -> memory.
RULES: dict[str, Callable[[int, int], Memory]] = {
    "reservoir": lambda capacity, n_classes: reservoir(capacity),
    "class-balanced": lambda capacity, n_classes: class_balanced(capacity),
    "ring": ring,
}
