"""Nested regions: the probability of an inner region is a share of that of the outer region."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NestedRegions(nn.Module):
    """Turn raw scores into logits of regions that contain one another.

    ``p_1 = sigmoid(a_1)``, ``p_k = p_(k-1) sigmoid(a_k)``, regions ordered from the outermost to
    the innermost (WT, TC, ET). At any threshold, an inner region therefore lies inside the outer
    one. The block has no weights. It computes in log space and at least float32, also under
    autocast: a logit of a rounded probability would be infinite beyond about 17, without gradient.
    The result is therefore float32 for scores of half precision.

    Source: ours; BraTS defines its regions so that ET lies in TC and TC in WT.
    """

    def forward(self, raw: Tensor) -> Tensor:
        """Return logits (b, r, x, y, z), not increasing along r, for raw scores of that shape."""
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
