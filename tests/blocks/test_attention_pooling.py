"""Mirrors clipseg3d/blocks/attention_pooling.py. Sizes differ pairwise, so a swapped axis fails."""

import math

import numpy as np
import pytest
import torch

from clipseg3d.blocks.attention_pooling import GatedAttentionPooling

B, A, K, E, HIDDEN = 2, 3, 5, 7, 4


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(B, A, K, E, generator=generator, dtype=torch.float64)


@pytest.fixture
def trained(randomise):
    return randomise(GatedAttentionPooling(E, hidden=HIDDEN), size=1.0).double()


def test_new_pooling_is_the_mean(tokens):
    pooled = GatedAttentionPooling(E, hidden=HIDDEN).double()(tokens)
    torch.testing.assert_close(pooled, tokens.mean(dim=2), rtol=0, atol=1e-12)


def test_equation(tokens, trained):
    w = {name: weight.detach().numpy() for name, weight in trained.named_parameters()}
    result = trained(tokens)
    assert result.shape == (B, A, E)
    for b, a in np.ndindex(B, A):
        shares = []
        for h in tokens[b, a].numpy():
            content = w["content.weight"] @ h + w["content.bias"]
            gate = w["gate.weight"] @ h + w["gate.bias"]
            score = sum(
                weight * math.tanh(c) / (1 + math.exp(-g))
                for weight, c, g in zip(w["score.weight"][0], content, gate, strict=True)
            )
            shares.append(math.exp(score))
        weighed = sum(s * h for s, h in zip(shares, tokens[b, a].numpy(), strict=True))
        expected = torch.from_numpy(weighed / sum(shares))
        torch.testing.assert_close(result[b, a], expected, rtol=0, atol=1e-10)


def test_order_does_not_matter(tokens, trained):
    torch.testing.assert_close(trained(tokens.flip(2)), trained(tokens))


def test_gradient_reaches_every_weight(tokens, trained, dead_weights):
    new = GatedAttentionPooling(E, hidden=HIDDEN).double()
    new(tokens).square().sum().backward()
    assert "score.weight" not in dead_weights(new)
    trained(tokens).square().sum().backward()
    assert dead_weights(trained) == []
