"""Every metric against numbers worked by hand, and what must hold for any accuracy array."""

from __future__ import annotations

import subprocess
import sys
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lifelong import metrics

# Rows: untrained, after task 1, 2, 3. Columns: tasks 1, 2, 3.
A = np.array(
    [
        [0.1, 0.2, 0.3],
        [0.9, 0.3, 0.2],
        [0.6, 0.8, 0.5],
        [0.5, 0.9, 0.7],
    ]
)
REFERENCE = np.array(
    [
        [0.1, 0.2, 0.3],
        [0.9, 0.0, 0.0],
        [0.9, 0.9, 0.0],
        [0.9, 0.9, 0.9],
    ]
)
ONE_ARGUMENT = [
    "average_accuracy",
    "average_incremental_accuracy",
    "forgetting",
    "backward_transfer",
    "forward_transfer",
    "learning_accuracy",
]
WORKED = {
    "average_accuracy": (0.5 + 0.9 + 0.7) / 3,
    "average_incremental_accuracy": (0.9 + (0.6 + 0.8) / 2 + (0.5 + 0.9 + 0.7) / 3) / 3,
    "forgetting": ((0.9 - 0.5) + (0.8 - 0.9)) / 2,  # task 2 improved: the last row is not among the earlier ones
    "backward_transfer": ((0.5 - 0.9) + (0.9 - 0.8)) / 2,
    "forward_transfer": ((0.3 - 0.2) + (0.5 - 0.3)) / 2,
    "learning_accuracy": (0.9 + 0.8 + 0.7) / 3,
}

several = st.integers(1, 6).flatmap(lambda t: arrays(np.float64, (4, t + 1, t), elements=st.floats(0, 1)))


@pytest.mark.parametrize("name", ONE_ARGUMENT)
def test_a_metric_gives_the_number_worked_by_hand(name):
    assert getattr(metrics, name)(A) == pytest.approx(WORKED[name])


def test_intransigence_is_the_mean_shortfall_on_new_tasks():
    # (0.9 - 0.9) + (0.9 - 0.8) + (0.9 - 0.7), over 3 tasks
    assert metrics.intransigence(A, REFERENCE) == pytest.approx(0.3 / 3)


def test_the_curve_averages_the_tasks_seen_so_far():
    np.testing.assert_allclose(metrics.average_curve(A), [0.9, 0.7, 0.7])


def test_forgetting_counts_a_best_reached_before_the_task_was_learned():
    # The paper's maximum runs over all earlier rows: 0.95 before task 2 is learned, 0.8 right after.
    a = A.copy()
    a[1, 1] = 0.95
    assert metrics.forgetting(a) == pytest.approx(((0.9 - 0.5) + (0.95 - 0.9)) / 2)


def test_forgetting_leaves_out_the_untrained_learner():
    a = A.copy()
    a[0] = 1.0
    assert metrics.forgetting(a) == metrics.forgetting(A)


def test_every_metric_has_its_definition():
    assert set(metrics.definitions) == {*ONE_ARGUMENT, "intransigence"}


@pytest.mark.parametrize("name", ["forgetting", "backward_transfer", "forward_transfer"])
def test_one_task_can_be_neither_forgotten_nor_transferred_to(name):
    result = getattr(metrics, name)(np.full((3, 2, 1), 0.5))
    assert result.shape == (3,)
    assert np.isnan(result).all()


def test_the_average_so_far_weighs_tasks_by_their_sizes():
    a = np.full((4, 3), np.nan)
    a[1, 0], a[2, :2], a[3] = 0.8, [0.2, 0.5], [0.1, 0.4, 0.9]
    np.testing.assert_allclose(metrics.average_curve(a, [1, 2, 1]), [0.8, (0.2 + 2 * 0.5) / 3, (0.1 + 0.8 + 0.9) / 4])
    with pytest.raises(ValueError, match="one weight for each of the 3 tasks"):
        metrics.average_curve(a, [1, 2])


@pytest.mark.parametrize("shape", [(3, 3), (3, 4), (5, 3), (4,), (1, 0), (2, 3, 3)])
def test_an_array_of_another_shape_is_refused_with_its_shape(shape):
    for name in [*ONE_ARGUMENT, "average_curve"]:
        with pytest.raises(ValueError, match=str(shape).replace("(", r"\(").replace(")", r"\)")):
            getattr(metrics, name)(np.zeros(shape))


def test_a_reference_on_other_tasks_is_refused():
    with pytest.raises(ValueError, match=r"3 tasks.*\(3, 2\)"):
        metrics.intransigence(A, np.zeros((3, 2)))


def test_a_seed_that_diverged_is_nan_and_leaves_the_others_alone():
    a = np.stack([A, A])
    a[1, 2:] = np.nan
    for name in ONE_ARGUMENT:
        result = getattr(metrics, name)(a)
        assert result[0] == pytest.approx(WORKED[name])
        assert np.isnan(result[1])
    np.testing.assert_allclose(metrics.average_curve(a)[1], [0.9, np.nan, np.nan])


def test_only_forward_transfer_needs_tasks_to_be_tested_before_they_are_learned():
    a = np.where(np.triu(np.ones((4, 3)), 0).astype(bool) & ~np.eye(4, 3, -1).astype(bool), np.nan, A)
    for name in ONE_ARGUMENT:
        result = getattr(metrics, name)(a)
        assert np.isnan(result) if name == "forward_transfer" else result == pytest.approx(WORKED[name])


