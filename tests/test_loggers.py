"""Runs are written elsewhere as well, and whatever happens there, the run is the same and ends well."""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import refused

from lifelong import store
from lifelong.store import loggers
from lifelong.store.loggers import Loggers
from lifelong.store.records import Run

SPEC = {"stream": "some-v1", "strategy": "er", "seeds": 2}
RECORDING = '''
import json, os
from pathlib import Path
class init:
    def __init__(self, **given):
        self.file = Path(given["dir"]) / f"seed{given['config']['seed']}.json"
        self.said = [given["mode"], given["config"]["strategy"]]
    def log(self, row): self.said.append(row)
    def finish(self, exit_code): self.file.write_text(json.dumps(self.said))
'''


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Two seeds, two tasks, and one measurement inside the second task; the second seed diverged in it."""
    accuracy = np.array([[[.1, .2], [.9, .3], [.5, .8]], [[.1, .2], [.7, .3], [np.nan, np.nan]]])
    logs = {"loss": np.array([[2.0, 1.0], [3.0, np.nan]]), "curve": np.array([[[.6, .4]], [[.5, .5]]]),
            "curve_step": np.array([[1, 7]])}
    return store.load(store.save(tmp_path / "runs", Run(SPEC, accuracy, {"status": "done"}, logs)))


def told(kind: str, run: Run, folder: Path, patience: float = 20.0) -> list[str]:
    with Loggers([kind], folder, patience) as some:
        some.made(run)
    return some.warnings


def test_csv_holds_everything_that_was_measured(run, tmp_path):
    assert told("csv", run, tmp_path / "log") == []
    (file,) = (tmp_path / "log" / "csv").glob("*/points.csv")
    assert file.parent.name == Path(run.about["folder"]).name
    with file.open() as lines:
        found = {tuple(row[:4]): float(row[4]) for row in list(csv.reader(lines))[1:]}
    assert found == {  # average_accuracy after task 2 of seed 0 is (.5 + .8) / 2
        ("0", "0", "0", "accuracy/1"): .1, ("0", "0", "0", "accuracy/2"): .2, ("0", "1", "0", "accuracy/1"): .9,
        ("0", "1", "0", "accuracy/2"): .3, ("0", "2", "0", "accuracy/1"): .5, ("0", "2", "0", "accuracy/2"): .8,
        ("0", "1", "0", "average_accuracy"): .9, ("0", "2", "0", "average_accuracy"): .65,
        ("0", "1", "0", "loss"): 2.0, ("0", "2", "0", "loss"): 1.0,
        ("0", "1", "7", "accuracy/1"): .6, ("0", "1", "7", "accuracy/2"): .4,
        ("1", "0", "0", "accuracy/1"): .1, ("1", "0", "0", "accuracy/2"): .2, ("1", "1", "0", "accuracy/1"): .7,
        ("1", "1", "0", "accuracy/2"): .3, ("1", "1", "0", "average_accuracy"): .7, ("1", "1", "0", "loss"): 3.0,
        ("1", "1", "7", "accuracy/1"): .5, ("1", "1", "7", "accuracy/2"): .5}
    before = file.stat().st_mtime_ns
    assert told("csv", run, tmp_path / "log") == [] and file.stat().st_mtime_ns == before, "it is written once"


def test_tensorboard_reads_what_was_measured(run, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    loggers.KINDS["tensorboard"](run, tmp_path / "log")
    events = accumulator.EventAccumulator(str(tmp_path / "log" / "seed0"))
    events.Reload()
    assert {(e.step, round(e.value, 6)) for e in events.Scalars("accuracy/1")} == {(0, .1), (1, .9), (2, .5)}
    assert [(e.step, round(e.value, 6)) for e in events.Scalars("inside_task_2/accuracy/2")] == [(7, .4)]
    assert [e.value for e in events.Scalars("loss")] == [2, 1]


def test_wandb_is_told_in_order_and_offline(run, tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text(RECORDING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert told("wandb", run, tmp_path / "log") == []
    mode, strategy, *rows = json.loads(next((tmp_path / "log").rglob("seed0.json")).read_text())
    assert (mode, strategy) == ("offline", "er")
    assert [(row["task"], row["step"]) for row in rows] == [(0, 0), (1, 0), (1, 7), (2, 0)]
    assert rows[-1]["accuracy/2"] == .8 and rows[-1]["loss"] == 1 and "loss" not in rows[0]


@pytest.mark.parametrize(("code", "said"), [
    ("raise RuntimeError('no idea')", "RuntimeError: no idea"),
    ("raise ImportError('no core')", "no core; pip install wandb"),
    ("def init(**_): raise PermissionError('no key')", "PermissionError: no key"),
    (RECORDING.replace("self.said.append(row)", "1 / 0"), "ZeroDivisionError"),
    ("import os\nos.abort()", "exit code -6"),
    ("import time\ndef init(**_): time.sleep(60)", "did not end within 0.7 s"),
])
def test_a_sink_that_fails_is_a_warning(code, said, run, tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    began = time.monotonic()
    (sentence,) = told("wandb", run, tmp_path / "log", 0.7 if "sleep" in code else 20)
    assert said in sentence and "--log wandb" in sentence and "complete" in sentence and "\n" not in sentence
    assert time.monotonic() - began < 20
    assert not [p for p in (tmp_path / "log").rglob("*") if p.name == Path(run.about["folder"]).name]


def test_a_store_whose_name_is_no_text_is_written_too(run, tmp_path):
    there = tmp_path / os.fsdecode(b"caf\xe9")
    source = Path(run.about["folder"])
    shutil.copytree(source, there / source.name)
    assert told("csv", store.load(there / source.name), tmp_path / "log") == []
    assert (tmp_path / "log" / "csv" / source.name / "points.csv").is_file()


def test_a_logger_that_reads_nothing_is_not_waited_for(run, tmp_path, monkeypatch):
    real = loggers.subprocess.Popen
    monkeypatch.setattr(loggers.subprocess, "Popen", lambda words, **rest: real(["sleep", "60"], **rest))
    began = time.monotonic()
    with Loggers(["csv"], tmp_path / "log", 0.1) as some:
        for _ in range(5000):  # more than a pipe holds
            some.made(run)
        assert time.monotonic() - began < 10
    assert len(some.warnings) == 1


def test_a_run_is_the_same_to_the_bit_with_a_logger_that_fails(lifelong, tmp_path, monkeypatch):
    words = ("run", "split-digits", "er(capacity=20)", "--seeds", "2", "--steps", "2", "--tasks", "2", "--quiet")
    assert lifelong(*words, "--store", "plain") == (0, "", "")
    (tmp_path / "wandb.py").write_text("raise RuntimeError('no idea')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    said = lifelong(*words, "--store", "logged", "--log", "csv", "--log", "wandb", "--log", "csv")
    assert said.code == 0 and said.err.count("\n") == 1 and "RuntimeError: no idea" in said.err
    (plain,), (logged,) = (store.runs(tmp_path / name)[0] for name in ("plain", "logged"))
    assert plain.accuracy.tobytes() == logged.accuracy.tobytes() and plain.about["sha256"] == logged.about["sha256"]
    assert list((tmp_path / "logged" / "log" / "csv").glob("*/points.csv"))
    refused(lifelong(*words, "--log", "paper"), "--log", "'csv', 'tensorboard', 'wandb'", "'paper'")
