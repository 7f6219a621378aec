"""Cross-modal semantic guidance: text gates what the images say."""

import torch
from einops import rearrange
from torch import Tensor, nn


def _mapper(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return the projection from CLIP's space to the semantic space."""
    return nn.Sequential(
        nn.Linear(in_channels, out_channels),
        nn.LayerNorm(out_channels),
        nn.GELU(),
        nn.Linear(out_channels, out_channels),
    )


class CrossModalGuidance(nn.Module):
    """Blend view and text embeddings by a gate computed from the text, then let them attend.

    With V the mapped views and T the mapped text, averaged over its tokens:
    ``G = sigmoid(T)``, ``C = V * G + T * (1 - G)``, ``F = LayerNorm(C + MHSA(C))``
    (equations 3-5). Where a case has only views or only text, C is that one alone.

    Args:
        embed_dim: CLIP channels e.
        dim: semantic channels d.
        num_heads: attention heads; must divide ``dim``.
        dropout: share of attention weights dropped, in training only.

    Raises:
        ValueError: ``dim`` is not divisible by ``num_heads``.

    Source: arXiv 2507.09966, equations 3-5. Differs: MHSA runs over the view tokens, not over
    their mean, of which it would be a linear map whatever its queries and keys are.
    """

    def __init__(
        self, embed_dim: int, dim: int = 256, *, num_heads: int = 8, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim={dim} is not divisible by num_heads={num_heads}")
        self.dim = dim
        self.map_views = _mapper(embed_dim, dim)
        self.map_text = _mapper(embed_dim, dim)
        self.attention = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        views: Tensor | None,
        text: Tensor | None,
        *,
        views_valid: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """Return semantic tokens.

        Args:
            views: (b, v, e), or None.
            text: (b, n, e), or None.
            views_valid: (b,) bool, False where a case's views are to be ignored; None uses all.
            text_mask: (b, n) bool, True for real tokens; a row without any has no text. None
                keeps all.

        Returns:
            Tokens (b, v, d); (b, 1, d) without views. What cases with neither get means nothing.

        Raises:
            ValueError: neither is given, or their batch sizes differ.
        """
        if text is None:
            if views is None:
                raise ValueError("neither views nor text are given; skip guidance instead")
            content = self.map_views(views)
        else:
            if text_mask is None:
                text_mask = text.new_ones(text.shape[:2], dtype=torch.bool)
            weight = rearrange(text_mask.to(text.dtype), "b n -> b n 1")
            mean = (self.map_text(text) * weight).sum(dim=1, keepdim=True)
            mean = mean / weight.sum(dim=1, keepdim=True).clamp(min=1)
            content = mean if views is None else self._blend(views, mean, views_valid, text_mask)
        attended, _ = self.attention(content, content, content, need_weights=False)
        tokens: Tensor = self.norm(content + attended)
        return tokens

    def _blend(
        self, views: Tensor, text: Tensor, views_valid: Tensor | None, text_mask: Tensor
    ) -> Tensor:
        """Return C for views (b, v, e) and mapped mean text (b, 1, d)."""
        if views.shape[0] != text.shape[0]:
            raise ValueError(f"{views.shape[0]} cases with views but {text.shape[0]} with text")
        seen = self.map_views(views)
        gate = torch.sigmoid(text)
        blended = seen * gate + text * (1 - gate)
        has_text = rearrange(text_mask.any(dim=1), "b -> b 1 1")
        content = torch.where(has_text, blended, seen)
        if views_valid is None:
            return content
        return torch.where(rearrange(views_valid, "b -> b 1 1"), content, text)
