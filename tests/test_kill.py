"""A run that is killed with -9 at any moment goes on, by the same command, to the same bits."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import forking
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
    """`lifelong` in one process a call, each of which can be killed."""

    def __init__(self, folder: Path, place: Path) -> None:
        self.folder, self.place, self.file = folder, place, folder / "said"
        (folder / "drops.py").write_text(DROPS)

    def start(self, *words: str) -> forking.Process:
        with self.file.open("wb") as said:
            return forking.Process(self.place, [*words, "--quiet"], self.folder, said)

    def whole(self, *words: str) -> None:
        """Lets the command end, with nothing to say."""
        assert self.start(*words).wait() == 0, self.file.read_text()
        assert self.file.read_text() == ""

    def killed(self, words: Sequence[str], store: str, begun: Callable[[], bool], seconds: float | None) -> bool:
        """Kills the command `seconds` after it has begun, or, of None, after its first checkpoint; whether it had not
        ended by then."""
        process = self.start(*words)
        while not process.ended() and not (begun() and (seconds is not None or self.checkpoints(store))):
            time.sleep(0.01)
        hit = not process.ended(seconds or 0.0) and begun()
        process.kill()
        process.wait()
        return hit

    def stacks(self, store: str) -> list[str]:
        """The strategies of the stacks that have begun and not ended."""
        found = []
        for file in (self.folder / store).glob(".stacks/*/stack.json"):
            with contextlib.suppress(OSError, ValueError):
                found += [spec["strategy"] for spec in json.loads(file.read_bytes())["specs"]]
        return found

    def checkpoints(self, store: str) -> list[Path]:
        return list((self.folder / store).glob(".stacks/*/checkpoint.json"))

    def arrays(self, store: str) -> dict[str, dict[str, np.ndarray]]:
        found = {}
        for place in (self.folder / store).glob("*/run.json"):
            with np.load(place.parent / "accuracy.npz", allow_pickle=False) as arrays:
                found[json.loads(place.read_bytes())["spec"]["strategy"]] = {n: arrays[n] for n in arrays.files}
        return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("server") / "calls"
    with forking.server(place):
        yield place


@pytest.fixture
def command(tmp_path: Path, place: Path) -> Command:
    return Command(tmp_path, place)


RUN = ("run", "rotated-digits", *THREE, "--seeds", "2", "--epochs", "1", "--tasks", "3", "--save-every", "0.1",
       "--device", "cpu", "--store")


def commands_killed(command: Command, kills: int, each: int) -> None:
    """Kills the command `kills` times in every strategy, `each` times before it may end: in turn after a checkpoint,
    and at any moment. What it leaves in the end must be what the uninterrupted command left, bit for bit."""
    dice, most = random.Random(f"kill the command {kills}"), 0.5
    command.whole(*RUN, "whole")
    whole = command.arrays("whole")
    assert set(whole) == set(THREE)
    hits, round_ = dict.fromkeys(THREE, 0), 0
    while min(hits.values()) < kills:
        store = f"killed{round_}"
        for strategy in THREE:
            for _ in range(min(each, kills - hits[strategy])):
                seconds = dice.uniform(0, most) if hits[strategy] % 2 else None
                if not command.killed((*RUN, store), store, lambda: strategy in command.stacks(store), seconds):
                    most /= 2  # it had ended before: the next moment comes sooner
                    break
                hits[strategy] += 1
        command.whole(*RUN, store)
        again = command.arrays(store)
        assert again.keys() == whole.keys()
        for strategy, arrays in whole.items():
            assert arrays.keys() == again[strategy].keys()
            for name, value in arrays.items():
                np.testing.assert_array_equal(again[strategy][name], value, f"{strategy}: {name} after {hits}")
                assert again[strategy][name].dtype == value.dtype
        assert not (command.folder / store / ".stacks").exists()
        round_ += 1
        assert round_ < 5 * kills, f"the command is never killed in some strategy: {hits}"


def test_the_command_killed_twice_in_each_strategy_leaves_no_trace(command):
    commands_killed(command, 2, 2)


@pytest.mark.slow
def test_the_command_killed_ten_times_in_each_strategy_leaves_no_trace(command):
    commands_killed(command, 10, 3)


PRETRAIN = ("pretrain", "rotated-digits(domains=2)", "supervised(steps=1500, model='mlp')", "--save-every", "0.05",
            "--store")


def pretraining_killed(command: Command, kills: int) -> None:
    """Kills the learning of a start `kills` times, in turn after a checkpoint and at any moment, then lets it end. What
    is kept must be what an uninterrupted one keeps, bit for bit."""
    dice, hits = random.Random(f"kill a start {kills}"), 0
    for i in range(kills):
        hits += command.killed((*PRETRAIN, "killed"), "killed", lambda: bool(command.stacks("killed")),
                               dice.uniform(0, 0.3) if i % 2 else None)
    assert hits > 0
    kept = {}
    for store in ("killed", "whole"):
        command.whole(*PRETRAIN, store)
        (file,) = (command.folder / store).glob("pretrain-*.safetensors")
        kept[store] = load(file)
        assert not (command.folder / store / ".stacks").exists()
    assert kept["killed"].about["sha256"] == kept["whole"].about["sha256"]
    assert kept["killed"].about["loss"] == kept["whole"].about["loss"]


def test_a_start_killed_while_it_is_learned_is_the_start_that_was_not(command):
    pretraining_killed(command, 2)


@pytest.mark.slow
def test_a_start_killed_ten_times_while_it_is_learned_is_the_start_that_was_not(command):
    pretraining_killed(command, 10)
