"""How the brain box of a case lies in its scan, and the way back to the scan's own grid."""

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.affines import voxel_sizes

ORIENTATION = "LPS"
"""The voxel order of official BraTS files; every brain box is in this order."""


@dataclass(frozen=True)
class ScanGrid:
    """The voxel grid of a scan, and where the brain box lies in it.

    Attributes:
        shape: (x, y, z) of the scan, in its own voxel order.
        affine: 4 x 4, from voxels of the scan to mm.
        box: brain box as half-open ranges ((start, stop), ...), in LPS order.
    """

    shape: tuple[int, int, int]
    affine: npt.NDArray[np.float64]
    box: tuple[tuple[int, int], ...]

    def crop(self, volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Cut the brain box, in LPS order, out of a volume (x, y, z) on the scan's grid."""
        inside = tuple(slice(*side) for side in self.box)
        cropped: npt.NDArray[Any] = nib.apply_orientation(volume, to_lps(self.affine))[inside]
        return cropped

    def restore(self, volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Put a volume (..., x, y, z) of the brain box back on the scan's grid, 0 around it."""
        transform = to_lps(self.affine)
        lps_shape = self.lps_shape
        full = np.zeros((*volume.shape[:-3], *lps_shape), dtype=volume.dtype)
        (x, to_x), (y, to_y), (z, to_z) = self.box
        full[..., x:to_x, y:to_y, z:to_z] = volume
        back = _inverse(transform)
        parts = [nib.apply_orientation(part, back) for part in full.reshape(-1, *lps_shape)]
        return np.ascontiguousarray(np.stack(parts)).reshape(*volume.shape[:-3], *self.shape)

    @property
    def lps_shape(self) -> tuple[int, int, int]:
        """Size of the scan along the axes of the brain box."""
        sizes = [0, 0, 0]
        axes = to_lps(self.affine)[:, 0].astype(int)
        for axis, size in zip(axes, self.shape, strict=True):
            sizes[axis] = size
        return sizes[0], sizes[1], sizes[2]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along the axes of the brain box."""
        sizes = [0.0, 0.0, 0.0]
        axes = to_lps(self.affine)[:, 0].astype(int)
        for axis, size in zip(axes, voxel_sizes(self.affine), strict=True):
            sizes[axis] = float(size)
        return sizes[0], sizes[1], sizes[2]


def to_lps(affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return nibabel's transform from the voxel order of a file to LPS.

    Args:
        affine: 4 x 4, of the file.

    Returns:
        (3, 2): for each axis of the file, the LPS axis that it becomes, and 1 or -1 (flipped).
    """
    transform: npt.NDArray[np.float64] = nib.orientations.ornt_transform(
        nib.io_orientation(affine), nib.orientations.axcodes2ornt(ORIENTATION)
    )
    return transform


def _inverse(transform: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the transform that undoes another one."""
    inverse = np.empty_like(transform)
    for axis, (target, flip) in enumerate(transform):
        inverse[int(target)] = axis, flip
    return inverse
