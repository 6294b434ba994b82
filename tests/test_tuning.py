"""Hyper-parameters are chosen on other seeds and on training examples alone, and the choice becomes part of a run."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused

from lifelong import cli
from lifelong.experiments import tuning
from lifelong.experiments.choice import Choice, Tried
from lifelong.experiments.held_out import tuning_stream
from lifelong.experiments.learners import Learners
from lifelong.experiments.prepare import make_stream
from lifelong.report import groups
from lifelong.report.tables import settings_table
from lifelong.spec.run import Options
from lifelong.store.records import runs

SMALL = ("--seeds", "2", "--steps", "2", "--quiet")

# Forty examples of two classes a task; the last ten of every class are for testing and raise when anything reads them.
SEALED = '''
import torch
from lifelong.data import build

TESTED = torch.arange(160) % 40 >= 30
HARMLESS = ("__get__", "__len__", "dim", "size", "numel")


class Sealed(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function.__name__ == "__getitem__":
            rows = args[1]
            assert isinstance(rows, torch.Tensor) and rows.dtype == torch.int64 and not TESTED[rows].any(), "looked at"
            with torch._C.DisableTorchFunctionSubclass():
                return args[0][rows].as_subclass(torch.Tensor)
        assert function.__name__ in HARMLESS, f"looked at by {function.__name__}"
        return super().__torch_function__(function, types, args, kwargs or {})


def stream(seeds, tasks: int = 2):
    # Whole numbers: that floats are finite is checked of all examples, before anything is chosen.
    x = torch.randint(256, (160, 1, 2, 2), dtype=torch.uint8).as_subclass(Sealed)
    rows = torch.arange(160)
    images = build.Images(x, rows // 40, rows[~TESTED], rows[TESTED], scale=1 / 255)
    return build.split("sealed-v1", seeds, images, tasks=tasks, options={"tasks": tasks})
'''


def examples(stream, rows, seed, task):
    """Every example of a task as a learner sees it: its pixels and its unit, in an order that does not matter."""
    pool = stream.pool().lane({k: v[0] for k, v in stream.lanes([seed]).items()})
    rows = rows[seed, task]
    x, y = pool.fetch(rows[rows >= 0])
    return sorted([*pixels, float(unit)] for pixels, unit in zip(x.flatten(1).tolist(), y.tolist(), strict=True))


# ---- what is tuned on


def test_what_is_tested_on_is_never_looked_at(lifelong, tmp_path):
    (tmp_path / "sealed.py").write_text(SEALED)
    words = ("./sealed.py:stream", "er(capacity=[5, 10])", "joint", "--optimizer", "sgd(lr=[0.1, 0.2])", *SMALL)
    for more in ((), ("--first-tasks", "1")):
        said = lifelong("tune", *words, *more)
        assert said.code == 0 and not said.err and Path(said.out.strip()).is_file(), "quiet, it prints the file alone"
    assert len(runs(tmp_path / "runs" / "tuning")[0]) == 12
    with pytest.raises(AssertionError, match="looked at by"):  # a run of the same stream looks
        lifelong("run", "./sealed.py:stream", "finetune", *SMALL)


@pytest.mark.parametrize("tasks", [None, 2])
@pytest.mark.parametrize("name", ["split-digits(tasks=3)", "split-digits(tasks=3, scenario='domain')",
                                  "split-digits(tasks=3, scenario='task')", "rotated-digits(tasks=3, examples=100)",
                                  "permuted-digits(tasks=3, examples=100, scenario='class')"])
def test_a_tuning_stream_is_the_training_part_of_other_seeds(name, tasks):
    held = tuning_stream(name, Options(seeds=2), first_tasks=tasks)
    whole = make_stream(name, Options(), seeds=[1_000_000, 1_000_001])
    assert held.n_seeds == 2 and held.n_tasks == (tasks or 3) and held.n_classes == whole.n_classes
    for seed in range(2):
        for task in range(held.n_tasks):
            learned, asked = (examples(held, rows, seed, task) for rows in (held.train, held.test))
            assert sorted(learned + asked) == examples(whole, whole.train, seed, task)
            assert 0.1 < len(asked) / len(learned + asked) < 0.3
    tested = {tuple(pixels) for pixels in whole.x[torch.unique(whole.test % len(whole.y))].flatten(1).tolist()}
    trained = {tuple(pixels) for pixels in whole.x[torch.unique(whole.train % len(whole.y))].flatten(1).tolist()}
    there = {tuple(pixels) for pixels in held.x.flatten(1).tolist()}
    assert there <= trained and not there & (tested - trained), "nothing that is tested on is in the pool at all"


def test_an_example_validates_under_every_rotation_or_under_none():
    held = tuning_stream("rotated-digits(tasks=3)", Options(seeds=1))
    n = len(held.y)
    learned, asked = ({int(row) % n for row in rows.flatten() if row >= 0} for rows in (held.train, held.test))
    assert learned | asked == set(range(n)) and not learned & asked
    for one in range(10):
        assert round(0.2 * int((held.y == one).sum())) == sum(int(held.y[row]) == one for row in asked)


def test_every_seed_validates_on_examples_of_its_own():
    held = tuning_stream("split-digits", Options(seeds=3))  # every seed has all training examples
    asked = [frozenset((rows[rows >= 0] % len(held.y)).tolist()) for rows in held.test.flatten(1)]
    assert len({len(one) for one in asked}) == 1
    assert all(len(one & other) < len(one) / 2 for one, other in itertools.pairwise(asked))


def test_networks_orders_and_objects_are_those_of_other_seeds(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "SEEDS = []\nclass Mine:\n    def __init__(self, seed, n_classes, lr: float = 0.1):\n        SEEDS.append(seed)\n"
        "        self.n = n_classes\n    def observe(self, x, y, task): ...\n    def end_task(self): ...\n"
        "    def predict(self, x): return x.flatten(1)[:, :self.n]\n")
    monkeypatch.chdir(tmp_path)
    seen = []
    real = Learners.lanes
    monkeypatch.setattr(Learners, "lanes", lambda self, *rest: seen.append(real(self, *rest)) or seen[-1])
    tuning.tune("split-digits(tasks=1)", ["ewc(strength=[1, 2])", "./mine.py:Mine(lr=[1, 2])"], Options(2, steps=1))
    assert {tuple(lanes.seeds) for lanes in seen} == {(1_000_000, 1_000_001)}
    import sys
    (module,) = [m for name, m in sys.modules.items() if name.startswith("lifelong_file_") and hasattr(m, "SEEDS")]
    assert sorted(module.SEEDS) == [1_000_000, 1_000_000, 1_000_001, 1_000_001], "an object for each setting and seed"


@pytest.mark.parametrize(("words", "said"), [
    (["split-digits", "er"], ["nothing to choose for er", "strength=[1, 10, 100]"]),
    (["split-digits", "ewc(strength=[1,2])", "--first-tasks", "6"], ["--first-tasks must be 5 or less", "got 6"]),
    (["split-digits", "ewc(strength=[1,2])", "--first-tasks", "0"], ["--first-tasks must be 1 or more"]),
    (["split-digits", "ewc(strength=[1,-2])"], ["strength must be 0 or more", "-2"]),
    (["split-digit", "ewc(strength=[1,2])"], ["did you mean split-digits"]),
    (["./some.py:drawn", "ewc(strength=[1,2])"], ["drawn-v1", "fix which examples test"]),
    (["./some.py:few", "ewc(strength=[1,2])"], ["few-v1", "one training example of class"]),
    (["./some.py:fixed", "ewc(strength=[1,2])"], ["fixed seeds"]),
    (["./some.py:uneven", "ewc(strength=[1,2])", "--first-tasks", "1"], ["uneven-v1", "without --first-tasks"]),
])
def test_what_cannot_be_tuned_is_said_so(words, said, lifelong, tmp_path):
    (tmp_path / "some.py").write_text('''
import torch
from lifelong.data import build
x, y = torch.rand(40, 4), torch.arange(40) % 4
def images(s, n=30):
    rows = torch.stack([torch.randperm(40) for _ in range(s)]) if n == 30 else torch.arange(40).expand(s, -1)
    return build.Images(x, y, rows[:, :n], rows[:, n:])
def drawn(seeds): return build.split("drawn-v1", seeds, images(len(seeds)), tasks=2)
def few(seeds): return build.split("few-v1", seeds, images(len(seeds), 5), tasks=2)
def fixed(): return build.split("fixed-v1", [0], images(1, 20), tasks=2)
def uneven(seeds): return build.grouped("uneven-v1", seeds, images(len(seeds), 20), groups=[[0], [1, 2, 3]])
''')
    refused(lifelong("tune", *words, *SMALL[:2]), *said)
    assert not (tmp_path / "runs").exists()


# ---- what is chosen


def tried(strength, *accuracy):
    return Tried(f"ewc(strength={strength})", "sgd", "mlp", {"ewc.strength": strength}, np.array(accuracy), 1.5)


def test_a_choice_says_whether_the_seeds_can_tell():
    # differences .1, .1, .1: an interval of no width. Against the third: .1, -.1, .3, mean .1, s .2, so 2 seeds' too.
    one = Choice("ewc", [tried(2.0, .5, .6, .7), tried(1.0, .4, .5, .6), tried(3.0, .4, .7, .4), tried(4.0, .5, np.nan, .5)])
    assert one.alike == [one.tried[2]] and one.behind(one.tried[3]) is None
    assert one.verdict == ("ewc.strength=2 is chosen, 10.0 ± 0.0 points ahead of ewc.strength=1; 3 seeds cannot tell it "
                           "from 1 other setting")
    unset = Choice("gemcl", [tried(3.0, .5, .6), Tried("", "", "", {"ewc.strength": None}, np.array([.4, .5]), 1.0)])
    assert unset.edges == [], "None is no end of a grid"
    assert Choice("ewc", one.tried[:2]).verdict.endswith("points ahead of ewc.strength=1, which 3 seeds can tell")
    assert "no other setting reached the end" in Choice("ewc", [one.tried[0], one.tried[3]]).verdict
    assert "one seed cannot tell" in Choice("ewc", [tried(2.0, .5), tried(1.0, .4)]).verdict
    assert one.edges == [] and one.seconds == 6.0
    assert Choice("ewc", one.tried[:2]).edges == ["ewc.strength=2 is the largest that was tried: the best may lie beyond"]


def test_the_best_mean_is_chosen_and_what_diverged_never(tmp_path):
    found = tuning.tune("split-digits(tasks=2)", ["finetune"], Options(2, steps=3, optimizer="sgd(lr=[1e30, 0.001, 0.2])"),
                        root=tmp_path)
    (choice,) = found.choices
    kept, _ = runs(tmp_path / "tuning")
    means = {run.spec["optimizer"]: run.accuracy[:, -1].mean() for run in kept}
    assert choice.best.optimizer == max((m, o) for o, m in means.items() if m == m)[1]
    assert choice.tried[-1].optimizer == "sgd(lr=1e+30)" and np.isnan(choice.tried[-1].accuracy).any()
    assert abs(choice.seconds - kept[0].about["seconds"]) < 0.1, "three settings were one stack: they cost what it took"


def test_where_everything_diverges_nothing_is_chosen(lifelong, tmp_path):
    said = lifelong("tune", "split-digits", "finetune", "--optimizer", "sgd(lr=[1e30,1e31])", "--tasks", "2", *SMALL)
    assert said.code == 1 and "every setting diverged" in said.err
    assert not list((tmp_path / "runs" / "tuning").glob("*.json"))


# ---- what is run with it


def test_a_choice_is_run_and_becomes_part_of_the_record(lifelong, tmp_path, monkeypatch):
    monkeypatch.setattr(cli.run, "print_results", lambda *_: None)  # figures take longer than all the rest
    words = ("split-digits", "er(capacity=[5,20])", "finetune", "--optimizer", "sgd(lr=[0.05,0.2])", "--tasks", "2")
    said = lifelong("tune", *words, *SMALL[:4])
    assert said.code == 0 and "er.capacity" in said.out and "chosen" in said.out
    command = said.out.strip().splitlines()[-1].split()
    file = Path(command[command.index("--tuned") + 1])
    record = json.loads(file.read_text())
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("run.json")}
    assert lifelong("tune", *words, *SMALL[:4]).out.splitlines()[-1].split() == command
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("run.json")} == before, "found, not made again"

    best = {c["asked"]: c["chosen"] for c in record["choices"]}
    expression, optimizer = (best["er(capacity=[5,20])"][name] for name in ("strategy", "optimizer"))
    assert lifelong("run", *words[:1], expression, "--optimizer", optimizer, "--tasks", "2", *SMALL).code == 0
    (untold,), _ = runs(tmp_path / "runs")
    assert "tuned" not in untold.about
    assert lifelong(*command[1:], "ncm", *SMALL[:2], "--quiet").code == 0
    kept, _ = runs(tmp_path / "runs")
    assert {r.spec["strategy"] for r in kept} == {"ncm", expression, "finetune"}
    for run in kept:
        if run.spec["strategy"] == "ncm":
            assert "tuned" not in run.about
            continue
        (choice,) = [c for c in record["choices"] if c["chosen"]["strategy"] == run.spec["strategy"]]
        assert run.spec["optimizer"] == choice["chosen"]["optimizer"]
        assert run.about["tuned"] == {
            "file": str(file), "chosen": choice["chosen"]["values"], "cost_s": choice["cost_s"],
            "settings": len(choice["tried"]), "seeds": [1_000_000, 1_000_001], "criterion": tuning.CRITERION}
    (told,) = [r for r in kept if r.spec == untold.spec]
    assert np.array_equal(told.accuracy, untold.accuracy) and told.about["finished"] == untold.about["finished"]

    for more, name in ((["--steps", "3"], "steps"), (["--tasks", "3"], "stream_options"), (["--optimizer", "adam"], "adam")):
        changed = [w for i, w in enumerate(command[1:]) if not {command[i], command[i + 1]} & set(more)]
        refused(lifelong(*changed, *more, "--seeds", "2"), "--optimizer" if name == "adam" else name)
    file.write_text(file.read_text()[:-99])
    refused(lifelong(*command[1:]), "no file of `lifelong tune`")


def test_one_may_choose_on_other_classes(lifelong, tmp_path):
    (tmp_path / "some.py").write_text('''
import torch
from lifelong.data import build
def some(seeds, first: int = 0):
    x, y = torch.eye(8).repeat(4, 1) + first / 100, torch.arange(8).repeat(4)
    names = [f"some/{first + c}" for c in range(8)]
    return build.split("some-v1", seeds, build.Images(x, y, torch.arange(24), torch.arange(24, 32), names=names), tasks=2,
                       classes_per_task=4, options={"first": first})
def other(seeds):
    images = build.Images(torch.eye(8).repeat(2, 1), torch.arange(8).repeat(2), torch.arange(8), torch.arange(8, 16))
    return build.split("other-v1", seeds, images, tasks=2, classes_per_task=4)
''')
    words = ("./some.py:some", "ewc(strength=[0, 1])", "--optimizer", "sgd(lr=[0.001, 0.1])", "--steps", "4",
             "--batch-size", "8", "--seeds", "2")
    said = lifelong("tune", *words, "--on", "./some.py:some(first=8)")
    assert said.code == 0 and "examples of ./some.py:some(first=8)" in said.out
    kept, _ = runs(tmp_path / "runs" / "tuning")
    assert len(kept) == 4 and {r.spec["stream_options"]["first"] for r in kept} == {8}
    on = {"stream": "some-v1", "first": 8, "file": kept[0].spec["stream_options"]["file"]}
    assert all(r.spec["stream_options"]["tuning"]["on"] == on for r in kept)
    best = max(kept, key=lambda r: r.accuracy[:, -1].mean())
    command = said.out.strip().splitlines()[-1].split()
    assert lifelong(*command[1:], "--seeds", "2", "--quiet").code == 0
    (run,), _ = runs(tmp_path / "runs")
    assert run.spec["stream_options"] | {"file": ""} == {"first": 0, "file": ""} and run.about["tuned"]["criterion"] == tuning.SEARCHED
    assert run.about["tuned"]["on"] == on
    shown = "".join(settings_table(groups([run])[0]).rows[0][-1].text)
    assert "of 4 settings on seeds 1000000 to 1000001 of some-v1(first=8, file=" in shown
    assert (run.spec["strategy"], run.spec["optimizer"]) == (best.spec["strategy"], best.spec["optimizer"])

    refused(lifelong("tune", *words, "--on", "./some.py:some(first=4)"), "4 of the classes", "some/4", "--overlap")
    refused(lifelong("tune", *words, "--on", "./some.py:other"), "other-v1", "leave it out")
    refused(lifelong("tune", "rotated-digits", *words[1:], "--on", "rotated-digits"), "of the images that rotated-digits")
    refused(lifelong("tune", *words, "--on", "rotated-digits"), "domain-incremental", "class-incremental")
    refused(lifelong("tune", *words, "--no-boundaries", "--on", "./some.py:some(first=8)"), "no option 'boundaries'")
    refused(lifelong("tune", *words, "--on", "./some.py:some(first=8)", "--first-tasks", "1"), "write fewer tasks there")
    assert lifelong("tune", *words, "--on", "./some.py:some(first=4)", "--overlap", "--quiet").code == 0
    found = [json.loads(f.read_text())["tuning"] for f in (tmp_path / "runs" / "tuning").glob("*.json")]
    assert [t.get("overlap") for t in sorted(found, key=str)].count({"classes": 4, "images": 0}) == 1


def test_starts_are_kept_with_the_others(tmp_path):
    start = "oml(source='glyphs(classes=60)', steps=1, model='mlp(hidden=(4,))')"
    tuning.tune("split-glyphs(tasks=2)", [f"{start} + ewc(strength=[1, 2])"], Options(1, steps=1), root=tmp_path)
    assert len(list(tmp_path.glob("pretrain-*.safetensors"))) == 1
    assert not list((tmp_path / "tuning").glob("pretrain-*"))
