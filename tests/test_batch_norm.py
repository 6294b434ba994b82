"""Batch normalisation in plain runs: the batch's own statistics in training, the running ones in answering."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lifelong.data.stream import Stream
from lifelong.experiments.contract import BUDGET
from lifelong.experiments.prepare import prepare
from lifelong.learning import lanes as lift
from lifelong.learning.composition import gradient_learner
from lifelong.learning.lanes import Lanes
from lifelong.learning.losses import batch_loss
from lifelong.learning.optim import sgd
from lifelong.learning.parts import Part
from lifelong.learning.schedule import batches, plan
from lifelong.networks.conv import conv4
from lifelong.networks.net import Net
from lifelong.networks.precision import in_bfloat16
from lifelong.randomness import generator
from lifelong.spec.run import OptionError, Options

NET = conv4((1, 4, 4), 4, 3, norm="batch")


def small(seeds: int = 2, scale: float = 1.0) -> Stream:
    """Four classes of noise, two tasks; seed 1 has two examples less in each, so that its batches are shorter."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(4).repeat_interleave(12)
    x = scale * torch.randn(48, 1, 4, 4, generator=g, dtype=torch.float64) + y.view(-1, 1, 1, 1)
    train = torch.full((seeds, 2, 14), -1)
    for seed in range(seeds):
        for task in range(2):
            own = torch.cat([torch.arange(12 * c, 12 * c + 7) for c in (2 * task, 2 * task + 1)])
            train[seed, task, :14 - 2 * seed] = own[:14 - 2 * seed]
    test = torch.stack([torch.arange(12 * c + 8, 12 * c + 12) for c in range(4)]).view(1, 2, 8).expand(seeds, -1, -1)
    classes = torch.eye(2, dtype=torch.bool).repeat_interleave(2, 1).expand(seeds, 2, 4)
    return Stream("small-v1", x, y, train, test, classes, (1, 4, 4))


def lanes(at: list[int], parts: dict[str, Part] | None = None, stacked: bool = True, net: Net = NET,
          dtype: torch.dtype = torch.float64) -> Lanes:
    learner = gradient_learner(net, sgd(lr=0.1, momentum=0.9, weight_decay=0.01), parts or {})
    return Lanes(small(), [0, 1], at, lambda hyper: learner, dtype=dtype, stacked=stacked)


def steps(stack: Lanes, most: int = 99) -> tuple[dict[str, Any], Tensor]:
    """The state after `most` steps of every task, and the losses [steps, L]."""
    state, losses = stack.init(), []
    for task in range(2):
        todo = plan(stack.stream, [0, 1], task, "task", BUDGET)
        for step, batch in batches(stack, todo, task, 0):
            if step < most:
                state, logs = stack.observe(state, batch)
                losses.append(logs["loss"].view(-1))
    return state, torch.stack(losses)


