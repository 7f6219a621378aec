"""Mirrors clipseg3d/data/transforms.py."""

import math
import pickle
import random
from itertools import product

import numpy as np
import pytest
import torch
from monai.transforms import RandFlipd, RandGaussianNoised

from clipseg3d.batch import pack_image, pack_regions, unpack, unpack_image
from clipseg3d.blocks.positions import voxel_positions
from clipseg3d.data import transforms
from clipseg3d.data.transforms import Augmentation, OwnAugmentation, describe
from clipseg3d.views import Views

SHAPE = (13, 17, 11)
START, SIZE = (0.125, 0.25, 0.375), (0.5, 0.375, 0.625)  # exact in floating point
STATISTICS = torch.tensor([[-3.0, 3.0, 0.0, 1.0], [-2.0, 4.0, 0.0, 1.0]] * 2)
STEPS = ("affine", "bias", "gamma", "contrast", "brightness", "noise")
INTENSITIES = STEPS[1:]


def packed(image, statistics=STATISTICS):
    """Return an image as a dataset gives it, its values between low and high."""
    return pack_image(image, statistics)


@pytest.fixture
def sample():
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(4, *SHAPE, generator=generator).clamp(-2, 3) + 0.01
    image[:, :2] = image[:, :, -3:] = image[..., :1] = 0
    label = torch.zeros(3, *SHAPE, dtype=torch.bool)
    label[0, 4:10, 5:12, 3:9] = True
    label[1, 5:9, 6:10, 4:8] = True
    label[2, 5:7, 6:9, 4:6] = True
    return {
        "image": packed(image),
        "label": pack_regions(label),
        "crop_box": torch.tensor([START, SIZE]),
        "statistics": STATISTICS.clone(),
        "views": Views(torch.zeros(3, 224, 224, 4, dtype=torch.uint8), torch.zeros(3, 3)),
        "grade": 1,
        "report": "a report",
        "case_id": "a case",
    }


@pytest.fixture
def only(monkeypatch):
    """Return an augmentation that mirrors and does what is named, every time."""

    def chosen(*steps):
        for step in STEPS:
            monkeypatch.setitem(transforms.SHARES, step, float(step in steps))
        return Augmentation()

    return chosen


def runs(augment, sample, count):
    for seed in range(count):
        torch.manual_seed(seed)
        yield augment(sample)


def mirrored(result):
    return [axis for axis in range(3) if result["crop_box"][1 + axis, axis] < 0]


def unmirror(result):
    axes = [1 + axis for axis in mirrored(result)]
    whole = unpack(result)
    return whole["image"].flip(axes), whole["label"].flip(axes)


def test_shapes_types_and_the_rest(sample):
    for result in runs(Augmentation(), sample, 20):
        assert result.keys() == sample.keys()
        assert result["image"].dtype == torch.float16
        assert result["label"].dtype == torch.uint8
        assert result["crop_box"].dtype == torch.float32
        for key in ("image", "label", "crop_box"):
            assert type(result[key]) is torch.Tensor
        for key in ("image", "label"):
            assert result[key].shape == sample[key].shape
        assert result["crop_box"].shape == (4, 3)
        for key in ("statistics", "views", "report", "grade", "case_id"):
            assert result[key] is sample[key]


def test_does_not_change_its_input(sample, only):
    before = {key: v.clone() for key, v in sample.items() if torch.is_tensor(v)}
    for steps in ((), STEPS, ("affine",), INTENSITIES):
        for result in runs(only(*steps), sample, 10):
            for key in ("image", "label", "crop_box"):
                result[key].fill_(7)
    for key, value in before.items():
        assert torch.equal(sample[key], value)


def test_equal_seeds_give_equal_samples(sample):
    augment = Augmentation()
    first = list(runs(augment, sample, 15))
    again = list(runs(augment, sample, 15))
    fresh = list(runs(Augmentation(), sample, 15))
    for one, other, new in zip(first, again, fresh, strict=True):
        for key in ("image", "label", "crop_box"):
            assert torch.equal(one[key], other[key])
            assert torch.equal(one[key], new[key])


def test_seeds_differ(sample):
    images = [result["image"] for result in runs(Augmentation(), sample, 20)]
    assert len({image.numpy().tobytes() for image in images}) > 15


def test_global_state_of_numpy_is_not_used(sample, only):
    results = []
    for seed in (0, 1):
        np.random.seed(seed)
        torch.manual_seed(3)
        results.append(only(*STEPS)(sample)["image"])
    assert torch.equal(*results)


