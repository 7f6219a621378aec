"""Mirrors clipseg3d/data/scan_checks.py: what is assumed of a scan."""

from pathlib import Path

import numpy as np
import pytest

from clipseg3d.data.scan_checks import check_scan

SHAPE = (24, 30, 20)
PATHS = {name: Path(f"case_{name}.nii.gz") for name in ("t1", "t1ce", "t2", "flair")}


@pytest.fixture
def volumes():
    """Four sequences of one brain: a block of 10 x 14 x 8 voxels, whole numbers."""
    rng = np.random.default_rng(0)
    made = {}
    for name in PATHS:
        volume = np.zeros(SHAPE, np.float32)
        volume[7:17, 8:22, 6:14] = rng.integers(50, 900, (10, 14, 8))
        made[name] = volume
    return made


def check(volumes, voxel_mm3=1000.0):
    return check_scan(volumes, PATHS, voxel_mm3=voxel_mm3)


def test_a_usual_scan_is_left_as_it_is(volumes):
    checked = check(volumes)
    assert checked.notes == checked.faults == []
    for name, volume in volumes.items():
        assert checked.volumes[name] is volume


@pytest.mark.parametrize("background", [-0.45, -9999.0, 1.0, 3.5])
def test_a_constant_background_becomes_zero_and_is_noted(volumes, background):
    changed = {name: np.where(v == 0, np.float32(background), v) for name, v in volumes.items()}
    checked = check(changed)
    assert checked.faults == []
    assert len(checked.notes) == 4
    assert all("background of" in note and "case_" in note for note in checked.notes)
    for name, volume in volumes.items():
        np.testing.assert_array_equal(checked.volumes[name], volume)


def test_z_scored_whole_volumes_get_background_zero(volumes):
    changed = {name: (v - v.mean()) / v.std() for name, v in volumes.items()}
    checked = check(changed)
    assert checked.faults == []
    for name, volume in volumes.items():
        np.testing.assert_array_equal(checked.volumes[name] != 0, volume != 0)


def test_a_background_of_nan_becomes_zero(volumes):
    volumes["t2"][volumes["t2"] == 0] = np.nan
    checked = check(volumes)
    assert checked.faults == []
    assert "t2 has a background of NaN" in checked.notes[0]
    assert np.isfinite(checked.volumes["t2"]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_inside_the_brain_is_a_fault(volumes, value):
    volumes["t1"][10, 10, 10] = value
    (fault,) = check(volumes).faults
    assert fault.startswith("case_t1.nii.gz: 1 voxels are NaN or infinite")


def test_ringing_of_splines_is_cut_and_noted(volumes):
    rng = np.random.default_rng(1)
    ringing = rng.normal(0, 1e-6, SHAPE).astype(np.float32)
    checked = check({name: np.where(v == 0, ringing, v) for name, v in volumes.items()})
    assert checked.faults == []
    assert len(checked.notes) == 4
    assert "tiny values" in checked.notes[0]
    np.testing.assert_array_equal(checked.volumes["t1"], volumes["t1"])


def test_a_few_small_values_are_signal(volumes):
    volumes["t1"][10, 10, 10] = 1e-4
    checked = check(volumes)
    assert checked.notes == []
    assert checked.volumes["t1"][10, 10, 10] > 0


def test_no_background_at_all_is_a_fault(volumes):
    volumes["flair"] += np.random.default_rng(2).uniform(1, 2, SHAPE).astype(np.float32)
    faults = check(volumes).faults
    assert faults == [
        "case_flair.nii.gz: no voxel of flair is background (0), so the scan is not "
        "skull-stripped; run 'clipseg3d prepare' on the scans"
    ]


def test_a_whole_head_is_noted(volumes):
    notes = check(volumes, voxel_mm3=2.8e6 / 1120).notes
    assert len(notes) == 4
    assert "2.8 litres of t1 are not 0" in notes[0]
    assert "clipseg3d prepare" in notes[0]
    assert check(volumes, voxel_mm3=2.8e6 / 1120).faults == []
    assert check(volumes, voxel_mm3=1.9e6 / 1120).notes == []


def test_what_can_only_be_a_whole_head_is_a_fault(volumes):
    faults = check(volumes, voxel_mm3=3.5e6 / 1120).faults
    assert len(faults) == 4
    assert faults[0] == (
        "case_t1.nii.gz: 3.5 litres of t1 are not 0, a brain has 1.2 to 1.7; it is not "
        "skull-stripped; run 'clipseg3d prepare' on the scans"
    )


def test_a_sequence_of_another_part_of_the_head_is_noted(volumes):
    volumes["flair"] = np.roll(volumes["flair"], 6, axis=1)
    (note,) = check(volumes).notes
    assert note.startswith("case_flair.nii.gz: flair does not show the same part of the head")


def test_a_cut_off_sequence_is_noted(volumes):
    volumes["flair"][:, :, 11:] = 0  # like the one of Brats18_2013_20_1
    (note,) = check(volumes).notes
    assert "look at its field of view" in note


def test_a_scaled_copy_is_a_fault(volumes):
    inside = volumes["t1"] != 0
    volumes["t1ce"] = np.where(inside, 1.5 * volumes["t1"] + 3, 0)
    assert "the same voxels for t1 and t1ce" in check(volumes).faults[0]


def test_copies_are_a_fault(volumes):
    volumes["t1ce"] = volumes["t1"].astype(np.int16)
    assert check(volumes).faults == [
        "case_t1.nii.gz and case_t1ce.nii.gz: the same voxels for t1 and t1ce; restore the right "
        "file of each"
    ]


def test_an_empty_sequence_is_a_fault(volumes):
    volumes["t2"][:] = 0
    assert check(volumes).faults == [
        "case_t2.nii.gz: every voxel of t2 is 0; export the sequence again"
    ]


def test_a_sequence_of_nan_alone_is_a_fault(volumes):
    volumes["t2"][:] = np.nan
    assert check(volumes).faults == [
        "case_t2.nii.gz: every voxel of t2 is NaN or background; export the sequence again"
    ]
