"""Intensity statistics of whole volumes, and normalisation by them.

The data (which caches the statistics), the blocks (which also take raw volumes) and inference use
these functions, so that training and prediction use the same numbers. Axes: b batch, s sequences,
x y z voxels in array order.
"""

import torch
from einops import rearrange
from torch import Tensor

LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.5


def intensity_statistics(volume: Tensor) -> Tensor:
    """Return low, high, mean and SD of each sequence over its non-zero voxels.

    Low and high are the 0.5th and 99.5th percentiles (nearest rank). Mean and SD are those of the
    values clipped to this range, so that a few very bright voxels, such as vessels, have no effect
    on them. A sequence without non-zero voxels gets zeros.

    Args:
        volume: (b, s, x, y, z), background 0; holds the whole brain.

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
        std = clipped.std(correction=0) * (high > low)  # rounding: constants may have an SD > 0
        rows.append(torch.stack([low, high, clipped.mean(), std]))
    return rearrange(torch.stack(rows), "(b s) k -> b s k", b=volume.shape[0])


def normalise(volume: Tensor, statistics: Tensor) -> Tensor:
    """Clip each sequence to its percentiles and z-score it; background stays 0.

    Args:
        volume: (b, s, x, y, z), background 0.
        statistics: (b, s, 4) from :func:`intensity_statistics`.
    """
    low, high, mean, std = rearrange(statistics, "b s k -> k b s 1 1 1")
    return scale(volume.clamp(low, high), mean, std) * (volume != 0)


def scale(value: Tensor, offset: Tensor, divisor: Tensor) -> Tensor:
    """Return ``(value - offset) / divisor``, and 0 where that is 0 (a constant sequence)."""
    return torch.where(divisor > 0, (value - offset) / torch.where(divisor > 0, divisor, 1), 0)
