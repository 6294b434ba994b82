"""Runs that version 0.1 wrote, in format 1 of their specs: they are read, shown as they were, and made again."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command, refused

from lifelong import store
from lifelong.experiments.again import again, read
from lifelong.spec.run import Spec

pytestmark = pytest.mark.usefixtures("undrawn")

FROZEN = Path(__file__).parent / "frozen"
RUNS = sorted(path.parent.name for path in (FROZEN / "format-1").glob("*/run.json"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store of version 0.1, in the folder where its command was typed, beside the user's files."""
    shutil.copytree(FROZEN / "format-1", tmp_path / "runs")
    for file in FROZEN.glob("*.py"):
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def close(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal, numbers to the last digit but one."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-12, abs_tol=1e-15)
    if isinstance(one, dict) and isinstance(other, dict):
        return all(close(value, other.get(key)) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(close(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def test_there_is_a_frozen_run_of_each_kind():
    found, problems = store.runs(FROZEN / "format-1")
    specs = [run.spec for run in found]
    assert problems == [] and all(spec["format"] == 1 for spec in specs)
    assert {spec["stream_options"].get("scenario", "") for spec in specs} == {"class", "task", "domain", ""}
    assert {run.about["status"] for run in found} == {"done", "diverged"}
    assert any(run.about["lanes"] > len(run.accuracy) for run in found), "lanes of a sweep"
    assert any("start" in spec for spec in specs) and any("curve" in run.logs for run in found)
    assert any(" + " in spec["strategy"] for spec in specs) and any(spec["sources"] for spec in specs)
    assert len(store.evaluations(FROZEN / "format-1")[0]) == 1


def test_a_report_of_frozen_runs_shows_the_numbers_it_showed(lifelong: Command):
    said = lifelong("report", FROZEN / "format-1", "--json")
    assert said.code == 0 and said.err == ""
    shown, expected = json.loads(said.out), json.loads((FROZEN / "format-1" / "report.json").read_text())
    assert len(shown) == len(expected) == 22
    for one, was in zip(shown, expected, strict=True):
        assert close(was, one), was["label"]


def test_a_report_of_frozen_runs_has_a_page(here: Path, lifelong: Command):
    assert lifelong("report", here / "runs").code == 0
    assert (here / "runs" / "report" / "report.md").stat().st_size > 10_000


@pytest.mark.parametrize("name", [name for name in RUNS if not name.startswith("halves")])
def test_a_frozen_run_is_made_again_to_the_same_accuracies(name: str, here: Path):
    was = store.load(here / "runs" / name)
    (experiment,) = again(read(here / "runs" / name), trust=True)
    (run,) = experiment.run(here / "again").runs
    np.testing.assert_array_equal(run.accuracy, was.accuracy)
    assert run.spec["format"] == 2 and run.stream == was.stream and run.spec["code"] == was.spec["sources"]
    (found,) = again(read(Path(run.about["folder"])), trust=True)
    assert found.run(here / "again").found == 1


@pytest.mark.parametrize(("name", "words"), [("halves-v1*", ["does not say which file the stream halves-v1"]),
                                             ("tuning/*ewc--*", ["`lifelong tune`", "tune again"]),
                                             ("*plain.py*", ["./plain.py", "--trust"])])
def test_a_frozen_run_that_cannot_be_made_again_says_why(name: str, words: list[str], here: Path, lifelong: Command):
    (folder,) = (here / "runs").glob(name)
    refused(lifelong("run", "--from", folder), *words)


def test_runs_of_both_formats_stand_in_one_table(here: Path, lifelong: Command):
    assert lifelong("run", "split-digits(tasks=2)", "er(capacity=20)", "--seeds", "2", "--steps", "20",
                    "--quiet").code == 0
    rows = json.loads(lifelong("report", "--json", "--stream", "split-digits").out)
    titles = {(row["stream"], json.dumps(row["stream_options"])) for row in rows}
    assert {name for name, _ in titles} == {"split-digits-v1"} and len(titles) == 2  # class- and task-incremental
    (own,) = [row for row in rows if not row["told_task"] and "steps=20" in row["label"]
              and row["strategy"] == "er(capacity=20)"]
    assert "format" not in own["label"] and "data" not in own["label"]


def test_a_spec_of_format_1_becomes_one_of_format_2():
    record = json.loads((FROZEN / "format-1" / next(n for n in RUNS if "supervised" in n) / "run.json").read_text())
    spec = Spec.from_json(record["spec"])
    assert spec.stream.startswith("rotated-digits-v1(tasks=2, examples=320") and spec.code == {}
    assert spec.hyper is not None and spec.hyper["strategy"][0]["quarter_turns"] == 1
    assert Spec.from_json(spec.to_json()) == spec
