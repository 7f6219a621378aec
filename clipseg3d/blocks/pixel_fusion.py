"""Pixel-level fusion: each sequence normalised and contrasted in its own way, then weighed."""

from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from clipseg3d.blocks.zero_init import zero_init
from clipseg3d.volume import intensity_statistics, scale

Norm = Literal["zscore", "minmax"]


class PixelFusion(nn.Module):
    """Normalise each MRI sequence as the paper does and weigh the sequences by a learned gate.

    Per sequence: clip to percentiles, z-score (T1, T1ce) or min-max (T2, FLAIR), clip to
    +-``clip``, signed power (T1ce). The gate reads the mean and the maximum of every sequence and
    multiplies each sequence by ``2 sigmoid(.)``; it starts at exactly 1. Computed in float32, also
    under autocast. The background stays 0.

    A z-scored volume with its own statistics gives the same as the raw volume it came from, so a
    crop can be normalised as the whole brain is.

    Args:
        norms: normalisation of each sequence; their number is the number of sequences s.
        gammas: exponent p of ``sign(v) |v|^p`` for each sequence, 1 for none.
        clip: largest absolute value before the power.

    Raises:
        ValueError: ``norms`` and ``gammas`` differ in length, or a norm is unknown.

    Source: arXiv 2507.09966, pixel-level fusion (norms, clip, T1ce power 0.9). Differs: the power
    is signed, since z-scores are negative; the gate is ours; its region contrast needs a mask and
    is left out here.
    """

    def __init__(
        self,
        *,
        norms: Sequence[Norm] = ("zscore", "zscore", "minmax", "minmax"),
        gammas: Sequence[float] = (1.0, 0.9, 1.0, 1.0),
        clip: float = 5.0,
    ) -> None:
        super().__init__()
        if len(norms) != len(gammas):
            raise ValueError(f"{len(norms)} norms but {len(gammas)} gammas; give one per sequence")
        unknown = set(norms) - {"zscore", "minmax"}
        if unknown:
            raise ValueError(f"norms={tuple(norms)}: choose from 'zscore' and 'minmax'")
        self.clip = clip
        self.is_zscore: Tensor
        self.gammas: Tensor
        self.register_buffer(
            "is_zscore", torch.tensor([norm == "zscore" for norm in norms]), persistent=False
        )
        self.register_buffer("gammas", torch.tensor(gammas), persistent=False)
        self.gate = nn.Linear(2 * len(norms), len(norms))
        zero_init(self.gate)

    def forward(self, image: Tensor, statistics: Tensor | None = None) -> Tensor:
        """Return the fused sequences.

        Args:
            image: (b, s, x, y, z), background 0; a missing sequence is 0 everywhere.
            statistics: (b, s, 4) low, high, mean and SD of the whole brain, in the units of
                ``image``; None takes them from ``image``, which then must hold the whole brain.

        Returns:
            (b, s, x, y, z) float32.

        Raises:
            RuntimeError: ``image`` has another number of sequences.
        """
        with torch.autocast(image.device.type, enabled=False):
            image = image.float()
            if statistics is None:
                statistics = intensity_statistics(image)
            low, high, mean, std = rearrange(statistics.float(), "b s k -> k b s 1 1 1")
            signal = image != 0
            clipped = image.clamp(low, high)
            fused = torch.where(
                rearrange(self.is_zscore, "s -> s 1 1 1"),
                scale(clipped, mean, std),
                scale(clipped, low, high - low),
            )
            fused = fused.clamp(-self.clip, self.clip)
            gammas = rearrange(self.gammas, "s -> s 1 1 1")
            fused = fused.sign() * fused.abs().pow(gammas) * signal
            count = reduce(signal.float(), "b s x y z -> b s", "sum").clamp(min=1)
            average = reduce(fused, "b s x y z -> b s", "sum") / count
            peak = reduce(fused, "b s x y z -> b s", "max")
            weight = 2 * torch.sigmoid(self.gate(torch.cat([average, peak], dim=1)))
            return fused * rearrange(weight, "b s -> b s 1 1 1")
