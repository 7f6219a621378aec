"""Nested regions: each region's probability is a share of that of the region around it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NestedRegions(nn.Module):
    """Turn raw scores into logits of regions that contain one another.

    ``p_1 = sigmoid(a_1)``, ``p_k = p_(k-1) sigmoid(a_k)``, regions ordered from the outermost to
    the innermost (WT, TC, ET), so that no threshold finds an inner voxel outside the outer region.
    There are no weights. Computed in log space and at least float32, also under autocast: a logit
    made from a rounded probability would be infinite, and its gradient lost, beyond about 17.

    Source: ours; the order ET within TC within WT is how BraTS defines its regions.
    """

    def forward(self, raw: Tensor) -> Tensor:
        """Return logits (b, r, x, y, z), never rising along r, for raw scores of that shape."""
        with torch.autocast(raw.device.type, enabled=False):
            raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
            outermost, *inner = raw.unbind(dim=1)
            inside, outside = F.logsigmoid(outermost), F.logsigmoid(-outermost)  # log p, log(1-p)
            logits = [inside - outside]
            for score in inner:
                outside = torch.logaddexp(outside, inside + F.logsigmoid(-score))
                inside = inside + F.logsigmoid(score)
                logits.append(inside - outside)
            return torch.stack(logits, dim=1)
