"""Instance normalisation and leaky ReLU in one layer."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class InstanceNormAct(nn.InstanceNorm3d):
    """Instance normalisation, then a leaky ReLU in place.

    The result is that of the two layers in sequence. They would need two more copies of the
    gradient: :func:`torch.nn.functional.instance_norm` returns a view, and autograd copies the
    gradient of a view that is changed in place.

    Args:
        channels: feature channels c.
        slope: slope of the leaky ReLU below 0.
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
            training=True,  # normalise each case by its own mean and SD, also in evaluation
            eps=self.eps,
        )
        activated = F.leaky_relu(normed, self.slope, inplace=True)
        return rearrange(activated, "1 (b c) x y z -> b c x y z", b=batch)
