"""Mirrors clipseg3d/metrics/comparison.py."""

import math

import numpy as np
import pytest
from scipy import stats

from clipseg3d.metrics.comparison import (
    difference_over_seeds,
    difference_table,
    holm,
    mean_ranks,
    paired_difference,
)
from clipseg3d.metrics.score_table import ScoreTable

NAN = math.nan


def test_wilcoxon_by_hand():
    """Differences 1, 2, 3, 4, -5: ranks against sum to 5; 10 of 32 signs are so extreme, twice."""
    second = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    test = paired_difference(second + np.array([1, 2, 3, 4, -5]), second)
    assert test.mean == pytest.approx(1)
    assert test.num_cases == 5
    assert test.p_value == pytest.approx(20 / 32)
    assert paired_difference(second + np.arange(1, 6), second).p_value == pytest.approx(2 / 32)


def test_the_interval_is_that_of_the_mean():
    rng = np.random.default_rng(0)
    first = rng.normal(1, 1, 400)
    test = paired_difference(first, np.zeros(400))
    half = 1.96 * first.std() / 20
    assert (test.low, test.high) == pytest.approx((test.mean - half, test.mean + half), abs=0.01)
    other = paired_difference(np.zeros(400), first)
    assert (other.low, other.high) == pytest.approx((-test.high, -test.low))
    assert paired_difference(first, np.zeros(400)) == test
    assert paired_difference(first, np.zeros(400), seed=1) != test


def test_two_cases_by_hand():
    test = paired_difference(np.array([0.0, 1.0]), np.zeros(2))
    assert (test.low, test.mean, test.high) == (0, 0.5, 1)


def test_cases_without_a_score_are_left_out():
    test = paired_difference(np.array([1.0, NAN, 3.0, 5.0]), np.array([0.5, 1.0, 2.5, NAN]))
    assert (test.mean, test.low, test.high, test.num_cases) == (0.5, 0.5, 0.5, 2)
    none = paired_difference(np.array([NAN]), np.array([1.0]))
    assert none.num_cases == 0
    assert math.isnan(none.mean)
    assert math.isnan(none.p_value)


def test_equal_predictions_differ_by_nothing():
    test = paired_difference(np.ones(7), np.ones(7))
    assert (test.mean, test.low, test.high, test.p_value) == (0, 0, 0, 1)


def test_the_cases_must_be_the_same():
    with pytest.raises(ValueError, match=r"first \(3,\) and second \(2,\)"):
        paired_difference(np.zeros(3), np.zeros(2))


def test_seeds_and_cases_by_hand():
    """Means of seeds 1, 3 and of cases 1, 3, 2: mean squares 6, 2 and 2, so a t test with 1 df."""
    change = np.array([[1.0, 2.0, 0.0], [1.0, 4.0, 4.0]])
    test = difference_over_seeds(change + 5, np.full((2, 3), 5.0))
    assert (test.mean, test.num_cases) == (2, 3)
    assert test.p_value == pytest.approx(2 * math.atan(1 / 2) / math.pi)  # t = 2; Cauchy
    half = math.tan(math.pi * 0.475)  # the error is 1
    assert (test.low, test.high) == pytest.approx((2 - half, 2 + half))
    other = difference_over_seeds(np.zeros((2, 3)), change)
    assert (other.low, other.high) == pytest.approx((-test.high, -test.low))


def test_seeds_that_agree_leave_a_t_test_of_cases():
    rng = np.random.default_rng(0)
    cases = rng.normal(0.3, 1, 9)
    change = cases + np.array([[1e-9], [-1e-9]])
    test = difference_over_seeds(change, np.zeros((2, 9)))
    assert test.p_value == pytest.approx(stats.ttest_1samp(cases, 0).pvalue)