@pytest.mark.parametrize("step", STEPS)
def test_each_step_changes_its_share_of_samples(sample, monkeypatch, step):
    share = transforms.SHARES[step]
    for other in (*STEPS, "mirror"):
        monkeypatch.setitem(transforms.SHARES, other, share if other == step else 0.0)
    whole = unpack(sample)["image"].half()
    changed = [not torch.equal(r["image"], whole) for r in runs(Augmentation(), sample, 150)]
    assert abs(sum(changed) - 150 * share) < 30


# Mirroring


def test_a_mirrored_axis_runs_from_its_far_corner(sample, only):
    combinations = set()
    whole = unpack(sample)
    for result in runs(only(), sample, 60):
        axes = mirrored(result)
        combinations.add(tuple(axes))
        flips = [1 + axis for axis in axes]
        assert torch.equal(result["image"], whole["image"].flip(flips).half())
        assert torch.equal(unpack(result)["label"], whole["label"].flip(flips))
        start = [START[a] + SIZE[a] if a in axes else START[a] for a in range(3)]
        size = [-SIZE[a] if a in axes else SIZE[a] for a in range(3)]
        assert result["crop_box"].tolist() == [start, *torch.tensor(size).diag().tolist()]
    every = {tuple(a for a in range(3) if flags[a]) for flags in product((0, 1), repeat=3)}
    assert combinations == every


def test_each_axis_is_mirrored_half_of_the_time(sample, only):
    sample["image"] = sample["image"][:, :1, :1, :1]
    sample["label"] = sample["label"][:1, :1, :1]
    counts = sum((r["crop_box"][1:].diag() < 0).int() for r in runs(only(), sample, 200))
    assert ((counts > 70) & (counts < 130)).all()


def test_the_crop_box_says_where_each_voxel_was(sample, only):
    """The position of a voxel, computed from the crop box, is the same after mirroring."""
    axes = zip(SHAPE, START, SIZE, strict=True)
    positions = [start + (torch.arange(n) + 0.5) / n * size for n, start, size in axes]
    grid = torch.stack(torch.meshgrid(*positions, indexing="ij"))
    sample["statistics"] = torch.tensor([[0.0, 1.0, 0.0, 1.0]] * 4)
    sample["image"] = packed(torch.cat([grid, grid[:1]]), sample["statistics"])
    for result in runs(only(), sample, 12):
        start, size = result["crop_box"][0], result["crop_box"][1:].diag()
        for axis, n in enumerate(SHAPE):
            positions = start[axis] + (torch.arange(n) + 0.5) / n * size[axis]
            values = result["image"][axis].float().movedim(axis, 0).flatten(1)
            expected = positions[:, None].expand_as(values)
            torch.testing.assert_close(values, expected, rtol=0, atol=0.003)  # a code is 1 / 254


@pytest.mark.parametrize("steps", [(), ("affine",)])
def test_a_lesion_is_found_where_it_is(only, steps):
    """Positions that networks read are those of the brain, whatever happened to the crop."""
    brain, corner, crop = torch.tensor([60, 90, 50]), torch.tensor([9, -5, 4]), (48, 70, 40)
    for seed in range(40):
        torch.manual_seed(seed)
        lesion = torch.tensor([24, 35, 20]) + (12 * torch.rand(3) - 6).long()
        label = torch.zeros(crop, dtype=torch.uint8)
        label[tuple(slice(int(n) - 1, int(n) + 2) for n in lesion)] = 1
        one = {
            "image": torch.full((4, *crop), 100, dtype=torch.uint8),
            "label": label,
            "crop_box": torch.stack([corner / brain, torch.tensor(crop) / brain]),
            "statistics": STATISTICS,
        }
        result = only(*steps)(one)
        positions = voxel_positions(result["image"].float()[None], result["crop_box"][None])[0]
        found = positions[:, result["label"] > 0].mean(dim=1)
        place = (found + 1) / 2 * brain
        assert (place - (corner + lesion + 0.5)).abs().max() < 1


# Intensities


@pytest.mark.parametrize("step", INTENSITIES)
def test_background_stays_zero(sample, only, step):
    background = (sample["image"] == 0).all(dim=0)
    assert background.any()
    before = unpack(sample)
    for result in runs(only(step), sample, 10):
        image, label = unmirror(result)
        assert (image[:, background] == 0).all()
        assert not torch.equal(image, before["image"])
        assert torch.equal(label, before["label"])


