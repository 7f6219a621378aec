"""Rigid registration of scans to each other, and of a brain to the atlas, by mutual information."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
from clipseg3d.prepare.volume import Affine, Bool, Volume

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From mm as in NIfTI to mm as in ITK, and back."""
_MASK_MM = 8.0
"""Voxels in which the two brains are compared."""
_COARSE_MM, _FINE_MM = 2.0, 1.0
"""Voxels in which the two volumes are compared, one after the other; larger ones mislead."""
_START_DEGREES = (-20.0, 0.0, 20.0)
"""Rotations about each axis that are tried first."""
_NUM_STARTS = 2
"""Starts that are followed."""
_MASK_MARGIN_MM = 16.0
"""How far around the brain the two brains are compared."""
_HEAD_MM = 80.0
"""How far from the middle of a brain its surface is: 1 mm there is a turn of 1 / 80."""
_MAX_STRAY_MM = 15.0
"""How far mutual information may move the surface of the brain from where the two brains lie on
each other, which was 8 mm off at most. It may be higher in wrong places."""
_BINS = 32
_SAMPLES = 120_000
"""Voxels of a level that mutual information is estimated from, at most."""


@dataclass(frozen=True, eq=False)
class Fit:
    """What a registration has found.

    Attributes:
        matrix: 4 x 4, from mm of the fixed volume to mm of the moving one.
        mutual_information: of the two volumes where the mask is, in nats.
        overlap: share of the mask that lies in the field of view of the moving volume.
        confirmed: whether the contents of the volumes agree with the outlines of the brains. If
            not, the matrix is that of the outlines, and may be off by several mm.
    """

    matrix: Affine
    mutual_information: float
    overlap: float
    confirmed: bool

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
    brain: Bool,
    moving: Volume,
    moving_brain: Volume,
    *,
    margin_mm: float,
    scaling: bool = False,
) -> Fit:
    """Find the rigid motion that brings two volumes together.

    First the two brains are laid over each other, from 27 rotations; a rough one is enough, and its
    contrast is of no matter. From there, the mutual information of the volumes is followed: of the
    brains at 2 mm, and of what is around them too at 1 mm. The result depends on nothing random.

    Args:
        fixed: volume to register to.
        brain: (x, y, z), where in it the brain is.
        moving: the other volume.
        moving_brain: about where in its space the brain is, 0 to 1.
        margin_mm: how far around the brain the volumes are to fit as well.
        scaling: whether one factor is found as well.
    """
    sitk = import_extra("SimpleITK", needed_for="registration")
    shown = Volume(brain.astype(np.float32), fixed.affine)
    masks = _Level(sitk, shown, brain, moving_brain, _MASK_MM, _MASK_MARGIN_MM, masks=True)
    middle = apply_affine(fixed.affine, ndimage.center_of_mass(brain))
    to = apply_affine(moving_brain.affine, ndimage.center_of_mass(moving_brain.voxels))
    starts = [
        _start(sitk, middle, to - middle, degrees, scaling=scaling)
        for degrees in product(_START_DEGREES, repeat=3)
    ]
    best = sorted(range(len(starts)), key=[masks.score(start) for start in starts].__getitem__)
    followed = [masks.follow(starts[index]) for index in best[:_NUM_STARTS]]
    transform = min(followed, key=masks.score)
    reach = [*(middle + _HEAD_MM * np.eye(3)), *(middle - _HEAD_MM * np.eye(3))]
    begun = _places(transform, reach)
    # Skulls, and edges of the field of view, fit each other in wrong places too; but near the right
    # one they help.
    for spacing_mm, margin in ((_COARSE_MM, 0.0), (_FINE_MM, margin_mm)):
        level = _Level(sitk, fixed, brain, moving, spacing_mm, margin)
        found = level.follow(transform)
        strays = np.linalg.norm(_places(found, reach) - begun, axis=1)
        confirmed = bool(strays.max() <= _MAX_STRAY_MM)
        if confirmed:
            transform = found
    matrix = _from_itk(transform)
    overlap = _overlap(brain, fixed.affine, moving, matrix)
    return Fit(matrix, -level.score(transform), overlap, confirmed)


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
    transform = import_extra("SimpleITK", needed_for="registration").AffineTransform(3)
    transform.SetMatrix(lps[:3, :3].ravel().tolist())
    transform.SetTranslation(lps[:3, 3].tolist())
    return transform


