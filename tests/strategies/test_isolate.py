"""Weights of a task's own: what was learned is answered with the same bits for ever after, and by the right weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lifelong.strategies.bounds import finetune, joint
from lifelong.strategies.isolate import packnet, progressive, xdg
from lifelong.strategies.project import agem
from lifelong.strategies.regularise import ewc, si
from lifelong.strategies.replay import er
from torch import Tensor, nn

from lifelong.data.pool import Pool
from lifelong.experiments.contract import Subject, tiny
from lifelong.learning.composition import gradient_learner
from lifelong.learning.lanes import Lanes
from lifelong.learning.learner import Batch, Learner
from lifelong.learning.optim import Optimizer, adam, sgd
from lifelong.learning.parts import Part, View
from lifelong.learning.schedule import Budget, batches, plan, whole_task
from lifelong.networks.conv import conv4
from lifelong.networks.mlp import mlp
from lifelong.networks.module import from_module
from lifelong.networks.net import Net, Params
from lifelong.spec.expression import parse

CLASSES = torch.eye(3, dtype=torch.bool).repeat_interleave(2, 1)


def pool(shape: tuple[int, ...] = (8,)) -> Pool:
    """Thirty examples; the rows of task t are those with y in {2t, 2t + 1}."""
    x = torch.randn(30, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Pool(x, torch.arange(30) % 6, shape, CLASSES, "task", dtype=torch.float64)


NETS: dict[str, tuple[Net, Pool]] = {
    "mlp": (mlp((8,), 6, (12, 9)), pool()),
    "conv4": (conv4((1, 5, 5), 6, 6), pool((1, 5, 5))),
    "module": (from_module(lambda: nn.Sequential(nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 6)), torch.ones(2, 8)), pool()),
}
OPTIMIZERS = {"adam": adam(lr=0.02), "momentum": sgd(lr=0.1, momentum=0.9, weight_decay=1e-4)}


def rows_of(lot: Pool, task: int) -> Tensor:
    return torch.arange(30)[lot.y // 2 == task]


def step(learner: Learner, state: dict[str, Any], lot: Pool, task: int) -> dict[str, Any]:
    rows = rows_of(lot, task)
    weight = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
    state, _ = learner.observe(state, lot, Batch(rows, weight, {}, torch.tensor(task)))
    return state


def end(learner: Learner, state: dict[str, Any], lot: Pool, task: int) -> dict[str, Any]:
    rows = rows_of(lot, task)
    weight = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
    u = dict.fromkeys(state["parts"], torch.rand(len(rows), dtype=torch.float64))
    return learner.end_task(state, lot, Batch(rows, weight, u, torch.tensor(task)))


def answers(learner: Learner, state: dict[str, Any], lot: Pool, task: int) -> Tensor:
    scores: Tensor = learner.predict(state, lot, lot.fetch(rows_of(lot, task))[0], torch.tensor(task))
    return scores[:, 2 * task:2 * task + 2]  # the only ones that compete


def run(part: Part, net: str = "mlp", optimizer: Optimizer = OPTIMIZERS["adam"], steps: int = 6,
        tasks: int = 3) -> tuple[Learner, list[dict[str, Any]]]:
    """The learner, and its state before the first task and after each."""
    network, lot = NETS[net]
    learner = gradient_learner(network, optimizer, {"it": part})
    states = [learner.init(0, lot)]
    for task in range(tasks):
        state = states[-1]
        for _ in range(steps):
            state = step(learner, state, lot, task)
        states.append(end(learner, state, lot, task))
    return learner, states


def worn(part: Part, state: dict[str, Any], net: str, task: int, params: Params | None = None) -> Params:
    """The weights that the network is applied with in a task."""
    assert part.weights
    network, lot = NETS[net]
    view = View(state["parts"]["it"], state["params"], network, lot, task=torch.tensor(task))
    return part.weights(view, params or state["params"])


ISOLATED = [(packnet(prune=0.5), "mlp"), (packnet(after=4), "mlp"), (packnet(), "conv4"), (packnet(), "module"),
            (progressive(), "mlp"), (progressive(), "conv4")]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("part", "net"), ISOLATED,
                         ids=["packnet", "packnet after", "packnet conv4", "packnet module", "progressive",
                              "progressive conv4"])
def test_what_was_learned_is_answered_with_the_same_bits_for_ever(part, net, optimizer):
    learner, states = run(part, net, OPTIMIZERS[optimizer])
    lot = NETS[net][1]
    for task in range(3):
        before, then = (answers(learner, states[t], lot, task) for t in (task, task + 1))
        assert not torch.equal(before, then), "the task itself is learned"
        for later in states[task + 2:]:
            assert torch.equal(answers(learner, later, lot, task), then)
    # The optimizer did move what is frozen: it is not for want of moving that answers stay.
    first, last = states[1]["params"], states[3]["params"]
    assert any(not torch.equal(first[k], last[k]) for k in first)


@pytest.mark.parametrize("strategy", ["packnet", "packnet(after=2)", "progressive"])
def test_it_holds_in_a_stack_too(strategy):
    optimizer = adam(lr=0.02)
    stream = tiny([0, 1], scenario="task")
    stack: Lanes = Lanes(stream, [0, 1], [0, 1], lambda hyper: gradient_learner(
        mlp((8,), 6, (12,)), optimizer, {"it": Subject(parse(strategy)).terms[0].factory(
            **Subject(parse(strategy)).terms[0].resolved())}), dtype=torch.float32)
    state, then = stack.init(), None
    x, _ = stack.fetch(stream.test[:, 0])
    answer = stack.each(lambda learner, pool, state, x, task: learner.predict(state, pool, x, task))
    for task in range(3):
        for _, batch in batches(stack, plan(stream, [0, 1], task, "task", Budget(5, 1)), task, 0):
            state, _ = stack.observe(state, batch)
        state = stack.end_task(state, whole_task(stack, task))
        with torch.no_grad():
            now = answer(state, x, torch.zeros(2, dtype=torch.int64))[..., :2].clone()
        assert then is None or torch.equal(now, then)
        then = now


@pytest.mark.parametrize("part", [finetune(), xdg()], ids=["finetune", "xdg"])
def test_without_isolation_answers_change(part):
    network, lot = NETS["mlp"]
    learner = gradient_learner(network, OPTIMIZERS["adam"], {"it": part})
    state = learner.init(0, lot)
    scores = []
    for task in range(2):
        for _ in range(6):
            state = step(learner, state, lot, task)
        state = end(learner, state, lot, task)
        x = lot.fetch(rows_of(lot, 0))[0]
        scores.append(learner.predict(state, lot, x, torch.tensor(0)))
    assert not torch.equal(*scores)


# ---- packnet


def test_packnet_keeps_the_largest_of_the_free_weights_and_zeroes_the_rest():
    part = packnet(prune=0.75)
    _, states = run(part)
    free = torch.ones(12, 8, dtype=torch.bool)
    left = 96
    for task in range(3):
        values = states[task + 1]["params"]["hidden0.weight"]
        threshold = values[free].abs().sort(descending=True).values
        keep = round(0.25 * left)
        mine = free & (values.abs() >= threshold[keep - 1])
        assert int(mine.sum()) == keep
        owner = states[task + 1]["parts"]["it"]["owner"]["hidden0.weight"]
        assert torch.equal(owner == task, mine)
        now = worn(part, states[task + 1], "mlp", task)["hidden0.weight"]
        assert torch.equal(now[mine], values[mine])
        assert torch.equal(now != 0, owner <= task), "its own weights and those of earlier tasks, nothing else"
        free, left = free & ~mine, left - keep
    early = worn(part, states[3], "mlp", 0)["hidden0.weight"]
    assert int((early != 0).sum()) == 24 == round(0.25 * 96)


def test_packnets_biases_are_the_first_tasks_and_output_units_their_own_tasks():
    part = packnet()
    _, states = run(part)
    owner = states[3]["parts"]["it"]["owner"]
    assert owner["hidden0.bias"].tolist() == [0] * 12
    assert owner["head.bias"].tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(owner["head.weight"], torch.tensor([0, 0, 1, 1, 2, 2]).unsqueeze(1).expand(6, 9).short())
    for task in range(3):
        last = worn(part, states[3], "mlp", task)["hidden1.bias"]
        assert torch.equal(last, states[1]["params"]["hidden1.bias"])


def test_packnet_trains_what_is_free_and_nothing_else():
    network, lot = NETS["mlp"]
    part = packnet(prune=0.5)
    _, states = run(part, tasks=1)
    state = states[1]
    x, y = lot.fetch(rows_of(lot, 1))
    leaves = {k: p.clone().requires_grad_() for k, p in state["params"].items()}
    nn.functional.cross_entropy(network.apply(worn(part, state, "mlp", 1, leaves), x), y).backward()
    for k, owner in state["parts"]["it"]["owner"].items():
        grad = leaves[k].grad
        assert grad is not None
        assert not grad[owner == 0].any()
        if leaves[k].dim() > 1 and k != "head.weight":
            assert grad[owner > 0].any()


def test_packnet_retrains_what_it_keeps_for_the_rest_of_the_task():
    network, lot = NETS["mlp"]
    part = packnet(prune=0.5, after=4)
    learner = gradient_learner(network, OPTIMIZERS["adam"], {"it": part})
    state = learner.init(0, lot)
    zeros = []
    for _ in range(6):
        state = step(learner, state, lot, 0)
        zeros.append(int((worn(part, state, "mlp", 0)["hidden0.weight"] == 0).sum()))
    assert zeros == [0, 0, 0, 48, 48, 48]
    at_end = end(learner, state, lot, 0)
    now, then = (worn(part, s, "mlp", 0)["hidden0.weight"] for s in (state, at_end))
    assert torch.equal(now, then), "pruned once, and the end of the task changes nothing more"
    state = step(learner, at_end, lot, 1)
    assert int((worn(part, state, "mlp", 1)["hidden0.weight"] == 0).sum()) == 0, "the next task has all of the rest"


def test_packnet_prunes_at_the_end_of_a_task_that_is_too_short():
    owners = [run(packnet(prune=0.5, after=after), steps=6)[1][3]["parts"]["it"]["owner"] for after in (0, 100)]
    assert all(torch.equal(owners[0][k], owners[1][k]) for k in owners[0])


# ---- context-dependent gating


@pytest.mark.parametrize("net", ["mlp", "conv4"])
def test_silent_units_answer_0_and_learn_nothing(net):
    network, lot = NETS[net]
    part = xdg(gated=0.5)
    state = gradient_learner(network, sgd(), {"it": part}).init(3, lot)
    assert network.features
    for task in range(3):
        leaves = {k: p.clone().requires_grad_() for k, p in state["params"].items()}
        applied = worn(part, state, net, task, leaves)
        x, y = lot.fetch(torch.arange(30))
        last = str(max(int(i) for i in state["parts"]["it"]))
        on = state["parts"]["it"][last][task]
        features = network.features(applied, x).view(30, len(on), -1)
        assert not features[:, ~on].any() and features[:, on].any()
        nn.functional.cross_entropy(network.apply(applied, x), y).backward()
        for i, gates in state["parts"]["it"].items():
            for k in ([f"hidden{i}.weight", f"hidden{i}.bias"] if net == "mlp" else [f"conv{i}.weight", f"norm{i}.bias"]):
                assert not leaves[k].grad[~gates[task]].any()
                assert leaves[k].grad[gates[task]].any()


@pytest.mark.parametrize(("gated", "on"), [(0.0, 12), (0.5, 6), (0.8, 2), (0.99, 1)])
def test_every_task_has_a_gate_of_its_own_of_the_asked_share(gated, on):
    wide, lot = mlp((8,), 6, (12,)), pool()
    part = xdg(gated=gated)
    gates = [gradient_learner(wide, sgd(), {"it": part}).init(seed, lot)["parts"]["it"]["0"] for seed in range(4)]
    assert all((g.sum(1) == on).all() for g in gates)
    if gated == 0.5:
        assert len({tuple(row.tolist()) for g in gates for row in g}) == 12, "by task and by seed"


def test_importance_is_measured_on_the_gated_network():
    network, lot = NETS["mlp"]
    for strength in (ewc(strength=2.0), si(strength=2.0)):
        learner = gradient_learner(network, sgd(lr=0.1), {"xdg": xdg(gated=0.5), "hold": strength})
        state = learner.init(0, lot)
        gates = state["parts"]["xdg"]["0"]
        state = end(learner, step(learner, state, lot, 0), lot, 0)
        importance = state["parts"]["hold"]["importance"]["hidden0.weight"]
        assert not importance[~gates[0]].any() and importance[gates[0]].any()


def test_what_another_part_answers_is_answered_by_the_weights_of_the_task():
    network, lot = NETS["mlp"]
    plain = gradient_learner(network, sgd(), {"xdg": xdg()})
    echo = Part(predict=lambda view, x: view.net.apply(view.params, x))
    both = gradient_learner(network, sgd(), {"xdg": xdg(), "echo": echo})
    state = plain.init(0, lot)
    for task in range(3):
        assert torch.equal(answers(plain, state, lot, task), answers(both, state, lot, task))


# ---- progressive networks


@pytest.mark.parametrize("net", ["mlp", "conv4"])
def test_a_column_reads_earlier_columns_and_is_read_by_later_ones_alone(net):
    network, lot = NETS[net]
    part = progressive()
    _, states = run(part, net, tasks=1)
    state = states[1]
    name = "hidden1.weight" if net == "mlp" else "conv1.weight"
    units = len(state["params"][name])
    third = units // 3
    for task in range(3):
        leaves = {k: p.clone().requires_grad_() for k, p in state["params"].items()}
        x, _ = lot.fetch(rows_of(lot, task))
        applied = worn(part, state, net, task, leaves)
        network.apply(applied, x)[:, 2 * task:2 * task + 2].square().sum().backward()
        weight, grad = applied[name].detach().reshape(units, leaves[name].shape[1], -1), leaves[name].grad
        assert grad is not None
        for column in range(3):
            rows = slice(column * third, (column + 1) * third)
            edge = round((column + 1) * leaves[name].shape[1] / 3)
            assert not weight[rows, edge:].any(), "no later column is read"
            assert bool(weight[rows, :edge].all()) == (column <= task), "all earlier ones are"
            trains = 0 < column <= task  # column 0 is over, and stays
            assert bool(grad[rows].any()) == trains
        head = applied["head.weight"].detach().view(6, units if net == "conv4" else 9, -1)
        assert head[2 * task, :(task + 1) * (head.shape[1] // 3)].all()
        assert not head[2 * task, (task + 1) * (head.shape[1] // 3):].any()


def test_later_columns_cannot_be_heard():
    part = progressive()
    learner, states = run(part, tasks=2)
    lot, state = NETS["mlp"][1], states[2]
    broken = {k: p.clone() for k, p in state["params"].items()}
    for k in ("hidden0.weight", "hidden0.bias", "hidden1.weight", "hidden1.bias"):
        broken[k][-len(broken[k]) // 3:] = torch.nan
    same = [torch.equal(answers(learner, state | {"params": broken}, lot, t), answers(learner, state, lot, t))
            for t in range(3)]
    assert same == [True, True, False]


# ---- refusals


def start(part: Part, network: Net, lot: Pool | None = None) -> None:
    gradient_learner(network, sgd(), {"it": part}).init(0, lot or pool())


class Squares(nn.Module):
    """A network whose last layer is not linear."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(8, 5), nn.Bilinear(5, 5, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.hidden(x)
        out: torch.Tensor = self.out(z, z)
        return out


