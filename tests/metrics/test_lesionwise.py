"""Mirrors clipseg3d/metrics/lesionwise.py."""

import math

import numpy as np
import pytest
from scipy import ndimage

from clipseg3d.metrics.hausdorff import hd95
from clipseg3d.metrics.lesions import number_lesions
from clipseg3d.metrics.lesionwise import LesionScores, lesion_scores, score_lesions
from clipseg3d.metrics.mask_pair import MaskPair

SHAPE = (40, 30, 35)
ALL = np.ones((3, 3, 3))


def mask(*boxes):
    voxels = np.zeros(SHAPE, bool)
    for box in boxes:
        voxels[box] = True
    return voxels


def score(prediction, reference, *, spacing_mm=(1, 1, 1), **options):
    rules = {"dilations": 3, "min_volume_mm3": 50, "penalty_mm": 374.0, "method": "surface"}
    pair = MaskPair.cut(prediction, reference, spacing_mm=spacing_mm)
    return lesion_scores(pair, **{**rules, **options})


def one_by_one(prediction, reference, *, spacing_mm, dilations, min_volume_mm3, penalty_mm, method):
    """The same, lesion by lesion over the whole volume, exactly as the rules are worded."""
    neighbours = ndimage.generate_binary_structure(3, 2)
    grown = ndimage.binary_dilation(reference, neighbours, iterations=dilations)
    lesions = ndimage.label(grown, ALL)[0] * reference
    parts, num_parts = ndimage.label(prediction, ALL)
    matched, dice, hd = set(), [], []
    for lesion in range(1, lesions.max() + 1):
        true = lesions == lesion
        around = ndimage.binary_dilation(true, neighbours, iterations=dilations)
        own = set(np.unique(parts[around])) - {0}
        matched |= own
        if true.sum() * math.prod(spacing_mm) <= min_volume_mm3:
            continue
        result = np.isin(parts, list(own))
        dice.append(2 * (result & true).sum() / (result.sum() + true.sum()))
        distance = hd95(result, true, spacing_mm=spacing_mm, method=method)
        hd.append(distance if math.isfinite(distance) else penalty_mm)
    fp = num_parts - len(matched)
    total = len(dice) + fp
    if not total:
        return math.nan, math.nan, 0, 0
    return sum(dice) / total, (sum(hd) + fp * penalty_mm) / total, len(dice), fp


@pytest.mark.parametrize("extra", [False, True])
def test_the_golden_case(golden, extra):
    expected = {
        False: [(".46667", 188), (".44444", 188), (".40000", 188)],
        True: [(".31111", 250), (".29630", 250), (".26667", 250)],
    }
    result = [score(p, r) for p, r in zip(*golden[extra], strict=True)]
    assert [(f"{one.dice:.5f}"[1:], one.hd95_mm) for one in result] == expected[extra]
    assert {(one.num_lesions, one.fn, one.fp) for one in result} == {(2, 1, extra)}


@pytest.mark.parametrize(
    ("method", "dilations", "volume"),
    [("surface", 1, 2.0), ("surface", 3, 20.0), ("medpy", 5, 0.0), ("monai", 3, 20.0)],
)
def test_random_pairs_are_equal_to_the_rules_taken_literally(
    random_pairs, method, dilations, volume
):
    rules = {"dilations": dilations, "min_volume_mm3": volume, "penalty_mm": 99.0, "method": method}
    counts = set()
    for prediction, reference, mm in (
        random_pairs[::2] if method == "surface" else random_pairs[4::8]
    ):
        result = score(prediction, reference, spacing_mm=mm, **rules)
        dice, distance, lesions, fp = one_by_one(prediction, reference, spacing_mm=mm, **rules)
        assert (result.num_lesions, result.fp) == (lesions, fp)
        assert (result.dice, result.hd95_mm) == pytest.approx((dice, distance), nan_ok=True)
        counts.add((lesions, fp))
    assert len(counts) > 4


