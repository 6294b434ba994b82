"""The README keeps its word: its strategies run, its commands parse, and CI runs the commands that it shows."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.main import get_command

import lifelong
from lifelong import cli
from lifelong.experiments import contract as checks
from lifelong.experiments.prepare import prepare
from lifelong.spec import catalogue, expression
from lifelong.spec.run import Options
from lifelong.starts import pretrain

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
SHORT = 25  # lines that a strategy may take


def blocks(language: str, text: str = TEXT) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def block(first: str) -> str:
    """The one Python block that begins with the line `first`."""
    (found,) = [b for b in blocks("python") if b.startswith(first)]
    return found


def commands(text: str = TEXT) -> list[list[str]]:
    """The words of every `lifelong ...` line of the shell blocks."""
    lines = [line for b in blocks("sh", text) for line in b.splitlines() if line.startswith("lifelong ")]
    return [shlex.split(line, comments=True) for line in lines]


def ci(name: str) -> str:
    """What `.ci/run` takes from the README, by its own awk program."""
    (function,) = re.findall(r"^readme\(\).*?^}$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE | re.DOTALL)
    done = subprocess.run(["bash", "-c", f'{function}\nreadme "$1"', "-", name], cwd=ROOT, capture_output=True,
                          text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder that holds the README's two files, and nothing else."""
    for name in ("mine.py", "plain.py", "start.py", "resnet.py"):
        (tmp_path / name).write_text(block(f"# {name}\n"))
    monkeypatch.chdir(tmp_path)
    loaded = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - loaded:  # files that were loaded from a folder that will be gone
        if name.startswith("lifelong_file_"):
            del sys.modules[name]


# ---- strategies of one's own


def test_the_strategy_keeps_the_contract_alone_and_in_a_sum(folder):
    assert checks.failures("./mine.py:hard_replay") == []
    (last,) = [b for b in blocks("python") if "import failures" in b]
    exec(compile(last, "README.md", "exec"), {})


