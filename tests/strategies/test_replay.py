"""Strategies that rehearse: each step against plain torch, and what must be equal to what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from lifelong.strategies.replay import mir
from torch import Tensor

from lifelong.data.pool import Pool
from lifelong.experiments.compose import compose
from lifelong.experiments.contract import tiny
from lifelong.learning.learner import Batch, Learner, State
from lifelong.learning.losses import Slice
from lifelong.learning.optim import sgd
from lifelong.learning.parts import Numbers, Part, View, counted, positions
from lifelong.learning.schedule import Budget, plan
from lifelong.networks.mlp import mlp
from lifelong.spec.expression import parse
from lifelong.vmap import tree

NET, LR, B = mlp((8,), 6, (12,)), 0.1, 5
SCENARIOS = ("class", "domain", "task")
STREAM = {scenario: tiny([1], scenario=scenario) for scenario in SCENARIOS}  # 23 rows a task: a short batch at the end
POOL: dict[str, Pool] = {}
for _scenario, _stream in STREAM.items():
    POOL[_scenario] = _stream.pool(dtype=torch.float64).lane({k: v[0] for k, v in _stream.lanes([0]).items()})


class Step(NamedTuple):
    before: State
    batch: Batch
    u: Tensor
    after: State

    def part(self, of: State) -> State:
        (own,) = of["parts"].values()
        return own


def learner(text: str) -> Learner:
    made: Learner = compose(parse(text), {"net": NET, "n_classes": 6}, sgd(lr=LR))
    return made


def of_stream(scenario: str) -> list[list[int]]:
    tasks = [plan(STREAM[scenario], [1], t, "task", Budget(B, 1)).rows[0] for t in range(3)]
    return torch.cat(tasks).view(-1, B).tolist()


def steps(text: str, scenario: str, rows: Sequence[Sequence[int]] | None = None) -> Iterator[Step]:
    """Every step of a strategy; whatever it is called, it gets the first of the same numbers."""
    made = learner(text)
    state = made.init(3, POOL[scenario])
    for k, given in enumerate(of_stream(scenario) if rows is None else rows):
        now = torch.tensor(given)
        weight = (now >= 0).double() / (now >= 0).sum()
        numbers = torch.rand(200, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        u = {name: numbers[:count] for name, count in made.draws(len(now)).items()}
        batch = Batch(now, weight, u, torch.tensor(min(k, 2)))
        before = tree(torch.clone, state)
        state, _ = made.observe(state, POOL[scenario], batch)
        yield Step(before, batch, next(iter(u.values()), numbers[:0]), tree(torch.clone, state))


def last(text: str, scenario: str, rows: Sequence[Sequence[int]] | None = None) -> dict[str, Tensor]:
    return list(steps(text, scenario, rows))[-1].after["params"]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for k in a:
        torch.testing.assert_close(a[k], b[k], rtol=1e-12, atol=1e-12)


# ---- plain torch


def label(row: int) -> int:
    return row // 20


def asked(row: int, scenario: str) -> list[int]:
    first = label(row) // 2 * 2
    return [first, first + 1] if scenario == "task" else list(range(6))


def scores(params: dict[str, Tensor], row: int) -> Tensor:
    return NET.apply(params, STREAM["class"].x[row:row + 1])[0]


def entropy(params: dict[str, Tensor], row: int, units: Sequence[int]) -> Tensor:
    return F.cross_entropy(scores(params, row)[list(units)], torch.tensor(list(units).index(label(row))))


def mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean() if values else torch.zeros(())


def drawn(rows: Tensor, u: Tensor) -> list[int]:
    """The places that uniform numbers stand for, of those that are filled."""
    n = int((rows >= 0).sum())
    return [int(v * n) for v in u.tolist()] if n else []


def moved(params: dict[str, Tensor], loss: Callable[[dict[str, Tensor]], Tensor]) -> dict[str, Tensor]:
    leaves = {k: p.clone().requires_grad_() for k, p in params.items()}
    grads = torch.autograd.grad(loss(leaves), list(leaves.values()))
    return {k: p - LR * g for (k, p), g in zip(params.items(), grads, strict=True)}


def real(batch: Batch) -> list[int]:
    return [row for row in batch.rows.tolist() if row >= 0]


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("memory", ["reservoir", "class-balanced", "ring"])
@pytest.mark.parametrize("combine", ["sum", "mean", "tasks"])
def test_er_steps_as_plain_torch(scenario, memory, combine):
    for step in steps(f"er(capacity=13, replay=4, memory='{memory}', combine='{combine}')", scenario):
        rows, kept = real(step.batch), step.part(step.before)["rows"]
        recalled = kept[drawn(kept, step.u[B:])].tolist()

        def loss(params: dict[str, Tensor], rows: list[int] = rows, recalled: list[int] = recalled) -> Tensor:
            new, old = ([entropy(params, row, asked(row, scenario)) for row in part] for part in (rows, recalled))
            t = int(step.batch.task) + 1
            return {"sum": mean(new) + mean(old), "mean": mean(new + old),
                    "tasks": mean(new) / t + (1 - 1 / t) * mean(old)}[combine]

        same(step.after["params"], moved(step.before["params"], loss))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_er_ace_steps_as_plain_torch(scenario):
    short = [[3, 4, 5, 6, 27], [44, 45, -1, -1, -1], [100, -1, 30, -1, -1], [61, 62, 63, 44, -1]]
    for step in steps("er_ace(capacity=9, replay=3)", scenario, [*short, *of_stream(scenario)]):
        rows, kept = real(step.batch), step.part(step.before)["rows"]
        recalled = kept[drawn(kept, step.u[len(step.batch.rows):])].tolist()
        there = {label(row) for row in rows}

        def loss(params: dict[str, Tensor], rows: list[int] = rows, recalled: list[int] = recalled,
                 there: set[int] = there) -> Tensor:
            new = [entropy(params, row, [c for c in asked(row, scenario) if c in there]) for row in rows]
            return mean(new) + mean([entropy(params, row, asked(row, scenario)) for row in recalled])

        same(step.after["params"], moved(step.before["params"], loss))


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("capacity", [7, 100])
def test_der_keeps_the_scores_that_the_network_had(scenario, capacity):
    then: dict[int, Tensor] = {}
    for step in steps(f"derpp(capacity={capacity}, replay=4)", scenario):
        then |= {row: scores(step.before["params"], row) for row in real(step.batch)}
        own = step.part(step.after)
        for row, kept in zip(own["rows"].tolist(), own["scores"], strict=True):
            torch.testing.assert_close(kept, then[row] if row >= 0 else torch.zeros_like(kept), rtol=1e-12, atol=1e-12)
    assert int((own["rows"] >= 0).sum()) == min(capacity, len(then))


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("name", ["der", "derpp"])
def test_dark_replay_steps_as_plain_torch(scenario, name):
    then: dict[int, Tensor] = {}
    for step in steps("der(capacity=9, replay=3, alpha=0.7)" if name == "der" else
                      "derpp(capacity=9, replay=3, alpha=0.7, beta=1.3)", scenario):
        rows, kept = real(step.batch), step.part(step.before)["rows"]
        old = kept[drawn(kept, step.u[B:B + 3])].tolist()
        second = kept[drawn(kept, step.u[B + 3:])].tolist()
        assert len(second) == (len(old) if name == "derpp" else 0)

        def loss(params: dict[str, Tensor], rows: list[int] = rows, old: list[int] = old,
                 second: list[int] = second) -> Tensor:
            change = [F.mse_loss(scores(params, row)[asked(row, scenario)], then[row][asked(row, scenario)])
                      for row in old]
            again = [entropy(params, row, asked(row, scenario)) for row in second]
            return (mean([entropy(params, row, asked(row, scenario)) for row in rows])
                    + 0.7 * mean(change) + 1.3 * mean(again))

        same(step.after["params"], moved(step.before["params"], loss))
        then |= {row: scores(step.before["params"], row) for row in rows}


# ---- what is equal to what


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("text", ["der(alpha=0)", "derpp(alpha=0, beta=0)"])
def test_without_weight_dark_replay_is_finetuning(scenario, text):
    same(last(text, scenario), last("finetune", scenario))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_without_beta_derpp_is_der(scenario):
    settings = "capacity=9, replay=4, alpha=0.6"
    same(last(f"derpp({settings}, beta=0)", scenario), last(f"der({settings})", scenario))


def test_without_alpha_derpp_is_er_on_its_second_draw():
    ours = steps("derpp(capacity=9, replay=4, alpha=0, beta=1)", "class")
    for step in ours:
        u = torch.cat([step.u[:B], step.u[B + 4:]])
        made, own = learner("er(capacity=9, replay=4)"), step.part(step.before)
        state = step.before | {"parts": {"er": {k: own[k] for k in ("rows", "y", "rank")}}}
        after, _ = made.observe(state, POOL["class"], step.batch._replace(u={"er": u}))
        same(step.after["params"], after["params"])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_er_ace_is_er_where_every_batch_has_all_classes(scenario):
    if scenario == "task":  # all classes that are asked for
        rows = [[20 * (2 * t) + i, 20 * (2 * t) + i + 1, 20 * (2 * t + 1) + i] for t in range(3) for i in range(6)]
    else:
        rows = [[20 * c + i for c in range(6)] for i in range(12)]
    same(last("er_ace(capacity=9)", scenario, rows), last("er(capacity=9)", scenario, rows))
    differ = last("er_ace(capacity=9)", scenario, [[3, 4], [43, 44]])["head.bias"] - last(
        "er(capacity=9)", scenario, [[3, 4], [43, 44]])["head.bias"]
    assert float(differ.abs().max()) > 1e-3


def test_er_ace_leaves_the_units_of_absent_classes_alone():
    first = next(steps("er_ace", "class", [[3, 4, 23]]))
    still = (first.after["params"]["head.bias"] == first.before["params"]["head.bias"]).tolist()
    assert still == [False, False, True, True, True, True]


def test_of_one_class_alone_and_nothing_remembered_er_ace_learns_nothing_and_is_finite():
    first = next(steps("er_ace", "class", [[3, 4, -1]]))
    same(first.after["params"], first.before["params"])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_mir_that_looks_at_no_more_than_it_rehearses_is_er(scenario):
    same(last("mir(capacity=9, replay=6, subsample=6)", scenario), last("er(capacity=9, replay=6)", scenario))
    differ = last("mir(capacity=60, replay=2, subsample=20)", scenario)["head.bias"] - last(
        "er(capacity=60, replay=2)", scenario)["head.bias"]
    assert float(differ.abs().max()) > 1e-3


def test_averaged_with_the_batch_an_empty_memory_does_not_count():
    same(next(steps("er(combine='mean')", "class")).after["params"], next(steps("finetune", "class")).after["params"])


# ---- what is rehearsed


def seen(part: Part, state: State, params: dict[str, Tensor], scenario: str, batch: Sequence[int], u: Tensor) -> View:
    rows = torch.tensor(batch)
    weight = (rows >= 0).double() / (rows >= 0).sum()
    numbers = Numbers(u, positions(counted(part.draws, len(rows))))
    return View(state, params, NET, POOL[scenario], numbers, batch=Slice(rows, weight, *[None] * 3))  # type: ignore[arg-type]


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("stored", [2, 8, 40])
def test_mir_rehearses_what_the_batch_would_hurt_most(scenario, stored):
    part = mir(capacity=40, replay=6, subsample=15, lr=0.3)
    assert part.recall
    kept = torch.cat([torch.randperm(120, generator=torch.Generator().manual_seed(7))[:stored],
                      torch.full((40 - stored,), -1)])
    params = {k: p.double() for k, p in NET.init(torch.Generator().manual_seed(2)).items()}
    batch = [81, 82, 109, -1]
    u = torch.rand(4 + 15, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    got = part.recall(seen(part, {"rows": kept}, params, scenario, batch, u)).tolist()

    candidates = kept[drawn(kept, u[4:])].tolist()
    leaves = {k: p.clone().requires_grad_() for k, p in params.items()}
    loss = mean([entropy(leaves, row, asked(row, scenario)) for row in batch if row >= 0])
    grads = torch.autograd.grad(loss, list(leaves.values()))
    virtual = {k: p - 0.3 * g for (k, p), g in zip(params.items(), grads, strict=True)}
    growth = {row: float(entropy(virtual, row, asked(row, scenario)) - entropy(params, row, asked(row, scenario)))
              for row in candidates}
    want = sorted(growth, key=lambda row: -growth[row])
    assert got[:len(want)] == want[:6]
    # Where there are fewer different ones, those come again, most hurt first.
    again = sorted((row for row in growth for _ in range(candidates.count(row) - 1)), key=lambda row: -growth[row])
    assert got == (want + again)[:6]


def test_mir_rehearses_nothing_while_nothing_is_remembered():
    part = mir(capacity=5, replay=3, subsample=4)
    assert part.recall
    params = {k: p.double() for k, p in NET.init(torch.Generator().manual_seed(2)).items()}
    view = seen(part, {"rows": torch.full((5,), -1)}, params, "class", [3, 24], torch.rand(6, dtype=torch.float64))
    assert part.recall(view).tolist() == [-1, -1, -1]


def gradient(params: dict[str, Tensor], row: int, scenario: str) -> Tensor:
    leaves = {k: p.clone().requires_grad_() for k, p in params.items()}
    grads = torch.autograd.grad(entropy(leaves, row, asked(row, scenario)), list(leaves.values()))
    return torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_gss_remembers_as_a_plain_loop_does(scenario):
    capacity, reference, trades = 6, 4, 0
    memory: list[tuple[int, float]] = []
    for step in steps(f"gss(capacity={capacity}, replay=3, reference={reference})", scenario):
        params, u = step.after["params"], step.u.tolist()
        others = [memory[int(v * len(memory))][0] for v in u[2 * B:2 * B + reference]] if memory else []
        recalled = [memory[int(v * len(memory))][0] for v in u[2 * B + reference:]] if memory else []

        def loss(params: dict[str, Tensor], step: Step = step, recalled: list[int] = recalled) -> Tensor:
            return (mean([entropy(params, row, asked(row, scenario)) for row in real(step.batch)])
                    + mean([entropy(params, row, asked(row, scenario)) for row in recalled]))

        same(params, moved(step.before["params"], loss))
        for k, row in enumerate(step.batch.rows.tolist()):
            if row < 0:
                continue
            g = gradient(params, row, scenario)
            c = 1 + max((float(F.cosine_similarity(g, gradient(params, r, scenario), 0)) for r in others), default=0.0)
            if len(memory) < capacity:
                memory.append((row, c))
            elif c < 1:
                edges, at = [sum(m[1] for m in memory[:j]) for j in range(capacity + 1)], u[k] * sum(m[1] for m in memory)
                i = next(j for j, (a, b) in enumerate(pairwise(edges)) if a <= at < b)
                if u[B + k] < memory[i][1] / (memory[i][1] + c):
                    memory[i] = (row, c)
                    trades += 1
        own = step.part(step.after)
        n = len(memory)
        assert own["rows"][:n].tolist() == [row for row, _ in memory]
        assert own["y"][:n].tolist() == [label(row) for row, _ in memory]
        torch.testing.assert_close(own["rank"][:n], torch.tensor([c for _, c in memory], dtype=torch.float64),
                                   rtol=1e-10, atol=1e-10)
        assert own["rows"][n:].tolist() == [-1] * (capacity - n)
    assert trades > 0


# ---- what is refused


@pytest.mark.parametrize(("text", "words"), [
    ("er(combine='product')", "combine must be one of 'sum', 'mean', 'tasks'"),
    ("er_ace(capacity=0)", "capacity must be 1 or more"),
    ("der(alpha=-1)", "alpha must be 0 or more"),
    ("derpp(beta=-1)", "beta must be 0 or more"),
    ("mir(replay=60)", "replay must be 50 or less"),
    ("mir(lr=0)", "lr must be above 0"),
    ("gss(reference=0)", "reference must be 1 or more"),
    ("er_ace + er(combine='mean')", "er_ace and er cannot be summed"),
])
def test_what_makes_no_sense_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        learner(text)


def test_a_ring_needs_a_place_for_every_class():
    with pytest.raises(ValueError, match="a ring memory for 6 classes needs a capacity of 6 or more, got 5"):
        next(steps("er(memory='ring', capacity=5)", "class"))


def test_parts_add_up_in_every_scenario():
    for scenario in SCENARIOS:
        params: Any = last("er_ace(capacity=9) + der(capacity=9) + mir(capacity=9) + gss(capacity=9)", scenario)
        assert all(bool(p.isfinite().all()) for p in params.values())
