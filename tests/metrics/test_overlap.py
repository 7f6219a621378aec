"""Mirrors clipseg3d/metrics/overlap.py."""

import math
import warnings

import numpy as np
import pytest
import torch
from monai.metrics import compute_confusion_matrix_metric, compute_dice, get_confusion_matrix

from clipseg3d.metrics.mask_pair import MaskPair
from clipseg3d.metrics.overlap import Overlap


def test_by_hand():
    overlap = Overlap(tp=3, fp=1, fn=2, tn=94)
    assert overlap.dice_empty_is_nan == pytest.approx(6 / 9)
    assert overlap.sensitivity == pytest.approx(3 / 5)
    assert overlap.specificity == pytest.approx(94 / 95)


def test_what_is_not_defined():
    assert math.isnan(Overlap(0, 0, 0, 9).dice_empty_is_nan)
    assert Overlap(0, 0, 0, 9).specificity == 1
    assert math.isnan(Overlap(0, 3, 0, 6).sensitivity)
    assert math.isnan(Overlap(3, 0, 6, 0).specificity)


def test_voxels_outside_the_box_are_background():
    prediction = np.zeros((10, 11, 12), bool)
    reference = prediction.copy()
    prediction[1, 1, 1:4], reference[1, 1, 3:5] = True, True
    assert Overlap.of(MaskPair.cut(prediction, reference)) == Overlap(1, 2, 1, 1320 - 4)


def test_random_pairs_are_equal_to_monai(random_pairs):
    for prediction, reference, _ in random_pairs:
        overlap = Overlap.of(MaskPair.cut(prediction, reference))
        masks = [torch.from_numpy(m)[None, None].float() for m in (prediction, reference)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dice = compute_dice(*masks, include_background=True, ignore_empty=True).item()
        counts = get_confusion_matrix(*masks, include_background=True)
        expected = [
            compute_confusion_matrix_metric(name, counts).item()
            for name in ("sensitivity", "specificity")
        ]
        if not reference.any():  # MONAI calls Dice undefined there, though something was predicted
            dice = 0.0 if prediction.any() else math.nan
        result = [overlap.dice_empty_is_nan, overlap.sensitivity, overlap.specificity]
        assert result == pytest.approx([dice, *expected], rel=1e-6, nan_ok=True)
