"""The command line: one plain sentence and exit code 2 for whatever a user can get wrong, and quick to answer."""

from __future__ import annotations

import errno
import gzip
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Said, refused
from typer.main import get_command

from lifelong import cli, progress
from lifelong.cli.options import Shared
from lifelong.data.pictures import workers
from lifelong.experiments import experiment
from lifelong.experiments.prepare import prepare
from lifelong.spec.run import OptionError, Options

pytestmark = pytest.mark.usefixtures("undrawn")

SMALL = ("--seeds", "2", "--steps", "2", "--tasks", "2")


# ---- bad input


@pytest.mark.parametrize(("words", "said"), [
    (["run", "rotated-digit"], ["rotated-digits", "did you mean"]),
    (["run", "nonsense"], ["'nonsense'"]),
    (["run", "split-digits-v9"], ["split-digits-v9"]),
    (["run", "split-digits", "finetun"], ["'finetun'", "did you mean finetune"]),
    (["run", "split-digits", "er(capasity=3)"], ["'capasity'", "did you mean capacity"]),
    (["run", "split-digits", "er(capacity='many')"], ["capacity must be an integer", "'many'"]),
    (["run", "split-digits", "er(capacity=0)"], ["capacity must be 1 or more", "0"]),
    (["run", "split-digits", "er(capacity=-3)"], ["capacity must be 1 or more", "-3"]),
    (["run", "split-digits", "er(capacity=(1,2))"], ["capacity"]),
    (["run", "split-digits", "er +"], ["cannot read"]),
    (["run", "split-digits", "er + ncm"], ["ncm", "whole learner"]),
    (["run", "split-digits", "__import__('os').system('true')"], []),
    (["run", "split-digits", "./nosuch.py:mine"], ["there is no file", "nosuch.py"]),
    (["run", "split-digits", "--tasks", "6"], ["6 tasks", "10"]),
    (["run", "split-digits", "--tasks", "0"], ["tasks must be", "1 or more"]),
    (["run", "split-digits", "--classes-per-task", "11"], ["classes"]),
    (["run", "split-digits", "--scenario", "magic"], ["scenario", "'magic'"]),
    (["run", "rotated-digits", "--classes-per-task", "2"], ["no option 'classes_per_task'"]),
    (["run", "rotated-digits(examples=99999)"], ["99999", "1442"]),
    (["run", "split-digits(tasks=[2,3])"], ["tasks takes one value"]),
    (["run", "split-digits", "--seeds", "0"], ["--seeds must be 1 or more"]),
    (["run", "split-digits", "--steps", "0"], ["--steps"]),
    (["run", "split-digits", "--steps", "3", "--epochs", "3"], ["--epochs or --steps"]),
    (["run", "split-digits", "--batch-size", "-1"], ["--batch-size"]),
    (["run", "split-digits", "--eval-every", "-1"], ["--eval-every"]),
    (["run", "split-digits", "--device", "abacus"], ["--device", "'abacus'"]),
    (["run", "split-digits", "--dtype", "float99"], ["--dtype", "float99"]),
    (["run", "split-digits", "--dtype", "int64"], ["--dtype"]),
    (["run", "split-digits", "--dtype", "nn"], ["--dtype"]),
    (["run", "split-digits", "--optimizer", "adm"], ["optimizer", "adam"]),
    (["run", "split-digits", "--optimizer", "sgd(lr=-1)"], ["lr"]),
    (["run", "split-digits", "--optimizer", "sgd(lr='big')"], ["lr must be a number"]),
    (["run", "split-digits", "--model", "mpl"], ["model", "mlp"]),
    (["run", "split-digits", "--model", "mlp(hidden=100)"], ["hidden"]),
    (["run", "split-digits", "--model", "mlp(hidden=('a',))"], ["hidden"]),
    (["run", "split-digits", "--model", "mlp(hidden=(0,))"], ["hidden"]),
    (["run", "split-digits", "--model", "nosuch.py:net"], ["there is no file"]),
    (["run", "split-digits", "ewc", "--no-boundaries"], ["ewc", "must be told where a task ends"]),
    (["list", "finetun"], ["did you mean finetune"]),
    (["check", "ewq"], ["'ewq'", "did you mean ewc"]),
    (["check", "./nosuch.py:mine"], ["there is no file"]),
    (["report"], ["no finished run", "lifelong run"]),
    (["report", "--store", "nowhere"], ["no finished run", "nowhere"]),
])
def test_what_was_asked_wrongly_gets_one_sentence(words, said, lifelong, tmp_path):
    refused(lifelong(*words), *said)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("code", "said"), [
    ("1 / 0\n", ["mine.py", "does not import", "ZeroDivisionError"]),
    ("def mine(:\n", ["mine.py", "does not import"]),
    ("def other(): ...\n", ["mine.py has no 'mine'", "other"]),
    ("def mine(): return 3\n", ["mine", "a strategy is"]),
    ("def mine(): return None\n", ["mine", "a strategy is"]),
    ("def mine(strength): ...\n", ["'strength' needs a default"]),
    ("def mine(): raise RuntimeError('no idea')\n", ["no idea"]),
    ("from lifelong import Part\ndef mine():\n    return Part(step=lambda view: view.nothing)\n", ["mine.py, line 3"]),
    ("import torch\nfrom lifelong import Part\ndef mine():\n    def loss(view):\n"
     "        return view.batch.scores.sum() * view.batch.weight.sum().item()\n    return Part(loss=loss)\n",
     ["reads a number out of a tensor", "mine.py, line 5, in loss"]),
    ("import torch\nfrom lifelong import Part\ndef mine():\n    def loss(view):\n"
     "        return view.batch.scores[view.batch.rows > 3].sum()\n    return Part(loss=loss)\n",
     ["shape of a result depends on values", "mine.py, line 5, in loss"]),
    ("from lifelong import Part\ndef mine(): return Part(loss=lambda view: None)\n", ["mine: a loss", "returned nothing"]),
    ("from lifelong import Part\ndef mine(): return Part(loss=lambda view: view.batch.scores.sum(-1))\n",
     ["mine: a loss must be a Loss or one number", "a tensor ["]),
    ("from lifelong import Part\ndef mine(): return Part(loss=lambda view: view.u[:3].sum())\n",
     ["mine.py:mine", "`view.u` without `draws`", "line 2"]),
    ("from lifelong import Part\nfrom lifelong.learning.memory import reservoir\ndef mine():\n    m = reservoir(9)\n"
     "    return Part(init=lambda view: m.empty(), draws=3, step=lambda view: m.add(view.state, view.batch.rows, "
     "view.batch.y, view.u))\n", ["uniform numbers, got 3"]),
    ("from lifelong import Part\ndef mine():\n    old = {}\n    def task(view):\n        old.update(view.params)\n"
     "        return view.state\n    def loss(view):\n        return sum(((view.params[k] - p) ** 2).sum() for k, p in "
     "old.items())\n    return Part(loss=loss, task=task)\n", ["mine.py:mine", "keeps something outside its state"]),
])
def test_a_file_that_cannot_serve_gets_one_sentence(code, said, lifelong, tmp_path):
    (tmp_path / "mine.py").write_text(code)
    refused(lifelong("run", "split-digits", "./mine.py:mine", *SMALL), *said)


