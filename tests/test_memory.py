"""Memories keep what their rule says: worked by hand, against brute force, and by counting over many streams."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import Tensor

from lifelong.memory import RULES, Memory, State, class_balanced, reservoir

Seen = list[tuple[int, int, float]]  # row, class, rank


def fed(memory: Memory, seen: Seen, size: int) -> State:
    """The state after `seen`, in batches of `size`, the last one padded."""
    state = memory.empty()
    for a in range(0, len(seen), size):
        part = seen[a:a + size] + [(-1, 0, 0.999)] * (size - len(seen[a:a + size]))
        rows, y, u = zip(*part, strict=True)
        state = memory.add(state, torch.tensor(rows), torch.tensor(y), torch.tensor(u, dtype=torch.float64))
    return state


def kept(state: State) -> set[int]:
    return set(state["rows"][state["rows"] >= 0].tolist())


def best(seen: Seen, capacity: int, rule: str) -> set[int]:
    """What the rule keeps of a whole stream, looked at all at once."""
    def place(one: tuple[int, int, float]) -> int:
        return sum(c == one[1] and rank > one[2] for _, c, rank in seen)
    balanced = rule == "class-balanced"
    order = sorted(seen, key=lambda one: (place(one) if balanced else 0, -one[2]))
    return {row for row, _, _ in order[:capacity]}


@st.composite
def streams(draw: st.DrawFn) -> Seen:
    n = draw(st.integers(1, 40))
    ranks = draw(st.permutations(range(n)))
    return [(100 + i, draw(st.sampled_from([0, 0, 0, 1, 2, 7])), ranks[i] / n) for i in range(n)]


def test_reservoir_keeps_the_largest_ranks_worked_by_hand():
    # Ranks .5 .1 | .9 .3: of four rows the two with .9 and .5 stay.
    state = fed(reservoir(2), [(10, 0, 0.5), (11, 1, 0.1), (12, 0, 0.9), (13, 1, 0.3)], 2)
    assert state["rows"].tolist() == [12, 10]
    assert state["y"].tolist() == [0, 0]
    assert state["rank"].tolist() == [0.9, 0.5]


def test_class_balanced_fills_place_by_place_worked_by_hand():
    # Class 0 in rank order: 13, 10, 11; class 1: 12. First places: 13 and 12; second: 10, since class 1 has no other.
    seen = [(10, 0, 0.5), (11, 0, 0.1), (12, 1, 0.2), (13, 0, 0.9)]
    state = fed(class_balanced(3), seen, 4)
    assert kept(state) == {13, 12, 10}
    assert dict(zip(state["rows"].tolist(), state["y"].tolist(), strict=True)) == {13: 0, 12: 1, 10: 0}


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=60, deadline=None)
@given(seen=streams(), capacity=st.integers(1, 12), size=st.integers(1, 9))
def test_fed_in_batches_it_keeps_what_it_would_keep_of_the_whole(rule, seen, capacity, size):
    state = fed(RULES[rule](capacity), seen, size)
    assert kept(state) == best(seen, capacity, rule)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40, deadline=None)
@given(seen=streams(), capacity=st.integers(1, 12), size=st.integers(1, 9))
def test_places_hold_distinct_real_rows_first_and_their_own_classes(rule, seen, capacity, size):
    state = fed(RULES[rule](capacity), seen, size)
    rows = state["rows"].tolist()
    real = [r for r in rows if r >= 0]
    assert len(rows) == capacity
    assert len(set(real)) == len(real) == min(capacity, len(seen))
    assert rows == real + [-1] * (capacity - len(real))
    classes = {row: c for row, c, _ in seen}
    assert [classes[r] for r in real] == state["y"].tolist()[:len(real)]


@pytest.mark.parametrize("rule", RULES)
def test_pads_alone_leave_it_empty(rule):
    state = fed(RULES[rule](3), [], 4)
    memory = RULES[rule](3)
    state = memory.add(state, torch.full((5,), -1), torch.zeros(5, dtype=torch.int64), torch.rand(5).double())
    assert state["rows"].tolist() == [-1, -1, -1]
    assert memory.pick(state, torch.tensor([0.0, 0.5, 0.999], dtype=torch.float64)).tolist() == [-1, -1, -1]


@pytest.mark.parametrize(("counts", "capacity"), [([20, 20, 20], 10), ([20, 20, 20, 20], 4), ([30, 9], 11)])
def test_class_balanced_shares_differ_by_at_most_one_where_all_have_enough(counts, capacity):
    g = torch.Generator().manual_seed(3)
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])[torch.randperm(sum(counts), generator=g)]
    ranks = torch.rand(len(labels), generator=g, dtype=torch.float64)
    seen = list(zip(range(len(labels)), labels.tolist(), ranks.tolist(), strict=True))
    shares = torch.bincount(fed(class_balanced(capacity), seen, 7)["y"], minlength=len(counts))
    assert int(shares.sum()) == capacity
    assert int(shares.max() - shares.min()) <= 1


def test_class_balanced_keeps_all_of_a_small_class():
    seen = [(i, 0, (i * 37 % 50) / 50) for i in range(50)] + [(100, 1, 0.001), (101, 1, 0.002), (102, 2, 0.0)]
    assert {100, 101, 102} <= kept(fed(class_balanced(10), seen, 6))
    assert {100, 101, 102} <= kept(fed(class_balanced(10), seen[::-1], 6))


def many(memory: Memory, y: Tensor, size: int, n_streams: int, seed: int) -> State:
    """`n_streams` memories of one stream, each with ranks of its own, lifted as the engine lifts them."""
    g = torch.Generator().manual_seed(seed)
    add = torch.func.vmap(memory.add, in_dims=(0, None, None, 0))
    state = {k: v.expand(n_streams, -1) for k, v in memory.empty().items()}
    for a in range(0, len(y), size):
        rows = torch.arange(a, a + size)
        rows = torch.where(rows < len(y), rows, -1)
        u = torch.rand(n_streams, size, generator=g, dtype=torch.float64)
        state = add(state, rows, y[rows.clamp(min=0)], u)
    return state


def sampled_evenly(counts: Tensor, n_streams: int, chosen: int) -> bool:
    """Whether counts of samples without replacement of `chosen` from `len(counts)` are uniform: chi-square, p > 1e-3.

    Inclusions have covariance p (1 - p) n / (n - 1) (I - 1 1' / n), so the scaled sum of squares has n - 1 degrees.
    """
    n, p = len(counts), chosen / len(counts)
    statistic = float((counts - n_streams * p).square().sum() / (n_streams * p * (1 - p) * n / (n - 1)))
    return bool(1e-3 < chi2.sf(statistic, n - 1) < 1 - 1e-3)


@pytest.mark.parametrize("size", [1, 7])
def test_reservoir_is_uniform(size):
    n_streams, n, capacity = 20_000, 50, 10
    rows = many(reservoir(capacity), torch.zeros(n, dtype=torch.int64), size, n_streams, 1)["rows"]
    assert int(rows.min()) >= 0
    assert sampled_evenly(torch.bincount(rows.flatten(), minlength=n).double(), n_streams, capacity)


def test_class_balanced_is_uniform_within_each_class():
    n_streams, capacity = 20_000, 8
    y = torch.tensor([0] * 30 + [1] * 12)
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(5))]
    rows = many(class_balanced(capacity), y, 7, n_streams, 2)["rows"]
    counts = torch.bincount(rows.flatten(), minlength=len(y)).double()
    for c in (0, 1):
        assert sampled_evenly(counts[y == c], n_streams, capacity // 2)


@pytest.mark.parametrize("rule", RULES)
def test_pick_is_uniform_over_what_is_kept_and_never_a_pad(rule):
    state = fed(RULES[rule](8), [(10, 0, 0.5), (11, 1, 0.1), (12, 0, 0.9)], 2)
    u = torch.rand(30_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    picked = RULES[rule](8).pick(state, u)
    counts = torch.bincount(picked, minlength=13)[10:].double()
    assert int(counts.sum()) == 30_000
    assert chi2.sf(float((counts - 10_000).square().sum() / 10_000), 2) > 1e-3


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pick_stays_inside_for_the_largest_number_below_one(rule, dtype):
    state = fed(RULES[rule](4), [(10, 0, 0.5), (11, 1, 0.1), (12, 0, 0.9)], 3)
    u = torch.nextafter(torch.ones(1, dtype=dtype), torch.zeros(1, dtype=dtype))
    assert RULES[rule](4).pick(state, u).item() == state["rows"][2].item()


def test_slots_are_the_places_that_pick_reads():
    memory = reservoir(5)
    state = fed(memory, [(10, 0, 0.5), (11, 1, 0.1), (12, 0, 0.9)], 3)
    u = torch.rand(50, dtype=torch.float64)
    assert torch.equal(state["rows"][memory.slots(state, u)], memory.pick(state, u))
