"""Instance normalisation and leaky ReLU in one layer."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class InstanceNormAct(nn.InstanceNorm3d):
    """Instance normalisation and a leaky ReLU, in place.

    The same as one after the other. :func:`torch.nn.functional.instance_norm` returns a view, and
    what is changed in place behind a view has its gradient copied twice.

    Args:
        channels: feature channels c.
        slope: of the leaky ReLU below 0.
    """

    def __init__(self, channels: int, *, slope: float = 0.01) -> None:
        super().__init__(channels, affine=True)
        self.slope = slope

    def forward(self, features: Tensor) -> Tensor:
        """Return activated features, (b, c, x, y, z) as given."""
        batch = len(features)
        normed = F.batch_norm(
            rearrange(features, "b c x y z -> 1 (b c) x y z"),
            None,
            None,
            self.weight.repeat(batch),
            self.bias.repeat(batch),
            training=True,  # of each case its own mean and variance, in evaluation too
            eps=self.eps,
        )
        activated = F.leaky_relu(normed, self.slope, inplace=True)
        return rearrange(activated, "1 (b c) x y z -> b c x y z", b=batch)
