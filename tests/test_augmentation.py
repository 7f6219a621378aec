"""Mirrors clipseg3d/augmentation.py."""

import pytest
import torch
from torch.utils.data import default_collate

from clipseg3d.augmentation import AugmentationParameters
from clipseg3d.batch import pack_image, pack_regions, unpack
from clipseg3d.data import transforms
from clipseg3d.data.transforms import Augmentation

SHAPE = (13, 17, 11)
STATISTICS = torch.tensor([[-3.0, 3.0, 0.0, 1.0], [-2.0, 4.0, 0.0, 1.0]] * 2)


@pytest.fixture
def samples():
    """Three packed samples that differ."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(3):
        image = torch.randn(4, *SHAPE, generator=generator).clamp(-2, 3) + 0.01
        image[:, :2] = 0
        label = torch.zeros(3, *SHAPE, dtype=torch.bool)
        label[:, 4 + number : 9 + number, 5:12, 3:9] = True
        made.append(
            {
                "image": pack_image(image, STATISTICS),
                "label": pack_regions(label),
                "crop_box": torch.tensor([[0.125, 0.25, 0.375], [0.5, 0.375, 0.625]]),
                "statistics": STATISTICS,
                "case_id": str(number),
            }
        )
    return made


@pytest.fixture
def every_step(monkeypatch):
    """Let every step change every sample, but for mirroring."""
    for step in transforms.SHARES:
        monkeypatch.setitem(transforms.SHARES, step, 0.5 if step == "mirror" else 1.0)


def drawn(samples):
    torch.manual_seed(3)
    return [Augmentation().draw(sample) for sample in samples]


def test_a_drawn_sample_becomes_the_augmented_one(samples, every_step):
    """On the device as in a loader process, which rounds to half precision."""
    for sample in samples:
        torch.manual_seed(3)
        here = unpack(Augmentation()(sample))
        torch.manual_seed(3)
        there = unpack(Augmentation().draw(sample))
        assert here.keys() == there.keys()
        assert torch.equal(here["image"], there["image"].half().float())
        for key in ("label", "crop_box"):
            assert torch.equal(here[key], there[key])


def test_drawing_changes_no_voxel_and_no_input(samples, every_step):
    before = [{key: v.clone() for key, v in s.items() if torch.is_tensor(v)} for s in samples]
    after = drawn(samples)
    unpack(default_collate(after))
    for old, sample, new in zip(before, samples, after, strict=True):
        assert all(torch.equal(sample[key], value) for key, value in old.items())
        assert new["image"] is sample["image"]
        assert new["crop_box"].shape == (4, 3)


def test_a_sample_does_not_depend_on_its_batch(samples, every_step):
    alone = [unpack(sample) for sample in drawn(samples)]
    whole = unpack(default_collate(drawn(samples)))
    pairs = [unpack(default_collate(drawn(samples)[start : start + 2])) for start in (0, 1)]
    for key in ("image", "label", "crop_box"):
        assert torch.equal(whole[key], torch.stack([sample[key] for sample in alone]))
        assert torch.equal(whole[key][:2], pairs[0][key])
        assert torch.equal(whole[key][1:], pairs[1][key])
    assert len({image.numpy().tobytes() for image in whole["image"]}) == 3


def test_noise_follows_its_seed_and_nothing_else(samples, monkeypatch):
    for step in transforms.SHARES:
        monkeypatch.setitem(transforms.SHARES, step, float(step == "noise"))
    (sample, *_) = drawn(samples)
    images = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(images))  # must not matter
        parameters = sample["augmentation"]._replace(noise_seed=torch.tensor(seed))
        images.append(unpack({**sample, "augmentation": parameters})["image"])
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_parameters_of_no_change_change_nothing(samples):
    nothing = AugmentationParameters(
        mirrored=torch.zeros(3, dtype=torch.bool),
        mapping=torch.eye(3),
        bias=torch.zeros(4, 3, 3, 3),
        power=torch.ones(4),
        gain=torch.ones(4),
        shift=torch.zeros(4),
        noise=torch.zeros(()),
        noise_seed=torch.tensor(1),
    )
    for sample in samples:
        plain, same = unpack(sample), unpack({**sample, "augmentation": nothing})
        assert plain.keys() == same.keys()
        assert torch.equal(plain["image"], same["image"])
        assert torch.equal(plain["label"], same["label"])
