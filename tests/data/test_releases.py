"""Mirrors clipseg3d/data/releases.py."""

from dataclasses import replace

import numpy as np
import pytest

from clipseg3d.data.releases import (
    BRATS_2018,
    BRATS_2019,
    BRATS_2020,
    BRATS_2021,
    PHANTOM,
    REGIONS,
    RELEASES,
    SEQUENCES,
    get_release,
)

every_release = pytest.mark.parametrize("release", RELEASES.values(), ids=lambda r: r.name)


def test_order_of_channels():
    assert SEQUENCES == ("t1", "t1ce", "t2", "flair")
    assert REGIONS == ("WT", "TC", "ET")


@every_release
def test_numbering_until_2021(release):
    assert release.labels == (0, 1, 2, 4)
    assert tuple(release.suffixes) == SEQUENCES
    assert tuple(release.suffixes.values()) == ("t1", "t1ce", "t2", "flair")
    assert release.label_suffix == "seg"


@every_release
def test_regions_of_hand_written_labels(release):
    label = np.array([[[0, 1], [2, 4]]])  # (1, 2, 2)
    whole, core, enhancing = release.to_regions(label).tolist()
    assert whole == [[[False, True], [True, True]]]
    assert core == [[[False, True], [False, True]]]
    assert enhancing == [[[False, False], [False, True]]]


@every_release
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32])
def test_labels_of_regions_is_the_way_back(release, dtype):
    label = np.random.default_rng(0).choice(release.labels, (3, 4, 5)).astype(dtype)
    assert set(np.unique(label)) == set(release.labels)
    back = release.to_labels(release.to_regions(label))
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, label)


@every_release
def test_the_inner_region_wins_where_masks_are_not_nested(release):
    masks = np.array(
        [
            [0, 0, 1, 0, 0, 1, 1, 1],  # WT
            [0, 1, 0, 0, 1, 0, 1, 1],  # TC
            [0, 0, 0, 1, 1, 1, 0, 1],  # ET
        ],
        dtype=bool,
    )
    label = release.to_labels(masks.reshape(3, 2, 4, 1))
    assert label.ravel().tolist() == [0, 1, 2, 4, 4, 4, 1, 4]
    assert label.shape == (2, 4, 1)


def test_other_numbers_need_only_another_record():
    later = replace(
        BRATS_2021,
        regions={"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)},
        labels_out={"WT": 2, "TC": 1, "ET": 3},
    )
    label = np.array([[[0, 1, 2, 3]]])
    assert later.labels == (0, 1, 2, 3)
    assert later.to_regions(label)[2].ravel().tolist() == [False, False, False, True]
    np.testing.assert_array_equal(later.to_labels(later.to_regions(label)), label)


@pytest.mark.parametrize(
    ("release", "one", "other"),
    [
        (BRATS_2018, "Brats18_TCIA01_201_1", "Brats18_TCIA01_201_2"),
        (BRATS_2018, "Brats18_2013_20_1", "Brats18_2013_20_12"),
        (BRATS_2019, "BraTS19_CBICA_AAB_1", "BraTS19_CBICA_AAB_3"),
    ],
)
def test_scans_of_one_patient(release, one, other):
    assert release.patient(one) == release.patient(other)


@pytest.mark.parametrize(
    ("release", "one", "other"),
    [
        (BRATS_2018, "Brats18_2013_20_1", "Brats18_2013_21_1"),
        (BRATS_2018, "Brats18_2013_2_1", "Brats18_2013_20_1"),
        (BRATS_2018, "Brats18_TCIA01_201_1", "Brats18_TCIA02_201_1"),
        (BRATS_2019, "BraTS19_2013_0_1", "BraTS19_2013_10_1"),
        (BRATS_2020, "BraTS20_Training_001", "BraTS20_Training_002"),
        (BRATS_2020, "BraTS20_Training_001", "BraTS20_Validation_001"),
        (BRATS_2021, "BraTS2021_00000", "BraTS2021_00002"),
        (PHANTOM, "Phantom_00001", "Phantom_00010"),
    ],
)
def test_different_patients(release, one, other):
    assert release.patient(one) != release.patient(other)


@every_release
@pytest.mark.parametrize("name", ["sub-01", "clinic_7_1", "x_1", "Brats18", "BraTS-GLI-00000-001"])
def test_a_foreign_name_is_its_own_patient(release, name):
    assert release.patient(name) == name


def test_a_name_of_another_year_is_its_own_patient():
    names = ["Brats18_2013_20_1", "Brats18_2013_20_2"]
    assert [BRATS_2020.patient(name) for name in names] == names


def test_every_release_is_found_by_its_name():
    assert all(get_release(name) is release for name, release in RELEASES.items())
    assert [r.name for r in (BRATS_2018, BRATS_2019, BRATS_2020, BRATS_2021, PHANTOM)] == list(
        RELEASES
    )


def test_unknown_release_lists_the_known_ones():
    with pytest.raises(ValueError, match="brats2017") as error:
        get_release("brats2017")
    assert all(name in str(error.value) for name in RELEASES)


def test_only_2020_has_a_misnamed_mask():
    assert {r.name: dict(r.misnamed_labels) for r in RELEASES.values() if r.misnamed_labels} == {
        "brats2020": {"W39_1998.09.19_Segm": "BraTS20_Training_355"}
    }