@pytest.mark.parametrize(("error", "said"), [
    (OptionError("batch_size must be 1 or more, got 0", "batch_size"), "--batch-size must be 1 or more, got 0"),
    (OptionError("give epochs or steps, not both", "epochs", "steps"), "give --epochs or --steps, not both"),
    (OptionError("mine needs scenario='task'", "scenario"), "mine needs --scenario task"),
    (OptionError("on is digits-v1: choose on others, or set overlap", "on", "overlap"),
     "--on is digits-v1: choose on others, or set --overlap"),
    (ValueError("steps must be 1 or more"), "steps must be 1 or more"),
])
def test_an_error_of_an_option_names_it_as_it_is_typed(error, said, lifelong, monkeypatch):
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr("lifelong.experiments.prepare.prepare", refuse)
    assert lifelong("run", "split-digits") == Said(2, "", f"lifelong: {said}\n")


@pytest.mark.parametrize("name", ["split-mnist", "rotated-mnist-gem", "split-omniglot"])
def test_a_data_folder_without_the_data_says_what_it_looked_for_and_where_to_get_it(name, lifelong, tmp_path):
    (tmp_path / "data").mkdir()
    refused(lifelong("run", name, "finetune", *SMALL[:4], "--data", tmp_path / "data"), str(tmp_path / "data"),
            "looked for", "http")


@pytest.mark.parametrize("content", [b"", b"rubbish", gzip.compress(b"rubbish", mtime=0), gzip.compress(b"\0" * 99, mtime=0)[:-4]])
def test_foreign_data_files_are_refused_by_name(content, lifelong, tmp_path):
    folder = tmp_path / "data" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{part}-ubyte.gz").write_bytes(content)
    said = lifelong("run", "split-mnist", "finetune", *SMALL, "--data", tmp_path / "data")
    refused(said, "ubyte")


