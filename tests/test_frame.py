"""Runs as a table: every accuracy in a row that says what it is of."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import lifelong
from lifelong.store.records import Run, digest

NAN = float("nan")


def a_run(strategy: str, accuracy: Any, **more: Any) -> Run:
    return Run({"stream": "toy-v1", "stream_options": {"scenario": "class"}, "strategy": strategy, "model": "mlp",
                "optimizer": "sgd(lr=0.1)", "seeds": len(accuracy)} | more, np.array(accuracy))


# Two seeds of two tasks; [seed][after][on]. The second seed diverged in the second task.
ER = a_run("er", [[[.5, .4], [.9, .3], [.7, .8]], [[.1, .2], [.6, .2], [NAN, NAN]]])
ONE = a_run("ewc", [[[.25], [.75]]], stream="other-v2", stream_options={}, seeds=[7])


def test_a_row_says_what_its_accuracy_is_of() -> None:
    table = lifelong.frame([ER, ONE])
    assert list(table.columns) == ["run", "stream", "scenario", "strategy", "model", "optimizer", "score", "seed",
                                   "after", "on", "accuracy"]
    assert table[["strategy", "seed", "after", "on", "accuracy"]].values.tolist()[:10] == [
        ["er", 0, 0, 1, .5], ["er", 0, 0, 2, .4], ["er", 0, 1, 1, .9], ["er", 0, 1, 2, .3], ["er", 0, 2, 1, .7],
        ["er", 0, 2, 2, .8], ["er", 1, 0, 1, .1], ["er", 1, 0, 2, .2], ["er", 1, 1, 1, .6], ["er", 1, 1, 2, .2]]
    assert table.accuracy.isna().tolist() == [False] * 10 + [True] * 2 + [False] * 2
    assert table.iloc[12:].values.tolist() == [
        [digest(ONE.spec), "other-v2", None, "ewc", "mlp", "sgd(lr=0.1)", "accuracy", 7, 0, 1, .25],
        [digest(ONE.spec), "other-v2", None, "ewc", "mlp", "sgd(lr=0.1)", "accuracy", 7, 1, 1, .75]]
    assert set(table.stream[:12]) == {"toy-v1"} and set(table.scenario[:12]) == {"class"}


def test_a_score_of_another_problem_and_a_stream_of_format_2_are_named() -> None:
    run = replace(a_run("er", [[[.5], [.9]]], format=2, stream="toy", stream_name="toy-v3"),
                  about={"score": {"name": "negative squared error", "percent": False}})
    table = lifelong.frame([ER, run])
    assert set(table.score[:12]) == {"accuracy"} and set(table.score[12:]) == {"negative squared error"}
    assert set(table.stream[12:]) == {"toy-v3"}


def test_the_table_gives_the_usual_metrics() -> None:
    table = lifelong.frame([ER])
    final = table[table.after == 2].groupby("seed").accuracy.mean()
    assert final[0] == pytest.approx((.7 + .8) / 2) and np.isnan(final[1])
    learned = table[table.after == table.on].groupby("seed").accuracy.mean()
    assert learned[0] == pytest.approx((.9 + .8) / 2)


def test_no_runs_make_an_empty_table_with_the_same_columns() -> None:
    assert list(lifelong.frame([]).columns) == list(lifelong.frame([ER]).columns) and len(lifelong.frame([])) == 0


def test_it_needs_no_torch() -> None:
    code = "import sys, lifelong; lifelong.frame([]); assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
