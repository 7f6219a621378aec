"""Makers of tiny cases, shared by the tests of clipseg3d/data. Axes x y z differ pairwise."""

import json
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


def write_release(root, release, case_id, labels=None, *, drop=()):
    """Write one case as a release names its files; the mask holds 0 and the labels given."""
    rng = np.random.default_rng(len(case_id))
    folder = root / case_id

    def path_of(kind):
        return folder / f"{release.file_name(case_id, kind)}.nii.gz"

    files = {
        sequence: write_nifti(path_of(sequence), rng.integers(1, 9, SHAPE, np.int16))
        for sequence in release.sequences
        if sequence not in drop
    }
    if labels is not None:
        mask = np.zeros(SHAPE, np.uint8)
        mask.flat[: len(labels)] = labels
        files["label"] = write_nifti(path_of("label"), mask)
    return files


def write_msd(root, training, test=(), *, modality=None):
    """Write a folder as the Medical Segmentation Decathlon lays it out; return it."""
    modality = modality or {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    shape = (*SHAPE, len(modality))
    image = (np.arange(np.prod(shape), dtype=np.float32) % 251 + 1).reshape(shape)
    mask = np.zeros(SHAPE, np.uint8)
    mask.flat[:3] = 1, 2, 3
    for name in training:
        write_nifti(root / "imagesTr" / f"{name}.nii.gz", image)
        write_nifti(root / "labelsTr" / f"{name}.nii.gz", mask)
    for name in test:
        write_nifti(root / "imagesTs" / f"{name}.nii.gz", image)
    manifest = {
        "name": "BRATS",
        "modality": modality,
        "training": [
            {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
            for name in training
        ],
        "test": [f"./imagesTs/{name}.nii.gz" for name in test],
    }
    (root / "dataset.json").write_text(json.dumps(manifest))
    return root


SHIFTED_LPS = np.array([[-1, 0, 0, 20], [0, -1, 0, 239], [0, 0, 1, -7], [0, 0, 0, 1]], dtype=float)


def reorder(volume, order):
    """Store an LPS volume in another voxel order; return it with its affine.

    Works by naming where each voxel is, not with nibabel's transforms, which the code under test
    uses.
    """
    opposite = dict(zip("LRPASI", "RLAPIS", strict=True))
    affine = np.eye(4)
    axes, steps = [], []
    for letter in order:
        axis = next(i for i, lps in enumerate("LPS") if letter in (lps, opposite[lps]))
        axes.append(axis)
        steps.append(1 if letter == "LPS"[axis] else -1)
    for new, (axis, step) in enumerate(zip(axes, steps, strict=True)):
        affine[:3, new] = SHIFTED_LPS[:3, axis] * step
    corner = np.zeros(3)
    for axis, step in zip(axes, steps, strict=True):
        corner[axis] = volume.shape[axis] - 1 if step < 0 else 0
    affine[:3, 3] = SHIFTED_LPS[:3, :3] @ corner + SHIFTED_LPS[:3, 3]
    stored = volume.transpose(axes)[tuple(slice(None, None, step) for step in steps)]
    return np.ascontiguousarray(stored), affine


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


@pytest.fixture(name="write_release", scope="session")
def release_writer():
    return write_release


@pytest.fixture(name="write_msd", scope="session")
def msd_writer():
    return write_msd


@pytest.fixture(name="reorder", scope="session")
def voxel_reorderer():
    return reorder


@pytest.fixture(name="content", scope="session")
def content_reader():
    return content
