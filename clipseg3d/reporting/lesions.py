"""The lesions of a segmented region, and the slices that show them best."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


class Lesion(NamedTuple):
    """One connected component of a region."""

    volume_ml: float
    slices: tuple[int, int, int]
    """Along x, y and z, the index of the slice with the largest section of the lesion."""


def find_lesions(
    mask: NDArray[np.bool_], *, spacing_mm: tuple[float, float, float]
) -> list[Lesion]:
    """Return the 26-connected components of a mask, the largest first.

    Args:
        mask: (x, y, z) bool.
        spacing_mm: voxel size along x, y and z.
    """
    components, _ = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    voxel_ml = np.prod(spacing_mm) / 1000
    lesions = []
    for number, box in enumerate(ndimage.find_objects(components), start=1):
        component = components[box] == number
        slices = tuple(
            side.start + int(component.sum(axis=tuple({0, 1, 2} - {axis})).argmax())
            for axis, side in enumerate(box)
        )
        lesions.append(Lesion(float(component.sum() * voxel_ml), slices))
    return sorted(lesions, key=lambda lesion: -lesion.volume_ml)
