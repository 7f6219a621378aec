"""Mirrors clipseg3d/batch.py."""

import pytest
import torch

from clipseg3d.batch import (
    LEVELS,
    pack_image,
    pack_regions,
    unpack,
    unpack_image,
)
from clipseg3d.views import Views
from clipseg3d.vocabulary import REGIONS

B, S, X, Y, Z = 2, 4, 3, 5, 7


@pytest.fixture
def statistics():
    generator = torch.Generator().manual_seed(0)
    low = -1 - torch.rand(B, S, generator=generator)
    return torch.stack([low, low + 4, torch.zeros(B, S), torch.ones(B, S)], dim=-1)


@pytest.fixture
def image(statistics):
    generator = torch.Generator().manual_seed(1)
    low, high = statistics[..., 0, None, None, None], statistics[..., 1, None, None, None]
    image = low + (high - low) * torch.rand(B, S, X, Y, Z, generator=generator)
    image[..., :2] = 0
    return image


@pytest.fixture
def regions():
    return torch.rand(B, len(REGIONS), X, Y, Z, generator=torch.Generator().manual_seed(2)) < 0.4


@pytest.fixture
def batch(image, statistics, regions):
    return {
        "image": pack_image(image, statistics),
        "label": pack_regions(regions),
        "crop_box": torch.rand(B, 2, 3),
        "statistics": statistics,
        "views": Views(torch.zeros(B, 3, 8, 8, S, dtype=torch.uint8), torch.zeros(B, 3, 3)),
        "report": ["one", "two"],
        "grade": torch.tensor([0, 1]),
        "case_id": ["a", "b"],
    }


def test_rounding_is_by_half_a_code_at_most(image, statistics):
    back = unpack_image(pack_image(image, statistics), statistics)
    assert LEVELS == 255
    assert (back - image).abs().max() <= 4 / 254 / 2 + 1e-5
    assert torch.equal(back == 0, image == 0)


def test_codes_run_from_low_to_high(statistics):
    low, high = statistics[..., 0], statistics[..., 1]
    ends = torch.stack([low, high], dim=-1)[..., None, None]
    codes = pack_image(ends, statistics)
    assert codes.dtype == torch.uint8
    assert set(codes[..., 0, 0, 0].flatten().tolist()) == {1}
    assert set(codes[..., 1, 0, 0].flatten().tolist()) == {255}
    torch.testing.assert_close(unpack_image(codes, statistics), ends)


def test_what_was_packed_once_packs_without_loss(image, statistics):
    codes = pack_image(image, statistics)
    assert torch.equal(pack_image(unpack_image(codes, statistics), statistics), codes)


def test_a_sequence_that_is_not_there(image, statistics):
    image[1, 2] = 0
    statistics[1, 2] = 0
    codes = pack_image(image, statistics)
    back = unpack_image(codes, statistics)
    assert not codes[1, 2].any()
    assert not back[1, 2].any()
    assert torch.isfinite(back).all()


def test_unpacks_into_what_networks_take(batch, image, regions):
    got = unpack(batch)
    assert got.keys() == batch.keys()
    assert got["image"].dtype == got["label"].dtype == torch.float32
    torch.testing.assert_close(got["image"], image, rtol=0, atol=0.01)
    assert torch.equal(got["label"], regions.float())
    for key in ("crop_box", "statistics", "views", "report", "grade", "case_id"):
        assert got[key] is batch[key]


def test_does_not_change_its_input(batch):
    before = {key: batch[key].clone() for key in ("image", "label", "statistics")}
    got = unpack(batch)
    for key, value in before.items():
        assert torch.equal(batch[key], value)
        got[key].fill_(3)
    assert torch.equal(batch["image"], before["image"])


def test_samples_unpack_as_batches_do(batch):
    expected = unpack(batch)
    one = {key: batch[key][1] for key in ("image", "label", "statistics")}
    got = unpack(one)
    assert torch.equal(got["image"], expected["image"][1])
    assert torch.equal(got["label"], expected["label"][1])


def test_float16_is_taken_as_it_is(batch, image):
    batch["image"] = (3 * image).half()  # beyond the range of the codes
    assert torch.equal(unpack(batch)["image"], (3 * image).half().float())


def test_what_is_not_packed_stays(batch):
    once = unpack(batch)
    twice = unpack(once)
    for key in ("image", "label"):
        assert torch.equal(twice[key], once[key])


def test_bits_are_those_of_the_regions():
    regions = torch.zeros(3, 2, 2, 2, dtype=torch.bool)
    regions[0] = True
    regions[1, 0] = True
    regions[2, 0, 1] = True
    assert pack_regions(regions).tolist() == [[[3, 3], [7, 7]], [[1, 1], [1, 1]]]
