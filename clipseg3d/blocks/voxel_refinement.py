"""Folding cubes of voxels into channels, and a light head that reads the voxels again."""

import torch
from einops import rearrange
from torch import Tensor, nn

from clipseg3d.blocks.feature_fusion import ActivatedNorm
from clipseg3d.blocks.pointwise import PointwiseConv3d
from clipseg3d.blocks.zero_init import zero_init


def fold_voxels(volume: Tensor, fold: int) -> Tensor:
    """Return (b, c fold^3, x/fold, y/fold, z/fold) for (b, c, x, y, z): cubes become channels."""
    return rearrange(volume, "b c (x i) (y j) (z k) -> b (c i j k) x y z", i=fold, j=fold, k=fold)


def unfold_voxels(cubes: Tensor, fold: int) -> Tensor:
    """Undo :func:`fold_voxels`."""
    return rearrange(cubes, "b (c i j k) x y z -> b c (x i) (y j) (z k)", i=fold, j=fold, k=fold)


class VoxelRefinement(nn.Module):
    """Change the logits of a folded network by the voxels that its stem folded.

    Such a network passes all it knows of a cube of fold^3 voxels through the channels of its top
    level. Here the logits of a cube and the image in it go through two layers, cube by cube, and
    what comes out is added to the logits: detail at full resolution, and no convolution there. The
    last layer starts at zero, so that a new part changes nothing.

    Args:
        in_channels: channels of the image.
        out_channels: channels of the logits.
        hidden: channels between the layers.
        fold: voxels per axis of a cube.

    Source: ours.

    Example:
        >>> raw, image = torch.rand(1, 3, 8, 8, 8), torch.rand(1, 4, 8, 8, 8)
        >>> torch.equal(VoxelRefinement(4, 3, hidden=16, fold=2)(raw, image), raw)
        True
    """

    def __init__(self, in_channels: int, out_channels: int, *, hidden: int, fold: int) -> None:
        super().__init__()
        self.fold = fold
        last = PointwiseConv3d(hidden, out_channels * fold**3)
        self.layers = nn.Sequential(
            PointwiseConv3d((in_channels + out_channels) * fold**3, hidden, bias=False),
            ActivatedNorm(hidden),
            last,
        )
        zero_init(last)

    def forward(self, raw: Tensor, image: Tensor) -> Tensor:
        """Return logits (b, r, x, y, z) for logits of that shape and an image (b, c, x, y, z).

        Sizes are multiples of ``fold``.
        """
        cubes = torch.cat([fold_voxels(raw, self.fold), fold_voxels(image, self.fold)], dim=1)
        return raw + unfold_voxels(self.layers(cubes), self.fold)
