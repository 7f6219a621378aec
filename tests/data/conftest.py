"""Makers of tiny cases, shared by the tests of clipseg3d/data. Axes x y z differ pairwise."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

SEQUENCES = ("t1", "t1ce", "t2", "flair")
SHAPE = (13, 17, 11)
LPS = np.array([[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=float)
"""The affine of official BraTS files."""


def fake_patient(shape=SHAPE, seed=0):
    """Return images (4, x, y, z) int16, 0 outside the brain, and a label map of 0, 1, 2 and 4."""
    rng = np.random.default_rng(seed)
    images = np.zeros((4, *shape), np.int16)
    brain = tuple(slice(1 + axis, n - 1) for axis, n in enumerate(shape))
    inside = images[(slice(None), *brain)]
    inside[:] = rng.integers(100, 900, inside.shape)
    label = np.zeros(shape, np.uint8)
    x, y, z = (n // 2 for n in shape)
    label[x - 3 : x + 2, y - 2 : y + 4, z - 1 : z + 3] = 2
    label[x - 2 : x + 1, y - 1 : y + 3, z - 1 : z + 2] = 1
    label[x - 1 : x + 1, y : y + 2, z : z + 2] = 4
    return images, label


def write_nifti(path, voxels, affine=LPS):
    """Write one file with qform and sform, as BraTS does, and return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    nib.save(image, path)
    return path


def write_case(
    folder,
    case_id="BraTS20_Training_001",
    *,
    images=None,
    label=True,
    affine=LPS,
    shape=SHAPE,
    seed=0,
    ext=".nii.gz",
    drop=(),
    report=None,
    label_stem=None,
):
    """Write one case into a folder; return its files by sequence, the mask under "label".

    Args:
        folder: made if missing.
        case_id: what file names start with.
        images: (4, x, y, z); None draws some.
        label: (x, y, z), True for the one that belongs to the drawn images, False for none.
        affine: of every file.
        shape: of drawn images.
        seed: of drawn images.
        ext: ".nii.gz" or ".nii".
        drop: sequences to leave out.
        report: text to put beside the images.
        label_stem: name of the mask without extension, where it follows no rule.
    """
    folder = Path(folder)
    drawn, mask = fake_patient(shape, seed)
    images = drawn if images is None else images
    files = {
        sequence: write_nifti(folder / f"{case_id}_{sequence}{ext}", volume, affine)
        for sequence, volume in zip(SEQUENCES, images, strict=True)
        if sequence not in drop
    }
    if label is not False:
        name = f"{label_stem or f'{case_id}_seg'}{ext}"
        files["label"] = write_nifti(folder / name, mask if label is True else label, affine)
    if report is not None:
        (folder / f"{case_id}_flair_text.txt").write_text(report, encoding="utf-8")
    return files


def content(folder):
    """Return every file below a folder with its bytes."""
    return {p.relative_to(folder): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def equal_views(one, other):
    """Say whether two views agree, images and planes."""
    return type(one) is type(other) and all(map(torch.equal, one, other))


@pytest.fixture(name="equal_views", scope="session")
def views_comparer():
    return equal_views


@pytest.fixture(name="fake_patient", scope="session")
def fake_patient_maker():
    return fake_patient


@pytest.fixture(name="write_nifti", scope="session")
def nifti_writer():
    return write_nifti


@pytest.fixture(name="write_case", scope="session")
def case_writer():
    return write_case


@pytest.fixture(name="content", scope="session")
def content_reader():
    return content
