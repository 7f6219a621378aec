"""Mirrors clipseg3d/blocks/embedding_norm.py: RunningCentering."""

import pytest
import torch

from clipseg3d.blocks.embedding_norm import RunningCentering

B, N, E = 3, 4, 5


@pytest.fixture
def tokens():
    return torch.randn(B, N, E, generator=torch.Generator().manual_seed(0)) + 3


@pytest.fixture
def mask():
    return torch.tensor([[True] * N, [True, False, True, False], [False] * N])


def test_a_new_block_only_rescales(tokens, mask):
    centred = RunningCentering(E).eval()(tokens, mask)
    expected = tokens / tokens.norm(dim=-1, keepdim=True) * E**0.5
    torch.testing.assert_close(centred, expected, rtol=1e-3, atol=1e-4)


def test_the_mean_is_that_of_the_tokens_that_count(tokens, mask):
    centering = RunningCentering(E)
    centering(tokens, mask)
    torch.testing.assert_close(centering.mean, tokens[mask].mean(dim=0))


def test_early_batches_count_alike_and_late_ones_by_momentum(tokens, mask):
    centering = RunningCentering(E, momentum=0.25)
    batches = [tokens * factor for factor in (1, 2, 3, 4, 5, 6)]
    expected = torch.zeros(E)
    for count, batch in enumerate(batches, start=1):
        centering(batch, mask)
        share = max(1 / count, 0.25)
        expected = (1 - share) * expected + share * batch[mask].mean(dim=0)
        torch.testing.assert_close(centering.mean, expected)


def test_evaluation_keeps_the_mean(tokens, mask):
    centering = RunningCentering(E)
    centering(tokens, mask)
    before = centering.mean.clone()
    centering.eval()(10 * tokens, mask)
    assert torch.equal(centering.mean, before)


def test_a_batch_without_any_token_changes_nothing(tokens, mask):
    centering = RunningCentering(E)
    centering(tokens, mask)
    before, batches = centering.mean.clone(), centering.batches.clone()
    centering(tokens, torch.zeros_like(mask))
    centering(tokens[:, :0], mask[:, :0])
    assert torch.equal(centering.mean, before)
    assert torch.equal(centering.batches, batches)


def test_like_embeddings_are_driven_apart(mask):
    """Two kinds of text that differ by little must not look alike any more."""
    shared, difference = torch.ones(E), torch.tensor([0.0, 0.1, 0.0, 0.0, -0.1])
    pair = torch.stack([shared + difference, shared - difference]).expand(B, 2, E)
    assert torch.cosine_similarity(pair[0, 0], pair[0, 1], dim=0) > 0.98
    centering = RunningCentering(E)
    left, right = centering(pair, torch.ones(B, 2, dtype=torch.bool))[0]
    assert torch.cosine_similarity(left, right, dim=0) < -0.99


def test_a_token_at_the_mean_is_zero_and_has_a_finite_gradient():
    token = torch.ones(1, 1, E, requires_grad=True)
    centred = RunningCentering(E)(token, torch.ones(1, 1, dtype=torch.bool))
    centred.sum().backward()
    assert not centred.any()
    assert token.grad.isfinite().all()


def test_mean_is_part_of_the_state(tokens, mask):
    centering = RunningCentering(E)
    centering(tokens, mask)
    other = RunningCentering(E)
    other.load_state_dict(centering.state_dict())
    torch.testing.assert_close(other.eval()(tokens, mask), centering.eval()(tokens, mask))
