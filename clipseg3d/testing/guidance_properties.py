"""Properties of every kind of guidance."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from clipseg3d.blocks.guidance import Guidance
from clipseg3d.testing.execution_properties import check_execution
from clipseg3d.testing.properties import randomise, require


def check_guidance(
    make: Callable[..., Guidance], *, embed_dim: int = 12, dim: int = 8, is_graph: bool = True
) -> None:
    """Check a kind of guidance with small random embeddings.

    - Tokens are (b, n, d), finite, and their mask is (b, n) bool.
    - Views alone, and text alone, are enough.
    - Masked text tokens, and views that are not valid, change nothing.
    - Text that must not be given (``text_dim=0``) is refused.
    - The block for the bottleneck keeps the shape of features.
    - Guidance and that block give the same in half precision, under autocast, exported, compiled,
      and with volumes in ``channels_last_3d``, as :func:`clipseg3d.testing.check_block` says.

    Args:
        make: builds the guidance; takes ``embed_dim``, ``dim`` and the keyword arguments of
            :class:`clipseg3d.blocks.guidance.Guidance`. A class is such a function.
        embed_dim: embedding channels to build it with.
        dim: semantic channels to build it with.
        is_graph: as for :func:`clipseg3d.testing.check_block`.

    Raises:
        AssertionError: a property does not hold; the message says which.

    Example:
        >>> from clipseg3d.blocks import CrossModalGuidance
        >>> check_guidance(CrossModalGuidance)
    """
    torch.manual_seed(0)
    guidance = make(embed_dim, dim, num_heads=2).eval()
    randomise(guidance)
    views, text = torch.randn(2, 3, embed_dim), torch.randn(2, 4, embed_dim)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    with torch.no_grad():
        for name, given in (("views and text", (views, text)), ("views", (views, None))):
            tokens, has_content = guidance(*given)
            _check_tokens(f"with {name}", tokens, has_content, dim)
        tokens, has_content = guidance(None, text)
        _check_tokens("with text", tokens, has_content, dim)

        changed = text.clone()
        changed[0, 2:] += 1
        one, _ = guidance(views, text, text_mask=mask)
        other, other_mask = guidance(views, changed, text_mask=mask)
        require(torch.allclose(one[other_mask], other[other_mask]), "a masked text token counts")

        valid = torch.tensor([False, True])
        one, one_mask = guidance(views, text, views_valid=valid)
        other, _ = guidance(views + valid[:, None, None].logical_not(), text, views_valid=valid)
        require(torch.allclose(one[one_mask], other[one_mask]), "views that are not valid count")

        features = torch.randn(2, 6, 3, 4, 5)
        path = _GuidedBottleneck(guidance, channels=6).eval()
        randomise(path.block)
        _, guided = path(views, text, mask, features)
        require(guided.shape == features.shape, "the bottleneck changes its shape")
    check_execution(
        path,
        (views, text, mask, features),
        tolerance=1e-4,
        rounding=8.0,
        keeps_type=True,
        is_graph=is_graph,
    )
    imageless = make(embed_dim, dim, num_heads=2, text_dim=0)
    try:
        imageless(views, text)
    except ValueError:
        return
    raise AssertionError("text is accepted by guidance that is built without it (text_dim=0)")


class _GuidedBottleneck(nn.Module):
    """Guidance and its block, in one call."""

    def __init__(self, guidance: Guidance, *, channels: int) -> None:
        super().__init__()
        self.guidance = guidance
        self.block = guidance.build_bottleneck(channels)

    def forward(
        self, views: Tensor, text: Tensor, text_mask: Tensor, features: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return semantic tokens and the changed features; arguments as for the guidance."""
        tokens, token_mask = self.guidance(views, text, text_mask=text_mask)
        guided = self.guidance.change_bottleneck(
            self.block,
            features,
            summary=tokens.mean(dim=1),
            tokens=tokens,
            token_mask=token_mask,
            crop_box=None,
        )
        return tokens, guided


def _check_tokens(case: str, tokens: Tensor, has_content: Tensor, dim: int) -> None:
    """Require tokens and a mask of the right kind."""
    require(tokens.ndim == 3 and tokens.shape[2] == dim, f"{case}: tokens are not (b, n, d)")
    require(
        has_content.dtype == torch.bool and has_content.shape == tokens.shape[:2],
        f"{case}: the mask is not (b, n) bool",
    )
    require(bool(tokens.isfinite().all()), f"{case}: a token is not finite")
