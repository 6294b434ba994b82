"""The bridge to Avalanche: which of its strategies run here and learn, what a user is told about the others, and that
streams and numbers are the same on both sides."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lifelong
from lifelong import cli, metrics, store
from lifelong.data import build
from lifelong.data.stream import Stream
from lifelong.experiments import contract as checks
from lifelong.experiments.contract import tiny
from lifelong.experiments.prepare import make_stream, prepare
from lifelong.learning import imperative as objects
from lifelong.learning.engine import Rhythm
from lifelong.learning.imperative import train_object
from lifelong.randomness import generator
from lifelong.report.frameworks import framework
from lifelong.spec import expression
from lifelong.spec.run import Options

bridge = pytest.importorskip("lifelong.bridges.avalanche", reason="Avalanche is not installed", exc_type=ImportError)

# Every strategy of Avalanche's that runs here, with the hyper-parameters that it needs or that make it quick.
RUN = {
    "AGEM": "patterns_per_exp=20, sample_size=20",
    "CWRStar": "",
    "CoPE": "online=True, alpha=0.5",  # a batch is an experience, or it learns from one batch a task
    "Cumulative": "",
    "DER": "",
    "ER_ACE": "",
    "ER_AML": "",
    "EWC": "ewc_lambda=1, mode='online', decay_factor=0.9",
    "FeatureReplay": "",
    "FromScratchTraining": "",
    "GDumb": "",
    "GEM": "patterns_per_exp=20, memory_strength=0.5",
    "GSS_greedy": "",
    "GenerativeReplay": "",
    "ICaRL": "memory_size=30, fixed_memory=True",
    "LFL": "lambda_e=0.1",
    "LaMAML": "",
    "LwF": "alpha=1, temperature=2",
    "MAS": "",
    "MER": "n_inner_steps=2, gamma=1.0",
    "MIR": "mem_size=20, subsample=10, batch_size_mem=5",
    "Naive": "",
    "RWalk": "ewc_lambda=1",
    "Replay": "mem_size=50",
    "SCR": "",
    "StreamingLDA": "",
    "SynapticIntelligence": "si_lambda=1",
}
# Those that do not, and what the user is told.
REFUSED = {
    "AETraining": "trains an autoencoder",
    "AR1": "brings a network of its own",
    "BiC": "an argument (verbose) that torch no longer takes",
    "ExpertGateStrategy": "needs a network of its own",
    "JointTraining": "must be given all tasks at once; `joint` does the same here",
    "LearningToPrompt": "brings a network of its own",
    "ObjectDetectionTemplate": "trains a detector",
    "PNNStrategy": "needs a network of its own",
    "PackNet": "prunes torch layers",
    "VAETraining": "trains an autoencoder",
}


def images(scenario: str = "class", seeds: int = 1) -> Stream:
    """Six classes of noisy 28 x 28 images as three tasks."""
    g = generator("test-avalanche")
    y = torch.arange(6).repeat_interleave(30)
    x = torch.rand(6, 1, 28, 28, generator=g)[y] * 0.8 + torch.rand(180, 1, 28, 28, generator=g) * 0.2
    rows = torch.arange(180).view(6, 30)
    data = build.Images(x, y, rows[:, :20].flatten(), rows[:, 20:].flatten())
    return build.split("images-v1", range(seeds), data, tasks=3, scenario=scenario)


def strategy_of(name: str) -> str:
    return f"avalanche.{name}({RUN[name]})"


def go(stream: Stream, strategy: Any, **options: Any) -> store.Run:
    return lifelong.run(stream, strategy, **{"batch_size": 5, "epochs": 2, "optimizer": "sgd(lr=0.05)"} | options)


# ---- strategies


def test_every_strategy_of_avalanche_runs_or_is_refused():
    assert set(bridge.classes()) == set(RUN) | set(REFUSED)


@pytest.mark.parametrize("scenario", ["class", "task"])
@pytest.mark.parametrize("name", RUN)
def test_a_strategy_learns_each_of_its_runs_in_the_process_to_the_same_bits(name, scenario, capsys):
    stream = images(scenario) if name == "GenerativeReplay" else tiny([0], scenario=scenario)
    runs = [go(stream, strategy_of(name)) for _ in range(2)]
    assert np.array_equal(runs[0].accuracy, runs[1].accuracy) and np.isfinite(runs[0].accuracy).all()
    assert np.array_equal(runs[0].logs["loss"], runs[1].logs["loss"]) and (runs[0].logs["loss"] > 0).all()
    assert runs[0].accuracy[0, 1, 0] > 0.6, "the first task, two classes"
    assert runs[0].about["status"] == "done"


@pytest.mark.parametrize("name", REFUSED)
def test_a_strategy_that_cannot_run_says_why_in_one_sentence(name):
    with pytest.raises(ValueError, match=r"^avalanche\.\w+ cannot be run here: ") as told:
        prepare(tiny([0]), [f"avalanche.{name}"], Options(seeds=1))
    assert REFUSED[name] in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("scenario", ["class", "task", "domain"])
@pytest.mark.parametrize("optimizer", ["sgd(lr=0.1, momentum=0.5, weight_decay=0.01)", "adam(lr=0.01, beta1=0.8)"])
def test_naive_on_whole_tasks_is_our_finetune(scenario, optimizer):
    """With a batch of all examples the order does not matter: network, optimizer, loss and masks must be the same."""
    options = {"batch_size": 24, "epochs": 15, "optimizer": optimizer}
    ours, theirs = (go(tiny([0, 1, 2], scenario=scenario), s, **options) for s in ("finetune", "avalanche.Naive"))
    assert np.array_equal(ours.accuracy, theirs.accuracy)
    assert np.allclose(ours.logs["loss"], theirs.logs["loss"], 1e-4) and ours.accuracy[:, 1, 0].mean() > 0.9


def test_images_and_convolutions_too():
    ours, theirs = (go(images(), s, batch_size=40, epochs=3, model="conv4(width=8)")
                    for s in ("finetune", "avalanche.Naive"))
    assert np.array_equal(ours.accuracy, theirs.accuracy)
    assert np.allclose(ours.logs["loss"], theirs.logs["loss"], 1e-4)


NET = """
from torch import nn
class Net(nn.Module):
    def __init__(self, shape, n_classes):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(shape[0], 12), nn.ReLU())
        self.head = nn.Linear(12, n_classes)
    def {features}(self, x):
        return self.body(x)
    def forward(self, x):
        return self.head(self.body(x))
