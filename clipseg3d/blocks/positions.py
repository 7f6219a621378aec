"""Positions of voxels in the brain box."""

import torch
from torch import Tensor


def voxel_positions(features: Tensor, crop_box: Tensor | None = None) -> Tensor:
    """Return the position of each voxel's centre in the brain box, from -1 to 1 along each axis.

    Args:
        features: (b, c, x, y, z), whose grid, type and device the result takes.
        crop_box: (b, 2, 3) corner and size as shares of the box, where a negative size stands for
            a mirrored axis; None for the whole box.

    Returns:
        (b, 3, x, y, z).
    """
    if crop_box is None:
        crop_box = torch.tensor([[[0.0] * 3, [1.0] * 3]]).expand(features.shape[0], 2, 3)
    exact = torch.promote_types(features.dtype, torch.float32)  # bf16 merges neighbouring voxels
    crop_box = crop_box.to(features.device, exact)
    axes = []
    for axis, size in enumerate(features.shape[2:]):
        centres = (torch.arange(size, device=features.device, dtype=exact) + 0.5) / size
        position = crop_box[:, 0, axis, None] + crop_box[:, 1, axis, None] * centres
        shape = [features.shape[0], 1, 1, 1]
        shape[1 + axis] = size
        axes.append((2 * position - 1).view(shape).expand(-1, *features.shape[2:]))
    return torch.stack(axes, dim=1).to(features.dtype)
