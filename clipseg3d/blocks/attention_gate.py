"""The attention gate on a skip connection."""

import torch
from torch import Tensor, nn

from clipseg3d.blocks.pointwise_conv import PointwiseConv3d
from clipseg3d.blocks.zero_init import zero_init


class AttentionGate(nn.Module):
    """Weight the voxels of a skip connection by the decoder's features; weights start at 1.

    Args:
        skip_channels: channels of the skip.
        gate_channels: channels of the decoder features on the same grid.

    Source: Oktay et al., Attention U-Net, MIDL 2018, equations 1-2,
    https://arxiv.org/abs/1804.03999. Differs: both inputs have the same grid; the weight is
    ``2 sigmoid(.)`` and the last layer starts at zero, so a new gate passes the skip unchanged.

    Example:
        >>> skip, decoder = torch.rand(1, 16, 8, 8, 8), torch.rand(1, 32, 8, 8, 8)
        >>> AttentionGate(16, 32)(skip, decoder).shape
        torch.Size([1, 16, 8, 8, 8])
    """

    def __init__(self, skip_channels: int, gate_channels: int) -> None:
        super().__init__()
        hidden = max(1, skip_channels // 4)
        self.from_skip = PointwiseConv3d(skip_channels, hidden, bias=False)
        self.from_gate = PointwiseConv3d(gate_channels, hidden)
        self.score = PointwiseConv3d(hidden, 1)
        zero_init(self.score)

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        """Return the weighted skip (b, c, x, y, z); ``gate`` is (b, g, x, y, z)."""
        hidden = torch.relu(self.from_skip(skip) + self.from_gate(gate))
        weighted: Tensor = skip * (2 * torch.sigmoid(self.score(hidden)))
        return weighted