"""


def test_a_torch_module_of_the_users_own_is_the_network(tmp_path):
    (tmp_path / "net.py").write_text(NET.format(features="features"))
    options = {"batch_size": 24, "epochs": 5, "model": f"{tmp_path}/net.py:Net"}
    ours, theirs = (go(tiny([0, 1]), s, **options) for s in ("finetune", "avalanche.Naive"))
    assert np.array_equal(ours.accuracy, theirs.accuracy)
    assert np.isfinite(go(tiny([0]), strategy_of("ICaRL"), model=f"{tmp_path}/net.py:Net").accuracy).all()

    (tmp_path / "mute.py").write_text(NET.format(features="hidden"))
    assert np.array_equal(go(tiny([0, 1]), "avalanche.Naive", **options | {"model": f"{tmp_path}/mute.py:Net"}).accuracy,
                          theirs.accuracy)
    for name in ("ICaRL", "StreamingLDA", "CWRStar", "LFL", "ER_AML", "SCR", "FeatureReplay"):
        with pytest.raises(ValueError, match="last hidden layer"):
            prepare(tiny([0]), [strategy_of(name)], Options(seeds=1, model=f"{tmp_path}/mute.py:Net"))


@pytest.mark.parametrize("name", ["Naive", "EWC", "Replay", "GEM", "ICaRL", "LaMAML", "StreamingLDA", "CWRStar"])
def test_a_run_is_what_avalanche_itself_does_on_our_benchmark(name):
    """The same strategy driven by Avalanche's own hands, `train` and `eval` on `to_benchmark`, ends the same."""
    stream = tiny([0, 1])
    run = go(stream, strategy_of(name), seeds=2)
    experiment = prepare(stream, [strategy_of(name)], Options(seeds=2, batch_size=5, epochs=2, optimizer="sgd(lr=0.05)"))
    make = experiment.learners.make(experiment.specs[0], seed=1)
    objects._seed(1)
    learner, benchmark, rows = make({}), bridge.to_benchmark(stream, 1), []
    with bridge._calm():
        for experience in benchmark.train_stream:
            learner.strategy.train(experience)
            before, row = objects.generators(), []
            for test in benchmark.test_stream:
                learner.strategy.eval(test)
                row.append((learner.scores.answer.argmax(1) == torch.tensor(list(test.dataset.targets))).double().mean())
            objects.set_generators(before)
            rows.append(torch.stack(row).numpy())
    assert np.array_equal(run.accuracy[1, 1:], np.stack(rows))