def test_cuda_that_is_not_there_is_said_so(lifelong, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(lifelong("run", "split-digits", "--device", "cuda"), "--device cuda", "no CUDA is here")


def test_a_store_that_cannot_be_written_is_said_so(lifelong, tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused(lifelong("run", "split-digits", "finetune", *SMALL, "--quiet", "--store", "file"), "cannot write", "file")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_report_that_cannot_be_written_is_said_so(lifelong, tmp_path):
    assert lifelong("run", "split-digits", "finetune", *SMALL, "--quiet").code == 0
    (tmp_path / "file").write_text("in the way")
    said = lifelong("report", "--out", "file")
    assert said.code == 2 and "file" in said.err and "Traceback" not in said.err


@pytest.mark.parametrize("words", [["run"], ["run", "split-digits", "--seeds", "many"], ["rum"], ["run", "--nosuch"],
                                   ["run", "split-digits", "--tasks", "two"]])
def test_words_that_no_command_has_are_usage_errors(words, lifelong):
    said = lifelong(*words)
    assert said.code == 2 and said.err and "Traceback" not in said.err


def test_an_object_that_raises_fails_its_check_in_a_sentence(lifelong, tmp_path):
    (tmp_path / "mine.py").write_text(
        "class Mine:\n    def observe(self, x, y, task): raise RuntimeError('no idea')\n"
        "    def end_task(self): ...\n    def predict(self, x): return x[:, :6]\n")
    said = lifelong("check", "./mine.py:Mine")
    assert said.code == 1 and "no idea" in said.out and "mine.py, line 2" in said.out


# ---- what it prints


@pytest.mark.drawn
def test_a_run_prints_a_table_and_where_everything_is(lifelong, tmp_path):
    said = lifelong("run", "split-digits", "er(capacity=20) + ewc(strength=[1,2])", *SMALL)
    assert said.code == 0 and said.err == ""
    for word in ("er(capacity=20) + ewc(strength=1)", "±", "table: ", "figures: ", "report.md"):
        assert word in said.out
    again = lifelong("run", "split-digits", "er(capacity=20) + ewc(strength=[1,2])", *SMALL)
    assert "2 of 2 runs were finished already" in again.out
    assert len(list((tmp_path / "runs").glob("*/run.json"))) == 2


def test_a_report_prints_tables_the_best_and_where_everything_is(lifelong, tmp_path):
    assert lifelong("run", "split-digits", "finetune", "er", *SMALL, "--quiet").code == 0
    said = lifelong("report", "--reference", "er", "--as", "gem", "--out", "out")
    assert said.code == 0 and said.err == ""
    for word in ("finetune", "Backward", "Highest average accuracy: ", "page: out/report.html", "text: out/report.md"):
        assert word in said.out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "against" in page and "As computed by the code of GEM" in page and "state (MB)" in page
    wrong = lifelong("report", "--reference", "ewc")
    refused(wrong, "--reference must be a strategy in the report, or parts", "got 'ewc'", "the report has 'er'")


def test_quiet_prints_nothing(lifelong):
    said = lifelong("run", "split-digits", "finetune", *SMALL, "--quiet")
    assert said == Said(0, "", "")


def test_list_and_report_speak_json(lifelong):
    entries = json.loads(lifelong("list", "--json").out)
    assert {"er", "split-digits", "mlp", "adam", "random"} <= {e["name"] for e in entries}
    assert all(e["about"] and not e["about"].startswith("cannot be loaded") for e in entries)
    (er,) = json.loads(lifelong("list", "er", "--json").out)
    assert er["hyper_parameters"]["capacity"] == {"default": 500, "type": "int"} and "1902.10486" in er["text"]
    assert lifelong("run", "split-digits", "finetune", "er", *SMALL, "--quiet").code == 0
    said = lifelong("report", "--json")
    rows = json.loads(said.out)
    assert said.code == 0 and len(rows) >= 2


def test_list_shows_hyper_parameters_defaults_and_source(lifelong):
    said = lifelong("list", "er")
    for word in ("capacity=500", "memory='reservoir'", "Source: Chaudhry et al. 2019", "1 or more"):
        assert word in said.out
    for word in ("finetune", "split-omniglot", "random", "conv4", "adam"):
        assert word in lifelong("list").out


def test_check_names_what_is_wrong(lifelong, tmp_path):
    assert lifelong("check", "er + ewc").code == 0
    (tmp_path / "mine.py").write_text("import torch\nfrom lifelong import Part\ndef mine():\n"
                                      "    return Part(loss=lambda view: view.batch.scores.sum() * torch.rand(()))\n")
    said = lifelong("check", "./mine.py:mine")
    assert said.code == 1 and "random numbers of its own" in said.out and "mine.py, line 4" in said.out
    assert said.out.count("mine.py, line 4") == 1 and said.out.count(": the same problem") > 1, "once is enough"


# ---- damaged stores


@pytest.mark.parametrize("damage", ["rubbish", "no status"])
def test_a_report_names_a_damaged_run_skips_it_and_never_deletes_it(damage, lifelong, tmp_path):
    assert lifelong("run", "split-digits", "finetune", "er", *SMALL, "--quiet").code == 0
    (bad,) = (tmp_path / "runs").glob("*finetune*")
    if damage == "rubbish":
        (bad / "accuracy.npz").write_bytes(b"rubbish")
    else:
        record = json.loads((bad / "run.json").read_text())
        del record["about"]["status"], record["about"]["note"]
        (bad / "run.json").write_text(json.dumps(record))
    before = {p.name: p.read_bytes() for p in bad.iterdir()}
    for words in (["report"], ["report", "--json"]):
        said = lifelong(*words)
        assert said.code == 3
        assert bad.name in said.err and "Traceback" not in said.err
        assert "er" in said.out
    assert lifelong("run", "split-digits", "finetune", "er", *SMALL).code == 3
    assert {p.name: p.read_bytes() for p in bad.iterdir()} == before


def test_a_diverged_run_is_kept_reported_and_exits_with_1(lifelong):
    words = ["run", "split-digits", "finetune", *SMALL, "--optimizer", "sgd(lr=[1e30,0.1])"]
    first, again = lifelong(*words), lifelong(*words)
    assert first.code == again.code == 1
    assert "not finite" in first.out and "task 0, step" in again.out
    assert lifelong("report").code == 0


def test_an_interrupted_run_exits_with_130_and_says_how_to_go_on(lifelong, monkeypatch):
    real = experiment.train

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "train", interrupt)
    said = lifelong("run", "split-digits", "finetune", *SMALL, "--quiet")
    assert said.code == 130 and "run the same command again" in said.err
    monkeypatch.setattr(experiment, "train", real)
    assert lifelong("run", "split-digits", "finetune", *SMALL, "--quiet").code == 0


# ---- quick to answer


def loaded(*words: str) -> set[str]:
    """Top-level modules that a fresh process has loaded after `lifelong WORDS...`."""
    code = ("import atexit, sys\natexit.register(lambda: print('LOADED', *{m.split('.')[0] for m in sys.modules}))\n"
            f"sys.argv = {['lifelong', *words]!r}\nfrom lifelong.cli import main\nmain()")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rsplit("LOADED", 1)[1].split())


