"""Penalties on parameters against plain loops that write the penalty into the loss, and against what they promise."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lifelong.strategies.regularise import _unit_range, ewc, l2, mas, rwalk, si
from torch import Tensor, nn

from lifelong.data.pool import Pool
from lifelong.learning.composition import gradient_learner
from lifelong.learning.importance import fisher
from lifelong.learning.learner import Batch, Learner
from lifelong.learning.optim import Optimizer, adam, sgd
from lifelong.learning.parts import Part, View
from lifelong.networks.mlp import mlp
from lifelong.networks.module import from_module
from lifelong.networks.net import Net, Params

NET = mlp((8,), 6, (7,))
POOL = Pool(torch.randn(30, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
            torch.arange(30) % 6, (8,), torch.eye(3, dtype=torch.bool).repeat_interleave(2, 1), "class",
            dtype=torch.float64)
TASKS, STEPS = 3, 7


def rows_of(task: int, step: int) -> Tensor:
    """Five examples, of different kinds in every task."""
    return torch.randint(10 * task, 10 * task + 10, (5,), generator=torch.Generator().manual_seed(97 * task + step))


def whole(task: int) -> Tensor:
    return torch.arange(10 * task, 10 * task + 10)


def given(rows: Tensor, task: int, **u: Tensor) -> Batch:
    return Batch(rows, torch.full((len(rows),), 1 / len(rows), dtype=torch.float64), u, torch.tensor(task))


def learned(parts: dict[str, Part], optimizer: Optimizer, tasks: int = TASKS) -> dict[str, Any]:
    """The state after the tasks."""
    learner = gradient_learner(NET, optimizer, parts)
    state = learner.init(0, POOL)
    for task in range(tasks):
        for step in range(STEPS):
            state, _ = learner.observe(state, POOL, given(rows_of(task, step), task))
        state = learner.end_task(state, POOL, given(whole(task), task, **dict.fromkeys(parts, torch.rand(10))))
    return state


class Plain:
    """Training in plain torch; a method adds its penalty to the loss, and looks at each step and task."""

    def __init__(self, make: Callable[[list[Tensor]], torch.optim.Optimizer]) -> None:
        start = gradient_learner(NET, sgd(), {}).init(0, POOL)["params"]
        self.names = list(start)
        self.p = [v.clone().requires_grad_() for v in start.values()]
        self.optimizer = make(self.p)
        self.anchor = self.copy()
        self.importance = [torch.zeros_like(p) for p in self.p]
        self.begin()

    def copy(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.p]

    def scores(self, rows: Tensor) -> Tensor:
        return NET.apply(dict(zip(self.names, self.p, strict=True)), POOL.x[rows])

    def gradient(self, value: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(value, self.p, retain_graph=True))

    def begin(self) -> None: ...
    def stepped(self, task_gradient: list[Tensor], before: list[Tensor], rows: Tensor) -> None: ...
    def ended(self, task: int) -> None: ...

    def run(self, strength: float) -> Plain:
        for task in range(TASKS):
            for step in range(STEPS):
                rows = rows_of(task, step)
                loss = F.cross_entropy(self.scores(rows), POOL.y[rows])
                task_gradient = self.gradient(loss)
                penalty = sum((i * (p - a).square()).sum()
                              for i, p, a in zip(self.importance, self.p, self.anchor, strict=True))
                before = self.copy()
                self.optimizer.zero_grad()
                (loss + strength * penalty).backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                self.stepped(task_gradient, before, rows)
            self.ended(task)
            self.anchor = self.copy()
        return self


class PlainL2(Plain):
    def ended(self, task: int) -> None:
        self.importance = [torch.ones_like(p) for p in self.p]


class PlainSI(Plain):
    def begin(self) -> None:
        self.omega = [torch.zeros_like(p) for p in self.p]

    def stepped(self, task_gradient: list[Tensor], before: list[Tensor], rows: Tensor) -> None:
        for o, g, p, b in zip(self.omega, task_gradient, self.p, before, strict=True):
            o -= g * (p.detach() - b)

    def ended(self, task: int) -> None:
        for i, o, p, a in zip(self.importance, self.omega, self.p, self.anchor, strict=True):
            i += o.clamp(min=0) / ((p.detach() - a) ** 2 + 0.1)
            o.zero_()


class PlainMAS(Plain):
    def ended(self, task: int) -> None:
        for row in whole(task):
            length = self.scores(row.view(1)).square().sum()
            for i, g in zip(self.importance, self.gradient(length), strict=True):
                i += g.abs() / 10


class PlainRWalk(Plain):
    every = 3

    def begin(self) -> None:
        zero = [torch.zeros_like(p) for p in self.p]
        self.fisher, self.gain, self.path, self.score = (copy.deepcopy(zero) for _ in range(4))
        self.corner, self.count, self.first = self.copy(), 0, True

    def window(self) -> None:
        for path, gain, f, p, c in zip(self.path, self.gain, self.fisher, self.p, self.corner, strict=True):
            path += gain.clamp(min=0) / (0.5 * f * (p.detach() - c) ** 2 + 0.01)
            gain.zero_()
        self.corner, self.count = self.copy(), 0

    def stepped(self, task_gradient: list[Tensor], before: list[Tensor], rows: Tensor) -> None:
        new = [torch.zeros_like(p) for p in self.p]
        for row in rows:
            for n, g in zip(new, self.gradient(F.cross_entropy(self.scores(row.view(1)), POOL.y[row.view(1)])),
                            strict=True):
                n += g.square() / len(rows)
        for f, n in zip(self.fisher, new, strict=True):
            f.copy_(n if self.first else 0.8 * f + 0.2 * n)
        self.first = False
        for gain, g, p, b in zip(self.gain, task_gradient, self.p, before, strict=True):
            gain -= g * (p.detach() - b)
        self.count += 1
        if self.count == self.every:
            self.window()

    def ended(self, task: int) -> None:
        if self.count:
            self.window()
        self.score = [p.clone() if task == 0 else (s + p) / 2 for s, p in zip(self.score, self.path, strict=True)]
        for p in self.path:
            p.zero_()

        def spanned(values: list[Tensor]) -> list[Tensor]:
            every = torch.cat([v.flatten() for v in values])
            return [(v - every.min()) / (every.max() - every.min()) for v in values]

        self.importance = [f + s for f, s in zip(spanned(self.fisher), spanned(self.score), strict=True)]


SGD = (sgd(lr=0.1), lambda p: torch.optim.SGD(p, 0.1))
ADAM = (adam(lr=0.01), lambda p: torch.optim.Adam(p, 0.01))


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize(("part", "plain", "strength"), [
    (l2(strength=0.6), PlainL2, 0.3), (si(strength=0.7), PlainSI, 0.7), (mas(strength=0.2), PlainMAS, 0.2),
    (rwalk(strength=0.9, share=0.2, every=3, damping=0.01), PlainRWalk, 0.9)], ids=["l2", "si", "mas", "rwalk"])
def test_training_is_that_of_a_plain_loop_with_the_penalty_in_the_loss(part, plain, strength, optimizer):
    ours, theirs = optimizer
    state, loop = learned({"it": part}, ours), plain(theirs).run(strength)
    own = state["parts"]["it"]
    for k, p, i in zip(loop.names, loop.p, loop.importance, strict=True):
        torch.testing.assert_close(state["params"][k], p.detach(), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(own["importance"][k].expand_as(i), i, rtol=1e-9, atol=1e-11)
        assert torch.equal(own["anchor"][k], state["params"][k])
    unheld = learned({}, ours)["params"]
    assert max(float((unheld[k] - p).abs().max()) for k, p in state["params"].items()) > 1e-3


@pytest.mark.parametrize("part", [l2(0.0), ewc(0.0), si(0.0), mas(0.0), rwalk(0.0)],
                         ids=["l2", "ewc", "si", "mas", "rwalk"])
def test_strength_0_is_fine_tuning(part):
    free, held = learned({}, sgd(lr=0.1))["params"], learned({"it": part}, sgd(lr=0.1))["params"]
    assert all(torch.equal(free[k], held[k]) for k in free)


def test_the_path_integral_is_the_drop_of_the_loss_for_small_steps():
    # Minus gradient times move, summed over a path of small steps, is by how much the loss fell on it; this holds in
    # the second task too, whose moves are also si's own penalty's. The network is smooth: at a kink no step is small.
    smooth = from_module(lambda: nn.Sequential(nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 6)), torch.ones(2, 8))
    learner = gradient_learner(smooth, sgd(lr=1e-4), {"si": si(strength=300.0)})
    state = learner.init(0, POOL)
    for task in range(2):
        batch = given(whole(task), task)
        losses = []
        for _ in range(200):
            state, logs = learner.observe(state, POOL, batch)
            losses.append(float(logs["loss"]))
        path = sum(float(v.sum()) for v in state["parts"]["si"]["path"].values())
        _, logs = learner.observe(state, POOL, batch)  # its loss is that after the last step
        assert path == pytest.approx(losses[0] - float(logs["loss"]), rel=1e-4)
        state = learner.end_task(state, POOL, given(whole(task), task, si=torch.rand(10)))
        assert not any(v.any() for v in state["parts"]["si"]["path"].values())


def test_what_a_start_freezes_does_not_matter_to_si_and_rwalk():
    from lifelong.learning.learner import Initialization
    from lifelong.randomness import generator

    start = Initialization(lambda net, seed: net.init(generator(seed, "init")), lambda name: name.startswith("hidden"))
    for part in (si(), rwalk()):
        learner = gradient_learner(NET, sgd(lr=0.1), {"it": part}, start)
        state = before = learner.init(0, POOL)
        state, _ = learner.observe(state, POOL, given(whole(0), 0))
        state = learner.end_task(state, POOL, given(whole(0), 0, it=torch.rand(10)))
        assert torch.equal(state["params"]["hidden0.weight"], before["params"]["hidden0.weight"])
        if "fisher" not in state["parts"]["it"]:
            assert not state["parts"]["it"]["importance"]["hidden0.weight"].any()
        assert state["parts"]["it"]["importance"]["head.weight"].any()


def test_unit_range_spans_all_parameters_together():
    got = _unit_range({"a": torch.tensor([2.0, 4.0]), "b": torch.tensor([[3.0], [10.0]])})
    assert got["a"].tolist() == [0, 0.25] and got["b"].tolist() == [[0.125], [1.0]]
    assert _unit_range({"a": torch.zeros(3)})["a"].tolist() == [0, 0, 0]


# ---- elastic weight consolidation on a problem that it solves exactly


def quadratic(curvature: dict[int, Params], minimum: dict[int, Params]) -> Part:
    """In place of the cross-entropy, task t's loss sum of curvature / 2 * (parameter - minimum)^2."""
    def loss(view: View) -> Tensor:
        total = view.batch.weight.new_zeros(())
        for t, curve in curvature.items():
            own = sum((c * (view.params[k] - minimum[t][k]).square()).sum() / 2 for k, c in curve.items())
            total = total + torch.where(view.task == t, own, 0.0)
        return total

    return Part(criterion=loss)


