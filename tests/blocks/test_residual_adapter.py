"""Mirrors clipseg3d/blocks/residual_adapter.py. Sizes differ pairwise, so a swapped axis fails."""

import math

import pytest
import torch
from torch import nn

from clipseg3d.blocks.residual_adapter import ResidualAdapter

B, N, E = 2, 3, 5


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(0)
    return nn.functional.normalize(torch.randn(B, N, E, generator=generator), dim=-1)


def test_new_adapter_changes_nothing(tokens):
    assert torch.equal(ResidualAdapter(E)(tokens), tokens)


def test_equation_by_hand(tokens, randomise):
    block = randomise(ResidualAdapter(E, hidden=4)).eval()
    scale, shift, w1, b1, w2, b2 = (p.detach().double() for p in block.parameters())
    expected = tokens.double()
    for b in range(B):
        for n in range(N):
            token = tokens[b, n].double()
            mean = sum(token.tolist()) / E
            variance = sum((v - mean) ** 2 for v in token.tolist()) / E
            normal = scale * (token - mean) / math.sqrt(variance + 1e-5) + shift
            hidden = [v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in (w1 @ normal + b1).tolist()]
            expected[b, n] = token + w2 @ torch.tensor(hidden, dtype=torch.double) + b2
    torch.testing.assert_close(block(tokens).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(E,), (B, E), (B, N, 4, E)])
def test_any_number_of_leading_axes(shape, randomise):
    block = randomise(ResidualAdapter(E)).eval()
    tokens = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        block(tokens).reshape(-1, E), torch.stack([block(t) for t in tokens.reshape(-1, E)])
    )


def test_gradients_reach_the_last_layer_at_once_and_every_weight_then(tokens, dead_weights):
    block = ResidualAdapter(E)
    optimiser = torch.optim.SGD(block.parameters(), lr=0.1)
    block(tokens).square().sum().backward()
    assert block.layers[-1].weight.grad.any()
    optimiser.step()
    optimiser.zero_grad()
    block(tokens).square().sum().backward()
    assert dead_weights(block) == []


def test_dropout_of_hidden_values_in_training_only(tokens, randomise):
    block = randomise(ResidualAdapter(E, dropout=1.0))
    with torch.no_grad():
        expected = tokens + block.layers[-1].bias
    assert torch.equal(block(tokens), expected)
    assert not torch.allclose(block.eval()(tokens), expected)
    (drop,) = (m for m in ResidualAdapter(E).modules() if isinstance(m, nn.Dropout))
    assert drop.p == 0.1


def test_default_hidden_layer_is_small():
    assert sum(p.numel() for p in ResidualAdapter(512).parameters()) == (
        2 * 512 + 512 * 64 + 64 + 64 * 512 + 512
    )
