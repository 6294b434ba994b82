"""A report from runs made up here: what the tables say, what the figures hold."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from lifelong import report
from lifelong.store import Run

SPEC = {
    "format": 1,
    "stream": "split-mnist-v1",
    "stream_options": {"tasks": 2, "scenario": "class"},
    "boundaries": True,
    "model": "mlp(hidden=(400, 400))",
    "optimizer": "adam(lr=0.001)",
    "epochs": 1,
    "steps": None,
    "batch_size": 128,
    "eval_every": 0,
    "dtype": "float32",
    "sources": {},
}
ABOUT = {"status": "done", "note": "", "device": "cpu", "threads": 2, "torch": "2.14.1", "commit": "abc1234"}


def a_run(strategy, first, second, seeds=2, about=(), logs=(), **spec):
    """Two tasks; after the first its accuracy is `first`, after the second they are `second`; seeds differ by .02."""
    one = np.array([[0.1, 0.1], [first, 0.0], second])
    accuracy = np.stack([one + 0.02 * seed for seed in range(seeds)])
    return Run({**SPEC, "strategy": strategy, "seeds": seeds, **spec}, accuracy, {**ABOUT, **dict(about)}, dict(logs))


def three(seeds=2, **spec):
    return [
        a_run("cumulative", 0.9, [0.8, 0.9], seeds, **spec),
        a_run("er(capacity=500)", 0.8, [0.5, 0.7], seeds, **spec),
        a_run("finetune", 0.8, [0.1, 0.7], seeds, **spec),
    ]


def test_a_stream_of_several_lengths_has_a_table_by_length():
    train = np.full((2, 3, 2), np.nan)
    train[:, 1, 0], train[:, 2] = 1.0, [0.6, 0.9]
    run = a_run("finetune", 0.8, [0.2, 0.5], logs={"accuracy_train": train}, stream="omniglot-o600-v1",
                stream_options={"lengths": [1, 3]})
    found = report.by_length(run)
    np.testing.assert_allclose(found["test"], [[0.8, (0.2 + 2 * 0.5) / 3], [0.82, (0.22 + 2 * 0.52) / 3]])
    np.testing.assert_allclose(found["train"], [[1.0, (0.6 + 2 * 0.9) / 3]] * 2)
    text = report.markdown([run])
    assert "| classes |  | 1 | 3 |" in text
    assert "| `finetune` | train | 100.0 ± 0.0 | 80.0 ± 0.0 |" in text
    assert "forward transfer |" not in text
    assert "by length" not in report.markdown(three()) and "| classes |" not in report.markdown(three())


def a_diverged_run(seeds=2, dead=1, strategy="ewc(strength=1e9)"):
    run = a_run(strategy, 0.8, [0.1, 0.7], seeds, about={"status": "diverged", "note": "loss is NaN in task 2"})
    run.accuracy[:dead, 2:] = np.nan
    return run


GOLDEN = """\
# Report

## split-mnist-v1 (scenario=class, tasks=2)

All runs: boundaries=True, mlp(hidden=(400, 400)), adam(lr=0.001), epochs=1, batch_size=128, dtype=float32.

| strategy | average accuracy | average incremental accuracy | forgetting | backward transfer | learning accuracy \
| intransigence | seeds |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| `finetune` | 41.0 ± 12.7 | 61.0 ± 12.7 | 70.0 ± 0.0 | -70.0 ± 0.0 | 76.0 ± 12.7 | 15.0 ± 0.0 | 2 |
| `er(capacity=500)` | 61.0 ± 12.7 | 71.0 ± 12.7 | 30.0 ± 0.0 | -30.0 ± 0.0 | 76.0 ± 12.7 | 15.0 ± 0.0 | 2 |
| `cumulative` | 86.0 ± 12.7 | 88.5 ± 12.7 | 10.0 ± 0.0 | -10.0 ± 0.0 | 91.0 ± 12.7 | – | 2 |

