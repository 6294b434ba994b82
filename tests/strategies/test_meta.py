"""Steps that are learning runs of their own do what a plain loop over the paper's algorithm does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lifelong.experiments.contract import BUDGET, Subject
from lifelong.learning.engine import train
from lifelong.learning.lanes import Lanes
from lifelong.learning.learner import Batch, State
from lifelong.learning.memory import reservoir
from lifelong.learning.schedule import batches, plan
from lifelong.spec.expression import parse


def module_of(params: dict[str, Tensor]) -> nn.Module:
    """The checks' network as a plain module."""
    module = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 6)).double()
    module.load_state_dict(dict(zip(module.state_dict(), (p.clone() for p in params.values()), strict=True)))
    return module


def after(strategy: str, steps: int) -> tuple[Lanes, State, list[Batch]]:
    """A lane, its state after some steps on task 0, and the batches it has seen and has yet to see."""
    lanes = Subject(parse(strategy), 24).lanes([0], stacked=False)
    given = [batch for _, batch in batches(lanes, plan(lanes.stream, [0], 0, "task", BUDGET), 0, 0)]
    state = lanes.init()
    for batch in given[:steps]:
        state, _ = lanes.observe(state, batch)
    return lanes, state, given


def assert_same(params: dict[str, Tensor], module: nn.Module) -> None:
    for ours, theirs in zip(params.values(), module.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), atol=1e-12, rtol=1e-10)


def mer_by_hand(lanes: Lanes, state: State, batch: Batch, steps: int, replay: int, beta: float, gamma: float) -> nn.Module:
    """Algorithm 1 with torch.optim.SGD, on the same memory and the same random numbers."""
    keep, memory, module = reservoir(500), state["memory"], module_of(state["params"])
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    draws = batch.u["mer"][5:].view(5, steps, replay)
    for i in range(5):
        if batch.rows[i] < 0:
            continue
        example = [p.detach().clone() for p in module.parameters()]
        for s in range(steps):
            sequence = [p.detach().clone() for p in module.parameters()]
            for row in [int(batch.rows[i]), *(r for r in keep.pick(memory, draws[i, s]).tolist() if r >= 0)]:
                optimizer.zero_grad()
                F.cross_entropy(module(lanes.pool.x[row:row + 1]), lanes.pool.y[row:row + 1]).backward()
                optimizer.step()
            for p, begin in zip(module.parameters(), sequence, strict=True):
                p.data = begin + beta * (p.data - begin)
        for p, begin in zip(module.parameters(), example, strict=True):
            p.data = begin + gamma * (p.data - begin)
        memory = keep.add(memory, batch.rows[i:i + 1], lanes.pool.y[batch.rows[i:i + 1]], batch.u["mer"][i:i + 1])
    return module


@pytest.mark.parametrize(("steps", "beta", "gamma"), [(1, 1.0, 1.0), (3, 0.4, 0.7)])
@pytest.mark.parametrize("seen", [0, 2, 4])  # with nothing remembered, with something, and a batch with a pad
def test_mer_is_algorithm_1_and_with_one_whole_step_plain_descent(steps, beta, gamma, seen):
    lanes, state, given = after(f"mer(steps={steps}, beta={beta}, gamma={gamma}, lr=0.05, replay=3)", seen)
    new, _ = lanes.observe(state, given[seen])
    assert_same(new["params"], mer_by_hand(lanes, state, given[seen], steps, 3, beta, gamma))
    assert int((new["memory"]["rows"] >= 0).sum()) == int((state["memory"]["rows"] >= 0).sum()) + int(
        (given[seen].rows >= 0).sum())


def test_mer_without_replay_is_gradient_descent_on_one_example_at_a_time():
    lanes, state, given = after("mer(steps=1, beta=1, gamma=1, lr=0.05, replay=0)", 0)
    module = module_of(state["params"])
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    for batch in given:
        state, _ = lanes.observe(state, batch)
        for row in batch.rows[batch.rows >= 0].split(1):
            optimizer.zero_grad()
            F.cross_entropy(module(lanes.pool.x[row]), lanes.pool.y[row]).backward()
            optimizer.step()
    assert_same(state["params"], module)


