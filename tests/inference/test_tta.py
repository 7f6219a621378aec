"""Mirrors clipseg3d/inference/tta.py. Sizes differ pairwise, so a swapped axis fails."""

import pytest
import torch

from clipseg3d.blocks.semantic_attention import voxel_positions
from clipseg3d.inference.tta import MIRRORINGS, mirror_crop_box, mirror_volume

X, Y, Z = 5, 7, 6


@pytest.fixture
def volume():
    return torch.randn(2, 4, X, Y, Z, generator=torch.Generator().manual_seed(0))


def test_all_mirrorings_are_there_and_none_comes_first():
    assert MIRRORINGS == ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))


@pytest.mark.parametrize("mirrored", MIRRORINGS)
def test_a_volume_is_mirrored_along_its_spatial_axes_and_back(volume, mirrored):
    result = mirror_volume(volume, mirrored)
    x, y, z = ((-1 if axis in mirrored else 1) for axis in range(3))
    expected = volume.numpy()[:, :, ::x, ::y, ::z]
    assert torch.equal(result, torch.from_numpy(expected.copy()))
    assert torch.equal(mirror_volume(result, mirrored), volume)
    assert torch.equal(mirror_volume(volume[0, 0], mirrored), result[0, 0])


def test_no_mirroring_copies_nothing(volume):
    assert mirror_volume(volume, ()) is volume


def test_a_mirrored_axis_runs_from_its_far_corner_backwards():
    crop_box = torch.tensor([[0.125, 0.25, 0.5], [0.25, 0.125, 0.75]])
    before = crop_box.clone()
    mirrored = mirror_crop_box(crop_box, (0, 2))
    assert mirrored.tolist() == [[0.875, 0.25, 0.5], [-0.25, 0.125, -0.75]]
    assert torch.equal(crop_box, before)
    assert torch.equal(mirror_crop_box(crop_box, ()), crop_box)


@pytest.mark.parametrize("mirrored", MIRRORINGS)
def test_a_crop_of_the_mirrored_volume_keeps_its_positions(volume, mirrored):
    positions = voxel_positions(volume[:1])  # of each voxel in the volume
    size = torch.tensor([X, Y, Z])
    crop = (..., slice(1, 4), slice(2, 7), slice(0, 4))
    crop_box = torch.stack([torch.tensor([1, 2, 0]) / size, torch.tensor([3, 5, 4]) / size])
    shown = mirror_volume(volume[:1], mirrored)[crop]
    result = voxel_positions(shown, mirror_crop_box(crop_box, mirrored)[None])
    torch.testing.assert_close(result, mirror_volume(positions, mirrored)[crop])