@pytest.mark.parametrize(("tasks", "mode", "exact"), [(2, "separate", True), (2, "online", True), (3, "online", True),
                                                      (3, "separate", False)])
def test_with_quadratic_losses_ewc_finds_the_minimum_of_all_tasks_together(tasks, mode, exact):
    # A linear network with two classes at weight 0 answers 1/2 each, whatever x, so its Fisher information is exactly
    # E[x_d^2] / 4. Every task's loss has this curvature and its minimum where the two classes' weights are equal:
    # there, too, the answers are 1/2. The last step of each task reaches the minimum of its loss plus the penalty.
    # From the third task on separate penalties count the first task more than once: their anchors have it in them.
    net = mlp((8,), 2, ())
    pool = Pool(POOL.x, torch.arange(30) % 2, (8,), torch.ones(tasks, 2, dtype=torch.bool), "domain",
                dtype=torch.float64)
    g = torch.Generator().manual_seed(3)
    curvature, minimum = {}, {}
    for t in range(tasks):
        squares = POOL.x[whole(t)].square().mean(0) / 4
        curvature[t] = {"head.weight": squares.expand(2, -1), "head.bias": torch.full((2,), 0.25).double()}
        minimum[t] = {"head.weight": torch.randn(8, generator=g, dtype=torch.float64).expand(2, -1),
                      "head.bias": torch.randn(1, generator=g, dtype=torch.float64).expand(2)}
    parts = {"ewc": ewc(strength=1.0, mode=mode), "quadratic": quadratic(curvature, minimum)}
    learner = gradient_learner(net, sgd(lr=0.5), parts)
    state = learner.init(0, pool)
    for t in range(tasks):
        for _ in range(500):
            state, _ = learner.observe(state, pool, given(whole(t), t))
        state = learner.end_task(state, pool, given(whole(t), t, ewc=torch.rand(10)))
    for k, p in state["params"].items():
        together = sum(curvature[t][k] * minimum[t][k] for t in range(tasks))
        together = together / sum(curvature[t][k] for t in range(tasks))
        assert torch.allclose(p, together, 1e-9, 1e-9) == exact


