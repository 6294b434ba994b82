"""Which runs a report is of, and what is said of those that are not whole."""

from __future__ import annotations

import pytest
from test_report import a_run

from lifelong import report, store
from lifelong.report.document import plain
from lifelong.report.selection import select


@pytest.fixture
def root(tmp_path):
    for strategy, stream, at in (("er", "split-mnist-v1", "2026-11-19T10:00:00Z"),
                                 ("er + ewc", "split-mnist-v1", "2026-11-21T10:00:00Z"),
                                 ("./gone.py:mine", "rotated-digits-v2", "2026-11-20T10:00:00Z")):
        store.save(tmp_path, a_run(strategy, 0.8, [0.5, 0.7], stream=stream, about={"finished": at}))
    return tmp_path


def names(found):
    return sorted(run.spec["strategy"] for run in found.runs)


@pytest.mark.parametrize(("asked", "found"), [
    ({}, ["./gone.py:mine", "er", "er + ewc"]),
    ({"streams": ["split-mnist"]}, ["er", "er + ewc"]),
    ({"streams": ["split-mnist-v1", "rotated-*"]}, ["./gone.py:mine", "er", "er + ewc"]),
    ({"streams": ["split"]}, []),
    ({"strategies": ["er"]}, ["er"]),
    ({"strategies": ["er*"]}, ["er", "er + ewc"]),
    ({"strategies": ["*ewc*", "./gone.py:mine"]}, ["./gone.py:mine", "er + ewc"]),
    ({"since": "2026-11-20"}, ["./gone.py:mine", "er + ewc"]),
    ({"since": "2026-11-20T12:00+02:00"}, ["./gone.py:mine", "er + ewc"]),
    ({"since": "2026-11-20T12:00", "strategies": ["er"]}, []),
])
def test_runs_are_chosen_by_stream_strategy_and_date(root, asked, found):
    chosen = select([root], **asked)
    assert names(chosen) == found
    assert chosen.left_out == 3 - len(found)
    assert not chosen.damaged and not chosen.unfinished


def test_a_pattern_takes_brackets_of_names_as_they_are(tmp_path):
    store.save(tmp_path, a_run("er(hidden=[1,2])", 0.8, [0.5, 0.7]))
    assert names(select([tmp_path], strategies=["er(hidden=[1,2])"])) == ["er(hidden=[1,2])"]


def test_a_single_run_and_the_same_run_in_two_stores_count_once(root, tmp_path):
    (one,) = root.glob("*er--*")
    other = tmp_path / "other"
    store.save(other, store.load(one))
    assert names(select([one])) == ["er"]
    assert names(select([root, other, one])) == ["./gone.py:mine", "er", "er + ewc"]


def test_equal_specs_with_other_results_stay_two_runs(root, tmp_path):
    other = tmp_path / "other"
    store.save(other, a_run("er", 0.7, [0.4, 0.6]))
    (group,) = report.groups(select([root, other], strategies=["er"]).runs)
    assert group.labels == ("er, run 1", "er, run 2")


def test_what_is_not_whole_is_listed_and_not_hidden(root):
    (bad,) = root.glob("*er-ewc*")
    (bad / "accuracy.npz").write_bytes(b"rubbish")
    spec = {"stream": "split-mnist-v1", "strategy": "si", "seeds": 2}
    with store.Workshop(root, [spec]).open() as shop:
        shop.save({"step": 1})
    failed = store.folder(root, {"stream": "split-mnist-v1", "strategy": "mas"})
    failed.mkdir()
    (failed / "error.txt").write_text("Traceback\nRuntimeError: <b>no idea</b>\n")
    found = select([root])
    assert names(found) == ["./gone.py:mine", "er"]
    assert len(found.damaged) == 1 and bad.name in found.damaged[0]
    begun, error = map(plain, found.unfinished)
    assert begun.startswith("si on split-mnist-v1 was begun and is not finished")
    assert error == f"{failed.name} failed: RuntimeError: <b>no idea</b>"
    assert not select([root], strategies=["er"]).unfinished[:-1], "nobody asked for si"
    blocks = report.document(found.runs, damaged=found.damaged, unfinished=found.unfinished, left_out=1)
    text = report.page(blocks, {})
    assert "Incomplete and omitted runs" in text and "Finished but not selected: 1." in text
    assert "&lt;b&gt;no idea" in text and bad.name in text
    assert [plain(one) for one in select([failed]).unfinished] == [f"{failed.name} has no result"]
    assert select([bad]).damaged


def test_a_place_that_is_none_and_a_date_that_is_none_are_refused(root):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere.*--stream"):
        select([root / "nowhere"])
    with pytest.raises(ValueError, match=r"^since must be a date.*'soon'"):
        select([root], since="soon")


def test_nothing_at_all_makes_a_page_that_says_so():
    assert "There are no runs to report." in report.page(report.document([]), {})
