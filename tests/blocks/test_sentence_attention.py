"""Regions pick the sentences that are about them."""

import pytest
import torch

from clipseg3d.blocks import SentenceAttention

DIM, REGIONS = 16, 3


@pytest.fixture
def attention():
    torch.manual_seed(0)
    block = SentenceAttention(DIM, REGIONS)
    torch.nn.init.normal_(block.value.weight)
    torch.nn.init.normal_(block.evidence.weight)
    torch.nn.init.normal_(block.no_sentence)
    return block


def sentences(count, batch=2):
    torch.manual_seed(1)
    return torch.randn(batch, count, DIM), torch.ones(batch, count, dtype=torch.bool)


def test_new_weights_say_nothing():
    text, evidence = SentenceAttention(DIM, REGIONS)(*sentences(4))
    assert not text.any()
    assert not evidence.any()


def test_their_first_gradient_reaches_what_is_zero():
    block = SentenceAttention(DIM, REGIONS)
    text, evidence = block(*sentences(4))
    (text.sum() + evidence.sum()).backward()
    assert block.value.weight.grad.any()
    assert block.evidence.weight.grad.any()


def test_no_sentence_and_masked_sentences_say_nothing(attention):
    tokens, mask = sentences(4)
    mask[0] = False
    text, evidence = attention(tokens, mask)
    assert not text[0].any()
    assert not evidence[0].any()
    assert text[1].all()
    none, _ = attention(*sentences(0))
    assert none.shape == (2, REGIONS, DIM)
    assert not none.any()


def test_padding_and_order_change_nothing(attention):
    tokens, mask = sentences(4)
    padded, longer = sentences(6)
    longer[:, 4:] = False
    padded[:, :4] = tokens
    for given in ((padded, longer), (tokens.flip(1), mask)):
        torch.testing.assert_close(attention(*given), attention(tokens, mask))


def test_by_hand():
    """One region whose query is 4 along the first axis; two sentences, and the empty key."""
    block = SentenceAttention(4, 1)
    with torch.no_grad():
        block.query.copy_(torch.tensor([[4.0, 0, 0, 0]]))
        block.key.weight.copy_(torch.eye(4))
        block.value.weight.copy_(torch.eye(4))
        block.evidence.weight.copy_(torch.tensor([[0.0, 3, 0, 0]]))
    tokens = torch.tensor([[[1.0, 2, 0, 0], [0, 0, 5, 0]]])
    text, evidence = block(tokens, torch.ones(1, 2, dtype=torch.bool))
    first = torch.e**2 / (torch.e**2 + 2)  # scores 4 / sqrt(4), 0, and 0 without a sentence
    other = 1 / (torch.e**2 + 2)
    torch.testing.assert_close(text, torch.tensor([[[first, 2 * first, 5 * other, 0]]]))
    torch.testing.assert_close(evidence, torch.tensor([[6 * first]]))
