"""Feature-level fusion: the residual CBAM block and the attention-gated skip of the 3D U-Net."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from clipseg3d.blocks.pointwise import PointwiseConv3d
from clipseg3d.blocks.zero_init import zero_init

SLAB_BYTES = 2**22
MAX_SLABS = 32


class ChannelSpatialAttention(nn.Module):
    """CBAM in 3D: weigh channels, then voxels; every gate is ``2 sigmoid(.)`` and starts at 1.

    Args:
        channels: feature channels c.
        reduction: the hidden layer of the channel gate has c / reduction channels, at least 4.

    Source: Woo et al., CBAM, ECCV 2018, equations 1-3, https://arxiv.org/abs/1807.06521.
    Differs: identity at initialisation; the spatial kernel is 3, since 7 costs 343 taps in 3D.
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
        small = (*self.channel.parameters(), *self.spatial.parameters())
        if torch.compiler.is_compiling():  # which fuses operations itself
            return _weigh(features, *small)
        weighed: Tensor = _Weigh.apply(features, *small)  # type: ignore[no-untyped-call]
        return weighed


def _weigh(features: Tensor, *small: Tensor) -> Tensor:
    """Return CBAM of features, the plain way."""
    average = reduce(features, "b c x y z -> b c", "mean")
    peak = features.flatten(2).max(dim=2).values
    features = features * _channel_weight(average, peak, *small[:4]).to(features.dtype)
    peaks = features.max(dim=1, keepdim=True).values
    pooled = torch.cat([features.mean(dim=1, keepdim=True), peaks], dim=1)
    return features * _voxel_weight(pooled, *small[4:]).to(features.dtype)


def _channel_weight(
    average: Tensor, peak: Tensor, first: Tensor, bias: Tensor, last: Tensor, last_bias: Tensor
) -> Tensor:
    """Return the weight (b, c, 1, 1, 1) of every channel, from its average and peak (b, c)."""
    with torch.autocast(average.device.type, enabled=False):
        pooled = torch.stack([average, peak]).to(first.dtype)
        hidden = F.linear(torch.relu(F.linear(pooled, first, bias)), last, last_bias)
        return 2 * torch.sigmoid(rearrange(hidden.sum(dim=0), "b c -> b c 1 1 1"))


def _voxel_weight(pooled: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Return the weight (b, 1, x, y, z) of every voxel, from average and peak (b, 2, x, y, z)."""
    with torch.autocast(pooled.device.type, enabled=False):
        scores = F.conv3d(pooled.to(kernel.dtype), kernel, bias, padding=1, groups=2)
        return 2 * torch.sigmoid(scores.sum(dim=1, keepdim=True))


class _Weigh(torch.autograd.Function):
    """CBAM that keeps its input and little else for the backward pass.

    The plain way keeps the features twice, and its backward pass makes eight tensors of their size,
    each of them in fresh memory, which on CPUs takes longer than what is computed. Here there is
    one; what comes between lies in slabs that stay in the processor's cache.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, *small: Tensor) -> Tensor:
        """Return what :func:`_weigh` returns."""
        average = reduce(features, "b c x y z -> b c", "mean")
        peak, place = features.flatten(2).max(dim=2)
        channel = _channel_weight(average, peak, *small[:4]).to(features.dtype)
        pooled = features.new_empty(len(features), 2, *features.shape[2:])
        which = torch.empty_like(pooled[:, :1], dtype=torch.int16)
        for slab in _slabs(features):
            weighed = features[:, :, slab] * channel
            pooled[:, :1, slab] = weighed.mean(dim=1, keepdim=True)
            pooled[:, 1:, slab], which[:, :, slab] = weighed.max(dim=1, keepdim=True)
        voxel = _voxel_weight(pooled, *small[4:]).to(features.dtype)
        out = torch.empty_like(features)
        for slab in _slabs(features):
            torch.mul(features[:, :, slab], channel, out=out[:, :, slab]).mul_(voxel[:, :, slab])
        ctx.save_for_backward(features, average, peak, place, pooled, which, *small)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of features and weights."""
        features, average, peak, place, pooled, which, *small = ctx.saved_tensors
        channel, to_channel = _with_gradient(_channel_weight, average, peak, *small[:4])
        voxel, to_voxel = _with_gradient(_voxel_weight, pooled, *small[4:])
        channel, voxel = channel.to(features.dtype), voxel.to(features.dtype)
        of_voxel = torch.empty_like(voxel)
        for slab in _slabs(features):
            product = (grad[:, :, slab] * features[:, :, slab]).mul_(channel)
            torch.sum(product, dim=1, keepdim=True, out=of_voxel[:, :, slab])
        of_pooled, *of_spatial = to_voxel(of_voxel)
        of_pooled[:, :1] /= features.shape[1]
        of_channel = torch.zeros_like(channel, dtype=small[0].dtype)
        of_features = torch.empty_like(features)
        for slab in _slabs(features):
            inner = grad[:, :, slab] * voxel[:, :, slab]
            inner += of_pooled[:, :1, slab]
            inner.scatter_add_(1, which[:, :, slab].long(), of_pooled[:, 1:, slab])
            of_channel += (inner * features[:, :, slab]).sum(dim=(2, 3, 4), keepdim=True)
            torch.mul(inner, channel, out=of_features[:, :, slab])
        of_average, of_peak, *of_gate = to_channel(of_channel)
        of_features += rearrange(of_average / features[0, 0].numel(), "b c -> b c 1 1 1")
        of_features.view(*place.shape, -1).scatter_add_(2, place[..., None], of_peak[..., None])
        return of_features, *of_gate, *of_spatial


def _slabs(features: Tensor) -> Iterator[slice]:
    """Cut (b, c, x, y, z) along x: into parts of some MB on a CPU, not at all elsewhere."""
    count = min(MAX_SLABS, -(-features.nbytes // SLAB_BYTES)) if features.is_cpu else 1
    step = max(1, -(-features.shape[2] // count))
    for start in range(0, features.shape[2], step):
        yield slice(start, start + step)


def _with_gradient(
    function: Callable[..., Tensor], *inputs: Tensor
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
    """Return a result, and what makes the gradients of the inputs of that of the result."""
    leaves = [given.detach().requires_grad_() for given in inputs]
    with torch.enable_grad():
        result = function(*leaves)

    def gradients(of_result: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(result, leaves, of_result.to(result.dtype))

    return result.detach(), gradients


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
        weight = 2 * torch.sigmoid(self.score(asked))
        if torch.compiler.is_compiling():
            return skip * weight
        weighed: Tensor = _Scale.apply(skip, weight)  # type: ignore[no-untyped-call]
        return weighed


class _Scale(torch.autograd.Function):
    """Features (b, c, x, y, z) times a weight for every voxel (b, 1, x, y, z).

    Its backward pass makes one tensor of the features' size instead of two; see :class:`_Weigh`.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor) -> Tensor:
        """Return the product."""
        ctx.save_for_backward(features, weight)
        return features * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of both."""
        features, weight = ctx.saved_tensors
        of_weight = torch.empty_like(weight)
        for slab in _slabs(features):
            product = grad[:, :, slab] * features[:, :, slab]
            torch.sum(product, dim=1, keepdim=True, out=of_weight[:, :, slab])
        return grad * weight, of_weight
