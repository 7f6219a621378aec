"""Mirrors clipseg3d/data/transforms.py."""

import pickle
from itertools import product

import numpy as np
import pytest
import torch

from clipseg3d.data.transforms import Augmentation
from clipseg3d.volume import Views

SHAPE = (13, 17, 11)
START, SIZE = (0.125, 0.25, 0.375), (0.5, 0.375, 0.625)  # exact in floating point


@pytest.fixture
def sample():
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(4, *SHAPE, generator=generator) + 0.01
    image[:, :2] = image[:, :, -3:] = image[..., :1] = 0
    label = torch.zeros(3, *SHAPE)
    label[0, 4:10, 5:12, 3:9] = 1
    label[1, 5:9, 6:10, 4:8] = 1
    label[2, 5:7, 6:9, 4:6] = 1
    return {
        "image": image,
        "label": label,
        "window": torch.tensor([START, SIZE]),
        "statistics": torch.arange(16.0).view(4, 4),
        "views": Views(torch.zeros(3, 224, 224, 4, dtype=torch.uint8), torch.zeros(3, 3)),
        "grade": 1,
        "report": "a report",
        "case_id": "a case",
    }


def only(*kept):
    """Return an augmentation that mirrors and does what is named, every time."""
    augment = Augmentation()
    augment.spatial.prob = float("spatial" in kept)
    for transform in augment.intensity.transforms:
        transform.prob = float("intensity" in kept)
    return augment


def runs(augment, sample, count):
    for seed in range(count):
        torch.manual_seed(seed)
        yield augment(sample)


def mirrored(result):
    return [axis for axis in range(3) if result["window"][1, axis] < 0]


def unmirror(result):
    axes = [1 + axis for axis in mirrored(result)]
    return result["image"].flip(axes), result["label"].flip(axes)


def test_shapes_types_and_the_rest(sample):
    for result in runs(Augmentation(), sample, 20):
        assert result.keys() == sample.keys()
        for key in ("image", "label", "window"):
            assert type(result[key]) is torch.Tensor
            assert result[key].shape == sample[key].shape
            assert result[key].dtype == torch.float32
        for key in ("statistics", "views", "report", "grade", "case_id"):
            assert result[key] is sample[key]


def test_does_not_change_its_input(sample):
    before = {key: v.clone() for key, v in sample.items() if torch.is_tensor(v)}
    for augment in (Augmentation(), only(), only("spatial", "intensity")):
        for result in runs(augment, sample, 10):
            for key in ("image", "label", "window"):
                result[key].fill_(7)
    for key, value in before.items():
        assert torch.equal(sample[key], value)


def test_equal_seeds_give_equal_samples(sample):
    augment = Augmentation()
    first = list(runs(augment, sample, 15))
    again = list(runs(augment, sample, 15))
    fresh = list(runs(Augmentation(), sample, 15))
    for one, other, new in zip(first, again, fresh, strict=True):
        for key in ("image", "label", "window"):
            assert torch.equal(one[key], other[key])
            assert torch.equal(one[key], new[key])


def test_seeds_differ(sample):
    images = [result["image"] for result in runs(Augmentation(), sample, 20)]
    assert len({image.numpy().tobytes() for image in images}) > 15


def test_calls_differ_without_a_new_seed(sample):
    augment = only("intensity")
    torch.manual_seed(0)
    images = [unmirror(augment(sample))[0] for _ in range(6)]
    assert len({image.numpy().tobytes() for image in images}) == 6


def test_global_state_of_numpy_is_not_used(sample):
    results = []
    for seed in (0, 1):
        np.random.seed(seed)
        torch.manual_seed(3)
        results.append(only("spatial", "intensity")(sample)["image"])
    assert torch.equal(*results)


# Mirroring


def test_a_mirrored_axis_runs_from_its_far_corner(sample):
    seen = set()
    for result in runs(only(), sample, 60):
        axes = mirrored(result)
        seen.add(tuple(axes))
        due = [1 + axis for axis in axes]
        assert torch.equal(result["image"], sample["image"].flip(due))
        assert torch.equal(result["label"], sample["label"].flip(due))
        start = [START[a] + SIZE[a] if a in axes else START[a] for a in range(3)]
        size = [-SIZE[a] if a in axes else SIZE[a] for a in range(3)]
        assert result["window"].tolist() == [start, size]
    every = {tuple(a for a in range(3) if flags[a]) for flags in product((0, 1), repeat=3)}
    assert seen == every


