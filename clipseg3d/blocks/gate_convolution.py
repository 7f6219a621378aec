"""The convolution of equation 6: how much of a region's probability each voxel keeps."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class GateConvolution(nn.Conv3d):
    """One 3x3x3 convolution of decoder features and the semantics of a case, to one channel.

    The semantics are repeated at every voxel and joined to the features as further channels. The
    result is that of a convolution of these channels padded with zeros, but the repeated semantics,
    which would need many times the memory of the features, are never made.

    Args:
        channels: feature channels c.
        dim: semantic channels d.

    Source: ``f_conv(D1, F)`` of arXiv 2507.09966, equation 6. The paper gives neither the size of
    the kernel nor how F joins D1.

    Example:
        >>> gate = GateConvolution(16, 64)
        >>> gate(torch.rand(1, 16, 8, 8, 8), torch.rand(1, 64)).shape
        torch.Size([1, 1, 8, 8, 8])
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__(channels + dim, 1, 3, padding=1)

    def forward(self, features: Tensor, summary: Tensor) -> Tensor:  # type: ignore[override]
        """Return scores (b, 1, x, y, z), the argument of the sigmoid in equation 6.

        Args:
            features: decoder features D1, (b, c, x, y, z).
            summary: the case's semantics F, (b, d).
        """
        count = features.shape[1]
        of_features, of_semantics = self.weight[:, :count], self.weight[0, count:]
        # One kernel per case for a channel of ones, which zeros pad as they pad the features.
        kernels = torch.einsum("b d, d x y z -> b x y z", summary, of_semantics)
        ones = torch.ones_like(features[:, :1])
        repeated = F.conv3d(
            rearrange(ones, "b 1 x y z -> 1 b x y z"),
            rearrange(kernels, "b x y z -> b 1 x y z"),
            padding=1,
            groups=len(features),
        )
        scores = F.conv3d(features, of_features, self.bias, padding=1)
        return scores + rearrange(repeated, "1 b x y z -> b 1 x y z")