def test_help_loads_neither_torch_nor_numpy():
    assert not loaded("--help") & {"torch", "numpy", "pandas", "matplotlib", "avalanche", "sklearn", "scipy"}
    assert not loaded("run", "--help") & {"torch", "avalanche"}


def test_the_version_names_what_runs_and_loads_no_torch(lifelong):
    from importlib.metadata import version

    said = lifelong("--version")
    assert said.code == 0 and said.out.startswith(f"lifelong {version('lifelong')}")
    assert f"torch {version('torch')}" in said.out and said.out.count("\n") == 1
    assert "torch" not in loaded("--version")


def test_python_m_lifelong_is_the_command_line(tmp_path):
    done = subprocess.run([sys.executable, "-m", "lifelong", "run", "rotated-digit"], capture_output=True, text=True,
                          cwd=tmp_path)
    assert done.returncode == 2 and "did you mean rotated-digits" in done.stderr


@pytest.mark.parametrize("words", [["run"], ["tune", "er"], ["pretrain", "oml"], ["fewshot", "a.safetensors"]])
def test_quiet_hides_the_progress_of_decoding_too(words, lifelong, monkeypatch):
    command, *more = words
    for quiet in (True, False):
        monkeypatch.setattr(progress, "shown", quiet)  # what it was does not matter
        assert lifelong(command, "nonsense", *more, *["--quiet"] * quiet).code == 2
        assert progress.shown is not quiet


