"""A report from runs made up here: what the tables say, what the figures hold."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from lifelong import report
from lifelong.store.records import Run

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
ABOUT = {"status": "done", "note": "", "device": "cpu", "threads": 2, "torch": "2.14.1", "commit": "abc1234",
         "seconds": 3.0, "lanes": 2}


def a_run(strategy, first, second, seeds=2, about=(), logs=(), **spec):
    """Two tasks; after the first its accuracy is `first`, after the second they are `second`; seeds differ by .02."""
    one = np.array([[0.1, 0.1], [first, 0.0], second])
    accuracy = np.stack([one + 0.02 * seed for seed in range(seeds)])
    took = {"seconds": 3.0 + len(strategy)}
    return Run({**SPEC, "strategy": strategy, "seeds": seeds, **spec}, accuracy, {**ABOUT, **took, **dict(about)},
               dict(logs))


def titles(group):
    return [column.title for column in report.tables_of(group)[0].columns]


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

3 runs on 1 stream.

## split-mnist-v1 (scenario=class, tasks=2)

All runs: boundaries=True, mlp(hidden=(400, 400)), adam(lr=0.001), epochs=1, batch_size=128, dtype=float32.

### Summary

Highest average accuracy (without cumulative and joint): `er(capacity=500)`, 61.0 ± 12.7 %. No difference from it can \
be significant with so few seeds; at least 6 are needed.

Intervals are those of the differences; p-values are Holm-adjusted over the comparisons of a metric.

- `er(capacity=500)` has an average accuracy 20.0 points higher than `finetune` (95 % interval 20.0 to 20.0, 2 seeds). With 2 seeds the \
adjusted p cannot reach .05; about 7 seeds would be needed.
- `cumulative` has an average accuracy 45.0 points higher than `finetune` (95 % interval 45.0 to 45.0, 2 seeds). With 2 seeds the \
adjusted p cannot reach .05; about 7 seeds would be needed.
- `er(capacity=500)` forgets 40.0 points less than `finetune` (95 % interval 40.0 to 40.0, 2 seeds). With 2 seeds the \
adjusted p cannot reach .05; about 7 seeds would be needed.
- `cumulative` forgets 60.0 points less than `finetune` (95 % interval 60.0 to 60.0, 2 seeds). With 2 seeds the \
adjusted p cannot reach .05; about 7 seeds would be needed.

### Metrics

| strategy | average accuracy | average incremental accuracy | forgetting | backward transfer | learning accuracy \
| intransigence | seeds |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| `finetune` | 41.0 ± 12.7 | 61.0 ± 12.7 | 70.0 ± 0.0 | -70.0 ± 0.0 | **76.0 ± 12.7** | **15.0 ± 0.0** | 2 |
| `er(capacity=500)` | **61.0 ± 12.7** | **71.0 ± 12.7** | **30.0 ± 0.0** | **-30.0 ± 0.0** | 76.0 ± 12.7 | 15.0 ± 0.0 | 2 |
| `cumulative` | 86.0 ± 12.7 | 88.5 ± 12.7 | 10.0 ± 0.0 | -10.0 ± 0.0 | 91.0 ± 12.7 | – | 2 |

In percent; mean over seeds ± half width of its 95 % t interval. –: not measured, or not defined for this run. \
Forward transfer is not defined here, because a learner cannot predict unseen classes. The reference of intransigence \
is `cumulative` on the same seeds. Bold: the best mean, excluding cumulative and joint. No difference from the best can \
be significant with so few seeds; at least 6 are needed. a[t,k] is the accuracy on task k after task t of T; t = 0 is \
the untrained learner.

- average accuracy: (1/T) Σ\\_{k=1..T} a[T,k] (Lopez-Paz & Ranzato 2017, arXiv:1706.08840)
"""


