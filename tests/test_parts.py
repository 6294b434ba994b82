"""What the hooks of a part can do: draw by name, recall several sets of rows, act before a task, bring parameters."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from lifelong.strategies.regularise import ewc
from lifelong.strategies.replay import er

import lifelong
from lifelong.experiments.contract import BUDGET, tiny
from lifelong.learning.composition import gradient_learner
from lifelong.learning.engine import Rhythm, train
from lifelong.learning.imperative import Training
from lifelong.learning.lanes import Lanes
from lifelong.learning.learner import Initialization
from lifelong.learning.losses import squared_error
from lifelong.learning.optim import sgd
from lifelong.learning.parts import BATCH, Part, Sum, View, counted
from lifelong.learning.schedule import Budget, batches, plan, whole_task
from lifelong.networks.mlp import mlp
from lifelong.spec.expression import Term

NET = mlp((8,), 6, (12,))


def lanes(part: Part | dict[str, Part], at: list[int], stacked: bool | None = None) -> Lanes:
    parts = {"mine": part} if isinstance(part, Part) else part
    learner = gradient_learner(NET, sgd(0.05, momentum=0.5), parts)
    return Lanes(tiny([0, 1]), [0, 1], at, lambda hyper: learner, dtype=torch.float64,
                 stacked=len(at) > 1 if stacked is None else stacked)


def states(stack: Lanes, n_tasks: int = 1) -> list[Any]:
    state, found = stack.init(), []
    for task in range(n_tasks):
        if stack.learner.begin_task:
            state = stack.begin_task(state, whole_task(stack, task, when="begin"))
        for _, batch in batches(stack, plan(stack.stream, [0, 1], task, "task", BUDGET), task, 0):
            state, _ = stack.observe(state, batch)
            found.append({k: p.clone() for k, p in state["params"].items()} | {"parts": state["parts"]})
        state = stack.end_task(state, whole_task(stack, task))
    return found


def test_named_draws_are_the_parts_numbers_cut_in_the_order_of_their_names():
    seen: list[Any] = []

    def step(view: View) -> dict[str, Any]:
        seen.append((view.u.first, view.u.coin, view.u.last))
        return {}

    named = Part(draws={"first": 2, "coin": BATCH, "last": lambda batch: 2 * batch}, step=step)
    assert counted(named.draws, 5) == {"first": 2, "coin": 5, "last": 10}
    stack = lanes(named, [0])
    state = stack.init()
    _, batch = next(batches(stack, plan(stack.stream, [0, 1], 0, "task", BUDGET), 0, 0))
    stack.observe(state, batch)
    assert [len(numbers) for numbers in seen[0]] == [2, len(batch.rows), 2 * len(batch.rows)]
    assert torch.equal(torch.cat(seen[0]), batch.u["mine"])


def test_a_number_that_is_not_drawn_is_named_with_those_that_are():
    part = Part(draws={"coin": BATCH}, loss=lambda view: view.u.coins.sum())
    with pytest.raises(AttributeError, match="draws no numbers called 'coins'; its `draws` has coin"):
        states(lanes(part, [0]))


@pytest.mark.parametrize("at", [[0], [0, 1]])
def test_rows_that_are_recalled_by_name_are_learned_each_by_its_own_loss(at):
    # The network's scores at row 7 go to 1 and at rows 90 and 91 to 0: nothing else is learned.
    def loss(view: View) -> Any:
        one, two = view.recalled["one"], view.recalled["two"]
        return squared_error(one, torch.ones_like(one.scores)) + squared_error(two, torch.zeros_like(two.scores), 3.0)

    part = Part(recall=lambda view: {"one": view.batch.rows[:1] * 0 + 7, "two": view.batch.rows[:2] * 0 + 90},
                criterion=lambda view: 0 * view.batch.scores.sum(), loss=loss)
    stack = lanes(part, at)
    params = states(stack)[-1]
    x = stack.stream.x
    for i in range(len(at)):
        own = {k: p[i] if len(at) > 1 else p for k, p in params.items() if k != "parts"}
        begun = lanes(part, [at[i]]).init()["params"]
        for row, target in ((7, 1.0), (90, 0.0)):
            before, after = (float((NET.apply(p, x[row:row + 1]) - target).square().mean()) for p in (begun, own))
            assert after < 0.3 * before


@pytest.mark.parametrize("at", [[0], [0, 1]])
def test_begin_may_change_the_parameters_before_a_task(at):
    # Before task t the output rows of its two classes, 2 t and 2 t + 1, become 0; those of other classes stay.
    def begin(view: View) -> Any:
        mine = view.pool.classes.index_select(0, view.task.view(1)).squeeze(0)
        return {}, {"head.bias": torch.where(mine, 0.0, view.params["head.bias"])}

    stack = lanes(Part(begin=begin, boundaries=True), at)
    state = stack.init()
    for task in range(3):
        before = state["params"]["head.bias"].clone()
        state = stack.begin_task(state, whole_task(stack, task, when="begin"))
        after = state["params"]["head.bias"]
        own = torch.tensor([unit // 2 == task for unit in range(6)])
        assert not after[..., own].any()
        assert torch.equal(after[..., ~own], before[..., ~own])
        for _, batch in batches(stack, plan(stack.stream, [0, 1], task, "task", BUDGET), task, 0):
            state, _ = stack.observe(state, batch)


def test_the_engine_begins_every_task_once_also_where_a_run_resumes_at_its_start():
    def tally(view: View) -> Any:
        return {"n": view.state["n"] + 1, "u": view.u[0]}

    part = Part(init=lambda view: {"n": torch.zeros((), dtype=torch.int64), "u": torch.zeros((), dtype=torch.float64)},
                begin=tally, boundaries=True)
    taken: list[Any] = []
    train(lanes(part, [0, 1]), BUDGET, Rhythm(save_every=0.0, save=lambda c: taken.append(
        (c["task"], c["step"], c["state"]["parts"]["mine"]["n"].tolist(), c["state"]["parts"]["mine"]["u"].tolist()))))
    assert all(n == [task + (step > 0)] * 2 for task, step, n, _ in taken)
    assert len({tuple(u) for _, step, _, u in taken if step}) == 3  # other numbers before every task


@pytest.mark.parametrize("at", [[0], [0, 1]])
def test_step_may_replace_parameters_after_the_update(at):
    part = Part(step=lambda view: ({}, {k: p.clamp(-0.1, 0.1) for k, p in view.params.items()}))
    for params in states(lanes(part, at)):
        assert max(float(p.abs().max()) for k, p in params.items() if k != "parts") <= 0.1
    free = states(lanes(Part(), at))[-1]
    assert max(float(p.abs().max()) for k, p in free.items() if k != "parts") > 0.1


@pytest.mark.parametrize("at", [[0], [0, 1]])
def test_a_parts_own_parameters_are_trained_by_the_optimizer_and_hidden_from_the_network(at):
    # A scale of the scores, learned by plain SGD with momentum beside the network's parameters.
    names: list[Any] = []

    def criterion(view: View) -> Any:
        names.append(sorted(view.params))
        scores = view.batch.scores * view.own["scale"]
        return (torch.nn.functional.cross_entropy(scores, view.batch.y, reduction="none") * view.batch.weight).sum()

    part = Part(params=lambda view: {"scale": torch.ones(())}, criterion=criterion)
    got = states(lanes(part, at))
    assert all(found == sorted(NET.init(torch.Generator())) for found in names)
    scale = torch.ones((), dtype=torch.float64)
    stack = lanes(part, [0], stacked=False)
    params = stack.init()["params"]
    assert set(params) == {*names[0], "mine/scale"}
    todo = [b for _, b in batches(stack, plan(stack.stream, [0, 1], 0, "task", BUDGET), 0, 0)]
    leaves = {k: p.clone().requires_grad_() for k, p in params.items() if k != "mine/scale"}
    scale.requires_grad_()
    optimizer = torch.optim.SGD([*leaves.values(), scale], 0.05, momentum=0.5)
    for batch, state in zip(todo, got, strict=False):
        x, y = stack.fetch(batch.rows)
        loss = torch.nn.functional.cross_entropy(NET.apply(leaves, x) * scale, y, reduction="none") @ batch.weight
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mine = state["mine/scale"][0] if len(at) > 1 else state["mine/scale"]
        torch.testing.assert_close(mine, scale.detach(), rtol=1e-10, atol=1e-12)


def test_parts_add_up_in_python_in_the_order_in_which_they_stand():
    one, two, three = er(capacity=9), ewc(), Part()
    assert (one + two + three) == Sum((one, two, three)) == one + (two + three)
    start = Initialization(lambda net, seed: {})
    assert start + one + two == Sum((start, one, two))


@pytest.mark.parametrize(("other", "said"), [
    (3, "this is the number 3"), (ewc, "the class or function ewc: call it first"), (Lanes, "the class or function Lanes")])
def test_what_is_no_part_cannot_be_added(other, said):
    for add in (lambda: er() + other, lambda: other + er()):
        with pytest.raises(TypeError, match=said):
            add()


def both() -> Sum:
    return er(capacity=20) + ewc()


def test_a_sum_of_python_objects_is_one_strategy() -> None:
    def of(strategy: Any) -> Any:
        return lifelong.run("split-digits(tasks=2)", strategy, seeds=2, steps=3, dtype="float64")

    one = of(er(capacity=20) + ewc())
    assert one.spec["strategy"] == "strategy + strategy"
    (again,), made = of([er(capacity=20) + ewc()]), of(both)
    assert np.array_equal(one.logs["loss"], again.logs["loss"]) and made.spec["strategy"] == "both"
    penalised = of(er(capacity=20) + ewc(strength=1000))  # its terms are all there: the penalty acts from task 2 on
    first = one.logs["loss"].shape[1] // 2
    assert np.array_equal(one.logs["loss"][:, :first], penalised.logs["loss"][:, :first])
    assert not np.array_equal(one.logs["loss"], penalised.logs["loss"])


@pytest.mark.parametrize("hook", ["begin", "step", "task"])
@pytest.mark.parametrize(("made", "said"), [
    (lambda view: {"head.bias": view.params["head.bias"]}, "(none), and returned a dict of head.bias"),
    (lambda view: None, "returned NoneType"), (lambda view: ({"more": view.task}, {}), "returned a dict of more")])
def test_a_state_has_the_entries_of_init(hook, made, said) -> None:
    part = Part(**{hook: made}, boundaries=True)
    with pytest.raises((ValueError, RuntimeError), match=f"{hook} must return the state.*{re.escape(said)}.*return .view.state"):
        lifelong.run("split-digits(tasks=2)", part, seeds=2, steps=2)


def test_a_penalty_may_have_a_whole_number_as_its_strength() -> None:
    def of(strength: float) -> Any:
        return lifelong.run("split-digits(tasks=2)", ewc(strength=strength), seeds=2, steps=3).logs["loss"]

    assert np.array_equal(of(5), of(5.0))


@pytest.mark.parametrize(("budget", "said"), [(Budget(7, 3), (7, None, 3)), (Budget(7, 3, 5), (7, 5, None))])
def test_training_has_steps_or_epochs(budget, said) -> None:
    training = Training(Term("sgd", sgd), budget, False)
    assert (training.batch_size, training.steps, training.epochs) == said
