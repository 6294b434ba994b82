"""A run that is killed with -9 at any moment goes on, by the same command, to the same bits."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lifelong.starts.weights import load

# Three kinds of strategy in one store, killed in each.
DROPS = """
import math
import torch
from torch import nn

class Drops:
    def __init__(self, shape, n_classes):
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 50), nn.ReLU(), nn.Dropout(0.3),
                                 nn.Linear(50, n_classes))
        self.optimizer = torch.optim.Adam(self.net.parameters(), 1e-3)

    def observe(self, x, y, task):
        self.net.train()
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def end_task(self):
        pass

    def predict(self, x):
        self.net.eval()
        return self.net(x)

    def state_dict(self):
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state):
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
"""
THREE = ("er(memory='class-balanced')", "er + ewc", "./drops.py:Drops")


class Command:
    """`lifelong run` as a shell starts it, one process a call."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "drops.py").write_text(DROPS)

    def start(self, store: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(Path(sys.executable).with_name("lifelong")), "run", "rotated-digits", *THREE, "--seeds", "2",
             "--epochs", "1", "--tasks", "3", "--save-every", "0.1", "--quiet", "--device", "cpu", "--store", store],
            cwd=self.folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)

    def whole(self, store: str) -> None:
        process = self.start(store)
        _, said = process.communicate()
        assert process.returncode == 0 and said == b"", said.decode()

    def training(self, store: str, strategy: str) -> bool:
        """Whether the stack of `strategy` has begun and not ended."""
        for file in (self.folder / store).glob(".stacks/*/stack.json"):
            with contextlib.suppress(OSError, ValueError):
                if any(spec["strategy"] == strategy for spec in json.loads(file.read_bytes())["specs"]):
                    return True
        return False

    def killed(self, store: str, strategy: str, seconds: float) -> bool:
        """Kills the command `seconds` after it came to `strategy`; whether it was still at it."""
        process = self.start(store)
        try:
            while process.poll() is None and not self.training(store, strategy):
                time.sleep(0.002)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            hit = process.poll() is None and self.training(store, strategy)
        finally:
            process.kill()  # SIGKILL
            process.communicate()
        return hit

    def arrays(self, store: str) -> dict[str, dict[str, np.ndarray]]:
        found = {}
        for place in (self.folder / store).glob("*/run.json"):
            with np.load(place.parent / "accuracy.npz", allow_pickle=False) as arrays:
                found[json.loads(place.read_bytes())["spec"]["strategy"]] = {n: arrays[n] for n in arrays.files}
        return found


def commands_killed(folder: Path, kills: int, each: int) -> dict[str, int]:
    """Kills the command `kills` times in every strategy, `each` times before it may end; how many came after a
    checkpoint. What it leaves in the end must be what the uninterrupted command left, bit for bit."""
    command, dice = Command(folder), random.Random(f"kill the command {kills}")
    command.whole("whole")
    whole = command.arrays("whole")
    assert set(whole) == set(THREE)
    hits, after, round_ = dict.fromkeys(THREE, 0), dict.fromkeys(THREE, 0), 0
    while min(hits.values()) < kills:
        assert round_ < 3 * kills, f"too few kills hit: {hits}"
        store = f"killed{round_}"
        for strategy in THREE:
            for _ in range(min(each, kills - hits[strategy])):
                if command.killed(store, strategy, dice.uniform(0, 0.5)):
                    hits[strategy] += 1
                    after[strategy] += bool(list((folder / store).glob(".stacks/*/checkpoint.json")))
        command.whole(store)
        again = command.arrays(store)
        assert again.keys() == whole.keys()
        for strategy, arrays in whole.items():
            assert arrays.keys() == again[strategy].keys()
            for name, value in arrays.items():
                np.testing.assert_array_equal(again[strategy][name], value, f"{strategy}: {name} after {hits}")
                assert again[strategy][name].dtype == value.dtype
        assert not (folder / store / ".stacks").exists()
        round_ += 1
    return after


def test_the_command_killed_twice_in_each_strategy_leaves_no_trace(tmp_path):
    assert sum(commands_killed(tmp_path, 2, 2).values()) > 0


@pytest.mark.slow
def test_the_command_killed_ten_times_in_each_strategy_leaves_no_trace(tmp_path):
    after = commands_killed(tmp_path, 10, 3)
    print(f"kills after a checkpoint: {after}")
    assert all(n > 0 for n in after.values())


def pretraining_killed(folder: Path, kills: int) -> int:
    """Kills the learning of a start `kills` times, then lets it end; how many kills came after a checkpoint. What is
    kept must be what an uninterrupted one keeps, bit for bit."""
    def start(store: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(Path(sys.executable).with_name("lifelong")), "pretrain", "rotated-digits(domains=2)",
             "supervised(steps=3000, model='mlp')", "--save-every", "0.05", "--quiet", "--store", store],
            cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)

    dice, after = random.Random(f"kill a start {kills}"), 0
    for i in range(kills):
        process = start("killed")
        sign = "checkpoint.json" if i % 2 else "stack.json"  # before the first checkpoint, or after it
        try:
            while process.poll() is None and not list((folder / "killed").glob(f".stacks/*/{sign}")):
                time.sleep(0.002)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(dice.uniform(0, 0.6))
        finally:
            process.kill()  # SIGKILL
            process.communicate()
        after += bool(list((folder / "killed").glob(".stacks/*/checkpoint.json")))
    kept = {}
    for store in ("killed", "whole"):
        process = start(store)
        assert process.communicate()[1] == b"" and process.returncode == 0
        (file,) = (folder / store).glob("pretrain-*.safetensors")
        kept[store] = load(file)
        assert not (folder / store / ".stacks").exists()
    assert kept["killed"].about["sha256"] == kept["whole"].about["sha256"]
    assert kept["killed"].about["loss"] == kept["whole"].about["loss"]
    return after


def test_a_start_killed_while_it_is_learned_is_the_start_that_was_not(tmp_path):
    assert pretraining_killed(tmp_path, 2) > 0


@pytest.mark.slow
def test_a_start_killed_ten_times_while_it_is_learned_is_the_start_that_was_not(tmp_path):
    assert pretraining_killed(tmp_path, 10) > 4
