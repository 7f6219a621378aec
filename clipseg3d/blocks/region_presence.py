"""Presence of regions: whether there is any of it in this image, from image and text."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce
from torch import Tensor, nn

from clipseg3d.blocks.pointwise_conv import PointwiseConv3d

PRESENT = 4.0
"""Log-odds of presence that new weights tell: 98 %."""
_RARE = 0.01
"""Share of the voxels in which new maps expect each region."""
_CERTAIN = 20.0
"""Log-odds of what is known."""
_STRONGEST = 8
"""Voxels whose mean is the strongest evidence of an image; a single one would be noise."""
_PACE = 10.0
"""Factor of the score. From log-odds of 4, small steps of its weights would take too many."""


class Presence(NamedTuple):
    """What :class:`RegionPresence` returns."""

    log_odds: Tensor
    """(b, r): of any of each region."""
    maps: Tensor
    """(b, r, x, y, z): logits of the regions as the image alone shows them, on a coarse grid."""


class RegionPresence(nn.Module):
    """Tell the presence of each region in log-odds: evidence of the image plus that of the text.

    The image is read from levels of the encoder, which text has not changed. They give a coarse map
    of each region, which needs a loss of its own (:func:`clipseg3d.losses.presence_loss`). Its
    volume, and its strongest voxels, are the evidence, both squeezed into -1 to 1. That of text is
    added, so that where the image is clear, the image wins, and where it is not, the text decides.
    New weights return :data:`PRESENT` for all.

    Args:
        channels: of the levels, the finest first.
        num_regions: regions r.
        nested: whether each region lies within the one before; it is then not more present.

    Source: equation 6 of arXiv 2507.09966 multiplies the probabilities of voxels. Here, one factor
    per region does; see :func:`apply_presence`. Maps begin with a small probability as in RetinaNet
    (Lin et al., 2017, https://arxiv.org/abs/1708.02002): from one half, the many voxels without any
    region would rule the first steps.
    """

    def __init__(self, channels: Sequence[int], num_regions: int, *, nested: bool = False) -> None:
        super().__init__()
        self.nested = nested
        self.maps = nn.ModuleList(PointwiseConv3d(width, num_regions) for width in channels)
        nn.init.constant_(self.maps[0].get_parameter("bias"), math.log(_RARE / (1 - _RARE)))
        self.weight = nn.Parameter(torch.zeros(num_regions, 2))
        self.bias = nn.Parameter(torch.zeros(num_regions))

    def forward(self, levels: Sequence[Tensor], evidence: Tensor) -> Presence:
        """Return log-odds and maps.

        Args:
            levels: of the encoder, each (b, c, x, y, z), the finest first. Features that text has
                changed say what the text says.
            evidence: of the text, in log-odds, (b, r).
        """
        size = levels[0].shape[2:]
        maps = self.maps[0](levels[0])
        for read, level in zip(list(self.maps)[1:], levels[1:], strict=True):
            maps = maps + F.interpolate(read(level), size=size, mode="trilinear")
        presence = self.weigh(self.read_maps(maps), evidence)
        if self.nested:
            chain = [presence[:, 0]]
            for region in presence.unbind(1)[1:]:
                chain.append(torch.minimum(chain[-1], region))
            presence = torch.stack(chain, dim=1)
        return Presence(presence, maps)

    def weigh(self, read: Tensor, evidence: Tensor) -> Tensor:
        """Return log-odds (b, r) of maps, from :meth:`read_maps`, and of text."""
        score = einsum(read, self.weight.float(), "b r f, r f -> b r") + self.bias
        return (PRESENT + _PACE * score + evidence.float()).to(self.bias.dtype)

    @staticmethod
    def read_maps(maps: Tensor) -> Tensor:
        """Return the evidence of maps (b, r, x, y, z): volume and strongest voxels, (b, r, 2).

        Both are 0 where a map is in doubt, and have no gradient: while a weight has the wrong sign,
        it would turn the map into its opposite.
        """
        voxels = rearrange(maps.detach().float(), "b r x y z -> b r (x y z)")
        volume = reduce(voxels.sigmoid(), "b r n -> b r", "sum")
        strongest = voxels.topk(min(_STRONGEST, voxels.shape[2]), dim=2).values.mean(dim=2)
        evidence = [(volume / _STRONGEST).log1p() - math.log(2), strongest / 4]
        return torch.stack(evidence, dim=2).tanh()


def known_presence(regions: Tensor) -> Tensor:
    """Return log-odds (b, r) of what is known for certain, from true regions (b, r, x, y, z).

    In training, these are applied instead of those that are told. Then voxels learn where a region
    is if there is any, and presence, by its own loss, whether there is.
    """
    present = regions.flatten(2).any(dim=2)
    return torch.where(present, _CERTAIN, -_CERTAIN)


def apply_presence(logits: Tensor, presence: Tensor, weight: Tensor) -> Tensor:
    """Return the logits of probabilities that are multiplied by the presence of their region.

    The factor is ``min(1, odds^2)``: a region that is more likely present than not does not change,
    and one that is less likely than 41 % is emptied. Only a factor can empty a region whose logits
    are 14. It is given no gradient: near 1, a logit of 14 changes a million times as fast as the
    factor. Presence has a loss of its own.

    Args:
        logits: (b, r, x, y, z).
        presence: log-odds (b, r).
        weight: (b,) weight of the factor, from 0 (logits do not change by a bit) to 1.

    Returns:
        (b, r, x, y, z), no logit larger than it was.
    """
    log_factor = 2 * presence.detach().float().clamp(max=0)
    removed = -torch.expm1(log_factor) * rearrange(weight.float(), "b -> b 1")
    removed = rearrange(removed, "b r -> b r 1 1 1")
    # p f / (1 - p f) = f e^l / (1 + (1 - f) e^l); where nothing is removed, not a bit changes
    given = logits.float()
    lowered = given + torch.log1p(-removed.clamp(max=1 - 1e-7)) - F.softplus(given + removed.log())
    return lowered.to(logits.dtype)
