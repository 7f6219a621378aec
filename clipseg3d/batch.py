"""What a batch holds: the one contract between data, networks and training."""

from typing import TypedDict

from torch import Tensor

from clipseg3d.volume import Views


class Sample(TypedDict):
    """One crop, or one whole case, as a dataset gives it; the shapes of Batch without ``b``."""

    image: Tensor
    label: Tensor
    window: Tensor
    statistics: Tensor
    views: Views
    report: str
    grade: int
    case_id: str


class Batch(TypedDict):
    """A collated batch.

    Axes: b batch, s sequences (``SEQUENCES`` order), r regions (``REGIONS`` order), x y z voxels
    in LPS order (x grows to the patient's left, y backwards, z upwards), v views.
    """

    image: Tensor
    """(b, s, x, y, z) float32: z-scored per case and sequence over the brain; background 0."""
    label: Tensor
    """(b, r, x, y, z) float32 in {0, 1}: one channel per overlapping region."""
    window: Tensor
    """(b, 2, 3) float32: where the crop lies in the brain box. Row 0 is the position of its first
    corner, row 1 its size, both as a share of the box; a mirrored axis starts at its far corner
    and has a negative size, so that "left" stays left."""
    statistics: Tensor
    """(b, s, 4) float32: low, high, mean and SD of each sequence over the whole brain, in the
    units of ``image`` (see :func:`clipseg3d.volume.intensity_statistics`)."""
    views: Views
    """The slices of the whole volume that CLIP sees, (b, v, h, w, s) uint8, and where they lie."""
    report: list[str]
    """b reports; an empty string where a case has none."""
    grade: Tensor
    """(b,) int64: 1 for a high-grade, 0 for a low-grade glioma, -1 where it is not known."""
    case_id: list[str]
    """b case names."""
