"""Mirrors clipseg3d/blocks/attention_gate.py. Sizes differ pairwise, so a swapped axis fails."""

import math

import numpy as np
import pytest
import torch

from clipseg3d.blocks.attention_gate import AttentionGate

B, C, X, Y, Z, GATE = 2, 8, 5, 3, 4, 6


@pytest.fixture
def skip():
    return torch.randn(B, C, X, Y, Z, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def decoder():
    return torch.randn(B, GATE, X, Y, Z, generator=torch.Generator().manual_seed(1))


def test_new_gate_passes_the_skip(skip, decoder):
    assert torch.equal(AttentionGate(C, GATE)(skip, decoder), skip)


def test_equations(skip, decoder, randomise):
    block = randomise(AttentionGate(C, GATE).double())
    w = {name: weight.detach().numpy().squeeze() for name, weight in block.named_parameters()}
    w["from_skip.weight"], w["from_gate.weight"] = (
        w[name].reshape(C // 4, -1) for name in ("from_skip.weight", "from_gate.weight")
    )
    given, gate = skip.double().numpy(), decoder.double().numpy()
    expected = np.zeros_like(given)
    for b, x, y, z in np.ndindex(B, X, Y, Z):
        s, g = given[b, :, x, y, z], gate[b, :, x, y, z]
        hidden = w["from_skip.weight"] @ s + w["from_gate.weight"] @ g + w["from_gate.bias"]
        score = float(w["score.weight"] @ np.maximum(hidden, 0) + w["score.bias"])
        expected[b, :, x, y, z] = s * 2 / (1 + math.exp(-score))
    result = block(skip.double(), decoder.double())
    torch.testing.assert_close(result, torch.from_numpy(expected), rtol=0, atol=1e-10)


def test_only_the_voxel_whose_decoder_features_change_changes(skip, decoder, randomise):
    block = randomise(AttentionGate(C, GATE))
    moved = decoder.clone()
    moved[1, :, 4, 0, 2] += 3
    changed = (block(skip, moved) - block(skip, decoder)).abs().amax(dim=1) > 1e-6
    assert changed.nonzero().tolist() == [[1, 4, 0, 2]]


def test_gradient_reaches_every_weight(skip, decoder, randomise, dead_weights):
    block = AttentionGate(C, GATE)
    block(skip, decoder).square().sum().backward()
    assert dead_weights(block) == ["from_skip.weight", "from_gate.weight", "from_gate.bias"]
    randomise(block)(skip, decoder).square().sum().backward()
    assert dead_weights(block) == []


def test_few_channels_are_enough(decoder):
    skip = torch.ones(B, 1, X, Y, Z)
    assert AttentionGate(1, GATE)(skip, decoder).shape == skip.shape