def test_the_report_of_three_runs_reads_as_written_here():
    # Half widths: seeds differ by .02, so s / sqrt(2) = .01 and t(1 degree, .975) = 12.706: 12.7 points. Finetune:
    # average (.1 + .7) / 2 + .01; forgetting .8 - .1; learning (.8 + .7) / 2 + .01; cumulative learns at (.9 + .9) / 2.
    # For p = .05 a sign-flip test takes log2(2 m / .05) seeds after Holm over m: 5.3 for one, 6.3 for two.
    assert report.markdown(three()).startswith(GOLDEN)


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
    assert told.title == "split-mnist-v1 (scenario=class, tasks=2), task given at test time"
    assert told.labels == ("er(capacity=500)",)
    assert not told.unseen
    assert "forward transfer" in titles(told)
    assert asked.slug != told.slug


def test_runs_on_different_streams_are_not_compared():
    runs = [*three(), *three(stream_options={"tasks": 2, "scenario": "class", "examples": 9}), a_run("er", 1, [1, 1])]
    first, second = report.groups(runs)
    assert (len(first.runs), len(second.runs)) == (4, 3)
    assert first.slug != second.slug
    alike = report.groups([a_run("er", 1, [1, 1], stream=name) for name in ("./a.py:b", "./a_py:b", "./a py:b")])
    assert len({group.slug for group in alike}) == 3, "their files would be the same"


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


@pytest.mark.parametrize(("files", "shown"), [
    (["reports/x/starts/resnet.safetensors"], ["resnet.safetensors"]),
    (["a/x.safetensors", "b/y.safetensors"], ["x.safetensors", "y.safetensors"]),
    (["p/a/x.safetensors", "p/b/x.safetensors"], ["a/x.safetensors", "b/x.safetensors"]),
    (["p/a/x.safetensors", "q/a/x.safetensors", "a/y.safetensors"],
     ["p/a/x.safetensors", "q/a/x.safetensors", "y.safetensors"]),
    (["x.safetensors", "b/x.safetensors"], ["x.safetensors", "b/x.safetensors"]),
    (["/x.safetensors", "x.safetensors"], ["/x.safetensors", "x.safetensors"]),
    (["a'b/it's.safetensors"], ["it's.safetensors"]),
])
def test_a_starts_file_is_called_by_as_little_of_its_path_as_tells_it_from_others(files, shown):
    runs = [a_run(f"supervised(file={file!r}, length=10) + er", 0.8, [0.5, 0.7], stream=f"s{i % 2}-v1",
                  hyper={"strategy": [{"file": file}, {}]}) for i, file in enumerate(files)]
    labels = {group.runs[i].spec["strategy"]: label for group in report.groups(runs)
              for i, label in enumerate(group.labels)}
    assert [labels[run.spec["strategy"]] for run in runs] == [
        f"supervised(file={file!r}, length=10) + er" for file in shown]
    text = report.markdown(runs)
    for file, short in zip(files, shown, strict=True):
        assert text.count(f"file={file};") == 1, "whole in the settings, once"
        assert file == short or repr(file) not in text


def test_settings_that_differ_are_announced():
    assert "epochs=1, batch_size=128" in report.markdown([a_run("er", 1, [1, 1]), a_run("si", 1, [1, 1], epochs=5)])
    assert "unless a row says otherwise" in report.markdown([a_run("er", 1, [1, 1]), a_run("si", 1, [1, 1], epochs=5)])


def test_what_a_start_knew_before_the_first_task_is_said():
    run = a_run("oml(file='a.safetensors')", 0.8, [0.7, 0.7], 2)
    accuracy = run.accuracy.copy()
    accuracy[:, 0] = 0.75
    spec = dict(run.spec) | {"start": "0f"}
    text = report.markdown([dataclasses.replace(run, accuracy=accuracy, spec=spec), *three()])
    last = 100 * accuracy[:, -1].mean()
    assert (f"has an average accuracy of 75.0 % before the first task and {last:.1f} % after the last: training on the "
            f"stream changed it by {last - 75:+.1f} p") in text
    assert text.count("before the first task") == 1
    assert "before the first task" not in report.markdown([run, *three()])
    accuracy[:, 0] = accuracy[:, -1].mean() / 2 - 0.01
    assert "before the first task" not in report.markdown([dataclasses.replace(run, accuracy=accuracy, spec=spec)])


