"""Mirrors clipseg3d/data/submission.py: what a portal would refuse is named."""

import gzip
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from clipseg3d.data.releases import BRATS_2020, BRATS_2023_GLI, MSD_TASK01
from clipseg3d.data.submission import check_submission

NAMES = ("BraTS20_Training_001", "BraTS20_Training_002")
AFFINE = np.array([[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]], float)


@pytest.fixture
def folders(tmp_path, write_case, fake_patient, write_nifti):
    """A good submission, and the cases it is of."""
    for seed, name in enumerate(NAMES):
        write_case(tmp_path / "root" / name, name, seed=seed, label=False)
        write_nifti(tmp_path / "segmentations" / f"{name}.nii.gz", fake_patient(seed=seed)[1])
    return tmp_path / "segmentations", tmp_path / "root"


def faults_of(folders, release=BRATS_2020):
    count, faults = check_submission(*folders, release)
    assert count == 2
    return [fault.replace(f"{folders[0]}/", "") for fault in faults]


def change(folders, make, *, affine=AFFINE, name=f"{NAMES[0]}.nii.gz"):
    """Write the first segmentation again, changed."""
    path = folders[0] / f"{NAMES[0]}.nii.gz"
    label = np.asanyarray(nib.load(path).dataobj)
    path.unlink()
    image = nib.Nifti1Image(make(label), None)
    image.header.set_sform(affine, 1)
    nib.save(nib.Nifti1Image(image.dataobj, None, image.header), folders[0] / name)


def test_a_good_submission_has_no_fault(folders):
    assert faults_of(folders) == []
    (folders[0] / "notes.txt").write_text("no volume")
    (folders[0] / "probabilities").mkdir()
    (folders[0] / ".hidden.nii.gz").write_text("")
    assert faults_of(folders) == []


def test_an_empty_segmentation_is_no_fault(folders):
    change(folders, np.zeros_like)
    assert faults_of(folders) == []


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.uint16])
def test_any_whole_numbers_will_do(folders, kind):
    change(folders, lambda label: label.astype(kind))
    assert faults_of(folders) == []


def test_names(folders):
    folder, root = folders
    (folder / f"{NAMES[0]}.nii.gz").rename(folder / f"{NAMES[0]}_seg.nii.gz")
    (folder / f"{NAMES[1]}.nii.gz").unlink()
    shutil.copy(root / NAMES[1] / f"{NAMES[1]}_t1.nii.gz", folder / "BraTS20_Training_0021.nii.gz")
    assert faults_of(folders) == [
        f"{NAMES[0]}_seg.nii.gz: portals accept only {NAMES[0]}.nii.gz; rename it",
        f"{NAMES[1]}.nii.gz: missing; segment the case",
        f"BraTS20_Training_0021.nii.gz: belongs to no case in {root}; move it away",
    ]


def test_a_second_file_of_a_case_is_one_too_many(folders):
    folder, root = folders
    shutil.copy(folder / f"{NAMES[0]}.nii.gz", folder / f"{NAMES[0]}_seg.nii.gz")
    (folder / f"{NAMES[1]}.nii").write_bytes(
        gzip.decompress((folder / f"{NAMES[1]}.nii.gz").read_bytes())
    )
    assert faults_of(folders) == [
        f"{NAMES[0]}_seg.nii.gz: belongs to no case in {root}; move it away",
        f"{NAMES[1]}.nii: belongs to no case in {root}; move it away",
    ]


def test_files_are_compressed(folders):
    change(folders, np.array, name=f"{NAMES[0]}.nii")
    assert faults_of(folders) == [
        f"{NAMES[0]}.nii: portals accept only {NAMES[0]}.nii.gz; compress it"
    ]


def test_labels_are_those_of_the_release(folders):
    change(folders, lambda label: np.where(label == 4, 3, label).astype(np.uint8))
    (fault,) = faults_of(folders)
    assert fault.startswith(
        f"{NAMES[0]}.nii.gz: holds label 3, but brats2020 has 0, 1, 2, 4; write the labels of that "
        "release (these are labels of brats2023_gli"
    )


def test_probabilities_are_no_labels(folders):
    change(folders, lambda label: label.astype(np.float32) / 8)
    assert faults_of(folders) == [
        f"{NAMES[0]}.nii.gz: holds 0.125, which is not a whole number; submit labels, not "
        "probabilities"
    ]


def test_rounding_errors_are_not_allowed_in_labels(folders):
    change(folders, lambda label: label + np.float32(1e-4) * (label == 4))
    (fault,) = faults_of(folders)
    assert fault.startswith(f"{NAMES[0]}.nii.gz: holds 4.0001, which is not a whole number")


def test_labels_are_not_stored_as_real_numbers(folders):
    change(folders, lambda label: label.astype(np.float64))
    assert faults_of(folders) == [
        f"{NAMES[0]}.nii.gz: stored as float64 and read as float64; save labels as uint8, unscaled"
    ]


