"""Semantic-level fusion in one module: bridge, guidance and attention for any decoder."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from einops import parse_shape, rearrange, repeat
from torch import Tensor, nn

from clipseg3d.blocks.embedding_norm import RunningCentering, RunningWhitening
from clipseg3d.blocks.gate_convolution import GateConvolution
from clipseg3d.blocks.guidance import Guidance
from clipseg3d.blocks.patch_lifting import lift_patches
from clipseg3d.blocks.region_presence import Presence, RegionPresence
from clipseg3d.blocks.semantic_attention import AttentionMode, SemanticAttention, apply_scores
from clipseg3d.blocks.semantic_bridge import SemanticBridge, ViewTokens
from clipseg3d.blocks.semantic_gate import SemanticGate
from clipseg3d.blocks.sentence_attention import SentenceAttention
from clipseg3d.blocks.zero_init import zero_init
from clipseg3d.ranges import require_trust
from clipseg3d.views import Views
from clipseg3d.vocabulary import REGIONS

GuidingText = Literal["report", "all"]


class Semantics(NamedTuple):
    """Semantics of a batch of cases, from :meth:`SemanticFusion.encode`; computed once per case."""

    tokens: Tensor
    """(b, n, d): semantic tokens."""
    token_mask: Tensor
    """(b, n) bool: True for valid tokens."""
    summary: Tensor
    """(b, d): mean of the valid tokens."""
    regions: Tensor
    """(b, r, d): text of each region, its prompt plus the report; zeros without text."""
    evidence: Tensor
    """(b, r): what the report says of the presence of each region, in log-odds; zeros without."""
    patches: Tensor | None
    """(b, v, g, g, d): semantics of the patches of the views; None unless the bridge is dense."""
    planes: Tensor | None
    """(b, v, 3): positions of the views."""
    weight: Tensor
    """(b,): weight of the semantic path: 0 for a case without views and text, which is then not
    changed, else 1. A training schedule may scale it."""


class RegionMaps(NamedTuple):
    """Maps of semantic attention for each guided region."""

    scores: Tensor
    """(b, n, x, y, z)."""
    cosines: Tensor | None
    """(b, n, x, y, z): cosine between voxel and text, from -1 to 1; None in mode ``paper``, which
    reads the text through the summary alone."""


class SemanticFusion(nn.Module):
    """Add the three semantic mechanisms to an encoder-decoder.

    Call :meth:`encode` once per case, :meth:`guide` at the bottleneck and :meth:`attend` at a
    decoder level; with ``presence_channels``, :meth:`tell_presence` before these, and
    :func:`~clipseg3d.blocks.region_presence.apply_presence` at the end. New weights change nothing,
    except in the modes ``paper`` and ``damped``. Cases without views and text are never changed.

    Args:
        bridge: views -> embeddings.
        guidance: embeddings -> semantic tokens; also builds the block that changes the bottleneck.
        bottleneck_channels: channels that :meth:`guide` takes.
        decoder_channels: channels that :meth:`attend` takes.
        regions: names of the regions, in the order of the logits; the first text tokens are their
            prompts.
        guided: regions whose logits semantics change; empty for no semantic attention.
        mode: how they change; see :func:`clipseg3d.blocks.semantic_attention.apply_scores`.
        attention_stride: semantic attention reads the decoder's features averaged over cubes with
            this edge length. Text describes parts larger than voxels, and at full resolution the
            attention takes a fifth of a training step.
        conditional: also gate the decoder features by the summary before the head. After a norm,
            this is conditional instance normalisation.
        running_norms: subtract the running means of the embeddings of views and prompts, and
            whiten those of reports; else embeddings are used as they are.
        guiding_text: which text guides the views: ``report`` takes the prompts of the regions for
            cases without a report only, ``all`` takes the mean of prompts and report.
        sentences: whether the report is given as one token per sentence, which each region weighs
            (:class:`~clipseg3d.blocks.sentence_attention.SentenceAttention`); else the mean of its
            tokens is added to all regions alike, as in the paper.
        presence_channels: channels of the encoder levels that tell the presence of each region,
            the finest first; empty if none is told.
        nested: whether each region lies within the one before.
        skip_channels: channels of the encoder levels above the bottleneck that semantics scale and
            shift too, the deepest first; empty for the bottleneck alone, as in the paper.

    Raises:
        ValueError: a guided region is not among ``regions``; unknown ``mode``; ``sentences`` are to
            be read by guidance without text.

    Source: arXiv 2507.09966, semantic-level fusion; ET and TC are guided there.
    """

    def __init__(
        self,
        bridge: SemanticBridge,
        guidance: Guidance,
        *,
        bottleneck_channels: int,
        decoder_channels: int,
        regions: Sequence[str] = REGIONS,
        guided: Sequence[str] = ("TC", "ET"),
        mode: AttentionMode = "residual",
        attention_stride: int = 1,
        conditional: bool = False,
        running_norms: bool = True,
        guiding_text: GuidingText = "report",
        sentences: bool = False,
        presence_channels: Sequence[int] = (),
        nested: bool = False,
        skip_channels: Sequence[int] = (),
    ) -> None:
        super().__init__()
        unknown = [region for region in guided if region not in regions]
        if unknown:
            raise ValueError(f"guided={tuple(guided)}: {unknown} not in regions={tuple(regions)}")
        if mode not in get_args(AttentionMode):
            raise ValueError(f"mode={mode!r}: choose from {', '.join(get_args(AttentionMode))}")
        if guiding_text not in get_args(GuidingText):
            raise ValueError(
                f"guiding_text={guiding_text!r}: choose from {', '.join(get_args(GuidingText))}"
            )
        if sentences and not guidance.text_dim:
            raise ValueError("sentences=True with guidance built with text_dim=0, which reads none")
        dim = guidance.dim
        self.bridge = bridge
        self.guidance = guidance
        self.regions = tuple(regions)
        self.guided = tuple(guided)
        self.mode: AttentionMode = mode
        self.attention_stride = attention_stride
        self.guiding_text: GuidingText = guiding_text
        self.bottleneck_channels = bottleneck_channels
        self.bottleneck = guidance.build_bottleneck(bottleneck_channels)
        self.from_patches: nn.Conv3d | None = None
        if bridge.dense:
            self.from_patches = nn.Conv3d(dim, bottleneck_channels, 1)
            zero_init(self.from_patches)
        # The mean over all cases says nothing about one case, so it is subtracted from views,
        # patches, prompts and reports. Reports also vary in things that no voxel shows: whitening.
        self.centre_views: RunningCentering | None = None
        self.centre_patches: RunningCentering | None = None
        self.centre_prompts: RunningCentering | None = None
        self.whiten_reports: RunningWhitening | None = None
        if running_norms:
            self.centre_views = RunningCentering(guidance.embed_dim)
        if running_norms and bridge.dense:
            self.centre_patches = RunningCentering(guidance.embed_dim)
        if running_norms and guidance.text_dim:
            self.centre_prompts = RunningCentering(guidance.text_dim)
            self.whiten_reports = RunningWhitening(guidance.text_dim)
        self.condition = SemanticGate(decoder_channels, dim) if conditional else None
        self.sentences = SentenceAttention(dim, len(self.regions)) if sentences else None
        self.presence: RegionPresence | None = None
        if presence_channels:
            self.presence = RegionPresence(presence_channels, len(self.regions), nested=nested)
        self.skips = nn.ModuleList(SemanticGate(channels, dim) for channels in skip_channels)
        attention = GateConvolution if mode == "paper" else SemanticAttention
        self.attention = nn.ModuleDict(
            {region: attention(decoder_channels, dim) for region in guided}
        )

    def encode(
        self,
        views: Views | None,
        text: Tensor | None,
        text_mask: Tensor | None = None,
        *,
        trust: float = 1.0,
    ) -> Semantics:
        """Turn views and text (b, n, e) into semantics.

        Args:
            views: slices of the whole volume (:func:`clipseg3d.views.cut_views`), or None.
            text: embeddings, one prompt per region first, or None.
            text_mask: (b, n) bool, True for real tokens; None means that all are real.
            trust: how far reports are trusted, from 0, as if there were none, to 1.

        Raises:
            ValueError: neither is given, batch sizes differ, there are fewer text tokens than
                regions, an embedding is not finite, or ``trust`` is outside [0, 1].
        """
        require_trust(trust)
        embedded = None if views is None else self.bridge.embed(views)
        self._check(embedded, text)
        if text is None:
            return self._encode(embedded, None, None)
        if text_mask is None:
            text_mask = text.new_ones(text.shape[:2], dtype=torch.bool)
        if trust == 1:
            return self._encode(embedded, text, text_mask)
        prompts_mask = text_mask.clone()
        prompts_mask[:, len(self.regions) :] = False
        without = self._encode(embedded, text, prompts_mask)
        if not trust:
            return without
        trusted = self._encode(embedded, text, text_mask)
        return trusted._replace(
            **{
                name: torch.lerp(getattr(without, name), getattr(trusted, name), trust)
                for name in ("tokens", "summary", "regions", "evidence")
            },
            patches=None
            if without.patches is None or trusted.patches is None
            else torch.lerp(without.patches, trusted.patches, trust),
        )

    def _encode(
        self, embedded: ViewTokens | None, text: Tensor | None, text_mask: Tensor | None
    ) -> Semantics:
        """Turn embedded views and text into semantics; see :meth:`encode`."""
        count = len(self.regions)
        dtype = self.guidance.norm.weight.dtype  # frozen encoders stay in float32
        valid = None if embedded is None else embedded.valid
        if text is not None and text_mask is not None:
            text = self._centre_text(text, text_mask).to(dtype)
        tokens, patches = None, None
        if embedded is not None:
            tokens = embedded.tokens
            if self.centre_views is not None:
                views_mask = repeat(embedded.valid, "b -> b n", n=tokens.shape[1])
                tokens = self.centre_views(tokens, views_mask)
            tokens = tokens.to(dtype)
        guiding_mask = None if text_mask is None else self._guiding_text_mask(text_mask)
        guided, token_mask = self.guidance(tokens, text, views_valid=valid, text_mask=guiding_mask)
        is_valid = rearrange(token_mask.to(guided.dtype), "b n -> b n 1")
        summary = (guided * is_valid).sum(dim=1) / is_valid.sum(dim=1).clamp(min=1)
        if embedded is not None and embedded.patches is not None:
            flat = rearrange(embedded.patches, "b v g h e -> b (v g h) e")
            if self.centre_patches is not None:
                patches_mask = repeat(embedded.valid, "b -> b n", n=flat.shape[1])
                flat = self.centre_patches(flat, patches_mask)
            flat = flat.to(dtype)
            content = self.guidance.blend(flat, text, views_valid=valid, text_mask=guiding_mask)
            axes = parse_shape(embedded.patches, "_ v g h _")
            patches = rearrange(self.guidance.norm(content), "b (v g h) d -> b v g h d", **axes)
        has_semantics = token_mask.any(dim=1)
        regions = summary.new_zeros(len(summary), count, self.guidance.dim)
        evidence = summary.new_zeros(len(summary), count)
        if text is not None and text_mask is not None and self.guidance.map_text and self._reads:
            is_real = rearrange(text_mask.to(text.dtype), "b n -> b n 1")
            mapped = self.guidance.map_text(text) * is_real
            if self.sentences is None:
                chunks = is_real[:, count:].sum(dim=1, keepdim=True).clamp(min=1)
                report = mapped[:, count:].sum(dim=1, keepdim=True) / chunks
            else:
                report, evidence = self.sentences(mapped[:, count:], text_mask[:, count:])
            regions = mapped[:, :count] + report
            has_semantics = has_semantics | text_mask.any(dim=1)
        return Semantics(
            guided,
            token_mask,
            summary,
            regions,
            evidence,
            patches,
            None if embedded is None else embedded.planes,
            has_semantics.to(summary.dtype),
        )

    @property
    def _reads(self) -> bool:
        """Whether regions read text."""
        return bool(self.guided) or self.sentences is not None

    def _check(self, embedded: ViewTokens | None, text: Tensor | None) -> None:
        """Raise a ValueError for text of a wrong shape and for embeddings that are not finite."""
        count = len(self.regions)
        if text is not None and text.ndim != 3:
            raise ValueError(f"text is {tuple(text.shape)}, expected three axes (b, n, e)")
        if text is not None and text.shape[1] < count:
            raise ValueError(
                f"{text.shape[1]} text tokens for {count} regions; give one prompt per region "
                f"first ({', '.join(self.regions)})"
            )
        if text is not None and not self.guidance.text_dim:
            raise ValueError("text is given to guidance built with text_dim=0; give None")
        if torch.compiler.is_compiling():
            return  # reading values would break the graph
        view_tokens = None if embedded is None else embedded.tokens
        for name, tokens in (("view", view_tokens), ("text", text)):
            if tokens is not None and not bool(tokens.isfinite().all()):
                raise ValueError(f"a {name} embedding holds NaN or infinity; check its encoder")

    def _centre_text(self, text: Tensor, text_mask: Tensor) -> Tensor:
        """Return text whose prompts are centred and whose reports are whitened."""
        if self.centre_prompts is None:
            return text
        count = len(self.regions)
        parts = ((self.centre_prompts, slice(count)), (self.whiten_reports, slice(count, None)))
        return torch.cat(
            [
                norm(text[:, tokens], text_mask[:, tokens])
                for norm, tokens in parts
                if norm is not None
            ],
            dim=1,
        )

    def _guiding_text_mask(self, text_mask: Tensor) -> Tensor:
        """Return the mask of the text tokens that guide the views.

        With ``report``, it is the report, if there is one. Prompts are the same for every case.
        They guide cases without a report, and guidance that weights all tokens itself.
        """
        if self.guidance.reads_prompts or self.guiding_text == "all":
            return text_mask
        count = len(self.regions)
        prompts, report = text_mask[:, :count], text_mask[:, count:]
        return torch.cat([prompts & ~report.any(dim=1, keepdim=True), report], dim=1)

    def guide(
        self, bottleneck: Tensor, semantics: Semantics, crop_box: Tensor | None = None
    ) -> Tensor:
        """Return the bottleneck (b, c, x, y, z) changed by semantics.

        Args:
            bottleneck: features of the deepest level.
            semantics: from :meth:`encode`.
            crop_box: (b, 2, 3) or (b, 4, 3) position of ``bottleneck`` in the brain box; None for
                all of it.

        Raises:
            ValueError: ``bottleneck`` has other channels than ``bottleneck_channels``.
        """
        if bottleneck.shape[1] != self.bottleneck_channels:
            raise ValueError(
                f"the bottleneck has {bottleneck.shape[1]} channels, expected bottleneck_channels="
                f"{self.bottleneck_channels}; build SemanticFusion with {bottleneck.shape[1]}"
            )
        guided = self.guidance.change_bottleneck(
            self.bottleneck,
            bottleneck,
            summary=semantics.summary,
            tokens=semantics.tokens,
            token_mask=semantics.token_mask,
            crop_box=crop_box,
        )
        patches, planes = semantics.patches, semantics.planes
        if self.from_patches is not None and patches is not None and planes is not None:
            lifted = lift_patches(patches, planes, bottleneck, crop_box)
            guided = guided + self.from_patches(lifted)
        return _blend(bottleneck, guided, semantics.weight)

    def guide_levels(
        self, levels: list[Tensor], semantics: Semantics, crop_box: Tensor | None = None
    ) -> list[Tensor]:
        """Return the levels of an encoder with the deepest ones changed by semantics.

        Args:
            levels: features of every level, the bottleneck last.
            semantics: from :meth:`encode`.
            crop_box: (b, 2, 3) or (b, 4, 3) position of all levels in the brain box; None for all
                of it.
        """
        levels = list(levels)
        for index, gate in enumerate(self.skips):
            level = levels[-2 - index]
            levels[-2 - index] = _blend(level, gate(level, semantics.summary), semantics.weight)
        levels[-1] = self.guide(levels[-1], semantics, crop_box)
        return levels

    def tell_presence(self, levels: Sequence[Tensor], semantics: Semantics) -> Presence | None:
        """Return the presence of each region; None without ``presence_channels``.

        Apply it at the very end: what is computed afterwards could undo it.

        Args:
            levels: of the encoder, not changed by :meth:`guide_levels`; as many, and as wide, as
                ``presence_channels``.
            semantics: from :meth:`encode`.
        """
        if self.presence is None:
            return None
        presence: Presence = self.presence(levels, semantics.evidence)
        return presence

    def attend(
        self,
        features: Tensor,
        semantics: Semantics,
        head: Callable[[Tensor], Tensor],
        crop_box: Tensor | None = None,
    ) -> Tensor:
        """Return the logits of a head, changed by semantics, (b, r, x, y, z).

        Args:
            features: decoder features (b, c, x, y, z), the input of the head.
            semantics: from :meth:`encode`.
            head: features -> logits (b, r, x, y, z), such as the decoder's last convolution.
            crop_box: (b, 2, 3) or (b, 4, 3) position of ``features`` in the brain box; None for
                all of it.

        Raises:
            ValueError: the head gives other regions than ``regions``.
        """
        logits, _ = self.attend_with_maps(features, semantics, head, crop_box)
        return logits

    def attend_with_maps(
        self,
        features: Tensor,
        semantics: Semantics,
        head: Callable[[Tensor], Tensor],
        crop_box: Tensor | None = None,
    ) -> tuple[Tensor, RegionMaps | None]:
        """Like :meth:`attend`, but also return the maps; None if no region is guided."""
        if self.condition is not None:
            conditioned = self.condition(features, semantics.summary)
            features = _blend(features, conditioned, semantics.weight)
        if not self.guided:
            return head(features), None
        coarse = features
        if self.attention_stride > 1:  # once for all regions: its backward pass is slow
            coarse = F.avg_pool3d(
                features, self.attention_stride, ceil_mode=True, count_include_pad=False
            )
        maps = self._maps(coarse, semantics, crop_box)
        guided = [index for index, region in enumerate(self.regions) if region in self.guided]
        logits = apply_scores(
            partial(self._segment, head),
            features,
            maps.scores,
            semantics.weight,
            guided=guided,
            mode=self.mode,
        )
        return logits, maps

    def _segment(self, head: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
        """Return the logits of a head; raise a ValueError if they are of other regions."""
        logits = head(features)
        if logits.shape[1] != len(self.regions):
            raise ValueError(
                f"the head gives {logits.shape[1]} regions, and SemanticFusion was built with "
                f"{len(self.regions)} ({', '.join(self.regions)}); give both the same"
            )
        return logits

    def _maps(self, features: Tensor, semantics: Semantics, crop_box: Tensor | None) -> RegionMaps:
        """Return the maps of the guided regions on the grid of features (b, c, x, y, z)."""
        texts = {
            region: text
            for region, text in zip(self.regions, semantics.regions.unbind(1), strict=True)
            if region in self.guided
        }
        if self.mode == "paper":
            gates = [self.attention[region](features, semantics.summary) for region in texts]
            return RegionMaps(torch.cat(gates, dim=1), None)
        scores, cosines = zip(
            *(
                self.attention[region](features, semantics.summary, text, crop_box)
                for region, text in texts.items()
            ),
            strict=True,
        )
        return RegionMaps(torch.cat(scores, dim=1), torch.cat(cosines, dim=1))


def _blend(plain: Tensor, changed: Tensor, weight: Tensor) -> Tensor:
    """Interpolate from plain (weight 0, exactly) to changed features (weight 1, exactly)."""
    weight = rearrange(weight.to(plain.dtype), "b -> b 1 1 1 1")
    return torch.where(weight > 0, torch.lerp(plain, changed.to(plain.dtype), weight), plain)
