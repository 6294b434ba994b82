"""The engine against a loop that is written out by hand, and what it promises about lanes, measurements and resuming."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lifelong.streams import digits
from torch import Tensor

from lifelong import vmap
from lifelong.data.stream import Stream
from lifelong.experiments.compose import compose
from lifelong.experiments.contract import tiny
from lifelong.learning import engine
from lifelong.learning import lanes as lifted
from lifelong.learning.composition import gradient_learner
from lifelong.learning.engine import Measured, Rhythm, evaluate, train
from lifelong.learning.imperative import METHODS, train_object
from lifelong.learning.lanes import Lanes
from lifelong.learning.learner import Initialization, Learner
from lifelong.learning.optim import Optimizer, adam, sgd
from lifelong.learning.room import state_bytes, training_bytes
from lifelong.learning.schedule import Budget, batches, plan
from lifelong.networks.conv import conv4
from lifelong.networks.mlp import mlp
from lifelong.networks.module import from_module
from lifelong.networks.net import Net
from lifelong.randomness import generator
from lifelong.spec import expression
from lifelong.vmap import lift, tree

NET = mlp((8,), 6, (12,))
BUDGET = Budget(5, 2)


def lanes(strategy: str, seeds: list[int], stream: Stream | None = None, optimizer: Optimizer | None = None,
          net: Net = NET, dtype: torch.dtype = torch.float64, stacked: bool = True,
          hyper: Mapping[Any, list[float]] | None = None) -> Lanes:
    """A stack of `strategy` on the tiny stream, or on another one made for `seeds`."""
    terms = expression.parse(strategy)

    def make(values: Mapping[Any, Any]) -> Any:
        own = {key: value for key, value in values.items() if key[0] != "optimizer"}
        outer = {name: value for (place, name), value in values.items() if place == "optimizer"}
        chosen = sgd(**{"lr": 0.1} | outer) if optimizer is None else optimizer
        return compose(terms, {"net": net, "shape": (8,), "n_classes": 6, "n_tasks": 3}, chosen, own)

    return Lanes(stream or tiny(seeds), seeds, range(len(seeds)), make, hyper or {}, dtype=dtype, stacked=stacked)


def trained(stack: Lanes, budget: Budget = BUDGET, eval_every: int = 0) -> tuple[Measured, list[dict[str, Any]]]:
    """What was measured, and the state after every task."""
    kept: list[dict[str, Any]] = []
    def keep(checkpoint: dict[str, Any]) -> None:
        if checkpoint["step"] == 0:
            kept.append(tree(torch.clone, checkpoint["state"]))

    return train(stack, budget, Rhythm(eval_every, 0.0, keep)), kept


def copied(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return tree(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, checkpoint)


def by_hand(seed: int, stream: Stream, budget: Budget, data: str = "task") -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Plain training in plain torch on the rows of `plan`: accuracy [1 + T, T], and the weights after every task."""
    params = {k: p.double().requires_grad_() for k, p in NET.init(generator(seed, "init")).items()}
    optimizer = torch.optim.SGD(params.values(), 0.1)
    x, y = stream.x, stream.y

    def accuracy() -> Tensor:
        right = [NET.apply(params, x[rows]).argmax(-1) == y[rows] for rows in stream.test[0]]
        return torch.stack([r.double().mean() for r in right])

    rows, weights = [accuracy()], []
    for task in range(stream.n_tasks):
        for batch in plan(stream, [seed], task, data, budget).rows[0].split(budget.batch_size):
            batch = batch[batch >= 0]
            optimizer.zero_grad()
            F.cross_entropy(NET.apply(params, x[batch]), y[batch]).backward()
            optimizer.step()
        rows.append(accuracy())
        weights.append({k: p.detach().clone() for k, p in params.items()})
    return torch.stack(rows), weights


