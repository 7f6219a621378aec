"""What a batch holds: the one contract between data, networks and training.

Loaders send batches packed; :func:`unpack` turns them into what networks take, on the device. A packed crop of 128 voxels a side takes 10 MB instead of 59.
"""

from typing import TypedDict, TypeVar

import torch
from einops import rearrange
from torch import Tensor

from clipseg3d.views import Views
from clipseg3d.vocabulary import REGIONS

LEVELS = 255
"""Intensity levels of a packed image, from a sequence's low to its high; code 0 is background.

Rounding to them adds 0.007 SD; the noise of nine BraTS 2018 cases is 0.03 to 0.06 SD (medians by
sequence).
"""


class Sample(TypedDict):
    """One crop, or one whole case, as a dataset gives it; the shapes of Batch without ``b``.

    Packed, ``image`` is (s, x, y, z) uint8 codes, or float16 where augmentation leaves the range of
    the codes, and ``label`` (x, y, z) uint8 with a bit for each region.
    """

    image: Tensor
    label: Tensor
    crop_box: Tensor
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
    crop_box: Tensor
    """(b, 2, 3) float32: where the crop lies in the brain box. Row 0 is the position of its first
    corner, row 1 its size, both as a share of the box; a mirrored axis starts at its far corner
    and has a negative size, so that "left" stays left."""
    statistics: Tensor
    """(b, s, 4) float32: low, high, mean and SD of each sequence over the whole brain, in the
    units of ``image`` (see :func:`clipseg3d.intensity.intensity_statistics`)."""
    views: Views
    """The slices of the whole volume that CLIP sees, (b, v, h, w, s) uint8, and where they lie."""
    report: list[str]
    """b reports; an empty string where a case has none."""
    grade: Tensor
    """(b,) int64: 1 for a high-grade, 0 for a low-grade glioma, -1 where it is not known."""
    case_id: list[str]
    """b case names."""


Batches = TypeVar("Batches", Sample, Batch)


def pack_image(image: Tensor, statistics: Tensor) -> Tensor:
    """Return codes of an image (..., s, x, y, z) whose intensities lie between low and high.

    Args:
        image: z-scored, background 0.
        statistics: (..., s, 4), in the units of ``image``.

    Returns:
        (..., s, x, y, z) uint8, 0 where ``image`` is 0.
    """
    low, high, _, _ = statistics[..., None, None, None, :].unbind(-1)
    span = torch.where(high > low, high - low, 1)
    codes = ((image - low) / span * (LEVELS - 1)).round() + 1
    return (codes * (image != 0)).to(torch.uint8)


def unpack_image(packed: Tensor, statistics: Tensor) -> Tensor:
    """Return an image (..., s, x, y, z) float32 from its codes, or from float16."""
    if packed.dtype != torch.uint8:
        return packed.float()
    low, high, _, _ = statistics[..., None, None, None, :].unbind(-1)
    step = (high - low) / (LEVELS - 1)
    # in place: fresh memory costs more than the arithmetic
    return packed.float().mul_(step).add_(low - step).masked_fill_(packed == 0, 0)


def pack_regions(regions: Tensor) -> Tensor:
    """Return region masks (..., r, x, y, z) bool as bits of (..., x, y, z) uint8, WT the lowest."""
    bits = torch.arange(len(REGIONS), device=regions.device)
    return (regions.byte() << bits[:, None, None, None]).sum(dim=-4, dtype=torch.uint8)


def unpack(batch: Batches) -> Batches:
    """Return a batch, or a sample, as networks take it; one that is not packed stays as it is."""
    unpacked = batch.copy()
    unpacked["image"] = unpack_image(batch["image"], batch["statistics"])
    label = batch["label"]
    if label.dtype == torch.uint8:
        bits = torch.arange(len(REGIONS), device=label.device)[:, None, None, None]
        unpacked["label"] = (label.unsqueeze(-4) >> bits & 1).float()
    return unpacked


def withhold_sequences(
    image: Tensor, statistics: Tensor, views: Views, kept: Tensor
) -> tuple[Tensor, Tensor, Views]:
    """Return image, statistics and views as if only some sequences had been acquired.

    Args:
        image: (b, s, x, y, z).
        statistics: (b, s, 4).
        views: with images (b, v, h, w, s).
        kept: (b, s) bool, False for sequences to withhold: they become 0 throughout.
    """
    return (
        image * rearrange(kept, "b s -> b s 1 1 1"),
        statistics * rearrange(kept, "b s -> b s 1"),
        views._replace(images=views.images * rearrange(kept, "b s -> b 1 1 1 s")),
    )