def test_a_diverged_run_is_shown_with_what_was_measured():
    text = report.markdown([*three(), a_diverged_run()])
    assert re.search(r"\| `ewc\(strength=1e9\)` \(diverged\) \| 42\.0 \(1/2\) \|", text)
    assert "diverged (loss is NaN in task 2); 1 of 2 seeds reached the end. After task 1, the last that every seed reached, the average" in text
    assert "`ewc(strength=1e9)` is not compared with `finetune` in forgetting: 1 of 2 seeds of a run were not" in text
    assert "Diverged (the tables show what was measured):\n\n- `ewc(strength=1e9)` on split-mnist-v1" in text
    assert text.count("about 7 seeds would") == 4, "two are compared with finetune in two metrics"


def test_a_run_of_which_nothing_was_measured_is_still_shown():
    run = a_diverged_run()
    run.accuracy[:] = np.nan
    assert "There is no task after which every seed was measured" in report.markdown([run])
    assert "`ewc(strength=1e9)` (diverged) | –" in report.markdown([run])


def test_one_seed_gives_means_alone_and_says_so():
    text = report.markdown(three(seeds=1))
    assert "| `finetune` | 40.0 | 60.0 |" in text
    assert "One seed gives no interval." in text
    assert "20.0 points higher than `finetune` (1 seed). One seed gives neither an interval nor a test." in text
    assert not re.search(r"\bnan\b", text)


def test_one_task_has_no_column_for_forgetting():
    run = Run({**SPEC, "strategy": "er", "stream_options": {"tasks": 1}}, np.full((2, 2, 1), 0.5), ABOUT)
    text = report.markdown([run])
    assert "| forgetting |" not in text
    assert "need two tasks" in text


def test_with_enough_seeds_a_p_value_is_given():
    # Eight seeds and a constant gain: p = 2 / 2^8 for each of two comparisons, times 2 for the first by Holm.
    text = report.markdown(three(seeds=8))
    assert "`er(capacity=500)` has an average accuracy 20.0 points higher than `finetune` (95 % interval 20.0 to 20.0, 8 seeds; p = 0.016)." in (
        text)
    assert "cannot be significant" not in text and "cannot reach" not in text


def test_runs_with_other_seeds_are_paired_on_those_they_share():
    runs = [a_run("finetune", 0.8, [0.1, 0.7], 8), a_run("er", 0.8, [0.5, 0.7], 3)]
    (found,) = report.comparisons(report.groups(runs)[0])
    assert (found.difference.n, found.difference.paired) == (3, True)
    assert found.difference.mean == pytest.approx(0.2)


def test_intransigence_needs_a_reference_on_the_same_seeds():
    runs = [a_run("er", 0.8, [0.5, 0.7], 8), a_run("joint", 0.9, [0.8, 0.9], 3)]
    assert "intransigence" not in titles(report.groups(runs)[0])
    runs = [a_run("er", 0.8, [0.5, 0.7], 3), a_run("joint", 0.9, [0.8, 0.9], 8)]
    text = report.markdown(runs)
    assert "The reference of intransigence is `joint` on the same seeds. It is trained on all tasks" in text
    assert "15.0 ± 0.0" in text


def test_a_small_interval_gets_a_second_decimal():
    run = a_run("er", 0.8, [0.5, 0.7], 3)
    run.accuracy[:] = run.accuracy[0] + np.array([0, 1e-4, 2e-4])[:, None, None]  # 100 * 1e-4 * 4.303 / sqrt(3)
    assert "| `er` | 60.01 ± 0.02 |" in report.markdown([run])


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
    return folder, report.write([*three(), a_diverged_run()], folder, other=["gem"])


