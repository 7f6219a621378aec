"""Semantic guidance: text changes the embeddings of the views. One class per kind.

``GUIDANCE`` names the kinds. For a new kind, write a subclass of :class:`Guidance` and add it
there; configurations also check its name against ``GuidanceKind``.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from clipseg3d.blocks.semantic_gate import SemanticGate
from clipseg3d.blocks.sequential_attention import SequentialCrossAttention
from clipseg3d.blocks.zero_init import zero_init


class Guidance(nn.Module, ABC):
    """Turn view and text embeddings into semantic tokens; the base class of all kinds.

    V are the projected views and T is the projected text, averaged over its tokens. Each kind
    combines them to C in its own way (:meth:`combine`). If a case has only views or only text, C is
    V or T.

    Args:
        embed_dim: channels e of the view embeddings.
        dim: semantic channels d.
        tokens: ``views`` keeps one token per view; ``mean`` averages the views first, as the paper
            does. Self-attention over that single token is a linear map: its queries and keys have
            no effect.
        text_dim: channels of the text embeddings; None takes ``embed_dim``. With 0 there are no
            layers for text, and none must be given.
        num_heads: attention heads, if the kind has attention; must divide ``dim``.
        dropout: dropout rate of attention weights, in training only.

    Attributes:
        reads_prompts: whether the prompts of the regions guide a case that has a report.

    Raises:
        ValueError: unknown ``tokens``; ``dim`` is not divisible by ``num_heads``.
    """

    reads_prompts = False

    def __init__(
        self,
        embed_dim: int,
        dim: int = 256,
        *,
        tokens: Literal["views", "mean"] = "views",
        text_dim: int | None = None,
        num_heads: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if tokens not in ("views", "mean"):
            raise ValueError(f"tokens={tokens!r}: choose from views, mean")
        if dim % num_heads:
            raise ValueError(f"dim={dim} is not divisible by num_heads={num_heads}")
        self.embed_dim = embed_dim
        self.text_dim = embed_dim if text_dim is None else text_dim
        self.dim = dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.tokens = tokens
        self.map_views = _mapper(embed_dim, dim)
        self.map_text = _mapper(self.text_dim, dim) if self.text_dim else None
        self._build()
        self.norm = nn.LayerNorm(dim)

    def _build(self) -> None:
        """Build the layers that only this kind has."""

    @abstractmethod
    def combine(self, views: Tensor, text: Tensor) -> Tensor:
        """Return the views combined with the text, C in the docstring of the class, (b, n, d).

        Args:
            views: (b, n, d), projected.
            text: (b, 1, d), averaged.
        """

    def forward(
        self,
        views: Tensor | None,
        text: Tensor | None,
        *,
        views_valid: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return semantic tokens (b, n, d) and their mask (b, n) bool: True for valid tokens.

        Args:
            views: (b, v, e), or None.
            text: (b, t, e), or None.
            views_valid: (b,) bool, False for cases whose views are ignored; None uses all.
            text_mask: (b, t) bool, True for real tokens. A case without any has no text. None
                means that all are real.

        Raises:
            ValueError: neither is given, one has not three axes, their batch sizes differ, or text
                is given to guidance built without it.
        """
        views_valid, text_mask = self._check(views, text, views_valid, text_mask)
        views = self._average_views(views)
        content = self.blend(views, text, views_valid=views_valid, text_mask=text_mask)
        is_valid = self._is_valid(views_valid, text_mask)
        tokens: Tensor = self.norm(self._attend(content))
        return tokens, is_valid[:, None].expand(content.shape[:2])

    def blend(
        self,
        views: Tensor | None,
        text: Tensor | None,
        *,
        views_valid: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """Return views combined with text, C of the class, (b, n, d), before attention and norm.

        Arguments are those of :meth:`forward`.

        Patch embeddings can be given as views: each is combined with the text independently.
        """
        views_valid, text_mask = self._check(views, text, views_valid, text_mask)
        mapped_views: Tensor | None = None if views is None else self.map_views(views)
        if text is None or self.map_text is None:
            return self._zero_token(text_mask) if mapped_views is None else mapped_views
        weight = rearrange(text_mask.to(self.norm.weight.dtype), "b n -> b n 1")
        mean_text: Tensor = (self.map_text(text) * weight).sum(dim=1, keepdim=True)
        mean_text = mean_text / weight.sum(dim=1, keepdim=True).clamp(min=1)
        if mapped_views is None:
            return mean_text
        combined = self.combine(mapped_views, mean_text)
        has_text = rearrange(text_mask.any(dim=1), "b -> b 1 1")
        content = torch.where(has_text, combined, mapped_views)
        return torch.where(rearrange(views_valid, "b -> b 1 1"), content, mean_text)

    def build_bottleneck(self, channels: int) -> nn.Module:
        """Return the block with which semantics change bottleneck features of c channels."""
        return SemanticGate(channels, self.dim)

    def change_bottleneck(
        self,
        block: nn.Module,
        features: Tensor,
        *,
        summary: Tensor,
        tokens: Tensor,
        token_mask: Tensor,
        crop_box: Tensor | None,
    ) -> Tensor:
        """Return bottleneck features (b, c, x, y, z) changed by semantics.

        Args:
            block: from :meth:`build_bottleneck`.
            features: (b, c, x, y, z).
            summary: (b, d), the mean of the valid tokens.
            tokens: (b, n, d) from :meth:`forward`.
            token_mask: (b, n) bool from :meth:`forward`, True for valid tokens.
            crop_box: (b, 2, 3) or (b, 4, 3) position of ``features`` in the brain box; None for
                all of it.
        """
        changed: Tensor = block(features, summary)
        return changed

    def _attend(self, content: Tensor) -> Tensor:
        """Return the tokens before the norm; kinds with attention override this."""
        return content

    def _is_valid(self, views_valid: Tensor, text_mask: Tensor) -> Tensor:
        """Return (b,) bool: whether the tokens of each case are valid."""
        return views_valid | text_mask.any(dim=1)

    def _average_views(self, views: Tensor | None) -> Tensor | None:
        """Average the views if ``tokens`` is ``mean``."""
        if views is None or self.tokens == "views":
            return views
        return views.mean(dim=1, keepdim=True)

    def _zero_token(self, text_mask: Tensor) -> Tensor:
        """Return one token of zeros per case."""
        return self.norm.weight.new_zeros(len(text_mask), 1, self.dim)

    def _check(
        self,
        views: Tensor | None,
        text: Tensor | None,
        views_valid: Tensor | None,
        text_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return complete masks, (b,) and (b, t): False without views, t = 0 without text."""
        given = views if views is not None else text
        if given is None:
            raise ValueError("neither views nor text are given; skip guidance instead")
        for name, tokens in (("views", views), ("text", text)):
            if tokens is not None and tokens.ndim != 3:
                raise ValueError(f"{name} is {tuple(tokens.shape)}, expected three axes (b, n, e)")
        if text is not None and self.map_text is None:
            raise ValueError("text is given to guidance built with text_dim=0; give None")
        if views is not None and text is not None and len(views) != len(text):
            raise ValueError(f"{len(views)} cases with views but {len(text)} with text")
        batch = len(given)
        if views_valid is None or views is None:
            views_valid = given.new_full((batch,), views is not None, dtype=torch.bool)
        if text_mask is None or text is None:
            count = 0 if text is None else text.shape[1]
            text_mask = given.new_ones((batch, count), dtype=torch.bool)
        return views_valid, text_mask


class CrossModalGuidance(Guidance):
    """The paper's guidance: text gates the views, then self-attention over the views.

    ``G = sigmoid(T)``, ``C = V * G + T * (1 - G)``, ``F = LayerNorm(C + MHSA(C))``. Arguments are
    those of :class:`Guidance`.

    Source: arXiv 2507.09966, equations 3-5.

    Example:
        >>> import torch
        >>> guidance = CrossModalGuidance(64, 32, num_heads=4)
        >>> views, text = torch.rand(1, 3, 64), torch.rand(1, 5, 64)
        >>> tokens, mask = guidance(views, text)
        >>> tokens.shape
        torch.Size([1, 3, 32])
    """

    def _build(self) -> None:
        self.attention = nn.MultiheadAttention(
            self.dim, self.num_heads, dropout=self.dropout, batch_first=True
        )

    def combine(self, views: Tensor, text: Tensor) -> Tensor:
        """Return C; see :meth:`Guidance.combine`."""
        gate = torch.sigmoid(text)
        return views * gate + text * (1 - gate)

    def _attend(self, content: Tensor) -> Tensor:
        attended: Tensor
        attended, _ = self.attention(content, content, content, need_weights=False)
        return content + attended


class FilmGuidance(Guidance):
    """Text scales and shifts the views; a new block changes nothing.

    ``C = V * (1 + gamma(T)) + beta(T)``, ``F = LayerNorm(C)``; gamma and beta start at zero.
    Arguments are those of :class:`Guidance`.

    Source: Perez et al., FiLM, AAAI 2018, https://arxiv.org/abs/1709.07871.
    """

    def _build(self) -> None:
        if self.text_dim:
            self.film = nn.Linear(self.dim, 2 * self.dim)
            zero_init(self.film)

    def combine(self, views: Tensor, text: Tensor) -> Tensor:
        """Return C; see :meth:`Guidance.combine`."""
        parameters: Tensor = self.film(text)
        scale, shift = parameters.chunk(2, dim=-1)
        return views * (1 + scale) + shift


class SequentialGuidance(Guidance):
    """Views and text as separate tokens, for sequential cross-attention with the voxels.

    ``F = LayerNorm([V, T])``, where T keeps all its tokens. The bottleneck is changed by
    :class:`~clipseg3d.blocks.sequential_attention.SequentialCrossAttention`, which weights all
    tokens itself, also the prompts. Arguments are those of :class:`Guidance`.

    Source: TextBraTS (Shi et al., MICCAI 2025), https://arxiv.org/abs/2506.16784.
    """

    reads_prompts = True

    def forward(
        self,
        views: Tensor | None,
        text: Tensor | None,
        *,
        views_valid: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the tokens of views and text, and their mask; see :meth:`Guidance.forward`."""
        views_valid, text_mask = self._check(views, text, views_valid, text_mask)
        views = self._average_views(views)
        tokens, masks = [], []
        if views is not None:
            tokens.append(self.norm(self.map_views(views)))
            masks.append(views_valid[:, None].expand(tokens[-1].shape[:2]))
        if text is not None and self.map_text is not None:
            tokens.append(self.norm(self.map_text(text)))
            masks.append(text_mask)
        return torch.cat(tokens, dim=1), torch.cat(masks, dim=1)

    def combine(self, views: Tensor, text: Tensor) -> Tensor:
        """Return the views: text has its own tokens."""
        return views

    def blend(
        self,
        views: Tensor | None,
        text: Tensor | None,
        *,
        views_valid: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the projected views, or the averaged text if no views are given."""
        if views is not None:
            self._check(views, text, views_valid, text_mask)
            mapped: Tensor = self.map_views(views)
            return mapped
        return super().blend(views, text, views_valid=views_valid, text_mask=text_mask)

    def build_bottleneck(self, channels: int) -> nn.Module:
        """Return sequential cross-attention; see :meth:`Guidance.build_bottleneck`."""
        return SequentialCrossAttention(
            channels, self.dim, num_heads=self.num_heads, dropout=self.dropout
        )

    def change_bottleneck(
        self,
        block: nn.Module,
        features: Tensor,
        *,
        summary: Tensor,
        tokens: Tensor,
        token_mask: Tensor,
        crop_box: Tensor | None,
    ) -> Tensor:
        """Apply cross-attention with all tokens; see :meth:`Guidance.change_bottleneck`."""
        changed: Tensor = block(features, tokens, token_mask, crop_box)
        return changed


class NoGuidance(Guidance):
    """Views only, ``F = LayerNorm(V)``; text is ignored. Arguments as for :class:`Guidance`."""

    def blend(
        self,
        views: Tensor | None,
        text: Tensor | None,
        *,
        views_valid: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the projected views, or zeros if no views are given."""
        _, text_mask = self._check(views, text, views_valid, text_mask)
        if views is None:
            return self._zero_token(text_mask)
        mapped: Tensor = self.map_views(views)
        return mapped

    def combine(self, views: Tensor, text: Tensor) -> Tensor:
        """Return the views: text is ignored."""
        return views

    def _is_valid(self, views_valid: Tensor, text_mask: Tensor) -> Tensor:
        return views_valid


GUIDANCE: Mapping[str, type[Guidance]] = {
    "gate": CrossModalGuidance,
    "sequential": SequentialGuidance,
    "film": FilmGuidance,
    "none": NoGuidance,
}
"""Name of a kind in configurations -> its class."""
GuidanceKind = Literal["gate", "sequential", "film", "none"]
"""The names in ``GUIDANCE``, as a type."""


def build_guidance(kind: GuidanceKind, embed_dim: int, dim: int = 256, **options: Any) -> Guidance:
    """Return guidance of the named kind; other arguments are those of :class:`Guidance`.

    Raises:
        ValueError: unknown ``kind``.
    """
    if kind not in GUIDANCE:
        raise ValueError(f"kind={kind!r}: choose from {', '.join(GUIDANCE)}")
    return GUIDANCE[kind](embed_dim, dim, **options)


def _mapper(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return the projection from CLIP's space to the semantic space."""
    return nn.Sequential(
        nn.Linear(in_channels, out_channels),
        nn.LayerNorm(out_channels),
        nn.GELU(),
        nn.Linear(out_channels, out_channels),
    )
