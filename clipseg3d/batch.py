"""The contents of a batch: the contract between data, networks and training.

Loaders send packed batches; :func:`unpack` turns them into the form that networks take, on the
device. A packed crop with 128 voxels per side takes 10 MB instead of 59.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, TypeVar, cast

import torch
from torch import Tensor

from clipseg3d.augmentation import AugmentationParameters
from clipseg3d.intensity import intensity_statistics
from clipseg3d.views import Views, ViewSelection, cut_reduced_views, cut_views
from clipseg3d.vocabulary import REGIONS

LEVELS = 255
"""Number of intensity codes of a packed image, from the low to the high of a sequence: 1 to 255.

Code 0 is background. The rounding error is 0.007 SD; the noise of nine BraTS 2018 cases is 0.03 to
0.06 SD (medians per sequence).
"""


class Sample(TypedDict):
    """One crop or one whole case from a dataset; shapes are those of Batch without ``b``.

    In a packed sample, ``image`` is (s, x, y, z) uint8 codes, or float16 if something has left the
    range of the codes. ``label`` is (x, y, z) with one bit per region, see :func:`pack_regions`.
    """

    image: Tensor
    label: Tensor
    crop_box: Tensor
    statistics: Tensor
    views: Views
    reduced_views: Views
    report: str
    grade: int
    case_id: str


class AugmentedSample(Sample, total=False):
    """A packed sample that :func:`unpack` augments."""

    augmentation: AugmentationParameters
    """Without ``b``; ``crop_box`` is already that of the augmented crop."""


class Batch(TypedDict):
    """A collated batch.

    Axes: b batch, s sequences and r regions in the order of the release, x y z voxels in LPS order
    (x grows to the patient's left, y backwards, z upwards), v views.
    """

    image: Tensor
    """(b, s, x, y, z) float32: z-scored per case and sequence over the brain; background 0."""
    label: Tensor
    """(b, r, x, y, z) float32 in {0, 1}: one channel per overlapping region."""
    crop_box: Tensor
    """(b, 2, 3) or (b, 4, 3) float32: position of the crop in the brain box, so that "left" stays
    left in mirrored and rotated crops. Of two rows, row 0 is its first corner and row 1 its size,
    both as shares of the box; a mirrored axis starts at its far corner and has a negative size. Of
    four rows, row 0 is the corner and rows 1 to 3 are the crop's edges along its x, y and z: the
    point at the shares (u, v, w) of the crop lies at row 0 + u row 1 + v row 2 + w row 3."""
    statistics: Tensor
    """(b, s, 4) float32: low, high, mean and SD of each sequence over the whole brain, in the
    units of ``image`` (see :func:`clipseg3d.intensity.intensity_statistics`)."""
    views: Views
    """The slices of the whole volume for CLIP, (b, v, h, w, s) uint8, and their positions."""
    reduced_views: Views
    """The slices that would be chosen without some of the sequences, (b, k, v, h, w, s) uint8, and
    their positions; see :func:`clipseg3d.views.cut_reduced_views`. k may be 0."""
    report: list[str]
    """b reports; an empty string for a case without one."""
    grade: Tensor
    """(b,) int64: 1 for a high-grade glioma, 0 for a low-grade glioma, -1 if unknown."""
    case_id: list[str]
    """b case names."""


Batches = TypeVar("Batches", Sample, Batch)


def pack_image(image: Tensor, statistics: Tensor) -> Tensor:
    """Return the codes of an image whose intensities lie between low and high.

    Args:
        image: (..., s, x, y, z), z-scored, background 0.
        statistics: (..., s, 4), in the units of ``image``.

    Returns:
        (..., s, x, y, z) uint8, 0 where ``image`` is 0.
    """
    low, high, _, _ = statistics[..., None, None, None, :].unbind(-1)
    span = torch.where(high > low, high - low, 1)
    codes = ((image - low) / span * (LEVELS - 1)).round() + 1
    return (codes * (image != 0)).to(torch.uint8)


def unpack_image(packed: Tensor, statistics: Tensor) -> Tensor:
    """Return an image (..., s, x, y, z) float32 from its uint8 codes; other types are only cast."""
    if packed.dtype != torch.uint8:
        return packed.float()
    low, high, _, _ = statistics[..., None, None, None, :].unbind(-1)
    step = (high - low) / (LEVELS - 1)
    # in place, since allocations take longer than the arithmetic
    return packed.float().mul_(step).add_(low - step).masked_fill_(packed == 0, 0)


def pack_regions(regions: Tensor) -> Tensor:
    """Return region masks (..., r, x, y, z) bool as bits of (..., x, y, z); bit 0 is the first.

    Returns:
        uint8; int32 with more than eight regions.
    """
    count = regions.shape[-4]
    bits = torch.arange(count, device=regions.device)[:, None, None, None]
    dtype = torch.uint8 if count <= 8 else torch.int32
    return (regions.int() << bits).sum(dim=-4, dtype=dtype)


def complete(
    batch: Mapping[str, Any],
    *,
    sequences: Sequence[str],
    view_selection: ViewSelection,
    name: str,
    reduced_views: bool = False,
) -> Batch:
    """Return a batch with all keys; those of a plain data set are ``image`` and ``label`` alone.

    Statistics and views are then those of the given image, as if it were the whole brain.

    Args:
        batch: ``image`` (b, s, x, y, z), ``label`` (b, r, x, y, z), and other keys of
            :class:`Batch`.
        sequences: names of the sequences of ``image``.
        view_selection: which slices CLIP sees; see :func:`clipseg3d.views.cut_views`.
        name: for samples without a ``case_id``.
        reduced_views: whether to cut those of :func:`clipseg3d.views.cut_reduced_views` too. They
            stay empty without it, and where views are given without them.
    """
    if Batch.__annotations__.keys() <= batch.keys():
        return cast(Batch, batch)
    image = torch.as_tensor(batch["image"]).float()
    count = len(image)
    statistics = batch.get("statistics")
    if statistics is None:
        statistics = intensity_statistics(image)
    views, reduced = batch.get("views"), batch.get("reduced_views")
    if reduced is None:
        cut = view_selection if reduced_views and views is None else "center"
        reduced = cut_reduced_views(image, statistics, selection=cut, sequences=sequences)
    if views is None:
        views = cut_views(image, statistics, selection=view_selection, sequences=sequences)
    return {
        "image": image,
        "label": torch.as_tensor(batch["label"]).float(),
        "crop_box": batch.get("crop_box", whole_box(image)),
        "statistics": statistics,
        "views": views,
        "reduced_views": reduced,
        "report": batch.get("report", [""] * count),
        "grade": batch.get("grade", torch.full((count,), -1, device=image.device)),
        "case_id": batch.get("case_id", [f"{name}, sample {i}" for i in range(count)]),
    }


def whole_box(image: Tensor) -> Tensor:
    """Return the crop box (b, 2, 3) of images (b, s, x, y, z) that cover the brain box."""
    return image.new_tensor([[[0.0] * 3, [1.0] * 3]]).expand(len(image), 2, 3)


def unpack(batch: Batches, *, num_regions: int = len(REGIONS)) -> Batches:
    """Return a batch or a sample in the form of :class:`Batch`; unpacked values do not change.

    A batch of samples that an :class:`clipseg3d.data.transforms.Augmentation` drew parameters for
    is augmented, on the device that it lies on.

    Args:
        batch: packed or not.
        num_regions: number of regions r that were packed.
    """
    unpacked = cast(dict[str, Any], batch.copy())
    image, label = unpacked["image"], unpacked["label"]
    parameters: AugmentationParameters | None = unpacked.pop("augmentation", None)
    if parameters is not None:
        image, label = parameters.mirror(image), parameters.mirror(label)
    unpacked["image"] = unpack_image(image, unpacked["statistics"])
    if parameters is not None:
        parameters.change(unpacked["image"], label, unpacked["statistics"])
    if label.ndim < image.ndim:
        bits = torch.arange(num_regions, device=label.device)[:, None, None, None]
        label = (label.unsqueeze(-4) >> bits & 1).float()
    return cast(Batches, {**unpacked, "label": label})
