"""A light correction of logits at full resolution, cube by cube."""

import torch
from torch import Tensor, nn

from clipseg3d.blocks.instance_norm_act import InstanceNormAct
from clipseg3d.blocks.pointwise_conv import PointwiseConv3d
from clipseg3d.blocks.space_to_depth import depth_to_space, space_to_depth
from clipseg3d.blocks.zero_init import zero_init


class VoxelRefinement(nn.Module):
    """Correct the logits of a network whose stem turns cubes of voxels into channels.

    In such a network, everything about a cube of voxels passes through the channels of one voxel of
    the coarser grid, and detail is lost. Here two pointwise layers read the logits and the image of
    each cube, and their result is added to the logits. No convolution runs at full resolution. The
    last layer starts at zero, so a new block changes nothing.

    Args:
        in_channels: channels of the image.
        out_channels: channels of the logits.
        hidden: channels between the layers.
        cube: edge length of a cube in voxels.

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
        """Return corrected logits (b, r, x, y, z).

        Args:
            raw: logits (b, r, x, y, z); x, y and z are multiples of ``cube``.
            image: (b, c, x, y, z).
        """
        cubes = torch.cat([space_to_depth(raw, self.cube), space_to_depth(image, self.cube)], dim=1)
        return raw + depth_to_space(self.layers(cubes), self.cube)
