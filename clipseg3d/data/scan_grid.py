"""How the brain box of a case lies in its scan, and the way back to the scan's own grid."""

from dataclasses import dataclass, replace
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.affines import from_matvec, voxel_sizes

from clipseg3d.data.resampling import carry, extent

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
        inside = tuple(slice(*side) for side in self.box)
        full = np.zeros((*volume.shape[:-3], *self.shape), dtype=volume.dtype)
        for index in np.ndindex(volume.shape[:-3]):  # the same memory in another order, no copy
            nib.apply_orientation(full[index], transform)[inside] = volume[index]
        return full

    @property
    def lps_shape(self) -> tuple[int, int, int]:
        """Size of the scan along the axes of the brain box."""
        sizes = [0, 0, 0]
        axes = to_lps(self.affine)[:, 0].astype(int)
        for axis, size in zip(axes, self.shape, strict=True):
            sizes[axis] = size
        return sizes[0], sizes[1], sizes[2]

    @property
    def box_shape(self) -> tuple[int, int, int]:
        """Size of the brain box."""
        x, y, z = (stop - start for start, stop in self.box)
        return x, y, z

    @property
    def box_affine(self) -> npt.NDArray[np.float64]:
        """4 x 4, from voxels of the brain box to mm."""
        to_scan = nib.orientations.inv_ornt_aff(to_lps(self.affine), self.shape)
        corner = from_matvec(np.eye(3), [start for start, _ in self.box])
        affine: npt.NDArray[np.float64] = self.affine @ to_scan @ corner
        return affine

    def around(self, other: "ScanGrid") -> "ScanGrid":
        """Return this grid with the box that holds another grid's brain box, as far as it can."""
        start, stop = extent(other.box_shape, other.box_affine, self.box_affine)
        first = np.array([side[0] for side in self.box])
        starts = (first + start).clip(0, np.array(self.lps_shape) - 1)
        stops = (first + stop).clip(starts + 1, self.lps_shape)
        return replace(self, box=tuple(zip(starts.tolist(), stops.tolist(), strict=True)))

    def position_in(self, other: "ScanGrid") -> npt.NDArray[np.float64]:
        """Return corner and size (2, 3) of this brain box as shares of that of another grid.

        It is all of it, 0 and 1, unless the box is cut off, as :meth:`around` does where this grid
        ends.
        """
        if other is self:
            return np.array([[0.0] * 3, [1.0] * 3])
        start, stop = extent(other.box_shape, other.box_affine, self.box_affine)
        size = (stop - start).astype(np.float64)
        return np.array([-start / size, self.box_shape / size])

    def carry(
        self, volume: npt.NDArray[Any], to: "ScanGrid", *, order: int = 1
    ) -> npt.NDArray[Any]:
        """Return a volume (..., x, y, z) of the brain box on the brain box of another grid.

        Args:
            volume: float32, or of any type if ``order`` is 0.
            to: the other grid; this one itself returns the volume as it is.
            order: as in :func:`clipseg3d.data.resampling.carry`.
        """
        if to is self:
            return volume
        carried = np.empty((*volume.shape[:-3], *to.box_shape), volume.dtype)
        for index in np.ndindex(volume.shape[:-3]):
            part = volume[index].view(np.uint8) if volume.dtype == bool else volume[index]
            carried[index] = carry(part, self.box_affine, to.box_shape, to.box_affine, order=order)
        return carried

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
