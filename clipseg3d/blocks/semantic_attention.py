"""Semantic attention: semantics change the logits of one region, voxel by voxel."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from clipseg3d.blocks.pointwise_conv import PointwiseConv3d
from clipseg3d.blocks.positions import voxel_positions
from clipseg3d.blocks.zero_init import zero_init

AttentionMode = Literal["residual", "gain", "damped", "paper"]
TEMPERATURE = 0.07
"""Cosines are divided by this before they enter the network."""
_DAMPED_BIAS = 4.0  # sigmoid(4) = 0.98: a new gate lowers probabilities by 2 % only


class SemanticAttention(nn.Module):
    """Score every voxel for one region, from its features and the semantics of the case.

    Two cues relate the text to a voxel. One is the cosine between its features and the text. The
    other is the product, per channel, of the text and the voxel's position in the brain, since
    words like "left" name positions. A small voxel-wise network reads both cues, the features and
    the text. Its last layer also reads the cues directly. That layer starts at zero, so the scores
    of a new block are 0. :func:`apply_scores` changes logits by the scores.

    Args:
        channels: feature channels c.
        dim: semantic channels d.
        hidden: channels of the query, the key and the hidden layer.

    Source: in the place of ``f_conv(D1, F)`` of arXiv 2507.09966, equation 6, which
    :class:`~clipseg3d.blocks.gate_convolution.GateConvolution` is; the text-voxel cosine follows
    DenseCLIP (Rao et al., CVPR 2022, https://arxiv.org/abs/2112.01518). Differs: convolutions are
    1x1x1 and have no normalisation, which would remove the text since it is constant over space.

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
            crop_box: (b, 2, 3) or (b, 4, 3) position of ``features`` in the brain box; None for
                all of it.
        """
        key = rearrange(self.key(region), "b h -> b h 1 1 1")
        query = self.query(features)
        cosine = (query * key).sum(dim=1, keepdim=True) / (_norm(query) * _norm(key))
        position_key = rearrange(self.position_key(region), "b h -> b h 1 1 1")
        position = self.position(voxel_positions(features, crop_box)) * position_key
        context = self.context(torch.cat([summary, region], dim=1))
        cues = torch.cat([cosine / TEMPERATURE, position], dim=1)
        mixed = self.mix(torch.cat([query, cues], dim=1)) + rearrange(context, "b h -> b h 1 1 1")
        hidden = torch.cat([F.leaky_relu(mixed, 0.01), cues], dim=1)
        # A convolution with one output channel would be slower in PyTorch on CPUs.
        score = torch.einsum("b h x y z, o h -> b o x y z", hidden, self.score.weight)
        return score + self.score.bias, cosine


def _norm(vectors: Tensor) -> Tensor:
    """Return the length of vectors along dim 1, never 0; cosine_similarity takes twice as long."""
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

    The scores are called a here.

    - ``residual``: ``logits + a``.
    - ``gain``: the head gets ``features * 2 sigmoid(a)``, separately for each region.
    - ``paper``: probabilities ``p * sigmoid(a)``, returned as logits (equation 6). This can only
      remove voxels, and scores of 0 halve all probabilities.
    - ``damped``: probabilities ``p * sigmoid(a + 4)``: scores of 0 lower them a little
      (sigmoid(4) = 0.98).

    Equation 6 can also be read as a positive factor on logits. That never changes the sign of a
    logit and is not offered.

    Args:
        head: features -> logits (b, r, x, y, z), on the grid of the features or a finer one.
        features: (b, c, x, y, z).
        scores: (b, n, x, y, z) on the grid of the features or a coarser one; one channel per guided
            region.
        weight: (b,) weight of the scores, from 0 (logits do not change by a bit) to 1.
        guided: index of each guided region among the r regions.
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
    target = features if mode == "gain" else logits
    if scores.shape[2:] != target.shape[2:]:
        scores = F.interpolate(scores, size=target.shape[2:], mode="trilinear")
    for score, index in zip(scores.unbind(1), guided, strict=True):
        if mode == "gain":
            gain = rearrange(2 * torch.sigmoid(weight * score), "b x y z -> b 1 x y z")
            regions[index] = head(features * gain)[:, index]
        elif mode == "residual":
            regions[index] = regions[index] + weight * score
        else:
            gate = score.float() + (_DAMPED_BIAS if mode == "damped" else 0)
            lowered = _multiply(regions[index].float(), gate, weight)
            regions[index] = torch.where(weight > 0, lowered.to(logits.dtype), regions[index])
    return torch.stack(regions, dim=1)


def _multiply(logits: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
    """Return the logits of ``p f`` with ``p = sigmoid(logits)``, f = 1 - w + w sigmoid(gate)."""
    log_factor = torch.logaddexp(torch.log1p(-weight), weight.log() + F.logsigmoid(gate))
    log_one_minus_factor = weight.log() + F.logsigmoid(-gate)
    log_p, log_one_minus_p = F.logsigmoid(logits), F.logsigmoid(-logits)
    # 1 - p f = (1 - p) + p (1 - f)
    return log_p + log_factor - torch.logaddexp(log_one_minus_p, log_p + log_one_minus_factor)
