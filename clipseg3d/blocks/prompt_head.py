"""Prompts: what a text asks for, as a mixture of the regions of one image, and where."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from clipseg3d.blocks.positions import voxel_positions

PICKS = ("all", "largest", "smallest")
"""Which of several separate parts a prompt means."""
_PACE = 10.0
"""Factor of the log-odds of several lesions, so that they learn fast: a step has few sentences."""
_SECOND_ORDER = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


class PromptReading(NamedTuple):
    """What prompts ask for, from :meth:`PromptHead.read`."""

    weights: Tensor
    """(b, n, r) weight of each region, -1 to 1: oedema is the whole tumour minus its core."""
    place: Tensor
    """(b, n, 10): a quadratic function of the position in the brain, in log-odds."""
    presence: Tensor
    """(b, n): log-odds that the prompt asks for anything that the regions hold."""
    pick: Tensor
    """(b, n, 3) logits of :data:`PICKS`."""
    several: Tensor
    """(b, n): log-odds that a sentence of a report speaks of several lesions, or of both sides."""


class PromptHead(nn.Module):
    """Read prompts, and segment what they ask for in an image whose regions are found already.

    A prompt is read once, for all images. Its mask is ``presence * clip(sum_r w_r p_r, 0, 1) *
    place(x)``, without another pass through a network. All parts are linear in the embedding
    of the prompt, so the text encoder must tell prompts apart; in return, wordings that it has
    learned to be alike are answered alike.

    Args:
        text_dim: channels e of prompt embeddings, which are unit vectors.
        num_regions: regions r.

    Source: ours.

    Example:
        >>> import torch
        >>> head = PromptHead(96, 3)
        >>> prompts = torch.nn.functional.normalize(torch.randn(1, 2, 96), dim=-1)
        >>> head(head.read(prompts), torch.rand(1, 3, 8, 9, 10)).shape
        torch.Size([1, 2, 8, 9, 10])
    """

    def __init__(self, text_dim: int, num_regions: int) -> None:
        super().__init__()
        self.scale = text_dim**0.5
        self.weights = nn.Linear(text_dim, num_regions)
        self.place = nn.Linear(text_dim, 4 + len(_SECOND_ORDER))
        self.presence = nn.Linear(text_dim, 1)
        self.pick = nn.Linear(text_dim, len(PICKS))
        self.several = nn.Linear(text_dim, 1)
        # A new head names no place, and takes what is asked for to be there.
        nn.init.zeros_(self.place.weight)
        nn.init.zeros_(self.place.bias)
        nn.init.zeros_(self.several.weight)
        nn.init.zeros_(self.several.bias)
        with torch.no_grad():
            self.place.bias[0] = 4
            self.presence.bias.fill_(2)

    def read(self, prompts: Tensor) -> PromptReading:
        """Return what prompts ask for.

        Args:
            prompts: (b, n, e) unit vectors.
        """
        prompts = prompts * self.scale
        return PromptReading(
            torch.tanh(self.weights(prompts)),
            self.place(prompts),
            rearrange(self.presence(prompts), "b n 1 -> b n"),
            self.pick(prompts),
            _PACE * rearrange(self.several(prompts), "b n 1 -> b n"),
        )

    def forward(
        self, reading: PromptReading, regions: Tensor, crop_box: Tensor | None = None
    ) -> Tensor:
        """Return probabilities (b, n, x, y, z) of each prompt, for all separate parts.

        Args:
            reading: from :meth:`read`.
            regions: (b, r, x, y, z) in [0, 1]: probabilities, or masks.
            crop_box: (b, 2, 3) position of ``regions`` in the brain box; None for the whole box.
        """
        mixture = einsum(reading.weights, regions, "b n r, b r x y z -> b n x y z").clamp(0, 1)
        presence = rearrange(reading.presence.sigmoid(), "b n -> b n 1 1 1")
        probabilities: Tensor = (
            presence * mixture * self.locate(reading, regions, crop_box).sigmoid()
        )
        return probabilities

    def locate(
        self, reading: PromptReading, regions: Tensor, crop_box: Tensor | None = None
    ) -> Tensor:
        """Return log-odds (b, n, x, y, z) that a voxel lies where each prompt says.

        Args:
            reading: from :meth:`read`.
            regions: (b, r, x, y, z), of which only the grid counts.
            crop_box: as for :meth:`forward`.
        """
        terms = torch.stack(_quadratic(voxel_positions(regions, crop_box).unbind(1)), dim=1)
        return einsum(reading.place, terms, "b n k, b k x y z -> b n x y z")

    @staticmethod
    def locate_points(reading: PromptReading, positions: Tensor) -> Tensor:
        """Return log-odds (b, n, p) that points lie where each prompt says.

        Args:
            reading: from :meth:`read`.
            positions: (b, p, 3) in the brain box, from -1 to 1 along each axis.
        """
        terms = torch.stack(_quadratic(positions.unbind(2)), dim=2)
        return einsum(reading.place, terms, "b n k, b p k -> b n p")


def _quadratic(axes: Sequence[Tensor]) -> list[Tensor]:
    """Return the terms of a quadratic function of positions along x, y and z."""
    return [torch.ones_like(axes[0]), *axes, *(axes[i] * axes[j] for i, j in _SECOND_ORDER)]
