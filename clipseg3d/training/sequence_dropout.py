"""Withholding sequences in training, so that a network also works without them."""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from clipseg3d.views import Views, views_without
from clipseg3d.vocabulary import SEQUENCES


def draw_kept_sequences(
    chance: Tensor, choice: Tensor, share: float, *, num_sequences: int
) -> Tensor:
    """Return which sequences each sample keeps, (b, s) bool.

    The samples drawn keep 1 to s - 1 sequences; all such subsets are equally likely.

    Args:
        chance: (b,) uniform in [0, 1): whether sequences of a sample are withheld.
        choice: (b,) uniform in [0, 1): which ones.
        share: of the samples whose sequences are withheld, in [0, 1].
        num_sequences: s.
    """
    kept = torch.ones(len(chance), num_sequences, dtype=torch.bool)
    chosen = chance < share
    codes = 1 + (choice * (2**num_sequences - 2)).long()
    subsets = (codes[:, None] >> torch.arange(num_sequences)) & 1 > 0
    kept[chosen] = subsets[chosen]
    return kept


def withhold_sequences(
    image: Tensor,
    statistics: Tensor,
    views: Views,
    kept: Tensor,
    *,
    reduced_views: Views,
    sequences: Sequence[str] = SEQUENCES,
) -> tuple[Tensor, Tensor, Views]:
    """Return image, statistics and views as if only some sequences had been acquired.

    The views are the slices that are chosen without the others, as they are in prediction.

    Args:
        image: (b, s, x, y, z).
        statistics: (b, s, 4).
        views: with images (b, v, h, w, s).
        kept: (b, s) bool, False for sequences to withhold: they become 0 throughout.
        reduced_views: from :func:`clipseg3d.views.cut_reduced_views`.
        sequences: names of the s sequences.
    """
    views = views_without(views, reduced_views, kept, sequences=sequences)
    return (
        image * rearrange(kept, "b s -> b s 1 1 1"),
        statistics * rearrange(kept, "b s -> b s 1"),
        views._replace(images=views.images * rearrange(kept, "b s -> b 1 1 1 s")),
    )
