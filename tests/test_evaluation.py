"""Which tasks are evaluated after which task: the schedule itself, in training, in the metrics and in the report."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lifelong import metrics, report, store
from lifelong.experiments import complete as completing
from lifelong.experiments.contract import tiny
from lifelong.experiments.prepare import prepare
from lifelong.learning.composition import gradient_learner
from lifelong.learning.engine import Measured, Rhythm, train
from lifelong.learning.imperative import train_object
from lifelong.learning.lanes import Lanes
from lifelong.learning.optim import sgd
from lifelong.learning.parts import Part
from lifelong.learning.schedule import Budget
from lifelong.networks.mlp import mlp
from lifelong.report.frameworks import framework
from lifelong.spec.evaluation import Evaluation
from lifelong.spec.run import Options
from lifelong.store.records import Run
from lifelong.vmap import tree

pytestmark = pytest.mark.usefixtures("undrawn")

# What is evaluated of five tasks, row by row: before the first task, and after each.
ROWS = {
    "all": ["01234"] * 6,
    "seen": ["", "0", "01", "012", "0123", "01234"],
    "current": ["", "0", "1", "2", "3", "4"],
    "all:2": ["01234", "", "01234", "", "01234", "01234"],
    "seen:3": ["", "", "", "012", "", "01234"],
    "current:4": ["", "", "", "", "3", "4"],
    "current + all:3": ["01234", "0", "1", "01234", "3", "01234"],
    "seen + all:4": ["01234", "0", "01", "012", "01234", "01234"],
}


@pytest.mark.parametrize("text", ROWS)
def test_a_schedule_says_which_tasks_are_evaluated_after_each(text):
    found = [Evaluation.parse(text).tasks(row, 5) for row in range(6)]
    assert ["".join(map(str, tasks)) for tasks in found] == ROWS[text]


@pytest.mark.parametrize(("text", "written"), [
    ("all", "all"), ("all:1", "all"), (" current+all:100 ", "all:100 + current"), ("seen : 3", None), ("", None),
    ("every:3", None), ("all:0", None), ("all:-1", None), ("all:x", None), ("all+all:2", None), ("current +", None),
    ("allseen", None), ("all\n", "all"),
])
def test_a_schedule_is_written_in_one_way_and_anything_else_is_refused(text, written):
    if written is None:
        with pytest.raises(ValueError, match=rf"schedule is all, seen or current.*; got {re.escape(repr(text))}"):
            Evaluation.parse(text)
    else:
        assert str(Evaluation.parse(text)) == written


def test_a_stream_refuses_a_schedule_that_is_none():
    with pytest.raises(ValueError, match="got 'often'"):
        replace(tiny([0]), evaluation="often")


# ---- training

NET, BUDGET, SCHEDULES = mlp((8,), 6, (12,)), Budget(5, 1), ("seen", "current", "all:2", "current + all:2")


def lanes(evaluation: str, stacked: bool = True, retention: bool = False) -> Lanes:
    seeds = [0, 1] if stacked else [1]
    stream = replace(tiny(seeds), evaluation=evaluation, retention=retention)
    return Lanes(stream, seeds, range(len(seeds)), lambda hyper: gradient_learner(NET, sgd(0.1), {"none": Part()}),
                 dtype=torch.float64, stacked=stacked)


def kept(table: Tensor, evaluation: str, n_tasks: int = 3) -> Tensor:
    """A dense table with NaN wherever the schedule evaluates nothing."""
    found = torch.full_like(table, torch.nan)
    for row in range(1 + n_tasks):
        tasks = list(Evaluation.parse(evaluation).tasks(row, n_tasks))
        found[..., row, tasks] = table[..., row, tasks]
    return found


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("retention", [False, True])
@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("evaluation", SCHEDULES)
def test_what_is_evaluated_is_what_it_is_when_all_is_and_the_rest_takes_no_room(evaluation, stacked, retention):
    whole = train(lanes("all", stacked, retention), BUDGET)
    part = train(lanes(evaluation, stacked, retention), BUDGET)
    for name in ("accuracy", "told", "retained"):
        same(getattr(part, name), kept(getattr(whole, name), evaluation))
    same(part.loss, whole.loss)
    entries = sum(len(Evaluation.parse(evaluation).tasks(row, 3)) for row in range(4))
    assert part.values.shape == (2 + retention, 2 if stacked else 1, entries)
    assert len(whole.place) == 12


@pytest.mark.parametrize("evaluation", SCHEDULES)
def test_inside_a_task_the_tasks_are_evaluated_that_are_after_it(evaluation):
    whole, part = (train(lanes(e), BUDGET, Rhythm(2)) for e in ("all", evaluation))
    points = {tuple(at): point for at, point in zip(part.curve_step.tolist(), part.curve, strict=True)}
    for at, point in zip(whole.curve_step.tolist(), whole.curve, strict=True):
        tasks = list(Evaluation.parse(evaluation).tasks(1 + at[0], 3))
        assert (tuple(at) in points) == bool(tasks)
        if tasks:
            same(points[tuple(at)][:, tasks], point[:, tasks])
            assert int(points[tuple(at)].isfinite().sum()) == 2 * len(tasks)


class Plain:
    """An object that learns, in plain torch, and can be resumed."""

    def __init__(self) -> None:
        self.params = {k: p.requires_grad_() for k, p in NET.init(torch.Generator().manual_seed(0)).items()}

    def observe(self, x: Tensor, y: Tensor, task: int | None) -> float:
        loss = torch.nn.functional.cross_entropy(NET.apply(self.params, x), y)
        for p, g in zip(self.params.values(), torch.autograd.grad(loss, list(self.params.values())), strict=True):
            p.data -= 0.1 * g
        return loss.item()

    def end_task(self) -> None: ...

    def predict(self, x: Tensor) -> Tensor:
        return NET.apply(self.params, x)

    def state_dict(self) -> dict[str, Tensor]:
        return {k: p.detach().clone() for k, p in self.params.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for k, p in self.params.items():
            p.data.copy_(state[k])


@pytest.mark.parametrize("evaluation", SCHEDULES)
def test_an_object_is_evaluated_by_the_same_schedule(evaluation):
    def go(schedule: str) -> Measured:
        stream = replace(tiny([0]), evaluation=schedule, retention=True)
        return train_object(Plain, stream, 0, 0, BUDGET, Rhythm(2))

    whole, part = go("all"), go(evaluation)
    for name in ("accuracy", "told", "retained"):
        same(getattr(part, name), kept(getattr(whole, name), evaluation))
    rows = [bool(Evaluation.parse(evaluation).tasks(1 + t, 3)) for t in range(3)]
    assert part.curve_step.tolist() == [at for at in whole.curve_step.tolist() if rows[at[0]]]


# ---- checkpoints


def checkpoints(evaluation: str, save_every: float, steps: int = 4) -> list[dict[str, Any]]:
    taken: list[dict[str, Any]] = []
    train(lanes(evaluation), Budget(5, 1, steps), Rhythm(0, save_every, lambda c: taken.append(copied(c))))
    return taken


def copied(checkpoint: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = tree(lambda v: v.clone() if isinstance(v, Tensor) else v, checkpoint)
    return found


def test_a_checkpoint_is_made_when_its_seconds_have_passed_and_not_because_a_task_ended(monkeypatch):
    assert checkpoints("all", 30.0) == []
    assert [(c["task"], c["step"]) for c in checkpoints("all", 0.0)] == [
        (t + s // 4, s % 4) for t in range(3) for s in range(1, 5)]
    clock = iter(range(1, 1000))  # a second passes at every look: after a step, after a task, when one is made
    monkeypatch.setattr("lifelong.learning.engine.time.monotonic", lambda: float(next(clock)))
    rhythm, taken = Rhythm(0, 3.0, lambda c: taken.append((c["task"], c["step"]))), list[tuple[int, int]]()
    rhythm.saved = 0.0
    train(lanes("all"), Budget(5, 1, 4), rhythm)
    # Made at 3, noted at 4; task 0 ends at 5; made at 7, noted at 8; task 1 ends at 10; made at 11.
    assert taken == [(0, 3), (1, 2), (2, 1)]


def test_when_training_ends_no_checkpoint_is_due():
    rhythm = Rhythm(save_every=1e-9, save=lambda checkpoint: None)
    assert rhythm.due() and not rhythm.due(ended=True)
    assert not Rhythm(save_every=0.0).due(), "there is nowhere to save"


def size(checkpoint: dict[str, Any]) -> int:
    buffer = io.BytesIO()
    torch.save(checkpoint["measured"]["values"], buffer)
    return len(buffer.getvalue())


def test_a_checkpoint_holds_what_was_evaluated_so_far_and_nothing_else():
    every, current = checkpoints("all", 0.0), checkpoints("current", 0.0)
    assert [c["measured"]["values"].shape[-1] for c in every[::4]] == [3, 6, 9]
    assert [c["measured"]["values"].shape[-1] for c in current[::4]] == [0, 1, 2]
    assert size(every[-1]) > size(current[-1])


@pytest.mark.parametrize("evaluation", ["seen", "current + all:2"])
def test_a_run_resumed_anywhere_ends_with_the_same_bits_under_any_schedule(evaluation):
    whole = train(lanes(evaluation), Budget(5, 1, 4))
    for checkpoint in checkpoints(evaluation, 0.0)[::2]:
        again = train(lanes(evaluation), Budget(5, 1, 4), resume=copied(checkpoint))
        for name, value in vars(whole).items():
            same(getattr(again, name), value)


def test_lanes_that_all_diverged_in_their_turn_are_joined_with_those_that_did_not(tmp_path):
    (tmp_path / "mine.py").write_text("""
