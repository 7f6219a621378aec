"""Mirrors clipseg3d/losses.py. Sizes differ pairwise, so a swapped axis fails."""

import math

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss

from clipseg3d.losses import DiceBCELoss, RegionLoss, cosine_loss, grade_loss, presence_loss
from clipseg3d.networks.unet import UNet3D

B, R, X, Y, Z = 2, 3, 4, 6, 8


@pytest.fixture
def label():
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(B, R, X, Y, Z, generator=generator) > 0.6).float()


def logits_of(*size, seed=1):
    return 2 * torch.randn(B, R, *size, generator=torch.Generator().manual_seed(seed))


def reference(logits, target):
    """Dice and cross-entropy of one level, region by region, in float64."""
    dice = entropy = 0.0
    for b in range(B):
        for r in range(R):
            p = [1 / (1 + math.exp(-value)) for value in logits[b, r].flatten().tolist()]
            t = target[b, r].flatten().tolist()
            overlap = terms = 0.0
            for p_voxel, t_voxel in zip(p, t, strict=True):
                overlap += p_voxel * t_voxel
                terms += t_voxel * math.log(p_voxel) + (1 - t_voxel) * math.log(1 - p_voxel)
            dice += 1 - (2 * overlap + 1e-5) / (sum(p) + sum(t) + 1e-5)
            entropy -= terms / len(p)
    return (dice + entropy) / (B * R)


