"""Mirrors clipseg3d/blocks/pointwise_conv.py. Sizes differ pairwise, so a swapped axis fails."""

import pytest
import torch
from torch import nn

from clipseg3d.blocks.pointwise_conv import PointwiseConv3d

B, C, OUT, X, Y, Z = 2, 5, 3, 7, 4, 6


@pytest.fixture
def features():
    return torch.randn(B, C, X, Y, Z, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_it_is_a_convolution(features, bias, layout):
    layer = PointwiseConv3d(C, OUT, bias=bias).double()
    plain = nn.Conv3d(C, OUT, 1, bias=bias).double()
    plain.load_state_dict(layer.state_dict())
    results = []
    for module in (layer, plain):
        given = features.to(memory_format=layout).requires_grad_()
        out = module(given)
        towards = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)
        gradients = torch.autograd.grad((out * towards).sum(), [given, *module.parameters()])
        results.append([out, *gradients])
    assert results[0][0].shape == (B, OUT, X, Y, Z)
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-12)


def test_no_convolution_runs_on_contiguous_features(features):
    node = PointwiseConv3d(C, OUT).double()(features).grad_fn
    assert "Convolution" not in str([node, *node.next_functions])


def test_autocast_computes_in_bf16(features):
    layer = PointwiseConv3d(C, OUT)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(features.float())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), layer(features.float()), rtol=0.02, atol=0.02)
