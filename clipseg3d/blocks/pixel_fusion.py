"""Pixel-level fusion: normalise each sequence in its own way, then weight the sequences."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from clipseg3d.blocks.zero_init import zero_init
from clipseg3d.intensity import intensity_statistics, scale
from clipseg3d.vocabulary import REGIONS, SEQUENCES

Norm = Literal["zscore", "minmax"]


class PixelFusion(nn.Module):
    """Normalise each MRI sequence as the paper does and weight the sequences by a learned gate.

    Steps for each sequence: clip to percentiles, z-score (T1, T1ce) or min-max (T2, FLAIR), clip to
    +-``clip``, signed power (T1ce), region contrast (training only). The gate reads the mean and
    the maximum of every sequence and whether it is available. It multiplies each sequence by
    ``2 sigmoid(.)``, which starts at exactly 1. Computed in float32, also under autocast or in half
    precision. The background stays 0; a missing or constant sequence becomes 0.

    A raw volume and its z-scored copy, each with its own statistics, give the same result. A crop
    can therefore be normalised with the statistics of the whole brain.

    Args:
        sequences: names of the sequences s.
        norms: normalisation of each sequence; None takes the paper's, ``minmax`` for t2 and flair.
        gammas: exponent p of ``sign(v) |v|^p`` for each sequence, 1 for none; None takes the
            paper's, 0.9 for t1ce.
        clip: largest absolute value before the power.
        gate: whether a learned gate weights the sequences.
        differences: pairs (i, j) of sequences by name; channel i - j follows the sequences.
            Differences are computed before the power; power, region contrast and gate do not
            change them. A difference is 0 if one of its sequences is missing.
        contrast: probability, per sample, that a training step increases the contrast of every
            sequence inside TC and ET; needs ``regions`` in :meth:`forward`.
        regions: names of the regions there.

    Attributes:
        out_channels: sequences plus differences.

    Raises:
        ValueError: there is not one norm and gamma per sequence, a norm is unknown, a difference is
            not of two of the sequences, ``contrast`` is outside [0, 1], or there is neither TC nor
            ET to increase it in.

    Source: arXiv 2507.09966, pixel-level fusion: norms, clip, T1ce power 0.9, contrast x1.25 in ET
    and x1.2 in TC, listed as augmentation with p = 0.5. The contrast needs the true regions, which
    would leak into predictions, so it is an error in evaluation. Differs: the power is signed,
    since z-scores can be negative; the contrast is about the mean of the region (the paper gives no
    centre); the gate is ours; differences are those of arXiv 2507.08574 v2.

    Example:
        >>> import torch
        >>> volume = torch.rand(1, 4, 20, 24, 18)
        >>> PixelFusion(differences=(("t1ce", "t1"), ("t2", "flair")))(volume).shape
        torch.Size([1, 6, 20, 24, 18])
    """

    def __init__(
        self,
        *,
        sequences: Sequence[str] = SEQUENCES,
        norms: Sequence[Norm] | None = None,
        gammas: Sequence[float] | None = None,
        clip: float = 5.0,
        gate: bool = True,
        differences: Sequence[tuple[str, str]] = (),
        contrast: float = 0.0,
        regions: Sequence[str] = REGIONS,
    ) -> None:
        super().__init__()
        papers: list[Norm] = ["minmax" if s in ("t2", "flair") else "zscore" for s in sequences]
        norms = papers if norms is None else list(norms)
        if gammas is None:
            gammas = [0.9 if name == "t1ce" else 1.0 for name in sequences]
        count = len(sequences)
        for kind, number in (("norms", len(norms)), ("gammas", len(gammas))):
            if number != count:
                raise ValueError(
                    f"{number} {kind} for {count} sequences ({', '.join(sequences)}); give one per "
                    "sequence"
                )
        unknown = set(norms) - {"zscore", "minmax"}
        if unknown:
            raise ValueError(f"norms={tuple(norms)}: choose from 'zscore' and 'minmax'")
        for i, j in differences:
            if i == j or not {i, j} <= set(sequences):
                raise ValueError(
                    f"difference ({i}, {j}): give two different sequences of {', '.join(sequences)}"
                )
        if not 0 <= contrast <= 1:
            raise ValueError(f"contrast={contrast} is not a probability; give a value in [0, 1]")
        if contrast and not {"TC", "ET"} & set(regions):
            raise ValueError(
                f"contrast={contrast} is increased in TC and ET, but the regions are "
                f"{', '.join(regions)}; set it to 0"
            )
        self.clip = clip
        self.contrast = contrast
        self.regions = list(regions)
        self.minuends = [list(sequences).index(i) for i, _ in differences]
        self.subtrahends = [list(sequences).index(j) for _, j in differences]
        self.out_channels = count + len(differences)
        self.is_zscore: Tensor
        self.gammas: Tensor
        self.register_buffer(
            "is_zscore", torch.tensor([norm == "zscore" for norm in norms]), persistent=False
        )
        self.register_buffer("gammas", torch.tensor(gammas), persistent=False)
        self.gate = nn.Linear(3 * count, count) if gate else None
        if self.gate is not None:
            zero_init(self.gate)

    def forward(
        self,
        image: Tensor,
        statistics: Tensor | None = None,
        *,
        regions: Tensor | None = None,
        available: Tensor | None = None,
    ) -> Tensor:
        """Return the fused sequences, followed by the differences.

        Args:
            image: (b, s, x, y, z), background 0; a missing sequence is 0 everywhere.
            statistics: (b, s, 4) low, high, mean and SD of the whole brain, in the units of
                ``image``; None computes them from ``image``, which then must hold the whole brain.
            regions: (b, r, x, y, z) true regions in {0, 1}, for region contrast; training only,
                and ignored if ``contrast`` is 0.
            available: (b, s) bool, False for sequences to treat as missing, whatever their values
                are; None means that all are available. A sequence whose SD in ``statistics`` is 0
                is always missing.

        Returns:
            (b, out_channels, x, y, z) in the type of the weights, whatever that of ``image``:
            float32, or half precision after ``.half()`` or ``.bfloat16()``.

        Raises:
            ValueError: ``image`` has another number of sequences; ``regions`` in evaluation.
        """
        if image.shape[1] != len(self.gammas):
            raise ValueError(
                f"the image has {image.shape[1]} sequences, expected {len(self.gammas)}; "
                "give zeros for missing ones"
            )
        if regions is not None and not self.training:
            raise ValueError(
                "regions in evaluation: the true mask would leak into the prediction; "
                "pass no regions, or call .train() if this is training"
            )
        with torch.autocast(image.device.type, enabled=False):
            image = image.float()
            if statistics is None:
                statistics = intensity_statistics(image)
            low, high, mean, std = rearrange(statistics.float(), "b s k -> k b s 1 1 1")
            present = std > 0
            if available is not None:
                present = present & rearrange(available, "b s -> b s 1 1 1")
            signal = (image != 0) & present
            zscored = rearrange(self.is_zscore, "s -> s 1 1 1")
            offset, size = torch.where(zscored, mean, low), torch.where(zscored, std, high - low)
            normal = scale(image.clamp(low, high), offset, size).clamp(-self.clip, self.clip)
            normal = torch.where(signal, normal, 0)
            gammas = rearrange(self.gammas.float(), "s -> s 1 1 1")
            fused = normal.sign() * normal.abs().pow(gammas)
            if regions is not None and self.contrast > 0:
                fused = self._increase_contrast(fused, signal, regions)
            if self.gate is not None:
                count = reduce(signal.float(), "b s x y z -> b s", "sum").clamp(min=1)
                average = reduce(fused, "b s x y z -> b s", "sum") / count
                maximum = reduce(fused, "b s x y z -> b s", "max")
                is_present = rearrange(present.float(), "b s 1 1 1 -> b s")
                gate_input = torch.cat([average, maximum, is_present], dim=1)
                score = F.linear(gate_input, self.gate.weight.float(), self.gate.bias.float())
                fused = fused * rearrange(2 * torch.sigmoid(score), "b s -> b s 1 1 1")
            if self.minuends:
                difference = normal[:, self.minuends] - normal[:, self.subtrahends]
                both = present[:, self.minuends] & present[:, self.subtrahends]
                fused = torch.cat([fused, difference * both], dim=1)
            return fused.to(self.gammas.dtype)

    def _increase_contrast(self, fused: Tensor, signal: Tensor, regions: Tensor) -> Tensor:
        """Scale ET by 1.25 and the rest of TC by 1.2 about their means, in random samples."""
        chosen = torch.rand(len(fused), device=fused.device) < self.contrast
        masks = dict(
            zip(self.regions, rearrange(regions.bool(), "b r ... -> r b 1 ..."), strict=True)
        )
        nothing = torch.zeros_like(signal[:, :1])
        enhancing = masks.get("ET", nothing)
        for region, factor in ((enhancing, 1.25), (masks.get("TC", nothing) & ~enhancing, 1.2)):
            part = region & signal & rearrange(chosen, "b -> b 1 1 1 1")
            count = reduce(part.float(), "b s x y z -> b s 1 1 1", "sum").clamp(min=1)
            centre = reduce(fused * part, "b s x y z -> b s 1 1 1", "sum") / count
            fused = torch.where(part, centre + factor * (fused - centre), fused)
        return fused
