"""Feature-level fusion: the residual CBAM block and the attention-gated skip of the 3D U-Net."""

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from clipseg3d.blocks.pointwise import PointwiseConv3d
from clipseg3d.blocks.slabs import SlabbedAttention
from clipseg3d.blocks.zero_init import zero_init


class ChannelSpatialAttention(nn.Module):
    """CBAM in 3D: weigh channels, then voxels; every gate is ``2 sigmoid(.)`` and starts at 1.

    Args:
        channels: feature channels c.
        reduction: the hidden layer of the channel gate has c / reduction channels, at least 4.

    Source: Woo et al., CBAM, ECCV 2018, equations 1-3, https://arxiv.org/abs/1807.06521.
    Differs: identity at initialisation; the spatial kernel is 3, since 7 costs 343 taps in 3D.

    Example:
        >>> features = torch.rand(1, 16, 8, 8, 8)
        >>> torch.equal(ChannelSpatialAttention(16)(features), features)  # until it is trained
        True
    """

    def __init__(self, channels: int, *, reduction: int = 8) -> None:
        super().__init__()
        hidden = max(4, channels // reduction)
        self.channel = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels)
        )
        # One filter per map, then their sum: the same function as a convolution from 2 maps to 1,
        # which PyTorch's CPU kernels run three times slower.
        self.spatial = nn.Conv3d(2, 2, 3, padding=1, groups=2)
        zero_init(self.channel[-1], self.spatial)

    def forward(self, features: Tensor) -> Tensor:
        """Return weighed features, (b, c, x, y, z) as given."""
        if not torch.compiler.is_compiling():  # which fuses what follows by itself
            weights = (*self.channel.parameters(), *self.spatial.parameters())
            slabbed: Tensor = SlabbedAttention.apply(features, *weights)  # type: ignore[no-untyped-call]
            return slabbed
        average = reduce(features, "b c x y z -> b c", "mean")
        # The gradient of max goes to one place and costs a third of that of amax, which is split
        # between equals.
        peak = features.flatten(2).max(dim=2).values
        weight = 2 * torch.sigmoid(self.channel(average) + self.channel(peak))
        features = features * rearrange(weight, "b c -> b c 1 1 1")
        pooled = torch.cat(
            [features.mean(dim=1, keepdim=True), features.max(dim=1, keepdim=True).values], dim=1
        )
        return features * (2 * torch.sigmoid(self.spatial(pooled).sum(dim=1, keepdim=True)))


class ActivatedNorm(nn.InstanceNorm3d):
    """Instance normalisation and a leaky ReLU, in place.

    The same as one after the other. :func:`torch.nn.functional.instance_norm` returns a view, and
    what is changed in place behind a view has its gradient copied twice.

    Args:
        channels: feature channels c.
        slope: of the leaky ReLU below 0.
    """

    def __init__(self, channels: int, *, slope: float = 0.01) -> None:
        super().__init__(channels, affine=True)
        self.slope = slope

    def forward(self, features: Tensor) -> Tensor:
        """Return activated features, (b, c, x, y, z) as given."""
        batch = len(features)
        normed = F.batch_norm(
            rearrange(features, "b c x y z -> 1 (b c) x y z"),
            None,
            None,
            self.weight.repeat(batch),
            self.bias.repeat(batch),
            training=True,  # of each case its own mean and variance, in evaluation too
            eps=self.eps,
        )
        activated = F.leaky_relu(normed, self.slope, inplace=True)
        return rearrange(activated, "1 (b c) x y z -> b c x y z", b=batch)


class ResidualBlock(nn.Module):
    """Two 3D convolutions with a shortcut, optionally with CBAM before the sum.

    Args:
        in_channels: channels given.
        out_channels: channels returned.
        stride: 2 halves the grid in the first convolution.
        cbam: whether channel and spatial attention weigh the residual.
        dropout: share of channels dropped between the convolutions, in training only.

    Source: arXiv 2507.09966, feature-level fusion (Conv3d, InstanceNorm, LeakyReLU, CBAM).

    Example:
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
            ActivatedNorm(out_channels),
            nn.Dropout3d(dropout),
            nn.Conv3d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.InstanceNorm3d(out_channels, affine=True),
        )
        self.attention = ChannelSpatialAttention(out_channels) if cbam else nn.Identity()
        self.shortcut = (
            nn.Identity()
            if stride == 1 and in_channels == out_channels
            else PointwiseConv3d(in_channels, out_channels, bias=False)
        )
        self.stride = stride
        self.activation = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        """Return (b, out_channels, x / stride, y / stride, z / stride)."""
        # What a stride skips is skipped beforehand: the backward pass of a convolution with it
        # takes four times as long.
        kept = features[:, :, :: self.stride, :: self.stride, :: self.stride]
        out: Tensor = self.activation(self.attention(self.residual(features)) + self.shortcut(kept))
        return out


class AttentionGate(nn.Module):
    """Weigh a skip connection by what the decoder asks for; the gate starts at 1.

    Args:
        skip_channels: channels of the skip.
        gate_channels: channels of the decoder features on the same grid.

    Source: Oktay et al., Attention U-Net, MIDL 2018, equations 1-2,
    https://arxiv.org/abs/1804.03999. Differs: both inputs lie on one grid; ``2 sigmoid(.)`` with a
    zero-initialised last layer, so a new gate passes the skip unchanged.

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
        """Return the weighed skip (b, c, x, y, z); ``gate`` is (b, g, x, y, z)."""
        asked = torch.relu(self.from_skip(skip) + self.from_gate(gate))
        weighed: Tensor = skip * (2 * torch.sigmoid(self.score(asked)))
        return weighed