def test_replay_forgets_less_and_shuffling_follows_the_seed():
    stream = tiny([0, 1, 2])
    naive, replay = (go(stream, f"avalanche.{s}") for s in ("Naive", "Replay(mem_size=50)"))
    assert metrics.average_accuracy(replay.accuracy).mean() > metrics.average_accuracy(naive.accuracy).mean() + 0.2
    assert len(np.unique(naive.logs["loss"][:, 0])) == 3


def test_online_makes_an_experience_of_every_batch():
    """So that a buffer is filled inside a task, which Avalanche does after experiences alone."""
    whole, online = (go(tiny([0]), f"avalanche.Replay(mem_size=50, online={flag})") for flag in (False, True))
    assert whole.logs["loss"][0, 0] != online.logs["loss"][0, 0]
    assert online.accuracy[0, -1].mean() > 0.6


@pytest.mark.parametrize("name", ["Naive", "Replay", "RWalk", "SynapticIntelligence", "ICaRL", "StreamingLDA", "MIR"])
def test_measuring_inside_tasks_changes_nothing(name):
    text = strategy_of(name) if name != "MIR" else "avalanche.MIR(mem_size=20, subsample=10, online=True)"
    plain, watched = (go(tiny([0]), text, eval_every=every) for every in (0, 2))
    assert np.array_equal(plain.accuracy, watched.accuracy)
    assert np.array_equal(plain.logs["loss"], watched.logs["loss"])
    assert watched.logs["curve"].shape == (1, 12, 3)  # 10 steps a task, of which 2, 4, 6, 8 are inside


@pytest.mark.parametrize("strategy", ["Naive", "Replay(mem_size=50)", "Cumulative", "Naive(online=True)"])
def test_steps_are_counted_whatever_the_passes(strategy):
    told: list[tuple[int, int, int]] = []
    stream = tiny([0])
    experiment = prepare(stream, [f"avalanche.{strategy}"], Options(seeds=1, steps=7, batch_size=4))
    learner = experiment.learners.make(experiment.specs[0])({})
    train_object(lambda: learner, stream, 0, 0, experiment.learners.budget,
                 Rhythm(tell=lambda task, step, steps: told.append((task, step, steps))))
    assert [t for t in told if t[0] == 1][-1] == (1, 7, 7)
    assert all(sum(t[0] == task for t in told) == 7 for task in range(3))
    assert learner.strategy.clock.train_exp_counter == (21 if "online" in strategy else 3)


def test_a_loss_that_is_not_finite_ends_the_seed():
    run = go(tiny([0, 1]), "avalanche.Naive", optimizer="sgd(lr=1e30)")
    assert run.about["status"] == "diverged" and np.isnan(run.accuracy[:, -1]).all()


