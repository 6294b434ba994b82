"""Exemplars are chosen, kept and answered with as the papers say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lifelong.strategies.exemplars import herd, icarl
from torch import Tensor

from lifelong.experiments.contract import BUDGET, Subject, tiny
from lifelong.learning.engine import train
from lifelong.learning.losses import Slice
from lifelong.learning.parts import View
from lifelong.learning.schedule import batches, plan, whole_task
from lifelong.networks.net import Net
from lifelong.randomness import many
from lifelong.spec.expression import parse

PLAIN = Net(lambda g: {}, lambda params, x: x, lambda params, x: x)  # features and scores are the example itself


def slow_herding(z: np.ndarray, picks: int) -> list[int]:
    """Algorithm 4 of the paper, read aloud."""
    chosen: list[int] = []
    for k in range(1, min(picks, len(z)) + 1):
        total = sum((z[i] for i in chosen), np.zeros(z.shape[1]))
        error = [np.inf if i in chosen else np.linalg.norm(z.mean(0) - (z[i] + total) / k) for i in range(len(z))]
        chosen.append(int(np.argmin(error)))
    return chosen


def test_herding_worked_by_hand():
    # Mean 2: nearest is 2; then 2 and 1 have mean 1.5, 2 and 3 have 2.5, 2 and 4 have 3, 2 and 0 have 1: a tie, 1 first;
    # then (2 + 1 + 3) / 3 = 2 exactly.
    z = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0]])
    assert herd(z, torch.ones(5, 1, dtype=torch.bool), 3).flatten().tolist() == [2, 1, 3]


def test_herding_equals_a_plain_loop_for_classes_of_any_size():
    g = torch.Generator().manual_seed(4)
    y = torch.tensor([0] * 17 + [1] * 5 + [3] * 30 + [2] * 8)[torch.randperm(60, generator=g)]
    z = torch.randn(60, 6, generator=g, dtype=torch.float64)
    member = F.one_hot(y, 5).bool()
    member[7] = False  # a pad
    picks = herd(z, member, 12)
    for c in range(5):
        own = member[:, c].nonzero().flatten()
        expected = own[slow_herding(z[own].numpy(), 12)].tolist() if len(own) else []
        assert picks[:, c].tolist() == expected + [-1] * (12 - len(expected))


def test_herding_is_never_further_from_the_mean_than_random_choices_are():
    g = torch.Generator().manual_seed(0)
    z = F.normalize(torch.randn(80, 4, generator=g, dtype=torch.float64) + 1, dim=-1)

    def errors(order: Tensor) -> Tensor:
        running = z[order].cumsum(0) / torch.arange(1, len(order) + 1).unsqueeze(-1)
        return (running - z.mean(0)).norm(dim=-1)

    herded = errors(herd(z, torch.ones(80, 1, dtype=torch.bool), 40).flatten())
    typical = torch.stack([errors(torch.randperm(80, generator=g)[:40]) for _ in range(200)]).quantile(0.25, dim=0)
    assert bool((herded < typical).all())


def view_of(n_tasks: int = 3) -> View:
    return View({}, {}, PLAIN, tiny([0]).pool(dtype=torch.float64))


def test_the_nearest_mean_is_exact_on_orthonormal_features():
    pool = view_of().pool
    corners = torch.eye(6, 8, dtype=torch.float64)
    x = torch.cat([corners.repeat_interleave(20, 0)])  # examples in the pool's order of classes
    view = View({}, {}, PLAIN, type(pool)(x, pool.y, (8,), pool.classes, dtype=torch.float64))
    part = icarl(capacity=12)
    view = view._replace(state=part.init(view))
    for task in range(3):
        rows = torch.arange(task * 40, task * 40 + 40)
        batch = Slice(rows, torch.full((40,), 1 / 40), *[torch.zeros(40)] * 3)
        view = view._replace(state=part.task(view._replace(task=torch.tensor(task), batch=batch)))
        seen = 2 * (task + 1)
        scores = part.predict(view, 3 * corners)
        assert scores[:seen].argmax(-1).tolist() == list(range(seen))
        assert bool(scores[:, seen:].isneginf().all())
        torch.testing.assert_close(scores[:seen, :seen], (torch.eye(seen).double() - 1) * 2**0.5)


def test_each_class_keeps_its_share_and_what_was_chosen_first():
    lanes = Subject(parse("icarl(capacity=13)")).lanes([0], stacked=False)
    state, first = lanes.init(), {}
    for task in range(3):
        state = lanes.end_task(state, whole_task(lanes, task))
        own = state["parts"]["icarl"]
        kept = own["rows"] >= 0
        counts = torch.bincount(own["y"][kept], minlength=6).tolist()
        assert counts == [13 // (2 * task + 2)] * (2 * task + 2) + [0] * (4 - 2 * task)
        assert torch.equal(lanes.pool.y[own["rows"][kept]], own["y"][kept])
        assert set(own["rows"][kept].tolist()) <= set(lanes.stream.train[0].flatten().tolist())
        for c in range(2 * task + 2):
            places = own["rows"][kept & (own["y"] == c)][own["place"][kept & (own["y"] == c)].argsort()].tolist()
            assert first.setdefault(c, places)[:len(places)] == places


def test_the_loss_is_the_papers_on_batch_and_exemplars_together():
    g = torch.Generator().manual_seed(2)
    pool = view_of().pool
    net = Net(lambda g: {}, lambda params, x: x @ params["w"], lambda params, x: x)
    params, teacher = ({"w": torch.randn(8, 6, generator=g, dtype=torch.float64)} for _ in range(2))
    rows, old = torch.tensor([40, 41, 60, -1]), torch.tensor([0, 25, -1])
    slices = []
    for r in (rows, old):
        x, y = pool.fetch(r)
        slices.append(Slice(r, torch.zeros(len(r)), x, y, net.apply(params, x)))
    view = View({"teacher": teacher}, params, net, pool, task=torch.tensor(1), batch=slices[0], recalled=slices[1])
    total = 0.0
    for r in (40, 41, 60, 0, 25):  # task 1 is of units 2 and 3, after 0 and 1; units 4 and 5 are yet to come
        p, q = (pool.x[r] @ params["w"]).sigmoid(), (pool.x[r] @ teacher["w"]).sigmoid()
        for unit in range(4):
            target = q[unit] if unit < 2 else float(pool.y[r] == unit)
            total -= float(target * p[unit].log() + (1 - target) * (1 - p[unit]).log()) / 5
    assert float(icarl().criterion(view)) == pytest.approx(total, rel=1e-10)


def test_where_it_makes_no_sense_it_is_refused():
    shared = tiny([0], scenario="domain").pool()
    with pytest.raises(ValueError, match="domain"):
        icarl().init(view_of()._replace(pool=shared))
    with pytest.raises(ValueError, match="6 or more"):
        icarl(capacity=5).init(view_of())
    with pytest.raises(ValueError, match="features"):
        icarl().init(view_of()._replace(net=PLAIN._replace(features=None)))


@pytest.mark.parametrize("strategy", ["icarl(capacity=30)", "gdumb(capacity=30)"])
def test_they_forget_less_than_finetuning(strategy):
    plain, kept = (train(Subject(parse(s)).lanes([0, 1, 2]), BUDGET._replace(epochs=8)).accuracy[:, -1].mean()
                   for s in ("finetune", strategy))
    assert float(kept) > float(plain) + 0.2


def test_gdumb_remembers_an_equal_share_of_every_class():
    lanes = Subject(parse("gdumb(capacity=20, steps=1)"), 24).lanes([0], stacked=False)
    state = lanes.init()
    for task, counts in enumerate(([10, 10, 0, 0, 0, 0], [5, 5, 5, 5, 0, 0], [4, 4, 3, 3, 3, 3])):
        for _, batch in batches(lanes, plan(lanes.stream, [0], task, "task", BUDGET), task, 0):
            state, _ = lanes.observe(state, batch)
        assert sorted(torch.bincount(state["memory"]["y"], minlength=6).tolist()) == sorted(counts)


def test_gdumb_is_plain_momentum_descent_on_the_memory_from_the_first_weights():
    lanes = Subject(parse("gdumb(capacity=9, steps=20, replay=4)")).lanes([0], stacked=False)
    state = lanes.init()
    for task in range(2):
        for _, batch in batches(lanes, plan(lanes.stream, [0], task, "task", BUDGET), task, 0):
            state, _ = lanes.observe(state, batch)
        last = whole_task(lanes, task)
        state = lanes.end_task(state, last)
    begin = lanes.init()["params"]
    layer1, layer2 = torch.nn.Linear(8, 12).double(), torch.nn.Linear(12, 6).double()
    model = torch.nn.Sequential(layer1, torch.nn.ReLU(), layer2)
    for layer, name in ((layer1, "hidden0"), (layer2, "head")):
        layer.load_state_dict({k: begin[f"{name}.{k}"] for k in ("weight", "bias")})
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    kept = state["memory"]["rows"]
    for places in (many(last.u["gdumb"][0], 80) * 9).long().view(20, 4):
        optimizer.zero_grad()
        F.cross_entropy(model(lanes.pool.x[kept[places]]), lanes.pool.y[kept[places]]).backward()
        optimizer.step()
        schedule.step()
    for ours, theirs in zip(state["params"].values(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), atol=1e-10, rtol=1e-8)
