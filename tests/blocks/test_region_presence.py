"""Presence: from image and text, as one factor per region."""

import math

import pytest
import torch

from clipseg3d.blocks import RegionPresence, apply_presence
from clipseg3d.blocks.region_presence import PRESENT


def inputs(batch=2, channels=5, regions=3):
    torch.manual_seed(0)
    features = torch.randn(batch, channels, 4, 5, 3)
    logits = 3 * torch.randn(batch, regions, 7, 9, 6)  # twice as fine, cropped
    return features, logits, torch.zeros(batch, regions)


def test_new_weights_change_no_bit():
    features, logits, evidence = inputs()
    presence = RegionPresence(5, 3)(features, logits, evidence)
    assert torch.equal(presence, torch.full((2, 3), PRESENT))
    assert torch.equal(apply_presence(logits, presence, torch.ones(2)), logits)


def test_evidence_is_added_in_log_odds():
    block = RegionPresence(5, 3)
    torch.nn.init.normal_(block.score.weight)
    features, logits, evidence = inputs()
    changed = evidence + torch.tensor([0.0, -2, 5])
    torch.testing.assert_close(
        block(features, logits, changed) - block(features, logits, evidence), changed
    )


@pytest.mark.parametrize("volume", [0, 3])
def test_the_volume_and_the_features_of_what_is_found_are_read(volume):
    block = RegionPresence(2, 1, hidden=4)
    with torch.no_grad():
        block.hidden.weight.zero_()
        block.hidden.bias.zero_()
        block.hidden.weight[0, 0] = block.hidden.weight[1, 2] = 1  # first feature; volume
        block.score.weight.copy_(torch.tensor([[1.0, 10, 0, 0]]))
    logits = torch.full((1, 1, 4, 4, 4), -40.0)
    logits.view(-1)[:volume] = 40
    features = torch.zeros(1, 2, 4, 4, 4)
    features[:, 0] = 7
    presence = block(features, logits, torch.zeros(1, 1))
    mean = 7 * volume / (volume + 1)
    assert presence.item() == pytest.approx(PRESENT + mean + 10 * math.log1p(volume) / 4, rel=1e-5)


def test_every_region_has_features_of_its_own():
    """The first region has the value 2 of the first channel, the other 5 of the second."""
    block = RegionPresence(2, 2, hidden=4)
    with torch.no_grad():
        block.hidden.weight.zero_()
        block.hidden.bias.zero_()
        block.hidden.weight[:4, :4] = torch.eye(4)
        block.score.weight.copy_(torch.tensor([[1.0, 10, 100, 1000], [0, 0, 0, 1]]))
        block.score.weight.div_(4 / 5)  # four voxels of five parts
    logits = torch.full((1, 2, 4, 4, 4), -40.0)
    logits[:, 0, 0, 0] = logits[:, 1, 1, 1] = 40
    features = torch.zeros(1, 2, 4, 4, 4)
    features[:, 0, 0], features[:, 1, 1] = 2, 5
    presence = block(features, logits, torch.zeros(1, 2)) - PRESENT
    torch.testing.assert_close(presence, torch.tensor([[2.0 + 5000, 5]]), rtol=1e-4, atol=1e-3)


def test_padded_features_of_a_coarser_grid_are_read_where_the_logits_are():
    block = RegionPresence(1, 1, hidden=1)
    with torch.no_grad():
        block.hidden.weight.copy_(torch.tensor([[1.0, 0, 0]]))
        block.hidden.bias.zero_()
        block.score.weight.fill_(1)
    logits = torch.full((1, 1, 7, 4, 4), -40.0)
    logits[..., 6, :2, :2] = 40  # in the last, half padded, coarse voxel
    features = torch.zeros(1, 1, 4, 2, 2)
    features[0, 0, 3, 0, 0] = 8
    presence = block(features, logits, torch.zeros(1, 1))
    share = float(torch.tensor((40 - 10) / 2).sigmoid())
    assert presence.item() == pytest.approx(PRESENT + 8 * share / (share + 1), rel=1e-5)


def test_probabilities_are_multiplied():
    logits = torch.linspace(-12, 12, 50, dtype=torch.float64).view(1, 2, 5, 5, 1)
    presence = torch.tensor([[-1.0, 2.5]], dtype=torch.float64)
    factor = (presence.sigmoid() / torch.tensor(PRESENT).sigmoid()).view(1, 2, 1, 1, 1)
    changed = apply_presence(logits, presence, torch.ones(1))
    torch.testing.assert_close(changed.sigmoid(), logits.sigmoid() * factor, rtol=1e-4, atol=1e-7)


def test_large_logits_are_emptied_too_and_stay_finite():
    logits = torch.tensor([-200.0, -14, 14, 200]).view(1, 1, 4, 1, 1)
    for presence in (-1000.0, -5.0, 3.9999):
        changed = apply_presence(logits, torch.full((1, 1), presence), torch.ones(1))
        assert changed.isfinite().all()
        assert (changed <= logits).all()
    absent = apply_presence(logits, torch.full((1, 1), -5.0), torch.ones(1))
    assert (absent < 0).all()


def test_presence_never_adds_and_weight_0_changes_no_bit():
    _, logits, _ = inputs()
    high = torch.full((2, 3), PRESENT + 9)
    assert torch.equal(apply_presence(logits, high, torch.ones(2)), logits)
    absent = torch.full((2, 3), -9.0)
    changed = apply_presence(logits, absent, torch.tensor([0.0, 1.0]))
    assert torch.equal(changed[0], logits[0])
    assert (changed[1] < 0).all()


def test_no_gradient_through_the_factor_but_through_the_logits():
    features, logits, evidence = inputs()
    block = RegionPresence(5, 3)
    logits.requires_grad_()
    presence = block(features, logits, evidence - 5)
    apply_presence(logits, presence, torch.ones(2)).sum().backward(retain_graph=True)
    assert logits.grad.isfinite().all()
    assert logits.grad.any()
    assert block.score.weight.grad is None
    before = logits.grad.clone()
    presence.sum().backward()
    assert block.score.bias.grad.any()
    assert torch.equal(logits.grad, before)


def test_an_inner_region_is_not_more_present_than_an_outer_one():
    features, logits, evidence = inputs()
    nested = RegionPresence(5, 3, nested=True)
    evidence = evidence + torch.tensor([-1.0, -3, 2])
    assert nested(features, logits, evidence).tolist() == [[3.0, 1.0, 1.0]] * 2