@pytest.mark.parametrize("seed_sd", [0.0, 1.0, 3.0])
def test_the_level_holds_whatever_seeds_do(seed_sd):
    """Without a true difference, 1 test of 20 finds one; Wilcoxon's over means of seeds, many."""
    rng = np.random.default_rng(0)
    found = np.zeros(2)
    for _ in range(300):
        seeds, cases = rng.normal(0, 1, (3, 1)), rng.normal(0, 1, 18)
        change = seed_sd * seeds + cases + rng.normal(0, 1, (3, 18))
        found += [
            difference_over_seeds(change, np.zeros((3, 18))).p_value < 0.05,
            paired_difference(change.mean(axis=0), np.zeros(18)).p_value < 0.05,
        ]
    assert 0.02 < found[0] / 300 < 0.11
    assert (found[1] / 300 > 0.2) == (seed_sd > 0)


def test_what_cannot_be_tested_over_seeds():
    one = difference_over_seeds(np.array([[0.5, 0.7]]), np.zeros((1, 2)))
    assert one.mean == pytest.approx(0.6)
    assert np.isnan([one.low, one.high, one.p_value]).all()
    gaps = np.array([[1.0, NAN, 3.0], [1.0, 2.0, 5.0]])
    assert difference_over_seeds(gaps, np.zeros((2, 3))).num_cases == 2
    assert difference_over_seeds(gaps[:, 1:2], gaps[:, 1:2]).num_cases == 0
    equal = difference_over_seeds(np.ones((2, 3)), np.ones((2, 3)))
    assert (equal.mean, equal.low, equal.high, equal.p_value) == (0, 0, 0, 1)
    with pytest.raises(ValueError, match=r"first \(3,\) and second \(2, 3\)"):
        difference_over_seeds(np.zeros(3), np.zeros((2, 3)))


def test_holm_by_hand():
    assert holm(np.array([0.5, 0.01, 0.02])).tolist() == [0.5, 0.03, 0.04]
    assert holm(np.array([0.6, 0.5])).tolist() == [1, 1]
    assert holm(np.array([0.02, 0.03])).tolist() == [0.04, 0.04]  # never below a smaller p


def test_ranks_by_hand():
    """Three predictions, two cases, one region, Dice and HD95."""
    values = np.array(
        [
            [[[0.9, 5.0]], [[0.5, 9.0]]],  # ranks 1, 2 and 2.5, 3
            [[[0.8, 1.0]], [[0.5, 8.0]]],  # 2, 1 and 2.5, 1.5
            [[[0.7, 7.0]], [[0.6, 8.0]]],  # 3, 3 and 1, 1.5
        ]
    )
    ranks = mean_ranks(values, np.array([True, False]))
    assert ranks.tolist() == [8.5 / 4, 7 / 4, 8.5 / 4]
    swapped = mean_ranks(values[::-1], np.array([True, False]))
    assert swapped.tolist() == ranks[::-1].tolist()


def test_what_one_of_them_lacks_ranks_none():
    values = np.array([[[[0.9, NAN]]], [[[0.8, 1.0]]]])
    assert mean_ranks(values, np.array([True, False])).tolist() == [1, 2]
    assert np.isnan(mean_ranks(values * NAN, np.array([True, False]))).all()


def test_two_tables_are_compared_line_by_line():
    values = np.array([[[0.5, 4.0]], [[0.75, 8.0]], [[0.5, NAN]]])
    first = ScoreTable(("a", "b", "c"), ("WT",), ("dice", "hd95_mm"), values)
    second = first._replace(values=values - [0.25, -1])
    _, dice, distance = (line.split() for line in difference_table(first, second).splitlines())
    assert dice == ["WT", "dice", "+0.2500", "+0.2500", "+0.2500", "0.25", "3"]
    assert distance == ["WT", "hd95_mm", "-1.0000", "-1.0000", "-1.0000", "0.5", "2"]
    with pytest.raises(ValueError, match="not of the same cases: c differs"):
        difference_table(first, second._replace(case_ids=("a", "b", "d")))
