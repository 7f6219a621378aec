"""Mirrors clipseg3d/prepare/scan_search.py."""

import pytest

from clipseg3d.prepare.scan_search import find_scans


def found(folder, *names):
    for name in names:
        (folder / name).touch()
    return {sequence: path.name for sequence, path in find_scans(folder).items()}


@pytest.mark.parametrize(
    ("sequence", "name"),
    [
        ("t1", "sub-01_T1w.nii.gz"),
        ("t1", "patient_t1.nii"),
        ("t1", "BraTS-t1n-3D_T1.nii.gz"),
        ("t1", "MPRAGE_sag.nii.gz"),
        ("t1ce", "sub-01_ce-gadolinium_T1w.nii.gz"),
        ("t1ce", "t1_post.nii.gz"),
        ("t1ce", "x_t1ce.nii.gz"),
        ("t1ce", "x-t1c.nii.gz"),
        ("t1ce", "T1Gd axial.nii"),
        ("t2", "sub-01_T2w.nii.gz"),
        ("t2", "ax t2 tse.nii.gz"),
        ("flair", "sub-01_FLAIR.nii.gz"),
        ("flair", "t2_flair.nii.gz"),
        ("flair", "x-t2f.nii.gz"),
        ("t1", "BraTS-GLI-00001-000-t1n.nii.gz"),
        ("t1", "T1_pre_contrast.nii.gz"),
        ("t1", "t1_without_contrast.nii.gz"),
        ("t1", "t1_no_gd.nii.gz"),
        ("t1", "t1_ohne_km.nii.gz"),
        ("t1", "t1_post_op.nii.gz"),
        ("t1", "c_t1.nii.gz"),
        ("t1", "t1_flair.nii.gz"),
        ("t1ce", "t1_c.nii.gz"),
        ("t1ce", "t1+c.nii.gz"),
        ("t1ce", "pre-op_t1ce.nii.gz"),
        ("t1ce", "pre_op_t1_gd.nii.gz"),
        ("t1ce", "t1_mprage_km.nii.gz"),
    ],
)
def test_names_tell_sequences_apart(tmp_path, sequence, name):
    assert found(tmp_path, name) == {sequence: name}


@pytest.mark.parametrize(
    "name",
    [
        *("T2_star.nii.gz", "t2_swi.nii.gz", "t2_seg.nii.gz", "dwi_t2w.nii.gz", "adc_t2.nii.gz"),
        *("t1_mask.nii.gz", "t1_map.nii.gz", "t1_post_sub.nii.gz", "t1_t2.nii.gz", "brain.nii.gz"),
    ],
)
def test_other_files_are_passed_over(tmp_path, name):
    assert found(tmp_path, name, "sub-map_flair.nii.gz") == {"flair": "sub-map_flair.nii.gz"}


def test_a_folder_of_four_and_other_files(tmp_path):
    names = ["a_flair.nii.gz", "a_t1.nii.gz", "a_t1ce.nii.gz", "a_t2.nii.gz"]
    assert found(tmp_path, *names, "a_seg.nii.gz", "t1.json", ".t1.nii.gz") == {
        "t1": "a_t1.nii.gz",
        "t1ce": "a_t1ce.nii.gz",
        "t2": "a_t2.nii.gz",
        "flair": "a_flair.nii.gz",
    }


def test_two_files_for_one_sequence_are_asked_about(tmp_path):
    with pytest.raises(
        ValueError, match=r"a_t1ce\.nii and b_t1gd\.nii could each be t1ce; .*--t1ce"
    ):
        found(tmp_path, "a_t1ce.nii", "b_t1gd.nii")


def test_what_is_told_settles_a_doubt(tmp_path):
    for name in ("a_t1ce.nii", "b_t1gd.nii", "t2.nii"):
        (tmp_path / name).touch()
    told = {"t1ce": tmp_path / "b_t1gd.nii", "flair": tmp_path / "elsewhere" / "x.nii"}
    files = find_scans(tmp_path, told=told)
    assert files == {"t1ce": told["t1ce"], "t2": tmp_path / "t2.nii", "flair": told["flair"]}


@pytest.mark.parametrize("names", [[], ["knee.nii.gz"], ["at12.nii.gz", "t10.nii.gz"]])
def test_a_folder_without_a_sequence_is_refused(tmp_path, names):
    with pytest.raises(FileNotFoundError, match="--t1 FILE"):
        found(tmp_path, *names)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone: no such folder"):
        find_scans(tmp_path / "gone")