class _Level:
    """One resolution of a registration."""

    def __init__(
        self,
        sitk: Any,
        fixed: Volume,
        brain: Bool,
        moving: Volume,
        spacing_mm: float,
        margin_mm: float,
        *,
        masks: bool = False,
    ) -> None:
        # Only the surroundings of the brain matter.
        (box,) = ndimage.find_objects(brain.view(np.uint8))
        inner = fixed.affine @ from_matvec(np.eye(3), [side.start for side in box])
        layers = math.ceil(margin_mm / spacing_mm)
        shape, affine = _cubes(brain[box].shape, inner, spacing_mm, layers=layers)
        near = carry(brain[box].astype(np.float32), inner, shape, affine) > 0.5
        if layers:
            near = ndimage.binary_dilation(near, iterations=layers)
        self._sitk, self._masks = sitk, masks
        self._fixed = _image(sitk, fixed, shape, affine)
        self._near = sitk.Cast(_to_image(sitk, near.astype(np.float32), affine), sitk.sitkUInt8)
        self._share = min(1.0, _SAMPLES / max(1, int(near.sum())))
        self._moving = _image(sitk, moving, *_cubes(moving.voxels.shape, moving.affine, spacing_mm))

    def score(self, transform: Any) -> float:
        """Return how badly the volumes fit: negative mutual information, or squared differences."""
        try:
            return float(self._method(transform).MetricEvaluate(self._fixed, self._moving))
        except RuntimeError:  # fewer than a quarter of the voxels lie in the moving volume
            return math.inf if self._masks else 0.0

    def follow(self, transform: Any) -> Any:
        """Return the best transform near another one."""
        # Slopes of mutual information mislead where voxels leave the field of view, as they do in
        # thick slices; this method needs none, and never ends with a worse score.
        method = self._method(transform)
        method.SetOptimizerAsPowell(
            numberOfIterations=10,
            maximumLineIterations=20,
            stepLength=1.0,
            stepTolerance=0.02,
            valueTolerance=1e-3,
        )
        turns, shifts = [_HEAD_MM] * 3, [1.0] * 3
        factor = [_HEAD_MM] * (transform.GetNumberOfParameters() - 6)
        method.SetOptimizerScales(turns + shifts + factor)
        try:
            found = method.Execute(self._fixed, self._moving)
        except RuntimeError:  # the volumes hardly overlap
            return transform
        return self._sitk.CompositeTransform(found).GetBackTransform()

    def _method(self, transform: Any) -> Any:
        method = self._sitk.ImageRegistrationMethod()
        if self._masks:
            method.SetMetricAsMeanSquares()
        else:
            method.SetMetricAsMattesMutualInformation(_BINS)
        method.SetMetricFixedMask(self._near)
        if self._share < 1:
            method.SetMetricSamplingStrategy(method.RANDOM)
            method.SetMetricSamplingPercentage(self._share, 1)
        method.SetInterpolator(self._sitk.sitkLinear)
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


def _places(transform: Any, points: Sequence[npt.NDArray[np.float64]]) -> Any:
    """Return where points, in mm as in NIfTI, go to, in mm as in ITK."""
    return np.array([transform.TransformPoint((_LPS[:3, :3] @ p).tolist()) for p in points])


def _from_itk(transform: Any) -> Affine:
    """Return the matrix, between mm as in NIfTI, of a linear transform of SimpleITK."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(p)) - origin for p in np.eye(3).tolist()]
    matrix: Affine = _LPS @ from_matvec(np.array(columns).T, origin) @ _LPS
    return matrix


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
