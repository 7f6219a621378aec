"""Mirrors clipseg3d/data/label_pairs.py."""

import numpy as np
import pytest

from clipseg3d.data.cases import DataError
from clipseg3d.data.label_pairs import (
    find_label_maps,
    find_predictions,
    find_references,
    read_pair,
)
from clipseg3d.data.releases import BRATS_2020, BRATS_2023_GLI

NAMES = ("BraTS20_Training_001", "BraTS20_Training_002")
SHAPE = (9, 8, 7)


def labels(*values, dtype=np.uint8):
    voxels = np.zeros(SHAPE, dtype)
    voxels[1, 2, : len(values)] = values
    return voxels


@pytest.fixture
def root(tmp_path, write_case):
    for seed, name in enumerate(NAMES):
        write_case(tmp_path / "root" / name, name, seed=seed)
    return tmp_path / "root"


def faults_of(action, *arguments):
    with pytest.raises(DataError) as raised:
        action(*arguments)
    return raised.value.faults


# references


def test_cases_of_a_release(root):
    references, release = find_references(root, None)
    assert references == {name: root / name / f"{name}_seg.nii.gz" for name in NAMES}
    assert release is BRATS_2020
    assert find_references(root, "brats2020")[0] == references
    assert find_references(root, "brats2019")[1].name == "brats2019"


def test_masks_alone_named_as_in_a_release(tmp_path, write_nifti):
    path = write_nifti(tmp_path / "BraTS-GLI-00007-000-seg.nii.gz", labels(1, 2, 3))
    assert find_references(tmp_path, None) == ({"BraTS-GLI-00007-000": path}, BRATS_2023_GLI)


def test_label_maps_named_by_case(tmp_path, write_nifti):
    paths = {name: write_nifti(tmp_path / f"{name}.nii.gz", labels(1, 2, 4)) for name in NAMES}
    assert find_references(tmp_path, None) == (paths, BRATS_2020)
    write_nifti(tmp_path / "patient.7.nii", labels())
    with pytest.raises(
        ValueError,
        match=r"case names of no known release, such as Bra.*; name the release, one of br",
    ):
        find_references(tmp_path, None)
    references, release = find_references(tmp_path, "brats2023_gli")
    assert list(references) == [*NAMES, "patient.7"]
    assert release is BRATS_2023_GLI


def test_cases_of_another_release_than_named(root):
    with pytest.raises(FileNotFoundError, match=r"neither cases of brats2023_gli, nor .* release"):
        find_references(root, "brats2023_gli")


def test_names_of_two_releases(tmp_path, write_nifti):
    write_nifti(tmp_path / "BraTS-PED-00007-000.nii.gz", labels())
    with pytest.raises(
        ValueError,
        match=r"several releases, such as BraTS-PED-00007-000; .* brats2023_ped, brats2024_ped",
    ):
        find_references(tmp_path, None)


def test_a_case_without_mask_and_one_with_two(root, write_case):
    write_case(root / "again", NAMES[0])
    (root / NAMES[1] / f"{NAMES[1]}_seg.nii.gz").unlink()
    doubled, lacking = sorted(faults_of(find_references, root, "brats2020"), key=len, reverse=True)
    assert doubled.endswith(f"expert masks of the same case {NAMES[0]}; keep one")
    assert lacking == f"{root / NAMES[1]}: {NAMES[1]} has no expert mask; add it, or move it away"


