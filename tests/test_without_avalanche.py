"""Where Avalanche is not installed everything else works, and asking for it gives one sentence; nothing loads it unasked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ASKED = [("run", "split-digits", "finetune", "avalanche.Naive"), ("list", "avalanche.GEM"), ("check", "avalanche.Naive")]
OTHERS = [("list",), ("run", "split-digits(tasks=2)", "er + ewc", "--seeds", "1", "--steps", "2")]
# Every command in one process, which takes seconds to begin with; at the end, what of Avalanche it has loaded.
COMMANDS = """
import contextlib, io, json, sys
from lifelong import cli
from lifelong.experiments import contract
from lifelong.learning import imperative

if {hidden}:
    sys.modules["avalanche"] = None  # as where it is not installed
said = []
for words in {commands!r}:
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        sys.argv = ["lifelong", *words]
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
    said.append([code, out.getvalue(), err.getvalue()])
loaded = [name for name in sys.modules if name.partition(".")[0] == "avalanche" and sys.modules[name]]
print(json.dumps([said, loaded]))
"""


def spoken(folder: Path, commands: list[tuple[str, ...]], hidden: bool) -> tuple[list[tuple[int, str, str]], list[str]]:
    """For each command its exit code and what it printed; and the modules of Avalanche that are loaded in the end."""
    done = subprocess.run([sys.executable, "-c", COMMANDS.format(commands=commands, hidden=hidden)], cwd=folder,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: Any = json.loads(done.stdout.splitlines()[-1])
    return found


def test_without_it_asking_gives_one_sentence_and_all_else_works(tmp_path: Path) -> None:
    said, _ = spoken(tmp_path, [*ASKED, *OTHERS], hidden=True)
    for code, _, err in said[:3]:
        assert code == 2 and 'pip install "lifelong[avalanche]"' in err and err.count("\n") == 1
    (listed, names, _), (ran, table, err) = said[3:]
    assert listed == 0 and "split-digits" in names
    assert ran == 0 and "er + ewc" in table, err
    assert len([*(tmp_path / "runs").glob("split-digits*")]) == 1, "what was refused has left something"


def test_nothing_loads_it_unasked(tmp_path: Path) -> None:
    pytest.importorskip("avalanche", reason="Avalanche is not installed", exc_type=ImportError)
    said, loaded = spoken(tmp_path, OTHERS, hidden=False)
    assert [code for code, _, _ in said] == [0, 0] and loaded == []
