"""Mirrors clipseg3d/metrics/nsd.py; MONAI's subvoxel surface Dice checks it."""

import math
import warnings

import numpy as np
import pytest
import torch
from monai.metrics import compute_surface_dice

from clipseg3d.metrics.nsd import surface_dice

EMPTY = np.zeros((9, 8, 7), bool)


def test_random_pairs_are_equal_to_monai(some_pairs):
    result, expected = [], []
    for index, (prediction, reference, mm) in enumerate(some_pairs):
        tolerance_mm = (0.5, 1.0, 2.5, 7.0, 0.0)[index % 5]
        result.append(surface_dice(prediction, reference, spacing_mm=mm, tolerance_mm=tolerance_mm))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected.append(
                compute_surface_dice(
                    torch.from_numpy(prediction)[None, None],
                    torch.from_numpy(reference)[None, None],
                    [tolerance_mm],
                    include_background=True,
                    spacing=mm,
                    use_subvoxels=True,
                ).item()
            )
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_empty_masks():
    voxel = EMPTY.copy()
    voxel[3, 4, 5] = True
    assert math.isnan(surface_dice(EMPTY, EMPTY, tolerance_mm=1))
    assert surface_dice(voxel, EMPTY, tolerance_mm=1) == 0
    assert surface_dice(EMPTY, voxel, tolerance_mm=1) == 0
    assert surface_dice(voxel, voxel, tolerance_mm=0) == 1


def test_two_slabs_by_hand():
    """Faces 2 mm apart, of 3 mm2 a voxel, the outer ones shared; sides are cut off."""
    one, two = EMPTY.copy(), EMPTY.copy()
    one[3:6, 3:5, 3:5], two[3:7, 3:5, 3:5] = True, True
    near = surface_dice(one, two, tolerance_mm=1.9, spacing_mm=(2, 1, 3))
    assert 0.5 < near < 1
    assert surface_dice(one, two, tolerance_mm=2.0, spacing_mm=(2, 1, 3)) == 1
    assert surface_dice(two, one, tolerance_mm=1.9, spacing_mm=(2, 1, 3)) == pytest.approx(near)


def test_border_voxels_by_hand():
    """Lines of 3 and 4 voxels; the fourth lies 2 mm from the first line."""
    one, two = EMPTY.copy(), EMPTY.copy()
    one[3:6, 3, 3], two[3:7, 3, 3] = True, True
    options = {"spacing_mm": (2, 1, 3), "method": "border"}
    assert surface_dice(one, two, tolerance_mm=1.9, **options) == (1 + 3 / 4) / 2
    assert surface_dice(one, two, tolerance_mm=2.0, **options) == 1
    assert surface_dice(EMPTY, two, tolerance_mm=9, **options) == 0
    assert math.isnan(surface_dice(EMPTY, EMPTY, tolerance_mm=9, **options))


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="unknown NSD method 'voxel': choose one of surface, b"):
        surface_dice(EMPTY, EMPTY, tolerance_mm=1, method="voxel")
