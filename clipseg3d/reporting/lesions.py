"""Separate parts of a segmented region, and where to look at them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


class Lesion(NamedTuple):
    """One connected part of a region."""

    volume_ml: float
    slices: tuple[int, int, int]
    """Along x, y and z, the slice that shows the largest section of it."""


def find_lesions(
    mask: NDArray[np.bool_], *, spacing_mm: tuple[float, float, float]
) -> list[Lesion]:
    """Return the 26-connected parts of a mask, the largest first.

    Args:
        mask: (x, y, z) bool.
        spacing_mm: voxel size along x, y and z.
    """
    parts, _ = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    voxel_ml = np.prod(spacing_mm) / 1000
    found = []
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        part = parts[box] == number
        slices = tuple(
            side.start + int(part.sum(axis=tuple({0, 1, 2} - {axis})).argmax())
            for axis, side in enumerate(box)
        )
        found.append(Lesion(float(part.sum() * voxel_ml), slices))
    return sorted(found, key=lambda lesion: -lesion.volume_ml)
