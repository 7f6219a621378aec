"""Mirrors clipseg3d/blocks/grade_classifier.py. Sizes differ pairwise, so a swapped axis fails."""

import pytest
import torch
from torch import nn

from clipseg3d.blocks.grade_classifier import GradeClassifier

B, C, X, Y, Z = 2, 6, 3, 4, 5


@pytest.fixture
def bottleneck():
    return torch.randn(B, C, X, Y, Z, generator=torch.Generator().manual_seed(0))


def test_logit_by_hand(bottleneck):
    block = GradeClassifier(C).eval()
    w1, b1, w2, b2 = (p.detach().double() for p in block.parameters())
    assert w1.shape == (C // 2, 2 * C)
    expected = []
    for case in bottleneck.double():
        voxels = [[v.item() for v in channel.flatten()] for channel in case]
        pooled = [sum(v) / len(v) for v in voxels] + [max(v) for v in voxels]
        hidden = w1 @ torch.tensor(pooled, dtype=torch.double) + b1
        hidden = torch.tensor([h if h > 0 else 0.01 * h for h in hidden.tolist()]).double()
        expected.append((w2[0] @ hidden + b2[0]).item())
    logit = block(bottleneck)
    assert logit.shape == (B,)
    assert logit.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_shares_of_dropout_are_those_of_the_paper():
    drops = [layer.p for layer in GradeClassifier(C).modules() if isinstance(layer, nn.Dropout)]
    assert drops == [0.3, 0.2]


def test_dropout_before_each_layer_in_training_only(bottleneck):
    for dropout in ((1.0, 0.0), (0.0, 1.0)):
        block = GradeClassifier(C, dropout=dropout)
        other = bottleneck.flip(0)
        assert torch.equal(block(bottleneck), block(other))  # nothing of the input is left
        block.eval()
        assert not torch.equal(block(bottleneck), block(other))


def test_it_learns_a_grade_and_gradients_reach_every_weight(dead_weights):
    torch.manual_seed(0)
    grade = torch.arange(16) % 2
    features = torch.randn(16, C, X, Y, Z)
    features[:, 2] += grade.view(-1, 1, 1, 1)
    block = GradeClassifier(C)
    optimiser = torch.optim.Adam(block.parameters(), lr=0.03)
    for _ in range(80):
        optimiser.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(block(features), grade.float())
        loss.backward()
        optimiser.step()
    assert dead_weights(block) == []
    assert torch.equal(block.eval()(features) > 0, grade > 0)


def test_a_single_channel_is_enough():
    low, high = GradeClassifier(1).eval()(torch.arange(2.0).view(B, 1, 1, 1, 1))
    assert low != high


def test_rejects_a_share_above_one():
    with pytest.raises(ValueError, match=r"1\.5"):
        GradeClassifier(C, dropout=(0.3, 1.5))
