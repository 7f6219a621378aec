"""Mirrors clipseg3d/blocks/positions.py. Sizes differ pairwise, so a swapped axis fails."""

import numpy as np
import pytest
import torch

from clipseg3d.blocks.positions import voxel_positions

B, C, X, Y, Z = 2, 6, 5, 3, 4


@pytest.fixture
def features():
    return torch.zeros(B, C, X, Y, Z)


def test_positions_run_between_the_corners_of_the_box(features):
    positions = voxel_positions(features)
    assert positions.shape == (B, 3, X, Y, Z)
    for b, x, y, z in np.ndindex(B, X, Y, Z):
        expected = [(2 * x + 1) / X - 1, (2 * y + 1) / Y - 1, (2 * z + 1) / Z - 1]
        assert positions[b, :, x, y, z].tolist() == pytest.approx(expected, abs=1e-6)


def test_crop_box_is_read_per_case(features):
    crop_box = torch.tensor([[[0.0] * 3, [1.0] * 3], [[0.1, 0.5, 0.9], [0.4, 0.25, -0.6]]])
    positions = voxel_positions(features, crop_box)
    torch.testing.assert_close(positions[0], voxel_positions(features)[0])
    first, last = positions[1, :, 0, 0, 0], positions[1, :, -1, -1, -1]
    corner, size, grid = crop_box[1, 0], crop_box[1, 1], torch.tensor([X, Y, Z])
    torch.testing.assert_close(first, 2 * (corner + size * 0.5 / grid) - 1)
    torch.testing.assert_close(last, 2 * (corner + size * (grid - 0.5) / grid) - 1)


def test_positions_of_a_padded_crop_leave_the_box():
    crop_box = torch.tensor([[[-0.5, 0.0, 0.0], [2.0, 1.0, 1.0]]])
    along_x = voxel_positions(torch.zeros(1, 1, 4, 1, 1), crop_box)[0, 0].flatten()
    torch.testing.assert_close(along_x, torch.tensor([-1.5, -0.5, 0.5, 1.5]))


def test_a_box_of_edges_is_that_of_a_size_or_turned(features):
    """Edges along the axes are a size; others swap or shear the axes of the crop."""
    two_rows = torch.tensor([[[0.1, 0.5, 0.9], [0.4, 0.25, -0.6]]] * B)
    four_rows = torch.cat([two_rows[:, :1], torch.diag_embed(two_rows[:, 1])], dim=1)
    expected = voxel_positions(features, two_rows)
    assert torch.equal(voxel_positions(features, four_rows), expected)
    turned = four_rows.clone()
    turned[0, 1:] = torch.tensor([[0.0, 0.3, 0.0], [-0.2, 0.0, 0.0], [0.1, 0.0, 0.5]])
    positions = voxel_positions(features, turned)
    assert torch.equal(positions[1], expected[1])
    for x, y, z in np.ndindex(X, Y, Z):
        u, v, w = (x + 0.5) / X, (y + 0.5) / Y, (z + 0.5) / Z
        place = [0.1 - 0.2 * v + 0.1 * w, 0.5 + 0.3 * u, 0.9 + 0.5 * w]
        assert positions[0, :, x, y, z].tolist() == pytest.approx([2 * p - 1 for p in place], 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_positions_have_the_type_of_the_features(features, dtype):
    positions = voxel_positions(features.to(dtype))
    assert positions.dtype == dtype
    exact = voxel_positions(features.double())
    torch.testing.assert_close(positions, exact.to(dtype), rtol=0, atol=0)


def test_low_precision_is_only_the_last_step():
    # In bf16 arithmetic, the positions in a small crop_box far from 0 would be a step off.
    crop_box = torch.tensor([[[0.9, 0.9, 0.9], [0.1, 0.05, 0.02]]])
    grid = torch.zeros(1, 1, 40, 30, 20)
    exact = voxel_positions(grid.double(), crop_box)
    assert torch.equal(voxel_positions(grid.bfloat16(), crop_box), exact.bfloat16())
