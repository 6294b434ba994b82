"""Where Avalanche is not installed everything else works, and asking for it gives one sentence; nothing loads it unasked."""

from __future__ import annotations

import subprocess
import sys

import pytest

HIDE = """
import sys
sys.modules["avalanche"] = None  # as where it is not installed
from lifelong import cli
sys.argv = ["lifelong", *{words!r}]
cli.main()
"""


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", HIDE.format(words=words)], capture_output=True, text=True)


@pytest.mark.parametrize("words", [("run", "split-digits", "finetune", "avalanche.Naive"), ("list", "avalanche.GEM"),
                                   ("check", "avalanche.Naive")])
def test_asking_for_it_gives_one_sentence(words, tmp_path):
    done = command(*words, *(["--store", str(tmp_path / "runs")] if words[0] == "run" else []))
    assert done.returncode == 2 and not (tmp_path / "runs").exists()
    assert 'pip install "lifelong[avalanche]"' in done.stderr and done.stderr.count("\n") == 1


def test_all_else_works(tmp_path):
    assert "split-digits" in command("list").stdout
    done = command("run", "split-digits(tasks=2)", "er", "--seeds", "1", "--steps", "2", "--store", str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_nothing_loads_it_unasked():
    code = ("import sys, lifelong\nfrom lifelong.learning import imperative\nfrom lifelong.experiments import contract\n"
            "lifelong.prepare('split-digits', ['er + ewc'])\nassert 'avalanche' not in sys.modules\n")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
