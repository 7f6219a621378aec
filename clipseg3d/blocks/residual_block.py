"""Feature-level fusion: the residual block of the 3D U-Net, with CBAM."""

from torch import Tensor, nn

from clipseg3d.blocks.cbam import CBAM
from clipseg3d.blocks.instance_norm_act import InstanceNormAct
from clipseg3d.blocks.pointwise_conv import PointwiseConv3d


class ResidualBlock(nn.Module):
    """Two 3D convolutions with a shortcut, optionally with CBAM before the sum.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the result.
        stride: 2 halves the grid in the first convolution.
        cbam: whether channel and spatial attention weight the residual.
        dropout: dropout rate of whole channels between the convolutions, in training only.

    Source: arXiv 2507.09966, feature-level fusion (Conv3d, InstanceNorm, LeakyReLU, CBAM).

    Example:
        >>> import torch
        >>> ResidualBlock(4, 16, stride=2)(torch.rand(1, 4, 20, 24, 18)).shape
        torch.Size([1, 16, 10, 12, 9])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        cbam: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv3d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
            InstanceNormAct(out_channels),
            nn.Dropout3d(dropout),
            nn.Conv3d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.InstanceNorm3d(out_channels, affine=True),
        )
        self.attention = CBAM(out_channels) if cbam else nn.Identity()
        self.shortcut = (
            nn.Identity()
            if stride == 1 and in_channels == out_channels
            else PointwiseConv3d(in_channels, out_channels, bias=False)
        )
        self.stride = stride
        self.activation = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        """Return (b, out_channels, x / stride, y / stride, z / stride)."""
        # Slicing instead of a strided convolution, whose backward pass takes four times as long.
        strided = features[:, :, :: self.stride, :: self.stride, :: self.stride]
        residual = self.attention(self.residual(features))
        out: Tensor = self.activation(residual + self.shortcut(strided))
        return out
