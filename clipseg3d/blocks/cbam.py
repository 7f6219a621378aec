"""CBAM in 3D: channel attention, then spatial attention."""

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from clipseg3d.blocks.cbam_slabs import cbam_in_slabs, runs_in_slabs
from clipseg3d.blocks.zero_init import zero_init


class CBAM(nn.Module):
    """Weight channels, then voxels; every weight is ``2 sigmoid(.)`` and starts at 1.

    Args:
        channels: feature channels c.
        reduction: the hidden layer of the channel attention has c / reduction channels, at least 4.

    Source: Woo et al., CBAM, ECCV 2018, equations 1-3, https://arxiv.org/abs/1807.06521.
    Differs: a new block changes nothing; the spatial kernel is 3, since 7 has 343 weights in 3D.

    Example:
        >>> features = torch.rand(1, 16, 8, 8, 8)
        >>> torch.equal(CBAM(16)(features), features)  # until it is trained
        True
    """

    def __init__(self, channels: int, *, reduction: int = 8) -> None:
        super().__init__()
        hidden = max(4, channels // reduction)
        self.channel = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels)
        )
        # One filter per map, and later their sum. A convolution from 2 maps to 1 is the same
        # function, but takes three times as long in PyTorch on CPUs.
        self.spatial = nn.Conv3d(2, 2, 3, padding=1, groups=2)
        zero_init(self.channel[-1], self.spatial)

    def forward(self, features: Tensor) -> Tensor:
        """Return weighted features, (b, c, x, y, z) as given."""
        if runs_in_slabs(features):
            return cbam_in_slabs(features, *self.channel.parameters(), *self.spatial.parameters())
        average = reduce(features, "b c x y z -> b c", "mean")
        # max sends its gradient to one voxel; amax splits it between equal voxels, which takes
        # three times as long.
        maximum = features.flatten(2).max(dim=2).values
        weight = 2 * torch.sigmoid(self.channel(average) + self.channel(maximum))
        features = features * rearrange(weight, "b c -> b c 1 1 1")
        pooled = torch.cat(
            [features.mean(dim=1, keepdim=True), features.max(dim=1, keepdim=True).values], dim=1
        )
        return features * (2 * torch.sigmoid(self.spatial(pooled).sum(dim=1, keepdim=True)))