def test_parts_add_up_in_python_and_a_list_is_a_comparison(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    names: dict[str, Any] = {}
    code = block("from lifelong import run\n")
    assert code.count('run("split-digits", ') == 2, "this test shortens the runs by the text that it replaces"
    exec(code.replace('run("split-digits", ', 'run("split-digits", seeds=2, steps=5, strategies='), names)
    del sys.modules["mine"]
    assert names["alone"].accuracy.shape == (2, 6, 5) and [run.spec["strategy"] for run in names["compared"]] == [
        "er", "er + ewc", "strategy", "strategy + strategy"]


def test_a_torchvision_network_learns(folder):
    run = lifelong.run("split-digits(tasks=2)", "er", model="./resnet.py:resnet18", seeds=1, steps=2)
    assert run.accuracy.shape == (1, 3, 2) and np.isfinite(run.logs["loss"]).all()


def test_the_strategy_runs_beside_finetune_and_differs_from_it(folder):
    expressions = ["finetune", "./mine.py:hard_replay"]
    outcome = prepare("split-digits", expressions, Options(seeds=2, epochs=1)).run()
    assert outcome.failures == [] and [r.spec["strategy"] for r in outcome.runs] == expressions
    plain, replayed = (torch.from_numpy(r.accuracy) for r in outcome.runs)
    assert plain.shape == replayed.shape == (2, 6, 5) and bool(replayed.isfinite().all())
    assert torch.equal(plain[:, 0], replayed[:, 0]), "row 0 is the same untrained network"
    assert float(replayed[:, -1].mean()) > float(plain[:, -1].mean()), "replay forgets less than nothing at all"


def test_the_object_runs_and_is_no_worse_than_chance(folder):
    run = lifelong.run("split-digits", "./plain.py:Plain", seeds=2, epochs=1)
    assert run.accuracy.shape == (2, 6, 5) and run.about["status"] == "done"
    assert (run.accuracy[:, 1, 0] > 0.6).all(), "it learns its first two classes"


def test_the_start_is_learned_and_learned_on_from(folder):
    source = "source='glyphs(classes=4)', steps=2, batch=4"
    runs = prepare("split-glyphs(tasks=2, classes_per_task=2)", [f"./start.py:turns({source}) + {part}" for part in
                   ("er", "ncm")], Options(seeds=1, epochs=1)).run().runs
    assert len(runs) == 2 and runs[1].accuracy[0, -1].mean() > 0.25


def test_strategies_fit_on_a_screen():
    for name, what in (("mine.py", "hard_replay"), ("plain.py", "Plain")):
        source = block(f"# {name}\n")
        (found,) = [n for n in ast.parse(source).body if getattr(n, "name", None) == what]
        assert found.end_lineno is not None and found.end_lineno - found.lineno + 1 <= SHORT


def test_the_python_api_runs_and_prints_an_interval(capsys):
    code = block("import lifelong\n").replace("seeds=3, epochs=2", "seeds=2, epochs=1")
    assert "seeds=2, epochs=1" in code, "this test shortens the run by the text that it replaces"
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    numbers = [float(n) for n in re.findall(r"\d+\.\d+(?:e-?\d+)?", capsys.readouterr().out)]
    assert len(numbers) >= 2 and 0 < numbers[0] < 1
    assert names["run"].accuracy.shape == (2, 6, 5)  # type: ignore[attr-defined]


def test_streams_go_to_avalanche_and_back():
    pytest.importorskip("lifelong.bridges.avalanche", reason="Avalanche is not installed", exc_type=ImportError)
    names: dict[str, object] = {}
    exec(compile(block("from lifelong import Options\n"), "README.md", "exec"), names)
    assert len(names["benchmark"].train_stream) == 5  # type: ignore[attr-defined]
    assert names["stream"].n_seeds == 5 and names["stream"].n_tasks == 5  # type: ignore[attr-defined]


# ---- commands


def test_there_are_commands_of_every_kind():
    assert {"list", "run", "tune", "pretrain", "fewshot", "report", "check"} == {words[1] for words in commands()}


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_is_one_that_the_command_line_takes(words, folder):
    taken(words)


def taken(words: list[str]) -> None:
    """Fails unless the command line takes a command, with everything in it that is a name."""
    group = get_command(cli.app)
    assert words[1] in group.commands, "no such command"  # type: ignore[attr-defined]
    if any("avalanche." in word for word in words):
        pytest.importorskip("lifelong.bridges.avalanche", reason="Avalanche is not installed", exc_type=ImportError)
    command = group.commands[words[1]]  # type: ignore[attr-defined]
    given = command.make_context(words[1], list(words[2:])).params
    if words[1] == "report":  # it takes patterns, and whatever is in the store
        return
    for typed in [*(given.get("strategies") or []), *([given["strategy"]] if "strategy" in given else [])]:
        terms = expression.parse(typed)
        assert terms and expression.settings(terms)
    for kind in ("optimizer", "model"):
        if given.get(kind):
            expression.parse(given[kind], f"{kind}s")
    if given.get("stream"):
        (stream,) = expression.parse(given["stream"], "streams")
        known = catalogue.hyper_parameters(stream.factory)
        for option in ("tasks", "classes_per_task", "scenario", "boundaries"):
            assert given[option] is None or option in known, f"{stream.name} has no {option}"
    if words[1] == "fewshot":
        assert expression.parse(given["source"], "sources") and given["start"].endswith(".safetensors")
    if words[1] == "pretrain":
        assert pretrain.parse(given["start"]) and expression.parse(given["source"], "sources")
    if words[1] == "list" and given.get("name") and not given["name"].endswith(".safetensors"):
        assert (any(given["name"] in catalogue.catalogue(kind) for kind in catalogue.KINDS)
                or expression.parse(given["name"]))


def test_options_that_are_only_named_in_the_text_exist():
    commands = get_command(cli.app).commands.values()  # type: ignore[attr-defined]
    known = {name for command in commands for p in command.params for name in (*p.opts, *p.secondary_opts)}
    named = {w for w in re.findall(r"`(?:[^`\n]*\s)?(--[a-z-]+)[^`\n]*`", TEXT)}
    assert {"--store", "--data", "--scenario", "--no-boundaries"} <= named
    assert named <= known


def test_eight_runs_in_one_stack_are_eight():
    (words,) = [w for w in commands() if w[1] == "run" and "--optimizer" in w]
    strategies = expression.settings(expression.parse(words[3]))
    optimizers = expression.settings(expression.parse(words[words.index("--optimizer") + 1], "optimizers"))
    assert len(strategies) * len(optimizers) == 8


# ---- what CI runs


def test_ci_runs_the_two_blocks_that_are_shown():
    shown = {mark: re.search(rf"^<!-- {mark} -->\n```sh\n(.*?)\n```$", TEXT, re.MULTILINE | re.DOTALL)
             for mark in ("setup", "test")}
    for mark, match in shown.items():
        assert match, f"README.md has no <!-- {mark} --> block"
        assert ci(mark) == match[1].strip() and "\n" not in ci(mark)
    assert ci("no such block") == ""


def test_setup_installs_what_is_pinned_and_runs_a_benchmark_without_data():
    setup = ci("setup")
    assert "-c constraints.txt" in setup and (ROOT / "constraints.txt").is_file()
    name = shlex.split(setup.rsplit("lifelong run ", 1)[1])[0]
    assert "data" not in catalogue.lookup("streams", name).__code__.co_varnames, "it needs data"
    assert ci("test").endswith("-m pytest")


def test_links_lead_to_files():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link]
    assert links and all((ROOT / link).exists() for link in links)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_citation_is_of_this_version():
    text = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {lifelong.__version__}\n" in text and f"version = {{{lifelong.__version__}}}" in TEXT
    assert "the lifelong developers" in text and "the lifelong developers" in (ROOT / "LICENSE").read_text()
