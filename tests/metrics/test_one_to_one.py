"""Mirrors clipseg3d/metrics/one_to_one.py."""

import itertools
import math

import numpy as np
import pytest

from clipseg3d.metrics.lesions import number_lesions
from clipseg3d.metrics.mask_pair import MaskPair
from clipseg3d.metrics.one_to_one import (
    large_lesion_scores,
    match_one_to_one,
    one_to_one_scores,
)

SHAPE = (40, 14, 16)
BIG, SMALL, FAR = np.s_[3:6, 3:6, 3:6], np.s_[20:22, 3:6, 3:6], np.s_[34:37, 3:6, 3:6]


def mask(*boxes):
    voxels = np.zeros(SHAPE, bool)
    for box in boxes:
        voxels[box] = True
    return voxels


def scored(function, prediction, reference, **rules):
    pair = MaskPair.cut(prediction, reference)
    return function(
        pair,
        number_lesions(pair.reference),
        number_lesions(pair.prediction),
        **{"penalty_mm": 373.0, "method": "medpy", "tolerances_mm": [1.0], **rules},
    )


def test_the_sum_of_dice_decides_not_the_best_pair():
    """One component over two lesions, and a second one over the first lesion alone."""
    lesions, parts = np.zeros((2, *SHAPE), np.int32)
    lesions[0:10, 0, 0], lesions[10:16, 0, 0] = 1, 2
    parts[4:16, 0, 0], parts[0:4, 0, 0] = 1, 2
    # Dice of (1, 1) is 12/22, of (2, 1) 12/18, of (1, 2) 8/14
    assert match_one_to_one(lesions, parts) == {1: 2, 2: 1}
    assert match_one_to_one(lesions, np.where(parts == 2, 0, parts)) == {2: 1}
    assert match_one_to_one(np.zeros_like(lesions), parts) == {}


def test_random_matchings_are_the_best_of_all():
    rng = np.random.default_rng(0)
    for _ in range(30):
        lesions, parts = (rng.integers(0, 4, (4, 4, 3)).astype(np.int32) for _ in range(2))

        def dice(lesion, part, lesions=lesions, parts=parts):
            one, two = lesions == lesion, parts == part
            return 2 * (one & two).sum() / (one.sum() + two.sum())

        matches = match_one_to_one(lesions, parts)
        assert len(set(matches.values())) == len(matches)
        best = max(
            sum(dice(lesion, part) for lesion, part in zip((1, 2, 3), order, strict=True))
            for order in itertools.permutations((1, 2, 3))
        )
        assert sum(itertools.starmap(dice, matches.items())) == pytest.approx(best)


def test_means_are_over_matches_and_others_are_counted():
    moved = np.s_[4:7, 3:6, 3:6]  # 2 of 3 slices in common
    result = scored(one_to_one_scores, mask(moved, FAR), mask(BIG, SMALL))
    assert (result.dice, result.hd95_mm, result.nsd) == (pytest.approx(2 / 3), 1, (1,))
    assert (result.tp, result.fp, result.fn) == (1, 1, 1)
    assert result.f1 == 0.5


@pytest.mark.parametrize(
    ("prediction", "reference", "counts"),
    [((FAR,), (BIG,), (0, 1, 1)), ((FAR,), (), (0, 1, 0)), ((), (BIG, SMALL), (0, 0, 2))],
)
def test_nothing_is_matched(prediction, reference, counts):
    result = scored(one_to_one_scores, mask(*prediction), mask(*reference))
    assert (result.dice, result.hd95_mm, result.nsd, result.f1) == (0, 373, (0,), 0)
    assert (result.tp, result.fp, result.fn) == counts


def test_two_empty_masks_have_no_score():
    result = scored(one_to_one_scores, mask(), mask())
    assert all(map(math.isnan, (result.dice, result.hd95_mm, *result.nsd, result.f1)))
    assert (result.tp, result.fp, result.fn) == (0, 0, 0)


METS = {"min_volume_mm3": 20, "min_dice": 0.1}


def test_large_lesions_are_scored_with_what_has_no_match_and_small_ones_apart():
    """27 mm3 found, 27 mm3 missed, 18 mm3 found, and a false positive."""
    missed, wrong = np.s_[28:31, 9:12, 9:12], FAR
    result = scored(large_lesion_scores, mask(BIG, SMALL, wrong), mask(BIG, missed, SMALL), **METS)
    assert (result.dice, result.hd95_mm) == (pytest.approx(1 / 3), pytest.approx(2 * 373 / 3))
    assert result.nsd == (pytest.approx(1 / 3),)
    assert (result.tp, result.fp, result.fn, result.f1) == (1, 1, 1, 0.5)
    assert (result.small_tp, result.small_fn, result.small_f1) == (1, 0, pytest.approx(2 / 3))


def test_a_lesion_is_large_from_the_volume_on():
    for volume, count in ((27, 1), (27.1, 0)):
        rules = {**METS, "min_volume_mm3": volume}
        assert scored(large_lesion_scores, mask(BIG), mask(BIG), **rules).num_lesions == count


def test_a_match_with_a_low_dice_is_not_found_but_no_false_positive():
    touching = np.s_[3, 3, 3:16]  # 3 voxels in common with 27, Dice 6/40
    for limit, counts in ((0.15, (1, 0, 0)), (0.16, (0, 0, 1))):
        rules = {**METS, "min_dice": limit}
        result = scored(large_lesion_scores, mask(touching), mask(BIG), **rules)
        assert (result.tp, result.fp, result.fn) == counts
        assert result.dice == pytest.approx(6 / 40)


def test_without_a_large_lesion_there_is_no_mean():
    result = scored(large_lesion_scores, mask(FAR), mask(SMALL), **METS)
    assert all(map(math.isnan, (result.dice, result.hd95_mm, *result.nsd, result.f1)))
    assert (result.small_tp, result.small_fn, result.small_f1) == (0, 1, 0)
    assert math.isnan(scored(large_lesion_scores, mask(FAR), mask(BIG), **METS).small_f1)