def test_run_and_tune_share_their_options(lifelong):
    run, tune = ({p.name: p for p in get_command(cli.app).commands[name].params} for name in ("run", "tune"))
    shared = {field.name for field in fields(Shared)}
    assert {"epochs", "steps", "batch_size", "scenario", "data", "overlap"} <= shared <= set(run) & set(tune)
    assert all(run[name].help == tune[name].help and run[name].default == tune[name].default for name in shared)
    assert {field.name for field in fields(Options)} == shared - {"scenario", "tasks", "classes_per_task", "boundaries"} | {
        "seeds", "evaluate", "eval_every", "trust"}


def test_every_option_reaches_the_run_under_its_own_name(lifelong, monkeypatch):
    seen = []
    monkeypatch.setattr("lifelong.experiments.prepare.prepare", lambda *given: seen.append(given) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lifelong("run", "split-digits", "er", "--seeds", "2", "--steps", "3", "--batch-size", "4", "--optimizer", "adam",
                 "--model", "conv4", "--eval-every", "5", "--evaluate", "seen", "--device", "cpu", "--dtype", "float64", "--data", "there",
                 "--save-every", "6", "--memory", "7", "--overlap", "--augment", "flip", "--scenario", "task", "--tasks", "8",
                 "--classes-per-task", "9", "--no-boundaries", "--trust")
    ((stream, strategies, options, extra),) = seen
    assert (stream, strategies) == ("split-digits", ["er"])
    assert options == Options(seeds=2, steps=3, batch_size=4, optimizer="adam", model="conv4", eval_every=5, evaluate="seen", device="cpu",
                              dtype="float64", data="there", save_every=6.0, memory=7.0, overlap=True, augment="flip", trust=True)
    assert extra == {"scenario": "task", "tasks": 8, "classes_per_task": 9, "boundaries": False}


@pytest.mark.parametrize("shared", [Shared(), Shared(tasks=2, boundaries=False, overlap=True, data="my data"),
                                    Shared(boundaries=True, memory=0.5, optimizer="sgd(lr=[0.1,1])")])
def test_the_words_of_options_give_the_options_again(shared, lifelong, monkeypatch):
    seen = []
    monkeypatch.setattr(Shared, "options", lambda self, **more: seen.append(self) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lifelong("run", "split-digits", *shared.words())
    assert seen == [shared]
    assert Shared(model="mlp", steps=3).words(without=("model",)) == ["--steps", "3"]


def test_list_loads_no_avalanche():
    assert "avalanche" not in loaded("list")


# ---- more that a user can get wrong


@pytest.mark.parametrize(("words", "said"), [
    (["run", "split-digits", "er("], ["cannot read 'er('"]),
    (["run", "split-digits", "er - ewc"], ["cannot read 'er - ewc'"]),
    (["run", "split-digits", ""], ["cannot read ''"]),
    (["run", "split-digits", "er(10)"], ["er", "name=value"]),
    (["run", "split-digits", "./gone.py:mine(10)"], ["mine: write arguments as name=value"]),
    (["run", "split-digits", "er(capacity=[])"], ["capacity", "empty list"]),
    (["run", "split-digits", "er(capacity=True)"], ["capacity must be an integer", "True"]),
    (["run", "split-digits", "er(capacity=[5,0])"], ["capacity must be 1 or more", "got 0"]),
    (["run", "split-digits", "er(memory='lifo')"], ["memory", "'lifo'", "'reservoir'", "'class-balanced'"]),
    (["run", "split-digits", "ewc(strength=-1)"], ["ewc", "strength must be 0 or more", "-1"]),
    (["run", "split-digits", "ewc(strength=[1,-2])"], ["ewc", "strength must be 0 or more", "-2"]),
    (["run", "split-digits", "ewc(strength='big')"], ["strength must be a number", "'big'"]),
    (["run", "split-digits", "--seeds", "-1"], ["--seeds must be 1 or more", "-1"]),
    (["run", "split-digits", "--epochs", "0"], ["--epochs must be 1 or more", "0"]),
    (["run", "split-digits", "--classes-per-task", "3"], ["15", "10"]),
    (["run", "split-digits", "--optimizer", "sgd + adam"], ["'sgd + adam'", "not a sum"]),
    (["run", "split-digits", "er", "finetune", "er(capacity=0)"], ["capacity must be 1 or more"]),
    (["check", "er + ncm"], ["ncm", "whole learner", "er"]),
    (["check", "er(capacity=0)"], ["capacity must be 1 or more"]),
    (["report", "split-nothing"], ["no folder split-nothing", "--stream"]),
    (["report", "--stream", "split-nothing"], ["no finished run or few-shot evaluation of split-nothing"]),
    (["report", "--since", "yesterday"], ["--since", "2026-11-20", "'yesterday'"]),
    (["report", "--as", "sequoia"], ["--as must be one of gem, avalanche, mammoth, continuum", "'sequoia'"]),
])
def test_what_else_was_asked_wrongly_gets_one_sentence(words, said, lifelong, tmp_path):
    refused(lifelong(*words), *said)
    assert not (tmp_path / "runs").exists()


def test_a_hyper_parameter_given_twice_is_refused(lifelong):
    refused(lifelong("run", "split-digits", "er(capacity=1, capacity=2)", *SMALL, "--quiet"), "capacity")


@pytest.mark.parametrize(("words", "said"), [
    (["run", "split-digits", "--seeds", "many"], ["--seeds", "integer", "got 'many'"]),
    (["run", "split-digits", "--seeds=many"], ["--seeds", "got 'many'"]),
    (["run", "split-digits(tasks=2)", "--tasks", "3"], ["tasks", "given twice", "2", "3"]),
    (["rum"], ["rum", "run"]),
    (["run", "split-digits", "--epoch", "1"], ["--epoch", "--epochs"]), (["run"], ["stream"]),
])
def test_a_usage_error_is_one_sentence_too(words, said, lifelong):
    refused(lifelong(*words), *said)


IMPURE = """
import torch
from lifelong import Part

def draws():
    def loss(view):
        noise = torch.rand(())
        return view.batch.scores.sum() * noise
    return Part(loss=loss)

def branches():
    def loss(view):
        if view.batch.weight.sum() > 0:
            return view.batch.scores.sum()
        return view.batch.scores.mean()
    return Part(loss=loss)

def writes():
    def step(view):
        view.state["n"].add_(1)
        return view.state
    return Part(init=lambda view: {"n": torch.zeros(3)}, step=step)

def mixes():
    kept = torch.zeros(3)
    def step(view):
        kept.add_(view.batch.weight.sum())
        return view.state
    return Part(init=lambda view: {"n": torch.zeros(3)}, step=step)

def scores():
    def loss(view):
        view.batch.scores.clamp_(max=1)
        return view.batch.scores.sum()
    return Part(loss=loss)

def reads():
    def loss(view):
        view.batch.x[:, 0] = 0
        return view.net.apply(view.params, view.batch.x).mean()
    return Part(loss=loss)
"""


@pytest.mark.parametrize(("name", "said"), [
    ("draws", ["random numbers of its own", "mine.py, line 7, in loss"]),
    ("branches", ["reads a number out of a tensor", "mine.py, line 13, in loss"]),
    ("mixes", ["writes into a tensor that it was given", "mine.py, line 27, in step"]),
    ("writes", ["writes into", "mine.py, step, from line 19"]),
    ("scores", ["writes into", "mine.py, loss, from line 32"]),
    ("reads", ["writes into", "mine.py, loss, from line 38"]),
])
def test_an_impure_strategy_is_refused_with_the_rule_and_the_line(name, said, lifelong, tmp_path):
    (tmp_path / "mine.py").write_text(IMPURE)
    refused(lifelong("run", "split-digits", f"./mine.py:{name}", *SMALL, "--quiet"), *said)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["draws", "branches", "writes", "mixes"])
def test_check_finds_every_impurity(name, lifelong, tmp_path):
    (tmp_path / "mine.py").write_text(IMPURE)
    said = lifelong("check", f"./mine.py:{name}")
    assert said.code == 1 and "wrong" in said.out and "Traceback" not in said.out + said.err


def test_one_impure_strategy_stops_nothing_half_way(lifelong, tmp_path):
    (tmp_path / "mine.py").write_text(IMPURE)
    refused(lifelong("run", "split-digits", "finetune", "./mine.py:draws", *SMALL, "--quiet"), "mine.py")
    assert not (tmp_path / "runs").exists(), "it is refused before anything is trained"


@pytest.mark.parametrize("cut", [0, 3, 16, 5000])
def test_a_truncated_idx_file_is_refused_by_name_and_left_as_it_is(cut, lifelong, tmp_path):
    folder = tmp_path / "data" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    header = b"".join(n.to_bytes(4, "big") for n in (0x803, 60_000, 28, 28))
    file = folder / "train-images-idx3-ubyte"
    file.write_bytes((header + bytes(5000))[:cut])
    before = file.read_bytes()
    refused(lifelong("run", "split-mnist", "finetune", *SMALL, "--data", tmp_path / "data"), str(file), "download it again")
    assert file.read_bytes() == before and list(folder.iterdir()) == [file]


def test_a_full_disk_is_said_so_and_what_was_there_stays(lifelong, tmp_path, monkeypatch):
    assert lifelong("run", "split-digits", "finetune", *SMALL, "--quiet").code == 0
    before = contents(tmp_path / "runs", "*finetune*/*")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(lifelong("run", "split-digits", "er", *SMALL, "--quiet"), "cannot write", "No space left on device")
    monkeypatch.undo()
    assert contents(tmp_path / "runs", "*finetune*/*") == before
    assert not list((tmp_path / "runs").rglob("*.tmp"))


def contents(folder: Path, pattern: str = "**/*") -> dict[str, bytes]:
    """Every file of a folder, by its path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob(pattern)) if p.is_file()}


# ---- what a run leaves


def test_a_run_keeps_its_spec_and_its_accuracy(lifelong, tmp_path):
    assert lifelong("run", "split-digits", "er(capacity=20)", "--seeds", "3", "--tasks", "4", "--steps", "2",
                    "--batch-size", "7", "--quiet", "--store", "there").code == 0
    (place,) = (tmp_path / "there").glob("*/run.json")
    record = json.loads(place.read_text())
    spec = record["spec"]
    assert (spec["stream"], spec["strategy"], spec["seeds"], spec["steps"], spec["batch_size"]) == (
        "split-digits-v1(tasks=4)", "er(capacity=20)", 3, 2, 7)
    assert record["about"]["status"] == "done" and record["about"]["device"] == "cpu"
    with np.load(place.parent / "accuracy.npz", allow_pickle=False) as arrays:
        accuracy = arrays["accuracy"]
    assert accuracy.shape == (3, 5, 4)
    assert np.isfinite(accuracy[:, 0]).all(), "row 0 is the untrained learner on every task"
    assert ((accuracy >= 0) & (accuracy <= 1)).all()
    assert not (tmp_path / "runs").exists() and not (tmp_path / "there" / ".stacks").exists()


def test_the_same_command_again_finds_and_changes_nothing(lifelong, tmp_path):
    words = ["run", "split-digits", "finetune", "er", *SMALL, "--quiet"]
    assert lifelong(*words).code == 0
    before = contents(tmp_path / "runs", "*--*/*")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").glob("*--*/*")}
    said = lifelong(*words[:-1])
    assert said.code == 0 and "2 of 2 runs were finished already" in said.out
    assert contents(tmp_path / "runs", "*--*/*") == before
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").glob("*--*/*")} == times
    assert "2 of 3 runs were finished already" in lifelong(*words[:4], "joint", *SMALL).out


def test_a_strategy_from_a_file_adds_to_one_of_the_catalogue(lifelong, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from lifelong import Part\n\ndef mine(strength: float = 0.5):\n"
        "    return Part(loss=lambda view: strength * (view.batch.scores ** 2).mean())\n")
    words = ["run", "split-digits", "./mine.py:mine", "./mine.py:mine(strength=2) + ewc(strength=[0,1])", *SMALL]
    said = lifelong(*words, "--quiet")
    assert said == Said(0, "", "")
    records = [json.loads(p.read_text())["spec"] for p in (tmp_path / "runs").glob("*/run.json")]
    assert {r["strategy"] for r in records} == {"./mine.py:mine", "./mine.py:mine(strength=2) + ewc(strength=0)",
                                                "./mine.py:mine(strength=2) + ewc(strength=1)"}
    assert all(len(r["code"]) == 1 and "mine.py" in json.dumps(r["code"]) for r in records)
    assert "3 of 3 runs were finished already" in lifelong(*words).out


def test_report_json_holds_what_the_arrays_say(lifelong, tmp_path):
    assert lifelong("run", "split-digits", "finetune", "er", *SMALL, "--quiet").code == 0
    rows = json.loads(lifelong("report", "--json").out)
    for place in (tmp_path / "runs").glob("*/run.json"):
        name = json.loads(place.read_text())["spec"]["strategy"]
        with np.load(place.parent / "accuracy.npz") as arrays:
            mean = float(arrays["accuracy"][:, -1].mean())
        mine = [row for row in rows if row["strategy"] == name]
        assert mine and all(row["stream"].startswith("split-digits") for row in mine)
        assert any(abs(v - mean) < 1e-9 or abs(v - 100 * mean) < 1e-9 for v in numbers(mine)), (name, mean, mine)
    assert json.loads(lifelong("report", "runs", "--stream", "split-digits", "--json").out) == rows
    one = next((tmp_path / "runs").glob("*finetune*"))
    assert {row["strategy"] for row in json.loads(lifelong("report", one, "--json").out)} == {"finetune"}


def numbers(value: Any) -> list[float]:
    """Every number in nested JSON."""
    if isinstance(value, dict | list):
        return [n for v in (value.values() if isinstance(value, dict) else value) for n in numbers(v)]
    return [value] if isinstance(value, float) else []


def test_a_run_that_becomes_nan_lets_the_one_beside_it_finish(lifelong, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from lifelong import Part\n\ndef burst():\n"
        "    return Part(loss=lambda view: 1e30 * (view.batch.scores ** 2).mean())\n")
    said = lifelong("run", "split-digits", "./mine.py:burst", "finetune", *SMALL)
    assert said.code == 1
    about, accuracy = {}, {}
    for place in (tmp_path / "runs").glob("*/run.json"):
        record = json.loads(place.read_text())
        name = record["spec"]["strategy"]
        about[name] = record["about"]
        with np.load(place.parent / "accuracy.npz") as arrays:
            accuracy[name] = arrays["accuracy"]
    assert about["finetune"]["status"] == "done" and np.isfinite(accuracy["finetune"]).all()
    bad = about["./mine.py:burst"]
    assert bad["status"] == "diverged" and "seed 0 at task 0, step" in bad["note"] and bad["note"] in said.out
    assert np.isfinite(accuracy["./mine.py:burst"][:, 0]).all(), "what was measured before is kept"
    assert np.isnan(accuracy["./mine.py:burst"][:, -1]).all()
    rows = json.loads(lifelong("report", "--json").out)
    assert {"finetune", "./mine.py:burst"} <= {row["strategy"] for row in rows}


@pytest.mark.parametrize("damage", ["cut array", "no array", "no json", "empty json", "array of another", "name"])
def test_any_damage_is_named_skipped_and_left_byte_for_byte(damage, lifelong, tmp_path):
    outcome = prepare("split-digits", ["finetune", "er"], Options(seeds=2, steps=1)).run(tmp_path / "runs")
    assert len(outcome.runs) == 2
    (bad,) = (tmp_path / "runs").glob("*finetune*")
    (good,) = (tmp_path / "runs").glob("*-er-*")
    array = bad / "accuracy.npz"
    if damage == "cut array":
        array.write_bytes(array.read_bytes()[:-10])
    elif damage == "no array":
        array.unlink()
    elif damage == "no json":
        (bad / "run.json").write_bytes(b"\x00\xff{")
    elif damage == "empty json":
        (bad / "run.json").write_bytes(b"")
    elif damage == "array of another":
        array.write_bytes((good / "accuracy.npz").read_bytes()[::-1])
    else:
        bad = bad.rename(bad.with_name(bad.name[:-16] + "0123456789abcdef"))
    before = contents(bad)
    said = lifelong("report", "--json")
    assert said.code == 3
    lines = said.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("lifelong: ") and bad.name in lines[0]
    assert {row["strategy"] for row in json.loads(said.out)} == {"er"}
    assert contents(bad) == before


def test_help_of_every_command_loads_nothing_heavy():
    heavy = {"torch", "numpy", "matplotlib", "avalanche", "pandas", "scipy"}
    for command in ("report", "check", "list"):
        assert not loaded(command, "--help") & heavy, command


def test_the_installed_command_says_one_sentence_and_exits_with_2(tmp_path):
    program = Path(sys.executable).with_name("lifelong")
    done = subprocess.run([program, "run", "rotated-digit"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("lifelong: ")
    assert "rotated-digits" in done.stderr and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("quiet", [True, False])
def test_quiet_also_means_that_decoding_draws_no_bar(quiet, lifelong, monkeypatch, capsys):
    monkeypatch.setattr("lifelong.progress.shown", quiet)  # the contrary of what is asked for
    lifelong("run", "rotated-digits", "finetune", *SMALL, *["--quiet"] * quiet)
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    with workers._bar("reading pictures", 5000) as tell:
        tell(5000)
    assert ("reading pictures" in capsys.readouterr().err) != quiet


def test_only_the_command_line_keeps_freed_memory(lifelong, monkeypatch):
    calls = []
    monkeypatch.setattr("lifelong.machine.keep_pages", lambda: calls.append("kept"))
    prepare("rotated-digits", ["finetune"], Options(seeds=1, steps=1), {"tasks": 2}).run()
    assert calls == []
    lifelong("run", "rotated-digits", "finetune", *SMALL)
    assert calls == ["kept"]
