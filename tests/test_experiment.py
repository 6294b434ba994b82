"""What was asked for becomes runs: stacked, stored, found again, and failing one by one."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lifelong
from lifelong import store
from lifelong.experiments import experiment
from lifelong.experiments.again import again, read
from lifelong.experiments.contract import tiny
from lifelong.experiments.experiment import Outcome
from lifelong.experiments.prepare import prepare
from lifelong.learning.engine import Measured
from lifelong.learning.parts import Part
from lifelong.learning.room import training_bytes
from lifelong.progress import Watcher
from lifelong.spec.run import Options, Spec
from lifelong.store.checkpoints import Workshop
from lifelong.store.records import Run

QUICK: dict[str, Any] = {"seeds": 2, "steps": 4}


def outcome(strategies: list[Any], root: Path | None = None, stream: str = "split-digits(tasks=2)",
            watcher: Watcher = Watcher(), **options: Any) -> Outcome:
    return prepare(stream, strategies, Options(**(QUICK | options))).run(root, watcher)


def made(strategies: list[Any], root: Path | None = None, **options: Any) -> list[Run]:
    result = outcome(strategies, root, **options)
    assert result.failures == []
    return result.runs


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lanes of every stack that is trained from now on."""
    seen: list[int] = []
    real = experiment.train

    def counting(lanes: Any, *args: Any) -> Measured:
        seen.append(lanes.n)
        return real(lanes, *args)

    monkeypatch.setattr(experiment, "train", counting)
    return seen


def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train", "train_object"):
        monkeypatch.setattr(experiment, name, lambda *_, **__: pytest.fail("trained again"))


def test_lanes_beyond_the_memory_are_trained_in_turn_with_equal_results(tmp_path, stacks):
    told: list[str] = []

    class Listens(Watcher):
        def say(self, sentence: str) -> None:
            told.append(sentence)

    asked = {"stream": "split-digits(tasks=2)", "seeds": 3, "dtype": "float64", "eval_every": 3}
    strategy = "er(capacity=20) + ewc(strength=[1,2])"
    whole = outcome([strategy], **asked)
    todo = prepare(asked["stream"], [strategy], Options(**(QUICK | {k: v for k, v in asked.items() if k != "stream"})))
    each, _ = training_bytes(todo.learners.lanes(todo.specs), todo.learners.budget.batch_size)
    room = todo.stream.x.nbytes + 2.5 * each  # beside the examples two lanes, and half of a third
    parts = outcome([strategy], tmp_path, watcher=Listens(), memory=room / 2**30, **asked)
    assert stacks == [6, 2, 2, 2]
    assert len(told) == 1 and "6 lanes take about" in told[0] and "3 turns of 2" in told[0]
    for one, other in zip(whole.runs, parts.runs, strict=True):
        assert one.spec == other.spec and one.logs.keys() == other.logs.keys()
        np.testing.assert_array_equal(one.accuracy, other.accuracy)
        np.testing.assert_allclose(one.logs["loss"], other.logs["loss"], 1e-12)
        np.testing.assert_array_equal(one.logs["curve"], other.logs["curve"])


def test_on_a_cpu_no_more_lanes_at_once_than_its_cache_holds(stacks, monkeypatch):
    whole = outcome(["ewc(strength=[1,2,3])"], dtype="float64", seeds=4, device="cpu")
    monkeypatch.setattr(experiment, "CACHED", 0)
    parts = outcome(["ewc(strength=[1,2,3])"], dtype="float64", seeds=4, device="cpu")
    assert stacks == [12, 6, 6]
    for one, other in zip(whole.runs, parts.runs, strict=True):
        np.testing.assert_array_equal(one.accuracy, other.accuracy)


def test_lanes_in_turn_go_on_where_they_were_interrupted(tmp_path, stacks):
    class Stops(Watcher):
        def advance(self, share: float) -> None:
            if share > 0.6:
                raise KeyboardInterrupt

    asked: dict[str, Any] = {"seeds": 3, "dtype": "float64", "memory": 0.0001, "save_every": 0.0}
    with pytest.raises(KeyboardInterrupt):
        outcome(["er"], tmp_path, watcher=Stops(), **asked)
    (run,) = made(["er"], tmp_path, **(asked | {"memory": None}))
    assert stacks == [1, 1, 1, 1], "two before the interruption, and then the second again and the third"
    (whole,) = made(["er"], seeds=3, dtype="float64")
    np.testing.assert_array_equal(run.accuracy, whole.accuracy)


# ---- grids and lanes


