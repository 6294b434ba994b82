"""Few-shot evaluations in a report: which rows, which numbers, what is chosen and what is damaged."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, refused

from lifelong import report, store
from lifelong.report.document import plain, table_csv
from lifelong.report.fewshot import start_table

EVALUATION = {"classes": None, "part": "evaluation", "turned": False}


def record(start: str = "maml(steps=2000)", way: int = 5, shots: int = 1, **more: Any) -> dict[str, Any]:
    """An evaluation as `lifelong fewshot` keeps it."""
    made = {"format": store.EVALUATIONS, "start": start, "sha256": "ab" * 32, "source": "omniglot-v1",
            "source_options": EVALUATION, "way": way, "shots": shots, "queries": 15, "episodes": 1000, "seed": 0,
            "overlap": 0, "sources": {}, "accuracy": 0.90587, "half_width": 0.00466,
            "transductive": {"accuracy": 0.9184, "half_width": 0.00424}, "interval": "95 % t over episodes",
            "answer": "its own", "learned_from": "omniglot-v1", "learned_with": {"part": "background"},
            "model": "conv4(width=64)", "hyper": {"steps": 2000, "lr": 0.002}, "steps": 2000, "begun": None,
            "learning_seed": 0, "learning_seconds": 1852.0, "learning_precision": "float32", "learning_version": "0.1.0",
            "learning_commit": "1cbbd01205", "version": "0.1.0", "commit": "10d92c50ba", "torch": "2.14.1",
            "device": "cpu", "processor": "x86_64", "threads": 1, "seconds": 99.0, "finished": "2026-11-20T10:00:00Z"}
    return made | more


def cells(table: Any) -> list[list[str]]:
    return [[plain(one.text) for one in row] for row in table.rows]


def test_a_row_for_each_evaluation_by_way_shots_and_start() -> None:
    made = [record("reptile(steps=100)", transductive=None, episodes=200), record("reptile(steps=30)"), record(shots=5),
            record(way=20), record(), record(queries=1)]
    (table,) = report.result_tables(made)
    assert [row[:4] for row in cells(table)] == [
        ["maml(steps=2000)", "5", "1", "1"], ["maml(steps=2000)", "5", "1", "15"], ["reptile(steps=30)", "5", "1", "15"],
        ["reptile(steps=100)", "5", "1", "15"], ["maml(steps=2000)", "5", "5", "15"], ["maml(steps=2000)", "20", "1", "15"]]
    assert plain(table.caption) == "Classes from omniglot-v1(part='evaluation')."
    assert cells(table)[3][4:] == ["90.59 ± 0.47", "–", "200"]
    assert cells(table)[1][4:] == ["90.59 ± 0.47", "91.84 ± 0.42", "1,000"]
    line = list(csv.DictReader(io.StringIO(table_csv(table))))[1]
    assert (float(line["each query by itself mean"]), float(line["transductive half width"])) == (0.90587, 0.00424)
    assert (line["way"], line["shots"], line["episodes"]) == ("5", "1", "1000")


def test_another_source_has_a_table_of_its_own_and_other_seeds_a_column() -> None:
    other = record(source_options={**EVALUATION, "turned": True})
    tables = report.result_tables([record(), other, record(source="glyphs-v1", source_options={})])
    assert [plain(table.caption) for table in tables] == [
        "Classes from glyphs-v1.", "Classes from omniglot-v1(part='evaluation').",
        "Classes from omniglot-v1(part='evaluation', turned=True)."]
    assert len({table.name for table in tables}) == 3
    assert [column.title for column in tables[0].columns][-1] == "episodes"
    (table,) = report.result_tables([record(), record(seed=1)])
    assert [column.title for column in table.columns][-1] == "seed" and [row[-1] for row in cells(table)] == ["0", "1"]


@pytest.mark.parametrize(("other", "said"), [
    ({"learned_with": {"part": "background", "turned": True}}, "learned from omniglot-v1(part='background', turned=True)"),
    ({"model": "conv4(width=32)"}, "conv4(width=32)"), ({"learning_precision": "bfloat16"}, "bfloat16"),
    ({"learning_seed": 3}, "seed 3"), ({"begun": {"strategy": "supervised"}}, "begun with supervised"), ({}, "weights cdcdcd"),
])
def test_starts_that_are_called_the_same_are_told_apart(other: dict[str, Any], said: str) -> None:
    made = [record(), record(way=20), record(sha256="cd" * 32, **other)]
    names = [row["label"] for row in report.fewshot_rows(made)]
    assert len(set(names)) == 2 and any(name.startswith(f"maml(steps=2000), {said}") for name in names)
    assert max(map(names.count, names)) == 2
    assert len(start_table(made).rows) == 2, "one start in two evaluations is one row"


def test_what_a_start_was_learned_with_is_said() -> None:
    (row,) = cells(start_table([record(), record(way=20)]))
    assert row[:7] == ["maml(steps=2000)", "omniglot-v1(part='background')", "2,000", "1,852", "float32", "0", "1cbbd01205"]
    assert row[-2:] == ["conv4(width=64)", "maml(steps=2000, lr=0.002)"]


def test_the_section_is_in_page_and_text_and_says_what_is_no_few_shot_result() -> None:
    blocks = report.document([], evaluations=[record(), record("<b>", overlap=4, transductive=None)])
    page, text = report.page(blocks, {}), report.markdown([], evaluations=[record()])
    assert "<h2" in page and ">Few-shot</h2>" in page and "<b>" not in page
    assert "learned on 4 of these classes: not a few-shot result" in page and "2 few-shot evaluations; the last" in page
    assert "| `maml(steps=2000)` | 5 | 1 | 15 | 90.59 ± 0.47 | 91.84 ± 0.42 | 1,000 |" in text
    assert "There are no runs" not in text and "Few-shot" not in report.markdown([])


# ---- in a store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for one in (record(), record("protonet", finished="2026-11-21T10:00:00Z"), record("protonet", source="glyphs-v1")):
        store.keep_evaluation(tmp_path / "runs", one)
    return tmp_path / "runs"


def test_a_file_gives_back_what_was_kept_and_is_named_by_what_was_asked(tmp_path: Path) -> None:
    file = store.keep_evaluation(tmp_path, record())
    assert store.load_evaluation(file) == json.loads(json.dumps(record()))
    assert file.parent == tmp_path / "fewshot" and file.name.startswith("omniglot-v1-maml-steps-2000--")
    assert store.keep_evaluation(tmp_path, record(accuracy=0.5)) == file, "the result is no part of the question"
    for name, value in {"start": "x", "sha256": "x", "source": "x", "source_options": {}, "way": 2, "shots": 2, "queries": 2,
                        "episodes": 2, "seed": 2, "overlap": 2, "sources": {"x": "y"}}.items():
        assert store.evaluation_file(tmp_path, record() | {name: value}) != file, name
    store.keep_evaluation(tmp_path, record(way=20))
    assert len(store.evaluations(tmp_path)[0]) == 2


@pytest.mark.parametrize(("asked", "found"), [
    ({}, ["maml(steps=2000)", "protonet", "protonet"]), ({"streams": ["glyphs"]}, ["protonet"]),
    ({"streams": ["omniglot-v1"]}, ["maml(steps=2000)", "protonet"]), ({"strategies": ["maml*"]}, ["maml(steps=2000)"]),
    ({"since": "2026-11-21"}, ["protonet"]), ({"streams": ["split-*"]}, []),
])
def test_evaluations_are_chosen_by_source_start_and_date(root: Path, asked: dict[str, Any], found: list[str]) -> None:
    chosen = report.select([root], **asked)
    assert sorted(one["start"] for one in chosen.evaluations) == found and not chosen.damaged
    assert chosen.left_out == 3 - len(found)


def test_the_same_result_in_two_stores_counts_once_and_another_stays_beside_it(root: Path, tmp_path: Path) -> None:
    store.keep_evaluation(tmp_path / "same", record(finished="2026-11-22T10:00:00Z"))
    store.keep_evaluation(tmp_path / "other", record(accuracy=0.8))
    assert len(report.select([root, tmp_path / "same"]).evaluations) == 3
    assert len(report.select([root, tmp_path / "other"]).evaluations) == 4


def test_a_store_of_evaluations_alone_makes_a_report(root: Path, lifelong: Command, tmp_path: Path) -> None:
    said = lifelong("report")
    assert said.code == 0 and not said.err
    assert "Classes from omniglot-v1" in said.out and "91.84 ± 0.42" in said.out
    assert {path.name for path in (root / "report").iterdir()} == {"report.html", "report.md", "tables"}
    assert {path.name for path in (root / "report" / "tables").glob("*.tex")} == {
        f"few-shot-{name}.tex" for name in ("omniglot-v1", "glyphs-v1", "starts", "provenance")}
    rows = json.loads(lifelong("report", "--json").out)
    assert [(row["kind"], row["label"], row["accuracy"]) for row in rows] == [
        ("few-shot", "protonet", 0.90587), ("few-shot", "maml(steps=2000)", 0.90587), ("few-shot", "protonet", 0.90587)]
    refused(lifelong("report", "--strategy", "oml"), "no finished run or few-shot evaluation by oml")
    refused(lifelong("report", "--reference", "er"), "the report has no runs")


@pytest.mark.parametrize("damage", ["a digit", "empty", "rubbish", "a list", "another's name", "format"])
def test_a_damaged_file_is_named_skipped_and_left_byte_for_byte(damage: str, root: Path, lifelong: Command) -> None:
    (file,) = root.glob("fewshot/*maml*")
    if damage == "another's name":
        file = file.rename(file.with_name(f"{file.stem[:-16]}{'0' * 16}.json"))
    elif damage == "format":
        file.unlink()
        file = store.keep_evaluation(root, record(format=0))
    else:
        file.write_text({"a digit": file.read_text().replace("0.90587", "0.91587"), "empty": "", "rubbish": "\0{",
                         "a list": "[]"}[damage])
    before = file.read_bytes()
    said = lifelong("report", "--json")
    assert said.code == 3 and file.name in said.err and len(said.err.splitlines()) == 1
    assert [row["label"] for row in json.loads(said.out)] == ["protonet", "protonet"]
    assert file.read_bytes() == before
    blocks = report.document((), damaged=report.select([root]).damaged)
    assert file.name in report.page(blocks, {}), "listed, not hidden"


def test_reading_evaluations_needs_no_torch(root: Path) -> None:
    code = ("import sys; from pathlib import Path; from lifelong import report; found = report.select([Path('.')]); "
            "report.page(report.document(found.runs, evaluations=found.evaluations), {}); "
            "print(len(found.evaluations), {'torch', 'matplotlib'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"3 set\(\)", done.stdout.strip())
