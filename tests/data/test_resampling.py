"""Mirrors clipseg3d/data/resampling.py: small cases worked out by hand."""

import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec

from clipseg3d.data.resampling import carry, carry_brain, extent

ONE = np.eye(4)


def grid(*sizes, origin=(0, 0, 0)):
    """Return the affine of straight axes with these voxel sizes; ``origin`` is the first centre."""
    return from_matvec(np.diag(np.array(sizes, float)), origin)


def ramp(shape, affine):
    """Return a linear function of the position in mm, which linear interpolation keeps."""
    points = np.moveaxis(np.indices(shape), 0, -1).astype(float)
    return (apply_affine(affine, points) @ [1.0, 20.0, 300.0]).astype(np.float32)


def turned(angle=0.3):
    """Return a rotation about an odd axis and a shift."""
    c, s = np.cos(angle), np.sin(angle)
    about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    return from_matvec(about_z @ about_x, [3.0, -2.0, 1.0])


def test_halves_and_quarters_between_two_voxels():
    values = np.array([4.0, 8.0], np.float32).reshape(2, 1, 1)
    # voxels of 0.5 mm, whose first begins where the first of 1 mm begins
    fine = carry(values, ONE, (4, 1, 1), grid(0.5, 1, 1, origin=(-0.25, 0, 0)))
    np.testing.assert_allclose(fine.ravel(), [0.75 * 4, 0.75 * 4 + 0.25 * 8, 7, 0.75 * 8])
    half = carry(values, ONE, (1, 1, 1), grid(1, 1, 1, origin=(0.5, 0, 0)))
    assert half.item() == 6


def test_larger_voxels_are_means_and_not_samples():
    checks = np.tile(np.array([0.0, 1.0], np.float32), 20).reshape(40, 1, 1)
    coarse = carry(checks, ONE, (10, 1, 1), grid(4, 1, 1, origin=(1.5, 0, 0)))
    np.testing.assert_allclose(coarse[2:-2], 0.5, atol=0.01)
    sampled = carry(checks.astype(np.uint8), ONE, (10, 1, 1), grid(4, 1, 1), order=0)
    assert sampled.ravel().tolist() == [0] * 10  # every fourth voxel is 0: aliasing


def test_a_ramp_stays_a_ramp_on_any_grid():
    source, target = turned() @ grid(2, 3, 1), turned(-0.2) @ grid(1.5, 1, 2.5, origin=(9, 12, 6))
    values = ramp((30, 25, 60), source)
    moved = carry(values, source, (8, 9, 7), target)
    inside = apply_affine(
        np.linalg.inv(source) @ target, np.moveaxis(np.indices((8, 9, 7)), 0, -1).astype(float)
    )
    certain = ((inside > 4) & (inside < np.array(values.shape) - 5)).all(axis=-1)
    assert certain.sum() > 100
    np.testing.assert_allclose(moved[certain], ramp((8, 9, 7), target)[certain], rtol=1e-4)


def test_swapped_and_mirrored_axes_only_move_voxels():
    values = np.random.default_rng(0).random((3, 4, 5), np.float32)
    # axis 0 of the result runs down axis 2 of the source, axis 1 up axis 0, axis 2 up axis 1
    target = np.array([[0.0, 1, 0, 0], [0, 0, 1, 0], [-1, 0, 0, 4], [0, 0, 0, 1]])
    moved = carry(values, ONE, (5, 3, 4), target)
    np.testing.assert_array_equal(moved, values[:, :, ::-1].transpose(2, 0, 1))


def test_a_brain_of_one_value_keeps_it_and_its_background_is_zero():
    volume = np.zeros((9, 9, 9), np.int16)
    volume[3:6, 2:7, 3:8] = 700
    for to in (grid(0.4, 0.7, 0.3), grid(1.6, 1.6, 1.6), turned()):
        values, _ = carry_brain(volume, ONE, to)
        assert set(np.unique(values)) == {0, 700}


def test_values_stay_in_the_brains_range_and_its_volume_is_kept():
    rng = np.random.default_rng(0)
    volume = np.zeros((20, 22, 24), np.float32)
    volume[4:16, 6:18, 6:18] = rng.uniform(-3, -1, (12, 12, 12))  # as of z-scores: below background
    inside = volume[volume != 0]
    fine, coarse = grid(0.5, 0.5, 0.5, origin=(0.25,) * 3), grid(2, 2, 2, origin=(0.5,) * 3)
    for to, mm3 in ((fine, 1 / 8), (coarse, 8), (turned(), 1)):
        values, _ = carry_brain(volume, ONE, to)
        brain = values[values != 0]
        assert inside.min() <= brain.min() < brain.max() <= inside.max()
        assert brain.mean() == pytest.approx(inside.mean(), abs=0.02)
        assert brain.size * mm3 == pytest.approx(inside.size, rel=0.05)


def test_a_block_lies_where_the_brain_lies():
    volume = np.zeros((12, 10, 8), np.float32)
    volume[5:9, 2:6, 4:8] = 100  # the last slice of the field of view included
    to = grid(0.5, 0.5, 0.5, origin=(5.75, -0.25, -0.25))
    values, start = carry_brain(volume, ONE, to)
    where = np.argwhere(values) + start
    # from 4.5 to 8.5 mm is 1.5 mm before the grid's own first voxel, of 5.5 to 6 mm
    assert where.min(axis=0).tolist() == [-2, 4, 8]
    assert (where.max(axis=0) + 1).tolist() == [6, 12, 16]
    assert np.count_nonzero(values) == 8 * 8 * 8 - 8  # less than half of a corner is brain


def test_extents_count_whole_voxels():
    start, stop = extent((4, 4, 4), ONE, grid(2, 2, 2, origin=(0.5, 0.5, 0.5)))
    assert (start.tolist(), stop.tolist()) == ([0, 0, 0], [2, 2, 2])
    start, stop = extent((4, 4, 4), ONE, grid(2, 2, 2))  # half of its first voxel lies before 0
    assert (start.tolist(), stop.tolist()) == ([0, 0, 0], [3, 3, 3])
