"""Mirrors clipseg3d/blocks/fixed_norm.py."""

import pytest
import torch
import torch.nn.functional as F

from clipseg3d.blocks.feature_fusion import ActivatedNorm, ResidualBlock, SpatialAttention
from clipseg3d.blocks.fixed_norm import FixedNorm

C, X, Y, Z = 3, 4, 5, 6


@pytest.fixture
def features():
    return 3 + 2 * torch.randn(1, C, X, Y, Z, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("training", [True, False])
def test_normalised_by_what_is_kept(features, training):
    norm = FixedNorm(C, slope=0.2).train(training)
    norm.mean.copy_(torch.tensor([1.0, -2.0, 3.0]))
    norm.var.copy_(torch.tensor([4.0, 9.0, 0.25]))
    norm.weight.data.copy_(torch.tensor([1.0, 2.0, -1.0]))
    norm.bias.data.copy_(torch.tensor([0.0, 0.5, 1.0]))
    due = torch.stack(
        [
            (features[0, 0] - 1) / 2,
            (features[0, 1] + 2) / 3 * 2 + 0.5,
            -(features[0, 2] - 3) / 0.5 + 1,
        ]
    )[None]
    torch.testing.assert_close(norm(features), F.leaky_relu(due, 0.2), rtol=1e-4, atol=1e-4)
    assert norm.mean.tolist() == [1.0, -2.0, 3.0]  # nothing is learned of what it is given


def test_with_statistics_of_the_features_it_is_instance_normalisation(features):
    fixed, instance = FixedNorm(C, slope=0.01), ActivatedNorm(C)
    fixed.mean.copy_(features.mean(dim=(0, 2, 3, 4)))
    fixed.var.copy_(features.var(dim=(0, 2, 3, 4), correction=0))
    torch.testing.assert_close(fixed(features), instance(features))


def test_a_block_reads_no_more_than_its_neighbourhood(features, randomise):
    block = randomise(ResidualBlock(C, C, fixed_statistics=True))
    assert isinstance(block.attention, SpatialAttention)
    changed = features.clone()
    changed[..., -1] += 100
    # two convolutions of reach 1, and the filter of spatial attention
    assert torch.equal(block(changed)[..., :2], block(features)[..., :2])
    assert not torch.equal(block(changed)[..., 2], block(features)[..., 2])
    without = ResidualBlock(C, C, cbam=False, fixed_statistics=True)
    assert not any("attention" in name for name in without.state_dict())
