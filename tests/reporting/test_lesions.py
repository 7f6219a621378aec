"""Mirrors clipseg3d/reporting/lesions.py. Sizes differ pairwise, so a swapped axis fails."""

import numpy as np
import pytest

from clipseg3d.reporting.lesions import find_lesions

SPACING_MM = (1.0, 2.0, 4.0)


def test_parts_are_listed_from_large_to_small_with_their_volume():
    mask = np.zeros((9, 11, 13), bool)
    mask[1, 1, 1] = True
    mask[4:7, 4:9, 6:8] = True
    volumes = [lesion.volume_ml for lesion in find_lesions(mask, spacing_mm=SPACING_MM)]
    assert volumes == pytest.approx([3 * 5 * 2 * 8 / 1000, 8 / 1000])


def test_a_corner_joins_two_voxels_and_a_gap_parts_them():
    mask = np.zeros((5, 6, 7), bool)
    mask[1, 1, 1] = mask[2, 2, 2] = True
    assert len(find_lesions(mask, spacing_mm=SPACING_MM)) == 1
    mask[2, 2, 2], mask[3, 1, 1] = False, True
    assert len(find_lesions(mask, spacing_mm=SPACING_MM)) == 2


def test_the_slices_are_those_of_the_largest_section_of_that_part():
    mask = np.zeros((12, 14, 16), bool)
    mask[2:9, 3:6, 5:8] = True
    mask[4, 1:8, 4:9] = True  # widest in x = 4
    mask[3:8, 5, 5:11] = True  # in y = 5
    mask[3:7, 2:7, 7] = True  # in z = 7
    mask[11, 13, 15] = True
    large, small = find_lesions(mask, spacing_mm=SPACING_MM)
    assert large.slices == (4, 5, 7)
    assert small.slices == (11, 13, 15)


def test_an_empty_mask_has_none():
    assert find_lesions(np.zeros((3, 4, 5), bool), spacing_mm=SPACING_MM) == []
