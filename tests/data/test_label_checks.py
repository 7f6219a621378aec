"""Mirrors clipseg3d/data/label_checks.py."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipseg3d.data.label_checks import compare_values, label_faults, releases_with, round_labels
from clipseg3d.data.releases import BRATS_2020, BRATS_2023_GLI, RELEASES

PATH = Path("case_seg.nii.gz")


def label_map(*values, dtype=np.float32):
    """A label map of 0 and some values."""
    label = np.zeros((3, 4, 5), dtype)
    label.flat[7 : 7 + len(values)] = values
    return label


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32, np.float64])
def test_labels_of_the_release_are_no_fault(dtype):
    for values in ((), (4,), (1, 2, 4)):
        assert label_faults(PATH, label_map(*values, dtype=dtype), BRATS_2020) == []
    assert label_faults(PATH, label_map(1, 2, 3, dtype=dtype), BRATS_2023_GLI) == []


@pytest.mark.parametrize("value", [3, -1, 255, 300])
def test_a_label_that_the_release_does_not_have(value):
    (fault,) = label_faults(PATH, label_map(1, value), BRATS_2020)
    assert fault.startswith(
        f"{PATH}: holds label {value}, but brats2020 has 0, 1, 2, 4; name the release that the "
        "case is from"
    )


@pytest.mark.parametrize("value", [1.5, 0.25, 3.99, 1.002, -0.002])
def test_labels_between_whole_numbers(value):
    assert label_faults(PATH, label_map(1, value), BRATS_2020) == [
        f"{PATH}: holds {value:g}, no whole number; threshold probabilities, and resample label "
        "maps by nearest neighbour"
    ]


def test_fractions_are_reported_before_unknown_labels_and_at_most_five():
    (fault,) = label_faults(PATH, label_map(7, *(n / 16 for n in range(1, 9))), BRATS_2020)
    assert fault.startswith(f"{PATH}: holds 0.0625, 0.125, 0.1875, 0.25, 0.3125, no whole number")
    (fault,) = label_faults(PATH, label_map(*range(10, 19)), BRATS_2020)
    assert fault == (
        f"{PATH}: holds label 10, 11, 12, 13, 14, but brats2020 has 0, 1, 2, 4; name the release "
        "that the case is from"
    )


def test_rounding_errors_are_no_faults():
    label = label_map(0.9999, 2.0009, 4.0001, 1e-4)
    assert label_faults(PATH, label, BRATS_2020) == []
    rounded = round_labels(label)
    assert rounded.dtype == np.uint8
    np.testing.assert_array_equal(rounded, label_map(1, 2, 4, dtype=np.uint8))
    fractions, unknown, others = compare_values(label, BRATS_2020, rounding=0)
    np.testing.assert_allclose(fractions, [1e-4, 0.9999, 2.0009, 4.0001], rtol=1e-6)
    assert (len(unknown), others) == (0, [])


def test_the_releases_that_have_such_labels_are_named():
    (fault,) = label_faults(PATH, label_map(1, 3), BRATS_2020)
    _, _, others = fault.partition("; these are labels of ")
    assert others.split(" or ") == [name for name in RELEASES if 3 in RELEASES[name].labels]
    (fault,) = label_faults(PATH, label_map(1, 4), BRATS_2023_GLI)
    assert "holds label 4, but brats2023_gli has 0, 1, 2, 3; name the release" in fault
    assert "; these are labels of brats2018 or brats2019 or " in fault


def test_the_labels_are_those_of_the_release_given():
    regions = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
    later = replace(BRATS_2020, name="later", regions=regions, labels_out={})
    assert label_faults(PATH, label_map(1, 2, 3), later) == []
    assert "later has 0, 1, 2, 3" in label_faults(PATH, label_map(4), later)[0]


def test_releases_by_their_labels():
    names = releases_with([0, 1, 2, 4])
    assert {"brats2018", "brats2021", "brats2024_gli"} <= set(names)
    assert not {"brats2023_gli", "msd_task01"} & set(names)
    assert releases_with([]) == [*RELEASES]
    assert releases_with([1, 5]) == releases_with([0.5]) == []
