"""CBAM slab by slab: the same function in less memory, and on CPUs in less time."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv3d_weight

SLAB_BYTES = {"cpu": 2**21}
"""What a slab of the features takes, by device, so that it stays in a processor's cache."""
LARGE_SLAB_BYTES = 2**26
"""The same on accelerators, which want much to do at once."""
MOST_FAKE_SLABS = 16
"""Of features without content, which nothing is computed of: their memory is told sooner."""


class SlabbedAttention(torch.autograd.Function):
    """What :class:`~clipseg3d.blocks.feature_fusion.ChannelSpatialAttention` computes.

    Written as one would, the backward pass makes eight tensors of the features' size, each of them
    in fresh memory, which on CPUs takes longer than what is computed. Here there is one; what comes
    between lies in slabs, and of the features one copy is kept instead of two.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, *weights: Tensor) -> Tensor:
        """Return weighed features.

        Args:
            ctx: of autograd.
            features: (b, c, x, y, z).
            weights: weight and bias of both layers of the channel gate, then of the convolution.
        """
        average = reduce(features, "b c x y z -> b c", "mean")
        peak, place = features.flatten(2).max(dim=2)
        channel = _channel_weight(average, peak, *weights[:4]).to(features.dtype)
        pooled = features.new_empty(len(features), 2, *features.shape[2:])
        which = torch.empty_like(pooled[:, :1], dtype=torch.int16)
        for slab in _slabs(features):
            weighed = features[:, :, slab] * channel
            pooled[:, :1, slab] = weighed.mean(dim=1, keepdim=True)
            pooled[:, 1:, slab], which[:, :, slab] = weighed.max(dim=1, keepdim=True)
        voxel = _voxel_weight(pooled, *weights[4:]).to(features.dtype)
        out = torch.empty_like(features)
        for slab in _slabs(features):
            torch.mul(features[:, :, slab], channel, out=out[:, :, slab]).mul_(voxel[:, :, slab])
        ctx.save_for_backward(features, average, peak, place, pooled, which, *weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of features and weights."""
        features, average, peak, place, pooled, which, *weights = ctx.saved_tensors
        channel, to_channel = _with_gradient(_channel_weight, average, peak, *weights[:4])
        exact = _voxel_weight(pooled, *weights[4:])
        channel, voxel = channel.to(features.dtype), exact.to(features.dtype)
        of_voxel = torch.empty_like(voxel)
        for slab in _slabs(features):
            product = (grad[:, :, slab] * features[:, :, slab]).mul_(channel)
            torch.sum(product, dim=1, keepdim=True, out=of_voxel[:, :, slab])
        of_score = of_voxel.to(exact.dtype) * exact * (1 - exact / 2)
        of_pooled, *of_spatial = _filter_gradients(of_score, pooled, weights[4])
        of_pooled[:, :1] /= features.shape[1]
        of_channel = torch.zeros_like(channel, dtype=weights[0].dtype)
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


def _filter_gradients(
    of_score: Tensor, pooled: Tensor, kernel: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of the maps (b, 2, x, y, z), the kernel (2, 1, 3, 3, 3) and its bias.

    That of the maps is a convolution with the kernel turned round. PyTorch's own backward pass of
    a convolution of single channels takes ten times as long on CPUs, on one core.

    Args:
        of_score: gradient of the sum of both filters (b, 1, x, y, z).
        pooled: the maps.
        kernel: a filter for each.
    """
    with torch.autocast(pooled.device.type, enabled=False):
        both = of_score.expand_as(pooled).contiguous()
        of_pooled = F.conv3d(both, kernel.flip(2, 3, 4), padding=1, groups=2)
        maps = pooled.to(kernel.dtype)
        of_kernel: Tensor = conv3d_weight(  # type: ignore[no-untyped-call]
            maps, kernel.shape, both, padding=1, groups=2
        )
    return of_pooled.to(pooled.dtype), of_kernel, of_score.sum().expand(2)


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


def _slabs(features: Tensor) -> Iterator[slice]:
    """Cut (b, c, x, y, z) along x."""
    size = SLAB_BYTES.get(features.device.type, LARGE_SLAB_BYTES)
    if isinstance(features, FakeTensor):
        size = max(size, features.nbytes // MOST_FAKE_SLABS)
    step = max(1, features.shape[2] * size // max(1, features.nbytes))
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
