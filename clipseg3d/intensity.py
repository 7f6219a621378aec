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
    sequences = rearrange(volume.float(), "b s x y z -> (b s) (x y z)")
    if torch.compiler.is_compiling():
        statistics = _statistics_in_a_graph(sequences)
        return rearrange(statistics, "(b s) k -> b s k", b=volume.shape[0])
    rows = []
    for sequence in sequences:
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


def _statistics_in_a_graph(sequences: Tensor) -> Tensor:
    """Return statistics (n, 4) of sequences (n, voxels), by operations that a graph can hold.

    The plain form selects voxels, and so has tensors whose size depends on values. This one sorts
    all voxels, which takes longer.
    """
    inside = sequences != 0
    count = inside.sum(dim=1, keepdim=True)
    ordered = torch.where(inside, sequences, torch.inf).sort(dim=1).values
    # float64: ranks are rounded as the plain form rounds them. Apple's GPUs have no float64.
    exact = torch.float32 if sequences.device.type == "mps" else torch.float64
    steps = (count - 1).clamp(min=0).to(exact)
    low, high = (
        ordered.gather(1, (steps * percentile / 100).round().long())
        for percentile in (LOW_PERCENTILE, HIGH_PERCENTILE)
    )
    number = count.clamp(min=1)
    clipped = sequences.clamp(low, high)
    mean = torch.where(inside, clipped, 0).sum(dim=1, keepdim=True) / number
    deviation = torch.where(inside, clipped - mean, 0)
    std = (deviation.square().sum(dim=1, keepdim=True) / number).sqrt() * (high > low)
    return torch.where(count > 0, torch.cat([low, high, mean, std], dim=1), 0)


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
