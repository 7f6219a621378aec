"""Folding cubes of voxels into channels, and a light head that reads the voxels again."""

import torch
from torch import Tensor, nn

from clipseg3d.blocks.instance_norm_act import InstanceNormAct
from clipseg3d.blocks.pointwise_conv import PointwiseConv3d
from clipseg3d.blocks.space_to_depth import depth_to_space, space_to_depth
from clipseg3d.blocks.zero_init import zero_init


class VoxelRefinement(nn.Module):
    """Correct the logits of a network whose stem turns cubes of voxels into channels.

    Such a network passes all it knows of a cube of cube^3 voxels through the channels of its top
    level. Here the logits of a cube and the image in it go through two layers, cube by cube, and
    what comes out is added to the logits: detail at full resolution, and no convolution there. The
    last layer starts at zero, so that a new part changes nothing.

    Args:
        in_channels: channels of the image.
        out_channels: channels of the logits.
        hidden: channels between the layers.
        cube: voxels per axis of a cube.

    Source: ours.

    Example:
        >>> raw, image = torch.rand(1, 3, 8, 8, 8), torch.rand(1, 4, 8, 8, 8)
        >>> torch.equal(VoxelRefinement(4, 3, hidden=16, cube=2)(raw, image), raw)
        True
    """

    def __init__(self, in_channels: int, out_channels: int, *, hidden: int, cube: int) -> None:
        super().__init__()
        self.cube = cube
        last = PointwiseConv3d(hidden, out_channels * cube**3)
        self.layers = nn.Sequential(
            PointwiseConv3d((in_channels + out_channels) * cube**3, hidden, bias=False),
            InstanceNormAct(hidden),
            last,
        )
        zero_init(last)

    def forward(self, raw: Tensor, image: Tensor) -> Tensor:
        """Return logits (b, r, x, y, z) for logits of that shape and an image (b, c, x, y, z).

        Sizes are multiples of ``cube``.
        """
        cubes = torch.cat([space_to_depth(raw, self.cube), space_to_depth(image, self.cube)], dim=1)
        return raw + depth_to_space(self.layers(cubes), self.cube)
