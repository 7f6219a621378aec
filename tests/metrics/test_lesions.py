"""Mirrors clipseg3d/metrics/lesions.py."""

import numpy as np
import pytest
from scipy import ndimage

from clipseg3d.metrics.lesions import drop_small, join_lesions, number_lesions

SHAPE = (20, 14, 16)


def mask(*boxes):
    voxels = np.zeros(SHAPE, bool)
    for box in boxes:
        voxels[box] = True
    return voxels


def numbers_at(numbers, *voxels):
    return [int(numbers[voxel]) for voxel in voxels]


@pytest.mark.parametrize(("gap", "dilations"), [(2, 1), (6, 3), (10, 5)])
def test_lesions_that_touch_when_dilated_are_one(gap, dilations):
    """Between two voxels that touch after n dilations lie 2 n others at most."""
    one, two, far = ((2 + step, 3, 4) for step in (0, gap + 1, gap + 2))
    near = number_lesions(mask(one, two), dilations=dilations)
    assert numbers_at(near, one, two) == [1, 1]
    assert numbers_at(number_lesions(mask(one, far), dilations=dilations), one, far) == [1, 2]
    assert numbers_at(number_lesions(mask(one, two)), one, two) == [1, 2]


def test_the_box_around_lesions_need_not_hold_what_a_dilation_adds():
    rng = np.random.default_rng(0)
    for _ in range(30):
        small = rng.random((9, 8, 7)) < 0.02
        grown = ndimage.binary_dilation(
            np.pad(small, 6), ndimage.generate_binary_structure(3, 2), iterations=5
        )
        expected = ndimage.label(grown, np.ones((3, 3, 3)))[0][(slice(6, -6),) * 3]
        result = number_lesions(small, dilations=5)
        np.testing.assert_array_equal(result * small, expected * small)


def test_lesions_must_be_larger_than_the_volume():
    numbers = number_lesions(mask(np.s_[0:2, 0, 0], np.s_[5:8, 0, 0], np.s_[12:17, 0, 0]))
    kept = drop_small(numbers, min_volume_mm3=3, spacing_mm=(1, 1, 1))
    assert numbers_at(kept, (0, 0, 0), (6, 0, 0), (14, 0, 0)) == [0, 0, 1]
    kept = drop_small(numbers, min_volume_mm3=3, spacing_mm=(1, 1, 1.5))
    assert numbers_at(kept, (0, 0, 0), (6, 0, 0), (14, 0, 0)) == [0, 1, 2]


def test_lesions_that_touch_the_same_other_lesion_are_joined():
    core = mask(np.s_[5:10, 5, 5])
    left, right, alone = (4, 4, 5), (10, 5, 6), (15, 10, 10)
    rim = mask(left, right, alone)
    joined = join_lesions(number_lesions(rim), rim, number_lesions(core))
    assert numbers_at(joined, left, right, alone) == [1, 1, 2]


def test_a_corner_is_no_neighbour():
    core, rim = mask(np.s_[5:10, 5, 5]), mask((4, 4, 4), (10, 5, 5))
    joined = join_lesions(number_lesions(rim), rim, number_lesions(core))
    assert numbers_at(joined, (4, 4, 4), (10, 5, 5)) == [2, 1]


def test_the_first_other_lesion_decides():
    """The middle lesion touches both cores, and joins the lesion at the first one alone."""
    cores = mask(np.s_[3, 5, 5], np.s_[7, 5, 5])
    rim = mask((2, 5, 5), np.s_[4:7, 5, 5], (8, 5, 5))
    joined = join_lesions(number_lesions(rim), rim, number_lesions(cores))
    assert numbers_at(joined, (2, 5, 5), (5, 5, 5), (8, 5, 5)) == [1, 1, 2]


def test_what_a_dilation_added_touches_nothing_but_is_joined_too():
    core, rim = mask(np.s_[5:10, 5, 5]), mask((3, 5, 5), (10, 5, 5), (10, 10, 12))
    numbers = number_lesions(rim, dilations=1)
    joined = join_lesions(numbers, rim, number_lesions(core))
    assert numbers_at(joined, (3, 5, 5), (10, 5, 5), (10, 10, 12)) == [2, 1, 3]
    assert numbers_at(joined, (2, 5, 5), (10, 6, 5)) == [2, 1]
