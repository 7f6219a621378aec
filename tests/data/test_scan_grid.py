"""Mirrors clipseg3d/data/scan_grid.py."""

import nibabel as nib
import numpy as np
import pytest

from clipseg3d.data.scan_grid import ScanGrid

ORDERS = ["LPS", "RAS", "PIR", "ASL", "SRA", "IPL", "LAI"]
LPS_SHAPE = (5, 7, 9)
BOX = ((1, 4), (0, 5), (2, 8))


@pytest.fixture(params=ORDERS)
def order(request):
    return request.param


def grid_of(reorder, order):
    stored, affine = reorder(np.zeros(LPS_SHAPE), order)
    return ScanGrid(stored.shape, affine, BOX)


def drawn(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


def test_the_tests_reorder_volumes_as_nibabel_does(reorder, order):
    volume = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    stored, affine = reorder(volume, order)
    assert "".join(nib.aff2axcodes(affine)) == order
    image = nib.as_closest_canonical(nib.Nifti1Image(stored.astype(np.int16), affine))
    np.testing.assert_array_equal(np.asarray(image.dataobj)[::-1, ::-1], volume)


def test_restore_takes_leading_channels(reorder, order):
    volumes = np.zeros((2, *LPS_SHAPE), np.float32)
    part = drawn(2, 3, 5, 6)
    volumes[:, 1:4, 0:5, 2:8] = part
    expected = np.stack([reorder(volume, order)[0] for volume in volumes])
    restored = grid_of(reorder, order).restore(part)
    assert restored.dtype == np.float32
    assert restored.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(restored, expected)


def test_restore_takes_any_number_of_leading_axes(reorder):
    grid = grid_of(reorder, "PIR")
    part = drawn(2, 3, 3, 5, 6)
    restored = grid.restore(part)
    assert restored.shape == (2, 3, 7, 9, 5)
    for index in np.ndindex(2, 3):
        np.testing.assert_array_equal(restored[index], grid.restore(part[index]))


def test_restored_masks_are_zero_around_the_box():
    grid = ScanGrid((3, 4, 5), np.diag([-1.0, -1, 1, 1]), ((1, 2), (1, 3), (0, 5)))
    restored = grid.restore(np.ones((1, 2, 5), bool))
    assert restored.dtype == bool
    assert restored.sum() == 10
    assert restored[1, 1:3].all()


def test_crop_cuts_the_box_in_lps_order(reorder, order):
    volume = drawn(*LPS_SHAPE)
    stored, affine = reorder(volume, order)
    cropped = ScanGrid(stored.shape, affine, BOX).crop(stored)
    np.testing.assert_array_equal(cropped, volume[1:4, 0:5, 2:8])


def test_crop_undoes_restore(reorder, order):
    part = drawn(3, 5, 6)
    grid = grid_of(reorder, order)
    np.testing.assert_array_equal(grid.crop(grid.restore(part)), part)


def test_voxel_sizes_are_those_of_the_box(reorder, order):
    sizes = np.array([2.0, 3.0, 1.5])
    stored, affine = reorder(np.zeros(LPS_SHAPE), order)
    affine[:3, :3] = np.diag(sizes) @ affine[:3, :3]
    assert ScanGrid(stored.shape, affine, BOX).spacing_mm == pytest.approx(tuple(sizes))
