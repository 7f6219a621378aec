"""Two masks of one region, cut to the box that holds both."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
MARGIN = 3
"""Background voxels kept around the box, so that neighbours of a voxel can be looked up."""


@dataclass(frozen=True, eq=False)
class MaskPair:
    """What was predicted of one region, and what is true, on one small grid.

    A tumour fills a few percent of a scan; every score is computed inside the box around it.

    Attributes:
        prediction: (x, y, z), the box of both masks with ``MARGIN`` voxels of background around
            it, contiguous.
        reference: as ``prediction``.
        spacing_mm: voxel size along x, y and z.
        num_voxels: voxels of the whole volume.
    """

    prediction: Mask
    reference: Mask
    spacing_mm: tuple[float, float, float]
    num_voxels: int

    @classmethod
    def cut(
        cls, prediction: Mask, reference: Mask, *, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)
    ) -> "MaskPair":
        """Cut both masks (x, y, z) to the box that holds them.

        Raises:
            ValueError: a mask is not bool or has not three axes, the shapes differ, or a voxel
                size is missing or not positive.
        """
        for name, mask in (("prediction", prediction), ("reference", reference)):
            if mask.dtype != np.bool_ or mask.ndim != 3:
                raise ValueError(
                    f"{name} is {mask.dtype} of shape {mask.shape}, expected bool (x, y, z); "
                    "threshold probabilities, and take one region of label maps"
                )
        if prediction.shape != reference.shape:
            raise ValueError(f"prediction {prediction.shape} != reference {reference.shape}")
        spacing = tuple(float(size) for size in spacing_mm)
        if len(spacing) != 3 or not all(0 < size < np.inf for size in spacing):
            raise ValueError(f"spacing_mm={spacing} is not three positive sizes in mm")
        boxes = [box for box in (_box(prediction), _box(reference)) if box]
        inside = tuple(
            slice(min(box[axis][0] for box in boxes), max(box[axis][1] for box in boxes))
            if boxes
            else slice(0)
            for axis in range(3)
        )
        return cls(
            prediction=_padded(prediction[inside]),
            reference=_padded(reference[inside]),
            spacing_mm=(spacing[0], spacing[1], spacing[2]),
            num_voxels=prediction.size,
        )


def _box(mask: Mask) -> list[tuple[int, int]]:
    """Return the half-open range of True voxels along each axis; nothing for an empty mask.

    Takes 0.5 ms of a 240x240x155 mask, ``scipy.ndimage.find_objects`` 23 ms; metrics call it for
    every region of every case, and for every lesion.
    """
    plane = np.bitwise_or.reduce(mask.view(np.uint8), axis=0)  # reads memory in order
    y = np.flatnonzero(plane.any(axis=1))
    if not len(y):
        return []
    z = np.flatnonzero(plane.any(axis=0))
    column = mask[:, y[0] : y[-1] + 1, z[0] : z[-1] + 1]
    x = np.flatnonzero(column.any(axis=(1, 2)))
    return [(int(inside[0]), int(inside[-1]) + 1) for inside in (x, y, z)]


def _padded(mask: Mask) -> Mask:
    """Return a contiguous copy with ``MARGIN`` voxels of background around it."""
    padded = np.zeros([size + 2 * MARGIN for size in mask.shape], dtype=np.bool_)
    padded[(slice(MARGIN, -MARGIN),) * 3] = mask
    return padded