def test_each_axis_is_mirrored_half_of_the_time(sample):
    for key in ("image", "label"):
        sample[key] = sample[key][:, :1, :1, :1]
    counts = sum((r["window"][1] < 0).int() for r in runs(only(), sample, 200))
    assert ((counts > 70) & (counts < 130)).all()


def test_the_window_says_where_each_voxel_was(sample):
    """A voxel's place, read through the window, is the same before and after mirroring."""
    axes = zip(SHAPE, START, SIZE, strict=True)
    places = [start + (torch.arange(n) + 0.5) / n * size for n, start, size in axes]
    grid = torch.stack(torch.meshgrid(*places, indexing="ij"))
    sample["image"] = torch.cat([grid, grid[:1]])
    for result in runs(only(), sample, 12):
        start, size = result["window"]
        for axis, n in enumerate(SHAPE):
            places = start[axis] + (torch.arange(n) + 0.5) / n * size[axis]
            seen = result["image"][axis].movedim(axis, 0).flatten(1)
            torch.testing.assert_close(seen, places[:, None].expand_as(seen))


# Intensities


def test_background_stays_zero(sample):
    background = (sample["image"] == 0).all(dim=0)
    assert background.any()
    for result in runs(only("intensity"), sample, 25):
        image, label = unmirror(result)
        assert (image[:, background] == 0).all()
        assert not torch.equal(image, sample["image"])
        assert torch.equal(label, sample["label"])


def test_background_stays_zero_under_everything(sample):
    """Where no brain comes to lie, nothing does: a crop of background stays one."""
    sample["image"] = torch.zeros_like(sample["image"])
    for result in runs(only("spatial", "intensity"), sample, 10):
        assert not result["image"].any()


def test_intensities_change_a_little(sample):
    brain = (sample["image"] != 0).any(dim=0)
    for result in runs(only("intensity"), sample, 25):
        before, after = sample["image"][:, brain], unmirror(result)[0][:, brain]
        assert torch.isfinite(after).all()
        for one, other in zip(before, after, strict=True):
            assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.95
            assert abs(float(one.mean() - other.mean())) < 0.3


# Rotation and scaling


def test_labels_stay_zero_or_one(sample):
    for result in runs(only("spatial", "intensity"), sample, 25):
        assert set(result["label"].unique().tolist()) == {0, 1}
        wt, tc, et = result["label"]
        assert (wt >= tc).all()
        assert (tc >= et).all()


def test_image_and_label_move_together(sample):
    """The image is 2 in the whole tumour and 1 elsewhere, so each tells where the other lies."""
    tumour = sample["label"][:1]
    sample["image"] = (1 + tumour).repeat(4, 1, 1, 1)
    moved = 0
    for result in runs(only("spatial"), sample, 25):
        image, label = result["image"], result["label"][:1]
        bright = (image[:1] > 1.5).float()
        overlap = 2 * float((bright * label).sum()) / float(bright.sum() + label.sum())
        assert overlap > 0.85
        moved += not torch.equal(unmirror(result)[1], sample["label"])
    assert moved > 20


def test_rotation_is_small(sample):
    """Up to 15 degrees and 10 percent: a compact tumour keeps its place and most of its size."""
    tumour = sample["label"][0]
    centre = tumour.nonzero().float().mean(dim=0)
    for result in runs(only("spatial"), sample, 25):
        after = unmirror(result)[1][0]
        assert (after.nonzero().float().mean(dim=0) - centre).norm() < 3
        assert 0.6 < float(after.sum() / tumour.sum()) < 1.6


def test_a_third_of_samples_is_rotated(sample):
    augment = only()
    augment.spatial.prob = Augmentation().spatial.prob
    rotated = sum(
        not torch.equal(unmirror(r)[0], sample["image"]) for r in runs(augment, sample, 120)
    )
    assert 20 < rotated < 55


def test_pickles(sample):
    torch.manual_seed(0)
    due = Augmentation()(sample)
    torch.manual_seed(0)
    got = pickle.loads(pickle.dumps(Augmentation()))(sample)
    assert torch.equal(got["image"], due["image"])
