"""Cross-modal semantic guidance: text gates what the images say. One class per kind.

``GUIDANCE`` names the kinds. A new kind is a subclass of :class:`Guidance` and an entry there.
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
    """Turn view and text embeddings into semantic tokens; base of all kinds.

    V are the mapped views, T the mapped text, averaged over its tokens where T meets V. A kind says
    what C it makes of them. Where a case has only views or only text, C is that one alone.

    Args:
        embed_dim: channels e of the view embeddings.
        dim: semantic channels d.
        tokens: ``views`` keeps a token per view; ``mean`` averages the views first, as the paper
            writes. MHSA over that single token is a linear map of it, whatever its queries and
            keys are.
        text_dim: channels of the text embeddings; None takes ``embed_dim``, 0 builds no part for
            text, which then must not be given.
        num_heads: attention heads, where there is attention; must divide ``dim``.
        dropout: share of attention weights dropped, in training only.

    Attributes:
        reads_prompts: whether the prompts of the regions are read even where a case has a report.

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
        """Build the parts of this kind."""

    @abstractmethod
    def combine(self, views: Tensor, text: Tensor) -> Tensor:
        """Return C (b, n, d) for mapped views (b, n, d) and mapped, averaged text (b, 1, d)."""

    def forward(
        self,
        views: Tensor | None,
        text: Tensor | None,
        *,
        views_valid: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return semantic tokens (b, n, d), and (b, n) bool: True for those that mean something.

        Args:
            views: (b, v, e), or None.
            text: (b, t, e), or None.
            views_valid: (b,) bool, False where a case's views are to be ignored; None uses all.
            text_mask: (b, t) bool, True for real tokens; a row without any has no text. None
                keeps all.

        Raises:
            ValueError: neither is given, one has not three axes, their batch sizes differ, or text
                is given to guidance built without it.
        """
        views_valid, text_mask = self._check(views, text, views_valid, text_mask)
        views = self._average(views)
        content = self.blend(views, text, views_valid=views_valid, text_mask=text_mask)
        has_content = self._has_content(views_valid, text_mask)
        tokens: Tensor = self.norm(self._attend(content))
        return tokens, has_content[:, None].expand(content.shape[:2])

    def blend(
        self,
        views: Tensor | None,
        text: Tensor | None,
        *,
        views_valid: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """Return C (b, n, d), before attention and norm; arguments as for :meth:`forward`.

        Patch embeddings may stand for views: each is blended with the text on its own.
        """
        views_valid, text_mask = self._check(views, text, views_valid, text_mask)
        image: Tensor | None = None if views is None else self.map_views(views)
        if text is None or self.map_text is None:
            return self._nothing(text_mask) if image is None else image
        weight = rearrange(text_mask.float(), "b n -> b n 1")
        words: Tensor = (self.map_text(text) * weight).sum(dim=1, keepdim=True)
        words = words / weight.sum(dim=1, keepdim=True).clamp(min=1)
        if image is None:
            return words
        blended = self.combine(image, words)
        content = torch.where(rearrange(text_mask.any(dim=1), "b -> b 1 1"), blended, image)
        return torch.where(rearrange(views_valid, "b -> b 1 1"), content, words)

    def build_bottleneck(self, channels: int) -> nn.Module:
        """Return the block through which semantics change bottleneck features of c channels."""
        return SemanticGate(channels, self.dim)

    def change_bottleneck(
        self,
        block: nn.Module,
        features: Tensor,
        *,
        summary: Tensor,
        tokens: Tensor,
        mask: Tensor,
        crop_box: Tensor | None,
    ) -> Tensor:
        """Return bottleneck features (b, c, x, y, z) changed by semantics.

        Args:
            block: from :meth:`build_bottleneck`.
            features: (b, c, x, y, z).
            summary: (b, d), the mean of the tokens that mean something.
            tokens: (b, n, d) from :meth:`forward`.
            mask: (b, n) bool from :meth:`forward`.
            crop_box: (b, 2, 3) where ``features`` lie in the brain box; None covers it.
        """
        changed: Tensor = block(features, summary)
        return changed

    def _attend(self, content: Tensor) -> Tensor:
        """Return what the tokens are made of, before the norm."""
        return content

    def _has_content(self, views_valid: Tensor, text_mask: Tensor) -> Tensor:
        """Return (b,) bool: True where the tokens of a case mean something."""
        return views_valid | text_mask.any(dim=1)

    def _average(self, views: Tensor | None) -> Tensor | None:
        """Average the views, if there is to be one token for all."""
        if views is None or self.tokens == "views":
            return views
        return views.mean(dim=1, keepdim=True)

    def _nothing(self, text_mask: Tensor) -> Tensor:
        """Return one token of zeros for each case."""
        return self.norm.weight.new_zeros(len(text_mask), 1, self.dim)

    def _check(
        self,
        views: Tensor | None,
        text: Tensor | None,
        views_valid: Tensor | None,
        text_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return both masks in full, (b,) and (b, t): False without views, t = 0 without text."""
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
    """The paper's guidance: text gates the views, and attention relates the gated views.

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
        scale, shift = self.film(text).chunk(2, dim=-1)
        return views * (1 + scale) + shift


class SequentialGuidance(Guidance):
    """Views and text side by side, for sequential cross-attention with the voxels.

    ``F = LayerNorm([V, T])``; the bottleneck is changed by
    :class:`~clipseg3d.blocks.sequential_attention.SequentialCrossAttention`, which weighs all tokens
    itself, prompts included. Arguments are those of :class:`Guidance`.

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
        views = self._average(views)
        tokens, masks = [], []
        if views is not None:
            tokens.append(self.norm(self.map_views(views)))
            masks.append(views_valid[:, None].expand(tokens[-1].shape[:2]))
        if text is not None and self.map_text is not None:
            tokens.append(self.norm(self.map_text(text)))
            masks.append(text_mask)
        return torch.cat(tokens, dim=1), torch.cat(masks, dim=1)

    def combine(self, views: Tensor, text: Tensor) -> Tensor:
        """Return the views: text stays apart."""
        return views

    def blend(
        self,
        views: Tensor | None,
        text: Tensor | None,
        *,
        views_valid: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the mapped views, or the mapped text where there are none."""
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
        mask: Tensor,
        crop_box: Tensor | None,
    ) -> Tensor:
        """Return features that have read the tokens; see :meth:`Guidance.change_bottleneck`."""
        changed: Tensor = block(features, tokens, mask, crop_box)
        return changed


class NoGuidance(Guidance):
    """Views alone, ``F = LayerNorm(V)``; text guides nothing. Arguments as for :class:`Guidance`."""

    def blend(
        self,
        views: Tensor | None,
        text: Tensor | None,
        *,
        views_valid: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the mapped views, or zeros where there are none."""
        _, text_mask = self._check(views, text, views_valid, text_mask)
        if views is None:
            return self._nothing(text_mask)
        mapped: Tensor = self.map_views(views)
        return mapped

    def combine(self, views: Tensor, text: Tensor) -> Tensor:
        """Return the views: text guides nothing."""
        return views

    def _has_content(self, views_valid: Tensor, text_mask: Tensor) -> Tensor:
        return views_valid


GUIDANCE: Mapping[str, type[Guidance]] = {
    "gate": CrossModalGuidance,
    "sequential": SequentialGuidance,
    "film": FilmGuidance,
    "none": NoGuidance,
}
"""Kind, as configurations name it -> class."""
GuidanceKind = Literal["gate", "sequential", "film", "none"]


def build_guidance(kind: GuidanceKind, embed_dim: int, dim: int = 256, **options: Any) -> Guidance:
    """Return guidance of a kind; other arguments are those of :class:`Guidance`.

    Raises:
        ValueError: there is no such kind.
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
