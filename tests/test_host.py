"""Examples that stay in the host's memory: the same bits as on the device, gathered ahead, mapped files never copied."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lifelong.data import build
from lifelong.data.prefetch import AHEAD, Ahead, gathered
from lifelong.experiments import experiment as experiments
from lifelong.experiments import learners
from lifelong.experiments.contract import BUDGET, Subject, tiny
from lifelong.experiments.prepare import prepare
from lifelong.learning.engine import train
from lifelong.progress import Watcher
from lifelong.spec import expression
from lifelong.spec.run import Options


@pytest.mark.parametrize(("strategy", "stacked"), [("er + agem", True), ("er + ewc(samples=3)", False),
                                                   ("icarl(capacity=6)", True), ("ncm", True)])
def test_a_run_whose_examples_stay_on_the_host_has_the_same_bits(strategy: str, stacked: bool,
                                                                 monkeypatch: pytest.MonkeyPatch):
    taken = []
    real = Ahead.take
    monkeypatch.setattr(Ahead, "take", lambda self, batch: taken.append(real(self, batch)) or taken[-1])
    stack = Subject(expression.parse(strategy)).lanes([0, 1] if stacked else [0], stacked=stacked)
    device = train(stack, BUDGET)
    assert not taken
    host = train(replace(stack, host=True), BUDGET)
    assert torch.equal(host.loss, device.loss) or strategy == "ncm"
    assert torch.equal(host.accuracy, device.accuracy)
    assert any(x is not None for x in taken) or strategy == "ncm"  # which fetches by itself


def test_examples_seen_through_a_table_of_pixels_come_from_the_host_as_well():
    x, rows = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60)
    shown = build.permuted("shown-v1", [0, 1], build.Images(x, rows % 3, rows[:40], rows[40:]), tasks=2)
    asked = prepare(shown, ["er"], Options(seeds=2))
    stack = asked.learners.lanes(asked.specs)
    assert stack.stream.warp is not None
    device, host = train(stack, asked.learners.budget), train(replace(stack, host=True), asked.learners.budget)
    assert torch.equal(host.loss, device.loss) and torch.equal(host.accuracy, device.accuracy)


def test_gathering_inside_a_lift_is_gathering_for_each_lane():
    x, rows = torch.rand(9, 2, 3), torch.tensor([[3, 1], [8, 8], [0, 3]])
    assert torch.equal(torch.func.vmap(gathered, in_dims=(None, 0))(x, rows), x[rows])
    assert torch.equal(torch.func.vmap(gathered, in_dims=(None, 1))(x, rows.T), x[rows])


def test_batches_are_given_in_the_order_expected_and_only_for_the_very_tensors():
    x = torch.rand(20, 2)
    rows = [torch.tensor([i, i + 1]) for i in range(8)]
    ahead = Ahead(x, torch.device("cpu"))
    ahead.expect(rows, rows)
    assert len(ahead._made) == AHEAD
    assert torch.equal(ahead.take(rows[0]), x[rows[0]])
    assert ahead.take(rows[0]) is None and ahead.take(rows[1].clone()) is None
    assert torch.equal(ahead.take(rows[6]), x[rows[6]])  # the steps between were not asked for
    assert torch.equal(ahead.take(rows[7]), x[rows[7]]) and ahead.take(rows[7]) is None
    ahead.expect(rows[:1], rows[1:2])
    assert torch.equal(ahead.take(rows[0]), x[rows[1]])


def test_a_mapped_file_is_read_in_place(tmp_path: Path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 255, (120, 1, 2, 4), dtype=np.uint8))
    x = torch.from_numpy(np.load(tmp_path / "x.npy", mmap_mode="c"))
    stream = replace(tiny([0, 1]), x=x, shape=(1, 2, 4), scale=1 / 255, mean=(0.5,), std=(0.3,), augment="crop")
    asked = prepare(stream, ["er"], Options(seeds=2, model="conv4(width=3)"))
    stack = asked.learners.lanes(asked.specs)
    for pool in (stack.pool, replace(stack, host=True).pool, stream.pool("cpu", torch.float64)):
        assert pool.x.data_ptr() == x.data_ptr()
    assert train(stack, asked.learners.budget).accuracy.isfinite().all()


class Said(Watcher):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


@pytest.mark.parametrize(("free", "host"), [(4 * 2**20, False), (2**10, True)])
def test_examples_that_do_not_fit_stay_and_a_line_says_so(free: int, host: bool, monkeypatch: pytest.MonkeyPatch):
    # There may be no other device here, so one is pretended, and only what was decided is looked at.
    monkeypatch.setattr(learners, "free", lambda device: free)
    asked = prepare(tiny([0]), ["er"], Options(seeds=1))
    asked = replace(asked, learners=replace(asked.learners, device=torch.device("meta")))
    assert asked.learners.host is host and asked.learners.lanes(asked.specs).host is host
    watcher: Any = Said()
    monkeypatch.setattr(experiments.Experiment, "_stacks", lambda *given: [])
    asked.run(watcher=watcher)
    assert watcher.said == [asked.learners.placed] and ("stay in the host's memory" in asked.learners.placed) is host
    assert "120 examples" in asked.learners.placed
    assert not replace(asked.learners, device=torch.device("cpu")).host
