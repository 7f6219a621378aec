"""Normalisation by statistics that are kept, instead of those of what is given."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FixedNorm(nn.Module):
    """Normalise every channel by its kept mean and variance, then scale and shift it.

    In training and in evaluation alike: what a voxel becomes does not depend on other voxels. The
    statistics are those of other crops; see
    :func:`clipseg3d.networks.fixed_statistics.fix_statistics`. New ones change nothing.

    Args:
        channels: feature channels c.
        slope: of a leaky ReLU that follows; None for none.
        eps: added to the variance.

    Source: a batch normalisation whose statistics are frozen (Ioffe and Szegedy, ICML 2015,
    https://arxiv.org/abs/1502.03167), with the names and the layout of the instance normalisation
    in whose place it stands.

    Example:
        >>> features = torch.rand(1, 16, 8, 8, 8)
        >>> norm = FixedNorm(16)
        >>> whole, part = norm(features), norm(features[..., :4])
        >>> torch.equal(whole[..., :4], part)
        True
    """

    mean: Tensor
    var: Tensor

    def __init__(self, channels: int, *, slope: float | None = None, eps: float = 1e-5) -> None:
        super().__init__()
        self.slope = slope
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def forward(self, features: Tensor) -> Tensor:
        """Return normalised features, (b, c, x, y, z) as given."""
        normed = F.batch_norm(
            features, self.mean, self.var, self.weight, self.bias, training=False, eps=self.eps
        )
        return normed if self.slope is None else F.leaky_relu(normed, self.slope, inplace=True)