def test_everything_written_is_named_and_nothing_else_is_left(written):
    folder, paths = written
    figures = {f"figures/split-mnist-v1-class-{name}.{kind}" for kind in ("svg", "pdf", "png")
               for name in ("curves", "forgetting", "tasks", "matrix", "transfer", "plane", "cost")}
    tables = {f"tables/split-mnist-v1-class-{name}.{kind}" for kind in ("tex", "csv")
              for name in ("metrics", "as-gem", "comparisons", "tasks", "settings", "provenance")}
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {str(path.relative_to(folder)) for path in paths} == found
    assert found == {"report.html", "report.md", "seeds.csv"} | figures | tables


def test_the_report_links_to_files_that_are_there(written):
    folder, _ = written
    links = re.findall(r"\(([^()\s]+\.(?:png|svg))\)", (folder / "report.md").read_text())
    assert len(links) == 14
    assert all((folder / link).stat().st_size > 1000 for link in links)


@pytest.mark.parametrize("name", ["curves", "tasks", "matrix", "transfer", "plane", "cost"])
def test_a_figure_holds_every_strategy_by_name(written, name):
    place = written[0] / "figures" / f"split-mnist-v1-class-{name}.svg"
    texts = " ".join("".join(ET.fromstring(place.read_text()).itertext()).split())
    for label in ("finetune", "er(capacity=500)", "cumulative", "ewc(strength=1e9)", "diverged"):
        assert label in texts
    assert place.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert place.with_suffix(".pdf").read_bytes()[:5] == b"%PDF-"


def test_the_same_runs_give_the_same_bytes(written, tmp_path):
    for path in report.write([*three(), a_diverged_run()], tmp_path, other=["gem"], only=["plane"]):
        assert path.name.startswith("report.") or path.read_bytes() == (
            written[0] / path.relative_to(tmp_path)).read_bytes(), path.name


def test_of_one_task_there_is_nothing_to_draw_over_tasks():
    accuracy = np.array([[[0.1], [0.8]], [[0.1], [0.7]]])
    runs = [Run({**SPEC, "strategy": name, "seeds": 2}, accuracy, dict(ABOUT), {}) for name in ("er", "ncm")]
    assert report.figures.drawable(report.groups(runs)[0]) == []
    assert "Figures" not in report.markdown(runs) and "75.0" in report.markdown(runs)


def test_of_a_start_from_a_file_only_what_was_used_is_shown():
    used = {"adapt": "head", "head": "zero", "length": 10.0, "power": 1.0, "quarter_turns": 1}
    shown = []
    for file in (None, "mine.safetensors"):
        hyper = {"strategy": [{"steps": 2000, "lr": 0.5, "file": file, "source": None, "model": None, "begin": None, **used}]}
        group, = report.groups([a_run("supervised", 0.8, [0.1, 0.7], hyper=hyper)])
        shown.append(report.tables.settings_table(group).rows[0][1].text[0])
    assert "steps=2000, lr=0.5" in shown[0]
    assert shown[1] == "file=mine.safetensors, adapt=head, head=zero, length=10.0, power=1.0, quarter_turns=1"


def test_what_was_tuned_is_in_the_settings_with_its_cost():
    tuned = {"file": "t.json", "chosen": {"strength": 10.0, "optimizer.lr": 0.1}, "cost_s": 1234.4, "settings": 6,
             "seeds": [1000000, 1000002], "criterion": "what it was measured by"}
    text = report.markdown([a_run("ewc(strength=10)", 0.8, [0.5, 0.7], about={"tuned": tuned}), *three()])
    assert "| `strength=10.0, optimizer.lr=0.1`, best of 6 settings on seeds 1000000 to 1000002, 1,234 s |" in text
    assert "separated by semicolons. Tuned by: what it was measured by." in text
    assert "Tuned" not in report.markdown(three()) and "| tuned |" not in report.markdown(three())


def test_seeds_are_written_as_plain_numbers(written):
    with (written[0] / "seeds.csv").open(newline="") as file:
        values = [line for line in csv.DictReader(file) if line["label"].startswith("ewc")]
    assert [(line["seed"], line["value"]) for line in values[:2]] == [("0", ""), ("1", str(0.42))]


