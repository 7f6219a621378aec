"""Rigid registration of scans to each other, and of a brain to the atlas, by mutual information."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.affines import apply_affine, from_matvec
from scipy import ndimage
from scipy.spatial.transform import Rotation

from clipseg3d.data.resampling import carry, extent
from clipseg3d.prepare.extra import import_extra

Affine = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From mm as in NIfTI to mm as in ITK, and back."""
_COARSE_MM, _FINE_MM = 4.0, 2.0
"""Voxels of the two levels of registration."""
_START_DEGREES = (-20.0, 0.0, 20.0)
"""Rotations about each axis that are tried first."""
_NUM_STARTS = 3
"""Starts that are followed on the coarse level."""
_MAX_STRAY_MM = 20.0
"""How far the centre may end up from where it was said to be."""
_BINS = 32
_SAMPLES = 120_000
"""Voxels of the fine level that mutual information is estimated from, at most."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume and where it lies.

    Attributes:
        voxels: (x, y, z) float32.
        affine: 4 x 4, from voxels to mm.
    """

    voxels: npt.NDArray[np.float32] = field(repr=False)
    affine: Affine


@dataclass(frozen=True, eq=False)
class Fit:
    """What a registration has found.

    Attributes:
        matrix: 4 x 4, from mm of the fixed volume to mm of the moving one.
        mutual_information: of the two volumes where the mask is, in nats.
        overlap: share of the mask that lies in the field of view of the moving volume.
    """

    matrix: Affine
    mutual_information: float
    overlap: float

    @property
    def scale(self) -> float:
        """Factor from lengths in the fixed volume to lengths in the moving one."""
        return float(np.cbrt(np.linalg.det(self.matrix[:3, :3])))

    @property
    def degrees(self) -> float:
        """Angle of the rotation."""
        turn = Rotation.from_matrix(self.matrix[:3, :3] / self.scale)
        return float(np.rad2deg(turn.magnitude()))


def register(
    fixed: Volume,
    mask: Bool,
    moving: Volume,
    *,
    moving_centre: npt.NDArray[np.float64],
    margin_mm: float,
    scaling: bool = False,
) -> Fit:
    """Find the rigid motion that brings two volumes together, by mutual information.

    Both are brought to voxels of 4 mm, then 2 mm. From where the centres lie together, 27 rotations
    are tried, and the best ones are followed. The result depends on nothing random.

    Args:
        fixed: where the mask lies.
        mask: (x, y, z), voxels of the fixed volume that are to fit.
        moving: the other volume.
        moving_centre: in mm, where the centre of the mask is in the moving volume, within 1 cm.
        margin_mm: how far around the mask the volumes are to fit as well.
        scaling: whether one factor is found as well.
    """
    sitk = _import_simpleitk()
    centre = _centre(mask, fixed.affine)
    coarse = _Level(sitk, fixed, mask, moving, _COARSE_MM, margin_mm)
    starts = []
    for degrees in product(_START_DEGREES, repeat=3):
        transform = _start(sitk, centre, moving_centre - centre, degrees, scaling=scaling)
        if (score := coarse.score(transform)) is not None:
            starts.append((score, len(starts), transform))
    if not starts:
        return Fit(from_matvec(np.eye(3), moving_centre - centre), 0.0, 0.0)

    def strays(transform: Any) -> bool:
        """Return whether a transform has left the centre; mutual information may be high there."""
        there = apply_affine(_from_itk(transform), centre)
        return bool(np.linalg.norm(there - moving_centre) > _MAX_STRAY_MM)

    best = sorted(starts, key=lambda start: start[:2])[:_NUM_STARTS]
    followed = [coarse.follow(transform) for *_, transform in best]
    _, transform = min(followed, key=lambda pair: (strays(pair[1]), pair[0]))
    fine = _Level(sitk, fixed, mask, moving, _FINE_MM, margin_mm)
    score, transform = fine.follow(transform)
    matrix = _from_itk(transform)
    overlap = _overlap(mask, fixed.affine, moving, matrix)
    return Fit(matrix, -score / max(overlap, 1e-3), overlap)


def rigid_part(matrix: Affine, *, about: Sequence[float]) -> Affine:
    """Return the rigid motion nearest to a similarity: one that agrees with it at a point.

    Args:
        matrix: 4 x 4, a rotation and one factor.
        about: the point, in mm.
    """
    left, _, right = np.linalg.svd(matrix[:3, :3])
    turn = left @ right
    motion: Affine = from_matvec(turn, apply_affine(matrix, about) - turn @ np.asarray(about))
    return motion


def to_itk(matrix: Affine) -> Any:
    """Return a transform of SimpleITK from a matrix between mm as in NIfTI."""
    lps = _LPS @ matrix @ _LPS
    transform = _import_simpleitk().AffineTransform(3)
    transform.SetMatrix(lps[:3, :3].ravel().tolist())
    transform.SetTranslation(lps[:3, 3].tolist())
    return transform


def _import_simpleitk() -> Any:
    return import_extra("SimpleITK", needed_for="registration")