def test_folders_that_are_missing_or_empty(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone: no such folder"):
        find_references(tmp_path / "gone", None)
    with pytest.raises(
        FileNotFoundError, match="holds no expert masks: neither cases of a known rel"
    ):
        find_references(tmp_path, None)
    with pytest.raises(ValueError, match="unknown release 'brats1999'"):
        find_references(tmp_path, "brats1999")


# predictions


def test_one_prediction_for_each_reference(tmp_path, root, write_nifti):
    folder = tmp_path / "predictions"
    paths = {
        name: write_nifti(folder / f"{name}{ext}", labels())
        for name, ext in zip(NAMES, (".nii", ".nii.gz"), strict=True)
    }
    references, _ = find_references(root, None)
    assert find_predictions(folder, references) == paths


def test_missing_extra_and_doubled_predictions(tmp_path, root, write_nifti):
    folder = tmp_path / "predictions"
    references, _ = find_references(root, None)
    extra = write_nifti(folder / f"{NAMES[0]}_pred.nii.gz", labels())
    assert faults_of(find_predictions, folder, references) == (
        *(
            f"{folder / name}.nii.gz: missing; segment the case, or take it out of the references"
            for name in NAMES
        ),
        f"{extra}: of no reference; name it {{case}}.nii.gz like one of them, or take it out",
    )
    write_nifti(folder / f"{NAMES[0]}_pred.nii", labels())
    (fault,) = faults_of(find_label_maps, folder)
    assert f"the same case as {NAMES[0]}_pred.nii" in fault
    with pytest.raises(FileNotFoundError, match="gone: no such folder"):
        find_predictions(tmp_path / "gone", references)


# voxels


def read(tmp_path, write_nifti, prediction, reference=None, release=BRATS_2020, **options):
    paths = (
        write_nifti(tmp_path / "p.nii.gz", prediction, **options),
        write_nifti(tmp_path / "r.nii.gz", labels(4, 1, 2) if reference is None else reference),
    )
    return read_pair(*paths, release)


def test_labels_become_regions(tmp_path, write_nifti):
    affine = np.diag([-1.0, -2, 3, 1])
    paths = (
        write_nifti(tmp_path / "p.nii.gz", labels(4, 1, 2, 0, 2), affine),
        write_nifti(tmp_path / "r.nii", labels(0, 0.9999, 3.9999, dtype=np.float32), affine),
    )
    pair = read_pair(*paths, BRATS_2020)
    assert pair.prediction[:, 1, 2, :6].astype(int).tolist() == [
        [1, 1, 1, 0, 1, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
    ]
    assert pair.reference[:, 1, 2].sum(axis=-1).tolist() == [2, 2, 1]
    assert pair.prediction.sum() == 7
    assert pair.spacing_mm == (1, 2, 3)


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (labels(0.25, 0.75, dtype=np.float32), "holds 0.25, 0.75, no whole number; threshold prob"),
        (labels(1, 3), "holds label 3, but brats2020 has 0, 1, 2, 4; name the release"),
        (np.zeros((9, 8, 6), np.uint8), "shape 9x8x6 differs from 9x8x7 of r.nii.gz"),
        (np.zeros((9, 8, 7, 3), np.float32), "has 4 axes"),
        (labels(np.nan, dtype=np.float32), "1 voxels are NaN or infinite"),
    ],
)
def test_what_is_no_label_map_of_the_case(tmp_path, write_nifti, prediction, message):
    (fault,) = faults_of(read, tmp_path, write_nifti, prediction)
    assert fault.startswith(f"{tmp_path / 'p.nii.gz'}: {message}")


def test_another_affine(tmp_path, write_nifti):
    affine = np.diag([-1.0, -1, 1, 1])
    (fault,) = faults_of(lambda: read(tmp_path, write_nifti, labels(1), affine=affine))
    assert "affine differs from that of r.nii.gz by up to 239 mm; register both" in fault


def test_faults_of_both_files_are_listed_once(tmp_path, write_nifti):
    (tmp_path / "p.nii.gz").write_bytes(b"")
    reference = write_nifti(tmp_path / "r.nii.gz", labels(7))
    faults = faults_of(read_pair, tmp_path / "p.nii.gz", reference, BRATS_2020)
    assert [fault.partition(": ")[2][:20] for fault in faults] == [
        "the file is empty; c",
        "holds label 7, but b",
    ]


def test_references_without_tumour_are_no_fault(tmp_path, write_nifti):
    pair = read(tmp_path, write_nifti, labels(1), reference=labels())
    assert not pair.reference.any()
    assert pair.prediction.any()
