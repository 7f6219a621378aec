"""Semantic-level fusion as one part: bridge, guidance, gate and attention for any decoder."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, get_args

import torch
import torch.nn.functional as F
from einops import parse_shape, rearrange, repeat
from torch import Tensor, nn

from clipseg3d.blocks.attention import (
    AttentionMode,
    SemanticAttention,
    SemanticGate,
    steer_logits,
)
from clipseg3d.blocks.bridge import SemanticBridge, ViewTokens, lift_patches
from clipseg3d.blocks.centre import RunningCentre
from clipseg3d.blocks.guidance import CrossModalGuidance
from clipseg3d.blocks.sequential_attention import SequentialCrossAttention
from clipseg3d.blocks.whitening import RunningWhitening
from clipseg3d.blocks.zero_init import zero_init
from clipseg3d.volume import Views


class Semantics(NamedTuple):
    """What is known of one batch beyond its voxels; computed once per case."""

    tokens: Tensor
    """(b, n, d): semantic tokens."""
    mask: Tensor
    """(b, n) bool: True for tokens that mean something."""
    summary: Tensor
    """(b, d): mean of the tokens that mean something."""
    regions: Tensor
    """(b, r, d): text of each region, its prompt plus the report; zeros without text."""
    patches: Tensor | None
    """(b, v, g, g, d): semantics of the views' patches; None unless dense."""
    planes: Tensor | None
    """(b, v, 3): where the views lie."""
    weight: Tensor
    """(b,): how far semantics count; 0 where a case has neither views nor text, and nothing may
    change, else 1. A training schedule may scale it."""


class RegionMaps(NamedTuple):
    """What semantic attention says of each guided region; for logits, losses and reports."""

    scores: Tensor
    """(b, n, x, y, z)."""
    cosines: Tensor
    """(b, n, x, y, z): between voxels and text, from -1 to 1."""