@pytest.mark.parametrize("stream", ["split-digits(tasks=2)", "rotated-digits(tasks=2, examples=40)"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_grid_of_numbers_is_one_stack_and_each_run_is_its_run_alone(stream, dtype, stacks):
    grid = "er(capacity=20) + ewc(strength=[0, 1, 10])"
    runs = made([grid], stream=stream, dtype=dtype)
    assert stacks == [6]
    assert [r.spec["strategy"] for r in runs] == [f"er(capacity=20) + ewc(strength={s})" for s in (0, 1)] + [
        "er(capacity=20) + ewc"]
    for run in runs:
        (alone,) = made([run.spec["strategy"]], stream=stream, dtype=dtype)
        assert alone.spec == run.spec
        np.testing.assert_allclose(run.logs["loss"], alone.logs["loss"], atol=1e-5 if dtype == "float32" else 1e-12)
        if dtype == "float64":
            np.testing.assert_array_equal(run.accuracy, alone.accuracy)
    assert stacks == [6, 2, 2, 2]


def test_step_sizes_are_lanes_too(stacks):
    runs = made(["finetune", "er"], optimizer="sgd(lr=[0.01, 0.1])", dtype="float64")
    assert stacks == [4, 4]
    for run in runs:
        (alone,) = made([run.spec["strategy"]], optimizer=run.spec["optimizer"], dtype="float64")
        np.testing.assert_allclose(run.logs["loss"], alone.logs["loss"], atol=1e-12)
        np.testing.assert_array_equal(run.accuracy, alone.accuracy)


@pytest.mark.parametrize("optimizer", ["sgd(momentum=[0, 0.9])", "sgd(momentum=[0.9, 0])", "adam(beta1=[0, 0.9])",
                                       "sgd(weight_decay=[0, 0.1])", "adam(lr=[0.001, 0.01], beta2=[0.9, 0.999])"])
def test_any_real_number_of_an_optimizer_can_be_a_list(optimizer):
    runs = made(["finetune"], optimizer=optimizer, dtype="float64")
    for run in runs:
        (alone,) = made(["finetune"], optimizer=run.spec["optimizer"], dtype="float64")
        np.testing.assert_allclose(run.logs["loss"], alone.logs["loss"], atol=1e-12)


def test_what_sets_shapes_or_names_is_a_stack_of_its_own(stacks):
    made(["er(capacity=[10, 20], memory=['reservoir', 'class-balanced'])"], model="mlp(hidden=[(10,), (20,)])")
    assert stacks == [2] * 8


def test_a_setting_asked_for_twice_is_made_once(stacks):
    runs = made(["er", "er(capacity=500)", "er(capacity=[500, 500])"])
    assert len(runs) == 1 and stacks == [2]


@pytest.mark.parametrize("strategy", ["er + ewc", "ncm", "cumulative"])
def test_a_seed_is_the_same_among_more_seeds(strategy):
    (two,), (three,) = made([strategy], dtype="float64"), made([strategy], seeds=3, dtype="float64")
    np.testing.assert_array_equal(two.accuracy, three.accuracy[:2])
    np.testing.assert_allclose(two.logs["loss"], three.logs["loss"][:2], atol=1e-12)


def test_one_seed_is_trained_without_the_lift_to_the_same_end():
    (one,), (two,) = made(["er + ewc"], seeds=1, dtype="float64"), made(["er + ewc"], dtype="float64")
    np.testing.assert_array_equal(one.accuracy[0], two.accuracy[0])
    np.testing.assert_allclose(one.logs["loss"][0], two.logs["loss"][0], atol=1e-12)


@pytest.mark.parametrize("budget", [{"steps": 1, "batch_size": 5}, {"steps": None, "epochs": 1, "batch_size": 1000}])
def test_joint_has_an_end_however_short_the_budget(budget):
    for run in made(["joint"], **budget):
        assert np.isfinite(run.accuracy).all()
        assert run.about["status"] == "done"


# ---- the store


def test_the_same_again_is_found_and_not_trained(tmp_path, monkeypatch):
    strategies = ["finetune", "er + ewc(strength=[1, 2])", "ncm"]
    first = outcome(strategies, tmp_path)
    no_training(monkeypatch)
    again = outcome(strategies, tmp_path)
    assert (first.found, again.found) == (0, 4) and again.failures == []
    for a, b in zip(first.runs, again.runs, strict=True):
        assert a.spec == b.spec
        np.testing.assert_array_equal(a.accuracy, b.accuracy)
    assert not (tmp_path / ".stacks").exists()
    # in another order, with more around them, and written in another way
    assert outcome(["er+ewc( strength=2.0 )", "finetune()"], tmp_path).found == 2


def test_a_lane_of_a_grid_is_found_when_asked_for_alone(tmp_path, monkeypatch):
    made(["ewc(strength=[1, 10])"], tmp_path)
    no_training(monkeypatch)
    assert outcome(["ewc"], tmp_path).found == 1


def test_only_what_is_missing_is_trained(tmp_path, stacks):
    made(["ewc(strength=[1, 2])"], tmp_path)
    result = outcome(["ewc(strength=[1, 2, 3])", "finetune"], tmp_path)
    assert result.found == 2 and stacks == [4, 2, 2]
    assert [r.spec["strategy"] for r in result.runs] == ["ewc(strength=1)", "ewc(strength=2)", "ewc(strength=3)",
                                                          "finetune"]


@pytest.mark.parametrize("other", [{"steps": 5}, {"seeds": 3}, {"batch_size": 7}, {"dtype": "float64"},
                                   {"eval_every": 2}, {"model": "mlp(hidden=(9,))"}, {"optimizer": "sgd(lr=0.2)"},
                                   {"stream": "split-digits(tasks=3)"}])
def test_another_setting_is_another_run(other, tmp_path):
    made(["finetune"], tmp_path)
    assert outcome(["finetune"], tmp_path, **other).found == 0


def test_a_run_knows_how_it_was_made(tmp_path):
    (run,) = made(["er"], tmp_path)
    assert run.spec["hyper"]["strategy"] == [
        {"capacity": 500, "replay": 0, "memory": "reservoir", "combine": "sum"}]
    assert run.about["status"] == "done" and run.about["threads"] == torch.get_num_threads()
    assert run.accuracy.shape == (2, 3, 2) and np.isfinite(run.accuracy).all()
    assert run.logs["accuracy_task"].shape == (2, 3, 2)
    assert json.loads((Path(run.about["folder"]) / "run.json").read_text())["spec"] == run.spec


def test_a_run_can_be_made_again_from_its_spec_alone(tmp_path):
    stream = "rotated-digits(tasks=3, examples=30, scenario='task')"
    (run,) = made(["er(capacity=9) + ewc(strength=2.5)"], tmp_path, stream=stream, optimizer="adam(lr=0.01)",
                  model="mlp(hidden=(9,))", eval_every=2, batch_size=7, dtype="float64", seeds=3)
    spec = json.loads((Path(run.about["folder"]) / "run.json").read_text())["spec"]
    (found,) = again(read(Path(run.about["folder"])))
    assert [one.to_json() for one in found.specs] == [spec] and found.run(tmp_path).found == 1
    (found,) = again([Spec.from_json(spec)])
    assert [one.to_json() for one in found.specs] == [spec]
    np.testing.assert_array_equal(found.run().runs[0].accuracy, run.accuracy)
    assert spec["stream_options"]["tasks"] == 3 and spec["seeds"] == 3 and spec["steps"] == 4
    assert spec["hyper"]["strategy"][0] == {"capacity": 9, "replay": 0, "memory": "reservoir", "combine": "sum"}
    assert spec["hyper"]["strategy"][1]["strength"] == 2.5 and spec["hyper"]["optimizer"]["lr"] == 0.01


def test_a_run_says_where_and_how_it_went(tmp_path):
    (run,) = made(["er"], tmp_path, device="cpu")
    about = json.loads((Path(run.about["folder"]) / "run.json").read_text())["about"]
    assert about["device"] == "cpu" and about["torch"] == torch.__version__
    assert about["threads"] == torch.get_num_threads() and about["version"] == lifelong.__version__
    assert "commit" in about and (about["commit"] is None or len(about["commit"]) >= 10)
    assert 0 < about["seconds"] < 60 and about["lanes"] == 2
    assert about["status"] == "done" and about["note"] == ""


def test_a_damaged_run_is_named_and_left_while_the_others_are_made(tmp_path):
    (run,) = made(["finetune"], tmp_path)
    folder = Path(run.about["folder"])
    (folder / "accuracy.npz").write_bytes(b"rubbish")
    result = outcome(["finetune", "er"], tmp_path)
    assert result.damaged and len(result.failures) == 1 and str(folder) in result.failures[0]
    assert [r.spec["strategy"] for r in result.runs] == ["er"]
    assert (folder / "accuracy.npz").read_bytes() == b"rubbish"


def test_an_interrupted_stack_goes_on_in_the_lanes_it_was_begun_in(tmp_path, stacks):
    class Impatient(Watcher):
        def advance(self, share: float) -> None:
            if share > 0.6:
                raise KeyboardInterrupt

    grid = "er + ewc(strength=[1, 2])"
    with pytest.raises(KeyboardInterrupt):
        outcome([grid], tmp_path, watcher=Impatient(), save_every=0.0)
    assert store.runs(tmp_path) == ([], [])
    (run,) = made(["er + ewc(strength=2)"], tmp_path)  # only one of the two
    assert stacks == [4, 4]
    whole = made([grid])
    np.testing.assert_array_equal(run.accuracy, whole[1].accuracy)
    np.testing.assert_array_equal(run.logs["loss"], whole[1].logs["loss"])
    assert outcome([grid], tmp_path).found == 2
    assert not (tmp_path / ".stacks").exists()


def test_a_stack_interrupted_while_its_runs_are_saved_is_finished_as_the_same_stack(tmp_path, stacks, monkeypatch):
    grid, real, saved = "er + ewc(strength=[1, 2])", store.save, []

    def interrupted(root: Path, run: Run) -> Path:
        if saved:
            raise KeyboardInterrupt
        saved.append(run)
        return real(root, run)

    with monkeypatch.context() as patch:
        patch.setattr(store, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            outcome([grid], tmp_path)
    (first,), problems = store.runs(tmp_path)
    assert first.spec["strategy"] == "er + ewc(strength=1)" and problems == []
    result = outcome([grid], tmp_path)
    assert result.found == 1 and result.failures == [] and stacks == [4, 4]
    for run, whole in zip(result.runs, made([grid]), strict=True):
        assert run.spec == whole.spec
        np.testing.assert_array_equal(run.accuracy, whole.accuracy)
        np.testing.assert_array_equal(run.logs["loss"], whole.logs["loss"])
    np.testing.assert_array_equal(store.load(Path(first.about["folder"])).accuracy, first.accuracy)
    assert not (tmp_path / ".stacks").exists()


def test_a_damaged_run_of_an_interrupted_stack_is_left_as_it_is(tmp_path, monkeypatch):
    grid, real, saved = "ewc(strength=[1, 2])", store.save, []

    def interrupted(root: Path, run: Run) -> Path:
        if saved:
            raise KeyboardInterrupt
        saved.append(real(root, run))
        return saved[0]

    with monkeypatch.context() as patch:
        patch.setattr(store, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            outcome([grid], tmp_path)
    (saved[0] / "accuracy.npz").write_bytes(b"rubbish")
    result = outcome([grid], tmp_path)
    assert result.damaged and str(saved[0]) in result.failures[0]
    assert (saved[0] / "accuracy.npz").read_bytes() == b"rubbish", "it said that it leaves it"
    assert [r.spec["strategy"] for r in result.runs] == ["ewc(strength=2)"]


def test_a_stack_killed_after_its_last_run_is_cleared_away(tmp_path, monkeypatch):
    def killed(self: store.Workshop) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store.Workshop, "close", killed)
        with pytest.raises(KeyboardInterrupt):
            outcome(["ewc(strength=[1, 2])"], tmp_path)
    assert len(store.Workshop.all(tmp_path)) == 1
    no_training(monkeypatch)
    assert outcome(["ewc(strength=[1, 2])"], tmp_path).found == 2
    assert not (tmp_path / ".stacks").exists()


def test_a_diverged_run_is_kept_with_a_note(tmp_path, monkeypatch):
    (bad, good) = made(["finetune"], tmp_path, optimizer="sgd(lr=[1e30, 0.1])")
    assert bad.about["status"] == "diverged" and "task 0, step" in bad.about["note"]
    assert good.about["status"] == "done"
    assert np.isfinite(bad.accuracy[:, 0]).all() and np.isnan(bad.accuracy[:, 1:]).all()
    no_training(monkeypatch)
    assert outcome(["finetune"], tmp_path, optimizer="sgd(lr=[1e30, 0.1])").found == 2


# ---- plug-ins

PART = """
from lifelong import Part
import torch

def mine(strength: float = {strength}) -> Part:
    return Part(loss=lambda view: strength * view.batch.scores.square().mean())
"""

OBJECT = """
import math
import random
import numpy as np
import torch
from torch import nn

class Plain:
    def __init__(self, shape, n_classes, n_tasks, seed, lr: float = 0.1, hidden: int = 10):
        self.given = (tuple(shape), n_classes, n_tasks, seed)
        {init}
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), hidden), nn.Linear(hidden, n_classes))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr)
        self.tasks, self.steps = [], 0

    def observe(self, x, y, task):
        self.steps += 1
        {observe}
        x = x + 0.01 * torch.randn(x.shape) * np.random.rand() * random.random()
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def end_task(self):
        {end}
        self.tasks.append(self.steps)

    def predict(self, x):
        {predict}
        return self.net(x)
"""


def a_part(folder: Path, strength: float = 0.0) -> str:
    (folder / "mine.py").write_text(PART.format(strength=strength))
    return f"{folder / 'mine.py'}:mine"


def an_object(folder: Path, name: str = "plain.py", **lines: str) -> str:
    hooks = {"init": "pass", "observe": "pass", "end": "pass", "predict": "pass"}
    (folder / name).write_text(OBJECT.format(**(hooks | lines)))
    return f"{folder / name}:Plain"


def test_a_plug_in_file_with_another_content_is_another_run(tmp_path):
    (first,) = made([a_part(tmp_path)], tmp_path / "runs", dtype="float64")
    assert outcome([a_part(tmp_path)], tmp_path / "runs", dtype="float64").found == 1
    changed = outcome([a_part(tmp_path, 3.0)], tmp_path / "runs", dtype="float64")
    assert changed.found == 0
    assert changed.runs[0].spec["code"] != first.spec["code"]
    assert not np.array_equal(changed.runs[0].logs["loss"], first.logs["loss"]), "the new content is what is trained"


def test_two_files_of_one_name_are_both_in_the_spec(tmp_path):
    texts = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        texts.append(a_part(tmp_path / name))
    first = prepare("split-digits(tasks=2)", [" + ".join(texts)], Options(**QUICK)).specs[0].to_json()
    (tmp_path / "a" / "mine.py").write_text(PART.format(strength=0.0) + "# changed\n")
    second = prepare("split-digits(tasks=2)", [" + ".join(texts)], Options(**QUICK)).specs[0].to_json()
    assert first != second


def test_a_torch_module_from_a_file_is_a_model(tmp_path):
    (tmp_path / "net.py").write_text("from torch import nn\ndef mine(shape, n_classes, width: int = 5):\n"
                                     "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), "
                                     "nn.Linear(width, n_classes))\n")
    (run,) = made(["er + ewc"], model=f"{tmp_path / 'net.py'}:mine(width=7)")
    assert np.isfinite(run.accuracy).all() and any(path.endswith("net.py") for path in run.spec["code"])


def test_an_object_is_given_what_it_names(tmp_path):
    check = "assert self.given == ((1, 8, 8), 4, 2, seed) and seed in (0, 1), self.given"
    (run,) = made([an_object(tmp_path, init=check)], steps=20)
    assert run.accuracy.shape == (2, 3, 2) and np.isfinite(run.accuracy).all()
    assert not np.array_equal(run.accuracy[0], run.accuracy[1])
    assert (run.accuracy[:, 1, 0] > 0.5).all()
    (again,) = made([an_object(tmp_path, init=check)], steps=20)
    np.testing.assert_array_equal(run.accuracy, again.accuracy)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_object_is_given_examples_in_the_precision_asked_for(dtype):
    seen = set()

    class Looks:
        def observe(self, x: torch.Tensor, y: torch.Tensor, task: int | None) -> None:
            seen.add(x.dtype)

        def end_task(self) -> None: ...

        def predict(self, x: torch.Tensor) -> torch.Tensor:
            seen.add(x.dtype)
            return torch.zeros(len(x), 4)

    lifelong.run("split-digits(tasks=2)", Looks, seeds=1, steps=1, dtype=dtype)
    assert seen == {getattr(torch, dtype)}


def test_an_object_is_told_the_task_where_boundaries_are(tmp_path):
    made([an_object(tmp_path, observe="assert task == len(self.tasks)")])
    made([an_object(tmp_path, "blind.py", observe="assert task is None", end="raise ValueError('told')")],
         stream="split-digits(tasks=2, boundaries=False)")


def test_an_object_has_curves_though_its_seeds_have_tasks_of_different_lengths(tmp_path):
    (run,) = made([an_object(tmp_path)], steps=None, epochs=1, eval_every=3, seeds=5)
    assert run.logs["curve"].shape[0] == 5
    (part,) = made(["finetune"], steps=None, epochs=1, eval_every=3, seeds=5)
    assert part.logs["curve"].shape[0] == 5


@pytest.mark.parametrize("where", ["init", "observe", "end", "predict"])
def test_a_strategy_that_raises_fails_alone_and_says_where(where, tmp_path):
    broken = an_object(tmp_path, **{where: "raise RuntimeError('the cat sat on it')"})
    if where == "init":  # noticed before anything is trained
        with pytest.raises(Exception, match="the cat sat on it"):
            outcome(["finetune", broken, "er"], tmp_path / "runs")
        return
    result = outcome(["finetune", broken, "er"], tmp_path / "runs")
    assert [r.spec["strategy"] for r in result.runs] == ["finetune", "er"] and not result.damaged
    (sentence,) = result.failures
    line = next(i for i, text in enumerate((tmp_path / "plain.py").read_text().splitlines(), 1) if "the cat" in text)
    assert f"plain.py, line {line}, in " in sentence and "the cat sat on it" in sentence and "\n" not in sentence
    (file,) = (tmp_path / "runs").glob("*/error.txt")
    assert str(file) in sentence and "Traceback" in file.read_text() and "the cat sat on it" in file.read_text()
    found, problems = store.runs(tmp_path / "runs")
    assert len(found) == 2 and problems == []


def test_a_strategy_that_leaves_the_program_takes_no_other_with_it(tmp_path):
    broken = an_object(tmp_path, observe="raise SystemExit(0)")
    result = outcome([broken, "finetune"], tmp_path / "runs")
    assert [r.spec["strategy"] for r in result.runs] == ["finetune"]
    assert len(result.failures) == 1


RAISES = """
from lifelong import Part

steps = [0]

def mine(strength: float = 0.0) -> Part:
    def loss(view):
        if len(view.batch.rows) == 16:  # a batch of the stream's size: training, and not a trial before it
            steps[0] += 1
            if steps[0] == 3:
                raise RuntimeError('the cat sat on it')
        return strength * view.batch.scores.square().mean()
    return Part(loss=loss)
"""


def test_a_part_that_raises_at_its_third_step_fails_alone_and_is_tried_again_the_next_time(tmp_path, stacks):
    (tmp_path / "mine.py").write_text(RAISES)
    strategies, root = ["finetune", f"{tmp_path / 'mine.py'}:mine", "er"], tmp_path / "runs"
    result = outcome(strategies, root)
    assert [r.spec["strategy"] for r in result.runs] == ["finetune", "er"]
    (sentence,) = result.failures
    line = next(i for i, text in enumerate(RAISES.splitlines(), 1) if "the cat" in text)
    assert f"(mine.py, line {line}, in loss)" in sentence
    spec = prepare("split-digits(tasks=2)", strategies, Options(**QUICK)).specs[1].to_json()
    assert "the cat sat on it" in (store.folder(root, spec) / "error.txt").read_text()
    again = outcome(strategies, root)  # it raises once
    assert again.found == 2 and again.failures == [] and len(again.runs) == 3
    assert not (store.folder(root, spec) / "error.txt").exists() and not (root / ".stacks").exists()


BRANCHES = """
from lifelong import Part

def mine(strength: float = 1.0) -> Part:
    if strength > 1.5:
        return Part(loss=lambda view: strength * view.batch.scores.square().mean())
    return Part(loss=lambda view: strength * view.batch.scores.abs().mean())
"""


def test_a_factory_that_branches_on_a_listed_number_has_a_stack_for_each(tmp_path, stacks):
    (tmp_path / "mine.py").write_text(BRANCHES)
    name = f"{tmp_path / 'mine.py'}:mine"
    runs = made([f"{name}(strength=[0.5, 2, 3])"], dtype="float64")
    assert stacks == [2, 2, 2]
    for run, strength in zip(runs, (0.5, 2, 3), strict=True):
        (alone,) = made([f"{name}(strength={strength})"], dtype="float64")
        assert alone.spec == run.spec
        np.testing.assert_array_equal(run.accuracy, alone.accuracy)
        np.testing.assert_array_equal(run.logs["loss"], alone.logs["loss"])
    assert len({run.logs["loss"].tobytes() for run in runs}) == 3


def test_an_objects_hyper_parameters_can_be_lists(tmp_path):
    name = an_object(tmp_path)
    runs = made([f"{name}(lr=[0.01, 0.3], hidden=[5, 8])"], tmp_path / "runs", steps=10)
    assert [r.spec["hyper"]["strategy"] for r in runs] == [
        [{"lr": lr, "hidden": hidden}] for lr in (0.01, 0.3) for hidden in (5, 8)]
    assert len({run.accuracy.tobytes() for run in runs}) == 4
    (alone,) = made([f"{name}(lr=0.3, hidden=5)"], steps=10)
    np.testing.assert_array_equal(alone.accuracy, runs[2].accuracy)
    assert outcome([f"{name}(lr=[0.01, 0.3], hidden=[5, 8])"], tmp_path / "runs", steps=10).found == 4


WHOLE = """
import torch
from torch import nn

class Whole:
    def __init__(self, shape, n_classes, training, lr: float = 0.1):
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, n_classes))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr)
        self.training, self.tasks = training, []
        assert (training.steps is None) == (training.epochs is not None) and training.batch_size > 0
        assert training.optimizer.resolved()["lr"] == 0.25 and training.told == {told}

    def learn_task(self, x, y, task, tell):
        assert len(y.unique()) == 2 and task == len(self.tasks)
        self.tasks.append(len(y))
        for rows in torch.randperm(len(y)).split(self.training.batch_size):
            loss = nn.functional.cross_entropy(self.net(x[rows]), y[rows])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            tell({loss})

    def predict(self, x, task):
        assert task in {tasks}
        return self.net(x)
"""


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_an_object_with_a_loop_of_its_own_is_given_whole_tasks(scenario, tmp_path):
    told = scenario == "task"
    (tmp_path / "whole.py").write_text(WHOLE.format(told=told, tasks="(0, 1)" if told else "(None,)", loss="loss"))
    options = {"optimizer": "sgd(lr=0.25)", "batch_size": 50, "steps": None, "epochs": 1,
               "stream": f"split-digits(tasks=2, classes_per_task=2, scenario='{scenario}')"}
    (run,) = made([f"{tmp_path}/whole.py:Whole"], tmp_path / "runs", **options)
    assert (run.accuracy[:, 1, 0] > 0.6).all() and (run.logs["loss"] > 0).all()
    (again,) = made([f"{tmp_path}/whole.py:Whole"], **options, eval_every=2)
    np.testing.assert_array_equal(run.accuracy, again.accuracy)
    assert [0, 2] in again.logs["curve_step"].tolist()


def test_an_object_with_a_loop_of_its_own_is_stopped_when_its_loss_is_lost(tmp_path):
    (tmp_path / "whole.py").write_text(WHOLE.format(
        told=False, tasks="(None,)", loss="loss if len(self.tasks) == 1 else float('nan')"))
    result = outcome([f"{tmp_path}/whole.py:Whole"], optimizer="sgd(lr=0.25)", batch_size=50, steps=None, epochs=1)
    (run,) = result.runs
    assert run.about["status"] == "diverged" and "seed 0 at task 1, step 0" in run.about["note"]
    assert np.isfinite(run.accuracy[:, :2]).all() and np.isnan(run.accuracy[:, 2]).all()
    (tmp_path / "mute.py").write_text(WHOLE.format(told=False, tasks="(None,)", loss="None"))
    (sentence,) = outcome([f"{tmp_path}/mute.py:Whole"], optimizer="sgd(lr=0.25)").failures
    assert "Whole.learn_task must tell its loss, a number" in sentence
    with pytest.raises(ValueError, match="must be told where a task ends"):
        prepare("split-digits(tasks=2, boundaries=False)", [f"{tmp_path}/whole.py:Whole"],
                Options(**QUICK, optimizer="sgd(lr=0.25)"))


@pytest.mark.parametrize(("hook", "words"), [
    ("return self.net(x).argmax(-1)", ["predict must return scores", "[n, C]"]),
    ("return self.net(x)[:, :2]", ["predict must return scores"]),
])
def test_an_object_that_answers_wrongly_is_told_what_was_needed(hook, words, tmp_path):
    result = outcome([an_object(tmp_path, predict=hook)])
    assert result.runs == [] and all(word in result.failures[0] for word in words)


def test_an_object_without_a_method_is_told_which(tmp_path):
    (tmp_path / "half.py").write_text("class Half:\n    def observe(self, x, y, task): ...\n"
                                      "    def predict(self, x): ...\n")
    (sentence,) = outcome([f"{tmp_path / 'half.py'}:Half"]).failures
    assert "Half has no method end_task" in sentence


IMPURE = """
from lifelong import Part
import torch

def mine() -> Part:
    def step(view):
        return {'n': view.state['n'] + view.batch.weight.sum().item()}  # here
    return Part(init=lambda view: {'n': torch.zeros(2)}, step=step)
"""


def test_a_strategy_that_breaks_a_purity_rule_is_refused_before_training(tmp_path):
    (tmp_path / "mine.py").write_text(IMPURE)
    with pytest.raises(ValueError, match=r"reads a number out of a tensor.*\(mine\.py, line 7, in step\)"):
        prepare("split-digits(tasks=2)", [f"{tmp_path / 'mine.py'}:mine"], Options(seeds=2, steps=2))


def test_what_must_be_told_boundaries_is_refused_where_they_are_not():
    for strategy in ("ewc", "er + lwf", "agem"):
        with pytest.raises(ValueError, match="must be told where a task ends"):
            outcome([strategy], stream="split-digits(tasks=2, boundaries=False)")
    assert made(["er", "ncm"], stream="split-digits(tasks=2, boundaries=False)")


# ---- the Python API


def ridge(strength: float = 1e-3) -> Part:
    return Part(loss=lambda view: strength * view.batch.scores.square().mean())


def test_run_takes_expressions_and_objects():
    for strategy in ("er", Part(), ridge):
        run = lifelong.run("split-digits(tasks=2)", strategy, seeds=2, steps=2)
        assert run.accuracy.shape == (2, 3, 2)


def test_run_takes_a_stream_made_elsewhere():
    from lifelong.streams.digits import split
    run = lifelong.run(split([0, 1, 2], tasks=2), "er", steps=2)
    assert run.accuracy.shape == (3, 3, 2)


def test_a_stream_made_elsewhere_is_not_stored_and_brings_its_own_seeds(tmp_path):
    from lifelong.streams.digits import split
    stream = split([5, 6], tasks=2)  # seeds that no expression can name
    with pytest.raises(ValueError, match="given as a Python object, which a store cannot find"):
        lifelong.run(stream, "er", steps=4, store=tmp_path)
    with pytest.raises(ValueError, match="given as a Python object"):
        prepare(stream, ["er"], Options(seeds=2, steps=4)).run(tmp_path)
    with pytest.raises(ValueError, match="seeds must be 2, for which the stream .* was made, got 5"):
        lifelong.run(stream, "er", steps=4, seeds=5)
    assert not list(tmp_path.iterdir())


def test_run_keeps_what_it_can_find_again_and_refuses_what_it_cannot(tmp_path):
    lifelong.run("split-digits(tasks=2)", "er", seeds=2, steps=2, store=tmp_path)
    assert len(store.runs(tmp_path)[0]) == 1
    for strategy in (Part(), ridge, lambda: Part()):
        with pytest.raises(ValueError, match=r"put it in a file"):
            lifelong.run("split-digits(tasks=2)", strategy, seeds=2, steps=2, store=tmp_path)


def test_a_function_that_has_a_catalogue_name_is_not_the_catalogues(tmp_path):
    def er(capacity: int = 500) -> Part:
        return ridge(100.0)

    kept = lifelong.run("split-digits(tasks=2)", "er", seeds=2, steps=2, store=tmp_path)
    with pytest.raises(ValueError, match=r"put it in a file"):
        mine = lifelong.run("split-digits(tasks=2)", er, seeds=2, steps=2, store=tmp_path)
        assert mine.spec != kept.spec, "one was taken for the other"


@pytest.mark.parametrize(("strategy", "kind"), [(3, TypeError), (None, TypeError), (object(), TypeError)])
def test_what_is_no_strategy_is_refused(strategy, kind):
    with pytest.raises(kind, match="a strategy is"):
        lifelong.run("split-digits(tasks=2)", strategy, seeds=2, steps=2)


@pytest.mark.parametrize(("options", "words"), [
    ({"seeds": 0}, "^seeds must be 1 or more, got 0$"), ({"steps": 0}, "^steps must"),
    ({"steps": None, "epochs": 0}, "^epochs must"), ({"batch_size": 0}, "^batch_size must be 1 or more, got 0$"),
    ({"eval_every": -1}, "^eval_every must"), ({"epochs": 1}, "epochs or steps, not both"),
    ({"device": "tpu"}, "^device must"), ({"dtype": "float99"}, "^dtype must"), ({"dtype": "int64"}, "^dtype must"),
    ({"optimizer": "sgd + adam"}, "not a sum"), ({"save_every": -1.0}, "^save_every must"),
    ({"save_every": float("nan")}, "^save_every must"), ({"memory": 0.0}, "^memory must be above 0"),
])
def test_options_are_checked_at_once(options, words):
    with pytest.raises(ValueError, match=words):
        prepare("split-digits(tasks=2)", ["finetune"], Options(**(QUICK | options)))


def test_an_ordered_stream_keeps_what_it_retained_and_tells_no_task(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(OBJECT_THAT_FOLLOWS)
    stream = replace(tiny([0, 1]), ordered=True, retention=True)
    for strategy in ("finetune", f"{file}:follows"):
        logs = lifelong.run(stream, strategy, epochs=1, model="mlp").logs
        assert "accuracy_task" not in logs
        assert logs["accuracy_train"].shape == (2, 4, 3)
        assert np.isfinite(logs["accuracy_train"][:, -1]).all()
        assert np.isnan(logs["accuracy_train"][:, 1, 1:]).all()
    assert "accuracy_train" not in lifelong.run(tiny([0]), "finetune", epochs=1, model="mlp").logs


OBJECT_THAT_FOLLOWS = """
import torch

class follows:
    def __init__(self, net):
        self.net, self.params = net, net.init(torch.Generator().manual_seed(0))
    def observe(self, x, y, task): pass
    def end_task(self): pass
    def predict(self, x): return self.net.apply(self.params, x)
"""


def test_tasks_of_one_class_are_not_scored_with_the_task_told():
    (run,) = made(["finetune"], stream="split-digits(classes_per_task=1, tasks=3)")
    assert "accuracy_task" not in run.logs, "told the task there would be one answer to choose from"


def test_an_optimizer_may_ask_for_the_network_and_the_facts_of_the_stream(tmp_path):
    (tmp_path / "own.py").write_text(
        "from lifelong.learning.optim import sgd\n"
        "def by_units(net, n_classes, scale: float = 1.0):\n"
        "    assert net.head == ('head.weight', 'head.bias')\n"
        "    return sgd(scale / n_classes)\n")
    options = {"seeds": 2, "steps": 3}
    own = lifelong.run("rotated-digits(tasks=2)", "finetune", optimizer=f"{tmp_path}/own.py:by_units", **options)
    plain = lifelong.run("rotated-digits(tasks=2)", "finetune", optimizer="sgd(lr=0.1)", **options)  # ten classes
    assert np.array_equal(own.accuracy, plain.accuracy)


# ---- several processes on one store


class Heard(Watcher):
    """What a run says, and an event for the first sentence."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.spoken = threading.Event()

    def say(self, sentence: str) -> None:
        self.said.append(sentence)
        self.spoken.set()


@pytest.mark.parametrize("stored", [True, False])
def test_what_another_process_trains_is_waited_for_and_taken_from_it(stored, tmp_path, monkeypatch):
    monkeypatch.setattr("lifelong.experiments.experiment.WAIT", 0.01)
    asked = ["ewc(strength=[2.0,1.0])", "finetune"]
    alone = prepare("split-digits(tasks=2)", asked, Options(**QUICK)).run()
    one, heard, results = prepare("split-digits(tasks=2)", asked, Options(**QUICK)), Heard(), []
    stack = sorted(one.specs[:2], key=lambda spec: spec.digest)
    trained = []
    measure = type(one)._measure
    monkeypatch.setattr(type(one), "_measure", lambda self, stack, *more: trained.append(len(stack)) or measure(
        self, stack, *more))
    with Workshop(tmp_path, [spec.to_json() for spec in stack]).open() as shop:
        thread = threading.Thread(target=lambda: results.append(one.run(tmp_path, heard)))
        thread.start()
        assert heard.spoken.wait(60) and "waiting for it" in heard.said[0] and "ewc" in heard.said[0]
        if stored:
            for run in alone.runs[:2]:
                store.save(tmp_path, run)
            shop.close()
    thread.join(60)
    (outcome,) = results
    assert outcome.failures == [] and len(heard.said) == 1, "it says so once"
    assert trained == ([1] if stored else [1, 2]), "finetune is trained while ewc is waited for"
    for run, other in zip(outcome.runs, alone.runs, strict=True):
        np.testing.assert_array_equal(run.accuracy, other.accuracy)


def test_the_same_settings_in_another_order_are_one_stack(tmp_path):
    def stacks(asked: list[str]) -> list[list[str]]:
        made_of = prepare("split-digits(tasks=2)", asked, Options(**QUICK))
        return [[spec.strategy for spec in stack] for stack in made_of._stacks(made_of.specs, tmp_path)]

    one, other = stacks(["ewc(strength=[1.0,2.0])", "er"]), stacks(["er", "ewc(strength=2.0)", "ewc(strength=1.0)"])
    assert one == other[::-1] and len(one) == 2, "strategies are trained in the order in which they are asked for"