def test_it_keeps_the_contract_of_objects():
    assert checks.failures("avalanche.Naive") == []
    assert checks.failures(strategy_of("EWC")) == []


# ---- asking


@pytest.mark.parametrize(("text", "kind", "words"), [
    ("avalanche.GEMM", LookupError, ["no strategy called 'GEMM'", "did you mean GEM"]),
    ("avalanche.zzz", LookupError, ["no strategy called 'zzz'", "it has AETraining"]),
    ("avalanche.GEM(patterns=3)", LookupError, ["avalanche.GEM has no hyper-parameter 'patterns'", "patterns_per_exp"]),
    ("avalanche.Naive(lr=3)", LookupError, ["avalanche.Naive has no hyper-parameter 'lr'"]),
    ("avalanche.GEM(patterns_per_exp=0.5)", ValueError, ["patterns_per_exp must be an integer, got 0.5"]),
    ("avalanche.GEM(memory_strength='x')", ValueError, ["memory_strength must be a number"]),
    ("avalanche.GEM(256)", ValueError, ["avalanche.GEM: write arguments as name=value"]),
    ("avalanche.GEM", ValueError, ["avalanche.GEM needs a value for patterns_per_exp"]),
    ("avalanche.LwF(alpha=1)", ValueError, ["avalanche.LwF needs a value for temperature"]),
    ("avalanche.EWC(ewc_lambda=1, decay_factor=0.5)", ValueError, ["avalanche.EWC: ", "`online` mode"]),
    ("avalanche.GenerativeReplay", ValueError, ["images of [1, 28, 28]"]),
    ("er + avalanche.Naive", ValueError, ["avalanche.Naive is a whole learner", "cannot be added to er"]),
    ("avalanche.training.Naive", ValueError, ["cannot read"]),
    ("torch.Naive", LookupError, ["no framework called 'torch'", "avalanche"]),
])
def test_what_is_asked_wrongly_is_told_in_one_sentence(text, kind, words, capsys, monkeypatch, tmp_path):
    with pytest.raises(kind) as told:
        prepare(tiny([0]), [text], Options(seeds=1))
    sentence = str(told.value)
    assert all(word in sentence for word in words) and "\n" not in sentence, sentence
    monkeypatch.setattr("sys.argv", ["lifelong", "run", "split-digits", text, "--store", str(tmp_path)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_options_that_do_not_go_with_it_are_refused(tmp_path):
    def asked(stream: Stream = tiny([0]), **options: Any) -> str:
        with pytest.raises(ValueError) as told:
            prepare(stream, ["avalanche.Naive"], Options(seeds=1, **options))
        return str(told.value)

    assert "must be told where a task ends" in asked(tiny([0], boundaries=False))
    assert "trained in float32" in asked(dtype="float64")
    (tmp_path / "net.py").write_text("from lifelong.networks.mlp import mlp\ndef normed(shape, n_classes):\n    return mlp("
                                     "shape, n_classes)._replace(still=('norm',), train=lambda *given: given)\n")
    assert "statistics of batch normalisation" in asked(model=f"{tmp_path}/net.py:normed")
    (tmp_path / "drop.py").write_text("from torch import nn\ndef dropped(shape, n_classes):\n    return nn.Sequential("
                                      "nn.Linear(shape[0], n_classes), nn.Dropout())\n")
    assert "as it answers, without dropout" in asked(model=f"{tmp_path}/drop.py:dropped")
    (tmp_path / "own.py").write_text("from lifelong.learning.optim import sgd\ndef mine(lr: float = 0.1):\n    return sgd(lr)\n")
    assert "use sgd or adam" in asked(optimizer=f"{tmp_path}/own.py:mine")
    with pytest.raises(RuntimeError, match="classes of their own in every task"):
        go(make_stream("rotated-digits(tasks=2)", Options(seeds=1)), strategy_of("ICaRL"), epochs=1, batch_size=50)


def test_it_is_stored_and_found_with_its_hyper_parameters_and_version(tmp_path, monkeypatch, capsys):
    words = ["lifelong", "run", "split-digits", "avalanche.GEM(patterns_per_exp=[5,10], memory_strength=0.25)",
             "--seeds", "2", "--epochs", "1", "--batch-size", "50", "--store", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    for found in (False, True):
        with pytest.raises(SystemExit) as left:
            cli.main()
        out = capsys.readouterr().out
        assert left.value.code == 0 and ("2 of 2 runs were finished already" in out) == found and "avalanche.GEM" in out
    records = [json.loads(p.read_text()) for p in sorted(tmp_path.glob("*/run.json"))]
    assert len(records) == 2
    for record in records:
        (hyper,) = record["spec"]["hyper"]["strategy"]
        assert hyper["patterns_per_exp"] in (5, 10) and hyper["memory_strength"] == 0.25 and not hyper["online"]
        assert record["spec"]["code"] == {"avalanche": "0.6.0"}
        (again,) = expression.parse(record["spec"]["strategy"])
        assert again.resolved() == hyper


def test_runs_without_it_are_named_as_before():
    experiment = prepare(tiny([0]), ["finetune"], Options(seeds=1))
    assert experiment.specs[0].to_json()["code"] == {}


def test_a_killed_run_begins_its_seed_again_and_ends_as_the_whole_one(tmp_path, monkeypatch):
    options = Options(seeds=2, epochs=1, batch_size=50, save_every=0.0)
    whole = prepare("split-digits", ["avalanche.Replay"], options).run(tmp_path / "whole").runs[0]
    learn, calls = bridge.Learner.learn_task, []

    def killed(self: Any, *args: Any) -> None:
        calls.append(1)
        if len(calls) == 8:  # the second seed's third task
            raise KeyboardInterrupt
        learn(self, *args)

    monkeypatch.setattr(bridge.Learner, "learn_task", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare("split-digits", ["avalanche.Replay"], options).run(tmp_path / "killed")
    again = prepare("split-digits", ["avalanche.Replay"], options).run(tmp_path / "killed").runs[0]
    assert np.array_equal(again.accuracy, whole.accuracy)
    assert len(calls) == 8 + 5, "the first seed is kept, the second begun again"


def test_list_tells_about_one(monkeypatch, capsys):
    for words, code in ((["avalanche.EWC"], 0), (["avalanche.EWCC"], 2), (["avalanche.BiC"], 2)):
        monkeypatch.setattr("sys.argv", ["lifelong", "list", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == code
    said = capsys.readouterr()
    assert "mode='separate'" in said.out and "Elastic Weight Consolidation" in said.out
    assert "did you mean EWC" in said.err and "cannot be run here" in said.err


# ---- warnings


def test_only_avalanches_own_warnings_are_dropped():
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with bridge._calm():
            warnings.warn("mine", UserWarning, stacklevel=1)
            warnings.warn_explicit("theirs", DeprecationWarning, bridge.avalanche.__file__, 1)
    assert [str(w.message) for w in heard] == ["mine"]
    filters = list(warnings.filters)
    go(tiny([0]), "avalanche.Replay")  # calls what is deprecated, which meddles with the filters
    assert list(warnings.filters) == filters


# ---- streams and benchmarks


def streams() -> dict[str, Stream]:
    digits = {name: make_stream(text, Options(seeds=2)) for name, text in (
        ("class", "split-digits"), ("task", "split-digits(scenario='task')"),
        ("domain", "split-digits(scenario='domain')"), ("rotated", "rotated-digits(tasks=3, examples=50)"),
        ("permuted by class", "permuted-digits(tasks=3, scenario='class', examples=50)"))}
    return digits | {"padded": tiny([0, 1])}


@pytest.mark.parametrize("kind", ["class", "task", "domain", "rotated", "permuted by class", "padded"])
def test_there_and_back_again_gives_the_same_pixels_labels_and_tasks(kind):
    ours = streams()[kind]
    back = bridge.from_benchmark(bridge.to_benchmark(ours, 1), seeds=3)
    assert (back.n_seeds, back.n_tasks, back.n_classes, back.shape) == (3, ours.n_tasks, ours.n_classes, ours.shape)
    assert back.scenario == ours.scenario and torch.equal(back.classes[2], ours.classes[1])
    pools = [s.pool().lane({k: v[0] for k, v in s.lanes([1]).items()}) for s in (ours, back)]
    for rows, again in ((ours.train[1], back.train[2]), (ours.test[1], back.test[2])):
        for task in range(ours.n_tasks):
            (x, y), (x2, y2) = (pool.fetch(own[task][own[task] >= 0])
                                for pool, own in zip(pools, (rows, again), strict=True))
            assert torch.equal(x, x2) and torch.equal(y, y2) and len(y) > 1


def test_a_benchmark_is_pooled_once_for_all_seeds():
    ours = images(seeds=2)
    back = bridge.from_benchmark(bridge.to_benchmark(ours), seeds=4)
    assert len(back.y) == 180 and back.n_seeds == 4
    run = go(back, "er(capacity=30) + ewc", seeds=4, optimizer="sgd(lr=0.01)")
    assert run.accuracy.shape == (4, 4, 3) and run.accuracy[:, 1, 0].mean() > 0.7
    with pytest.raises(ValueError, match="seeds must be 4, for which the stream"):
        go(back, "er", seeds=2)


@pytest.mark.parametrize("seed", [-1, 2])
def test_a_seed_that_the_stream_does_not_have_is_refused(seed):
    with pytest.raises(ValueError, match="has seeds 0 to 1"):
        bridge.to_benchmark(images(seeds=2), seed)


def theirs(classes: list[list[int]], labels: list[int] | None = None, test: list[list[int]] | None = None) -> Any:
    """A benchmark made by Avalanche's own generator: a column for the class, one for the task, ten examples a class."""
    from avalanche.benchmarks import tensors_benchmark

    def data(tasks: list[list[int]], kind: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(torch.stack([torch.tensor([float(c), float(t), float(kind)]) for c in units for _ in range(10)]),
                 torch.tensor(units).repeat_interleave(10)) for t, units in enumerate(tasks)]

    test = classes if test is None else test
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tensors_benchmark(train_tensors=data(classes, 0), test_tensors=data(test, 1),
                                 task_labels=labels or [0] * len(classes))


@pytest.mark.parametrize(("classes", "labels", "scenario", "units"), [
    ([[7, 3], [9, 5]], None, "class", [[0, 2], [1, 3]]),  # 3 5 7 9 become 0 1 2 3
    ([[3, 7], [3, 7]], None, "domain", [[0, 1], [0, 1]]),
    ([[3, 7], [7, 9]], None, "class", [[0, 1], [1, 2]]),
    ([[0, 1], [0, 1]], [0, 1], "task", [[0, 1], [2, 3]]),  # a head for each task
    ([[5, 6], [7, 8]], [4, 2], "task", [[2, 3], [0, 1]]),  # units are numbered by task label, then class
])
def test_labels_get_no_gaps_and_task_labels_units_of_their_own(classes, labels, scenario, units):
    stream = bridge.from_benchmark(theirs(classes, labels))
    assert stream.scenario == scenario
    assert [row.nonzero().flatten().tolist() for row in stream.classes[0]] == units
    for kind, rows in enumerate((stream.train[0], stream.test[0])):
        for task, own in enumerate(rows):
            x, y = stream.pool().fetch(own[own >= 0])
            assert len(y) == 20 and set(x[:, 1].tolist()) == {task} and set(x[:, 2].tolist()) == {kind}
            name = dict(zip(sorted(classes[task]), units[task], strict=True))
            assert y.tolist() == [name[int(c)] for c in x[:, 0]]


def test_one_test_experience_serves_all_tasks_by_their_classes():
    stream = bridge.from_benchmark(theirs([[4, 2], [6]], test=[[2, 4, 6, 8]]))
    assert len(stream.y) == 30 + 30 and stream.n_classes == 3, "what is never trained, class 8, is left out"
    seen = [set(stream.pool().fetch(rows[rows >= 0])[1].tolist()) for rows in stream.test[0]]
    assert seen == [{0, 1}, {2}]


def test_avalanches_new_generators_are_read_too():
    from avalanche.benchmarks import class_incremental_benchmark, split_online_stream, task_incremental_benchmark
    from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute, as_classification_dataset

    y = torch.arange(4).repeat_interleave(5)
    data = [as_classification_dataset(AvalancheDataset(
        [torch.utils.data.TensorDataset(y[:, None] + shift, y)], data_attributes=[DataAttribute(y.tolist(), "targets")]))
        for shift in (0.0, 0.5)]
    made = class_incremental_benchmark(dict(zip(("train", "test"), data, strict=True)), class_order=[3, 1, 0, 2],
                                       num_experiences=2)
    stream = bridge.from_benchmark(made)
    assert stream.scenario == "class" and stream.classes[0].int().tolist() == [[0, 1, 0, 1], [1, 0, 1, 0]]
    x, y = stream.pool().fetch(stream.test[0, 0])
    assert torch.equal(x[:, 0], y + 0.5)
    told = bridge.from_benchmark(task_incremental_benchmark(made))
    assert told.scenario == "task" and told.classes[0].int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
    online = list(split_online_stream(bridge.to_benchmark(stream).train_stream, 4))
    assert [len(e.dataset) for e in online] == [4, 4, 2] * 2


def test_benchmarks_that_make_no_stream_are_refused():
    def said(benchmark: Any) -> str:
        with pytest.raises(ValueError) as told:
            bridge.from_benchmark(benchmark, name="theirs")
        return str(told.value)

    assert "there are 3 train and 2 test experiences" in said(theirs([[0], [1], [2]], test=[[0, 1], [2]]))
    assert "labels of their own" in said(theirs([[0, 1], [0, 1]], [0, 1], test=[[0, 1]]))
    sides = [SimpleNamespace(dataset=SimpleNamespace(eval=lambda n=n: [(torch.zeros(n), 0)])) for n in (2, 3)]
    assert "differ in shape" in said(SimpleNamespace(train_stream=sides[:1], test_stream=sides[1:]))
    several = SimpleNamespace(task_labels=[0, 1])
    assert "experience 0 has several task labels: 0, 1" in said(SimpleNamespace(train_stream=[several],
                                                                               test_stream=[several]))
    words = SimpleNamespace(dataset=SimpleNamespace(eval=lambda: [("a word", 0)]))
    assert "ToTensor" in said(SimpleNamespace(train_stream=[words], test_stream=[words]))


@pytest.mark.parametrize("name", ["LwF", "DER", "ICaRL", "MER", "GEM", "GDumb", "ER_ACE", "AGEM", "LaMAML"])
def test_avalanches_strategies_learn_on_our_streams(name):
    """Driven as Avalanche's own examples do it: its models, its metrics, train and eval by its loop."""
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.models import MTSimpleMLP, SimpleMLP
    from avalanche.training.plugins import EvaluationPlugin

    torch.manual_seed(0)
    stream = images("task" if name == "LaMAML" else "class")
    benchmark = bridge.to_benchmark(stream)
    (term,) = expression.parse(strategy_of(name))
    with bridge._calm():
        model = MTSimpleMLP(hidden_size=50) if name == "LaMAML" else SimpleMLP(6, hidden_size=50)
        given = {"model": model, "criterion": nn.CrossEntropyLoss()}
        if name == "ICaRL":
            model.classifier, head = nn.Identity(), model.classifier
            given = {"feature_extractor": model, "classifier": head, "buffer_transform": None}
            model = nn.ModuleList([model, head])
        strategy = bridge.classes()[name](
            **given, **term.given, optimizer=torch.optim.SGD(model.parameters(), 0.02), train_mb_size=5, train_epochs=4,
            eval_mb_size=50, evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]))
        for experience in benchmark.train_stream:
            strategy.train(experience)
            results = strategy.eval(benchmark.test_stream)
    scores = [v for k, v in results.items() if k.startswith("Top1_Acc_Exp")]
    assert len(scores) == 3 and scores[-1] > 0.6


# ---- metrics


def test_its_metrics_are_ours_save_forgetting():
    """On the same network after the same steps: accuracies by its loop and by ours, and what follows from them.

    Its backward and forward transfer, of each task and of the stream, are ours. Its stream forgetting is the backward
    transfer with the sign turned, a[k,k] - a[T,k], where Chaudhry et al., and we, take the best earlier accuracy.
    """
    from avalanche.evaluation.metrics import accuracy_metrics, bwt_metrics, forgetting_metrics, forward_transfer_metrics
    from avalanche.training import Naive
    from avalanche.training.plugins import EvaluationPlugin

    torch.manual_seed(0)
    stream = make_stream("rotated-digits(tasks=4)", Options(seeds=2))
    pool = stream.pool().lane({k: v[0] for k, v in stream.lanes([1]).items()})
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def ours() -> list[float]:
        with torch.no_grad():
            tests = [pool.fetch(rows) for rows in stream.test[1]]
            return [(model(x).argmax(1) == y).double().mean().item() for x, y in tests]

    rows, last = [ours()], {}
    with bridge._calm():
        benchmark = bridge.to_benchmark(stream, 1)
        every = {"experience": True, "stream": True}
        evaluator = EvaluationPlugin(accuracy_metrics(experience=True, stream=True), bwt_metrics(**every),
                                     forward_transfer_metrics(**every), forgetting_metrics(**every), loggers=[])
        strategy = Naive(model=model, optimizer=torch.optim.SGD(model.parameters(), 0.5), train_mb_size=32,
                         eval_mb_size=256, evaluator=evaluator, eval_every=0)
        for experience in benchmark.train_stream:
            last = strategy.train(experience, eval_streams=[benchmark.test_stream])
            rows.append(ours())
            of_tasks = [v for k, v in last.items() if k.startswith("Top1_Acc_Exp/eval")]
            assert np.allclose(of_tasks, rows[-1])
    a = np.array(rows)

    def their(name: str, task: int | None = None) -> float:
        where = "" if task is None else f"/Task000/Exp{task:03d}"
        return last[f"{name}/eval_phase/test_stream{where}"]

    assert their("StreamBWT") == pytest.approx(metrics.backward_transfer(a)) != 0
    assert their("StreamForwardTransfer") == pytest.approx(metrics.forward_transfer(a)) != 0
    for k in range(3):
        assert their("ExperienceBWT", k) == pytest.approx(a[4, k] - a[k + 1, k])
        assert their("ExperienceForwardTransfer", k + 1) == pytest.approx(a[k + 1, k + 1] - a[0, k + 1])
    assert their("StreamForgetting") == pytest.approx(-metrics.backward_transfer(a))
    for one in framework("avalanche").metrics:
        (value,) = (v for k, v in last.items() if k.startswith(f"{one.name}/eval_phase/test_stream"))
        assert value == pytest.approx(float(one.metric(a))), f"--as avalanche: {one.name}"
    assert metrics.forgetting(a) > their("StreamForgetting") + 1e-4, "the best was not at once, so they differ"
