"""Where semantics meet voxels: the bottleneck gate and the attention of each guided region."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from clipseg3d.blocks.zero_init import zero_init


class SemanticGate(nn.Module):
    """Scale and shift feature channels by the case's semantics; a new gate changes nothing.

    ``features * 2 sigmoid(W_g s) + W_b s`` with both layers zero-initialised.

    Args:
        channels: feature channels c.
        dim: semantic channels d.

    Source: the "semantic gating units" of arXiv 2507.09966, which it does not formulate; this
    form is ours.
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


class SemanticAttention(nn.Module):
    """What semantics add to the logits of one region, voxel by voxel.

    A voxel's features and its place in the brain are projected to a query. Its cosine with the
    text's key, the query itself and the text feed a small voxel-wise network, whose last layer
    starts at zero: a new block adds nothing.

    Args:
        channels: feature channels c.
        dim: semantic channels d.
        hidden: channels of the query, the key and the hidden layer.

    Source: arXiv 2507.09966, equation 6, ``Y_r' = Y_r * sigmoid(f_conv(D1, F))``. Differs: the
    result is added to logits, since a positive factor on logits moves no decision at 0; the
    text-voxel cosine follows DenseCLIP (Rao et al., CVPR 2022, https://arxiv.org/abs/2112.01518);
    convolutions are 1x1x1 without normalisation, which would cancel text constant over space.
    """

    def __init__(self, channels: int, dim: int, *, hidden: int = 16) -> None:
        super().__init__()
        self.query = nn.Conv3d(channels + 3, hidden, 1)
        self.key = nn.Linear(dim, hidden)
        self.context = nn.Linear(2 * dim, hidden)
        self.mix = nn.Conv3d(hidden + 1, hidden, 1)
        self.score = nn.Conv3d(hidden, 1, 1)
        zero_init(self.score)

    def forward(
        self, features: Tensor, summary: Tensor, region: Tensor, window: Tensor | None = None
    ) -> Tensor:
        """Return the logits to add, (b, 1, x, y, z).

        Args:
            features: decoder features, (b, c, x, y, z).
            summary: the case's semantics, (b, d).
            region: the region's text, (b, d).
            window: (b, 2, 3) corner and size of ``features`` as shares of the brain box; None
                means that they cover it.
        """
        query = self.query(torch.cat([features, voxel_positions(features, window)], dim=1))
        key = rearrange(self.key(region), "b h -> b h 1 1 1")
        cosine = (query * key).sum(dim=1, keepdim=True) / (_norm(query) * _norm(key))
        context = rearrange(self.context(torch.cat([summary, region], dim=1)), "b h -> b h 1 1 1")
        mixed = F.leaky_relu(self.mix(torch.cat([query, cosine], dim=1)) + context, 0.01)
        added: Tensor = self.score(mixed)
        return added


def _norm(vectors: Tensor) -> Tensor:
    """Return the length of vectors along dim 1, never 0; half the cost of cosine_similarity."""
    return vectors.square().sum(dim=1, keepdim=True).add(1e-6).sqrt()


def voxel_positions(features: Tensor, window: Tensor | None = None) -> Tensor:
    """Return where each voxel centre lies in the brain box, from -1 to 1 along each axis.

    Args:
        features: (b, c, x, y, z), for its shape, type and device.
        window: (b, 2, 3) corner and size as shares of the box; negative sizes run backwards. None
            means the whole box.

    Returns:
        (b, 3, x, y, z).
    """
    if window is None:
        window = torch.tensor([[[0.0] * 3, [1.0] * 3]]).expand(features.shape[0], 2, 3)
    exact = torch.promote_types(features.dtype, torch.float32)  # bf16 merges neighbouring places
    window = window.to(features.device, exact)
    axes = []
    for axis, size in enumerate(features.shape[2:]):
        centres = (torch.arange(size, device=features.device, dtype=exact) + 0.5) / size
        place = window[:, 0, axis, None] + window[:, 1, axis, None] * centres
        shape = [features.shape[0], 1, 1, 1]
        shape[1 + axis] = size
        axes.append((2 * place - 1).view(shape).expand(-1, *features.shape[2:]))
    return torch.stack(axes, dim=1).to(features.dtype)
