"""Memories keep what their rule says: worked by hand, against brute force, and by counting over many streams."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import Tensor

from lifelong.learning.memory import RULES, Memory, State, class_balanced, greedy, reservoir, ring

Seen = list[tuple[int, int, float]]  # row, class, rank


def of(rule: str, capacity: int) -> Memory:
    return RULES[rule](capacity, 3)


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
    if rule == "ring":
        return {row for c in range(3) for row, y, _ in [one for one in seen if one[1] == c][-(capacity // 3):]}

    def place(one: tuple[int, int, float]) -> int:
        return sum(c == one[1] and rank > one[2] for _, c, rank in seen)
    balanced = rule == "class-balanced"
    order = sorted(seen, key=lambda one: (place(one) if balanced else 0, -one[2]))
    return {row for row, _, _ in order[:capacity]}


@st.composite
def streams(draw: st.DrawFn) -> Seen:
    n = draw(st.integers(1, 40))
    ranks = draw(st.permutations(range(n)))
    return [(100 + i, draw(st.sampled_from([0, 0, 0, 1, 2])), ranks[i] / n) for i in range(n)]


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
@given(seen=streams(), capacity=st.integers(3, 14), size=st.integers(1, 9))
def test_fed_in_batches_it_keeps_what_it_would_keep_of_the_whole(rule, seen, capacity, size):
    state = fed(of(rule, capacity), seen, size)
    assert kept(state) == best(seen, capacity, rule)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40, deadline=None)
@given(seen=streams(), capacity=st.integers(3, 14), size=st.integers(1, 9))
def test_places_hold_distinct_real_rows_first_and_their_own_classes(rule, seen, capacity, size):
    state = fed(of(rule, capacity), seen, size)
    rows = state["rows"].tolist()
    real = [r for r in rows if r >= 0]
    assert len(rows) == capacity
    assert len(set(real)) == len(real) == len(best(seen, capacity, rule))
    assert rows == real + [-1] * (capacity - len(real))
    classes = {row: c for row, c, _ in seen}
    assert [classes[r] for r in real] == state["y"].tolist()[:len(real)]


@pytest.mark.parametrize("rule", RULES)
def test_pads_alone_leave_it_empty(rule):
    state = fed(of(rule, 3), [], 4)
    memory = of(rule, 3)
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


# Batches of 4 and 7 straddle the capacity: some of a batch fill empty places, the others push out.
@pytest.mark.parametrize(("size", "n_streams"), [(1, 100_000), (4, 20_000), (7, 100_000)])
def test_reservoir_is_uniform(size, n_streams):
    n, capacity = 50, 10
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
    state = fed(of(rule, 8), [(10, 0, 0.5), (11, 1, 0.1), (12, 0, 0.9)], 2)
    assert kept(state) == {10, 11, 12}
    u = torch.rand(30_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    picked = of(rule, 8).pick(state, u)
    counts = torch.bincount(picked, minlength=13)[10:].double()
    assert int(counts.sum()) == 30_000
    assert chi2.sf(float((counts - 10_000).square().sum() / 10_000), 2) > 1e-3


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pick_stays_inside_for_the_largest_number_below_one(rule, dtype):
    state = fed(of(rule, 8), [(10, 0, 0.5), (11, 1, 0.1), (12, 0, 0.9)], 3)
    u = torch.nextafter(torch.ones(1, dtype=dtype), torch.zeros(1, dtype=dtype))
    assert of(rule, 8).pick(state, u).item() == state["rows"][2].item()


def test_slots_are_the_places_that_pick_reads():
    memory = reservoir(5)
    state = fed(memory, [(10, 0, 0.5), (11, 1, 0.1), (12, 0, 0.9)], 3)
    u = torch.rand(50, dtype=torch.float64)
    assert torch.equal(state["rows"][memory.slots(state, u)], memory.pick(state, u))


# ---- rings


def test_a_ring_keeps_the_latest_of_each_class_worked_by_hand():
    # Capacity 5 over 2 classes: two places each, one stays empty. Class 0 arrives as 10 11 | 13 15, class 1 as 12 | 14.
    memory = ring(5, 2)
    state = fed(memory, [(10, 0, 0.9), (11, 0, 0.1), (12, 1, 0.5)], 3)
    assert state["rows"].tolist() == [12, 11, 10, -1, -1]
    state = memory.add(state, torch.tensor([13, -1, 14, 15]), torch.tensor([0, 1, 1, 0]), torch.rand(4).double())
    assert state["rows"].tolist() == [15, 14, 13, 12, -1]
    assert state["y"].tolist()[:4] == [0, 1, 0, 1]


def test_of_many_examples_of_a_class_in_one_batch_a_ring_keeps_the_last():
    seen = [(i, i % 3 == 0, 0.5) for i in range(20)]  # class 1 at 0, 3, ..., 18
    assert kept(fed(ring(6, 3), seen, 20)) == {15, 18, 17, 19}
    assert kept(fed(ring(6, 3), seen, 1)) == {15, 18, 17, 19}


def test_a_ring_does_not_lend_places_and_draws_nothing():
    seen = [(i, 0, i / 50) for i in range(50)]
    assert kept(fed(ring(12, 3), seen, 8)) == {46, 47, 48, 49}
    assert kept(fed(ring(12, 3), [(row, c, 0.5) for row, c, _ in seen], 8)) == {46, 47, 48, 49}


def test_a_ring_needs_a_place_for_every_class():
    with pytest.raises(ValueError, match="10 classes needs a capacity of 10 or more, got 9"):
        ring(9, 10)


# ---- more than rows


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40, deadline=None)
@given(seen=streams(), capacity=st.integers(3, 14), size=st.integers(1, 9))
def test_what_is_kept_beside_the_rows_moves_with_them(rule, seen, capacity, size):
    memory = of(rule, capacity)
    state = memory.empty(mark=torch.full((capacity,), 7), grid=torch.zeros(capacity, 2, 3, dtype=torch.float64))
    plain = memory.empty()
    for a in range(0, len(seen), size):
        part = seen[a:a + size] + [(-1, 1, 0.999)] * (size - len(seen[a:a + size]))
        rows, y, u = (torch.tensor(t) for t in zip(*part, strict=True))
        grid = (rows.double() * 10).view(-1, 1, 1) + torch.arange(6).view(2, 3)
        state = memory.add(state, rows, y, u.double(), mark=rows * 2, grid=grid)
        plain = memory.add(plain, rows, y, u.double())
    assert {"mark", "grid"} | plain.keys() == state.keys()
    assert all(torch.equal(state[k], v) for k, v in plain.items()), "what is kept does not depend on what it carries"
    real = state["rows"] >= 0
    assert torch.equal(state["mark"][real], 2 * state["rows"][real])
    assert torch.equal(state["grid"][real], (state["rows"][real].double() * 10).view(-1, 1, 1)
                       + torch.arange(6).view(2, 3))


# ---- greedy


def scored(memory: Memory, state: State, seen: list[tuple[int, float, float, float]]) -> State:
    """After one batch of (row, score, draw of the place, draw of the trade); the class is the row's last digit."""
    rows, score, where, chance = (torch.tensor(t) for t in zip(*seen, strict=True))
    return memory.add(state, rows, rows.clamp(min=0) % 10, torch.cat([where, chance]).double(), score=score)