def la_maml_by_hand(lanes: Lanes, state: State, batch: Batch, glances: int, meta_rate: float,
                    clip: float) -> tuple[nn.Module, list[Tensor]]:
    """Algorithm 1, first order, by automatic differentiation of the meta-loss through the inner steps."""
    keep, memory, module = reservoir(500), state["memory"], module_of(state["params"])
    names = list(dict(module.named_parameters()))
    w = [p.detach().clone().requires_grad_() for p in module.parameters()]
    a = [r.clone().requires_grad_() for r in state["rates"].values()]
    u = batch.u["la_maml"]
    for glance in range(glances):
        own = u[5 + 8 * glance:13 + 8 * glance]
        rows = [r for r in batch.rows[own[:5].argsort()].tolist() if r >= 0]
        both = torch.tensor([*rows, *(r for r in keep.pick(memory, own[5:]).tolist() if r >= 0)])

        def loss(values: list[Tensor], rows: Tensor) -> Tensor:
            scores = torch.func.functional_call(module, dict(zip(names, values, strict=True)), (lanes.pool.x[rows],))
            return F.cross_entropy(scores, lanes.pool.y[rows])

        fast, total = w, 0.0
        for row in rows:
            grads = torch.autograd.grad(loss(fast, torch.tensor([row])), fast)
            fast = [p - r.relu() * g.detach() for p, r, g in zip(fast, a, grads, strict=True)]
            total = total + loss(fast, both) / len(rows)
        total.backward()
        for leaves in (w, a):
            nn.utils.clip_grad_norm_(leaves, clip)
        a = [(r - meta_rate * r.grad).detach().requires_grad_() for r in a]
        w = [(p - r.relu() * p.grad).detach().requires_grad_() for p, r in zip(w, a, strict=True)]
        if glance == 0:
            memory = keep.add(memory, batch.rows, lanes.pool.y[batch.rows], u[:5])
    for p, value in zip(module.parameters(), w, strict=True):
        p.data = value.detach()
    return module, [r.detach() for r in a]


@pytest.mark.parametrize("clip", [0.05, 100.0])
@pytest.mark.parametrize("seen", [0, 2, 4])
def test_la_maml_is_its_meta_loss_differentiated(clip, seen):
    lanes, state, given = after(f"la_maml(replay=3, glances=2, rate=0.1, meta_rate=0.5, clip={clip})", seen)
    new, _ = lanes.observe(state, given[seen])
    assert sorted(r for r in new["memory"]["rows"].tolist() if r >= 0) == sorted(
        r for batch in given[:seen + 1] for r in batch.rows.tolist() if r >= 0)  # once each, however many glances
    module, rates = la_maml_by_hand(lanes, state, given[seen], 2, 0.5, clip)
    assert_same(new["params"], module)
    for ours, theirs in zip(new["rates"].values(), rates, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)


def test_la_maml_leaves_alone_what_has_a_step_size_below_zero():
    lanes, state, given = after("la_maml", 2)
    frozen = {k: torch.full_like(r, -1.0) for k, r in state["rates"].items()}
    new, _ = lanes.observe(state | {"rates": frozen}, given[2])
    assert all(torch.equal(new["params"][k], p) for k, p in state["params"].items())


@pytest.mark.parametrize("strategy", ["mer(capacity=60)", "la_maml(capacity=60, glances=5)"])
def test_they_forget_less_than_finetuning(strategy):
    plain, kept = (train(Subject(parse(s), 24).lanes([0, 1, 2]), BUDGET._replace(epochs=2)).accuracy[:, -1].mean()
                   for s in ("finetune", strategy))
    assert float(kept) > float(plain) + 0.2