def ended(part: Part, u: Tensor, task: int = 0) -> tuple[Params, Params]:
    """Parameters, and the importance that `part` gives them for a task."""
    learner: Learner = gradient_learner(NET, sgd(), {"ewc": part})
    state = learner.end_task(learner.init(0, POOL), POOL, given(whole(task), task, ewc=u))
    return state["params"], state["parts"]["ewc"]["importance"]


@pytest.mark.parametrize(("labels", "batch"), [("exact", 3), ("sampled", 3), ("empirical", 3), ("batched", 3),
                                               ("batched", 10)])
def test_only_batched_labels_depend_on_the_batch(labels, batch):
    u = torch.rand(10, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    params, got = ended(ewc(labels=labels, batch=batch), u)
    weight = torch.full((10,), 0.1, dtype=torch.float64)
    want = fisher(NET, params, POOL, whole(0), weight, labels, batch, u)
    one = fisher(NET, params, POOL, whole(0), weight, labels, 1, u)
    for k in got:
        torch.testing.assert_close(got[k], want[k], rtol=1e-10, atol=1e-14)
    assert all(torch.allclose(one[k], got[k], 1e-10, 1e-14) for k in got) == (labels != "batched")


def test_labels_of_chosen_examples_are_drawn_from_fresh_numbers():
    # The 4 largest of 10 numbers choose the examples; all lie near 1, and as they stand would draw the last classes.
    u = torch.tensor([0.99, 0.1, 0.98, 0.2, 0.97, 0.3, 0.96, 0.4, 0.5, 0.6], dtype=torch.float64)
    params, got = ended(ewc(labels="sampled", samples=4), u)
    rows, quarter = torch.tensor([0, 2, 4, 6]), torch.full((4,), 0.25, dtype=torch.float64)
    want = fisher(NET, params, POOL, rows, quarter, "sampled", u=(u[rows] * 2**20) % 1)
    stale = fisher(NET, params, POOL, rows, quarter, "sampled", u=u[rows])
    assert all(torch.allclose(got[k], want[k], 1e-12, 1e-14) for k in got)
    assert not torch.allclose(got["head.bias"], stale["head.bias"])


@pytest.mark.parametrize(("make", "words"), [
    (lambda: ewc(labels="guessed"), "labels"), (lambda: ewc(batch=0), "batch must be 1"),
    (lambda: si(damping=0.0), "damping must be above 0"), (lambda: mas(strength=-1.0), "strength"),
    (lambda: rwalk(share=1.5), "share must be 1"), (lambda: rwalk(every=0), "every"), (lambda: l2(-1.0), "strength")])
def test_a_number_out_of_range_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_network_is_a_net():  # what `Plain` reads: parameters in the order of the network
    assert isinstance(NET, Net) and list(learned({}, sgd(), 1)["params"]) == Plain(SGD[1]).names