In percent; mean over seeds ± half width of its 95 % t interval. –: not measured, or not defined for this run. \
Forward transfer is not defined here: unseen classes cannot be answered. Intransigence is against `cumulative` on the \
same seeds.

Against `finetune`, average accuracy in percentage points, paired by seed; ± is the 95 % t interval of the difference \
alone, p is the two-sided sign-flip permutation test after Holm over 2. For p to reach .05 it takes 7 seeds.

- `er(capacity=500)`: +20.0 ± 0.0; not enough seeds to tell (smallest possible p = 1 with 2 seeds)
- `cumulative`: +45.0 ± 0.0; not enough seeds to tell (smallest possible p = 1 with 2 seeds)

a[t,k] is the accuracy on task k after task t of T; t = 0 is the untrained learner.

- average accuracy: (1/T) Σ_{k=1..T} a[T,k] (Lopez-Paz & Ranzato 2017, arXiv:1706.08840)
"""


def test_the_report_of_three_runs_reads_as_written_here():
    # Half widths: seeds differ by .02, so s / sqrt(2) = .01 and t(1 degree, .975) = 12.706: 12.7 points. Finetune:
    # average (.1 + .7) / 2 + .01; forgetting .8 - .1; learning (.8 + .7) / 2 + .01; cumulative learns at (.9 + .9) / 2.
    text = report.markdown(three())
    assert text.startswith(GOLDEN)
    assert text.endswith("Made with: device cpu, threads 2, torch 2.14.1, commit abc1234, seeds 2.\n")


def test_no_runs_make_a_short_report():
    assert "no runs" in report.markdown([])
    assert report.rows([]) == []


def test_forward_transfer_is_printed_where_it_means_something():
    domain = three(stream_options={"tasks": 2, "scenario": "domain"})
    assert "| forward transfer |" in report.markdown(domain)
    assert "unseen classes" not in report.markdown(domain)


def test_class_incremental_runs_scored_with_the_task_told_get_a_table_of_those_scores():
    runs = three()
    runs[1].logs["accuracy_task"] = np.ones((2, 3, 2))
    asked, told = report.groups(runs)
    assert told.title == "split-mnist-v1 (scenario=class, tasks=2), told the task when tested"
    assert told.labels == ("er(capacity=500)",)
    assert not told.unseen
    assert "forward transfer" in report.cells(told)[0]
    assert asked.slug != told.slug


def test_runs_on_different_streams_are_not_compared():
    runs = [*three(), *three(stream_options={"tasks": 2, "scenario": "class", "examples": 9}), a_run("er", 1, [1, 1])]
    first, second = report.groups(runs)
    assert (len(first.runs), len(second.runs)) == (4, 3)
    assert first.slug != second.slug


@pytest.mark.parametrize(
    ("specs", "labels"),
    [
        ([("er", {}), ("joint", {"optimizer": "sgd(lr=0.01)"})], ["er", "joint, sgd(lr=0.01)"]),
        ([("er", {}), ("er", {"epochs": 5})], ["er, epochs=1", "er, epochs=5"]),
        ([("si", {}), ("er", {}), ("er", {"epochs": 5})], ["si", "er, epochs=1", "er, epochs=5"]),
        ([("er", {"seeds": 2}), ("er", {"seeds": 3})], ["er, seeds=2", "er, seeds=3"]),
        ([("er", {"eval_every": 5}), ("si", {})], ["er", "si"]),
        ([("er", {}), ("er", {}), ("si", {})], ["er, run 1", "er, run 2", "si"]),
        ([("joint(a=1)", {}), ("cumulative", {}), ("er + joint", {}), ("finetune", {})],
         ["finetune", "er + joint", "cumulative", "joint(a=1)"]),
    ],
)  # fmt: skip
def test_a_label_says_what_sets_a_run_apart_and_no_more(specs, labels):
    (group,) = report.groups([a_run(strategy, 0.8, [0.5, 0.7], **spec) for strategy, spec in specs])
    assert list(group.labels) == labels


def test_settings_that_differ_are_announced():
    assert "epochs=1, batch_size=128" in report.markdown([a_run("er", 1, [1, 1]), a_run("si", 1, [1, 1], epochs=5)])
    assert "unless a row says otherwise" in report.markdown([a_run("er", 1, [1, 1]), a_run("si", 1, [1, 1], epochs=5)])


def test_a_diverged_run_is_shown_with_what_was_measured():
    text = report.markdown([*three(), a_diverged_run()])
    assert re.search(r"\| `ewc\(strength=1e9\)` \*\*diverged\*\* \| 42\.0 \(1/2\) \|", text)
    assert "diverged (loss is NaN in task 2); 1 of 2 seeds reached the end; after task 1" in text
    assert "- `ewc(strength=1e9)`: not compared" in text
    assert "after Holm over 2." in text


def test_a_run_of_which_nothing_was_measured_is_still_shown():
    run = a_diverged_run()
    run.accuracy[:] = np.nan
    assert "after no task was every seed measured" in report.markdown([run])
    assert report.cells(report.groups([run])[0])[1][0][0] == "ewc(strength=1e9) (diverged)"


def test_one_seed_gives_means_alone_and_says_so():
    text = report.markdown(three(seeds=1))
    assert "| `finetune` | 40.0 | 60.0 |" in text
    assert "One seed gives no interval." in text
    assert "+20.0; not enough seeds to tell (smallest possible p = 1 with 1 seed)" in text


def test_one_task_has_no_column_for_forgetting():
    run = Run({**SPEC, "strategy": "er", "stream_options": {"tasks": 1}}, np.full((2, 2, 1), 0.5), ABOUT)
    text = report.markdown([run])
    assert "| forgetting |" not in text
    assert "need two tasks" in text


def test_with_enough_seeds_a_p_value_is_given():
    # Eight seeds and a constant gain: p = 2 / 2^8 for each of two comparisons, times 2 for the first by Holm.
    text = report.markdown(three(seeds=8))
    assert "- `er(capacity=500)`: +20.0 ± 0.0, p = 0.016 (8 seeds)" in text
    assert "not enough seeds" not in text


def test_runs_with_other_seeds_are_paired_on_those_they_share():
    runs = [a_run("finetune", 0.8, [0.1, 0.7], 8), a_run("er", 0.8, [0.5, 0.7], 3)]
    (found,) = report.comparisons(report.groups(runs)[0])
    assert found.n == 3
    assert found.difference.mean == pytest.approx(0.2)


def test_intransigence_needs_a_reference_on_the_same_seeds():
    runs = [a_run("er", 0.8, [0.5, 0.7], 8), a_run("joint", 0.9, [0.8, 0.9], 3)]
    assert "intransigence" not in report.cells(report.groups(runs)[0])[0]
    runs = [a_run("er", 0.8, [0.5, 0.7], 3), a_run("joint", 0.9, [0.8, 0.9], 8)]
    text = report.markdown(runs)
    assert "Intransigence is against `joint` on the same seeds. It meets all tasks from the first step" in text
    assert "15.0 ± 0.0" in text


def test_a_small_interval_gets_a_second_decimal():
    run = a_run("er", 0.8, [0.5, 0.7], 3)
    run.accuracy[:] = run.accuracy[0] + np.array([0, 1e-4, 2e-4])[:, None, None]  # 100 * 1e-4 * 4.303 / sqrt(3)
    assert report.cells(report.groups([run])[0])[1][0][1] == "60.01 ± 0.02"


def test_rows_are_json_without_nan():
    rows = report.rows([*three(), a_diverged_run()])
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert rows[0]["metrics"]["average_accuracy"]["values"] == pytest.approx([0.4, 0.42])
    assert rows[2]["metrics"]["average_accuracy"] == {
        "mean": pytest.approx(0.42),
        "half_width": None,
        "n_seeds": 1,
        "values": [None, pytest.approx(0.42)],
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return folder, report.write([*three(), a_diverged_run()], folder)


def test_everything_written_is_named_and_nothing_else_is_left(written):
    folder, paths = written
    figures = {f"split-mnist-v1-class-{name}.{kind}" for name in ("curves", "tasks") for kind in ("svg", "png")}
    assert {path.name for path in paths} == {path.name for path in folder.iterdir()}
    assert {path.name for path in paths} == {"report.md", "table.csv", "seeds.csv"} | figures


def test_the_report_links_to_files_that_are_there(written):
    folder, _ = written
    links = re.findall(r"\(([^()\s]+\.(?:png|svg))\)", (folder / "report.md").read_text())
    assert len(links) == 4
    assert all((folder / link).stat().st_size > 1000 for link in links)


@pytest.mark.parametrize("name", ["curves", "tasks"])
def test_a_figure_holds_every_strategy_by_name(written, name):
    svg = (written[0] / f"split-mnist-v1-class-{name}.svg").read_text()
    texts = " ".join("".join(ET.fromstring(svg).itertext()).split())
    for label in ("finetune", "er(capacity=500)", "cumulative", "ewc(strength=1e9)", "diverged", "tasks learned"):
        assert label in texts
    assert (written[0] / f"split-mnist-v1-class-{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_the_same_runs_give_the_same_bytes(written, tmp_path):
    for path in report.write([*three(), a_diverged_run()], tmp_path):
        assert path.read_bytes() == (written[0] / path.name).read_bytes(), path.name


def test_csv_files_hold_plain_numbers(written):
    with (written[0] / "table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert float(table[0]["mean"]) == pytest.approx(0.41)
    assert table[0]["metric"] == "average_accuracy"
    with (written[0] / "seeds.csv").open(newline="") as file:
        values = [line for line in csv.DictReader(file) if line["label"].startswith("ewc")]
    assert [(line["seed"], line["value"]) for line in values[:2]] == [("0", ""), ("1", str(0.42))]


def test_of_many_tasks_ten_are_drawn_the_first_and_last_among_them():
    from lifelong.report import figures

    run = Run({**SPEC, "strategy": "er"}, np.random.default_rng(0).random((2, 24, 23)), ABOUT)
    figure = figures.tasks(report.groups([run])[0])
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert len(titles) == 10
    assert (titles[0], titles[-1]) == ("task 1", "task 23")
    assert "10 of 23 tasks" in figure.get_suptitle()


def test_no_two_of_many_strategies_look_alike():
    from lifelong.report import figures

    runs = [a_run(f"er(capacity={n})", 0.8, [0.5, 0.7]) for n in range(40)]
    lines = [line for line in figures.curves(report.groups(runs)[0]).axes[0].lines if line.get_label()[0] != "_"]
    looks = {(line.get_color(), str(line._dash_pattern), line.get_marker()) for line in lines}
    assert len(lines) == len(looks) == 40


def test_drawing_leaves_the_users_matplotlib_alone():
    code = """
import matplotlib, sys
matplotlib.rcParams['font.size'] = 31
settings = lambda: {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != 'backend'}
before = settings()  # reading the backend would choose one
sys.path.insert(0, TESTS)
import test_report
from lifelong.report import figures
for draw in (figures.curves, figures.tasks):
    figures.encoded(draw(test_report.report.groups(test_report.three())[0]), 'svg')
assert settings() == before
assert 'matplotlib.pyplot' not in sys.modules
""".replace("TESTS", repr(str(Path(__file__).parent)))
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_importing_the_report_loads_neither_torch_nor_matplotlib():
    code = "import sys, lifelong.report; print({'torch', 'matplotlib', 'pandas', 'scipy'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