@pytest.mark.parametrize("budget", [Budget(5, 2), Budget(5, 1, 7), Budget(100, 3), Budget(1, 1)])
@pytest.mark.parametrize(("strategy", "data"), [("finetune", "task"), ("joint", "all"), ("cumulative", "seen")])
def test_it_ends_as_a_plain_torch_loop(strategy, data, budget):
    if strategy == "joint" and budget == Budget(100, 3):
        budget = Budget(30, 3)
    seeds = [0, 1, 5]
    measured, states = trained(lanes(strategy, seeds), budget)
    for i, seed in enumerate(seeds):
        accuracy, weights = by_hand(seed, tiny([seed]), budget, data)
        assert torch.equal(measured.accuracy[i], accuracy)
        for state, params in zip(states, weights, strict=True):
            for k, p in params.items():
                torch.testing.assert_close(state["params"][k][i], p, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_single_seed_without_the_lift_ends_as_a_plain_torch_loop(seed):
    measured, states = trained(lanes("finetune", [seed], stacked=False))
    accuracy, weights = by_hand(seed, tiny([seed]), BUDGET)
    assert torch.equal(measured.accuracy[0], accuracy)
    for state, params in zip(states, weights, strict=True):
        for k, p in params.items():
            torch.testing.assert_close(state["params"][k], p, rtol=1e-10, atol=1e-12)


def test_the_logged_loss_is_the_mean_of_the_steps():
    stream, losses = tiny([0]), []
    params = {k: p.double().requires_grad_() for k, p in NET.init(generator(0, "init")).items()}
    optimizer = torch.optim.SGD(params.values(), 0.1)
    for batch in plan(stream, [0], 0, "task", BUDGET).rows[0].split(5):
        batch = batch[batch >= 0]
        loss = F.cross_entropy(NET.apply(params, stream.x[batch]), stream.y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    measured, _ = trained(lanes("finetune", [0, 1]))
    assert measured.loss[0, 0].item() == pytest.approx(sum(losses) / len(losses), rel=1e-10)


@pytest.mark.parametrize("strategy", ["finetune", "ncm", "er + ewc", "slda"])
def test_the_untrained_learner_is_measured_and_finite(strategy):
    measured, _ = trained(lanes(strategy, [0, 1]), Budget(5, 1, 2))
    assert measured.accuracy.shape == (2, 4, 3)
    assert measured.accuracy.isfinite().all() and measured.told.isfinite().all()
    assert (measured.diverged == -1).all()


@pytest.mark.parametrize("strategy", ["finetune", "er + ewc + lwf", "agem"])
def test_measuring_never_changes_training(strategy):
    rare, often = trained(lanes(strategy, [0, 1])), trained(lanes(strategy, [0, 1]), eval_every=1)
    assert torch.equal(rare[0].accuracy, often[0].accuracy) and torch.equal(rare[0].loss, often[0].loss)
    for a, b in zip(rare[1], often[1], strict=True):
        assert all(torch.equal(a["params"][k], b["params"][k]) for k in a["params"])
    assert not len(rare[0].curve)
    assert often[0].curve_step[:, 1].tolist() == [*range(1, 10)] * 3  # 10 steps a task; the last is the row of the array
    assert often[0].curve.shape == (27, 2, 3)


def pictures(side: int, n: int = 100) -> Stream:
    """One task with `n` test images of two classes, for two seeds."""
    g = torch.Generator().manual_seed(0)
    learn, ask = (rows.expand(2, 1, -1) for rows in torch.arange(n + 4).split([4, n]))
    return Stream("pictures-v1", torch.rand(n + 4, 1, side, side, generator=g), torch.arange(n + 4) % 2, learn, ask,
                  torch.ones(2, 1, 2, dtype=torch.bool), (1, side, side))


@pytest.mark.parametrize(("side", "most"), [(28, 100), (56, 16), (112, 16)])
def test_the_larger_the_images_the_fewer_are_measured_at_once(side, most, monkeypatch):
    monkeypatch.setattr(engine, "EVALUATED", {"cpu": 512})  # images of 28x28 for two lanes; of larger ones a quarter
    asked: list[int] = []

    def predict(state: Any, pool: Any, x: Tensor) -> Tensor:
        asked.append(len(x))
        return x.flatten(1)[:, :2]

    watched = Learner(lambda seed, pool: {"n": torch.zeros(())}, lambda state, pool, batch: (state, {}), predict)
    stack = Lanes(pictures(side), [0, 1], range(2), lambda hyper: watched)
    evaluate(stack, stack.init())
    assert max(asked) == most and sum(asked) == 100


def test_measuring_keeps_nothing_for_a_derivative():
    stack = lanes("finetune", [0, 1], pictures(28), net=conv4((1, 28, 28), 2, width=1))
    state = stack.init()

    def kept(tensor: Tensor) -> Tensor:
        raise AssertionError("kept for a derivative")

    with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
        evaluate(stack, state)


# What a lane of `finetune` takes: of its 8 * 12 + 12 + 12 * 6 + 6 = 186 float64 parameters a copy, what a step makes of
# them, a gradient and a temporary; and of an example of 8 numbers, which is rehearsed with another one, two times its
# place in the pool and nine numbers each on the way through the network.
PARAMETERS = 186 * 8
EXAMPLE = 2 * 8 * (9 + 8 * 8)


@pytest.mark.parametrize(("strategy", "optimizer", "state"), [
    ("finetune", sgd(0.1), PARAMETERS), ("finetune", sgd(0.1, momentum=0.9), 2 * PARAMETERS),
    ("finetune", adam(0.1), 3 * PARAMETERS + 4),  # two moments, and a float32 that counts steps
    ("er(capacity=100)", sgd(0.1), PARAMETERS + 100 * 3 * 8)])  # a row, a class and a rank of each
def test_what_a_lane_takes_is_its_state_twice_a_gradient_and_a_temporary_and_the_examples(strategy, optimizer, state):
    stack = lanes(strategy, [0, 1], optimizer=optimizer)
    for batch_size in (5, 50):
        needed, params = training_bytes(stack, batch_size)
        assert needed == 2 * state + 2 * PARAMETERS + batch_size * EXAMPLE
        assert params == PARAMETERS
    assert state_bytes(stack) == (state, PARAMETERS)


def test_what_a_start_freezes_has_no_place_in_the_state_of_the_optimizer():
    start = Initialization(lambda net, seed: net.init(generator(seed, "init")), lambda name: name.startswith("hidden"))
    pool = tiny([0]).pool(dtype=torch.float64)
    for optimizer, kept in ((adam(0.1), {"mean.head.weight", "mean.head.bias", "square.head.weight",
                                         "square.head.bias", "step"}),
                            (sgd(0.1, momentum=0.9), {"head.weight", "head.bias"})):
        state = gradient_learner(NET, optimizer, {}, start).init(0, pool)
        assert state["optimizer"].keys() == kept and len(state["params"]) == 4


def test_what_a_lane_takes_grows_with_what_autograd_keeps_of_an_example():
    stack = lanes("finetune", [0, 1], pictures(56), net=conv4((1, 56, 56), 2, width=1))
    more, _ = training_bytes(stack, 20)
    less, _ = training_bytes(stack, 10)
    sides = (28, 14, 7, 4)
    # of each layer its output before normalisation and before ReLU, in float64; twice, for rehearsed ones come along
    assert (more - less) / 20 > 8 * 2 * sum(side**2 for side in sides)


def test_a_curve_holds_what_a_shorter_run_ends_with():
    measured, _ = trained(lanes("finetune", [0, 1]), Budget(5, 1, 6), eval_every=4)
    short, _ = trained(lanes("finetune", [0, 1]), Budget(5, 1, 4))
    assert measured.curve_step[:, 1].tolist() == [4, 4, 4]
    assert torch.equal(measured.curve[0], short.accuracy[:, 1])


# ---- lanes that diverge


HUGE = {("optimizer", "lr"): [0.1, 1e200, 0.1]}


def exploding(step: int) -> Any:
    """finetune whose loss is not finite from `step` of task 1 on, in lanes where `boom` is 1."""
    from lifelong import Part
    from lifelong.spec.expression import Term

    def strategy(boom: float = 0.0) -> Part:
        def loss(view: Any) -> Tensor:
            now = (view.state["n"] >= step) & (view.task == 1)
            return torch.where(now & (boom > 0), torch.inf, 0.0)
        return Part(init=lambda view: {"n": torch.zeros((), dtype=torch.int64)}, loss=loss,
                    step=lambda view: {"n": torch.where(view.task == 1, view.state["n"] + 1, 0)})

    def make(hyper: Mapping[Any, Any]) -> Any:
        return compose([Term("boom", strategy)], {"net": NET}, sgd(0.1), hyper)

    return make


@pytest.mark.parametrize("step", [0, 3, 9])
def test_a_lane_that_diverges_says_when_and_keeps_what_was_measured(step):
    stack = Lanes(tiny([0, 1, 2]), [0, 1, 2], range(3), exploding(step), {(0, "boom"): [0.0, 1.0, 0.0]},
                  dtype=torch.float64)
    measured, _ = trained(stack)
    calm, _ = trained(lanes("finetune", [0, 1, 2]))
    assert measured.diverged.tolist() == [[-1, -1], [1, step], [-1, -1]]
    for i in (0, 2):
        assert torch.equal(measured.accuracy[i], calm.accuracy[i])
        torch.testing.assert_close(measured.loss[i], calm.loss[i])
    assert torch.equal(measured.accuracy[1, :2], calm.accuracy[1, :2])
    assert measured.accuracy[1, 2:].isnan().all() and measured.told[1, 2:].isnan().all()


@pytest.mark.parametrize("stacked", [True, False])
def test_a_run_whose_only_lane_diverges_stops_within_a_step(stacked):
    said: list[tuple[int, int]] = []
    stack = Lanes(tiny([0]), [0], [0], exploding(3), {(0, "boom"): [1.0]}, dtype=torch.float64, stacked=stacked)
    measured = train(stack, BUDGET, Rhythm(tell=lambda task, step, steps: said.append((task, step))))
    assert measured.diverged.tolist() == [[1, 3]]
    assert said[-1] == (1, 3), "three steps of task 1 were done, and no further one"
    assert measured.accuracy[0, :2].isfinite().all() and measured.accuracy[0, 2:].isnan().all()


def flawed(**hooks: Any) -> Any:
    """finetune with hooks that do something in lanes where `boom` is 1; `hooks` take a view and `boom`."""
    from lifelong import Part
    from lifelong.spec.expression import Term

    def strategy(boom: float = 0.0) -> Part:
        return Part(init=lambda view: {"n": torch.zeros((), dtype=torch.int64)}, step=lambda view: {"n": view.state["n"] + 1},
                    **{name: partial(hook, boom) for name, hook in hooks.items()})

    return lambda hyper: compose([Term("boom", strategy)], {"net": NET}, sgd(0.1), hyper)


def infinite_gradient(boom: Any, view: Any, grads: Any) -> Any:
    now = (view.state["n"] == 7) & (boom > 0)
    last = torch.arange(6) == 5  # of the unit of a class that comes later: the loss stays finite until then
    return grads | {"head.bias": torch.where(now & last, -torch.inf, grads["head.bias"])}


@pytest.mark.parametrize("stacked", [True, False])
def test_an_infinite_gradient_is_found_before_the_task_ends(stacked):
    stack = Lanes(tiny([0]), [0], [0, 0] if stacked else [0], flawed(grads=infinite_gradient),
                  {(0, "boom"): [1.0, 0.0][:1 + stacked]}, dtype=torch.float64, stacked=stacked)
    measured = train(stack, BUDGET)
    steps = int(trained(lanes("finetune", [0]))[0].steps[0, 0])
    assert measured.diverged[0, 0] == 0 and 7 <= measured.diverged[0, 1] <= steps, "it was noticed in a later task"
    assert measured.accuracy[0, 1:].isnan().all() and (not stacked or measured.diverged[1].tolist() == [-1, -1])


@pytest.mark.parametrize(("value", "lost"), [(torch.inf, True), (torch.nan, True), (-torch.inf, False)])
def test_one_infinite_score_is_divergence_unless_it_says_that_a_class_is_unknown(value, lost):
    def predict(boom: Any, view: Any, x: Tensor) -> Tensor:
        first = torch.arange(len(x)).unsqueeze(1) + torch.arange(6) == 0
        return torch.where(first & (boom > 0) & (view.state["n"] > 0), value, view.net.apply(view.params, x))

    stack = Lanes(tiny([0]), [0], [0, 0], flawed(predict=predict), {(0, "boom"): [1.0, 0.0]}, dtype=torch.float64)
    measured = train(stack, BUDGET)
    assert bool(measured.diverged[0, 0] == 0) == lost and measured.diverged[1].tolist() == [-1, -1]


def test_a_huge_step_size_leaves_the_neighbours_alone():
    stack = replace(lanes("er + ewc", [0, 0, 0], tiny([0]), hyper=HUGE), seeds=[0], at=[0, 0, 0])
    measured, states = trained(stack)
    calm, alone = trained(lanes("er + ewc", [0], stacked=False))
    assert measured.diverged[1, 0] == 0 and measured.diverged[[0, 2]].tolist() == [[-1, -1]] * 2
    for i in (0, 2):
        assert torch.equal(measured.accuracy[i], calm.accuracy[0])
        for k, p in alone[-1]["params"].items():
            torch.testing.assert_close(states[-1]["params"][k][i], p, rtol=1e-10, atol=1e-12)
        for k, v in alone[-1]["parts"]["er"].items():
            assert torch.equal(states[-1]["parts"]["er"][k][i], v)
    assert measured.accuracy[1, 1:].isnan().all()


def test_scores_that_are_not_numbers_are_divergence_too():
    def learner(bad_after: int) -> Learner:
        return Learner(lambda seed, pool: {"n": torch.zeros((), dtype=torch.float64)},
                       lambda state, pool, batch: ({"n": state["n"] + 1}, {}),
                       lambda state, pool, x: torch.where(state["n"] > bad_after, torch.nan, x[:, :6]))
    stack = Lanes(tiny([0, 1]), [0, 1], range(2), lambda hyper: learner(12), dtype=torch.float64)
    measured, _ = trained(stack)
    assert measured.diverged.tolist() == [[1, 10], [1, 10]]  # noticed when task 1's ten steps were done
    assert measured.accuracy[:, 2].isnan().all() and measured.accuracy[:, 1].isfinite().all()


def test_an_object_that_diverges_says_when():
    class Numb:
        def __init__(self, bad: Any, at: int) -> None:
            self.steps, self.bad, self.at = 0, bad, at

        def observe(self, x: Tensor, y: Tensor, task: int | None) -> Any:
            self.steps += 1
            return self.bad if self.steps > self.at else 1.0

        def end_task(self) -> None: ...

        def predict(self, x: Tensor) -> Tensor:
            return x[:, :6]

    nan = float("nan")
    for bad in (nan, float("inf"), torch.tensor(nan), np.float64(nan), np.float32(nan), np.array(nan)):
        measured = train_object(lambda: Numb(bad, 12), tiny([0]), 0, 0, BUDGET)
        assert measured.diverged.tolist() == [[1, 2]]
        assert measured.accuracy[0, 1].isfinite().all() and measured.accuracy[0, 2:].isnan().all()


def test_an_object_that_returns_its_loss_has_it_logged():
    class Told:
        def observe(self, x: Tensor, y: Tensor, task: int | None) -> float:
            return 2.5

        def end_task(self) -> None: ...

        def predict(self, x: Tensor) -> Tensor:
            return x[:, :6]

    measured = train_object(Told, tiny([0]), 0, 0, BUDGET)
    assert measured.loss.tolist() == [[2.5] * 3]


# ---- lanes that wait

# Tasks of 12 and of 10 examples in batches of 5: the first seed makes six steps of a task, the second four, and waits.
WAITING = [0, 2]


@pytest.mark.parametrize(("strategy", "optimizer"), [
    ("finetune", sgd(0.1, momentum=0.9)), ("er(capacity=8) + ewc", adam(0.01)), ("derpp(capacity=8)", sgd(0.1)),
    ("er(memory='ring', capacity=8) + lwf", sgd(0.1, momentum=0.9)), ("agem", adam(0.01)), ("cumulative", sgd(0.1)),
    ("ncm", sgd(0.1))])
def test_a_lane_that_waits_for_a_longer_one_ends_as_its_run_alone(strategy, optimizer):
    both, states = trained(lanes(strategy, WAITING, tiny(WAITING, length=12), optimizer))
    for i, seed in enumerate(WAITING):
        alone, own = trained(lanes(strategy, [seed], tiny([seed], length=12), optimizer, stacked=False))
        assert torch.equal(both.accuracy[i], alone.accuracy[0]) and torch.equal(both.steps[i], alone.steps[0])
        torch.testing.assert_close(both.loss[i], alone.loss[0], rtol=1e-10, atol=1e-12, equal_nan=True)
        for many, one in zip(states, own, strict=True):  # parameters, the optimizer's state, and what is remembered
            tree(partial(same, lane=i), many, one)
    if strategy != "cumulative":
        assert both.steps.tolist() == [[6] * 3, [4] * 3]


def same(many: Tensor, one: Tensor, lane: int) -> None:
    """Whether a lane's part of a state is that of its run alone; whole numbers are equal."""
    if one.dtype.is_floating_point:
        torch.testing.assert_close(many[lane], one, rtol=1e-9, atol=1e-11)
    else:
        assert torch.equal(many[lane], one)


def test_the_loss_of_a_lane_that_waits_is_the_mean_of_its_own_steps():
    logged: dict[int, list[float]] = {0: [], 2: []}
    for seed, losses in logged.items():
        stack = lanes("finetune", [seed], tiny([seed], length=12), stacked=False)
        state = stack.init()
        for _, batch in batches(stack, plan(stack.stream, [seed], 0, "task", BUDGET), 0, 0):
            state, logs = stack.observe(state, batch)
            losses.append(float(logs["loss"]))
    assert [len(losses) for losses in logged.values()] == [6, 4]
    measured, _ = trained(lanes("finetune", WAITING, tiny(WAITING, length=12)))
    for i, losses in enumerate(logged.values()):
        assert measured.loss[i, 0].item() == pytest.approx(sum(losses) / len(losses), rel=1e-10)


def test_a_lane_that_waits_is_measured_as_it_was_when_it_stopped():
    stream = tiny(WAITING, length=12)
    measured, _ = trained(lanes("finetune", WAITING, stream), eval_every=1)
    assert measured.curve_step[:5].tolist() == [[0, step] for step in range(1, 6)]
    assert torch.equal(measured.curve[4, 1], measured.curve[3, 1])
    assert torch.equal(measured.accuracy[1, 1], measured.curve[3, 1])
    assert not torch.equal(measured.curve[:4, 1], measured.curve[:1, 1].expand(4, -1)), "it did learn before"


def test_a_lane_that_waits_does_not_diverge():
    """The loss of pads is no loss: it is neither counted nor looked at."""

    def learner() -> Learner:
        def observe(state: Any, pool: Any, batch: Any) -> Any:
            real = (batch.rows >= 0).any()
            return {"n": state["n"] + real}, {"loss": torch.where(real, 1.0, torch.nan)}

        return Learner(lambda seed, pool: {"n": torch.zeros((), dtype=torch.int64)}, observe,
                       lambda state, pool, x: x[:, :6])

    stack = Lanes(tiny(WAITING, length=12), WAITING, range(2), lambda hyper: learner(), dtype=torch.float64)
    measured, states = trained(stack)
    assert measured.diverged.tolist() == [[-1, -1]] * 2 and measured.loss.tolist() == [[1.0] * 3] * 2
    assert [state["n"].tolist() for state in states] == [[6, 4], [12, 8], [18, 12]]


# ---- scenarios


def fixed(table: Tensor) -> Learner:
    """A learner that answers each example with its row of `table`, and learns nothing."""
    return Learner(lambda seed, pool: {"table": table}, lambda state, pool, batch: (state, {}),
                   lambda state, pool, x: state["table"].index_select(0, x[:, 0].long()))


def counted(scenario: str) -> Stream:
    """Twelve examples that are their own number, class i // 2 in task i // 4; the odd ones are for testing."""
    rows = torch.arange(12)
    classes = torch.eye(3, dtype=torch.bool).repeat_interleave(2, 1).unsqueeze(0)
    return Stream("counted-v1", rows.double().unsqueeze(1), rows // 2, rows[::2].view(1, 3, 2),
                  rows[1::2].view(1, 3, 2), classes, (1,), scenario)


def test_the_task_told_at_test_time_is_a_mask_on_the_answers():
    # Test examples 1 3 | 5 7 | 9 11 have classes 0 1 | 2 3 | 4 5. All answer 5 first, then their own class, but 3
    # answers 0 before 1: of the six 11 is right anyhow, and told its task all but 3.
    table = torch.zeros(12, 6, dtype=torch.float64)
    for i in range(12):
        table[i, i // 2] = 1.0
    table[3, 0] = 2.0
    table[:, 5] = 3.0
    for scenario, free in (("class", [[0, 0, 0.5]]), ("task", [[0.5, 1, 0.5]])):
        stack = Lanes(counted(scenario), [0], [0], lambda hyper: fixed(table), dtype=torch.float64)
        got = evaluate(stack, stack.init())
        # Example 9 has class 4 and answers 5, a unit of its own task, even when told.
        assert got[0].tolist() == free
        assert got[1].tolist() == [[0.5, 1, 0.5]]


def test_a_task_incremental_learner_trains_its_tasks_units_alone():
    stream = replace(tiny([0]), scenario="task")
    stack = lanes("finetune", [0], stream)
    before = stack.init()["params"]["head.weight"][0].clone()
    _, states = trained(stack, Budget(5, 1))
    after = states[0]["params"]["head.weight"][0]
    assert not torch.equal(after[:2], before[:2])
    assert torch.equal(after[2:], before[2:])
    class_after = trained(lanes("finetune", [0]), Budget(5, 1))[1][0]["params"]["head.weight"][0]
    assert not torch.equal(class_after[2:], before[2:])


def test_a_task_incremental_learner_is_asked_among_its_tasks_units():
    measured, _ = trained(lanes("finetune", [0], replace(tiny([0]), scenario="task")))
    assert torch.equal(measured.accuracy, measured.told)
    assert measured.accuracy[0, 3].mean() > 0.8
    blind, _ = trained(lanes("finetune", [0]))
    assert blind.accuracy[0, 3, 0] < blind.told[0, 3, 0]


@pytest.mark.parametrize("strategy", ["finetune", "er + ewc", "slda"])
def test_being_told_the_task_never_makes_a_right_answer_wrong(strategy):
    measured, _ = trained(lanes(strategy, [0, 1, 2]), Budget(5, 1))
    assert (measured.told >= measured.accuracy).all()
    assert (measured.told > measured.accuracy).any()


def noting(ends: list[int]) -> Learner:
    """A learner that keeps the largest task number it was given, and lists the ends of tasks it is told of."""
    def end_task(state: dict[str, Tensor], pool: Any, batch: Any) -> dict[str, Tensor]:
        ends.append(len(ends))
        return state
    return Learner(lambda seed, pool: {"task": torch.tensor(-1)},
                   lambda state, pool, batch: ({"task": torch.maximum(state["task"], batch.task)}, {}),
                   lambda state, pool, x: x[:, :6], end_task)


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize(("boundaries", "tasks", "n_ends"), [(True, [0, 1, 2], 3), (False, [0, 0, 0], 0)])
def test_a_stream_without_boundaries_tells_neither_task_nor_end(boundaries, tasks, n_ends, stacked):
    ends: list[int] = []
    learner = noting(ends)
    stack = Lanes(tiny([0], boundaries), [0], [0], lambda hyper: learner, dtype=torch.float64, stacked=stacked)
    _, states = trained(stack, Budget(5, 1, 2))
    assert [int(s["task"]) for s in states] == tasks
    assert len(ends) == n_ends


# ---- resuming


@pytest.mark.parametrize("strategy", ["er + ewc", "slda", "joint + lwf"])
def test_a_run_resumed_anywhere_ends_with_the_same_bits(strategy):
    taken: list[dict[str, Any]] = []
    stream = tiny(WAITING, length=12)  # resumed, too, where one of the two waits
    whole = train(lanes(strategy, WAITING, stream), BUDGET, Rhythm(4, 0.0, lambda c: taken.append(copied(c))))
    for checkpoint in taken[::2]:
        again = train(lanes(strategy, WAITING, stream), BUDGET, Rhythm(4), copied(checkpoint))
        for name, value in vars(whole).items():
            torch.testing.assert_close(getattr(again, name), value, rtol=0, atol=0, equal_nan=True, msg=name)


def test_a_diverged_lane_stays_so_when_resumed():
    taken: list[dict[str, Any]] = []
    make = lambda: Lanes(tiny([0, 1]), [0, 1], range(2), exploding(3), {(0, "boom"): [0.0, 1.0]},  # noqa: E731
                         dtype=torch.float64)
    whole = train(make(), BUDGET, Rhythm(0, 0.0, lambda c: taken.append(copied(c))))
    for checkpoint in taken[::4]:
        again = train(make(), BUDGET, Rhythm(), copied(checkpoint))
        torch.testing.assert_close(again.accuracy, whole.accuracy, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(again.diverged, whole.diverged)


# ---- networks and pools


@pytest.mark.parametrize("stacked", [True, False])
def test_what_was_learned_is_asked_again_where_the_stream_wants_it(stacked):
    seeds = [0, 1] if stacked else [1]
    stream = replace(tiny(seeds), retention=True)
    measured, states = trained(lanes("finetune", seeds, stream, stacked=stacked))
    assert measured.retained.shape == (len(seeds), 4, 3)
    assert measured.retained[:, 0].isnan().all()
    for lane in range(len(seeds)):
        for after, state in enumerate(states):
            params = {k: p[lane] if stacked else p for k, p in state["params"].items()}
            for task in range(3):
                rows = stream.train[lane, task][stream.train[lane, task] >= 0]
                right = (NET.apply(params, stream.x[rows].double()).argmax(-1) == stream.y[rows]).double().mean()
                found = measured.retained[lane, 1 + after, task]
                assert found == pytest.approx(float(right)) if task <= after else found.isnan()
    assert trained(lanes("finetune", seeds, stacked=stacked))[0].retained.isnan().all()


def test_a_torch_module_trains_as_by_hand():
    net = from_module(lambda: torch.nn.Sequential(torch.nn.Linear(8, 9), torch.nn.Tanh(), torch.nn.Linear(9, 6)),
                      torch.ones(2, 8))
    stream = tiny([3])
    params = {k: p.double().requires_grad_() for k, p in net.init(generator(3, "init")).items()}
    module = torch.nn.Sequential(torch.nn.Linear(8, 9), torch.nn.Tanh(), torch.nn.Linear(9, 6)).double()
    module.load_state_dict(params)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for batch in plan(stream, [3], 0, "task", BUDGET).rows[0].split(5):
        batch = batch[batch >= 0]
        optimizer.zero_grad()
        F.cross_entropy(module(stream.x[batch]), stream.y[batch]).backward()
        optimizer.step()
    _, states = trained(lanes("finetune", [3, 4], net=net))
    for k, p in module.state_dict().items():
        torch.testing.assert_close(states[0]["params"][k][0], p, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stored", [torch.uint8, torch.float32, torch.float64])
def test_a_pool_gives_the_same_examples_in_every_precision(stored, dtype):
    rows = torch.arange(12)
    stream = replace(counted("class"), x=rows.to(stored).unsqueeze(1), scale=0.5 if stored == torch.uint8 else 1.0)
    x, _ = stream.pool(dtype=dtype).fetch(rows)
    assert x.dtype == dtype and x.flatten().tolist() == [i * stream.scale for i in range(12)]


def test_lanes_fetch_what_each_lanes_own_pool_does():
    warp = torch.stack([torch.randperm(4, generator=torch.Generator().manual_seed(i)) for i in range(6)]).view(2, 3, 4)
    x = torch.cat([torch.arange(1, 49).view(12, 4), torch.zeros(12, 1, dtype=torch.int64)], 1).to(torch.uint8)
    y = torch.arange(12) % 2
    train_rows = torch.stack([torch.arange(3).view(3, 1) * 12 + torch.arange(8)] * 2)
    stream = Stream("warped-v1", x, y, train_rows, train_rows[..., :4] + 8, torch.ones(2, 3, 2, dtype=torch.bool), (2, 2),
                    "domain", warp=warp)
    stack = Lanes(stream, [0, 1], [1, 0, 1], lambda hyper: fixed(torch.zeros(1)))
    rows = torch.tensor([[0, 13, 35, -1], [5, 5, 30, 12], [35, 1, -1, 20]])
    images, units = stack.fetch(rows)
    for lane, at in enumerate([1, 0, 1]):
        alone = stream.pool().lane({k: v[0] for k, v in stream.lanes([at]).items()})
        one, unit = alone.fetch(rows[lane])
        real = rows[lane] >= 0
        assert torch.equal(images[lane][real], one[real]) and torch.equal(units[lane][real], unit[real])


def small(name: str, seeds: list[int]) -> Stream:
    if name == "split":
        return digits.split(seeds, tasks=3, scenario="domain")
    return getattr(digits, name)(seeds, tasks=3, examples=30)


@pytest.mark.parametrize(("name", "own"), [("rotated", "warp"), ("permuted", "warp"), ("split", "label")])
def test_lanes_fetch_from_real_streams_what_each_lanes_own_pool_does(name, own):
    stream, at = small(name, [4, 7]), [1, 0, 1]
    assert getattr(stream, own) is not None
    stack = Lanes(stream, [4, 7], at, lambda hyper: fixed(torch.zeros(1)))
    rows = stream.train[at].flatten(1)[:, ::7]
    images, units = stack.fetch(rows)
    for lane, position in enumerate(at):
        pool = stream.pool().lane({k: v[0] for k, v in stream.lanes([position]).items()})
        one, unit = pool.fetch(rows[lane])
        real = rows[lane] >= 0
        assert real.sum() > 10
        assert torch.equal(images[lane][real], one[real]) and torch.equal(units[lane][real], unit[real])


# ---- the lift


class Pair(NamedTuple):
    matrix: Tensor
    more: dict[str, Tensor]


def test_the_lift_is_vmap_on_nested_dicts_and_named_tuples():
    def f(state: dict[str, Any], pair: Pair, n: Tensor) -> tuple[Any, ...]:
        picked = torch.where(n > 1, pair.matrix, -pair.matrix) @ state["a"]["w"]
        grads = torch.func.grad(lambda w: (w * pair.more["v"]).square().sum())(state["a"]["w"])
        same = torch.ones(2)  # the same for all lanes
        return {"x": picked, "deep": {"n": n + 1}}, Pair(pair.matrix.index_select(0, n.view(1)), {"g": grads}), (same, n)

    g = torch.Generator().manual_seed(0)
    args = ({"a": {"w": torch.randn(3, 4, generator=g)}, "empty": {}},
            Pair(torch.randn(3, 5, 4, generator=g), {"v": torch.randn(3, 4, generator=g)}), torch.arange(3))
    mine, theirs = lift(f, 3, *args), torch.func.vmap(f)(*args)
    assert isinstance(mine[1], Pair) and mine[2][0].shape == (3, 2)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("value", [1.0, None, "x", [torch.zeros(2)]])
def test_the_lift_refuses_what_is_no_tensor_and_stays_usable(value):
    x = torch.arange(3.0)
    with pytest.raises(TypeError):
        lift(lambda t: {"a": t, "b": value}, 3, x)
    with pytest.raises(TypeError):
        lift(lambda t, v: t, 3, x, {"b": value})
    with pytest.raises(ZeroDivisionError):
        lift(lambda t: 1 / 0, 3, x)
    assert torch._C._functorch.maybe_current_level() is None
    assert torch.equal(lift(lambda t: t + 1, 3, x), x + 1)


@pytest.mark.parametrize("strategy", ["er + ewc + lwf", "agem", "slda"])
def test_a_torch_without_the_lifts_internals_trains_the_same(strategy, monkeypatch):
    hyper = {("optimizer", "lr"): [0.1, 0.2, 0.3]} if strategy != "slda" else {}
    fast, fast_states = trained(lanes(strategy, [0, 1, 2], hyper=hyper))
    monkeypatch.setattr(vmap, "_add_batch_dim", None)
    slow, slow_states = trained(lanes(strategy, [0, 1, 2], hyper=hyper))
    assert torch.equal(fast.accuracy, slow.accuracy)
    torch.testing.assert_close(fast_states[-1], slow_states[-1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("strategy", "scenario"), [
    ("finetune", "class"), ("er", "task"), ("ewc", "task"), ("er(replay=3) + ewc + lwf", "class"),
    ("er(replay=3) + ewc + lwf", "task"), ("agem", "class"), ("joint", "class")])
@pytest.mark.parametrize(("model", "shape"), [
    ("mlp", (6,)), ("mlp(hidden=())", (6,)), ("mlp(hidden=(7,5,3))", (2, 3)), ("conv4(width=3)", (1, 6, 6))])
@pytest.mark.parametrize("stacked", [True, False])
def test_the_fast_path_takes_the_steps_of_the_plain_one(strategy, scenario, model, shape, stacked, monkeypatch):
    g = torch.Generator().manual_seed(0)
    seeds = [0, 1] if stacked else [0]
    x, y = torch.randn(40, *shape, generator=g, dtype=torch.float64), torch.arange(40) % 4
    rows = torch.stack([torch.arange(40)[y // 2 == task] for task in range(2)]).expand(len(seeds), 2, 20)
    classes = torch.eye(2, dtype=torch.bool).repeat_interleave(2, 1).expand(len(seeds), 2, 4)
    stream = Stream("made-v1", x, y, rows[..., :13], rows[..., 13:], classes, shape, scenario)
    states = []
    net = expression.build(expression.parse(model, "models")[0], {"shape": shape, "n_classes": 4})
    for fast in (True, False):
        monkeypatch.setattr(lifted, "FAST", fast)
        stack = lanes(strategy, seeds, stream, sgd(0.05, 0.5), net, stacked=stacked)
        assert (stack.forward is not None) == (fast and (stacked or "mlp" in model))
        measured, kept = trained(stack)
        states.append({"state": kept[-1], "loss": measured.loss, "accuracy": measured.accuracy})
    torch.testing.assert_close(states[0], states[1], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("at", [[0, 1, 2], [0, 1, 2, 0, 1, 2], [2, 1], [1]])
@pytest.mark.parametrize("make", [digits.rotated, digits.permuted])
def test_kept_test_examples_are_those_that_would_be_made(make, at, monkeypatch):
    stream = make(range(3), tasks=3, examples=30)
    net = mlp(stream.shape, 10, (12,))

    stack = replace(lanes("finetune", [0, 1, 2], stream, net=net), at=at, stacked=len(at) > 1)
    rows = stream.test.flatten(1)[torch.tensor(at)]
    a, b = 5, rows.shape[1] - 7
    kept = stack.examined(rows[:, a:b], a, b)
    made = stack.fetch(rows[:, a:b] if len(at) > 1 else rows[0, a:b])
    assert stack._examined is not None
    assert torch.equal(kept[0], made[0]) and torch.equal(kept[1], made[1])
    accuracy = evaluate(stack, stack.init())
    monkeypatch.setattr(lifted, "EXAMINED", 0)
    again = replace(stack)
    assert all(map(torch.equal, accuracy, evaluate(again, again.init()))) and again._examined is None


@pytest.mark.parametrize("count", [1, 7])
def test_derivatives_by_hand_are_those_of_autograd(count):
    net = mlp((2, 3), 4, hidden=(5, 3))
    params = {k: p.double() for k, p in net.init(generator(0)).items()}
    x, towards = (torch.randn(count, *s, generator=generator(1), dtype=torch.float64) for s in ((2, 3), (4,)))
    leaves = {k: p.clone().requires_grad_() for k, p in params.items()}
    whole = dict(zip(leaves, torch.autograd.grad(net.apply(leaves, x), list(leaves.values()), towards), strict=True))
    assert net.vjp is not None
    for names in (list(params), ["head.weight"], ["hidden1.bias", "head.bias"], ["hidden0.weight"], []):
        scores, back = net.vjp(params, x)
        grads = back(towards, names)
        torch.testing.assert_close(scores, net.apply(params, x))
        torch.testing.assert_close(grads, {k: whole[k] for k in names})


# ---- objects


class Plain:
    """Plain torch in a plain object; with `noise` it draws from every global generator at every step and answer."""

    def __init__(self, seed: int = 0, noise: bool = False) -> None:
        self.params = {k: p.requires_grad_() for k, p in NET.init(generator(seed, "init")).items()}
        self.optimizer = torch.optim.SGD(self.params.values(), 0.1)
        self.noise, self.drawn, self.tasks = noise, [], []  # type: ignore[var-annotated]

    def draw(self) -> float:
        return float(torch.rand(())) + float(np.random.rand()) + random.random() if self.noise else 0.0

    def observe(self, x: Tensor, y: Tensor, task: int | None) -> float:
        self.drawn.append(self.draw())
        self.tasks.append(task)
        loss = F.cross_entropy(NET.apply(self.params, x + 0.3 * self.drawn[-1]), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def end_task(self) -> None:
        self.tasks.append("end")

    def predict(self, x: Tensor) -> Tensor:
        self.draw()
        return NET.apply(self.params, x)


class Saved(Plain):
    """The same, able to go on where it stopped."""

    def state_dict(self) -> dict[str, Any]:
        return {k: p.detach().clone() for k, p in self.params.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for k, p in self.params.items():
            p.data.copy_(state[k])


def keeping(made: list[Any], kind: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    def make() -> Any:
        made.append(kind(*args))
        return made[-1]
    return make


def test_an_object_that_does_what_finetune_does_ends_where_finetune_ends():
    made: list[Any] = []
    measured = train_object(keeping(made, Plain, 2), tiny([0, 2]), 1, 2, BUDGET)
    engine, states = trained(lanes("finetune", [2], dtype=torch.float32, stacked=False))
    assert torch.equal(measured.accuracy, engine.accuracy) and torch.equal(measured.told, engine.told)
    torch.testing.assert_close(measured.loss, engine.loss, rtol=1e-5, atol=1e-6)
    for k, p in made[0].params.items():
        torch.testing.assert_close(states[-1]["params"][k], p.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("boundaries", "told"), [
    (True, [0, 0, "end", 1, 1, "end", 2, 2, "end"]), (False, [None] * 6)])
def test_an_object_is_told_tasks_and_ends_only_where_boundaries_are(boundaries, told):
    made: list[Any] = []
    train_object(keeping(made, Plain), tiny([0], boundaries), 0, 0, Budget(5, 1, 2))
    assert made[0].tasks == told


@pytest.mark.parametrize(("answer", "got"), [
    (lambda x: x[:, 0], r"\[16\]"), (lambda x: x[:, :5], r"\[16, 5\]"), (lambda x: x[1:, :6], r"\[15, 6\]")])
def test_an_object_that_answers_in_another_shape_is_told_both(answer, got):
    class Odd(Plain):
        def predict(self, x: Tensor) -> Tensor:
            return answer(x)

    with pytest.raises(TypeError, match=r"Odd.predict must return scores \[n, C\] = \[16, 6\], got " + got):
        train_object(Odd, tiny([0]), 0, 0, BUDGET)


@pytest.mark.parametrize("returned", [{"loss": 1.0}, "x", torch.ones(3)])
def test_an_object_that_returns_something_else_than_a_loss_is_told_so(returned):
    class Odd(Plain):
        def observe(self, x: Tensor, y: Tensor, task: int | None) -> Any:
            return returned

    with pytest.raises(TypeError, match=r"Odd\.observe"):
        train_object(Odd, tiny([0]), 0, 0, BUDGET)


@pytest.mark.parametrize("method", METHODS)
def test_an_object_without_a_method_is_told_which_before_it_is_trained(method):
    half = type("Half", (), {name: lambda self, *_: pytest.fail("used") for name in METHODS if name != method})
    with pytest.raises(TypeError, match=f"Half has no method {method}"):
        train_object(half, tiny([0]), 0, 0, BUDGET)


def test_measuring_an_object_leaves_every_global_generator_as_it_was():
    rare, often = [], []  # type: ignore[var-annotated]
    a = train_object(keeping(rare, Plain, 0, True), tiny([0]), 0, 0, BUDGET)
    b = train_object(keeping(often, Plain, 0, True), tiny([0]), 0, 0, BUDGET, Rhythm(eval_every=1))
    assert len(set(rare[0].drawn)) == 30
    assert rare[0].drawn == often[0].drawn
    assert torch.equal(a.accuracy, b.accuracy) and len(b.curve) == 27


@pytest.mark.parametrize("kind", [Saved, Plain])
def test_an_object_resumed_anywhere_ends_with_the_same_accuracy(kind):
    taken: list[dict[str, Any]] = []
    whole = train_object(keeping([], kind, 0, True), tiny([0]), 0, 0, BUDGET,
                         Rhythm(4, 0.0, lambda c: taken.append(copy.deepcopy(c))))
    assert len(taken) == 30
    for checkpoint in taken[2::9]:
        made: list[Any] = []
        again = train_object(keeping(made, kind, 0, True), tiny([0]), 0, 0, BUDGET, Rhythm(4), resume=copy.deepcopy(checkpoint))
        done = checkpoint["task"] * 10 + checkpoint["step"]
        assert len(made[0].drawn) == (30 - done if kind is Saved else 30)
        for name, value in vars(whole).items():
            torch.testing.assert_close(getattr(again, name), value, rtol=0, atol=0, equal_nan=True, msg=name)
