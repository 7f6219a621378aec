"""Mirrors clipseg3d/blocks/residual_block.py. Sizes differ pairwise, so a swapped axis fails."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clipseg3d.blocks.cbam import CBAM
from clipseg3d.blocks.residual_block import ResidualBlock

B, C, X, Y, Z = 2, 8, 5, 3, 4


@pytest.fixture
def features():
    return torch.randn(B, C, X, Y, Z, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def plain_block(plain_cbam):
    """The block by the operations of PyTorch, one after the other."""

    def apply(block, stride, features):
        first, norm, _, second, last = block.residual
        hidden = F.instance_norm(
            F.conv3d(features, first.weight, stride=stride, padding=1),
            weight=norm.weight,
            bias=norm.bias,
        )
        hidden = F.conv3d(F.leaky_relu(hidden, 0.01), second.weight, padding=1)
        hidden = F.instance_norm(hidden, weight=last.weight, bias=last.bias)
        if isinstance(block.attention, CBAM):
            hidden = plain_cbam(block.attention, hidden)
        shortcut = features
        if isinstance(block.shortcut, nn.Conv3d):
            shortcut = F.conv3d(features, block.shortcut.weight, stride=stride)
        return F.leaky_relu(hidden + shortcut, 0.01)

    return apply


@pytest.mark.parametrize("cbam", [True, False])
@pytest.mark.parametrize(("out_channels", "stride"), [(C, 1), (10, 1), (10, 2), (C, 2)])
def test_block_is_what_one_would_write(
    features, out_channels, stride, cbam, randomise, assert_same_function, plain_block
):
    block = randomise(ResidualBlock(C, out_channels, stride=stride, cbam=cbam).double())
    assert_same_function(block, lambda given: plain_block(block, stride, given), features.double())


@pytest.mark.parametrize(("out_channels", "stride"), [(C, 1), (10, 1), (10, 2)])
def test_new_cbam_leaves_the_block_as_it_is(features, out_channels, stride):
    plain = ResidualBlock(C, out_channels, stride=stride, cbam=False)
    with_cbam = ResidualBlock(C, out_channels, stride=stride, cbam=True)
    with_cbam.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(with_cbam(features), plain(features))
    torch.nn.init.ones_(with_cbam.attention.spatial.bias)
    assert not torch.allclose(with_cbam(features), plain(features))


def test_residual_is_normalised_and_added_to_the_shortcut(features):
    block = ResidualBlock(C, C, cbam=False)
    torch.nn.init.zeros_(block.residual[-1].weight)  # no residual: what remains is the shortcut
    expected = torch.where(features > 0, features, 0.01 * features)
    torch.testing.assert_close(block(features), expected)


def test_input_is_left_alone(features):
    before = features.clone()
    ResidualBlock(C, C)(features)
    assert torch.equal(features, before)


@pytest.mark.parametrize(("in_channels", "out_channels", "stride"), [(C, C, 1), (C, 10, 2)])
def test_gradient_reaches_every_weight(
    features, in_channels, out_channels, stride, randomise, dead_weights
):
    block = randomise(ResidualBlock(in_channels, out_channels, stride=stride))
    block(features).square().sum().backward()
    assert dead_weights(block) == []


@pytest.mark.parametrize("size", [(8, 6, 4), (7, 5, 3), (2, 9, 1)])
def test_stride_halves_the_grid(size):
    features = torch.randn(1, 3, *size)
    assert ResidualBlock(3, 5)(features).shape == (1, 5, *size)
    halved = tuple(-(-n // 2) for n in size)
    assert ResidualBlock(3, 5, stride=2)(features).shape == (1, 5, *halved)


def test_cases_do_not_mix(features, randomise):
    block = randomise(ResidualBlock(C, 10, stride=2))
    together = block(features)
    for b in range(B):
        torch.testing.assert_close(together[b], block(features[b : b + 1])[0])


def test_dropout_is_for_training_only(features):
    torch.manual_seed(0)
    block = ResidualBlock(C, C, dropout=0.5)
    assert not torch.equal(block(features), block(features))
    block.eval()
    assert torch.equal(block(features), block(features))
