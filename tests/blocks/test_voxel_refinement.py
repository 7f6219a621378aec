"""Mirrors clipseg3d/blocks/voxel_refinement.py. Sizes differ pairwise, so a swapped axis fails."""

import pytest
import torch

from clipseg3d.blocks.voxel_refinement import VoxelRefinement

B, IN, OUT, HIDDEN = 2, 4, 3, 5
X, Y, Z = 8, 12, 16


@pytest.fixture
def image():
    return torch.randn(B, IN, X, Y, Z, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def raw():
    return torch.randn(B, OUT, X, Y, Z, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def trained():
    refine = VoxelRefinement(IN, OUT, hidden=HIDDEN, cube=2)
    torch.manual_seed(2)
    torch.nn.init.normal_(refine.layers[-1].weight)
    return refine


def test_changes_nothing_until_trained_and_then_learns(image, raw):
    refine = VoxelRefinement(IN, OUT, hidden=HIDDEN, cube=2)
    refined = refine(raw, image)
    assert torch.equal(refined, raw)
    refined.square().sum().backward()
    assert refine.layers[-1].weight.grad.abs().amax(dim=1).gt(0).all()


def test_a_voxel_reaches_its_own_cube_only(trained, image, raw):
    trained.layers[1].forward = torch.tanh  # normalisation would spread it over the whole grid
    for given in (image, raw):
        before = trained(raw, image)
        with torch.no_grad():
            given[1, 2, 5, 6, 11] += 3
        changed = (trained(raw, image) - before)[1].abs().amax(dim=0) > 1e-5
        assert changed[4:6, 6:8, 10:12].all()
        changed[4:6, 6:8, 10:12] = False
        assert not changed.any()


def test_voxels_of_a_cube_are_told_apart(trained, raw):
    flat = torch.zeros(B, IN, X, Y, Z)
    change = trained(raw, flat) - raw
    cubes = change.unfold(2, 2, 2).unfold(3, 2, 2).unfold(4, 2, 2)
    assert (cubes.flatten(5).std(dim=-1) > 1e-3).all()


def test_cases_do_not_mix(trained, image, raw):
    together = trained(raw, image)
    for b in range(B):
        torch.testing.assert_close(trained(raw[b : b + 1], image[b : b + 1])[0], together[b])
