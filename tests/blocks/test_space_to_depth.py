"""Mirrors clipseg3d/blocks/space_to_depth.py. Sizes differ pairwise, so a swapped axis fails."""

import itertools

import pytest
import torch

from clipseg3d.blocks.space_to_depth import depth_to_space, space_to_depth

B, C, X, Y, Z = 2, 3, 8, 12, 16


@pytest.mark.parametrize("cube", [1, 2, 4])
def test_cubes_become_channels_and_voxels_again(cube):
    volume = torch.randn(B, C, X, Y, Z, generator=torch.Generator().manual_seed(0))
    cubes = space_to_depth(volume, cube)
    assert cubes.shape == (B, C * cube**3, X // cube, Y // cube, Z // cube)
    for channel, (c, i, j, k) in enumerate(
        itertools.product(range(C), range(cube), range(cube), range(cube))
    ):
        assert torch.equal(cubes[:, channel], volume[:, c, i::cube, j::cube, k::cube])
    assert torch.equal(depth_to_space(cubes, cube), volume)
