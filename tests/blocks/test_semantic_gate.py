"""Mirrors clipseg3d/blocks/semantic_gate.py. Sizes differ pairwise, so a swapped axis fails."""

import math

import pytest
import torch

from clipseg3d.blocks.semantic_gate import SemanticGate

B, C, X, Y, Z, D = 2, 6, 5, 3, 4, 7


@pytest.fixture
def features():
    return torch.randn(B, C, X, Y, Z, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def summary():
    return torch.randn(B, D, generator=torch.Generator().manual_seed(1))


def test_new_gate_changes_nothing(features, summary):
    assert torch.equal(SemanticGate(C, D)(features, summary), features)


def test_gate_scales_and_shifts_channels(features, summary, randomise):
    gate = randomise(SemanticGate(C, D))
    result = gate(features, summary)
    w = {name: weight.detach().numpy() for name, weight in gate.named_parameters()}
    for b in range(B):
        logit = w["scale.weight"] @ summary[b].numpy() + w["scale.bias"]
        shift = w["shift.weight"] @ summary[b].numpy() + w["shift.bias"]
        for c in range(C):
            expected = features[b, c] * (2 / (1 + math.exp(-logit[c]))) + float(shift[c])
            torch.testing.assert_close(result[b, c], expected)


def test_gradient_reaches_the_new_gate(features, summary, dead_weights):
    gate = SemanticGate(C, D)
    gate(features, summary).square().sum().backward()
    assert dead_weights(gate) == []


def test_semantics_get_gradient_once_the_gate_is_open(features, summary, randomise):
    summary.requires_grad_()
    gate = SemanticGate(C, D)
    gate(features, summary).square().sum().backward()
    assert not summary.grad.any()
    randomise(gate)(features, summary).square().sum().backward()
    assert summary.grad.all()