import torch
from lifelong import Learner

def mine(bad: float = 0.0):
    def predict(state, pool, x):
        scores = torch.zeros(len(x), pool.n_classes, dtype=x.dtype)
        return torch.where((state["n"] >= 4) & (state["bad"] > 0), torch.nan, scores)
    return Learner(lambda seed, pool: {"n": torch.zeros(()), "bad": torch.as_tensor(bad, dtype=torch.float64)},
                   lambda state, pool, batch: (state | {"n": state["n"] + 1}, {}), predict)
""")
    options = Options(seeds=1, steps=4, dtype="float64", memory=1e-9)  # a lane at a time
    experiment = prepare("split-digits(tasks=3)", [f"{tmp_path / 'mine.py'}:mine(bad=[1.0, 0.0])"], options)
    bad, good = experiment.run().runs
    assert bad.about["status"] == "diverged" and good.about["status"] == "done"
    assert np.isfinite(bad.accuracy[:, :1]).all() and np.isnan(bad.accuracy[:, 1:]).all()
    assert np.isfinite(good.accuracy).all()


# ---- what was asked for


def test_the_usual_schedule_leaves_a_runs_name_as_it_was_and_another_gives_it_another():
    specs = [prepare("split-digits(tasks=3)", ["er"], Options(seeds=1, steps=1, evaluate=evaluate)).specs[0].to_json()
             for evaluate in (None, "all", "all:1", "current+all:2")]
    assert specs[0] == specs[1] == specs[2] and "evaluate" not in specs[0]
    assert specs[3] == {**specs[0], "evaluate": "all:2 + current"}


def test_a_run_whose_accuracies_no_store_could_read_back_is_refused(monkeypatch):
    monkeypatch.setattr(store, "LARGEST", 2 * 4 * 3 * 8 * 2)
    prepare("split-digits(tasks=3)", ["finetune"], Options(seeds=2, steps=1))
    with pytest.raises(ValueError, match=r"3 seeds after each of 3 tasks take .* fewer seeds or fewer tasks"):
        prepare("split-digits(tasks=3)", ["finetune"], Options(seeds=3, steps=1))
    assert completing.store is store


def test_a_run_by_a_schedule_is_stored_found_and_reported(lifelong, tmp_path):
    words = ["run", "split-digits", "finetune", "er", "--tasks", "4", "--seeds", "2", "--steps", "3", "--evaluate",
             "current+all:2"]
    said = lifelong(*words)
    assert said.code == 0, said.err
    runs, problems = store.runs(tmp_path / "runs")
    assert problems == [] and [run.spec["evaluate"] for run in runs] == ["all:2 + current"] * 2
    expected = kept(torch.zeros(2, 5, 4), "current+all:2", 4).isnan().numpy()
    for run in runs:
        np.testing.assert_array_equal(np.isnan(run.accuracy), expected)
        np.testing.assert_array_equal(np.isnan(run.logs["accuracy_task"]), expected)
    assert "2 of 2 runs were finished already" in lifelong(*words).out
    assert lifelong("report").code == 0
    text = (tmp_path / "runs" / "report" / "report.md").read_text()
    assert "evaluate=all:2 + current" in text
    refused = lifelong(*words[:-1], "sometimes")
    assert refused.code == 2 and "an evaluation schedule is all, seen or current" in refused.err


# ---- metrics

# Rows: untrained, after task 1, 2, 3, 4. Columns: tasks 1 to 4.
A = np.array([
    [0.1, 0.2, 0.3, 0.4],
    [0.9, 0.3, 0.2, 0.1],
    [0.6, 0.8, 0.5, 0.2],
    [0.4, 0.5, 0.7, 0.6],
    [0.5, 0.9, 0.3, 1.0],
])
FINAL, LEARNED = (0.5 + 0.9 + 0.3 + 1.0) / 4, (0.9 + 0.8 + 0.7 + 1.0) / 4
BACKWARD = ((0.5 - 0.9) + (0.9 - 0.8) + (0.3 - 0.7)) / 3
INCREMENTAL = (0.9 + (0.6 + 0.8) / 2 + (0.4 + 0.5 + 0.7) / 3 + FINAL) / 4
FORGOT = ((0.9 - 0.5) + (0.8 - 0.9) + (0.7 - 0.3)) / 3
FORWARD = ((0.3 - 0.2) + (0.5 - 0.3) + (0.6 - 0.4)) / 3
TOLD: dict[str, dict[str, float]] = {  # every metric that the schedule's evaluations tell; the others must be NaN
    "all": {"average_accuracy": FINAL, "average_incremental_accuracy": INCREMENTAL, "forgetting": FORGOT,
            "backward_transfer": BACKWARD, "forward_transfer": FORWARD, "learning_accuracy": LEARNED},
    "seen": {"average_accuracy": FINAL, "average_incremental_accuracy": INCREMENTAL, "forgetting": FORGOT,
             "backward_transfer": BACKWARD, "learning_accuracy": LEARNED},
    "current": {"learning_accuracy": LEARNED},
    "all:3": {"average_accuracy": FINAL},
    "seen:2": {"average_accuracy": FINAL},
    "current + all:4": {"average_accuracy": FINAL, "backward_transfer": BACKWARD, "learning_accuracy": LEARNED},
}
METRICS = list(TOLD["all"])


def sparse(evaluation: str, a: np.ndarray = A) -> np.ndarray:
    return kept(torch.from_numpy(a), evaluation, a.shape[-1]).numpy()


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("evaluation", TOLD)
def test_a_metric_is_the_number_worked_by_hand_or_not_measured(evaluation, name):
    found = float(getattr(metrics, name)(sparse(evaluation)))
    assert found == pytest.approx(TOLD[evaluation].get(name, np.nan), nan_ok=True)


def test_intransigence_needs_the_new_task_of_both():
    best = np.full_like(A, 1.0)
    for evaluation in ("seen", "current", "current + all:4"):
        assert float(metrics.intransigence(sparse(evaluation), best)) == pytest.approx(1 - LEARNED)
        assert float(metrics.intransigence(best, sparse(evaluation))) == pytest.approx(LEARNED - 1)
    assert np.isnan(metrics.intransigence(sparse("all:3"), best))


def test_a_curve_has_a_point_where_all_it_averages_was_evaluated():
    nan = np.nan
    np.testing.assert_allclose(metrics.average_curve(sparse("seen:3")), [nan, nan, (0.4 + 0.5 + 0.7) / 3, FINAL])
    np.testing.assert_allclose(metrics.average_curve(sparse("current")), [0.9, nan, nan, nan])
    np.testing.assert_allclose(metrics.forgetting_curve(sparse("all:3")), [nan] * 4)
    np.testing.assert_allclose(metrics.forgetting_curve(sparse("seen"))[-1], FORGOT)


# Of other frameworks: what 'seen' tells; 'current' tells nothing of theirs, for none has a learning accuracy.
THEIRS = {"gem": {"Final Accuracy", "Backward"}, "avalanche": {"Top1_Acc_Stream", "StreamBWT", "StreamForgetting"},
          "mammoth": {"accuracy", "bwt"}, "continuum": {
              "accuracy", "average_incremental_accuracy", "accuracy_A", "backward_transfer", "forward_transfer",
              "forgetting"}}


@pytest.mark.parametrize("name", THEIRS)
def test_other_frameworks_metrics_are_not_made_up_either(name):
    for one in framework(name).metrics:
        seen, whole = float(one.metric(sparse("seen"))), float(one.metric(A))
        assert seen == pytest.approx(whole if one.name in THEIRS[name] else np.nan, nan_ok=True), one.name
        assert np.isnan(one.metric(sparse("current"))), one.name


# ---- the report


def runs_by(evaluation: str, curve: bool = False, about: dict[str, Any] | None = None) -> list[Run]:
    found = []
    for i, strategy in enumerate(("finetune", "er", "joint")):
        a = np.stack([sparse(evaluation, np.clip(A + 0.01 * i * seed + 0.02 * i, 0, 1)) for seed in range(6)])
        spec = {"format": 1, "stream": "four-v1", "stream_options": {"scenario": "domain"}, "strategy": strategy,
                "seeds": 6, "evaluation": evaluation}
        logs = {}
        if curve:
            row = np.full((6, 1, 4), np.nan)
            row[:, 0, 1] = 0.5
            logs = {"curve": row, "curve_step": np.array([[1, 3]]), "steps": np.full((6, 4), 5)}
        found.append(Run(spec, a, {"status": "done", "note": "", "seconds": 2.0 + i, "lanes": 6, **(about or {})}, logs))
    return found


DRAWN = {
    "all": {"curves", "forgetting", "tasks", "matrix", "transfer", "plane", "cost"},
    "seen": {"curves", "forgetting", "tasks", "matrix", "transfer", "plane", "cost"},
    "current": {"tasks", "matrix"},
    "all:3": {"curves", "tasks", "matrix", "cost"},
    "current + all:4": {"curves", "tasks", "matrix", "transfer", "cost"},
}


@pytest.mark.parametrize("evaluation", DRAWN)
def test_a_report_shows_what_was_evaluated_and_says_what_was_not(evaluation, tmp_path):
    runs = runs_by(evaluation, curve=True)
    (group,) = report.groups(runs)
    assert set(report.figures.drawable(group)) == DRAWN[evaluation] | {"within"}
    paths = report.write(runs, tmp_path, other=("gem", "mammoth"))
    assert all(path.stat().st_size for path in paths)
    text = (tmp_path / "report.md").read_text()
    assert not re.search(r"\bnan\b", text)
    table = report.tables_of(group)[0]
    titles = [column.title.replace(" ", "_") for column in table.columns]
    for name, cell in zip(titles[1:-1], table.rows[0][1:-1], strict=True):
        if name != "intransigence":
            assert ("".join(cell.text) == "–") == (name not in TOLD[evaluation]), name
    if evaluation != "all" and evaluation != "seen":
        assert "–: not measured, or not defined for this run." in text
        assert "a run was not evaluated often enough for this metric" in text
    if evaluation == "current":
        assert "The average accuracy after the last task was measured for fewer than two strategies." in text
        assert "Accuracy on each task after the last one" in text and "–: not measured." in text


def test_a_figure_joins_the_tasks_after_which_something_was_evaluated():
    from lifelong.report import canvas, captions, figures

    (group,) = report.groups(runs_by("all:2"))
    look = canvas.looks([group])
    line = figures.curves(group, look).axes[0].lines[0]
    np.testing.assert_allclose(line.get_xdata(), [2, 4])
    np.testing.assert_allclose(line.get_ydata(), 100 * np.array([(0.6 + 0.8) / 2, FINAL]))
    assert "Lines connect the tasks after which it was measured" in captions.caption(group, "curves")
    (whole,) = report.groups(runs_by("all"))
    assert "Lines join" not in captions.caption(whole, "curves")


def test_a_run_that_diverged_is_said_to_have_got_as_far_as_it_was_measured():
    runs = runs_by("current", about={"status": "diverged", "note": ""})
    runs[1].accuracy[2:, 3:] = np.nan
    text = report.markdown(runs)
    assert "`er` diverged; 2 of 6 seeds reached the end. Task 2 is the last after which every seed was measured." in text
    assert "`finetune` diverged; 6 of 6 seeds reached the end" in text


def test_an_interrupted_save_leaves_the_stack_to_be_trained_again_as_one(tmp_path):
    shop = store.Workshop(tmp_path, [{"stream": "a-v1", "strategy": name} for name in ("er", "ewc")])
    with shop.open():
        store.save(tmp_path, Run(shop.specs[0], np.zeros((1, 2, 1)), {"status": "done"}))
    assert [one.specs for one in store.Workshop.all(tmp_path)] == [shop.specs]
    other = store.Workshop(tmp_path, [{"stream": "a-v1", "strategy": "si"}])
    with other.open():
        pass
    assert not other.place.exists(), "nothing of it is stored, and there is no checkpoint"
