"""Mirrors clipseg3d/blocks/nested_regions.py. Sizes differ pairwise, so a swapped axis fails."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from clipseg3d.blocks.nested_regions import NestedRegions

B, R, X, Y, Z = 2, 3, 4, 5, 6


def scores(regions=R, *, size=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(B, regions, X, Y, Z, generator=generator)


@pytest.mark.parametrize("regions", [1, 2, 3, 4])
def test_probabilities_multiply_inwards(regions):
    raw = scores(regions)
    expected = torch.logit(raw.double().sigmoid().cumprod(dim=1))
    torch.testing.assert_close(NestedRegions()(raw).double(), expected, rtol=1e-5, atol=1e-5)


def test_one_voxel_by_hand():
    raw = torch.tensor([0.0, 0.0, math.log(3)]).view(1, 3, 1, 1, 1)  # 1/2, 1/2, 3/4
    odds = [1, 1 / 3, 3 / 13]  # of 1/2, 1/4, 3/16
    logits = NestedRegions()(raw).flatten().tolist()
    assert logits == pytest.approx([math.log(o) for o in odds], abs=1e-6)


@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
def test_no_region_exceeds_the_one_around_it(size):
    logits = NestedRegions()(scores(size=size))
    assert logits.isfinite().all()
    assert (logits.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("size", [100.0, 1e4])
@pytest.mark.parametrize("signs", list(itertools.product([-1, 1], repeat=3)))
def test_extreme_scores_have_the_limits_of_the_formula(size, signs):
    raw = (size * torch.tensor(signs)).view(1, 3, 1, 1, 1).requires_grad_()
    logits = NestedRegions()(raw)
    logits.sum().backward()
    for k, found in enumerate(logits.flatten().tolist(), start=1):
        negative = signs[:k].count(-1)  # each has its own exponent; positive ones have none
        assert found / size == pytest.approx(-negative or 1, abs=0.02)
    assert raw.grad.isfinite().all()


def test_single_region_is_left_as_it_is():
    raw = scores(1, size=20.0)
    torch.testing.assert_close(NestedRegions()(raw), raw, rtol=1e-5, atol=1e-6)


def test_gradient_is_that_of_the_function():
    raw = scores()[:1, :, :1, :2, :2].double().requires_grad_()
    assert torch.autograd.gradcheck(NestedRegions(), (raw,))


def test_gradient_survives_where_probabilities_round_to_one_or_zero():
    raw = torch.tensor([40.0, 40.0, -40.0]).view(1, 3, 1, 1, 1).requires_grad_()
    logits = NestedRegions()(raw)
    target = torch.tensor([0.0, 0.0, 1.0]).view_as(logits)
    F.binary_cross_entropy_with_logits(logits, target, reduction="sum").backward()
    outer, middle, inner = raw.grad.flatten().tolist()
    # The first term pulls on a_1; the second on a_1 and a_2, which share the blame for 1 - p_2.
    assert outer == pytest.approx(1.5, rel=1e-4)
    assert middle == pytest.approx(0.5, rel=1e-4)
    assert inner == pytest.approx(-1.0, rel=1e-4)


def test_cross_entropy_fits_nested_labels():
    label = scores(1, seed=1).gt(torch.tensor([-1.0, 0.0, 2.0]).view(1, R, 1, 1, 1)).float()
    raw = torch.zeros(B, R, X, Y, Z, requires_grad=True)
    optimiser = torch.optim.Adam([raw], lr=0.3)
    for _ in range(60):
        optimiser.zero_grad()
        loss = F.binary_cross_entropy_with_logits(NestedRegions()(raw), label)
        loss.backward()
        optimiser.step()
    assert loss < 0.02
    assert torch.equal(NestedRegions()(raw) > 0, label > 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_nested_in_float32(dtype):
    raw = scores().to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = NestedRegions()(raw)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, NestedRegions()(raw.float()))


def test_there_are_no_weights():
    assert NestedRegions().state_dict() == {}