@given(several, st.permutations(range(4)))
def test_seeds_do_not_mix(a, order):
    for name in [*ONE_ARGUMENT, "average_curve"]:
        metric = getattr(metrics, name)
        np.testing.assert_array_equal(metric(a)[order], metric(a[order]))
        np.testing.assert_array_equal(metric(a)[2], metric(a[2]))
        np.testing.assert_array_equal(
            metric(a.reshape(2, 2, *a.shape[1:])), metric(a).reshape(2, 2, *metric(a).shape[1:])
        )


@given(several, st.floats(-1, 1))
def test_a_shift_of_all_accuracies_shifts_levels_and_not_differences(a, shift):
    for name in ONE_ARGUMENT:
        moved = shift if name.endswith("accuracy") else 0.0
        np.testing.assert_allclose(getattr(metrics, name)(a + shift), getattr(metrics, name)(a) + moved, atol=1e-12)
    np.testing.assert_allclose(metrics.intransigence(a, a + shift), shift, atol=1e-12)


@given(several)
def test_forgetting_is_at_least_what_backward_transfer_lost(a):
    if a.shape[-1] > 1:
        assert (metrics.forgetting(a) >= -metrics.backward_transfer(a) - 1e-12).all()


def test_the_interval_is_that_of_student():
    # 1..5: mean 3, s = sqrt(2.5), t(4 degrees, .975) = 2.776445
    mean, half_width = metrics.mean_interval([1.0, 2, 3, 4, 5])
    assert mean == 3
    assert half_width == pytest.approx(2.776445 * np.sqrt(2.5 / 5), rel=1e-6)
    # t(1 degree, .95) = 6.313752; s of (0, 2) = sqrt(2)
    assert metrics.mean_interval([0.0, 2], level=0.9)[1] == pytest.approx(6.313752, rel=1e-6)


def test_the_interval_is_taken_along_the_axis_asked_for():
    values = np.arange(12.0).reshape(3, 4) ** 2
    for found, expected in zip(metrics.mean_interval(values, axis=1), metrics.mean_interval(values.T), strict=True):
        np.testing.assert_allclose(found, expected)


def test_one_seed_has_no_interval_and_none_has_no_mean():
    mean, half_width = metrics.mean_interval([[0.5, 0.7]])
    np.testing.assert_array_equal(mean, [0.5, 0.7])
    assert np.isnan(half_width).all()
    with pytest.raises(ValueError, match="at least one value"):
        metrics.mean_interval([])
    with pytest.raises(ValueError, match=r"inside \(0, 1\).*95"):
        metrics.mean_interval([1.0, 2.0], level=95)


def test_the_p_value_counts_sign_flips():
    # d = 1, 2, -0.5, sum 2.5. Of the 8 signed sums, those with |sum| >= 2.5 are +-(1 + 2 + .5) and +-(1 + 2 - .5).
    found = metrics.paired_difference([1.0, 2, 0], [0.0, 0, 0.5])
    assert found.p == 4 / 8
    assert found.mean == pytest.approx(2.5 / 3)


def test_when_one_strategy_always_wins_p_is_the_smallest_there_is():
    for n in range(1, 17):
        wins = metrics.paired_difference(np.linspace(0.6, 0.9, n), np.full(n, 0.5))
        assert wins.p == metrics.smallest_p(n) == 2 / 2**n


def test_beyond_16_seeds_flips_are_drawn_and_p_is_never_zero():
    d = np.random.default_rng(1).normal(0.35, 1, 17)
    drawn = metrics.paired_difference(d, np.zeros(17)).p
    exact = np.mean([abs(np.dot(s, d)) >= abs(d.sum()) - 1e-12 for s in product([1, -1], repeat=17)])
    assert drawn == pytest.approx(exact, abs=0.015)  # 3 standard errors of 10,000 draws
    assert metrics.paired_difference(np.arange(1.0, 41), np.zeros(40)).p == metrics.smallest_p(40) == 1 / 10_001


def test_no_difference_at_all_is_no_evidence():
    assert metrics.paired_difference([0.5, 0.5], [0.5, 0.5]) == (0, 0, 1)


def test_a_seed_not_measured_makes_a_comparison_nan():
    assert np.isnan(metrics.paired_difference([0.5, np.nan], [0.5, 0.5])).all()


def test_values_that_are_not_pairs_are_refused():
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        metrics.paired_difference([1, 2], [1, 2, 3])


@given(arrays(np.float64, 6, elements=st.integers(-20, 20).map(float)))
@settings(max_examples=30)
def test_exchanging_the_strategies_turns_the_difference_and_keeps_p(d):
    one, other = metrics.paired_difference(d, np.zeros(6)), metrics.paired_difference(np.zeros(6), d)
    assert (one.mean, one.half_width, one.p) == (-other.mean, other.half_width, other.p)


def test_holm_steps_down():
    # Sorted .01, .03, .04 times 3, 2, 1: .03, .06, .04 -> .06 (never below the one before), in the order given.
    np.testing.assert_allclose(metrics.holm([0.04, 0.01, 0.03]), [0.06, 0.03, 0.06])
    np.testing.assert_allclose(metrics.holm([0.9, 0.8]), [1, 1])


def test_holm_does_not_count_a_test_that_was_not_made():
    np.testing.assert_allclose(metrics.holm([0.01, np.nan, 0.04]), [0.02, np.nan, 0.04])
    assert metrics.holm([]).shape == (0,)


def test_metrics_load_numpy_alone():
    code = "import sys, lifelong.metrics; print({'torch', 'scipy', 'matplotlib', 'pandas'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
