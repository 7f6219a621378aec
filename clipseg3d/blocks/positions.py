"""Positions of voxels in the brain box."""

import torch
from einops import rearrange
from torch import Tensor


def voxel_positions(features: Tensor, crop_box: Tensor | None = None) -> Tensor:
    """Return the position of each voxel's centre in the brain box, from -1 to 1 along each axis.

    Args:
        features: (b, c, x, y, z), whose grid, type and device the result takes.
        crop_box: (b, 4, 3) corner and edges along x, y and z as shares of the box, for crops of any
            rotation; or (b, 2, 3) corner and size, where a negative size stands for a mirrored
            axis; None for the whole box. See :class:`clipseg3d.batch.Batch`.

    Returns:
        (b, 3, x, y, z).
    """
    if crop_box is None:
        crop_box = torch.tensor([[[0.0] * 3, [1.0] * 3]]).expand(features.shape[0], 2, 3)
    exact = torch.promote_types(features.dtype, torch.float32)  # bf16 merges neighbouring voxels
    crop_box = crop_box.to(features.device, exact)
    edges = crop_box[:, 1:]
    if edges.shape[1] == 1:  # edges along the axes of the box
        edges = edges * torch.eye(3, device=edges.device, dtype=exact)
    position = rearrange(crop_box[:, 0], "b k -> b k 1 1 1")
    for axis, size in enumerate(features.shape[2:]):
        centres = (torch.arange(size, device=features.device, dtype=exact) + 0.5) / size
        shape = [1, 1, 1]
        shape[axis] = size
        position = position + rearrange(edges[:, axis], "b k -> b k 1 1 1") * centres.view(shape)
    return (2 * position - 1).to(features.dtype)
