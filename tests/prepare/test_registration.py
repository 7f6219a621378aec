"""Mirrors clipseg3d/prepare/registration.py: motions that are known are found."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from scipy import ndimage
from scipy.spatial.transform import Rotation

from clipseg3d.prepare import registration
from clipseg3d.prepare.registration import register, rigid_part, to_itk
from clipseg3d.prepare.volume import Volume

sitk = pytest.importorskip("SimpleITK")

SHAPE = (44, 52, 40)
SIZE = 2.5
AFFINE = from_matvec(np.diag([-SIZE, -SIZE, SIZE]), (55, 65, -45))


@pytest.fixture(scope="module")
def brain():
    """A small brain with structure inside, and its mask; no symmetry of its own."""
    rng = np.random.default_rng(0)
    place = np.indices(SHAPE) - np.array(SHAPE).reshape(3, 1, 1, 1) / 2
    mask = sum((p / r) ** 2 for p, r in zip(place, (15, 19, 13), strict=True)) < 1
    mask &= ~((place[0] > 4) & (place[1] < -9))
    values = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 2.5)
    return Volume(np.where(mask, 3 + values / values.std(), 0).astype(np.float32), AFFINE), mask


def moved(volume, motion, sizes):
    """Return a volume in other voxels after a motion."""
    shape = tuple(np.ceil(np.array(SHAPE) * SIZE * 1.1 / sizes).astype(int))
    corner = apply_affine(AFFINE, (np.array(SHAPE) - 1) / 2) - np.diag([-1, -1, 1]) @ (
        np.array(sizes) * (np.array(shape) - 1) / 2
    )
    affine = from_matvec(np.diag([-1, -1, 1]) * sizes, corner)
    steps = np.linalg.inv(motion @ volume.affine) @ affine
    voxels = ndimage.affine_transform(volume.voxels, steps[:3, :3], steps[:3, 3], shape, order=1)
    return Volume(voxels, affine)


def rigid(degrees, shift):
    middle = apply_affine(AFFINE, (np.array(SHAPE) - 1) / 2)
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    return from_matvec(turn, middle + shift - turn @ middle)


@pytest.mark.parametrize(
    ("degrees", "shift", "sizes"),
    [((0, 0, 0), (0, 0, 0), (SIZE,) * 3), ((9, -6, 12), (12, -9, 6), (2, 1.5, 4))],
)
def test_a_known_motion_is_found_although_contrast_is_inverted(brain, degrees, shift, sizes):
    fixed, mask = brain
    motion = rigid(degrees, shift)
    other = moved(fixed, motion, sizes)
    inverse = Volume(np.where(other.voxels > 0.5, 8 - other.voxels, 0), other.affine)
    shape = Volume((other.voxels > 0.5).astype(np.float32), other.affine)
    fit = register(fixed, mask, inverse, shape, margin_mm=4.0)
    points = apply_affine(fixed.affine, np.argwhere(mask))
    miss = apply_affine(fit.matrix, points) - apply_affine(motion, points)
    assert np.linalg.norm(miss, axis=1).max() < 1.0
    assert fit.overlap == 1
    assert fit.confirmed
    assert fit.scale == pytest.approx(1)
    assert fit.mutual_information > 0.3
    angle = np.rad2deg(Rotation.from_euler("xyz", degrees, degrees=True).magnitude())
    assert fit.degrees == pytest.approx(angle, abs=1)


def test_contents_that_fit_elsewhere_alone_do_not_move_the_brain(brain, monkeypatch):
    """As where the edges of two fields of view fit each other, far from where the brains do."""
    fixed, mask = brain
    motion = rigid((4, 0, -6), (3, 2, -4))
    other = moved(fixed, motion, (2, 2, 2))
    shape = Volume((other.voxels > 0.5).astype(np.float32), other.affine)
    follow = registration._Level.follow

    def astray(level, transform):
        found = follow(level, transform)
        if not level._masks:
            found = sitk.Euler3DTransform(found)
            found.SetTranslation(np.add(found.GetTranslation(), (0, 0, 20)).tolist())
        return found

    monkeypatch.setattr(registration._Level, "follow", astray)
    fit = register(fixed, mask, other, shape, margin_mm=4.0)
    assert not fit.confirmed
    points = apply_affine(fixed.affine, np.argwhere(mask))
    miss = apply_affine(fit.matrix, points) - apply_affine(motion, points)
    assert np.linalg.norm(miss, axis=1).max() < 5


def test_a_factor_is_found_and_its_rigid_part_keeps_a_point(brain):
    fixed, mask = brain
    motion = rigid((5, 0, -8), (4, 8, 0)) @ np.diag([1.12, 1.12, 1.12, 1])
    other = moved(fixed, motion, (2.2, 2.2, 2.2))
    shape = Volume((other.voxels > 0.5).astype(np.float32), other.affine)
    fit = register(fixed, mask, other, shape, margin_mm=4.0, scaling=True)
    assert fit.scale == pytest.approx(1.12, abs=0.02)
    point = (3.0, -2.0, 11.0)
    kept = rigid_part(fit.matrix, about=point)
    np.testing.assert_allclose(kept[:3, :3] @ kept[:3, :3].T, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(apply_affine(kept, point), apply_affine(fit.matrix, point))


def test_transforms_of_itk_resample_as_the_matrix_says(brain, tmp_path):
    """SimpleITK, from files alone, puts a voxel where nibabel's affines say."""
    motion = rigid((10, 5, -20), (3, 6, -9))
    fixed, _ = brain
    there = moved(fixed, motion, (SIZE,) * 3)
    for name, volume in (("here", fixed), ("there", there)):
        image = nib.Nifti1Image(volume.voxels, volume.affine)
        nib.save(image, tmp_path / f"{name}.nii.gz")
    sitk.WriteTransform(to_itk(motion), str(tmp_path / "motion.tfm"))
    here, there = (sitk.ReadImage(str(tmp_path / f"{n}.nii.gz")) for n in ("here", "there"))
    back = sitk.Resample(there, here, sitk.ReadTransform(str(tmp_path / "motion.tfm")))
    inner = np.s_[8:-8, 8:-8, 8:-8]
    one, other = (sitk.GetArrayFromImage(image)[inner].ravel() for image in (here, back))
    assert np.corrcoef(one, other)[0, 1] > 0.95  # it is interpolated twice