def plain(seed: int) -> tuple[nn.Module, list[float]]:
    """The same learning by torch's own layers and optimizer, in a loop of its own."""
    params = NET.init(generator(seed, "init"))
    layers: list[nn.Module] = []
    for i in range(4):
        conv, norm = nn.Conv2d(1 if i == 0 else 3, 3, 3, 2, 1), nn.BatchNorm2d(3)
        conv.load_state_dict({k: params[f"conv{i}.{k}"] for k in ("weight", "bias")})
        layers += [conv, norm, nn.ReLU()]
    head = nn.Linear(3, 4)
    head.load_state_dict({k: params[f"head.{k}"] for k in ("weight", "bias")})
    module = nn.Sequential(*layers, nn.Flatten(), head).double().train()
    optimizer = torch.optim.SGD(module.parameters(), 0.1, 0.9, weight_decay=0.01)
    stream, losses = small(), []
    for task in range(2):
        rows = plan(stream, [0, 1], task, "task", BUDGET).rows[seed]
        for part in rows.split(5):
            part = part[part >= 0]
            loss = F.cross_entropy(module(stream.x[part]), stream.y[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return module, losses


def test_it_learns_as_torchs_own_layers_do_and_pads_do_not_count():
    state, losses = steps(lanes([0, 1]))
    for seed in range(2):
        module, others = plain(seed)
        torch.testing.assert_close(losses[:, seed], torch.tensor(others, dtype=torch.float64))
        for i, norm in enumerate(m for m in module if isinstance(m, nn.BatchNorm2d)):
            torch.testing.assert_close(state["params"][f"norm{i}.mean"][seed], norm.running_mean)
            torch.testing.assert_close(state["params"][f"norm{i}.var"][seed], norm.running_var)
            torch.testing.assert_close(state["params"][f"norm{i}.weight"][seed], norm.weight.detach())
        x = small().x[:5]
        torch.testing.assert_close(NET.apply({k: p[seed] for k, p in state["params"].items()}, x), module.eval()(x))


def test_a_lane_of_a_stack_has_the_bits_of_its_run_alone():
    together, alone = steps(lanes([0, 1]))[0]["params"], steps(lanes([1], stacked=False))[0]["params"]
    assert all(torch.equal(together[k][1], alone[k]) for k in alone)


def test_lanes_that_are_lifted_learn_as_lanes_one_by_one(monkeypatch: pytest.MonkeyPatch):
    looped = steps(lanes([0, 1]))
    monkeypatch.setattr(lift, "FAST", False)
    lifted = steps(lanes([0, 1]))
    torch.testing.assert_close(lifted[1], looped[1])
    torch.testing.assert_close(lifted[0]["params"], looped[0]["params"])


@pytest.mark.parametrize("fast", [True, False])
def test_the_statistics_are_of_the_batch_and_of_what_is_rehearsed_together(fast: bool,
                                                                           monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lift, "FAST", fast)
    part = Part(recall=lambda view: torch.tensor([30, -1, 31]))
    stack = lanes([0, 1], {"part": part})
    state = stack.init()
    before = {k: p.clone() for k, p in state["params"].items()}
    _, batch = next(iter(batches(stack, plan(stack.stream, [0, 1], 0, "task", BUDGET), 0, 0)))
    state, _ = stack.observe(state, batch)
    for seed in range(2):
        seen = torch.cat([stack.stream.x[batch.rows[seed]], stack.stream.x[[30, 31]]])
        out = F.conv2d(seen, before["conv0.weight"][seed], before["conv0.bias"][seed], stride=2, padding=1)
        torch.testing.assert_close(state["params"]["norm0.mean"][seed], 0.1 * out.mean((0, 2, 3)))
        torch.testing.assert_close(state["params"]["norm0.var"][seed], 0.9 + 0.1 * out.var((0, 2, 3)))


def test_the_running_statistics_have_no_gradient_no_momentum_and_no_decay():
    assert not set(NET.still) & set(lanes([0, 1]).init()["optimizer"])


def test_a_gradient_of_remembered_rows_is_that_of_a_training_pass_over_them():
    params = {k: p.double() for k, p in NET.init(generator(0, "init")).items()}
    pool = small().pool(dtype=torch.float64)
    rows, weight = torch.tensor([3, 20, -1]), torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    scores = F.linear(NET.fresh(params, pool.x[[3, 20]])[0], params["head.weight"], params["head.bias"])
    torch.testing.assert_close(batch_loss(NET, pool, rows, weight)(params), F.cross_entropy(scores, pool.y[[3, 20]]))


def test_in_bfloat16_the_statistics_stay_in_full():
    low, losses = steps(lanes([0, 1], net=in_bfloat16(NET), dtype=torch.float32), most=1)
    full, others = steps(lanes([0, 1], dtype=torch.float32), most=1)
    torch.testing.assert_close(losses, others, rtol=0.1, atol=0.1)
    for k in NET.still:
        torch.testing.assert_close(low["params"][k], full["params"][k], rtol=0.1, atol=0.05)
        assert not torch.equal(low["params"][k], low["params"][k].bfloat16().float())


@pytest.mark.parametrize(("strategy", "words"), [
    ("packnet", "weights of its own, and batch normalisation"), ("mer", "one example at a time"),
    ("la_maml", "one example at a time")])
def test_what_cannot_have_it_is_refused(strategy: str, words: str):
    with pytest.raises(ValueError, match=words):
        prepare(small(), [strategy], Options(seeds=2, model="conv4(width=3, norm='batch')"))


def test_it_is_refused_where_a_batch_is_one_example():
    def asked(strategy: str, norm: str = "batch", size: int = 1) -> None:
        prepare(small(), [strategy], Options(seeds=2, model=f"conv4(width=3, norm='{norm}')", batch_size=size))

    for strategy in ("finetune", "ewc", "joint"):
        with pytest.raises(OptionError, match="batch_size must be 2 or more") as error:
            asked(strategy)
        assert error.value.field == "batch_size"
    asked("finetune", size=2)
    asked("finetune", norm="group")
    asked("er(capacity=9)")  # what is rehearsed shares the pass
