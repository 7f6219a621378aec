"""Mirrors clipseg3d/testing/release_properties.py: our releases pass, and bad ones do not."""

from dataclasses import replace

import pytest

from clipseg3d.data.releases import BRATS_2020, RELEASES
from clipseg3d.testing import check_release

CASES = {
    "brats2018": "Brats18_TCIA02_222_1",
    "brats2019": "BraTS19_CBICA_AAB_1",
    "brats2020": "BraTS20_Training_001",
    "brats2021": "BraTS2021_00000",
    "brats2023_gli": "BraTS-GLI-00000-000",
    "brats2024_gli": "BraTS-GLI-00005-100",
    "brats2023_ped": "BraTS-PED-00001-000",
    "brats2024_ped": "BraTS-PED-00001-000",
    "brats2023_ssa": "BraTS-SSA-00002-000",
    "brats2023_men": "BraTS-MEN-00004-000",
    "brats2023_met": "BraTS-MET-00001-000",
    "msd_task01": "BRATS_001",
    "phantom": "Phantom_00000",
}


@pytest.mark.parametrize("name", RELEASES)
def test_our_releases_have_the_properties(name):
    check_release(RELEASES[name], CASES[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suffixes": {**BRATS_2020.suffixes, "t1": "t2"}}, "share one"),
        ({"case_pattern": r"BraTS20_Training_\d+"}, "no group called patient"),
        ({"own_pattern": ".*"}, "takes any name"),
        ({"regions": {**BRATS_2020.regions, "ET": ()}}, "ET has the labels"),
        ({"labels_out": {**BRATS_2020.labels_out, "ET": 9}}, "unknown label"),
        ({"labels_out": {"ET": 4, "WT": 2, "TC": 1}}, "another order"),
        ({"labels_out": {"WT": 4, "TC": 1, "ET": 2}}, "do not give their regions back"),
    ],
)
def test_a_fault_is_found(change, message):
    with pytest.raises(AssertionError, match=message):
        check_release(replace(BRATS_2020, **change), CASES["brats2020"])
