"""A run as data: in JSON and back, from a file, and refused in one sentence where it says what is not so."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command, refused
from hypothesis import given
from hypothesis import strategies as some

import lifelong
from lifelong import store
from lifelong.experiments import contract, learners
from lifelong.experiments.again import again, read
from lifelong.experiments.prepare import prepare
from lifelong.learning.parts import Part
from lifelong.spec import plugins
from lifelong.spec.run import OptionError, Options, Spec, digest

pytestmark = pytest.mark.usefixtures("undrawn")

QUICK: dict[str, Any] = {"seeds": 2, "steps": 4}
STREAM = "split-digits(tasks=2)"

# ---- JSON and back

JSON = some.recursive(some.none() | some.booleans() | some.integers(-9, 9) | some.floats(allow_nan=False,
                      allow_infinity=False) | some.text(max_size=9),
                      lambda one: some.lists(one, max_size=3) | some.dictionaries(some.text(max_size=5), one, max_size=3),
                      max_leaves=6)
OBJECTS = some.dictionaries(some.text(max_size=5), JSON, max_size=3)
COUNTS = some.none() | some.integers(1, 99)
SPECS = some.builds(
    Spec, stream=some.text(max_size=9), strategy=some.text(max_size=9), model=some.none() | some.text(max_size=9),
    optimizer=some.none() | some.text(max_size=9), epochs=COUNTS, batch_size=COUNTS, seeds=some.integers(1, 9),
    eval_every=some.integers(0, 9), dtype=some.sampled_from(["float32", "float64", "bfloat16"]),
    augment=some.none() | some.text(max_size=5), evaluate=some.sampled_from([None, "all", "current + all:3"]),
    overlap=some.none() | some.booleans() | some.integers(1, 9) | some.just("unknown"),
    boundaries=some.none() | some.booleans(), stream_name=some.none() | some.text(max_size=5),
    stream_options=some.none() | OBJECTS, data=some.none() | some.text(max_size=5), hyper=some.none() | OBJECTS,
    start=some.none() | some.text(max_size=5) | OBJECTS,
    code=some.none() | some.dictionaries(some.text(max_size=5), some.text(max_size=5), max_size=2))


@given(SPECS)
def test_a_spec_comes_back_from_its_json(spec: Spec):
    there = json.loads(json.dumps(spec.to_json()))
    again = Spec.from_json(there)
    assert again == spec and again.to_json() == there and again.digest == spec.digest == digest(there)


@pytest.mark.parametrize(("strategy", "options"), [
    ("finetune", {}), ("er(capacity=9) + ewc(strength=2.5)", {"dtype": "float64", "eval_every": 2}),
    ("ncm", {"model": "mlp(hidden=(9,))"}), ("er", {"optimizer": "adam(lr=0.01)", "augment": "flip", "batch_size": 7}),
    ("supervised(steps=2, model='mlp(hidden=(8,))', source='rotated-digits') + er", {"overlap": True}),
    ("finetune", {"evaluate": "current + all:2"}), ("joint", {"steps": None, "epochs": 1})])
def test_a_stored_run_is_found_from_its_record_and_made_again_without_the_store(strategy, options, tmp_path):
    run = lifelong.run(STREAM, strategy, store=tmp_path, **(QUICK | options))
    folder = Path(run.about["folder"])
    assert Spec.from_json(run.spec).to_json() == run.spec and folder.name.endswith(Spec.from_json(run.spec).digest)
    (experiment,) = again(read(folder))
    assert [spec.to_json() for spec in experiment.specs] == [run.spec]
    assert experiment.run(tmp_path).found == 1
    np.testing.assert_array_equal(experiment.run().runs[0].accuracy, run.accuracy)


def test_words_python_a_file_and_a_record_are_one_spec(tmp_path: Path, lifelong: Command):
    assert lifelong("run", "split-digits", "er(capacity=9)", "--tasks", "2", "--seeds", "2", "--steps", "4",
                    "--quiet").code == 0
    ((run,), _) = store.runs(tmp_path / "runs")
    written = {"stream": "split-digits-v1(tasks=2)", "strategy": "er( capacity = 9 )", "seeds": 2, "steps": 4}
    (tmp_path / "specs.json").write_text(json.dumps([written, {**written, "strategy": "finetune", "seeds": 1}]))
    python = prepare(STREAM, ["er(capacity=9)"], Options(**QUICK)).specs
    file = [spec for one in again(read(tmp_path / "specs.json")) for spec in one.specs]
    assert python[0].to_json() == file[0].to_json() == run.spec and len(file) == 2
    said = lifelong("run", "--from", "specs.json")
    assert said.code == 0 and "1 of 2 runs" in said.out
    assert "1 of 1 runs" in lifelong("run", "--from", run.about["folder"]).out
    assert len(store.runs(tmp_path / "runs")[0]) == 2


# ---- what a file can get wrong

PART = "from lifelong import Part\n\ndef mine() -> Part:\n    return Part()\n"


@pytest.mark.parametrize(("text", "words"), [
    ("{", ["specs.json is not JSON"]), ("[]", ["holds no spec"]), ("3", ["a JSON object", "got a int"]),
    ("[" * 100_000, ["is not JSON"]), ('{"stream": NaN}', ["NaN is no JSON value"]),
    ('{"strategy": "er"}', ["needs a stream", "'strategy'"]), ('{"stream": "split-digits"}', ["needs a strategy"]),
    ('{"format": 3, "stream": "x", "strategy": "er"}', ["format 3", "use a later version"]),
    ('{"format": "2", "stream": "x", "strategy": "er"}', ["format '2'"]),
    ('{"format": true, "stream": "x", "strategy": "er"}', ["format True"]),
    ('{"format": 1, "stream": "split-digits-v1", "strategy": "er"}', ["needs a stream and its stream_options"]),
    ('{"stream": "x", "strategy": "er", "sedes": 3}', ["no key 'sedes'", "did you mean seeds"]),
    ('{"stream": "x", "strategy": "er", "terms_given": []}', ["no key 'terms_given'"]),
    ('{"stream": "x", "strategy": "er", "seeds": "3"}', ["seeds of a spec must be an integer", '"3"']),
    ('{"stream": "x", "strategy": "er", "seeds": true}', ["seeds of a spec must be an integer", "true"]),
    ('{"stream": "x", "strategy": "er", "seeds": 0}', ["seeds must be 1 or more, got 0"]),
    ('{"stream": "x", "strategy": ["er"]}', ["strategy of a spec must be a string"]),
    ('{"stream": "x", "strategy": "er", "code": {"a.py": 3}}', ["code of a spec must be an object of strings"]),
    ('{"stream": "x", "strategy": "er", "epochs": 1, "steps": 1}', ["not both"]),
    ('{"stream": "split-digit", "strategy": "er"}', ["did you mean split-digits"]),
    ('{"stream": "split-digits", "strategy": "ewc(strength=[1,2])"}', ["single values"]),
])
def test_a_file_that_holds_no_spec_gets_one_sentence(text: str, words: list[str], lifelong: Command, tmp_path: Path):
    (tmp_path / "specs.json").write_text(text)
    refused(lifelong("run", "--from", "specs.json"), *words)


@pytest.mark.parametrize(("change", "words"), [
    ({"data": "0" * 16}, ["cannot be made again here", "data was"]),
    ({"stream_name": "split-digits-v0"}, ["stream_name was"]),
    ({"hyper": {"strategy": [{"capacity": 7}]}}, ["hyper.strategy", "was 7 and is 500"]),
    ({"start": "abc"}, ["start was"])])
def test_what_a_record_says_must_be_so(change: dict[str, Any], words: list[str], lifelong: Command, tmp_path: Path):
    spec = prepare(STREAM, ["er"], Options(**QUICK)).specs[0].to_json()
    if "hyper" in change:
        spec["hyper"]["strategy"][0]["capacity"] = 7
        change = {}
    (tmp_path / "run.json").write_text(json.dumps({"spec": spec | change, "about": {}}))
    refused(lifelong("run", "--from", "run.json"), *words)


@pytest.mark.parametrize(("words", "said"), [
    (["split-digits"], "STREAM"), (["--seeds", "3"], "--seeds"), (["--tasks", "3"], "--tasks"),
    (["--optimizer", "adam"], "--optimizer"), (["--tuned", "t.json"], "--tuned")])
def test_what_a_file_says_is_not_said_again(words: list[str], said: str, lifelong: Command, tmp_path: Path):
    (tmp_path / "s.json").write_text(json.dumps({"stream": STREAM, "strategy": "er", "steps": 1}))
    refused(lifelong("run", "--from", "s.json", *words), said, "leave")


def test_without_a_stream_or_a_file_it_is_said_so(lifelong: Command):
    refused(lifelong("run"), "give a stream")
    refused(lifelong("run", "--from", "nowhere.json"), "nowhere.json")


# ---- files of the user's


@pytest.fixture
def record(tmp_path: Path, lifelong: Command) -> Path:
    """The record of a run of a strategy in the file mine.py."""
    (tmp_path / "mine.py").write_text(PART)
    assert lifelong("run", STREAM, "./mine.py:mine", "--seeds", "2", "--steps", "2", "--quiet").code == 0
    (found,) = (tmp_path / "runs").glob("*/run.json")
    return found


def test_a_record_runs_no_file_until_it_is_trusted(record: Path, lifelong: Command):
    refused(lifelong("run", "--from", record), "./mine.py", "use --trust")
    assert "1 of 1 runs" in lifelong("run", "--from", record, "--trust").out


def test_a_file_that_is_gone_or_has_changed_is_named_with_its_digests(record: Path, lifelong: Command, tmp_path: Path):
    was = plugins.file_digest(str(tmp_path / "mine.py"))
    (tmp_path / "mine.py").write_text("raise SystemExit('the changed file ran')")
    now = plugins.file_digest(str(tmp_path / "mine.py"))
    refused(lifelong("run", "--from", record, "--trust"), "./mine.py has changed", was, now)
    (tmp_path / "mine.py").unlink()
    refused(lifelong("run", "--from", record, "--trust"), "needs the file ./mine.py", was)


@pytest.mark.parametrize("fields", [
    {"strategy": "./evil.py:mine"}, {"stream": "./evil.py:mine"}, {"model": "./evil.py:mine"},
    {"optimizer": "./evil.py:mine"}, {"augment": "./evil.py:mine"},
    {"strategy": "supervised(source='rotated-digits', model='./evil.py:mine')"},
    {"strategy": "supervised(source='rotated-digits', model='./ev\\x69l.py:mine')"},
    {"strategy": "supervised(source='./evil.py:mine')"}])
@pytest.mark.parametrize("lie", [{}, {"code": {}}])
def test_no_file_that_a_spec_names_is_run(fields: dict[str, str], lie: dict[str, Any], lifelong: Command,
                                          tmp_path: Path):
    (tmp_path / "evil.py").write_text("open('ran', 'w').close()")
    spec = {"stream": STREAM, "strategy": "er", "steps": 1, **fields, **lie}
    (tmp_path / "s.json").write_text(json.dumps(spec))
    refused(lifelong("run", "--from", "s.json"), "evil.py", "--trust")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("specs", ["[3]", '"specs"', "[]", '[{"stream": 1, "strategy": 2}]', '[{"stream": "x"}]'])
def test_a_strangers_stack_ends_no_run_and_runs_no_file(specs: str, lifelong: Command, tmp_path: Path):
    mine = prepare(STREAM, ["er"], Options(seeds=1, steps=1)).specs[0].to_json()
    (tmp_path / "evil.py").write_text("open('ran', 'w').close()")
    for stack in (json.loads(specs), [mine, {**mine, "strategy": "./evil.py:mine"}]):
        place = tmp_path / "runs" / ".stacks" / digest(stack)
        place.mkdir(parents=True)
        (place / "stack.json").write_text(json.dumps({"specs": stack}))
    assert lifelong("run", STREAM, "er", "--seeds", "1", "--steps", "1", "--quiet") == (0, "", "")
    assert not (tmp_path / "ran").exists()


def test_a_file_of_tune_runs_no_file_that_nobody_named(lifelong: Command, tmp_path: Path):
    (tmp_path / "mine.py").write_text(PART.replace("mine()", "mine(a: float = 1.0)"))
    few = ("--seeds", "2", "--steps", "2", "--quiet")
    file = lifelong("tune", STREAM, "./mine.py:mine(a=[1,2])", *few).out.strip()
    refused(lifelong("run", STREAM, "--tuned", file, *few), "./mine.py", "--trust")
    assert lifelong("run", STREAM, "--tuned", file, *few, "--trust").code == 0
    assert lifelong("run", STREAM, "./mine.py:mine", "--tuned", file, *few).code == 0, "it was named in the command"


# ---- each learner is made once


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often learners are composed from plain numbers, and stacks are probed."""
    found: Counter[str] = Counter()

    def counted(module: Any, name: str, kind: str, when: Any = lambda *given: True) -> None:
        real = getattr(module, name)

        def call(*given: Any, **named: Any) -> Any:
            found[kind] += bool(when(*given))
            return real(*given, **named)

        monkeypatch.setattr(module, name, call)

    counted(learners, "compose", "compose", lambda terms, context, optimizer, hyper: not hyper)
    counted(contract, "probe", "probe")
    return found


