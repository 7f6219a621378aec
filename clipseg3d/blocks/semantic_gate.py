"""The gate that scales and shifts feature channels by the semantics of a case."""

import torch
from einops import rearrange
from torch import Tensor, nn

from clipseg3d.blocks.zero_init import zero_init


class SemanticGate(nn.Module):
    """Scale and shift feature channels by the case's semantics; a new gate changes nothing.

    ``features * 2 sigmoid(W_g s) + W_b s`` with both layers zero-initialised.

    Args:
        channels: feature channels c.
        dim: semantic channels d.

    Source: arXiv 2507.09966 names "semantic gating units" without an equation; this one is ours.

    Example:
        >>> gate = SemanticGate(16, 64)
        >>> gate(torch.rand(1, 16, 8, 8, 8), torch.rand(1, 64)).shape
        torch.Size([1, 16, 8, 8, 8])
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.scale = nn.Linear(dim, channels)
        self.shift = nn.Linear(dim, channels)
        zero_init(self.scale, self.shift)

    def forward(self, features: Tensor, summary: Tensor) -> Tensor:
        """Return gated features (b, c, x, y, z) for a semantic summary (b, d)."""
        scale = rearrange(2 * torch.sigmoid(self.scale(summary)), "b c -> b c 1 1 1")
        shift = rearrange(self.shift(summary), "b c -> b c 1 1 1")
        gated: Tensor = features * scale + shift
        return gated