def test_greedy_worked_by_hand():
    memory = greedy(3)
    state = scored(memory, memory.empty(), [(10, 1.0, 0, 0), (-1, 0.1, 0, 0), (11, 1.6, 0, 0)])
    assert state["rows"].tolist() == [10, 11, -1], "while there is room anything is kept, but no pad"
    # 12 fills the last place. Scores 1.0 1.6 1.4, sums 1.0 2.6 4.0: 0.25 * 4 = 1.0 draws place 1. Of 13 with score
    # 0.4 the chance is 1.6 / 2 = 0.8.
    first = [(12, 1.4, 0.0, 0.0)]
    for chance, want in ((0.79, [10, 13, 12]), (0.81, [10, 11, 12])):
        assert scored(memory, state, [*first, (13, 0.4, 0.25, chance)])["rows"].tolist() == want
    # 13 lowered the sums to 1.0 1.4 2.8: 0.49 * 2.8 = 1.372 draws place 1 again, 0.51 * 2.8 = 1.428 place 2.
    for where, want in ((0.49, [10, 14, 12]), (0.51, [10, 13, 14])):
        after = scored(memory, state, [*first, (13, 0.4, 0.25, 0.0), (14, 0.2, where, 0.0)])
        assert after["rows"].tolist() == want
        assert after["y"].tolist() == [row % 10 for row in want]
    assert scored(memory, state, [*first, (13, 1.0, 0.25, 0.0)])["rows"].tolist() == [10, 11, 12], "1 is not below 1"


def test_greedy_never_trades_for_a_pad_and_stands_scores_of_zero():
    memory = greedy(2)
    state = scored(memory, memory.empty(), [(10, 0.0, 0, 0), (11, 0.0, 0, 0)])
    assert state["rows"].tolist() == [10, 11]
    for where in (0.0, 0.5, 0.999):
        after = scored(memory, state, [(-1, 0.0, where, 0.0), (12, 0.5, where, 0.0), (13, 0.0, where, 0.0)])
        assert after["rows"].tolist() == [10, 11], "a place of score 0 has no chance to be given away"


def test_greedy_trades_as_often_as_its_formula_says():
    # Scores 0.5 and 1.5, the newcomer 0.75: place 0 is drawn with 1/4 and given with 0.4; place 1 with 3/4 and 2/3.
    n, memory = 20_000, greedy(2)
    state = scored(memory, memory.empty(), [(10, 0.5, 0, 0), (11, 1.5, 0, 0)])
    u = torch.rand(n, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    add = torch.func.vmap(lambda u: memory.add(state, torch.tensor([12]), torch.tensor([0]), u,
                                               score=torch.tensor([0.75]))["rows"])
    rows = add(u)
    for place, p in ((0, 0.1), (1, 0.5)):
        count = int((rows[:, place] == 12).sum())
        assert abs(count - n * p) < 4 * (n * p * (1 - p)) ** 0.5
