"""Semantic attention: semantics steer the prediction of one region, voxel by voxel."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from clipseg3d.blocks.pointwise_conv import PointwiseConv3d
from clipseg3d.blocks.positions import voxel_positions
from clipseg3d.blocks.zero_init import zero_init

AttentionMode = Literal["residual", "gain", "paper"]
TEMPERATURE = 0.07
"""Cosines are divided by this before they are mixed with anything else."""
_PAPER_BIAS = 4.0  # sigmoid(4) = 0.98: a new gate hardly lowers a probability


class SemanticAttention(nn.Module):
    """Score every voxel for one region, from its features and the semantics of the case.

    Two hints say whether the text means a voxel: the cosine of its features with the text, and the
    products of text and the voxel's position in the brain, channel by channel ("left" is a matter
    of position). A small voxel-wise network mixes them with features and text. Its last layer, which
    also reads the hints directly, starts at zero: the scores of a new block are 0.
    :func:`apply_scores` changes logits by the scores.

    Args:
        channels: feature channels c.
        dim: semantic channels d.
        hidden: channels of the query, the key and the hidden layer.

    Source: ``f_conv(D1, F)`` of arXiv 2507.09966, equation 6; the text-voxel cosine follows
    DenseCLIP (Rao et al., CVPR 2022, https://arxiv.org/abs/2112.01518). Differs: convolutions are
    1x1x1 without normalisation, which would cancel text that is constant over space.

    Example:
        >>> attention = SemanticAttention(16, 64)
        >>> summary, text = torch.rand(1, 64), torch.rand(1, 64)
        >>> scores, cosines = attention(torch.rand(1, 16, 8, 8, 8), summary, text)
        >>> cosines.shape, bool(scores.any())  # 0 until it is trained
        (torch.Size([1, 1, 8, 8, 8]), False)
    """

    def __init__(self, channels: int, dim: int, *, hidden: int = 16) -> None:
        super().__init__()
        self.query = PointwiseConv3d(channels, hidden)
        self.key = nn.Linear(dim, hidden)
        self.position = nn.Sequential(
            PointwiseConv3d(3, hidden), nn.LeakyReLU(0.01), PointwiseConv3d(hidden, hidden)
        )
        self.position_key = nn.Linear(dim, hidden)
        self.context = nn.Linear(2 * dim, hidden)
        self.mix = PointwiseConv3d(2 * hidden + 1, hidden)
        self.score = nn.Linear(2 * hidden + 1, 1)
        zero_init(self.score)

    def forward(
        self, features: Tensor, summary: Tensor, region: Tensor, crop_box: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return scores and text-voxel cosines, both (b, 1, x, y, z).

        Args:
            features: decoder features, (b, c, x, y, z).
            summary: the case's semantics, (b, d).
            region: the region's text, (b, d).
            crop_box: (b, 2, 3) corner and size of ``features`` as shares of the brain box; None
                means that they cover it.
        """
        key = rearrange(self.key(region), "b h -> b h 1 1 1")
        query = self.query(features)
        cosine = (query * key).sum(dim=1, keepdim=True) / (_norm(query) * _norm(key))
        position_key = rearrange(self.position_key(region), "b h -> b h 1 1 1")
        position = self.position(voxel_positions(features, crop_box)) * position_key
        context = self.context(torch.cat([summary, region], dim=1))
        hints = torch.cat([cosine / TEMPERATURE, position], dim=1)
        mixed = self.mix(torch.cat([query, hints], dim=1)) + rearrange(context, "b h -> b h 1 1 1")
        hidden = torch.cat([F.leaky_relu(mixed, 0.01), hints], dim=1)
        # A product instead of a convolution: PyTorch's CPU kernels are slow for one output channel.
        score = torch.einsum("b h x y z, o h -> b o x y z", hidden, self.score.weight)
        return score + self.score.bias, cosine


def _norm(vectors: Tensor) -> Tensor:
    """Return the length of vectors along dim 1, never 0; half the cost of cosine_similarity."""
    return vectors.square().sum(dim=1, keepdim=True).add(1e-6).sqrt()


def apply_scores(
    head: Callable[[Tensor], Tensor],
    features: Tensor,
    scores: Tensor,
    weight: Tensor,
    *,
    guided: Sequence[int],
    mode: AttentionMode = "residual",
) -> Tensor:
    """Return the logits of a head, changed by the scores of semantic attention.

    - ``residual``: ``logits + a``.
    - ``gain``: the head sees ``features * 2 sigmoid(a)``, for each region on its own.
    - ``paper``: probabilities ``p * sigmoid(a + 4)``, returned as logits (equation 6). This can
      only take voxels away, and does so a little from the start (sigmoid(4) = 0.98).

    A positive factor on logits, the other reading of equation 6, moves no decision at 0 and is
    not offered.

    Args:
        head: features -> logits (b, r, x, y, z), on the features' grid or a finer one.
        features: (b, c, x, y, z).
        scores: a, (b, n, x, y, z) on the features' grid or a coarser one, a channel per guided
            region.
        weight: (b,) of the scores, from 0 (they change nothing, to the last bit) to 1.
        guided: channels of the logits that the scores are for.
        mode: as above.

    Returns:
        Logits (b, r, x, y, z).

    Raises:
        ValueError: unknown ``mode``.
    """
    if mode not in get_args(AttentionMode):
        raise ValueError(f"mode={mode!r}: choose from {', '.join(get_args(AttentionMode))}")
    weight = rearrange(weight.to(scores.dtype), "b -> b 1 1 1")
    logits = head(features)
    regions = list(logits.unbind(1))
    like = features if mode == "gain" else logits
    if scores.shape[2:] != like.shape[2:]:
        scores = F.interpolate(scores, size=like.shape[2:], mode="trilinear")
    for score, region in zip(scores.unbind(1), guided, strict=True):
        if mode == "gain":
            gain = rearrange(2 * torch.sigmoid(weight * score), "b x y z -> b 1 x y z")
            regions[region] = head(features * gain)[:, region]
        elif mode == "residual":
            regions[region] = regions[region] + weight * score
        else:
            lowered = _product(regions[region].float(), score.float() + _PAPER_BIAS, weight)
            regions[region] = torch.where(weight > 0, lowered.to(logits.dtype), regions[region])
    return torch.stack(regions, dim=1)


def _product(logits: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
    """Return the logits of ``sigmoid(logits) * (1 - weight + weight * sigmoid(gate))``."""
    passed = torch.logaddexp(torch.log1p(-weight), weight.log() + F.logsigmoid(gate))
    stopped = weight.log() + F.logsigmoid(-gate)
    on = F.logsigmoid(logits)
    return on + passed - torch.logaddexp(F.logsigmoid(-logits), on + stopped)