class _Level:
    """One resolution of a registration."""

    def __init__(
        self,
        sitk: Any,
        fixed: Volume,
        mask: Bool,
        moving: Volume,
        spacing_mm: float,
        margin_mm: float,
    ) -> None:
        # Only the surroundings of the mask matter.
        (box,) = ndimage.find_objects(mask.view(np.uint8))
        inner = fixed.affine @ from_matvec(np.eye(3), [side.start for side in box])
        layers = math.ceil(margin_mm / spacing_mm)
        shape, affine = _cubes(mask[box].shape, inner, spacing_mm, layers=layers)
        weight = carry(mask[box].astype(np.float32), inner, shape, affine)
        near = weight > 0.5
        if layers:
            near = ndimage.binary_dilation(near, iterations=layers)
        self._sitk = sitk
        self._fixed = _image(sitk, fixed, shape, affine)
        self._mask = sitk.Cast(_to_image(sitk, near.astype(np.float32), affine), sitk.sitkUInt8)
        self._share = min(1.0, _SAMPLES / max(1, int(near.sum())))
        self._moving = _image(sitk, moving, *_cubes(moving.voxels.shape, moving.affine, spacing_mm))
        self._near, self._near_affine, self._field = near, affine, moving

    def score(self, transform: Any) -> float | None:
        """Return the negative mutual information; None if the volumes hardly overlap.

        It is weighed by the overlap, without which it is best where little of the mask is compared.
        """
        method = self._method(transform)
        try:
            value = float(method.MetricEvaluate(self._fixed, self._moving))
        except RuntimeError:  # fewer than a quarter of the voxels lie in the moving volume
            return None
        return value * self._overlap(transform)

    def _overlap(self, transform: Any) -> float:
        """Return the share of the mask that lies in the moving volume."""
        return _overlap(self._near, self._near_affine, self._field, _from_itk(transform))

    def follow(self, transform: Any) -> tuple[float, Any]:
        """Return the best score near a transform, and where it is."""
        sitk = self._sitk
        method = self._method(sitk.Transform(transform))
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=1.0,
            minStep=0.005,
            numberOfIterations=150,
            relaxationFactor=0.6,
            gradientMagnitudeTolerance=1e-6,
        )
        method.SetOptimizerScalesFromPhysicalShift()
        try:
            found = method.Execute(self._fixed, self._moving)
        except RuntimeError:  # it went where the volumes hardly overlap
            return 0.0, transform
        transform = sitk.CompositeTransform(found).GetBackTransform()
        return self.score(transform) or 0.0, transform

    def _method(self, transform: Any) -> Any:
        sitk = self._sitk
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(_BINS)
        method.SetMetricFixedMask(self._mask)
        if self._share < 1:
            method.SetMetricSamplingStrategy(method.RANDOM)
            method.SetMetricSamplingPercentage(self._share, 1)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetInitialTransform(transform, inPlace=False)
        return method


def _start(
    sitk: Any,
    centre: npt.NDArray[np.float64],
    shift: npt.NDArray[np.float64],
    degrees: Sequence[float],
    *,
    scaling: bool,
) -> Any:
    """Return a transform of SimpleITK to begin with."""
    rigid = sitk.Euler3DTransform()
    rigid.SetCenter(apply_affine(_LPS, centre).tolist())
    rigid.SetRotation(*np.deg2rad(degrees).tolist())
    rigid.SetTranslation(apply_affine(_LPS, shift).tolist())
    if not scaling:
        return rigid
    similar = sitk.Similarity3DTransform()
    similar.SetCenter(rigid.GetCenter())
    similar.SetMatrix(rigid.GetMatrix())
    similar.SetTranslation(rigid.GetTranslation())
    return similar


def _from_itk(transform: Any) -> Affine:
    """Return the matrix, between mm as in NIfTI, of a linear transform of SimpleITK."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(p)) - origin for p in np.eye(3).tolist()]
    matrix: Affine = _LPS @ from_matvec(np.array(columns).T, origin) @ _LPS
    return matrix


def _centre(mask: Bool, affine: Affine) -> npt.NDArray[np.float64]:
    """Return the centre of a mask in mm."""
    centre: npt.NDArray[np.float64] = apply_affine(affine, ndimage.center_of_mass(mask))
    return centre


def _cubes(
    shape: tuple[int, ...], affine: Affine, spacing_mm: float, *, layers: int = 0
) -> tuple[tuple[int, int, int], Affine]:
    """Return the grid of cubes, along the axes of ITK, that a volume lies in, and layers around."""
    cubes = from_matvec(np.diag([-spacing_mm, -spacing_mm, spacing_mm]))
    start, stop = extent(shape, affine, cubes)
    start, stop = start - layers, stop + layers
    x, y, z = (int(side) for side in stop - start)
    return (x, y, z), cubes @ from_matvec(np.eye(3), start)


def _image(sitk: Any, volume: Volume, shape: tuple[int, int, int], affine: Affine) -> Any:
    """Return a volume on a grid of cubes, as an image of SimpleITK."""
    return _to_image(sitk, carry(volume.voxels, volume.affine, shape, affine), affine)


def _to_image(sitk: Any, voxels: npt.NDArray[np.float32], affine: Affine) -> Any:
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
    image.SetSpacing(nib.affines.voxel_sizes(affine).tolist())
    image.SetOrigin((_LPS @ affine)[:3, 3].tolist())
    return image


def _overlap(mask: Bool, affine: Affine, moving: Volume, matrix: Affine) -> float:
    """Return the share of a mask that lies in the field of view of another volume."""
    voxels = np.argwhere(mask[::3, ::3, ::3]) * 3
    there = apply_affine(np.linalg.inv(moving.affine) @ matrix @ affine, voxels)
    inside = (there >= -0.5) & (there <= np.array(moving.voxels.shape) - 0.5)
    return float(inside.all(axis=1).mean())
