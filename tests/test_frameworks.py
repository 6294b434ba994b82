"""Other frameworks' metrics on one matrix worked by hand; Avalanche's own classes are asked in test_avalanche.py."""

from __future__ import annotations

import numpy as np
import pytest

from lifelong import metrics
from lifelong.report.frameworks import FRAMEWORKS, framework

# Rows: untrained, after task 1, 2, 3, 4. Columns: tasks 1 to 4.
A = np.array([
    [0.1, 0.2, 0.3, 0.4],
    [0.9, 0.3, 0.2, 0.1],
    [0.6, 0.8, 0.5, 0.2],
    [0.4, 0.5, 0.7, 0.6],
    [0.5, 0.9, 0.3, 1.0],
])
FINAL = (0.5 + 0.9 + 0.3 + 1.0) / 4
CHANGES = (0.5 - 0.9, 0.9 - 0.8, 0.3 - 0.7)  # since each was learned
AHEAD = (0.3 - 0.2, 0.5 - 0.3, 0.6 - 0.4)
WORKED = {
    "gem": {"Final Accuracy": FINAL, "Backward": sum(CHANGES) / 4, "Forward": sum(AHEAD) / 4},
    "avalanche": {"Top1_Acc_Stream": FINAL, "StreamBWT": sum(CHANGES) / 3, "StreamForgetting": -sum(CHANGES) / 3,
                  "StreamForwardTransfer": sum(AHEAD) / 3},
    # The best of a column from the row before the task was learned on, the last among them: .9, .9, .7.
    "mammoth": {"accuracy": FINAL, "bwt": sum(CHANGES) / 3, "fwt": sum(AHEAD) / 3,
                "forgetting": ((0.9 - 0.5) + (0.9 - 0.9) + (0.7 - 0.3)) / 3},
    "continuum": {
        "accuracy": FINAL,
        "average_incremental_accuracy": (0.9 + (0.6 + 0.8) / 2 + (0.4 + 0.5 + 0.7) / 3 + FINAL) / 4,
        "accuracy_A": (0.9 + 0.6 + 0.8 + 0.4 + 0.5 + 0.7 + 0.5 + 0.9 + 0.3 + 1.0) / 10,
        # Rows 3 and 4, the task just before left out: task 1 after 3; tasks 1 and 2 after 4.
        "backward_transfer": ((0.4 - 0.9) + (0.5 - 0.9) + (0.9 - 0.8)) / 6,
        "forward_transfer": (0.6 + 0.4 + 0.5 + 0.5 + 0.9 + 0.3) / 6,
        # Tasks 1 and 2, the best of rows 1 and 2: .9 and .8.
        "forgetting": ((0.9 - 0.5) + (0.8 - 0.9)) / 3,
    },
}


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_every_metric_gives_the_number_worked_by_hand(name):
    found = {one.name: float(one.metric(A)) for one in framework(name).metrics}
    assert found == pytest.approx(WORKED[name])


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_seeds_do_not_mix_and_nan_stays_where_it_is(name):
    several = np.stack([A, A / 2, A])
    several[2, 3:] = np.nan
    for one in framework(name).metrics:
        found = one.metric(several)
        assert found[:2] == pytest.approx([float(one.metric(A)), float(one.metric(A / 2))])
        assert np.isnan(found[2]), one.name


def test_a_best_before_the_task_was_learned_counts_in_mammoth_by_one_row():
    a = A.copy()
    a[1, 2] = 0.95  # two rows before task 3 is learned: not tested there
    assert dict(as_mammoth(a))["forgetting"] == pytest.approx(WORKED["mammoth"]["forgetting"])
    a[2, 2] = 0.95  # one row before
    assert dict(as_mammoth(a))["forgetting"] == pytest.approx(((0.9 - 0.5) + 0 + (0.95 - 0.3)) / 3)


def as_mammoth(a):
    return [(one.name, float(one.metric(a))) for one in framework("mammoth").metrics]


def test_of_one_task_nothing_is_made_up():
    for name in FRAMEWORKS:
        for one in framework(name).metrics:
            value = float(one.metric(np.array([[0.1], [0.7]])))
            assert value == pytest.approx(0.7) or value == 0 or np.isnan(value), one.name


def test_each_differs_from_ours_where_it_says_so():
    ours = metrics.forgetting(A)  # tasks 1, 2, 3: best of rows 1 to 3, .9, .8, .7
    assert float(ours) == pytest.approx(((0.9 - 0.5) + (0.8 - 0.9) + (0.7 - 0.3)) / 3)
    assert WORKED["avalanche"]["StreamForgetting"] == pytest.approx(ours), "here every task was best at once"
    assert WORKED["mammoth"]["forgetting"] > ours > WORKED["continuum"]["forgetting"]


def test_a_framework_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match=r"gem, avalanche, mammoth, continuum; got 'sequoia'"):
        framework("sequoia")