def test_shape(folders):
    change(folders, lambda label: label[:, :, :-1])
    assert faults_of(folders) == [
        f"{NAMES[0]}.nii.gz: shape (13, 17, 10) differs from the scan's (13, 17, 11); copy header "
        f"and affine of {NAMES[0]}_t1.nii.gz"
    ]


def moved(**entries):
    affine = AFFINE.copy()
    for entry, value in entries.items():  # a13: row 1, column 3
        affine[int(entry[1]), int(entry[2])] = value
    return affine


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (moved(a13=0), "origin (0, 0, 0) differs from (0, 239, 0); copy header and affine of"),
        (moved(a23=0.02), "origin (0, 239, 0.02) differs from (0, 239, 0); copy header"),
        (moved(a22=1.01), "spacing (1, 1, 1.01) mm differs from (1, 1, 1) mm; copy header"),
        (moved(a00=1), "orientation RPS differs from LPS by up to 2 in direction; copy header"),
        (moved(a01=0.01), "orientation LPS differs from LPS by up to 0.01 in direction; copy"),
        (
            moved(a00=np.nan),
            "its affine has no inverse, or is not finite; copy header and affine of",
        ),
    ],
)
def test_grid(folders, affine, message):
    change(folders, np.array, affine=affine)
    (fault,) = faults_of(folders)
    assert fault.startswith(f"{NAMES[0]}.nii.gz: {message}")


@pytest.mark.parametrize("affine", [moved(a23=0.005), moved(a22=1.0005), moved(a01=0.0005)])
def test_rounding_is_no_fault(folders, affine):
    change(folders, np.array, affine=affine)
    assert faults_of(folders) == []


def test_all_faults_of_a_file_are_listed(folders):
    change(folders, lambda label: label[1:] + np.float32(5), affine=moved(a13=1, a22=2))
    kinds = [fault.split(": ")[1].split()[0] for fault in faults_of(folders)]
    assert kinds == ["stored", "holds", "shape", "spacing", "origin"]


def test_a_broken_file_is_named(folders):
    path = folders[0] / f"{NAMES[1]}.nii.gz"
    path.write_bytes(path.read_bytes()[:-9])
    (fault,) = faults_of(folders)
    assert fault.startswith(f"{NAMES[1]}.nii.gz: not a readable NIfTI file")


def test_folders_that_hold_nothing(folders, tmp_path):
    folder, root = folders
    (tmp_path / "empty").mkdir()
    for pair, message in (
        ((tmp_path / "gone", root), "gone: no such folder; give the folder of segmentations"),
        ((tmp_path / "empty", root), r"empty: holds no segmentation \(files \{case\}\.nii\.gz\)"),
        ((folder, tmp_path / "empty"), "empty: no case of brats2020 in it"),
        ((folder, tmp_path / "gone"), "gone: no such folder"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            check_submission(*pair, BRATS_2020)


def test_faults_of_the_reference_count_too(folders):
    path = folders[1] / NAMES[0] / f"{NAMES[0]}_t2.nii.gz"
    path.write_bytes(b"")
    (fault,) = check_submission(*folders, BRATS_2020)[1]
    assert fault.startswith(f"{path}: the file is empty")


def test_later_releases_have_label_3(tmp_path, write_nifti, fake_patient):
    images, label = fake_patient()
    name = "BraTS-GLI-00001-000"
    for suffix, volume in zip(("t1n", "t1c", "t2w", "t2f"), images, strict=True):
        write_nifti(tmp_path / "root" / name / f"{name}-{suffix}.nii.gz", volume)
    write_nifti(
        tmp_path / "segmentations" / f"{name}.nii.gz",
        np.where(label == 4, 3, label).astype(np.uint8),
    )
    assert check_submission(tmp_path / "segmentations", tmp_path / "root", BRATS_2023_GLI) == (
        1,
        [],
    )
    write_nifti(tmp_path / "segmentations" / f"{name}.nii.gz", label)
    (fault,) = check_submission(tmp_path / "segmentations", tmp_path / "root", BRATS_2023_GLI)[1]
    assert "holds label 4, but brats2023_gli has 0, 1, 2, 3" in fault


def test_a_4d_scan_is_the_reference_of_3d_labels(tmp_path, write_nifti, fake_patient):
    images, label = fake_patient()
    write_nifti(tmp_path / "root" / "imagesTs" / "BRATS_001.nii.gz", np.moveaxis(images, 0, -1))
    (tmp_path / "root" / "dataset.json").write_text(
        json.dumps(
            {
                "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
                "training": [],
                "test": ["./imagesTs/BRATS_001.nii.gz"],
            }
        )
    )
    write_nifti(
        tmp_path / "segmentations" / "BRATS_001.nii.gz",
        np.where(label == 4, 3, label).astype(np.uint8),
    )
    assert check_submission(tmp_path / "segmentations", tmp_path / "root", MSD_TASK01) == (1, [])
