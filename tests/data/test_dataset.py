"""Mirrors clipseg3d/data/dataset.py."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from clipseg3d.batch import Batch, Sample, unpack, unpack_image
from clipseg3d.data.cache import build_cache
from clipseg3d.data.cases import Case, find_cases
from clipseg3d.data.dataset import BraTSDataset
from clipseg3d.data.releases import BRATS_2020, BRATS_2024_GLI
from clipseg3d.views import Views

NAMES = [f"BraTS20_Training_{number:03d}" for number in (1, 2, 3)]
BOX = (11, 14, 7)  # the brain box that fake_patient draws
CROP = (5, 6, 4)


@pytest.fixture(scope="module")
def entries(tmp_path_factory, write_case):
    root = tmp_path_factory.mktemp("dataset")
    for seed, name in enumerate(NAMES):
        write_case(root / "cases", name, seed=seed, report=f"report {seed}")
    return build_cache(find_cases(root / "cases", BRATS_2020), BRATS_2020, root / "cache")


@pytest.fixture(scope="module")
def big(tmp_path_factory, write_case, fake_patient):
    """One case with a small tumour, and the same case without."""
    root = tmp_path_factory.mktemp("big")
    images, label = fake_patient((25, 31, 21))
    label[:] = 0
    label[6:8, 9:11, 8:10] = 4
    write_case(root / "cases", "a", images=images, label=label)
    write_case(root / "cases", "b", images=images, label=np.zeros_like(label))
    return build_cache(find_cases(root / "cases", BRATS_2020), BRATS_2020, root / "cache")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def crop_corner(sample, box=BOX):
    """Return the first corner and the size of a crop in voxels, as its crop_box says."""
    corner, size = (sample["crop_box"].numpy() * box).round(4)
    assert (corner == corner.astype(int)).all()
    assert (size == size.astype(int)).all()
    return corner.astype(int), size.astype(int)


def whole_brains(entries):
    dataset = BraTSDataset(entries, BRATS_2020)
    return [dataset[i] for i in range(len(dataset))]


def test_a_sample_holds_what_the_contract_says(entries):
    sample = BraTSDataset(entries, BRATS_2020, crop=CROP)[1]
    assert sample.keys() == Sample.__annotations__.keys() == Batch.__annotations__.keys()
    images, planes = sample["views"]
    flat = {**sample, "images": images, "planes": planes}
    tensors = {key: (tuple(v.shape), v.dtype) for key, v in flat.items() if torch.is_tensor(v)}
    assert tensors == {
        "image": ((4, *CROP), torch.float32),
        "label": ((3, *CROP), torch.float32),
        "crop_box": ((2, 3), torch.float32),
        "statistics": ((4, 4), torch.float32),
        "images": ((3, 224, 224, 4), torch.uint8),
        "planes": ((3, 3), torch.float32),
    }
    assert isinstance(sample["views"], Views)
    assert (sample["case_id"], sample["report"], sample["grade"]) == (NAMES[1], "report 1", -1)


def test_a_whole_brain(entries, equal_views):
    for entry, sample in zip(entries, whole_brains(entries), strict=True):
        assert sample["crop_box"].tolist() == [[0, 0, 0], [1, 1, 1]]
        assert torch.equal(sample["image"], unpack_image(entry.image(), entry.statistics()))
        regions = BRATS_2020.to_regions(entry.label().numpy())
        np.testing.assert_array_equal(sample["label"], regions)
        assert torch.equal(sample["statistics"], entry.statistics())
        assert equal_views(sample["views"], entry.views())
        assert sample["case_id"] == entry.case_id
        assert sample["image"].shape[1:] == BOX


def test_regions_are_nested_and_hold_their_labels(entries):
    sample = whole_brains(entries)[0]
    wt, tc, et = sample["label"]
    assert set(sample["label"].unique().tolist()) == {0, 1}
    assert (wt >= tc).all()
    assert (tc >= et).all()
    assert wt.sum() > tc.sum() > et.sum() > 0


def test_a_crop_is_the_part_of_the_brain_that_its_crop_box_says(entries):
    brains = whole_brains(entries)
    dataset = BraTSDataset(entries, BRATS_2020, crop=CROP, crops_per_case=20)
    corners = set()
    for index in range(len(dataset)):
        sample = dataset[index]
        brain = next(b for b in brains if b["case_id"] == sample["case_id"])
        corner, size = crop_corner(sample)
        assert tuple(size) == CROP
        assert (corner >= 0).all()
        assert (corner + size <= BOX).all()
        box = (slice(None), *(slice(a, a + n) for a, n in zip(corner, size, strict=True)))
        assert torch.equal(sample["image"], brain["image"][box])
        assert torch.equal(sample["label"], brain["label"][box])
        corners.add(tuple(corner))
    assert len(corners) > 20


def test_every_corner_that_fits_is_drawn(big):
    """Without tumour, corners are uniform over all positions, the last one included."""
    dataset = BraTSDataset(big[1:], BRATS_2020, crop=(20, 27, 16))
    box = big[1].label().shape
    room = np.array(tuple(box)) - (20, 27, 16)
    drawn = np.array([crop_corner(dataset[0], box)[0] for _ in range(150)])
    assert drawn.min(axis=0).tolist() == [0, 0, 0]
    assert drawn.max(axis=0).tolist() == room.tolist()


@pytest.mark.parametrize("crop", [(13, 6, 4), (11, 17, 9), (30, 29, 26), (12, 15, 8)])
def test_a_crop_larger_than_the_brain_is_padded_with_background(entries, crop):
    brain = whole_brains(entries)[0]
    dataset = BraTSDataset(entries[:1], BRATS_2020, crop=crop)
    for _ in range(8):
        sample = dataset[0]
        assert sample["image"].shape == (4, *crop)
        assert sample["label"].shape == (3, *crop)
        corner, size = crop_corner(sample)
        assert tuple(size) == crop
        for key in ("image", "label"):
            canvas = F.pad(brain[key], [20] * 6)
            around = [slice(20 + a, 20 + a + n) for a, n in zip(corner, crop, strict=True)]
            assert torch.equal(sample[key], canvas[(slice(None), *around)])
        for axis in range(3):  # centred, up to the odd voxel
            if crop[axis] > BOX[axis]:
                before, after = -corner[axis], corner[axis] + crop[axis] - BOX[axis]
                assert abs(before - after) <= 1


def test_a_crop_of_the_size_of_the_brain_is_the_brain(entries):
    brain = whole_brains(entries)[2]
    sample = BraTSDataset(entries, BRATS_2020, crop=BOX)[2]
    assert sample["crop_box"].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert torch.equal(sample["image"], brain["image"])


def test_two_thirds_of_crops_hold_tumour(big):
    dataset = BraTSDataset(big[:1], BRATS_2020, crop=(8, 9, 7))
    share = np.mean([bool(dataset[0]["label"].any()) for _ in range(300)])
    # 2 / 3 by intent, and a crop placed at random meets the tumour now and then
    assert 0.6 < share < 0.85


def test_a_tumour_voxel_lies_near_the_centre_but_not_at_it(big, monkeypatch):
    monkeypatch.setattr("clipseg3d.data.crops.TUMOUR_SHARE", 1.0)
    crop = np.array([4, 5, 3])
    dataset = BraTSDataset(big[:1], BRATS_2020, crop=tuple(crop))
    tumour = np.argwhere(big[0].label().numpy())
    corners = set()
    for _ in range(80):
        sample = dataset[0]
        corner, _ = crop_corner(sample, big[0].label().shape)
        away = np.abs(corner + crop / 2 - tumour)
        assert (away <= crop / 4 + 0.5).all(axis=1).any()
        assert sample["label"].any()
        corners.add(tuple(corner))
    assert len(corners) > 25


def test_a_case_without_tumour_gives_crops_too(big):
    sample = BraTSDataset(big[1:], BRATS_2020, crop=(8, 9, 7))[0]
    assert not sample["label"].any()
    assert sample["image"].any()


@pytest.mark.parametrize("crop", [None, CROP, (13, 6, 4)])
def test_packed_samples_are_the_same_but_small(entries, crop, equal_views):
    plain = BraTSDataset(entries, BRATS_2020, crop=crop)
    packed = BraTSDataset(entries, BRATS_2020, crop=crop, packed=True)
    for index in range(3):
        torch.manual_seed(index)
        expected = plain[index]
        torch.manual_seed(index)
        small = packed[index]
        assert (small["image"].dtype, small["label"].dtype) == (torch.uint8, torch.uint8)
        assert small["image"].shape == expected["image"].shape
        assert small["label"].shape == expected["label"].shape[1:]
        unpacked = unpack(small)
        for key in ("image", "label", "crop_box", "statistics"):
            assert torch.equal(unpacked[key], expected[key])
        assert equal_views(unpacked["views"], expected["views"])
    batch = unpack(next(iter(DataLoader(BraTSDataset(entries, BRATS_2020, packed=True)))))
    assert torch.equal(batch["image"], whole_brains(entries)[0]["image"][None])
    assert torch.equal(batch["label"], whole_brains(entries)[0]["label"][None])


def test_regions_are_those_of_the_release(tmp_path, write_case, fake_patient):
    images, label = fake_patient()
    label[label == 4] = 3
    label[3, 8, 5] = 4  # a cavity
    files = write_case(tmp_path / "cases", "a", images=images, label=label)
    mask = files.pop("label")
    case = Case("a", "a", files, label=mask)
    (entry,) = build_cache([case], BRATS_2024_GLI, tmp_path / "cache")
    (sample,) = BraTSDataset([entry], BRATS_2024_GLI)
    inside = label[1:12, 2:16, 3:10]
    for region, expected in zip(
        sample["label"],
        (np.isin(inside, (1, 2, 3)), np.isin(inside, (1, 3)), inside == 3, inside == 4),
        strict=True,
    ):
        np.testing.assert_array_equal(region, expected)


def test_length_and_order(entries):
    assert len(BraTSDataset(entries, BRATS_2020)) == 3
    dataset = BraTSDataset(entries, BRATS_2020, crop=CROP, crops_per_case=4)
    assert len(dataset) == 12
    names = [dataset[i]["case_id"] for i in range(12)]
    assert {name: names.count(name) for name in NAMES} == dict.fromkeys(NAMES, 4)
    assert [s["case_id"] for s in whole_brains(entries)] == NAMES


def test_a_loop_over_samples_ends(entries):
    dataset = BraTSDataset(entries, BRATS_2020, crop=CROP, crops_per_case=2)
    assert [sample["case_id"] for sample in dataset] == 2 * NAMES
    assert dataset[-1]["case_id"] == NAMES[2]
    with pytest.raises(IndexError, match="index 6 of 6"):
        dataset[6]


def test_equal_seeds_give_equal_crops(entries):
    dataset = BraTSDataset(entries, BRATS_2020, crop=CROP)
    drawn = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        drawn.append(torch.stack([dataset[i]["crop_box"] for i in range(3)]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_samples_do_not_share_memory_with_the_cache(entries):
    dataset = BraTSDataset(entries, BRATS_2020)
    before = dataset[0]["image"].clone()
    sample = dataset[0]
    for tensor in (sample["image"], sample["label"], sample["statistics"], *sample["views"]):
        tensor.zero_()
    assert torch.equal(dataset[0]["image"], before)
    assert dataset[0]["statistics"].any()
    assert all(part.any() for part in dataset[0]["views"])


def test_augment_gets_the_sample(entries):
    def augment(sample):
        assert sample["image"].dtype == sample["label"].dtype == torch.uint8
        return {**sample, "image": sample["image"].half(), "report": "changed"}

    sample = BraTSDataset(entries, BRATS_2020, crop=CROP, augment=augment)[0]
    assert (sample["report"], sample["case_id"]) == ("changed", NAMES[0])
    assert sample["image"].dtype == sample["label"].dtype == torch.float32
    packed = BraTSDataset(entries, BRATS_2020, crop=CROP, augment=augment, packed=True)[0]
    assert packed["image"].dtype == torch.float16


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_through_a_loader(entries, num_workers, equal_views):
    graded = [replace(entry, grade=grade) for entry, grade in zip(entries, (1, 0, -1), strict=True)]
    dataset = BraTSDataset(graded, BRATS_2020, crop=CROP, crops_per_case=2)
    batches = list(DataLoader(dataset, batch_size=2, num_workers=num_workers))
    assert len(batches) == 3
    batch = batches[0]
    assert batch.keys() == Batch.__annotations__.keys()
    shapes = {key: tuple(v.shape) for key, v in batch.items() if torch.is_tensor(v)}
    assert shapes == {
        "image": (2, 4, *CROP),
        "label": (2, 3, *CROP),
        "crop_box": (2, 2, 3),
        "statistics": (2, 4, 4),
        "grade": (2,),
    }
    assert isinstance(batch["views"], Views)
    own = [entry.views() for entry in entries[:2]]
    assert equal_views(batch["views"], Views(*map(torch.stack, zip(*own, strict=True))))
    assert batch["grade"].dtype == torch.int64
    assert [batch["grade"].tolist() for batch in batches] == [[1, 0], [-1, 1], [0, -1]]
    assert batch["case_id"] == NAMES[:2]
    assert batch["report"] == ["report 0", "report 1"]


def test_loader_workers_draw_different_crops(entries):
    dataset = BraTSDataset(entries[:1], BRATS_2020, crop=CROP, crops_per_case=8)
    corners = [batch["crop_box"][0, 0] for batch in DataLoader(dataset, num_workers=2)]
    assert len({tuple(corner.tolist()) for corner in corners}) > 4


def test_pickles(entries):
    dataset = pickle.loads(pickle.dumps(BraTSDataset(entries, BRATS_2020)))
    assert torch.equal(dataset[1]["image"], whole_brains(entries)[1]["image"])
