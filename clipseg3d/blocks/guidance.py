"""Cross-modal semantic guidance: text gates what the images say."""

from typing import Literal, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

from clipseg3d.blocks.zero_init import zero_init

GuidanceKind = Literal["gate", "sequential", "film", "none"]


def _mapper(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return the projection from CLIP's space to the semantic space."""
    return nn.Sequential(
        nn.Linear(in_channels, out_channels),
        nn.LayerNorm(out_channels),
        nn.GELU(),
        nn.Linear(out_channels, out_channels),
    )


class CrossModalGuidance(nn.Module):
    """Turn view and text embeddings into semantic tokens.

    V are the mapped views, T the mapped text, averaged over its tokens where T meets V:

    - ``gate``: ``G = sigmoid(T)``, ``C = V * G + T * (1 - G)``, ``F = LayerNorm(C + MHSA(C))``
      (equations 3-5).
    - ``film``: ``C = V * (1 + gamma(T)) + beta(T)``, ``F = LayerNorm(C)``; gamma and beta start
      at zero.
    - ``none``: ``F = LayerNorm(V)``; text guides nothing.
    - ``sequential``: ``F = LayerNorm([V, T])``, all tokens side by side, for
      :class:`clipseg3d.blocks.SequentialCrossAttention` to bring to the voxels.

    Where a case has only views or only text, C is that one alone.

    Args:
        embed_dim: channels e of the view embeddings.
        dim: semantic channels d.
        kind: as above.
        tokens: ``views`` keeps a token per view; ``mean`` averages the views first, as the paper
            writes. MHSA over that single token is a linear map of it, whatever its queries and
            keys are.
        text_dim: channels of the text embeddings; None takes ``embed_dim``, 0 builds no part for
            text, which then must not be given.
        num_heads: attention heads of ``gate``; must divide ``dim``.
        dropout: share of attention weights dropped, in training only.

    Raises:
        ValueError: unknown ``kind`` or ``tokens``; ``dim`` is not divisible by ``num_heads``.

    Source: arXiv 2507.09966, equations 3-5; FiLM: Perez et al., AAAI 2018,
    https://arxiv.org/abs/1709.07871.

    Example:
        >>> import torch
        >>> guidance = CrossModalGuidance(64, 32, num_heads=4)
        >>> views, text = torch.rand(1, 3, 64), torch.rand(1, 5, 64)
        >>> tokens, known = guidance(views, text)
        >>> tokens.shape
        torch.Size([1, 3, 32])
    """

    def __init__(
        self,
        embed_dim: int,
        dim: int = 256,
        *,
        kind: GuidanceKind = "gate",
        tokens: Literal["views", "mean"] = "views",
        text_dim: int | None = None,
        num_heads: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if kind not in get_args(GuidanceKind):
            raise ValueError(f"kind={kind!r}: choose from {', '.join(get_args(GuidanceKind))}")
        if tokens not in ("views", "mean"):
            raise ValueError(f"tokens={tokens!r}: choose from views, mean")
        if dim % num_heads:
            raise ValueError(f"dim={dim} is not divisible by num_heads={num_heads}")
        self.embed_dim = embed_dim
        self.text_dim = embed_dim if text_dim is None else text_dim
        self.dim = dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.kind = kind
        self.tokens = tokens
        self.map_views = _mapper(embed_dim, dim)
        self.map_text = _mapper(self.text_dim, dim) if self.text_dim else None
        self.attention: nn.MultiheadAttention | None = None
        self.film: nn.Linear | None = None
        if kind == "gate":
            self.attention = nn.MultiheadAttention(
                dim, num_heads, dropout=dropout, batch_first=True
            )
        if kind == "film" and self.text_dim:
            self.film = nn.Linear(dim, 2 * dim)
            zero_init(self.film)
        self.norm = nn.LayerNorm(dim)

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
        if views is not None and self.tokens == "mean":
            views = views.mean(dim=1, keepdim=True)
        if self.kind == "sequential":
            parts = [] if views is None else [(self.map_views(views), views_valid)]
            if text is not None and self.map_text is not None:
                parts.append((self.map_text(text), text_mask))
            tokens = torch.cat([self.norm(part) for part, _ in parts], dim=1)
            masks = [
                mask if mask.ndim == 2 else mask[:, None].expand(part.shape[:2])
                for part, mask in parts
            ]
            return tokens, torch.cat(masks, dim=1)
        content = self.blend(views, text, views_valid=views_valid, text_mask=text_mask)
        if self.attention is not None:
            attended, _ = self.attention(content, content, content, need_weights=False)
            content = content + attended
        known = views_valid
        if self.kind != "none":
            known = known | text_mask.any(dim=1)
        return self.norm(content), known[:, None].expand(content.shape[:2])

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
        seen: Tensor | None = None if views is None else self.map_views(views)
        silent = self.kind == "none" or (self.kind == "sequential" and seen is not None)
        if silent or text is None or self.map_text is None:
            return self.norm.weight.new_zeros(len(text_mask), 1, self.dim) if seen is None else seen
        weight = rearrange(text_mask.float(), "b n -> b n 1")
        said: Tensor = (self.map_text(text) * weight).sum(dim=1, keepdim=True)
        said = said / weight.sum(dim=1, keepdim=True).clamp(min=1)
        if seen is None:
            return said
        if self.film is not None:
            scale, shift = self.film(said).chunk(2, dim=-1)
            blended = seen * (1 + scale) + shift
        else:
            gate = torch.sigmoid(said)
            blended = seen * gate + said * (1 - gate)
        content = torch.where(rearrange(text_mask.any(dim=1), "b -> b 1 1"), blended, seen)
        return torch.where(rearrange(views_valid, "b -> b 1 1"), content, said)

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