def test_a_sequence_that_is_not_there_stays_away(sample, only):
    sample["image"][1] = 0
    sample["statistics"][1] = 0
    for result in runs(only(*STEPS), sample, 10):
        assert not result["image"][1].any()
        assert torch.isfinite(result["image"]).all()
        assert result["image"][0].any()


def test_a_smaller_field_of_view_stays_smaller(sample, only):
    sample["image"][2, :, 9:] = 0
    for result in runs(only(*INTENSITIES), sample, 5):
        image, _ = unmirror(result)
        assert not image[2, :, 9:].any()
        assert image[1, :, 9:].any()


def test_a_crop_of_background_stays_one(sample, only):
    sample["image"] = torch.zeros_like(sample["image"])
    for result in runs(only(*STEPS), sample, 10):
        assert not result["image"].any()


def test_intensities_change_a_little(sample, only):
    """Within its range, each sequence keeps its order of tissues and its mean."""
    brain = (sample["image"] != 0).all(dim=0)
    whole = unpack(sample)["image"]
    for result in runs(only(*INTENSITIES), sample, 25):
        before, after = whole[:, brain], unmirror(result)[0][:, brain]
        assert torch.isfinite(after).all()
        for one, other in zip(before, after, strict=True):
            assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.85
            assert abs(float(one.mean() - other.mean())) < 1.2


@pytest.mark.parametrize("step", ["bias", "gamma", "contrast", "brightness"])
def test_sequences_change_on_their_own(sample, only, step):
    sample["image"] = sample["image"][:1].repeat(4, 1, 1, 1)
    sample["statistics"] = STATISTICS[:1].repeat(4, 1)
    for result in runs(only(step), sample, 5):
        for channel in range(1, 4):
            assert not torch.equal(result["image"][0], result["image"][channel])


def test_gamma_bends_between_the_ends_of_the_range(sample, only):
    """What is darkest and brightest in the whole brain stays, wherever the crop lies."""
    low, high = STATISTICS[:, 0], STATISTICS[:, 1]
    sample["image"].fill_(128)
    sample["image"][:, 0], sample["image"][:, 1] = 1, 255
    powers = []
    for result in runs(only("gamma"), sample, 20):
        image, _ = unmirror(result)
        torch.testing.assert_close(image[:, 0, 0, 0], low, rtol=0, atol=1e-3)
        torch.testing.assert_close(image[:, 1, 0, 0], high, rtol=0, atol=4e-3)
        middle = (image[:, 5, 5, 5] - low) / (high - low)
        powers += (middle.log() / math.log(127 / 254)).tolist()
    assert 0.79 < min(powers) < 0.85
    assert 1.15 < max(powers) < 1.21


def test_a_bias_field_is_smooth_and_brightens_what_is_bright(sample, only):
    low = STATISTICS[:, 0, None, None, None]
    sample["image"].fill_(200)
    for result in runs(only("bias"), sample, 10):
        ratio = (unmirror(result)[0] - low) / (unpack_image(sample["image"], STATISTICS) - low)
        assert (ratio > 0.4).all()
        assert (ratio < 2.5).all()
        assert float(ratio.std()) > 0.01
        for axis in (1, 2, 3):
            assert float(ratio.diff(dim=axis).abs().max()) < 0.25
        spread = ratio.flatten(1).std(dim=1)
        assert (spread > 0).all()


def test_noise_is_white_and_of_random_strength(sample, only):
    sample["image"].fill_(100)
    strengths = []
    for result in runs(only("noise"), sample, 30):
        image, _ = unmirror(result)
        noise = image - unpack_image(sample["image"], STATISTICS)
        strengths.append(float(noise.std()))
        neighbours = torch.stack([noise[:, 1:].flatten(), noise[:, :-1].flatten()])
        assert abs(float(torch.corrcoef(neighbours)[0, 1])) < 0.1
    assert min(strengths) < 0.02
    assert 0.08 < max(strengths) < 0.11


# Rotation and scaling


def test_regions_stay_nested(sample, only):
    for result in runs(only(*STEPS), sample, 25):
        label = unpack(result)["label"]
        assert set(label.unique().tolist()) == {0, 1}
        wt, tc, et = label
        assert (wt >= tc).all()
        assert (tc >= et).all()


