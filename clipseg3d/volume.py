"""What every part must compute alike from a whole volume: its statistics and its views.

Data (which caches them), blocks (which take raw volumes too) and inference share these functions,
so that training and prediction cannot drift apart. Nothing but torch and einops is imported.

Axes: b batch, s sequences, x y z voxels in array order.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.5
VIEW_CHANNELS = (1, 3, 2)
"""Sequences shown to CLIP as red, green and blue: t1ce, flair, t2."""


def intensity_statistics(volume: Tensor) -> Tensor:
    """Return low, high, mean and SD of each sequence over its non-zero voxels.

    Low and high are the 0.5th and 99.5th percentiles, found by nearest rank; mean and SD are
    those of the values clipped to them, so that a few hot voxels (a scan stored at the full int16
    range, a vessel) do not squeeze all others. A sequence without non-zero voxels gets zeros.

    Args:
        volume: (b, s, x, y, z), background 0, the whole brain in it.

    Returns:
        (b, s, 4) float32, in the units of ``volume``.
    """
    rows = []
    for sequence in rearrange(volume.float(), "b s x y z -> (b s) (x y z)"):
        values = sequence[sequence != 0]
        if values.numel() == 0:
            rows.append(sequence.new_zeros(4))
            continue
        ranks = [
            1 + round((values.numel() - 1) * p / 100) for p in (LOW_PERCENTILE, HIGH_PERCENTILE)
        ]
        low, high = (values.kthvalue(rank).values for rank in ranks)
        clipped = values.clamp(low, high)
        spread = clipped.std(correction=0) * (high > low)  # rounding gives a constant some spread
        rows.append(torch.stack([low, high, clipped.mean(), spread]))
    return rearrange(torch.stack(rows), "(b s) k -> b s k", b=volume.shape[0])


def scale(value: Tensor, offset: Tensor, size: Tensor) -> Tensor:
    """Return ``(value - offset) / size``, and 0 where ``size`` is 0 (a constant sequence)."""
    return torch.where(size > 0, (value - offset) / torch.where(size > 0, size, 1), 0)


def cut_views(volume: Tensor, statistics: Tensor | None = None, *, size: int = 224) -> Tensor:
    """Cut the axial, coronal and sagittal slice through the middle of the brain.

    The paper permutes the axes by (0, 1, 2), (0, 2, 1) and (1, 2, 0) and takes the middle slice
    on the last one (arXiv 2507.09966, 3D-2D bridging). Differs: the middle is that of the brain's
    bounding box, so a volume and its brain crop give the same views; an empty middle slice gives
    way to the nearest one with brain; the slice keeps its proportions (padded to a square).

    Args:
        volume: (b, s, x, y, z), s >= 4 in t1, t1ce, t2, flair order, background 0.
        statistics: (b, s, 4) from :func:`intensity_statistics`; None computes them here, which is
            right only if ``volume`` holds the whole brain.
        size: side of a view in pixels.

    Returns:
        (b, 3, size, size, 3) uint8: three views, RGB = t1ce, flair, t2. Without any non-zero
        voxel all views are black.
    """
    if statistics is None:
        statistics = intensity_statistics(volume)
    low, high, _, _ = rearrange(statistics, "b s k -> k b s 1 1 1")
    brain = reduce(volume != 0, "b s x y z -> b 1 x y z", "max")
    shown = scale(volume.float().clamp(low, high), low, high - low) * brain
    shown = shown[:, list(VIEW_CHANNELS)]
    return torch.stack(
        [_views_of(image, mask[0], size) for image, mask in zip(shown, brain, strict=True)]
    )


def _views_of(image: Tensor, brain: Tensor, size: int) -> Tensor:
    """Cut the three views of one case: image (3, x, y, z) in [0, 1], brain (x, y, z)."""
    if not brain.any():
        return torch.zeros(3, size, size, 3, dtype=torch.uint8, device=image.device)
    occupied = [brain.any(dim=other).nonzero() for other in ((1, 2), (0, 2), (0, 1))]
    # any(dim=(1, 2)) leaves x, and so on: one list of slices with brain per axis
    box = [slice(int(i.min()), int(i.max()) + 1) for i in occupied]
    image = image[:, box[0], box[1], box[2]]
    middles = []
    for slices, span in zip(occupied, box, strict=True):
        centre = (span.start + span.stop - 1) / 2
        nearest = slices[(slices - centre).abs().argmin()]
        middles.append(int(nearest) - span.start)
    x, y, z = middles
    planes = (image[:, :, :, z], image[:, :, y, :], image[:, x, :, :])
    return torch.stack([_square(plane, size) for plane in planes])


def _square(plane: Tensor, size: int) -> Tensor:
    """Pad a plane (3, h, w) to a square and resize it to (size, size, 3) uint8."""
    height, width = plane.shape[1:]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    plane = F.pad(plane, (left, side - width - left, top, side - height - top))
    plane = F.interpolate(plane[None], size=(size, size), mode="bilinear", align_corners=False)[0]
    return rearrange((plane * 255).round().to(torch.uint8), "c h w -> h w c")
