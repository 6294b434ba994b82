"""Strategies of one's own change nothing for the strategies beside them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lifelong.experiments.prepare import prepare
from lifelong.spec.run import Options
from lifelong.surroundings import kept

OPTIONS, STREAM = Options(seeds=2, steps=3), "split-digits(tasks=2)"
# Code that changes something for the whole process.
HARM = {
    "dtype": "torch.set_default_dtype(torch.float64)", "half": "torch.set_default_dtype(torch.float16)",
    "threads": "torch.set_num_threads(torch.get_num_threads() + 1)", "gradients": "torch.set_grad_enabled(False)",
    "anomalies": "torch.autograd.set_detect_anomaly(True)", "deterministic": "torch.use_deterministic_algorithms(True)",
    "precision": "torch.set_float32_matmul_precision('medium')", "folder": "os.chdir('/')", "seed": "torch.manual_seed(0)",
    "environment": "os.environ.clear()", "warnings": "warnings.simplefilter('error')", "device": "torch.set_default_device('meta')",
}
HOSTILE = """
import os, torch, warnings
from lifelong import Part

def harm():
    {harm}
{at_import}
def at_factory():
    {at_factory}
    return Part()

def at_init():
    def init(view):
        harm()
        return {{}}
    return Part(init=init)

def at_step():
    def step(view):
        harm()
        return {{}}
    return Part(step=step)

def at_task():
    def task(view):
        harm()
        return {{}}
    return Part(task=task)

class Object:
    def __init__(self, n_classes):
        harm()
        self.n = n_classes
    def observe(self, x, y, task):
        harm()
    def end_task(self):
        pass
    def predict(self, x):
        return torch.zeros(len(x), self.n, device="cpu")
"""


def hostile(folder: Path, harm: str, place: str) -> str:
    (folder / "hostile.py").write_text(HOSTILE.format(harm=harm, at_import="harm()" if place == "import" else "",
                                                      at_factory="harm()" if place == "at_factory" else "pass"))
    return f"{folder / 'hostile.py'}:{'at_factory' if place == 'import' else place}"


@pytest.fixture(scope="module")
def alone() -> dict[str, np.ndarray]:
    return {run.spec["strategy"]: run.logs["loss"] for run in prepare(STREAM, ["er", "icarl"], OPTIONS).run().runs}


@pytest.mark.parametrize("place", ["import", "at_factory", "at_init", "at_step", "at_task", "Object"])
@pytest.mark.parametrize("harm", HARM)
def test_others_get_the_bits_that_they_get_alone(harm: str, place: str, alone: dict[str, np.ndarray], tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), os.getcwd(), dict(os.environ),
              torch.get_default_device(), torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision())
    try:
        experiment = prepare(STREAM, [hostile(tmp_path, HARM[harm], place), "er", "icarl"], OPTIONS)
    except ValueError as refused:  # before anything was trained, by its name
        assert harm == "device" and "hostile.py" in str(refused)
    else:
        made = {run.spec["strategy"]: run.logs["loss"] for run in experiment.run(Path("runs")).runs}
        for name, loss in alone.items():
            np.testing.assert_array_equal(made[name], loss)
        assert len([*tmp_path.glob("runs/*/run.json")]) == len(made), "a run is elsewhere"
    assert before == (
        torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), os.getcwd(), dict(os.environ),
        torch.get_default_device(), torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision())


@pytest.mark.parametrize("write", ["view.pool.x[0] = 0", "view.pool.y[:2] = view.pool.y[:2].flip(0)", "view.pool.x.data.mul_(2)"])
def test_a_strategy_that_writes_into_the_examples_fails_alone(write: str, alone: dict[str, np.ndarray],
                                                              tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom lifelong import Part\nSTEPS = []\n"
        "def writes():\n    def step(view):\n        STEPS.append(1)\n        if len(STEPS) > 20:\n"
        f"            {write}\n        return {{}}\n    return Part(step=step)\ndef other(): return Part()\n")
    options = Options(seeds=1, steps=30)
    others = {run.spec["strategy"]: run.logs["loss"] for run in prepare(STREAM, ["er", "icarl"], options).run().runs}
    outcome = prepare(STREAM, [f"{tmp_path}/mine.py:writes", "er", f"{tmp_path}/mine.py:other", "icarl"], options).run()
    assert [run.spec["strategy"] for run in outcome.runs] == ["er", "icarl"]
    for run in outcome.runs:
        np.testing.assert_array_equal(run.logs["loss"], others[run.spec["strategy"]])
    (again,) = prepare(STREAM, ["er"], options).run().runs
    np.testing.assert_array_equal(again.logs["loss"], others["er"], "later streams of this process have changed, too")
    first, second = outcome.failures
    assert "writes" in first and "changed the examples" in first
    assert "other was not trained, because" in second and "writes changed the examples" in second


def test_the_working_folder_may_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path)
    with kept():
        os.chdir("gone")
        (tmp_path / "gone").rmdir()
    assert os.getcwd() == str(tmp_path)
