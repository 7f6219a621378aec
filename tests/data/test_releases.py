"""Mirrors clipseg3d/data/releases.py."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from clipseg3d.data.releases import (
    BRATS_2018,
    BRATS_2019,
    BRATS_2020,
    BRATS_2021,
    BRATS_2023_GLI,
    BRATS_2023_MEN,
    BRATS_2023_MET,
    BRATS_2023_PED,
    BRATS_2023_SSA,
    BRATS_2024_GLI,
    BRATS_2024_PED,
    MSD_TASK01,
    PHANTOM,
    RELEASES,
    get_release,
)
from clipseg3d.testing import check_release
from clipseg3d.vocabulary import LABEL, REGIONS, SEQUENCES

every_release = pytest.mark.parametrize("release", RELEASES.values(), ids=lambda r: r.name)

# Label value -> the innermost region it belongs to, as published; None for outside all.
UNTIL_2021 = {0: None, 1: "TC", 2: "WT", 4: "ET"}
SINCE_2023 = {0: None, 1: "TC", 2: "WT", 3: "ET"}
AFTER_TREATMENT = {**SINCE_2023, 4: "RC"}
MEANING = {
    "brats2018": UNTIL_2021,
    "brats2019": UNTIL_2021,
    "brats2020": UNTIL_2021,
    "brats2021": UNTIL_2021,
    "brats2023_gli": SINCE_2023,
    "brats2024_gli": AFTER_TREATMENT,
    "brats2025_gli": AFTER_TREATMENT,
    "brats2023_ped": SINCE_2023,
    "brats2024_ped": {0: None, 1: "ET", 2: "TC", 3: "CC", 4: "WT"},
    "brats2023_ssa": SINCE_2023,
    "brats2023_men": SINCE_2023,
    "brats2023_met": SINCE_2023,
    "brats2024_men_rt": {0: None, 1: "GTV"},
    "brats2025_met": AFTER_TREATMENT,
    "msd_task01": {0: None, 1: "WT", 2: "TC", 3: "ET"},
    "phantom": UNTIL_2021,
}
# An official name of a case.
CASES = {
    "brats2018": "Brats18_TCIA02_222_1",
    "brats2019": "BraTS19_CBICA_AAB_1",
    "brats2020": "BraTS20_Training_001",
    "brats2021": "BraTS2021_00000",
    "brats2023_gli": "BraTS-GLI-00000-000",
    "brats2024_gli": "BraTS-GLI-00005-100",
    "brats2025_gli": "BraTS-GLI-00005-000",
    "brats2023_ped": "BraTS-PED-00001-000",
    "brats2024_ped": "BraTS-PED-00001-000",
    "brats2023_ssa": "BraTS-SSA-00002-000",
    "brats2023_men": "BraTS-MEN-00004-000",
    "brats2023_met": "BraTS-MET-00001-000",
    "brats2024_men_rt": "BraTS-MEN-RT-0002-1",
    "brats2025_met": "BraTS-MET-00001-000",
    "msd_task01": "BRATS_001",
    "phantom": "Phantom_00000",
}
# Region -> the regions that it lies in.
INSIDE = {
    None: set(),
    "WT": {"WT"},
    "TC": {"WT", "TC"},
    "ET": {"WT", "TC", "ET"},
    "CC": {"WT", "TC", "CC"},
    "RC": {"RC"},
    "GTV": {"GTV"},
}


def test_order_of_channels():
    assert SEQUENCES == ("t1", "t1ce", "t2", "flair")
    assert REGIONS == ("WT", "TC", "ET")


@every_release
def test_the_record_has_the_properties_of_releases(release):
    check_release(release, CASES[release.name])


@every_release
def test_what_each_label_means(release):
    meaning = MEANING[release.name]
    assert release.labels == tuple(meaning)
    label = np.array(release.labels).reshape(1, -1, 1)
    regions = release.to_regions(label)
    assert regions.shape == (len(release.regions), 1, len(meaning), 1)
    assert regions[:, 0, :, 0].T.tolist() == [
        [region in INSIDE[innermost] for region in release.regions]
        for innermost in meaning.values()
    ]


@every_release
def test_a_label_that_the_release_has_not_is_in_no_region(release):
    assert not release.to_regions(np.array([[[5, 7]]])).any()


@every_release
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32])
def test_labels_of_regions_is_the_way_back(release, dtype):
    label = np.random.default_rng(0).choice(release.labels, (3, 4, 5)).astype(dtype)
    assert set(np.unique(label)) == set(release.labels)
    back = release.to_labels(release.to_regions(label))
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, label)


NESTED = [r for r in RELEASES.values() if list(r.regions)[:3] == list(REGIONS)]
nested_releases = pytest.mark.parametrize("release", NESTED, ids=lambda r: r.name)


@nested_releases
def test_nested_regions_come_back_from_labels(release):
    release = release.select(regions=REGIONS)
    depth = np.random.default_rng(1).integers(0, 4, (3, 4, 5))
    regions = depth > np.arange(3)[:, None, None, None]
    np.testing.assert_array_equal(release.to_regions(release.to_labels(regions)), regions)


@nested_releases
def test_the_inner_region_wins_where_masks_are_not_nested(release):
    release = release.select(regions=REGIONS)
    masks = np.array(list(product([False, True], repeat=3))).T  # (WT TC ET, every combination)
    label = release.to_labels(masks.reshape(3, 2, 4, 1))
    assert label.shape == (2, 4, 1)
    back = release.to_regions(label).reshape(3, -1)
    for (whole, core, enhancing), got in zip(masks.T, back.T, strict=True):
        innermost = "ET" if enhancing else "TC" if core else "WT" if whole else None
        assert {name for name, mask in zip(REGIONS, got, strict=True) if mask} == INSIDE[innermost]


@pytest.mark.parametrize(
    ("release", "stem", "case_id", "kind"),
    [
        (BRATS_2018, "Brats18_TCIA10_637_1_t1ce", "Brats18_TCIA10_637_1", "t1ce"),
        (BRATS_2019, "BraTS19_2013_2_1_flair", "BraTS19_2013_2_1", "flair"),
        (BRATS_2020, "BraTS20_Training_001_t1", "BraTS20_Training_001", "t1"),
        (BRATS_2020, "W39_1998.09.19_Segm", "BraTS20_Training_355", LABEL),
        (BRATS_2021, "BraTS2021_00495_seg", "BraTS2021_00495", LABEL),
        (BRATS_2023_GLI, "BraTS-GLI-00000-000-t1n", "BraTS-GLI-00000-000", "t1"),
        (BRATS_2023_GLI, "BraTS-GLI-00000-000-t1c", "BraTS-GLI-00000-000", "t1ce"),
        (BRATS_2023_GLI, "BraTS-GLI-00000-000-t2w", "BraTS-GLI-00000-000", "t2"),
        (BRATS_2023_GLI, "BraTS-GLI-00000-000-t2f", "BraTS-GLI-00000-000", "flair"),
        (BRATS_2023_GLI, "BraTS-GLI-00000-000-seg", "BraTS-GLI-00000-000", LABEL),
        (BRATS_2024_PED, "BraTS-PED-00001-000-t2w", "BraTS-PED-00001-000", "t2"),
        (BRATS_2023_GLI, "my_site-7-t1n", "my_site-7", "t1"),
        (PHANTOM, "Phantom_00003_t2", "Phantom_00003", "t2"),
    ],
)
def test_names_of_files(release, stem, case_id, kind):
    assert release.parse(Path(stem)) == (case_id, kind)


@pytest.mark.parametrize(
    ("release", "stem"),
    [
        (BRATS_2020, "BraTS-GLI-00000-000-t1n"),
        (BRATS_2020, "BraTS20_Training_001_t1c"),
        (BRATS_2020, "BraTS20_Training_001-t1"),
        (BRATS_2020, "_t1"),
        (BRATS_2020, "t1"),
        (BRATS_2018, "W39_1998.09.19_Segm"),
        (BRATS_2023_GLI, "BraTS20_Training_001_t1"),
        (BRATS_2023_GLI, "BraTS-GLI-00000-000-t1"),
        (BRATS_2023_GLI, "BraTS-GLI-00000-000_t1n"),
        (BRATS_2023_GLI, "-seg"),
    ],
)
def test_names_of_other_files(release, stem):
    assert release.parse(Path(stem)) is None


OWN_NAMES = {
    "brats2018": ["Brats18_2013_2_1", "Brats18_CBICA_AVG_1"],
    "brats2019": ["BraTS19_TCIA10_109_1"],
    "brats2020": ["BraTS20_Training_001", "BraTS20_Validation_125"],
    "brats2021": ["BraTS2021_00495"],
    "brats2023_gli": ["BraTS-GLI-00000-000", "BraTS-GLI-00008-001"],
    "brats2024_gli": ["BraTS-GLI-00005-100", "BraTS-GLI-02405-103"],
    "brats2023_ped": ["BraTS-PED-00002-000"],
    "brats2024_ped": ["BraTS-PED-00002-000"],
    "brats2023_ssa": ["BraTS-SSA-00002-000"],
    "brats2023_men": ["BraTS-MEN-00004-000"],
    "brats2024_men_rt": ["BraTS-MEN-RT-0002-1"],
    "brats2023_met": ["BraTS-MET-00001-000"],
    "msd_task01": ["BRATS_001"],
    "phantom": ["Phantom_00000"],
}


@every_release
def test_only_one_release_of_a_year_owns_a_name(release):
    for name, cases in OWN_NAMES.items():
        kind = release.name.partition("_")[2]
        later = release.name not in OWN_NAMES or kind == "ped"  # names as in the years before
        expected = name == release.name or (later and name.partition("_")[2] == kind)
        assert [release.owns(case) for case in cases] == [expected] * len(cases)


@pytest.mark.parametrize(
    ("release", "one", "other"),
    [
        (BRATS_2018, "Brats18_TCIA01_201_1", "Brats18_TCIA01_201_2"),
        (BRATS_2018, "Brats18_2013_20_1", "Brats18_2013_20_12"),
        (BRATS_2019, "BraTS19_CBICA_AAB_1", "BraTS19_CBICA_AAB_3"),
        (BRATS_2023_GLI, "BraTS-GLI-00008-000", "BraTS-GLI-00008-001"),
        (BRATS_2023_GLI, "BraTS-GLI-00008-000", "BraTS-GLI-00008-100"),
        (BRATS_2024_GLI, "BraTS-GLI-00008-100", "BraTS-GLI-00008-103"),
        (BRATS_2023_MEN, "BraTS-MEN-00008-000", "BraTS-MEN-00008-001"),
        (BRATS_2023_MET, "BraTS-MET-00086-000", "BraTS-MET-00086-002"),
        (BRATS_2023_PED, "BraTS-PED-00008-000", "BraTS-PED-00008-001"),
        (BRATS_2023_SSA, "BraTS-SSA-00008-000", "BraTS-SSA-00008-001"),
    ],
)
def test_scans_of_one_patient(release, one, other):
    assert release.patient(one) == release.patient(other) != one


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
        (BRATS_2023_GLI, "BraTS-GLI-00000-000", "BraTS-GLI-00002-000"),
        (BRATS_2023_MET, "BraTS-MET-00001-000", "BraTS-MET-00010-000"),
        (MSD_TASK01, "BRATS_001", "BRATS_010"),
        (PHANTOM, "Phantom_00001", "Phantom_00010"),
    ],
)
def test_different_patients(release, one, other):
    assert release.patient(one) != release.patient(other)


@every_release
@pytest.mark.parametrize("name", ["sub-01", "clinic_7_1", "x_1", "Brats18", "BraTS-XYZ-00000-001"])
def test_a_foreign_name_is_its_own_patient(release, name):
    assert release.patient(name) == name


def test_a_name_of_another_year_is_its_own_patient():
    names = ["Brats18_2013_20_1", "Brats18_2013_20_2"]
    assert [BRATS_2020.patient(name) for name in names] == names


def test_every_release_is_found_by_its_name():
    assert all(get_release(name) is release for name, release in RELEASES.items())
    assert RELEASES.keys() == MEANING.keys()


def test_unknown_release_lists_the_known_ones():
    with pytest.raises(ValueError, match="brats2017") as error:
        get_release("brats2017")
    assert all(name in str(error.value) for name in RELEASES)


def test_only_2020_has_a_misnamed_mask():
    assert {r.name: dict(r.misnamed_labels) for r in RELEASES.values() if r.misnamed_labels} == {
        "brats2020": {"W39_1998.09.19_Segm": "BraTS20_Training_355"}
    }
