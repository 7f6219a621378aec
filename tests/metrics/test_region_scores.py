"""Mirrors clipseg3d/metrics/region_scores.py."""

import math

import numpy as np
import pytest

from clipseg3d.metrics.protocols import PROTOCOLS, SCORES, get_protocol
from clipseg3d.metrics.region_scores import score_region

SHAPE = (16, 15, 14)
BOX = np.zeros(SHAPE, bool)
BOX[3:8, 4:9, 5:10] = True
EMPTY = np.zeros(SHAPE, bool)
SMALL = np.zeros(SHAPE, bool)
SMALL[1, 1, 1:4] = True


def test_the_golden_table(golden):
    expected = {
        False: [
            "0.92961 2.000 0.46667 188",
            "0.87273 44.011 0.44444 188",
            "0.72202 52.962 0.40000 188",
        ],
        True: ["0.31111 250", "0.29630 250", "0.26667 250"],
    }
    for extra, rows in expected.items():
        for prediction, reference, row in zip(*golden[extra], rows, strict=True):
            one = score_region(prediction, reference, protocol=get_protocol("brats2023"))
            lesion = f"{one['lesion_dice']:.5f} {one['lesion_hd95_mm']:g}"
            voxelwise = f"{one['dice']:.5f} {one['hd95_mm']:.3f} "
            assert (lesion if extra else voxelwise + lesion) == row


@pytest.mark.parametrize(
    ("protocol", "both", "penalty", "sensitivity"),
    [
        ("brats2020", [1, 0, 1, 1, 1, 1, 0], 373.1287, 0),
        ("brats2023", [1, 0, 1, 1, 1, 1, 0], 374, 0),
        ("nan", [math.nan] * 7, 373, math.nan),
    ],
)
def test_empty_masks(protocol, both, penalty, sensitivity):
    rules = get_protocol(protocol)
    result = score_region(EMPTY, EMPTY, protocol=rules)
    assert list(result) == list(SCORES)
    assert list(result.values()) == pytest.approx(both, nan_ok=True)
    specificity = 1 - BOX.sum() / BOX.size
    result = score_region(BOX, EMPTY, protocol=rules)
    expected = [0, penalty, sensitivity, specificity, 0, 0, penalty]
    assert list(result.values()) == pytest.approx(expected, abs=5e-5, nan_ok=True)
    result = score_region(EMPTY, BOX, protocol=rules)
    expected = [0, penalty, 0, 1, 0, 0, penalty]
    assert list(result.values()) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_perfect_prediction(protocol):
    result = score_region(BOX, BOX, protocol=get_protocol(protocol))
    assert list(result.values()) == [1, 0, 1, 1, 1, 1, 0]


@pytest.mark.parametrize(("protocol", "expected"), [("brats2023", [1, 0]), ("nan", [math.nan] * 2)])
def test_lesions_that_are_too_small_to_count(protocol, expected):
    result = score_region(SMALL, SMALL, protocol=get_protocol(protocol))
    assert [result["lesion_dice"], result["lesion_hd95_mm"]] == pytest.approx(expected, nan_ok=True)
    assert result["dice"] == 1


def test_the_method_and_the_voxel_size_reach_every_distance():
    moved = np.roll(BOX, 2, axis=0)
    moved[0, 0, 0] = BOX[-1, -1, -1] = False
    rules = get_protocol("brats2023")
    result = score_region(moved, BOX, protocol=rules, spacing_mm=(4, 1, 1))
    assert result["hd95_mm"] == result["lesion_hd95_mm"] == 8
    assert result["nsd"] < score_region(moved, BOX, protocol=rules)["nsd"] < 1
    stray = moved.copy()
    stray[-1, -1, -8:] = True
    by = {m: score_region(stray, BOX, protocol=rules, method=m) for m in ("medpy", "monai")}
    assert by["medpy"]["hd95_mm"] < by["monai"]["hd95_mm"]
    assert score_region(stray, BOX, protocol=get_protocol("nan")) == by["medpy"] | {
        "lesion_hd95_mm": pytest.approx((by["medpy"]["lesion_hd95_mm"] * 2 - 374 + 373) / 2)
    }