def test_a_table_as_csv_has_the_numbers_behind_its_cells(written):
    with (written[0] / "tables" / "split-mnist-v1-class-metrics.csv").open(newline="") as file:
        finetune, *_, cumulative = csv.DictReader(file)
    assert float(finetune["average accuracy mean"]) == pytest.approx(0.41)
    assert float(finetune["average accuracy half width"]) == pytest.approx(12.7062 * 0.01, rel=1e-5)
    assert (finetune["forgetting seeds measured"], cumulative["intransigence mean"]) == ("2", "")


def test_of_many_tasks_ten_are_drawn_the_first_and_last_among_them():
    from lifelong.report import canvas, figures

    run = Run({**SPEC, "strategy": "er"}, np.random.default_rng(0).random((2, 24, 23)), ABOUT)
    found = report.groups([run])
    figure = figures.tasks(found[0], canvas.looks(found))
    titles = [text.get_text() for text in figure.axes[0].texts if text.get_text().startswith("task ")]
    assert len(titles) == 10
    assert (titles[0], titles[-1]) == ("task 1", "task 23")


def test_a_legend_with_one_tall_column_stands_below_the_panels():
    from lifelong.report import canvas, figures

    long = [f"er(capacity={n}, memory='{'balanced by class, ' * 5}')" for n in range(6)]
    found = report.groups([a_run(name, 0.8, [0.5, 0.7]) for name in (*"abcdef", *long)])
    figure = figures.tasks(found[0], canvas.looks(found))
    figure.draw_without_rendering()
    panels = min(text.get_window_extent().y0 for text in figure.axes[0].texts)
    assert figure.legends[0].get_window_extent().y1 <= panels


def test_no_two_of_many_strategies_look_alike_and_each_looks_the_same_everywhere():
    from lifelong.report import canvas, figures

    runs = [a_run(f"er(capacity={n})", 0.8, [0.5, 0.7]) for n in range(40)]
    other = [a_run(f"er(capacity={n})", 0.8, [0.5, 0.7], stream="split-digits-v1") for n in (7, 3)]
    found = canvas.looks(report.groups(runs))
    assert len({str(look) for look in found.values()}) == 40
    both = canvas.looks(report.groups([*other, *runs]))
    assert both["er(capacity=7)"].colour == canvas.COLOURS[0], "colours go by what is met first"
    drawn = [figures.curves(group, both).axes[0].lines for group in report.groups([*other, *runs[:10]])]
    colours = [{line.get_label(): line.get_color() for line in lines} for lines in drawn]
    assert colours[0]["er(capacity=3)"] == colours[1]["er(capacity=3)"] == both["er(capacity=3)"].colour


def test_of_more_strategies_than_can_be_told_apart_the_best_and_the_bounds_are_drawn():
    from lifelong.report import figures

    runs = [a_run("finetune", 0.1, [0.0, 0.1]), *(a_run(f"er(capacity={n})", 0.8, [n / 100, 0.7]) for n in range(40))]
    (group,) = report.groups(runs)
    drawn = [group.labels[i] for i in figures.shown(group)]
    assert drawn == ["finetune", *(f"er(capacity={n})" for n in range(17, 40))]
    assert "24 of 41 strategies are shown: the bounds and those with the highest average" in "".join(
        piece for block in report.document(runs) for piece in getattr(block, "caption", ()))


def test_labels_beside_each_other_do_not_overlap_and_move_little():
    from lifelong.report.canvas import apart

    assert apart([0.2, 0.5, 0.9], [0.1, 0.1, 0.1]) == pytest.approx([0.2, 0.5, 0.9])
    assert apart([0.5, 0.5, 0.5], [0.1, 0.1, 0.1]) == pytest.approx([0.4, 0.5, 0.6])
    assert apart([0.99, 1.0], [0.1, 0.1]) == pytest.approx([0.85, 0.95])
    assert apart([], []) == []


