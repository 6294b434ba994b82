"""The documentation keeps its word: its files and Python run, its commands run or parse, and it builds without a warning."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_readme import blocks, commands, taken
from typer.main import get_command

import lifelong
from lifelong import cli
from lifelong.experiments import contract as checks
from lifelong.spec import catalogue

ROOT = Path(__file__).resolve().parent.parent
PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
FILE = re.compile(r"# (\w+\.py)\n")
# Runs and tunings are run, shortened, and not only parsed, where nothing is needed that may not be here, and nothing else
# of the tests runs them: not starts and loggers, bridges, devices, nor the introduction's run, which later pages repeat.
RUN = {"split-digits", "rotated-digits", "./waves.py:waves"}
LEFT = ("--log", "avalanche.", "--device", "--first-tasks")


def shown(page: str) -> list[list[str]]:
    """The commands of a page that are run."""
    return [words for words in commands(PAGES[page]) if page != "index" and words[1] in ("run", "tune")
            and words[2].partition("(")[0] in RUN and not any(word.startswith(LEFT) for word in words)]


def shortened(words: list[str]) -> list[str]:
    """A command with two seeds and two steps a task, whatever it asks for."""
    return [*words, "--seeds", "2", "--steps", "2"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with every file that a page shows, in which runs are short and draw nothing."""
    for text in PAGES.values():
        for code in blocks("python", text):
            if name := FILE.match(code):
                (tmp_path / name[1]).write_text(code)
    run = lifelong.run
    monkeypatch.setattr(lifelong, "run", lambda *given, **options: run(*given, **options | {"seeds": 2, "steps": 2}),
                        raising=False)
    monkeypatch.setattr(cli.run, "print_results", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    loaded = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - loaded:
        if name.startswith("lifelong_file_"):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_runs(page, folder, monkeypatch):
    for words in commands(PAGES[page]):
        if words in shown(page):
            monkeypatch.setattr(sys, "argv", shortened(words))
            with pytest.raises(SystemExit) as ended:
                cli.main()
            assert ended.value.code == 0, words
        elif words not in commands():  # those of the README have tests of their own
            taken(words)
    names: dict[str, object] = {}
    for code in blocks("python", PAGES[page]):
        if not FILE.match(code) and code not in blocks("python"):
            exec(compile(code.replace("epochs=1", "steps=2"), f"{page}.md", "exec"), names)


def test_most_commands_that_need_no_data_are_run():
    assert {page for page in PAGES if shown(page)} >= {"resuming", "strategies", "streams", "tuning", "writing"}


def test_the_strategies_shown_keep_the_contract(folder):
    assert checks.failures("./anchor.py:anchor + ./mine.py:hard_replay") == []


def test_every_kind_of_the_catalogue_has_its_place():
    shown = {name for text in PAGES.values() for name in re.findall(r"include:: generated/(\w+)\.rst", text)}
    assert set(catalogue.KINDS) < shown


def test_a_strategy_is_shown_once():
    """The same file name is the same file, on every page and in the README."""
    shown: dict[str, str] = {}
    for text in (*PAGES.values(), (ROOT / "README.md").read_text()):
        for code in blocks("python", text):
            if name := FILE.match(code):
                assert shown.setdefault(name[1], code) == code


def test_every_option_every_name_and_every_link_exists():
    group = get_command(cli.app)
    known = {name for command in group.commands.values() for p in command.params  # type: ignore[attr-defined]
             for name in (*p.opts, *p.secondary_opts)}
    for page, text in PAGES.items():
        assert set(re.findall(r"`(?:[^`\n]*\s)?(--[a-z-]+)[^`\n]*`", text)) <= known, page
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            assert "://" in link or (ROOT / "docs" / link).is_file(), (page, link)
        for name in re.findall(r"\.\. auto\w+:: ([\w.]+)|\{py:\w+\}`~?([\w.]+)`", text):
            if "bridges" not in "".join(name):  # which need what is not installed everywhere
                assert pkgutil.resolve_name("".join(name)), name


@pytest.mark.slow
def test_it_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason="the extra docs is not installed")
    done = subprocess.run([sys.executable, "-m", "sphinx", "-W", "-q", "-E", ROOT / "docs", tmp_path], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    strategies = (tmp_path / "strategies.html").read_text()
    for word in ("derpp", "Buzzega et al. 2020", 'href="https://arxiv.org/abs/2004.07211"'):
        assert word in strategies