def test_pieces_are_one_lesion_if_they_touch_when_grown():
    pieces = mask(np.s_[5:10, 5:10, 5:10], np.s_[16:21, 5:10, 5:10])  # 6 voxels between them
    near = score(mask(np.s_[5:10, 5:10, 5:10]), pieces)
    assert (near.num_lesions, near.fn) == (1, 0)
    assert near.dice == pytest.approx(2 * 125 / 375)
    far = score(mask(np.s_[5:10, 5:10, 5:10]), np.roll(pieces, 0) & ~mask(np.s_[16:17]))
    assert (far.num_lesions, far.fn) == (2, 1)
    assert far.dice == 0.5
    assert score(mask(np.s_[5:10, 5:10, 5:10]), pieces, dilations=1).num_lesions == 2


def test_growth_reaches_18_neighbours_not_26():
    one = mask(np.s_[10, 10, 10])
    for far, belongs in (((13, 13, 10), True), ((13, 13, 13), False), ((12, 12, 12), True)):
        result = score(mask(far), one, min_volume_mm3=0)
        assert (result.fp == 0) == belongs


def test_a_component_between_two_lesions_belongs_to_both():
    reference = mask(np.s_[2:7, 5:10, 5:10], np.s_[30:35, 5:10, 5:10])
    prediction = mask(np.s_[2:35, 5:10, 5:10])
    result = score(prediction, reference)
    assert result.fp == result.fn == 0
    assert result.dice == pytest.approx(2 * 125 / (825 + 125))


def test_small_lesions_do_not_count_but_what_touches_them_is_no_false_positive():
    small, big = np.s_[3:5, 3:8, 3:8], np.s_[20:30, 10:20, 10:20]  # 50 and 1000 voxels
    result = score(mask(small, big), mask(small, big))
    assert result == LesionScores(1.0, 0.0, 1, 0, 0, 1.0)
    only_small = score(mask(small), mask(small))
    assert math.isnan(only_small.dice)
    assert math.isnan(only_small.hd95_mm)
    assert score(mask(big), mask(small, big)) == LesionScores(1.0, 0.0, 1, 0, 0, 1.0)
    assert score(mask(small, big), mask(big)) == LesionScores(0.5, 187.0, 1, 0, 1, 2 / 3)
    assert score(mask(small), mask(small), spacing_mm=(1, 1, 1.01)).num_lesions == 1


def test_empty_masks():
    box = np.s_[5:10, 5:10, 5:10]
    assert score(mask(), mask(box)) == LesionScores(0.0, 374.0, 1, 1, 0, 0.0)
    assert score(mask(box), mask()) == LesionScores(0.0, 374.0, 0, 0, 1, 0.0)
    assert math.isnan(score(mask(), mask()).dice)


def test_counts_and_f1():
    found, missed = np.s_[3:8, 3:8, 3:8], np.s_[20:25, 20:25, 20:25]
    wrong = np.s_[33:38, 3:8, 25:30]
    result = score(mask(found, wrong), mask(found, missed))
    assert (result.tp, result.fp, result.fn) == (1, 1, 1)
    assert result.f1 == 0.5
    assert math.isnan(score(mask(), mask()).f1)


def test_surface_dice_of_lesions_and_false_positives_that_are_not_scored():
    """The border of a cube of 5 voxels an edge has 98 voxels."""
    found, missed = np.s_[3:8, 3:8, 3:8], np.s_[20:25, 20:25, 20:25]
    pair = MaskPair.cut(mask(np.s_[4:9, 3:8, 3:8], np.s_[33:38, 3:8, 25:30]), mask(found, missed))
    lesions = number_lesions(pair.reference, dilations=1), number_lesions(pair.prediction)
    rules = {"min_volume_mm3": 50, "penalty_mm": 90.0, "method": "medpy"}
    one = score_lesions(pair, *lesions, **rules, tolerances_mm=[1.0, 0.5])
    shared = 4 * 16  # of the four sides; the two ends lie 1 mm away
    assert one.nsd == pytest.approx((1 / 3, shared / 98 / 3))
    assert one.hd95_mm == pytest.approx((1 + 90 + 90) / 3)
    two = score_lesions(pair, *lesions, **rules, score_false_positives=False)
    assert (two.dice, two.hd95_mm) == pytest.approx((0.8 / 2, 91 / 2))
    assert two.fp == 1
    assert two.f1 == 0.5
