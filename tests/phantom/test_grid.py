"""Mirrors clipseg3d/phantom/grid.py."""

import numpy as np
import pytest

from clipseg3d.phantom.grid import (
    CENTRE_MM,
    PhantomGrid,
    SmoothNoise,
    linear_weights,
    multiply_axes,
    multiply_axis,
)


def test_axes_hold_the_positions_of_voxel_centres():
    grid = PhantomGrid(4.0)
    assert grid.shape == (60, 60, 39)
    for axis, box, centre in zip(grid.axes_mm, grid.box, CENTRE_MM, strict=True):
        expected = (np.arange(box.start, box.stop) + 0.5) * 4 - centre
        np.testing.assert_allclose(axis, expected, rtol=1e-6)


def test_resampling_keeps_a_linear_field():
    here, there = PhantomGrid(3.0), PhantomGrid(5.0)

    def field(grid):
        u, v, w = grid.mesh
        return (u - 2 * v + 3 * w).astype(np.float32)

    inner = (slice(1, -1),) * 3
    resampled = here.resample(field(here), there)
    np.testing.assert_allclose(resampled[inner], field(there)[inner], atol=1e-3)


def test_noise_has_mean_0_and_spread_1_and_is_the_same_field_on_every_grid():
    rng = np.random.default_rng(0)
    noise = SmoothNoise.draw(rng, 9.0)
    fine, coarse = noise.on(PhantomGrid(2.0)), noise.on(PhantomGrid(6.0))
    assert abs(fine.mean()) < 0.05
    assert fine.std() == pytest.approx(1, abs=0.05)
    # Three 2 mm voxels make one of 6 mm, the middle one at its centre.
    start = [
        3 * c.start + 1 - f.start
        for c, f in zip(PhantomGrid(6.0).box, PhantomGrid(2.0).box, strict=True)
    ]
    i, j, k = (slice(s, s + 3 * (n - 1), 3) for s, n in zip(start, coarse.shape, strict=True))
    part = fine[i, j, k]
    x, y, z = part.shape
    np.testing.assert_allclose(part, coarse[:x, :y, :z], atol=1e-4)


def test_noise_varies_over_its_scale():
    rng = np.random.default_rng(1)
    noise = SmoothNoise.draw(rng, 12.0).on(PhantomGrid(2.0))

    def alike(voxels):
        return np.corrcoef(noise[voxels:].ravel(), noise[:-voxels].ravel())[0, 1]

    assert alike(1) > 0.9
    assert abs(alike(15)) < 0.2


def test_linear_weights_interpolate_and_hold_the_ends():
    weights = linear_weights(np.array([-1.0, 0.25, 2.0, 7.0]), 3)
    np.testing.assert_allclose(weights, [[1, 0, 0], [0.75, 0.25, 0], [0, 0, 1], [0, 0, 1]])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_matrix_changes_one_axis_only(axis):
    volume = np.random.default_rng(0).random((2, 3, 4)).astype(np.float32)
    matrix = np.random.default_rng(1).random((5, volume.shape[axis]))
    names = "xyz"
    out = names.replace(names[axis], "m")
    expected = np.einsum(f"m{names[axis]},{names}->{out}", matrix, volume)
    np.testing.assert_allclose(multiply_axis(volume, matrix, axis), expected, rtol=1e-5)


def test_every_axis_is_multiplied_by_its_matrix():
    rng = np.random.default_rng(0)
    volume = rng.random((2, 3, 4)).astype(np.float32)
    matrices = [rng.random((m, n)) for m, n in zip((5, 6, 7), volume.shape, strict=True)]
    expected = np.einsum("xyz,ix,jy,kz->ijk", volume, *matrices)
    np.testing.assert_allclose(multiply_axes(volume, matrices), expected, rtol=1e-5)
