"""Convolutions of kernel 1, faster on CPUs."""

import torch
from einops import rearrange, repeat
from torch import Tensor, nn


class PointwiseConv3d(nn.Conv3d):
    """A 3D convolution of kernel 1, computed as a matrix product on CPUs.

    The function and the weights are those of the convolution, but on CPUs the backward pass of the
    product takes half the time.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the result.
        bias: whether to add a bias.
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return (b, out_channels, x, y, z)."""
        if not (features.is_cpu and features.is_contiguous()) or torch.compiler.is_compiling():
            return super().forward(features)
        weight = repeat(self.weight, "o c 1 1 1 -> b o c", b=len(features))
        voxels = rearrange(features, "b c x y z -> b c (x y z)")
        if self.bias is None:
            product = torch.bmm(weight, voxels)
        else:
            product = torch.baddbmm(rearrange(self.bias, "o -> 1 o 1"), weight, voxels)
        return product.view(len(features), -1, *features.shape[2:])
