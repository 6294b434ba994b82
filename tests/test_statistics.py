"""Comparisons against scipy and by hand, and by simulation: what an interval covers, how often a test errs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from test_report import a_run, three

from lifelong import metrics, report
from lifelong.report import statistics
from lifelong.report.statistics import best, comparisons, difference, flips_needed, pairs, power, seeds_needed, terms


def values(*numbers: float) -> dict[int, float]:
    return dict(enumerate(numbers))


def test_a_paired_difference_by_hand():
    # d = 1, 2, 3: mean 2, s = 1, d_z = 2; t(2, .975) = 4.302653 over sqrt(3) = 2.484138; all flips: 2 of 8 reach 6.
    found = difference(values(2, 4, 6), values(1, 2, 3))
    assert (found.mean, found.n, found.paired, found.p) == (2, 3, True, 0.25)
    assert (found.effect, found.low, found.high) == pytest.approx((2, 2 - 2.484138, 2 + 2.484138), rel=1e-6)


def test_pairs_are_the_seeds_that_both_have():
    # Seeds 3 and 1, whose differences are 0 and 1: mean 1/2 and s = sqrt(1/2), whatever the order that they stand in.
    found = difference({3: 1.0, 1: 5.0, 7: 2.0}, {1: 4.0, 3: 1.0, 5: 9.0})
    assert (found.mean, found.n, found.paired) == (0.5, 2, True)
    assert found.effect == pytest.approx(0.5**0.5)


def test_without_shared_seeds_it_is_welchs_t_test():
    a, b = np.array([0.5, 0.6, 0.55, 0.7]), np.array([0.4, 0.45, 0.3])
    found = difference(dict(enumerate(a)), dict(enumerate(b, 10)))
    scipys = stats.ttest_ind(a, b, equal_var=False)
    low, high = scipys.confidence_interval(0.95)
    assert (found.p, found.low, found.high) == pytest.approx((scipys.pvalue, low, high))
    assert (found.n, found.paired) == (3, False)
    assert found.effect == pytest.approx((a.mean() - b.mean()) / np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2))


def test_one_seed_has_a_difference_and_nothing_else():
    for found in (difference(values(0.5), values(0.2)), difference({0: 0.5}, {1: 0.2}), difference({0: 0.5}, {1: 0.2, 2: 0.2})):
        assert found.mean == pytest.approx(0.3)
        assert np.isnan([found.low, found.high, found.effect]).all()


def test_the_sign_flip_p_is_scipys():
    rng = np.random.default_rng(4)
    for n in (4, 7, 9):
        d = rng.normal(0.3, 1, n)
        scipys = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
        assert metrics.paired_difference(d, np.zeros(n)).p == pytest.approx(scipys.pvalue)


def test_the_interval_covers_what_it_says():
    # 4,000 simulated experiments each: 95 % and three standard errors of a share, sqrt(.95 * .05 / 4000) = .0034.
    rng = np.random.default_rng(11)
    for n in (3, 5, 10):
        both = rng.normal(0, 1, (4000, 1, n))  # what seeds share: pairing takes it away
        a, b = (both + rng.normal(level, spread, (4000, 1, n)) for level, spread in ((0.7, 1.0), (0.4, 0.3)))
        low, high = np.array([difference(dict(enumerate(x[0])), dict(enumerate(y[0])))[1:3]
                              for x, y in zip(a[:1000], b[:1000], strict=True)]).T
        assert np.mean((low <= 0.3) & (high >= 0.3)) == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / 1000))
        mean, half = metrics.mean_interval(a[:, 0], axis=1)
        assert np.mean(np.abs(mean - 0.7) <= half) == pytest.approx(0.95, abs=3 * 0.0034)


def test_a_difference_that_is_not_there_is_found_in_one_of_twenty():
    rng = np.random.default_rng(5)
    found = [metrics.paired_difference(rng.normal(0, 1, 8), np.zeros(8)).p for _ in range(2000)]
    # Exact: p is a multiple of 2 / 256, and p <= .05 has probability 12 / 256.
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(12 / 256, abs=3 * np.sqrt(0.047 * 0.953 / 2000))


def test_seeds_needed_are_those_of_the_textbooks():
    # Cohen 1988 and G*Power 3.1, two-sided .05, power .8: paired d_z = .5, .8, .2: 34, 15, 199; two groups of .5, .8: 64, 26.
    assert [seeds_needed(d) for d in (0.5, -0.8, 0.2)] == [34, 15, 199]
    assert [seeds_needed(d, paired=False) for d in (0.5, 0.8)] == [64, 26]
    assert seeds_needed(0.0) is None and seeds_needed(0.001) is None and seeds_needed(np.nan) is None


def test_power_is_what_simulation_finds():
    rng = np.random.default_rng(6)
    d = rng.normal(0.9, 1, (4000, 8))
    t = d.mean(1) / (d.std(1, ddof=1) / np.sqrt(8))
    assert power(8, 0.9) == pytest.approx(np.mean(np.abs(t) > stats.t.ppf(0.975, 7)), abs=0.025)
    assert power(8, 0.9) >= 0.5 > power(4, 0.9)
    assert not [e for n in (2, 5, 30, 1000) for e in np.geomspace(1e-3, 50, 40) if not 0 < power(n, e) <= 1 + 1e-12]


def test_a_sign_flip_test_needs_seeds_to_reach_a_p_at_all():
    assert [flips_needed(m) for m in (1, 2, 5)] == [6, 7, 8]
    assert all(metrics.holm([metrics.smallest_p(flips_needed(m))] * m)[0] <= 0.05 for m in range(1, 30))
    assert all(metrics.holm([metrics.smallest_p(flips_needed(m) - 1)] * m)[0] > 0.05 for m in range(1, 30))


@pytest.mark.parametrize(("strategy", "found"), [
    ("er", []), ("er + ewc", ["er", "ewc"]), ("oml(file='a + b.st') + er(x=(1, 2))", ["oml(file='a + b.st')", "er(x=(1, 2))"]),
    ("er(memory='a') + ewc + si", ["er(memory='a')", "ewc", "si"]),
])
def test_a_sum_has_its_terms(strategy, found):
    assert terms(strategy) == found


def summed():
    return report.groups([a_run(name, 0.8, [level, 0.7], 3) for name, level in
                          (("finetune", 0.1), ("er", 0.5), ("ewc", 0.4), ("er + ewc", 0.6))])[0]


def test_sums_are_compared_with_their_parts_and_others_with_the_reference():
    group = summed()
    named = [(group.labels[i], group.labels[j]) for i, j in pairs(group, "parts")]
    assert named == [("er + ewc", "er"), ("er + ewc", "ewc")]
    assert {group.labels[j] for _, j in pairs(group, "ewc")} == {"ewc"} and len(pairs(group, "ewc")) == 3
    assert {j for _, j in pairs(group, "one of another stream")} == {0}
    assert pairs(report.groups([a_run("er", 0.8, [0.5, 0.7])])[0]) == []


def test_a_part_with_other_settings_is_not_the_part_of_a_sum():
    runs = [a_run("er", 0.8, [0.5, 0.7]), a_run("er", 0.8, [0.5, 0.7], epochs=5), a_run("er + ewc", 0.8, [0.6, 0.7], epochs=5)]
    (group,) = report.groups(runs)
    assert [(group.labels[i], group.labels[j]) for i, j in pairs(group, "parts")] == [("er + ewc", "er, epochs=5")]


def test_a_tuned_sum_is_compared_with_its_parts_at_the_values_that_they_were_tuned_to():
    def tuned(strategy, hyper, lr, chosen, **spec):
        return a_run(strategy, 0.8, [0.5, 0.7], about={"tuned": {"chosen": chosen}}, optimizer=f"sgd(lr={lr})",
                     hyper={"strategy": hyper, "model": {}, "optimizer": {"lr": lr}}, **spec)

    er, ewc, rate = {"capacity": 9}, {"strength": 1.0, "decay": 0.5}, {"sgd.lr": 0.1}
    whole = tuned("er(capacity=9) + ewc(strength=1)", [er, ewc], 0.1, rate | {"ewc.strength": 1.0})
    (group,) = report.groups([
        whole, tuned("er(capacity=9)", [er], 0.3, rate), tuned("er(capacity=8)", [{"capacity": 8}], 0.3, rate),
        tuned("ewc(strength=5)", [ewc | {"strength": 5.0}], 0.3, rate | {"ewc.strength": 5.0}),
        tuned("ewc(decay=1)", [ewc | {"decay": 1.0}], 0.3, rate),
        tuned("er(capacity=9)", [er], 0.4, rate, epochs=7),
        a_run("er(capacity=9)", 0.8, [0.5, 0.7], optimizer="sgd(lr=0.2)")])
    found = {(group.runs[i].spec["strategy"], group.runs[j].spec["strategy"], group.runs[j].spec["optimizer"])
             for i, j in pairs(group, "parts")}
    assert found == {(whole.spec["strategy"], "er(capacity=9)", "sgd(lr=0.3)"),
                     (whole.spec["strategy"], "ewc(strength=5)", "sgd(lr=0.3)")}


def test_a_reference_that_nobody_has_is_refused_with_what_there_is():
    report.checked_reference([summed()], "parts")
    report.checked_reference([summed()], "er")
    with pytest.raises(ValueError, match=r"^reference must .*'er \+ ewd'.*'er \+ ewc'"):
        report.checked_reference([summed()], "er + ewd")


def test_holm_is_over_the_comparisons_of_a_metric():
    group = report.groups(three(seeds=9))[0]
    found = comparisons(group, "forgetting")
    assert [one.p for one in found] == [2 * 2 / 2**9] * 2
    assert [one.smallest_p for one in found] == [2 * 2 / 2**9] * 2
    assert all(one.significant and one.needed == 7 for one in found), "the same for every seed: as many as the test takes"


def test_unpaired_strategies_are_said_to_be_unpaired():
    runs = [a_run("finetune", 0.8, [0.1, 0.7], 3), a_run("er", 0.8, [0.5, 0.7], 3)]
    runs[1] = report.Run({**runs[1].spec, "seeds": [10, 11, 12]}, runs[1].accuracy, runs[1].about)
    text = report.markdown(runs)
    assert "3 seeds or more, unpaired because they share fewer than 2" in text
    assert "Welch's t test" in text and "| 3 unpaired |" in text


def test_the_best_is_no_bound_and_ties_need_seeds():
    group = report.groups(three(seeds=8))[0]  # er has .5 and .7 at last, finetune .1 and .7, cumulative more
    assert best(group, "average_accuracy") == (1, [], None)
    top, tied, short = best(group, "learning_accuracy")
    assert (top, tied, short) == (0, [1], None), "equal on all seeds, so not told apart"
    assert best(report.groups(three(seeds=2))[0], "forgetting") == (1, [], 6)
    assert best(report.groups([a_run("er", 0.8, [0.5, 0.7])])[0], "forgetting") == (None, [], None)


def test_a_seed_that_diverged_is_compared_with_nothing():
    run = a_run("si", 0.8, [0.5, 0.7], 8)
    run.accuracy[3, 2:] = np.nan
    found = {one.run: one for one in comparisons(report.groups([*three(seeds=8), run])[0])}
    assert [one.problem for one in found.values()] == ["", "1 of 8 seeds of a run were not measured to the end", ""]
    assert statistics.ranks(report.groups([run]))[0] == []
