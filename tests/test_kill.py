"""A run that is killed with -9 at any moment goes on, by the same command, to the same bits."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest

OBJECT = """
import math
import torch
from torch import nn

class Plain:
    def __init__(self, shape, n_classes):
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 20), nn.ReLU(), nn.Linear(20, n_classes))
        self.optimizer = torch.optim.Adam(self.net.parameters(), 1e-3)
        self.remembered = []

    def observe(self, x, y, task):
        self.remembered = [*self.remembered, (x[0], y[0])][-50:]
        pick = int(torch.randint(len(self.remembered), ()))
        x = torch.cat([x + 0.1 * torch.randn(x.shape), self.remembered[pick][0][None]])
        loss = nn.functional.cross_entropy(self.net(x), torch.cat([y, self.remembered[pick][1][None]]))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def end_task(self):
        pass

    def predict(self, x):
        return self.net(x)

    def state_dict(self):
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "remembered": self.remembered}

    def load_state_dict(self, state):
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.remembered = state["remembered"]
"""
STRATEGIES = ("er", "er + ewc", "{folder}/plain.py:Plain")


def command(words: list[str]) -> None:
    """`lifelong WORDS...`, in a process of its own."""
    import torch

    from lifelong import report
    from lifelong.cli import main

    torch.set_num_threads(1)
    sys.argv = ["lifelong", *words]
    report.write = lambda *_: []  # figures take longer than the run, and are made when it is stored
    main()


class Shell:
    """Starts commands in fresh processes that have torch loaded already, so that kills hit the work."""

    def __init__(self, folder: Path, strategy: str, steps: int) -> None:
        self.folder = folder
        (folder / "plain.py").write_text(OBJECT)
        self.words = ["run", "split-digits", strategy.format(folder=folder), "--tasks", "3", "--seeds", "2", "--steps",
                      str(steps), "--eval-every", str(steps // 3), "--optimizer", "adam(lr=0.001)", "--save-every",
                      "0.1", "--quiet", "--device", "cpu"]
        self.fork: ForkServerContext = multiprocessing.get_context("forkserver")
        self.fork.set_forkserver_preload(["torch", "sklearn.datasets", "lifelong.checks", "lifelong.request",
                                          "lifelong.cli", "lifelong.report", "streams.digits",
                                          "strategies.replay", "strategies.regularise"])
        idle = self.fork.Process(target=print, args=("",))  # the first one waits for what is loaded ahead
        idle.start()
        idle.join()

    def run(self, store: str, seconds: float | None = None) -> float:
        """Runs to the end, or kills after so many seconds; returns the seconds it took."""
        process = self.fork.Process(target=command, args=([*self.words, "--store", str(self.folder / store)],))
        begun = time.monotonic()
        process.start()
        process.join(seconds)
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        elif process.exitcode:
            pytest.fail(f"ended with exit code {process.exitcode}")
        return time.monotonic() - begun

    def timed(self, store: str) -> tuple[float, float]:
        """Runs to the end; the seconds until training began, and all of them."""
        start = time.time()
        watched: list[float] = []

        def watch() -> None:
            while not watched and time.time() < start + 60:
                watched.extend(f.stat().st_mtime - start for f in (self.folder / store).glob(".stacks/*/stack.json"))
                time.sleep(0.01)

        thread = threading.Thread(target=watch)
        thread.start()
        whole = self.run(store)
        thread.join()
        return watched[0], whole

    def arrays(self, store: str) -> dict[str, np.ndarray]:
        (file,) = (self.folder / store).glob("*/accuracy.npz")
        with np.load(file) as arrays:
            return {name: arrays[name] for name in arrays.files}


def killed_and_resumed(folder: Path, strategy: str, kills: int, steps: int) -> tuple[int, int]:
    """Kills a run at random moments until it is done, again and again; how many kills hit, how many left a checkpoint.

    Every time that the run reaches its end it must be the uninterrupted run, bit for bit.
    """
    shell, dice = Shell(folder, strategy, steps), random.Random(f"kill {strategy} {kills}")
    begun, length = shell.timed("whole")
    whole = shell.arrays("whole")
    hit = checkpoints = round_ = 0
    while hit < kills:
        store = f"killed{round_}"
        for _ in range(min(3, kills - hit)):
            shell.run(store, dice.uniform(begun, length))
            if list((folder / store).glob("*/run.json")):
                break
            hit += 1
            checkpoints += bool(list((folder / store).glob(".stacks/*/checkpoint.json")))
        shell.run(store)
        again = shell.arrays(store)
        assert again.keys() == whole.keys()
        for name, value in whole.items():
            assert value.tobytes() == again[name].tobytes(), f"{name} differs after {hit} kills"
        assert not (folder / store / ".stacks").exists()
        assert not list((folder / store).rglob("*.tmp"))
        round_ += 1
    return hit, checkpoints


@pytest.mark.parametrize("strategy", STRATEGIES, ids=["er", "er + ewc", "an object"])
def test_three_kills_leave_no_trace(strategy, tmp_path):
    hit, checkpoints = killed_and_resumed(tmp_path, strategy, 3, 120)
    assert hit == 3 and checkpoints > 0


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES, ids=["er", "er + ewc", "an object"])
def test_ten_kills_of_each_leave_no_trace(strategy, tmp_path):
    hit, checkpoints = killed_and_resumed(tmp_path, strategy, 10, 500)
    print(f"{strategy}: {hit} kills, {checkpoints} of them after a checkpoint")
    assert hit == 10 and checkpoints >= 5


# ---- the command itself: three kinds of strategy in one store, killed in each


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
