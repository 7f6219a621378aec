"""Carry volumes from one voxel grid to another one of the same space.

Interpolation is scipy's, called through :func:`nibabel.processing.resample_from_to`, which needs no
table of coordinates: :class:`monai.transforms.SpatialResample` holds one, three numbers per voxel.
Neither knows of a background, nor smooths what becomes coarser; both are done here.
"""

from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.affines import apply_affine
from nibabel.processing import resample_from_to
from scipy import ndimage

Affine = npt.NDArray[np.floating]
Values = npt.NDArray[np.float32]


class Block(NamedTuple):
    """A volume on a part of a grid, 0 around it."""

    values: Values
    """(x, y, z)."""
    start: tuple[int, int, int]
    """Its first voxel; below 0 where the block begins before the grid does."""


def carry(
    values: npt.NDArray[Any],
    affine: Affine,
    shape: tuple[int, int, int],
    to_affine: Affine,
    *,
    order: int = 1,
) -> npt.NDArray[Any]:
    """Return a volume on another grid; it is 0 around.

    Where voxels become larger, values are first smoothed by a Gaussian. Its variance is that of the
    larger voxel less that of the smaller one, so that values become means over larger voxels, as a
    scanner would have measured them.

    Args:
        values: (x, y, z), of integers only if ``order`` is 0.
        affine: 4 x 4, from its voxels to mm.
        shape: of the result.
        to_affine: 4 x 4, from voxels of the result to mm.
        order: 1 interpolates linearly; 0 takes the nearest voxel, without smoothing.
    """
    if order:
        steps = np.linalg.inv(affine[:3, :3]) @ to_affine[:3, :3]
        variance = (np.square(steps).sum(axis=1) - 1).clip(min=0) / 12  # a box of 1 has 1/12
        if (variance > 1e-3).any():
            values = ndimage.gaussian_filter(values, np.sqrt(variance), mode="constant")
    image = nib.Nifti1Image(values, affine)
    # Beyond the outermost voxels' centres, values fade to 0; "constant" would cut half a voxel off.
    moved = resample_from_to(image, (shape, to_affine), order=order, mode="grid-constant")
    return np.asarray(moved.dataobj)


def carry_brain(volume: npt.NDArray[Any], affine: Affine, to_affine: Affine) -> Block:
    """Return a volume with background 0 on another grid, whose background is 0 too.

    A voxel of the result is brain if at least half of it is, and its value is the mean of brain
    alone (normalised convolution). So there is no rim that mixes brain and background, and no value
    outside the range of the brain's own.

    Args:
        volume: (x, y, z), background 0; at least one voxel is not.
        affine: 4 x 4, from its voxels to mm.
        to_affine: 4 x 4, from voxels of the result to mm.

    Returns:
        The smallest part of the other grid that surely holds the brain.
    """
    (inside,) = ndimage.find_objects((volume != 0).view(np.uint8))
    values = volume[inside].astype(np.float32)
    brain = values != 0
    low, high = values[brain].min(), values[brain].max()
    affine = affine @ nib.affines.from_matvec(np.eye(3), [side.start for side in inside])
    start, stop = extent(values.shape, affine, to_affine)
    x, y, z = (int(side) for side in stop - start)
    shape = (x, y, z)
    to_affine = to_affine @ nib.affines.from_matvec(np.eye(3), start)
    weight = carry(brain.astype(np.float32), affine, shape, to_affine)
    total = carry(values, affine, shape, to_affine)
    is_brain = weight >= 0.5
    mean = np.divide(total, weight, out=np.zeros_like(total), where=is_brain)
    np.clip(mean, low, high, out=mean, where=is_brain)  # rounding
    return Block(mean, (int(start[0]), int(start[1]), int(start[2])))


def extent(
    shape: tuple[int, ...], affine: Affine, to_affine: Affine
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the half-open range of voxels of a grid that a volume on another grid lies in.

    Args:
        shape: of the volume, whole voxels included.
        affine: 4 x 4, from its voxels to mm.
        to_affine: 4 x 4, of the grid.
    """
    corners = np.indices((2, 2, 2)).reshape(3, -1).T * np.array(shape) - 0.5
    there = apply_affine(np.linalg.inv(to_affine) @ affine, corners)
    rounding = 1e-4
    start = np.floor(there.min(axis=0) + 0.5 + rounding).astype(np.int64)
    stop = np.ceil(there.max(axis=0) + 0.5 - rounding).astype(np.int64)
    return start, np.maximum(stop, start + 1)
