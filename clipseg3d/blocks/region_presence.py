"""Presence of regions: whether there is any of it in this image, from image and text."""

import math

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce
from torch import Tensor, nn

from clipseg3d.blocks.zero_init import zero_init

PRESENT = 4.0
"""Log-odds of presence at which, and above which, probabilities do not change: 98 %."""


_NOTHING = -10.0
"""Logit of padding."""


class RegionPresence(nn.Module):
    """Tell the presence of each region in log-odds: evidence of the image plus that of the text.

    The image is read by the mean of its features over the voxels of every region that was found,
    by the volumes of the regions, and by their mean logits. Evidence of text is added, so that
    where the image is clear, the image wins, and where it is not, the text decides. New weights
    return :data:`PRESENT` for all.

    Args:
        channels: channels c of the features.
        num_regions: regions r.
        hidden: channels of the hidden layer.
        nested: whether each region lies within the one before; it is then not more present.

    Source: equation 6 of arXiv 2507.09966 multiplies the probabilities of voxels. Here, one factor
    per region does; see :func:`apply_presence`.
    """

    def __init__(
        self, channels: int, num_regions: int, *, hidden: int = 32, nested: bool = False
    ) -> None:
        super().__init__()
        self.nested = nested
        self.hidden = nn.Linear((channels + 2) * num_regions, hidden)
        self.score = nn.Linear(hidden, num_regions)
        zero_init(self.score)

    def forward(self, features: Tensor, logits: Tensor, evidence: Tensor) -> Tensor:
        """Return log-odds of presence (b, r).

        Args:
            features: of the image alone, (b, c, x, y, z), such as the first level of an encoder, on
                the padded grid of the logits or a coarser one. Features that text has changed say
                what the text says.
            logits: (b, r, x, y, z). No gradient flows into them.
            evidence: of the text, in log-odds, (b, r).
        """
        coarse = _downsample(logits.detach().float(), features)
        probabilities = coarse.sigmoid()
        total = reduce(probabilities, "b r x y z -> b r", "sum")
        mean_logit = einsum(probabilities, coarse, "b r x y z, b r x y z -> b r") / (total + 1)
        weighted = einsum(features.float(), probabilities, "b c x y z, b r x y z -> b r c")
        pooled = rearrange(weighted / rearrange(total + 1, "b r -> b r 1"), "b r c -> b (r c)")
        inputs = torch.cat([pooled, total.log1p() / 4, mean_logit / 4], dim=1)
        dtype = self.score.weight.dtype
        hidden = F.leaky_relu(self.hidden(inputs.to(dtype)), 0.01)
        score: Tensor = self.score(hidden)
        presence = PRESENT + score + evidence.to(score.dtype)
        if not self.nested:
            return presence
        chain = [presence[:, 0]]
        for region in presence.unbind(1)[1:]:
            chain.append(torch.minimum(chain[-1], region))
        return torch.stack(chain, dim=1)


def _downsample(volume: Tensor, features: Tensor) -> Tensor:
    """Average logits over the voxels of features, whose grid is padded at the far ends."""
    if volume.shape[2:] == features.shape[2:]:
        return volume
    sizes = list(zip(volume.shape[2:], features.shape[2:], strict=True))
    factor = 2 ** math.ceil(math.log2(max(fine / coarse for fine, coarse in sizes)))
    padding = [coarse * factor - fine for fine, coarse in sizes]
    before = [p for amount in reversed(padding) for p in (0, amount)]
    padded = F.pad(volume, before, value=_NOTHING)
    return F.avg_pool3d(padded, factor) if factor > 1 else padded


def apply_presence(logits: Tensor, presence: Tensor, weight: Tensor) -> Tensor:
    """Return the logits of probabilities that are multiplied by the presence of their region.

    The factor is ``min(1, sigmoid(presence) / sigmoid(PRESENT))``. Only a factor can empty a region
    whose logits are 14. It is given no gradient: near 1, a logit of 14 changes a million times as
    fast as the factor. Presence has a loss of its own.

    Args:
        logits: (b, r, x, y, z).
        presence: log-odds (b, r).
        weight: (b,) weight of the factor, from 0 (logits do not change by a bit) to 1.

    Returns:
        (b, r, x, y, z), no logit larger than it was.
    """
    presence = presence.detach().float()
    log_ratio = F.logsigmoid(presence) - F.logsigmoid(presence.new_tensor(PRESENT))
    removed = -torch.expm1(log_ratio.clamp(max=0)) * rearrange(weight.float(), "b -> b 1")
    removed = rearrange(removed, "b r -> b r 1 1 1")
    # p f / (1 - p f) = f e^l / (1 + (1 - f) e^l); where nothing is removed, not a bit changes
    given = logits.float()
    lowered = given + torch.log1p(-removed.clamp(max=1 - 1e-7)) - F.softplus(given + removed.log())
    return lowered.to(logits.dtype)