def test_a_panel_of_cost_that_compares_nothing_is_left_out():
    from lifelong.report import canvas, captions, figures

    def panels(runs):
        (group,) = report.groups(runs)
        return [kind.title for kind in figures.compared(group)]

    def two(first=(), second=(), logs=((), ()), hyper=({}, {})):
        return [a_run(name, 0.8, [0.5, 0.7], about={"seconds": 3.0, **dict(about)}, logs=log,
                      hyper={"strategy": [own]})
                for name, about, log, own in zip(("er", "si"), (first, second), logs, hyper, strict=True)]

    assert "cost" not in figures.drawable(report.groups(two())[0]), "as long, and nothing stored"
    (group,) = report.groups(two({"seconds": 4.0}))
    assert [axes.get_xlabel() for axes in figures.cost(group, canvas.looks([group])).axes] == ["seconds per seed"]
    said = captions.caption(group, "cost")
    assert "seconds per seed: wall-clock" in said and "stored examples:" not in said and "steps per second" not in said
    steps = {"steps": np.full((2, 2), 40)}
    assert panels(two({"seconds": 4.0}, logs=(steps, {}))) == ["seconds per seed"], "one alone has steps"
    assert panels(two({"seconds": 4.0}, logs=(steps, steps))) == ["seconds per seed", "steps per second"]
    assert panels(two(hyper=({"capacity": 10}, {"capacity": 10}))) == []
    assert panels(two(hyper=({"capacity": 10}, {}))) == ["stored examples"]
    assert panels(two({"state_bytes": 10}, {"state_bytes": 20})) == ["state (MB)"]
    dead = two({"seconds": 4.0})
    dead[0].accuracy[:] = np.nan
    assert panels(dead) == [], "a run of which nothing was measured is no point"


@pytest.mark.parametrize("word", ["supervised(file='resnet28.safetensors', length=10) + er(capacity=200, replay=32) + "
                                  "ewc(strength=30, mode='online', decay=0.9)", "./mine/" + 40 * "folder/" + "x.py:y"])
def test_labels_of_any_length_stay_inside_every_figure_and_differ(word):
    from matplotlib.text import Text

    from lifelong.report import canvas, figures

    labels = [f"{word} + {10 * 'more(a=1) + '}si(strength={i})" for i in range(3)]
    curve = {"curve": np.full((2, 2, 2), 0.5), "curve_step": np.array([[0, 5], [1, 5]]), "steps": np.full((2, 2), 9)}
    (group,) = report.groups([a_run(label, 0.8, [0.5, 0.7], logs=curve, stream="./" + 30 * "stream" + ".py:mine",
                                    about={"seconds": 3.0 + i}) for i, label in enumerate(labels)])
    with canvas.styled():
        for name in figures.drawable(group):
            figure = figures.FIGURES[name](group, canvas.looks([group]))
            figure.draw_without_rendering()
            ticks = [one for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for one in axis.get_ticklabels()]
            texts = [text for text in figure.findobj(Text) if text.get_text().strip() and text not in ticks]
            for text in texts:
                (left, bottom), (right, top) = text.get_window_extent().get_points()
                assert left >= -1 and bottom >= -1, (name, text)
                assert right <= figure.bbox.width + 1 and top <= figure.bbox.height + 1, (name, text)
            said = {" ".join(text.get_text().split()) for text in [*texts, *ticks]}
            assert all(any(f"si(strength={i})" in one for one in said) for i in range(3)), (name, said)
            assert any(one.endswith(" ...") and "streamstream" in one for one in said), name
            assert all(axes.get_position().width > 0.1 for axes in figure.axes if axes.get_xlabel()), name


def test_that_a_run_diverged_is_said_beside_however_long_a_label():
    from lifelong.report import canvas

    (group,) = report.groups([a_diverged_run(strategy="more(a=1) + " * 20 + "er"), a_diverged_run()])
    assert canvas.names(group, [0, 1]) == [3 * "more(a=1) + more(a=1) +\n  " + "more(a=1) + more(a=1) + ...\n  (×\xa0diverged)",
                                           "ewc(strength=1e9) (×\xa0diverged)"]


