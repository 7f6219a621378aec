"""Patch embeddings of 2D views as a 3D map."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from clipseg3d.blocks.positions import voxel_positions
from clipseg3d.vocabulary import PLANES


def lift_patches(
    patches: Tensor, planes: Tensor, features: Tensor, crop_box: Tensor | None = None
) -> Tensor:
    """Lift embeddings of 2D patches to a 3D map: tri-planar, linear between slices.

    Each voxel is projected onto the slices of each of the three axes. There, patch embeddings are
    interpolated in the slice and between the two nearest slices. The result is the mean over the
    axes.

    Args:
        patches: (b, v, g, g, e), v views in the order of :class:`clipseg3d.views.Views`.
        planes: (b, v, 3) positions of the views.
        features: (b, c, x, y, z), whose grid the map takes.
        crop_box: (b, 2, 3) or (b, 4, 3) position of ``features`` in the brain box; None for
            all of it.

    Returns:
        (b, e, x, y, z) in the type of ``patches``.
    """
    position = voxel_positions(features.float(), crop_box)
    grids = rearrange(patches, "b (a k) g h e -> a b e k g h", a=len(PLANES))
    plane = rearrange(planes.float(), "b (a k) three -> a b k three", a=len(PLANES))
    maps = []
    for axis, (along, rows, columns) in enumerate(((2, 0, 1), (1, 0, 2), (0, 1, 2))):
        slices = 2 * plane[axis, :, :, 0] - 1
        count = slices.shape[1]
        steps = (slices[:, 1:] - slices[:, :-1]).clamp(min=1e-6)
        index = torch.zeros_like(position[:, along])
        for step in range(count - 1):
            start = rearrange(slices[:, step], "b -> b 1 1 1")
            length = rearrange(steps[:, step], "b -> b 1 1 1")
            index = index + ((position[:, along] - start) / length).clamp(0, 1)
        coordinates = torch.stack(
            [
                position[:, columns] * rearrange(plane[axis, :, 0, 2], "b -> b 1 1 1"),
                position[:, rows] * rearrange(plane[axis, :, 0, 1], "b -> b 1 1 1"),
                (2 * index + 1) / count - 1,
            ],
            dim=-1,
        )
        maps.append(
            F.grid_sample(
                grids[axis].float(), coordinates, padding_mode="border", align_corners=False
            )
        )
    return torch.stack(maps).mean(dim=0).to(patches.dtype)
