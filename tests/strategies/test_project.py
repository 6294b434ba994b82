"""Gradients are turned as far as earlier tasks ask for, and no further."""

from __future__ import annotations

import pytest
import torch
from lifelong.strategies.project import cone, gem
from torch import Tensor

from lifelong.experiments.contract import tiny
from lifelong.learning.losses import Slice, batch_loss
from lifelong.learning.parts import View
from lifelong.networks.mlp import mlp
from lifelong.randomness import generator

KINDS = ("plain", "parallel", "opposite", "a zero", "one line", "many scales", "all against", "orthogonal")


def problem(kind: str, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Gradients of `n` tasks [n, D] and the gradient to be turned [D]."""
    g = torch.Generator().manual_seed(seed)
    d = int(torch.randint(1, 3 * n + 2, (), generator=g))
    rows, own = torch.randn(n, d, generator=g, dtype=torch.float64), torch.randn(d, generator=g, dtype=torch.float64)
    if kind in ("parallel", "opposite"):
        rows[-1] = rows[0] * (2.0 if kind == "parallel" else -1.0)
    elif kind == "a zero":
        rows[0] = 0
    elif kind == "one line":
        rows = rows[:, :1] * rows[0]
    elif kind == "many scales":
        rows *= 10 ** torch.linspace(-1, 1, n, dtype=torch.float64).unsqueeze(-1)
    elif kind == "all against":
        own = -rows.sum(0)
    elif kind == "orthogonal":
        rows, own = torch.eye(n, dtype=torch.float64), -torch.ones(n, dtype=torch.float64)
    return rows, own


PROBLEMS = [(kind, n, 100 * n + i) for kind in KINDS for n in (1, 2, 3, 5, 8, 13, 20) for i in range(6)]


def test_the_weights_of_two_tasks_worked_by_hand():
    # G = ((1, 0), (0, 1)), g = (-1, 2): only the first task is violated, v = (1, 0), and g + G'v = (0, 2).
    rows, own = torch.eye(2, dtype=torch.float64), torch.tensor([-1.0, 2.0], dtype=torch.float64)
    every = torch.tensor([True, True])
    assert cone(rows @ rows.mT, rows @ own, every, 0.0, eps=0.0).tolist() == [1, 0]
    # With margin 1/2 the second weight is at its bound: (1, 1/2).
    assert cone(rows @ rows.mT, rows @ own, every, 0.5, eps=0.0).tolist() == [1, 0.5]
    # A task that is not held has no say.
    assert cone(rows @ rows.mT, rows @ own, torch.tensor([False, True]), 0.5, eps=0.0).tolist() == [0, 0.5]


def test_it_is_the_optimum_that_quadprog_finds():
    quadprog = pytest.importorskip("quadprog")
    for kind, n, seed in PROBLEMS:
        rows, own = problem(kind, n, seed)
        for margin in (0.0, 0.5):
            p, q = rows @ rows.mT + 1e-3 * torch.eye(n), rows @ own
            theirs = quadprog.solve_qp(p.numpy(), -q.numpy(), torch.eye(n).double().numpy(),
                                       torch.full((n,), margin).double().numpy())[0]
            ours = cone(rows @ rows.mT, q, torch.ones(n, dtype=torch.bool), margin)
            torch.testing.assert_close(ours, torch.from_numpy(theirs), atol=1e-7, rtol=1e-7, msg=f"{kind} {n} {seed}")


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_a_stack_of_masked_problems_meets_the_conditions_of_an_optimum(margin):
    n = 7
    grams, dots, held = [], [], []
    for i, (kind, _, seed) in enumerate(PROBLEMS):
        rows, own = problem(kind, n, seed)
        grams.append(rows @ rows.mT)
        dots.append(rows @ own)
        held.append(torch.arange(n) < i % (n + 1))
    gram, dot, there = torch.stack(grams), torch.stack(dots), torch.stack(held)
    v = torch.func.vmap(lambda *one: cone(*one, margin))(gram, dot, there)
    assert torch.equal(v[~there], torch.zeros_like(v[~there]))
    assert bool((v[there] >= margin).all())
    slope = (gram + 1e-3 * torch.eye(n)).double() @ v.unsqueeze(-1) + dot.unsqueeze(-1)
    slope = torch.where(there, slope.squeeze(-1), 0.0) / dot.abs().amax(-1, keepdim=True).clamp(min=1)
    assert float(slope.min()) > -1e-9
    assert float((slope * (v - margin).clamp(max=1))[there].abs().max()) < 1e-9


def at_task(task: int) -> tuple[View, dict[str, Tensor], Tensor]:
    """A view of gem inside a task, the gradient of that task, and the gradients of all tasks' memories [T, P]."""
    stream = tiny([0])
    pool, net = stream.pool(dtype=torch.float64), mlp((8,), 6, hidden=(12,))
    params = {k: p.double() for k, p in net.init(generator(1, "init")).items()}
    rows = stream.train[0, :, :4]
    own = torch.func.grad(batch_loss(net, pool, stream.train[0, task, 4:8], torch.full((4,), 0.25)))(params)
    each = [torch.func.grad(batch_loss(net, pool, r, torch.full((4,), 0.25)))(params) for r in rows]
    flat = torch.stack([torch.cat([g[k].flatten() for k in params]) for g in each])
    return View({"rows": rows}, params, net, pool, task=torch.tensor(task)), own, flat


def test_turned_gradients_raise_no_loss_and_match_plain_arithmetic():
    view, own, each = at_task(2)
    against = {k: -g for k, g in own.items()}
    for grads in (own, against):
        flat = torch.cat([g.flatten() for g in grads.values()])
        turned = torch.cat([g.flatten() for g in gem(margin=0.0).grads(view, grads).values()])
        assert float((each[:2] @ turned).min()) > -1e-3 * float(turned.norm())  # eps on the diagonal gives a little way
        v = cone(each @ each.mT, each @ flat, torch.tensor([True, True, False]), 0.0)
        violated = bool((each[:2] @ flat < 0).any())
        torch.testing.assert_close(turned, flat + v @ each if violated else flat)
        assert violated != torch.equal(turned, flat)


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_a_gradient_that_hurts_no_earlier_task_is_left_alone(margin):
    view, _, _ = at_task(1)
    first = torch.func.grad(batch_loss(view.net, view.pool, view.state["rows"][0], torch.full((4,), 0.25)))(view.params)
    turned = gem(margin=margin).grads(view, first)
    assert all(torch.equal(turned[k], first[k]) for k in first)
    view, own, _ = at_task(0)  # and nothing is earlier than the first task
    against = {k: -g for k, g in own.items()}
    turned = gem(margin=margin).grads(view, against)
    assert all(torch.equal(turned[k], against[k]) for k in own)


def test_the_memory_holds_the_last_examples_of_each_task():
    part, stream = gem(capacity=11), tiny([0])  # three tasks: three places each
    view = View({}, {}, mlp((8,), 6), stream.pool(dtype=torch.float64))
    state = part.init(view)
    for task, rows in ((0, [1, 2, -1, -1]), (0, [3, 4, -1, -1]), (1, [50, 51, 52, 53])):
        batch = Slice(torch.tensor(rows), *[torch.zeros(4)] * 4)
        state = part.step(view._replace(state=state, task=torch.tensor(task), batch=batch))
    assert state["rows"].tolist() == [[2, 3, 4], [51, 52, 53], [-1, -1, -1]]


def test_a_memory_with_no_place_for_a_task_is_refused():
    with pytest.raises(ValueError, match="3 or more, one for each task, got 2"):
        gem(capacity=2).init(View({}, {}, mlp((8,), 6), tiny([0]).pool()))
