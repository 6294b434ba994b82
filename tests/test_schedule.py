"""Every step gets its rows and its random numbers from seed and task alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lifelong.experiments.contract import tiny
from lifelong.learning import schedule
from lifelong.learning.lanes import Lanes
from lifelong.learning.learner import Batch, Learner
from lifelong.learning.schedule import Budget, batches, plan, uniforms, whole_task
from lifelong.vmap import tree

SEEDS = [0, 1, 2]  # tasks of 24, 23 and 22 examples


def lanes(seeds: list[int] = SEEDS, stacked: bool = True, boundaries: bool = True, data: str = "task") -> Lanes:
    learner = Learner(lambda seed, pool: {}, lambda state, pool, batch: (state, {}), lambda state, pool, x: x,
                      draws=lambda size: {"part": size + 1, "none": 0}, data=data)
    return Lanes(tiny(seeds, boundaries), seeds, range(len(seeds)), lambda hyper: learner, stacked=stacked)


def real(rows: Tensor) -> list[int]:
    return rows[rows >= 0].tolist()


@pytest.mark.parametrize("batch_size", [1, 5, 24, 100])
@pytest.mark.parametrize("epochs", [1, 3])
def test_every_example_comes_exactly_once_an_epoch(batch_size, epochs):
    stream = tiny(SEEDS)
    todo = plan(stream, SEEDS, 1, "task", Budget(batch_size, epochs))
    for s in range(3):
        own = real(stream.train[s, 1])
        per_epoch = -(-len(own) // batch_size)
        assert int(todo.length[s]) == epochs * per_epoch
        for epoch in range(epochs):
            part = todo.rows[s, epoch * per_epoch * batch_size:(epoch + 1) * per_epoch * batch_size]
            assert sorted(real(part)) == sorted(own)
            assert (part[:len(own)] >= 0).all(), "only the end of an epoch's last batch is padded"
        assert not (todo.rows[s, epochs * per_epoch * batch_size:] >= 0).any()


def test_epochs_are_shuffled_anew_and_differ_by_task_and_seed():
    todo = plan(tiny([0, 3]), [0, 3], 0, "task", Budget(24, 2))
    first, second = todo.rows[:, :24], todo.rows[:, 24:]
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[0], first[1])
    other = plan(tiny([0, 3]), [0, 3], 1, "task", Budget(24, 2)).rows[0, :24]
    assert not torch.equal(first[0] % 40, other % 40)


@pytest.mark.parametrize(("budget", "times"), [(Budget(5, 2), 2), (Budget(1, 1), 1), (Budget(4, 1, 12), 0)])
def test_an_ordered_stream_is_learned_in_its_order(budget, times):
    stream = replace(tiny(SEEDS), ordered=True)
    todo = plan(stream, SEEDS, 1, "task", budget)
    for s in range(3):
        own = real(stream.train[s, 1])
        assert real(todo.rows[s]) == (own * times if times else (own * 3)[:48])
    several = plan(stream, SEEDS, 1, "seen", Budget(5, 1)).rows[0]
    assert real(several) != real(stream.train[0, :2]) and sorted(real(several)) == sorted(real(stream.train[0, :2]))


@pytest.mark.parametrize("steps", [1, 4, 11])
def test_a_budget_of_steps_gives_full_batches_of_one_pass_after_another(steps):
    stream = tiny(SEEDS)
    todo = plan(stream, SEEDS, 2, "task", Budget(5, 7, steps))
    assert todo.length.tolist() == [steps] * 3
    assert todo.rows.shape == (3, steps * 5)
    assert (todo.rows >= 0).all()
    for s in range(3):
        counts = torch.bincount(todo.rows[s] - 80, minlength=40)
        own = torch.tensor(real(stream.train[s, 2])) - 80
        assert int(counts.sum()) == int(counts[own].sum())
        assert int(counts[own].max() - counts[own].min()) <= 1


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("batch_size", [5, 7, 72])
def test_joints_shares_add_up_to_every_row_once_an_epoch(epochs, batch_size):
    stream = tiny(SEEDS)
    shares = [plan(stream, SEEDS, task, "all", Budget(batch_size, epochs)) for task in range(3)]
    for s in range(3):
        everything = real(stream.train[s])
        per_epoch = -(-len(everything) // batch_size)
        lengths = [int(share.length[s]) for share in shares]
        assert sum(lengths) == epochs * per_epoch
        assert max(lengths) - min(lengths) <= 1
        rows = torch.cat([share.rows[s, :n * batch_size] for share, n in zip(shares, lengths, strict=True)])
        for epoch in rows.split(per_epoch * batch_size):
            assert sorted(real(epoch)) == sorted(everything)


def test_joints_shares_of_steps_are_one_long_pass():
    stream = tiny([0])
    shares = [plan(stream, [0], task, "all", Budget(6, 1, 4)) for task in range(3)]
    assert [int(share.length[0]) for share in shares] == [4, 4, 4]
    rows = torch.cat([share.rows[0] for share in shares])
    assert sorted(rows.tolist()) == sorted(real(stream.train[0]))  # 12 steps of 6 are the 72 examples


def test_cumulative_trains_on_all_tasks_so_far():
    stream = tiny(SEEDS)
    for task in range(3):
        todo = plan(stream, SEEDS, task, "seen", Budget(5))
        for s in range(3):
            assert sorted(real(todo.rows[s])) == sorted(real(stream.train[s, :task + 1]))
        assert plan(stream, SEEDS, task, "seen", Budget(5, 1, 4)).length.tolist() == [4] * 3


@pytest.mark.parametrize("data", ["task", "seen", "all"])
@pytest.mark.parametrize("budget", [Budget(5, 2), Budget(5, 1, 6)])
def test_a_seeds_plan_does_not_depend_on_the_other_seeds(data, budget):
    together = plan(tiny(SEEDS), SEEDS, 1, data, budget)
    for s, seed in enumerate(SEEDS):
        alone = plan(tiny([seed]), [seed], 1, data, budget)
        assert int(alone.length[0]) == int(together.length[s])
        assert torch.equal(alone.rows[0], together.rows[s, :alone.rows.shape[1]])


def test_a_seeds_uniforms_depend_on_seed_source_task_and_step_alone():
    many = uniforms([0, 1, 7], 2, {"a": 3, "b": 1}, 0)
    assert torch.equal(many["a"][1], uniforms([1], 2, {"a": 3}, 0)["a"][0])
    others = [uniforms([1], 1, {"a": 3}, 0), uniforms([1], 2, {"a": 3}, schedule.CHUNK), uniforms([2], 2, {"a": 3}, 0)]
    assert not any(torch.equal(many["a"][1], other["a"][0]) for other in others)
    assert not torch.equal(many["a"][1], uniforms([1], 2, {"c": 3}, 0)["c"][0])
    assert 0 <= float(many["a"].min()) and float(many["a"].max()) < 1


def equal(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(
        (a.rows, a.weight, a.task, *a.u.values()), (b.rows, b.weight, b.task, *b.u.values()), strict=True))


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("first", range(9))
def test_batches_from_any_step_are_the_tail_of_batches_from_the_first(first, stacked, monkeypatch):
    monkeypatch.setattr(schedule, "CHUNK", 4)
    stack = lanes(SEEDS if stacked else [1], stacked)
    todo = plan(stack.stream, stack.seeds, 1, "task", Budget(5, 2))
    whole, tail = list(batches(stack, todo, 1, 0)), list(batches(stack, todo, 1, first))
    assert [step for step, _ in whole] == list(range(todo.steps)) == list(range(10))
    assert [step for step, _ in tail] == list(range(first, todo.steps))
    assert all(equal(a, b) for (_, a), (_, b) in zip(whole[first:], tail, strict=True))


def test_batches_hold_the_plan_with_weights_that_sum_to_one_over_real_rows():
    stack = lanes()
    todo = plan(stack.stream, SEEDS, 0, "task", Budget(5, 1))
    for step, batch in batches(stack, todo, 0, 0):
        assert torch.equal(batch.rows, todo.rows[:, step * 5:step * 5 + 5])
        assert batch.u["part"].shape == (3, 6)
        for rows, weight in zip(batch.rows, batch.weight, strict=True):
            assert not weight[rows < 0].any()
            count = int((rows >= 0).sum())
            torch.testing.assert_close(weight[rows >= 0], torch.full((count,), 1 / max(count, 1)))


def test_a_lane_gets_the_batches_of_its_seed_alone():
    stack = replace(lanes(), at=[2, 0, 2])
    todo = plan(stack.stream, SEEDS, 1, "task", Budget(5, 1))
    alone = lanes([2], stacked=False)
    own = plan(alone.stream, [2], 1, "task", Budget(5, 1))
    pairs = list(zip(batches(stack, todo, 1, 0), batches(alone, own, 1, 0), strict=True))
    assert pairs
    for (_, many), (_, one) in pairs:
        for lane in (0, 2):
            assert equal(Batch(*tree(lambda leaf, i=lane: leaf[i], many._asdict()).values()), one)


def test_the_task_is_told_only_where_boundaries_are():
    for told, number in ((True, 2), (False, 0)):
        stack = lanes(boundaries=told)
        _, batch = next(batches(stack, plan(stack.stream, SEEDS, 2, "task", Budget(5)), 2, 0))
        assert batch.task.tolist() == [number] * 3


@pytest.mark.parametrize("most", [None, 8])
def test_the_end_of_a_task_has_its_rows_once_with_a_number_each(most):
    stack = lanes()
    batch = whole_task(stack, 1, most)
    for s in range(3):
        own = stack.stream.train[s, 1][:most]
        assert real(batch.rows[s]) == real(own)
        torch.testing.assert_close(batch.weight[s].sum(), torch.tensor(1.0))
        assert not batch.weight[s][batch.rows[s] < 0].any()
        assert batch.u["part"][s].shape == batch.rows[s].shape
    alone = whole_task(lanes([1], stacked=False), 1, most)
    n = len(alone.rows)
    assert torch.equal(alone.rows, batch.rows[1, :n])
    assert torch.equal(alone.u["part"], batch.u["part"][1, :n])