@pytest.mark.parametrize(("part", "network", "words"), [
    (xdg(), NETS["module"][0], "xdg knows the hidden units of mlp and conv4 alone, not of a model with '0.weight'"),
    (progressive(), NETS["module"][0], "progressive knows the hidden units"),
    (xdg(), mlp((8,), 6, ()), "xdg needs hidden units"),
    (progressive(), mlp((8,), 6, (12, 2)), "hidden1.weight has 2 for 3 tasks"),
    (packnet(), from_module(lambda: nn.Sequential(nn.Conv1d(1, 1, 3), nn.Flatten()), torch.ones(2, 1, 8)), "does not say which"),
    (packnet(), from_module(Squares, torch.ones(2, 8)), "does not say which"),
])
def test_a_network_that_cannot_be_divided_is_refused_with_the_reason(part, network, words):
    with pytest.raises(ValueError, match=words):
        start(part, network)


@pytest.mark.parametrize("mate", [er(), joint(), agem(), xdg(0.5)], ids=["er", "joint", "agem", "another"])
@pytest.mark.parametrize("part", [packnet(), xdg(), progressive()], ids=["packnet", "xdg", "progressive"])
def test_it_cannot_be_trained_on_several_tasks_at_once(part, mate):
    with pytest.raises(ValueError, match="weights of its own"):
        gradient_learner(NETS["mlp"][0], sgd(), {"it": part, "mate": mate})


@pytest.mark.parametrize(("make", "words"), [
    (lambda: packnet(prune=0.0), "prune must be above 0"), (lambda: packnet(prune=1.0), "prune must be below 1"),
    (lambda: packnet(after=-1), "after must be 0"), (lambda: xdg(gated=1.0), "gated must be below 1"),
    (lambda: xdg(gated=-0.1), "gated must be 0")])
def test_a_number_out_of_range_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
