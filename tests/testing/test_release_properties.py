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
        ({"own_pattern": ".*"}, "takes any name"),
        ({"case_pattern": "(?P<patient>x)"}, "is no case of the release"),
        ({"own_pattern": "x.*"}, "is no case of the release"),
    ],
)
def test_a_fault_is_found(change, message):
    with pytest.raises(AssertionError, match=message):
        check_release(replace(BRATS_2020, **change), "BraTS20_Training_001")