@pytest.mark.parametrize(("strategy", "lanes", "stacks"), [
    ("er(capacity=200) + ewc(strength=[1,10])", 4, 1), ("er", 2, 1), ("er(capacity=[5,10])", 4, 2)])
def test_a_learner_is_composed_once_for_each_setting(strategy: str, lanes: int, stacks: int, counts: Counter[str]):
    assert prepare(STREAM, [strategy], Options(**QUICK)).run().failures == []
    assert counts["compose"] == lanes // 2 and counts["probe"] == stacks


@pytest.mark.parametrize(("values", "seeds"), [("0.1", 2), ("[0.1,0.01]", 1), ("[0.1,0.01]", 3)])
def test_an_object_is_built_once_for_each_setting_and_seed(values: str, seeds: int, tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text("BUILT = []\nclass Mine:\n    def __init__(self, seed, n_classes, lr: float = 0.1):\n"
                    "        BUILT.append((lr, seed))\n        self.n = n_classes\n"
                    "    def observe(self, x, y, task): ...\n    def end_task(self): ...\n"
                    "    def predict(self, x): return x.flatten(1)[:, :self.n]\n")
    experiment = prepare(STREAM, [f"{file}:Mine(lr={values})"], Options(seeds=seeds, steps=1))
    built = plugins.load_file(str(file), "Mine").__init__.__globals__["BUILT"]  # type: ignore[misc]
    assert experiment.run().failures == []
    assert sorted(built) == sorted((spec.reals[0, "lr"], seed) for spec in experiment.specs for seed in range(seeds))
    assert experiment.run().failures == [], "a second time with new objects"
    assert len(built) == 2 * len(experiment.specs) * seeds


def test_an_object_that_was_built_ahead_learns_to_the_same_bits(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text("import torch\nclass Mine:\n    def __init__(self, n_classes):\n"
                    "        self.w = torch.randn(64, n_classes)\n"
                    "    def observe(self, x, y, task): self.w += 0.1 * torch.randn(self.w.shape)\n"
                    "    def end_task(self): ...\n    def predict(self, x): return x.flatten(1) @ self.w\n")
    experiment = prepare(STREAM, [f"{file}:Mine"], Options(**QUICK))
    first, second = experiment.run().runs[0], experiment.run().runs[0]  # built ahead, and when it is trained
    np.testing.assert_array_equal(first.accuracy, second.accuracy)


# ---- from Python


def test_a_list_is_a_comparison_and_one_strategy_a_run():
    runs = lifelong.run(STREAM, ["er(capacity=9)", "ewc(strength=[1, 2])", Part(), Part()], **QUICK)
    assert [run.spec["strategy"] for run in runs] == ["er(capacity=9)", "ewc(strength=1)", "ewc(strength=2)",
                                                      "strategy", "strategy (2)"]
    assert lifelong.run(STREAM, "er", **QUICK).spec["strategy"] == "er"
    assert len(lifelong.run(STREAM, ("er",), **QUICK)) == 1
    with pytest.raises(ValueError, match="put it into a list"):
        lifelong.run(STREAM, "ewc(strength=[1, 2])", **QUICK)
    with pytest.raises(TypeError, match="a strategy is"):
        lifelong.run(STREAM, [["er", "ewc"]], **QUICK)


def test_objects_of_one_name_are_two_runs():
    def shrinks(strength: float) -> Any:
        def shrink() -> Part:
            return Part(loss=lambda view: strength * view.batch.scores.square().mean())
        return shrink

    one, other, alone = lifelong.run(STREAM, [shrinks(0.0), shrinks(9.0), "finetune"], **QUICK)
    assert (one.spec["strategy"], other.spec["strategy"]) == ("shrink", "shrink (2)")
    np.testing.assert_array_equal(one.accuracy, alone.accuracy)
    assert not np.array_equal(one.logs["loss"], other.logs["loss"])


def test_options_stand_in_the_signature_and_a_wrong_one_gets_the_nearest():
    names = inspect.signature(lifelong.run).parameters
    assert set(names) == {"stream", "strategies", "store", *Options.__dataclass_fields__}
    assert all(p.kind is not p.VAR_KEYWORD for p in names.values())
    with pytest.raises(TypeError, match="run has no option 'sedes'; did you mean seeds"):
        lifelong.run(STREAM, "er", sedes=3)  # type: ignore[call-overload]
    with pytest.raises(OptionError, match="^seeds must be 1 or more, got 0$") as error:
        lifelong.run(STREAM, "er", seeds=0)
    assert error.value.field == "seeds" and error.value.fields == ("seeds",)


def test_the_command_line_adds_the_dashes(lifelong: Command):
    refused(lifelong("run", "split-digits", "er", "--batch-size", "0"), "--batch-size must be 1 or more, got 0")
    refused(lifelong("run", "split-digits", "er", "--epochs", "1", "--steps", "1"), "give --epochs or --steps, not both")
