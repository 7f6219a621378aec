"""CBAM slab by slab: the same function in less memory and, on CPUs, in less time.

The backward pass of the plain form (see :class:`clipseg3d.blocks.cbam.CBAM`) allocates eight
tensors as large as the features. On CPUs these allocations take longer than the arithmetic. Here it
allocates one such tensor: intermediate results exist for one slab at a time. One copy of the
features is kept for the backward pass instead of two.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv3d_weight

SLAB_BYTES = {"cpu": 2**21, "cuda": 2**26}
"""Bytes of features in a slab, by device: a slab fits in the cache of a CPU; a GPU needs more work
at once. Other devices use the plain form."""
MAX_FAKE_SLABS = 16
"""Largest number of slabs of fake tensors. They have no content and serve to predict memory; many
slabs would only make that slow."""


def runs_in_slabs(features: Tensor) -> bool:
    """Return whether CBAM uses slabs; compilers get the plain form, since they fuse operations."""
    return features.device.type in SLAB_BYTES and not torch.compiler.is_compiling()


def cbam_in_slabs(features: Tensor, *weights: Tensor) -> Tensor:
    """Return weighted features, (b, c, x, y, z) as given.

    Args:
        features: (b, c, x, y, z).
        weights: weight and bias of both layers of the channel attention, then of the convolution.
    """
    weighted: Tensor = _SlabbedCBAM.apply(features, *weights)  # type: ignore[no-untyped-call]
    return weighted


class _SlabbedCBAM(torch.autograd.Function):
    """CBAM with a hand-written backward pass."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, *weights: Tensor) -> Tensor:
        """Return weighted features; arguments as for :func:`cbam_in_slabs`."""
        average = reduce(features, "b c x y z -> b c", "mean")
        maximum, max_index = features.flatten(2).max(dim=2)
        channel = _channel_weight(average, maximum, *weights[:4]).to(features.dtype)
        pooled = features.new_empty(len(features), 2, *features.shape[2:])
        max_channel = torch.empty_like(pooled[:, :1], dtype=torch.int16)
        for slab in _slabs(features):
            weighted = features[:, :, slab] * channel
            pooled[:, :1, slab] = weighted.mean(dim=1, keepdim=True)
            pooled[:, 1:, slab], max_channel[:, :, slab] = weighted.max(dim=1, keepdim=True)
        voxel = _voxel_weight(pooled, *weights[4:]).to(features.dtype)
        out = torch.empty_like(features)
        for slab in _slabs(features):
            torch.mul(features[:, :, slab], channel, out=out[:, :, slab]).mul_(voxel[:, :, slab])
        ctx.save_for_backward(features, average, maximum, max_index, pooled, max_channel, *weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of features and weights."""
        features, average, maximum, max_index, pooled, max_channel, *weights = ctx.saved_tensors
        channel, channel_backward = _with_backward(_channel_weight, average, maximum, *weights[:4])
        exact_voxel = _voxel_weight(pooled, *weights[4:])
        channel, voxel = channel.to(features.dtype), exact_voxel.to(features.dtype)
        grad_voxel = torch.empty_like(voxel)
        for slab in _slabs(features):
            product = (grad[:, :, slab] * features[:, :, slab]).mul_(channel)
            torch.sum(product, dim=1, keepdim=True, out=grad_voxel[:, :, slab])
        grad_score = grad_voxel.to(exact_voxel.dtype) * exact_voxel * (1 - exact_voxel / 2)
        grad_pooled, *grad_spatial = _convolution_backward(grad_score, pooled, weights[4])
        grad_pooled[:, :1] /= features.shape[1]
        grad_channel = torch.zeros_like(channel, dtype=weights[0].dtype)
        grad_features = torch.empty_like(features)
        for slab in _slabs(features):
            inner = grad[:, :, slab] * voxel[:, :, slab]
            inner += grad_pooled[:, :1, slab]
            inner.scatter_add_(1, max_channel[:, :, slab].long(), grad_pooled[:, 1:, slab])
            grad_channel += (inner * features[:, :, slab]).sum(dim=(2, 3, 4), keepdim=True)
            torch.mul(inner, channel, out=grad_features[:, :, slab])
        grad_average, grad_maximum, *grad_gate = channel_backward(grad_channel)
        grad_features += rearrange(grad_average / features[0, 0].numel(), "b c -> b c 1 1 1")
        grad_features.view(*max_index.shape, -1).scatter_add_(
            2, max_index[..., None], grad_maximum[..., None]
        )
        return grad_features, *grad_gate, *grad_spatial


def _convolution_backward(
    grad_score: Tensor, pooled: Tensor, kernel: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of the maps (b, 2, x, y, z), the kernel (2, 1, 3, 3, 3) and its bias.

    The gradient of the maps is a convolution with the flipped kernel. PyTorch's own backward pass
    of a convolution with one channel per group takes ten times as long (on one CPU core).

    Args:
        grad_score: gradient of the sum of both filters (b, 1, x, y, z).
        pooled: the maps.
        kernel: a filter for each map.
    """
    with torch.autocast(pooled.device.type, enabled=False):
        both = grad_score.expand_as(pooled).contiguous()
        grad_pooled = F.conv3d(both, kernel.flip(2, 3, 4), padding=1, groups=2)
        maps = pooled.to(kernel.dtype)
        grad_kernel: Tensor = conv3d_weight(  # type: ignore[no-untyped-call]
            maps, kernel.shape, both, padding=1, groups=2
        )
    return grad_pooled.to(pooled.dtype), grad_kernel, grad_score.sum().expand(2)


def _channel_weight(
    average: Tensor, maximum: Tensor, first: Tensor, bias: Tensor, last: Tensor, last_bias: Tensor
) -> Tensor:
    """Return the weight (b, c, 1, 1, 1) of every channel, from its average and maximum (b, c)."""
    with torch.autocast(average.device.type, enabled=False):
        pooled = torch.stack([average, maximum]).to(first.dtype)
        hidden = F.linear(torch.relu(F.linear(pooled, first, bias)), last, last_bias)
        return 2 * torch.sigmoid(rearrange(hidden.sum(dim=0), "b c -> b c 1 1 1"))


def _voxel_weight(pooled: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Return the weight (b, 1, x, y, z) of every voxel, from the maps (b, 2, x, y, z)."""
    with torch.autocast(pooled.device.type, enabled=False):
        scores = F.conv3d(pooled.to(kernel.dtype), kernel, bias, padding=1, groups=2)
        return 2 * torch.sigmoid(scores.sum(dim=1, keepdim=True))


def _slabs(features: Tensor) -> Iterator[slice]:
    """Yield the slabs of features (b, c, x, y, z), as slices of x."""
    size = SLAB_BYTES[features.device.type]
    if isinstance(features, FakeTensor):
        size = max(size, features.nbytes // MAX_FAKE_SLABS)
    step = max(1, features.shape[2] * size // max(1, features.nbytes))
    for start in range(0, features.shape[2], step):
        yield slice(start, start + step)


def _with_backward(
    function: Callable[..., Tensor], *inputs: Tensor
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
    """Return a result, and a function from its gradient to the gradients of the inputs."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    with torch.enable_grad():
        result = function(*leaves)

    def backward(grad: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(result, leaves, grad.to(result.dtype))

    return result.detach(), backward