def test_image_and_label_move_together(sample, only):
    """The image is 2 in the whole tumour and 1 elsewhere, so each tells where the other lies."""
    tumour = unpack(sample)["label"][:1]
    sample["image"] = packed((1 + tumour).repeat(4, 1, 1, 1))
    moved = 0
    for result in runs(only("affine"), sample, 25):
        image, label = unmirror(result)
        bright = (image[:1] > 1.5).float()
        overlap = 2 * float((bright * label[:1]).sum()) / float(bright.sum() + label[:1].sum())
        assert overlap > 0.85
        moved += not torch.equal(label[:1], tumour)
    assert moved > 20


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_turns_are_rigid_about_the_centre(only, axis, monkeypatch):
    """A rod through the centre keeps its length, though the sides of the crop are not equal."""
    monkeypatch.setitem(transforms.SHARES, "mirror", 0.0)
    shape = (31, 41, 51)
    rod = torch.zeros(shape, dtype=torch.uint8)
    middle = [n // 2 for n in shape]
    box = [slice(m - 1, m + 2) for m in middle]
    box[axis] = slice(middle[axis] - 12, middle[axis] + 13)
    rod[tuple(box)] = 1
    one = {
        "image": torch.full((4, *shape), 100, dtype=torch.uint8),
        "label": rod,
        "crop_box": torch.zeros(2, 3),
        "statistics": STATISTICS,
    }
    angles, lengths = [], []
    for result in runs(only("affine"), one, 40):
        voxels = result["label"].nonzero().double() - torch.tensor(middle)
        assert voxels.mean(dim=0).abs().max() < 0.6
        _, _, (direction, *_) = torch.linalg.svd(voxels, full_matrices=False)
        angles.append(math.degrees(math.acos(min(1.0, float(direction[axis].abs())))))
        lengths.append(float((voxels @ direction).max() - (voxels @ direction).min()) / 24)
    assert 10 < max(angles) < 15 * math.sqrt(2) + 2  # about both other axes at once
    assert 0.85 < min(lengths) < 0.97
    assert 1.03 < max(lengths) < 1.16


def test_pickles(sample):
    torch.manual_seed(0)
    expected = Augmentation()(sample)
    torch.manual_seed(0)
    augmented = pickle.loads(pickle.dumps(Augmentation()))(sample)
    assert torch.equal(augmented["image"], expected["image"])


@pytest.fixture
def sample_of_three():
    """A packed sample of four sequences and three regions."""
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.randint(0, 255, (4, 5, 6, 7), generator=generator, dtype=torch.uint8),
        "label": torch.randint(0, 8, (5, 6, 7), generator=generator, dtype=torch.uint8),
        "statistics": torch.tensor([[-2.0, 3.0, 0.0, 1.0]]).repeat(4, 1),
        "crop_box": torch.tensor([[0.0] * 3, [1.0] * 3]),
        "case_id": "a",
    }


def test_a_transform_of_monai_augments_what_was_unpacked(sample_of_three):
    flip = RandFlipd(keys=["image", "label"], prob=1.0, spatial_axis=1)
    augmented = OwnAugmentation(flip, num_regions=3)(sample_of_three)
    plain = unpack(sample_of_three, num_regions=3)
    assert type(augmented["image"]) is type(augmented["label"]) is torch.Tensor
    assert torch.equal(augmented["image"], plain["image"].flip(2))
    assert torch.equal(augmented["label"], plain["label"].flip(2))
    assert augmented["case_id"] == "a"


def draws(sample):
    """An augmentation that draws from everywhere."""
    shift = torch.rand(()) + random.random() + np.random.rand()
    return {**sample, "image": sample["image"] + shift}


@pytest.mark.parametrize("own", [draws, RandGaussianNoised(keys=["image"], prob=1.0)])
def test_what_it_draws_follows_from_torchs_generator(sample_of_three, own):
    images = []
    for seed in (1, 1, 2):
        random.random(), np.random.rand()  # must not matter
        before = random.getstate()
        torch.manual_seed(seed)
        images.append(OwnAugmentation(own, num_regions=3)(sample_of_three)["image"])
        assert random.getstate() == before
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_an_augmentation_that_changes_shapes_is_refused(sample_of_three):
    def cut(sample):
        return {**sample, "image": sample["image"][:, 1:]}

    with pytest.raises(ValueError, match=r"a: function has changed .* image from \(4, 5, 6, 7\)"):
        OwnAugmentation(cut, num_regions=3)(sample_of_three)


def test_equal_transforms_have_equal_descriptions():
    one, two, other = (RandFlipd(keys=["image"], prob=prob) for prob in (0.5, 0.5, 0.25))
    assert describe(one) == describe(two) != describe(other)
    assert describe(one)["class"].endswith("RandFlipd")
    assert describe(draws) == {"class": f"{__name__}.draws"}