def test_a_word_too_long_for_a_line_goes_on_after_a_bracket_or_a_slash():
    from lifelong.report import canvas

    (group,) = report.groups([a_run("supervised(file='resnet28.safetensors') + er", 0.8, [0.5, 0.7])])
    assert canvas.names(group, [0]) == ["supervised(\n  file='resnet28.safetensors')\n  + er"]
    (group,) = report.groups([a_run("er(capacity=200)", 0.8, [0.5, 0.7])])
    assert canvas.names(group, [0]) == ["er(capacity=200)"]


@pytest.mark.parametrize("tails", [
    ("model='oml_net(width=64)'), sgd", "model='oml_net(width=64)') + er(capacity=200)", "model='oml_net(width=64)') + joint"),
    ("x" * 200 + "1", "x" * 200 + "2"), ("a/" * 90 + "b", "a/" * 90 + "c"), ("a b " * 50 + "c", "a b " * 50 + "d"),
])
def test_labels_of_one_beginning_are_cut_to_different_names(tails):
    from lifelong.report import canvas

    runs = [a_run(f"supervised(source='omniglot(classes=763)', {tail}", 0.8, [0.5, 0.7]) for tail in tails]
    (group,) = report.groups(runs)
    found = canvas.names(group, range(len(runs)))
    assert len(set(found)) == len(runs)
    assert all(name.count("\n") < 4 and max(map(len, name.split("\n"))) <= 30 for name in found)
    assert all(name.startswith("supervised(") and "..." in name for name in found)


def test_accuracy_inside_tasks_is_drawn_where_it_was_measured():
    from lifelong.report import canvas, figures

    curve = np.array([[0.2, 0.4], [0.5, 0.1], [0.3, 0.6]])  # after steps 2 and 4 of task 1, and step 2 of task 2
    logs = {"curve": np.stack([curve, curve]), "curve_step": np.array([[0, 2], [0, 4], [1, 2]]),
            "steps": np.array([[5, 4], [5, 4]])}
    runs = [a_run("er", 0.8, [0.5, 0.7], logs=logs, eval_every=2), a_run("finetune", 0.8, [0.1, 0.7])]
    (group,) = report.groups(runs)
    at, first = figures.inside(group, 1, True)
    np.testing.assert_allclose(at, [0.4, 0.8, 1, 1.5, 2])
    np.testing.assert_allclose(first, [[0.2, 0.5, 0.8, 0.3, 0.5], [0.2, 0.5, 0.82, 0.3, 0.52]])
    at, before = figures.inside(group, 1, False)
    np.testing.assert_allclose(at, [1.5, 2])
    np.testing.assert_allclose(before[0], [0.3, 0.5])
    assert "within" in figures.drawable(group) and "within" not in figures.drawable(report.groups(three())[0])
    svg = figures.draw("within", group, canvas.looks([group]))["svg"].decode()
    assert "er" in "".join(ET.fromstring(svg).itertext()) and "finetune" not in "".join(ET.fromstring(svg).itertext())


def test_a_report_needs_no_torch_and_leaves_the_users_matplotlib_alone(tmp_path):
    code = """
import matplotlib, sys
matplotlib.rcParams['font.size'] = 31
settings = lambda: {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != 'backend'}
before = settings()  # reading the backend would choose one
sys.path.insert(0, TESTS)
import test_report
from lifelong.report import canvas, figures
found = test_report.report.groups(test_report.three())
for name in ('matrix',):
    figures.draw(name, found[0], canvas.looks(found))
assert settings() == before
assert 'matplotlib.pyplot' not in sys.modules
test_report.report.write(test_report.three(), 'report', only=['plane'])
assert 'torch' not in sys.modules, 'a report is made from saved runs alone'
""".replace("TESTS", repr(str(Path(__file__).parent)))
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=tmp_path)
    assert (tmp_path / "report" / "report.html").exists()


def test_importing_the_report_loads_neither_torch_nor_matplotlib():
    code = "import sys, lifelong.report; print({'torch', 'matplotlib', 'pandas', 'scipy'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
