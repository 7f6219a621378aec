"""Predicted and true mask of one region, cropped to the box that holds both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
MARGIN = 3
"""Background voxels around the box, so that every voxel of a mask has neighbours."""


@dataclass(frozen=True, eq=False)
class MaskPair:
    """Predicted and true mask of one region, on one small grid.

    A tumour fills a few percent of a scan, so all scores are computed inside the box around it.

    Attributes:
        prediction: (x, y, z) bool, the box that holds both masks, with ``MARGIN`` voxels of
            background around it; contiguous.
        reference: as ``prediction``.
        spacing_mm: voxel size along x, y and z.
        shape: size of the whole volume, in voxels.
    """

    prediction: Mask
    reference: Mask
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]

    @property
    def num_voxels(self) -> int:
        """Number of voxels of the whole volume."""
        return math.prod(self.shape)

    @classmethod
    def cut(
        cls,
        prediction: Mask,
        reference: Mask,
        *,
        spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
        beside: Sequence[Mask] = (),
    ) -> "MaskPair":
        """Crop both masks (x, y, z) to the box that holds them.

        Args:
            prediction: (x, y, z) bool.
            reference: (x, y, z) bool.
            spacing_mm: voxel size along x, y and z.
            beside: masks of the same volume that must be in the box as well.

        Raises:
            ValueError: a mask is not bool or does not have three axes, the shapes differ, or a
                voxel size is missing or not positive.
        """
        for name, mask in (("prediction", prediction), ("reference", reference)):
            if mask.dtype != np.bool_ or mask.ndim != 3:
                raise ValueError(
                    f"{name} is {mask.dtype} of shape {mask.shape}, expected bool (x, y, z); "
                    "threshold probabilities, and pass one region of a label map"
                )
        if prediction.shape != reference.shape:
            raise ValueError(f"prediction {prediction.shape} != reference {reference.shape}")
        spacing = tuple(float(size) for size in spacing_mm)
        if len(spacing) != 3 or not all(0 < size < np.inf for size in spacing):
            raise ValueError(f"spacing_mm={spacing} is not three positive sizes in mm")
        boxes = [box for box in map(_box, (prediction, reference, *beside)) if box]
        crop = tuple(
            slice(min(box[axis][0] for box in boxes), max(box[axis][1] for box in boxes))
            if boxes
            else slice(0)
            for axis in range(3)
        )
        return cls(
            prediction=_pad(prediction[crop]),
            reference=_pad(reference[crop]),
            spacing_mm=(spacing[0], spacing[1], spacing[2]),
            shape=(prediction.shape[0], prediction.shape[1], prediction.shape[2]),
        )


def _box(mask: Mask) -> list[tuple[int, int]]:
    """Return the half-open range of True voxels along each axis; empty for an empty mask.

    Takes 0.5 ms for a 240x240x155 mask, where ``scipy.ndimage.find_objects`` takes 23 ms; metrics
    call it for each region of each case, and for each lesion.
    """
    plane = np.bitwise_or.reduce(mask.view(np.uint8), axis=0)  # reads memory in order
    y = np.flatnonzero(plane.any(axis=1))
    if not len(y):
        return []
    z = np.flatnonzero(plane.any(axis=0))
    column = mask[:, y[0] : y[-1] + 1, z[0] : z[-1] + 1]
    x = np.flatnonzero(column.any(axis=(1, 2)))
    return [(int(indices[0]), int(indices[-1]) + 1) for indices in (x, y, z)]


def _pad(mask: Mask) -> Mask:
    """Return a contiguous copy with ``MARGIN`` voxels of background around it."""
    padded = np.zeros([size + 2 * MARGIN for size in mask.shape], dtype=np.bool_)
    padded[(slice(MARGIN, -MARGIN),) * 3] = mask
    return padded
