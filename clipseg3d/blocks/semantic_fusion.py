"""Semantic-level fusion as one part: bridge, guidance, gate and attention for any decoder."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from clipseg3d.blocks.attention import SemanticAttention, SemanticGate
from clipseg3d.blocks.bridge import SemanticBridge
from clipseg3d.blocks.guidance import CrossModalGuidance


class Semantics(NamedTuple):
    """What is known of one batch beyond its voxels; computed once per case."""

    summary: Tensor
    """(b, d): mean of the semantic tokens."""
    regions: Tensor
    """(b, r, d): text of each region; zeros without text."""
    present: Tensor
    """(b,) bool: False where a case has neither views nor text and nothing may change."""


class SemanticFusion(nn.Module):
    """Join the three semantic mechanisms to an encoder-decoder.

    Call :meth:`encode` once per case, :meth:`guide` at the bottleneck and :meth:`attend` at a
    decoder level. New weights change nothing, and cases without views and text are never changed.

    Args:
        bridge: views -> embeddings.
        guidance: embeddings -> semantic tokens.
        bottleneck_channels: channels that :meth:`guide` takes.
        decoder_channels: channels that :meth:`attend` takes.
        regions: names of the output channels, in order; the first text tokens are their prompts.
        guided: regions whose logits semantics may change.

    Raises:
        ValueError: a guided region is not among ``regions``.

    Source: arXiv 2507.09966, semantic-level fusion; ET and TC are guided there.
    """

    def __init__(
        self,
        bridge: SemanticBridge,
        guidance: CrossModalGuidance,
        *,
        bottleneck_channels: int,
        decoder_channels: int,
        regions: Sequence[str] = ("WT", "TC", "ET"),
        guided: Sequence[str] = ("TC", "ET"),
    ) -> None:
        super().__init__()
        unknown = [region for region in guided if region not in regions]
        if unknown:
            raise ValueError(f"guided={tuple(guided)}: {unknown} not in regions={tuple(regions)}")
        self.bridge = bridge
        self.guidance = guidance
        self.regions = tuple(regions)
        self.gate = SemanticGate(bottleneck_channels, guidance.dim)
        self.attention = nn.ModuleDict(
            {region: SemanticAttention(decoder_channels, guidance.dim) for region in guided}
        )

    def encode(
        self, views: Tensor | None, text: Tensor | None, text_mask: Tensor | None = None
    ) -> Semantics:
        """Turn views (b, v, h, w, 3) uint8 and text (b, n, e) into semantics.

        Args:
            views: slices of the whole volume, or None.
            text: embeddings, one prompt per region first, or None.
            text_mask: (b, n) bool, True for real tokens; None keeps all.

        Raises:
            ValueError: neither is given, batch sizes differ, or there are fewer text tokens than
                regions.
        """
        tokens, valid = (None, None) if views is None else self.bridge.embed(views)
        summary = self.guidance(tokens, text, views_valid=valid, text_mask=text_mask).mean(dim=1)
        count = len(self.regions)
        present = valid if valid is not None else summary.new_zeros(len(summary), dtype=torch.bool)
        if text is None:
            regions = summary.new_zeros(len(summary), count, self.guidance.dim)
        else:
            if text.shape[1] < count:
                raise ValueError(
                    f"{text.shape[1]} text tokens for {count} regions; give one prompt per region "
                    f"first ({', '.join(self.regions)})"
                )
            if text_mask is None:
                text_mask = text.new_ones(text.shape[:2], dtype=torch.bool)
            known = rearrange(text_mask[:, :count], "b r -> b r 1")
            regions = self.guidance.map_text(text[:, :count]) * known
            present = present | text_mask.any(dim=1)
        return Semantics(summary, regions, present)

    def guide(self, bottleneck: Tensor, semantics: Semantics) -> Tensor:
        """Return the bottleneck (b, c, x, y, z) gated by semantics."""
        present = rearrange(semantics.present, "b -> b 1 1 1 1")
        return torch.where(present, self.gate(bottleneck, semantics.summary), bottleneck)

    def attend(
        self, features: Tensor, semantics: Semantics, window: Tensor | None = None
    ) -> Tensor:
        """Return what to add to the logits, (b, r, x, y, z); 0 for regions that are not guided.

        Args:
            features: decoder features (b, c, x, y, z).
            semantics: from :meth:`encode`.
            window: (b, 2, 3) where ``features`` lie in the brain box; None covers it.
        """
        present = rearrange(semantics.present, "b -> b 1 1 1 1")
        added = []
        for index, region in enumerate(self.regions):
            if region in self.attention:
                logits = self.attention[region](
                    features, semantics.summary, semantics.regions[:, index], window
                )
                added.append(logits * present)
            else:
                added.append(torch.zeros_like(features[:, :1]))
        return torch.cat(added, dim=1)
