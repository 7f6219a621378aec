"""Presence: from image and text, as one factor per region."""

import math

import pytest
import torch
import torch.nn.functional as F

from clipseg3d.blocks import RegionPresence, apply_presence, known_presence
from clipseg3d.blocks.region_presence import PRESENT


def inputs(batch=2, regions=3):
    torch.manual_seed(0)
    levels = [torch.randn(batch, 5, 6, 4, 4), torch.randn(batch, 7, 3, 2, 2)]
    return levels, torch.zeros(batch, regions)


def some_logits():
    torch.manual_seed(1)
    return 3 * torch.randn(2, 3, 7, 9, 6)


def reading(weights, scores):
    """A block of one region that reads channel 0 of two levels, and scores its map."""
    block = RegionPresence([1, 1], 1)
    with torch.no_grad():
        for read, weight in zip(block.maps, weights, strict=True):
            read.weight.fill_(weight)
            read.bias.zero_()
        block.weight.copy_(torch.tensor([scores]))
    return block


def test_new_weights_change_no_bit():
    levels, evidence = inputs()
    presence = RegionPresence([5, 7], 3)(levels, evidence).log_odds
    assert torch.equal(presence, torch.full((2, 3), PRESENT))
    logits = some_logits()
    assert torch.equal(apply_presence(logits, presence, torch.ones(2)), logits)


def test_new_maps_expect_little_of_any_region():
    nothing = [torch.zeros(1, 5, 6, 4, 4), torch.zeros(1, 7, 3, 2, 2)]
    maps = RegionPresence([5, 7], 3)(nothing, torch.zeros(1, 3)).maps.sigmoid()
    assert 0.005 < maps.mean() < 0.02


def test_evidence_is_added_in_log_odds():
    block = RegionPresence([5, 7], 3)
    torch.nn.init.normal_(block.weight)
    levels, evidence = inputs()
    changed = evidence + torch.tensor([0.0, -2, 5])
    given, before = block(levels, changed), block(levels, evidence)
    torch.testing.assert_close(given.log_odds - before.log_odds, changed)
    assert torch.equal(given.maps, before.maps)


@pytest.mark.parametrize("voxels", [0, 3, 20])
def test_the_volume_and_the_strongest_voxels_are_the_evidence(voxels):
    fine = torch.full((1, 1, 4, 4, 4), -40.0)
    fine.view(-1)[:voxels] = 40
    coarse = torch.full((1, 1, 2, 2, 2), 3.0)
    zeros = torch.zeros(1, 1)
    volume = reading([1.0, 0], [0.1, 0])([fine, coarse], zeros).log_odds - PRESENT
    assert volume.item() == pytest.approx(math.tanh(math.log((1 + voxels / 8) / 2)), abs=1e-5)
    strongest = reading([0.1, 0.2], [0, 0.1])([fine, coarse], zeros).log_odds - PRESENT
    mean = 4 * (2 * min(voxels, 8) - 8) / 8 + 0.6  # the coarse level adds 0.2 x 3 everywhere
    assert strongest.item() == pytest.approx(math.tanh(mean / 4), abs=1e-5)


def test_maps_have_the_grid_of_the_finest_level_and_every_region_its_own():
    block = RegionPresence([2], 2)
    with torch.no_grad():
        block.maps[0].weight.copy_(torch.eye(2)[..., None, None, None])
        block.maps[0].bias.copy_(torch.tensor([0.0, 100]))
    level = torch.arange(2 * 3 * 4 * 5.0).view(1, 2, 3, 4, 5)
    maps = block([level], torch.zeros(1, 2)).maps
    assert torch.equal(maps[:, 0], level[:, 0])
    assert torch.equal(maps[:, 1], level[:, 1] + 100)


def test_probabilities_are_multiplied():
    logits = torch.linspace(-12, 12, 75, dtype=torch.float64).view(1, 3, 5, 5, 1)
    odds = torch.tensor([[0.5, 0.9, 1.1]], dtype=torch.float64)
    factor = torch.tensor([0.25, 0.81, 1]).view(1, 3, 1, 1, 1)
    changed = apply_presence(logits, odds.log(), torch.ones(1))
    torch.testing.assert_close(changed.sigmoid(), logits.sigmoid() * factor, rtol=1e-4, atol=1e-7)


def test_known_regions_change_nothing_and_absent_ones_have_no_loss():
    logits = some_logits().requires_grad_()
    regions = torch.zeros_like(logits)
    regions[0, 1, 2, 3, 4] = regions[1, 0] = 1
    changed = apply_presence(logits, known_presence(regions), torch.ones(2))
    present = torch.tensor([[False, True, False], [True, False, False]])
    assert torch.equal(changed[present], logits[present])
    F.binary_cross_entropy_with_logits(changed[~present], regions[~present]).backward()
    assert logits.grad.abs().max() < 1e-6


def test_large_logits_are_emptied_too_and_stay_finite():
    logits = torch.tensor([-200.0, -14, 14, 200]).view(1, 1, 4, 1, 1)
    for presence in (-1000.0, -5.0, -1e-6):
        changed = apply_presence(logits, torch.full((1, 1), presence), torch.ones(1))
        assert changed.isfinite().all()
        assert (changed <= logits).all()
    absent = apply_presence(logits, torch.full((1, 1), -5.0), torch.ones(1))
    assert (absent < 0).all()


def test_presence_never_adds_and_weight_0_changes_no_bit():
    logits = some_logits()
    high = torch.full((2, 3), PRESENT + 9)
    assert torch.equal(apply_presence(logits, high, torch.ones(2)), logits)
    absent = torch.full((2, 3), -9.0)
    changed = apply_presence(logits, absent, torch.tensor([0.0, 1.0]))
    assert torch.equal(changed[0], logits[0])
    assert (changed[1] < 0).all()


def test_no_gradient_through_the_factor_but_through_the_logits():
    levels, evidence = inputs()
    block = RegionPresence([5, 7], 3)
    logits = some_logits().requires_grad_()
    presence = block(levels, evidence - 5).log_odds
    apply_presence(logits, presence, torch.ones(2)).sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad.any()
    assert block.bias.grad is None
    presence.sum().backward()
    assert block.bias.grad.any()


def test_maps_have_no_gradient_from_presence():
    """While a weight has the wrong sign, it would turn the map into its opposite."""
    levels, evidence = inputs()
    block = RegionPresence([5, 7], 3)
    torch.nn.init.normal_(block.weight)
    told = block(levels, evidence)
    told.log_odds.sum().backward()
    assert block.weight.grad.any()
    assert all(read.weight.grad is None for read in block.maps)


def test_an_inner_region_is_not_more_present_than_an_outer_one():
    levels, evidence = inputs()
    nested = RegionPresence([5, 7], 3, nested=True)
    evidence = evidence + torch.tensor([-1.0, -3, 2])
    assert nested(levels, evidence).log_odds.tolist() == [[3.0, 1.0, 1.0]] * 2