class SemanticFusion(nn.Module):
    """Join the three semantic mechanisms to an encoder-decoder.

    Call :meth:`encode` once per case, :meth:`guide` at the bottleneck and :meth:`attend` at a
    decoder level. New weights change nothing (but see mode ``paper``), and cases without views
    and text are never changed.

    Args:
        bridge: views -> embeddings.
        guidance: embeddings -> semantic tokens; its kind ``sequential`` replaces the bottleneck's
            gate by sequential cross-attention.
        bottleneck_channels: channels that :meth:`guide` takes.
        decoder_channels: channels that :meth:`attend` takes.
        regions: names of the output channels, in order; the first text tokens are their prompts.
        guided: regions whose logits semantics may change; none builds no semantic attention.
        mode: how; see :func:`clipseg3d.blocks.attention.steer_logits`.
        attention_stride: semantic attention sees the decoder's features averaged over cubes of
            this edge; what text says is coarser than voxels, and full resolution costs a fifth of
            a training step.
        conditional: also gate the decoder features by the summary before the head. After a norm,
            this is conditional instance normalisation.

    Raises:
        ValueError: a guided region is not among ``regions``; unknown ``mode``.

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
        mode: AttentionMode = "residual",
        attention_stride: int = 1,
        conditional: bool = False,
    ) -> None:
        super().__init__()
        unknown = [region for region in guided if region not in regions]
        if unknown:
            raise ValueError(f"guided={tuple(guided)}: {unknown} not in regions={tuple(regions)}")
        if mode not in get_args(AttentionMode):
            raise ValueError(f"mode={mode!r}: choose from {', '.join(get_args(AttentionMode))}")
        dim = guidance.dim
        self.bridge = bridge
        self.guidance = guidance
        self.regions = tuple(regions)
        self.guided = tuple(guided)
        self.mode: AttentionMode = mode
        self.attention_stride = attention_stride
        self.gate: SemanticGate | None = None
        self.sequential: SequentialCrossAttention | None = None
        if guidance.kind == "sequential":
            self.sequential = SequentialCrossAttention(
                bottleneck_channels, dim, num_heads=guidance.num_heads, dropout=guidance.dropout
            )
        else:
            self.gate = SemanticGate(bottleneck_channels, dim)
        self.from_patches: nn.Conv3d | None = None
        if bridge.dense:
            self.from_patches = nn.Conv3d(dim, bottleneck_channels, 1)
            zero_init(self.from_patches)
        # What views, patches, prompts and reports have in common, each kind for itself, tells
        # nothing of a case. Reports also vary in much that is not what a voxel is to be told.
        self.centre_views = RunningCentre(guidance.embed_dim)
        self.centre_patches = RunningCentre(guidance.embed_dim) if bridge.dense else None
        self.centre_prompts: RunningCentre | None = None
        self.whiten_reports: RunningWhitening | None = None
        if guidance.text_dim:
            self.centre_prompts = RunningCentre(guidance.text_dim)
            self.whiten_reports = RunningWhitening(guidance.text_dim)
        self.condition = SemanticGate(decoder_channels, dim) if conditional else None
        self.attention = nn.ModuleDict(
            {region: SemanticAttention(decoder_channels, dim) for region in guided}
        )

    def encode(
        self, views: Views | None, text: Tensor | None, text_mask: Tensor | None = None
    ) -> Semantics:
        """Turn views and text (b, n, e) into semantics.

        Args:
            views: slices of the whole volume (:func:`clipseg3d.volume.cut_views`), or None.
            text: embeddings, one prompt per region first, or None.
            text_mask: (b, n) bool, True for real tokens; None keeps all.

        Raises:
            ValueError: neither is given, batch sizes differ, there are fewer text tokens than
                regions, or an embedding is not finite.
        """
        seen = None if views is None else self.bridge.embed(views)
        self._check(seen, text)
        count = len(self.regions)
        valid = None if seen is None else seen.valid
        if text is not None:
            if text_mask is None:
                text_mask = text.new_ones(text.shape[:2], dtype=torch.bool)
            text = self._centre_text(text, text_mask)
        tokens, patches = None, None
        if seen is not None:
            views_mask = repeat(seen.valid, "b -> b n", n=seen.tokens.shape[1])
            tokens = self.centre_views(seen.tokens, views_mask)
        speaking = None if text_mask is None else self._speaking(text_mask)
        guided, mask = self.guidance(tokens, text, views_valid=valid, text_mask=speaking)
        shares = rearrange(mask.to(guided.dtype), "b n -> b n 1")
        summary = (guided * shares).sum(dim=1) / shares.sum(dim=1).clamp(min=1)
        if seen is not None and seen.patches is not None and self.centre_patches is not None:
            flat = rearrange(seen.patches, "b v g h e -> b (v g h) e")
            flat = self.centre_patches(flat, repeat(seen.valid, "b -> b n", n=flat.shape[1]))
            content = self.guidance.blend(flat, text, views_valid=valid, text_mask=speaking)
            axes = parse_shape(seen.patches, "_ v g h _")
            patches = rearrange(self.guidance.norm(content), "b (v g h) d -> b v g h d", **axes)
        present = mask.any(dim=1)
        regions = summary.new_zeros(len(summary), count, self.guidance.dim)
        if text is not None and text_mask is not None and self.guidance.map_text and self.guided:
            known = rearrange(text_mask.to(text.dtype), "b n -> b n 1")
            mapped = self.guidance.map_text(text) * known
            windows = known[:, count:].sum(dim=1, keepdim=True).clamp(min=1)
            regions = mapped[:, :count] + mapped[:, count:].sum(dim=1, keepdim=True) / windows
            present = present | text_mask.any(dim=1)
        return Semantics(
            guided,
            mask,
            summary,
            regions,
            patches,
            None if seen is None else seen.planes,
            present.to(summary.dtype),
        )

    def _check(self, seen: ViewTokens | None, text: Tensor | None) -> None:
        """Raise a ValueError for text of another shape and for embeddings that are not finite."""
        count = len(self.regions)
        if text is not None and text.ndim != 3:
            raise ValueError(f"text is {tuple(text.shape)}, expected three axes (b, n, e)")
        if text is not None and text.shape[1] < count:
            raise ValueError(
                f"{text.shape[1]} text tokens for {count} regions; give one prompt per region "
                f"first ({', '.join(self.regions)})"
            )
        if text is not None and self.centre_prompts is None:
            raise ValueError("text is given to guidance built with text_dim=0; give None")
        if torch.compiler.is_compiling():
            return  # a look at values would break the graph
        for name, given in (("view", None if seen is None else seen.tokens), ("text", text)):
            if given is not None and not bool(given.isfinite().all()):
                raise ValueError(f"a {name} embedding holds NaN or infinity; check its encoder")

    def _centre_text(self, text: Tensor, mask: Tensor) -> Tensor:
        """Return prompts centred among their like, and reports whitened among theirs."""
        count = len(self.regions)
        parts = ((self.centre_prompts, slice(count)), (self.whiten_reports, slice(count, None)))
        return torch.cat([c(text[:, p], mask[:, p]) for c, p in parts if c is not None], dim=1)

    def _speaking(self, text_mask: Tensor) -> Tensor:
        """Return which text tokens guide the views: a case's report where it has one.

        Prompts, which say the same of every case, stand in where there is no report; sequential
        attention weighs all tokens itself.
        """
        if self.guidance.kind == "sequential":
            return text_mask
        count = len(self.regions)
        prompts, report = text_mask[:, :count], text_mask[:, count:]
        return torch.cat([prompts & ~report.any(dim=1, keepdim=True), report], dim=1)

    def guide(
        self, bottleneck: Tensor, semantics: Semantics, window: Tensor | None = None
    ) -> Tensor:
        """Return the bottleneck (b, c, x, y, z) changed by semantics.

        Args:
            bottleneck: features of the deepest level.
            semantics: from :meth:`encode`.
            window: (b, 2, 3) where ``bottleneck`` lies in the brain box; None covers it.
        """
        if self.sequential is not None:
            guided = self.sequential(bottleneck, semantics.tokens, semantics.mask, window)
        elif self.gate is not None:
            guided = self.gate(bottleneck, semantics.summary)
        patches, planes = semantics.patches, semantics.planes
        if self.from_patches is not None and patches is not None and planes is not None:
            lifted = lift_patches(patches, planes, bottleneck, window)
            guided = guided + self.from_patches(lifted)
        return _blend(bottleneck, guided, semantics.weight)

    def attend(
        self,
        features: Tensor,
        semantics: Semantics,
        head: Callable[[Tensor], Tensor],
        window: Tensor | None = None,
    ) -> Tensor:
        """Return the logits of a head, steered by semantics, (b, r, x, y, z).

        Args:
            features: decoder features (b, c, x, y, z), the head's input.
            semantics: from :meth:`encode`.
            head: features -> logits (b, r, x, y, z), such as the decoder's last convolution.
            window: (b, 2, 3) where ``features`` lie in the brain box; None covers it.
        """
        logits, _ = self.attend_with_maps(features, semantics, head, window)
        return logits

    def attend_with_maps(
        self,
        features: Tensor,
        semantics: Semantics,
        head: Callable[[Tensor], Tensor],
        window: Tensor | None = None,
    ) -> tuple[Tensor, RegionMaps | None]:
        """Do what :meth:`attend` does and return the maps too; None if no region is guided."""
        if self.condition is not None:
            conditioned = self.condition(features, semantics.summary)
            features = _blend(features, conditioned, semantics.weight)
        if not self.guided:
            return head(features), None
        coarse = features
        if self.attention_stride > 1:  # once for all regions: its backward pass is what costs
            coarse = F.avg_pool3d(
                features, self.attention_stride, ceil_mode=True, count_include_pad=False
            )
        scores, cosines = zip(
            *(
                self.attention[region](coarse, semantics.summary, text, window)
                for region, text in zip(self.regions, semantics.regions.unbind(1), strict=True)
                if region in self.guided
            ),
            strict=True,
        )
        maps = RegionMaps(torch.cat(scores, dim=1), torch.cat(cosines, dim=1))
        guided = [index for index, region in enumerate(self.regions) if region in self.guided]
        logits = steer_logits(
            head, features, maps.scores, semantics.weight, guided=guided, mode=self.mode
        )
        return logits, maps


def _blend(plain: Tensor, changed: Tensor, weight: Tensor) -> Tensor:
    """Go from plain (weight 0, exactly) to changed features (weight 1, exactly)."""
    weight = rearrange(weight.to(plain.dtype), "b -> b 1 1 1 1")
    return torch.where(weight > 0, torch.lerp(plain, changed.to(plain.dtype), weight), plain)