def averaged(label, factor):
    """Average over cubes, voxel by voxel."""
    x, y, z = (n // factor for n in label.shape[2:])
    cubes = label.reshape(*label.shape[:2], x, factor, y, factor, z, factor)
    return cubes.mean(dim=(3, 5, 7))


def test_one_level_by_hand(label):
    logits = logits_of(X, Y, Z)
    assert RegionLoss()([logits], label).item() == pytest.approx(reference(logits, label), rel=1e-5)


def test_levels_weigh_one_half_and_quarter(label):
    levels = [logits_of(X, Y, Z), logits_of(2, 3, 4, seed=2), logits_of(2, 3, 4, seed=3)]
    terms = [
        reference(levels[0], label),
        reference(levels[1], averaged(label, 2)),
        reference(levels[2], averaged(label, 2)),
    ]
    expected = (terms[0] + terms[1] / 2 + terms[2] / 4) / 1.75
    assert RegionLoss()(levels, label).item() == pytest.approx(expected, rel=1e-5)


def test_equal_levels_weigh_as_one(label):
    logits = logits_of(X, Y, Z)
    loss = RegionLoss()
    torch.testing.assert_close(loss([logits] * 3, label), loss([logits], label))


@pytest.mark.parametrize(
    ("size", "coarse_size", "factor"), [((7, 9, 11), (4, 5, 6), 2), ((5, 5, 5), (2, 2, 2), 4)]
)
def test_padded_level_is_compared_with_a_padded_label(size, coarse_size, factor):
    generator = torch.Generator().manual_seed(0)
    label = (torch.rand(B, R, *size, generator=generator) > 0.5).float()
    coarse = logits_of(*coarse_size)
    missing = [factor * n - fine for n, fine in zip(coarse_size, size, strict=True)]
    padding = [pad for n in reversed(missing) for pad in (0, n)]
    expected = reference(coarse, averaged(F.pad(label, padding), factor))
    fine = logits_of(*size, seed=2)
    loss = RegionLoss()
    expected = (reference(fine, label) + expected / 2) / 1.5
    assert loss([fine, coarse], label).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("size", [(9, 17, 12), (24, 10, 17)])
@pytest.mark.parametrize("cube", [1, 2])
def test_levels_of_the_network_are_compared_on_their_own_grids(size, cube):
    """A label that marks whole coarse voxels is met exactly by coarse logits that mark them."""
    channels = (2,) * (4 if cube == 1 else 3)
    unet = UNet3D(1, R, channels=channels, space_to_depth=cube, num_auxiliary=1)
    image = torch.zeros(B, 1, *size)
    (coarse,) = unet.auxiliary_logits(unet.decode(unet.encode(image)))
    factor = 2 * cube
    padded = [-(-n // unet.multiple) * unet.multiple for n in size]
    assert [n * factor for n in coarse.shape[2:]] == padded
    marked = torch.rand(coarse.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    fine = marked.float()
    for axis in (2, 3, 4):
        fine = fine.repeat_interleave(factor, dim=axis)
    label = fine[..., : size[0], : size[1], : size[2]].contiguous()
    cut = torch.zeros_like(fine)
    cut[..., : size[0], : size[1], : size[2]] = label
    target = averaged(cut, factor)
    logits = 40 * (label - 0.5)
    perfect = torch.logit(target.double(), eps=1e-6).float()
    full = RegionLoss()([logits], label)
    both = RegionLoss()([logits, perfect], label)
    expected = (full + reference(perfect, target) / 2) / 1.5
    assert both.item() == pytest.approx(expected.item(), rel=1e-4)


def test_right_answers_cost_nothing_and_wrong_ones_much(label):
    sure = 60 * (label - 0.5)
    loss = RegionLoss()
    assert loss([sure], label).item() < 1e-4
    assert loss([-sure], label).item() > 10
    assert loss([torch.zeros_like(label)], label).item() > 0.5


def test_empty_regions_stay_finite(label):
    label[:, 2] = 0
    logits = logits_of(X, Y, Z).requires_grad_()
    loss = RegionLoss()([logits], label)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    silent = logits_of(X, Y, Z)
    silent[:, 2] = -60
    louder = silent.clone()
    louder[:, 2] = 0
    assert RegionLoss()([silent], label) < RegionLoss()([louder], label) - 0.3


def test_dice_of_regions_that_are_there_is_monais_to_the_bit(label):
    logits = logits_of(X, Y, Z)
    dice = DiceLoss(sigmoid=True, smooth_nr=1e-5, smooth_dr=1e-5)(logits, label)
    expected = dice + F.binary_cross_entropy_with_logits(logits, label)
    assert torch.equal(DiceBCELoss()(logits, label), expected)


@pytest.mark.parametrize("level", [-6.0, -2.0, 0.0])
def test_an_empty_region_is_pushed_down(label, level):
    """By the gradient of sum(p) / (sum(p) + s) and of cross-entropy, computed by hand."""
    label[1, 2] = 0
    logits = torch.full((B, R, X, Y, Z), level, requires_grad=True)
    DiceBCELoss()(logits, label).backward()
    count = X * Y * Z
    p, s = 1 / (1 + math.exp(-level)), count / 1000
    dice = s / (count * p + s) ** 2 * p * (1 - p) / (B * R)
    entropy = p / (B * R * count)
    torch.testing.assert_close(logits.grad[1, 2], torch.full((X, Y, Z), dice + entropy))
    if level == -6:  # few false voxels: cross-entropy alone hardly pushes
        assert dice > 10 * entropy


def test_a_false_voxel_costs_as_much_as_beside_a_region_of_half_the_smoothing():
    size, false = 20, (0, 0, 0, 0, 0)
    found = torch.full((1, 1, size, size, size), -30.0)
    found[false] = 0.0
    there = torch.zeros_like(found)
    there.view(-1)[-(size**3) // 2000 :] = 1  # 4 of 8000 voxels
    beside = found + 60 * there
    gradients = []
    for logits, label in ((found, torch.zeros_like(found)), (beside, there)):
        logits = logits.clone().requires_grad_()
        (DiceBCELoss()(logits, label) - entropy_of(logits, label)).backward()
        gradients.append(float(logits.grad[false]))
    assert gradients[0] == pytest.approx(gradients[1], rel=0.15)


def entropy_of(logits, label):
    return F.binary_cross_entropy_with_logits(logits, label)


def test_an_empty_region_without_a_false_voxel_costs_nothing(label):
    label[:, 2] = 0
    sure = 60 * (label - 0.5)
    assert RegionLoss()([sure], label).item() < 1e-4


def test_half_precision_logits_are_scored_in_float32(label):
    logits = [logits_of(X, Y, Z).bfloat16(), logits_of(2, 3, 4, seed=2).bfloat16()]
    expected = RegionLoss()([level.float() for level in logits], label)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = RegionLoss()(logits, label)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)


def test_gradient_reaches_every_level(label):
    levels = [logits_of(X, Y, Z).requires_grad_(), logits_of(2, 3, 4).requires_grad_()]
    RegionLoss()(levels, label).backward()
    assert all(level.grad.abs().sum() > 0 for level in levels)


def test_grade_loss_is_the_mean_over_known_grades():
    logit = torch.tensor([2.0, -1.0, 5.0, 0.5], requires_grad=True)
    loss = grade_loss(logit, torch.tensor([1, 0, -1, 0]))
    terms = [math.log(1 + math.exp(v)) for v in (-2.0, -1.0, 0.5)]
    assert loss.item() == pytest.approx(sum(terms) / 3, rel=1e-6)
    loss.backward()
    sigmoid = [1 / (1 + math.exp(-v)) for v in (2.0, -1.0, 0.5)]
    expected = [(sigmoid[0] - 1) / 3, sigmoid[1] / 3, 0.0, sigmoid[2] / 3]
    assert logit.grad.tolist() == pytest.approx(expected, rel=1e-5)


def test_grade_gradients_averaged_over_ranks_are_those_of_one_process():
    values, grades = torch.tensor([2.0, -1.0, 5.0, 0.5]), torch.tensor([1, 0, -1, 0])
    whole = values.clone().requires_grad_()
    grade_loss(whole, grades).backward()
    mean_count = torch.tensor(3 / 2)  # three cases with a grade, two ranks
    found = torch.zeros_like(values)
    losses = []
    for rank in (slice(0, 1), slice(1, 4)):  # one case of one, and two of three
        own = values[rank].clone().requires_grad_()
        losses.append(grade_loss(own, grades[rank], count=mean_count))
        losses[-1].backward()
        found[rank] = own.grad / 2  # DDP averages
    torch.testing.assert_close(found, whole.grad)
    torch.testing.assert_close(sum(losses) / 2, grade_loss(values, grades))


def test_grade_loss_without_known_grade_is_zero_with_a_gradient():
    logit = torch.tensor([2.0, -30.0], requires_grad=True)
    for count in (None, torch.tensor(0.0), torch.tensor(0.5)):  # 0.5: another rank has one
        loss = grade_loss(logit, torch.tensor([-1, -1]), count=count)
        loss.backward()
        assert loss.item() == 0
        assert logit.grad.tolist() == [0, 0]


def test_grade_loss_is_computed_in_float32():
    logit, grade = torch.tensor([2.0, -1.3]).bfloat16(), torch.tensor([1, 0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = grade_loss(logit, grade)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, grade_loss(logit.float(), grade))


def entropy(cosines, target, temperature):
    """Mean cross-entropy, voxel by voxel, in float64."""
    terms = []
    pairs = zip(cosines.flatten().tolist(), target.flatten().tolist(), strict=True)
    for cosine, wanted in pairs:
        p = 1 / (1 + math.exp(-cosine / temperature))
        terms.append(-wanted * math.log(p) - (1 - wanted) * math.log(1 - p))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_cosine_loss_by_hand(label, temperature):
    cosines = torch.tanh(logits_of(X, Y, Z))
    expected = entropy(cosines, label, temperature)
    loss = cosine_loss(cosines, label, temperature=temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_cosines_of_a_coarser_padded_grid_meet_an_averaged_label():
    generator = torch.Generator().manual_seed(0)
    label = (torch.rand(B, 2, 7, 9, 11, generator=generator) > 0.5).float()
    cosines = torch.tanh(logits_of(4, 5, 6)[:, :2])
    target = averaged(F.pad(label, (0, 1, 0, 1, 0, 1)), 2)
    loss = cosine_loss(cosines, label, temperature=0.2)
    assert loss.item() == pytest.approx(entropy(cosines, target, 0.2), rel=1e-5)


def test_cosines_that_mark_their_regions_cost_less(label):
    cosines = label - 0.5
    right, wrong = (cosine_loss(sign * cosines, label, temperature=0.07) for sign in (1, -1))
    assert right < 1e-3
    assert wrong > 5


def test_cosine_loss_has_a_gradient_and_is_computed_in_float32(label):
    cosines = torch.tanh(logits_of(X, Y, Z)).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cosine_loss(cosines, label, temperature=0.07)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, cosine_loss(cosines.float(), label, temperature=0.07))
    loss.backward()
    assert cosines.grad.abs().min() > 0


def test_a_loss_that_is_no_single_number_is_refused():
    per_voxel = torch.nn.BCEWithLogitsLoss(reduction="none")
    with pytest.raises(ValueError, match=r"BCEWithLogitsLoss returns \(1, 3, 4, 4, 4\) numbers"):
        RegionLoss(per_voxel)([torch.zeros(1, 3, 4, 4, 4)], torch.zeros(1, 3, 4, 4, 4))


def test_another_loss_is_called_for_each_level():
    seen = []

    def loss(logits, label):
        seen.append((tuple(logits.shape), tuple(label.shape)))
        return logits.mean()

    levels = [torch.full((1, 3, 8, 8, 8), 1.0), torch.full((1, 3, 4, 4, 4), 4.0)]
    assert RegionLoss(loss)(levels, torch.zeros(1, 3, 8, 8, 8)) == pytest.approx((1 + 2) / 1.5)
    assert seen == [((1, 3, 8, 8, 8),) * 2, ((1, 3, 4, 4, 4),) * 2]


def test_presence_loss_is_that_of_presence_and_of_its_maps():
    label = torch.zeros(1, 2, 4, 4, 3)
    label[0, 0, :2, :2, :2] = 1  # one of the four cubes of the coarser, padded grid
    log_odds, maps = torch.tensor([[2.0, -1.0]]), torch.zeros(1, 2, 2, 2, 2)
    maps[0, 0, 0, 0, 0] = 3
    told = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2
    mapped = (math.log1p(math.exp(-3)) + 15 * math.log(2)) / 16
    loss = presence_loss(log_odds, maps, label)
    assert loss.item() == pytest.approx(told + mapped, rel=1e-6)


def test_small_regions_count_as_much_as_large_ones_in_maps():
    label = torch.zeros(2, 2, 8, 8, 8)
    label[0, 0, :, :4, :4] = 1  # an eighth of the batch; the other region is not there
    log_odds = torch.tensor([[99.0, -99.0], [-99.0, -99.0]])
    loss = presence_loss(log_odds, torch.zeros_like(label), label)
    assert loss.item() == pytest.approx((8 + 512 / 8) / 2 * math.log(2), rel=1e-6)
