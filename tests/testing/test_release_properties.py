"""Mirrors clipseg3d/testing/release_properties.py."""

from dataclasses import replace

import pytest

from clipseg3d.data.releases import BRATS_2020
from clipseg3d.testing import check_release


def test_a_right_record_passes():
    check_release(BRATS_2020, "BraTS20_Training_001")


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
        check_release(replace(BRATS_2020, **change), "BraTS20_Training_001")
