"""Mirrors clipseg3d/blocks/gate_convolution.py."""

import torch
import torch.nn.functional as F

from clipseg3d.blocks.gate_convolution import GateConvolution

B, C, D, X, Y, Z = 2, 5, 7, 3, 4, 6


def test_it_is_the_convolution_of_features_and_repeated_semantics():
    torch.manual_seed(0)
    gate = GateConvolution(C, D).double()
    features = torch.randn(B, C, X, Y, Z, dtype=torch.float64)
    summary = torch.randn(B, D, dtype=torch.float64)
    repeated = summary.view(B, D, 1, 1, 1).expand(-1, -1, X, Y, Z)
    expected = F.conv3d(torch.cat([features, repeated], dim=1), gate.weight, gate.bias, padding=1)
    assert expected.shape == (B, 1, X, Y, Z)
    torch.testing.assert_close(gate(features, summary), expected)


def test_gradient_reaches_every_weight_and_both_inputs(dead_weights):
    torch.manual_seed(0)
    gate = GateConvolution(C, D)
    features = torch.randn(B, C, X, Y, Z, requires_grad=True)
    summary = torch.randn(B, D, requires_grad=True)
    gate(features, summary).square().sum().backward()
    assert dead_weights(gate) == []
    assert features.grad.all()
    assert summary.grad.all()
