"""The tumour-type classifier: high or low grade, from bottleneck features."""

import torch
from einops import rearrange, reduce
from torch import Tensor, nn


class GradeClassifier(nn.Module):
    """Classify a glioma as high-grade (HGG) or low-grade (LGG) from pooled features.

    Global mean and maximum -> dropout -> linear -> LeakyReLU -> dropout -> linear.

    Args:
        channels: feature channels c; the hidden layer has half as many.
        dropout: dropout rates before the two linear layers, in training only.

    Raises:
        ValueError: a rate is outside [0, 1].

    Source: arXiv 2507.09966 names a tumour-type classifier with dropout 0.3 and 0.2, without its
    layers; these are ours.
    """

    def __init__(self, channels: int, *, dropout: tuple[float, float] = (0.3, 0.2)) -> None:
        super().__init__()
        hidden = max(1, channels // 2)
        self.layers = nn.Sequential(
            nn.Dropout(dropout[0]),
            nn.Linear(2 * channels, hidden),
            nn.LeakyReLU(0.01),
            nn.Dropout(dropout[1]),
            nn.Linear(hidden, 1),
        )

    def forward(self, bottleneck: Tensor) -> Tensor:
        """Return the logit (b,) of high grade for features (b, c, x, y, z)."""
        average = reduce(bottleneck, "b c x y z -> b c", "mean")
        maximum = reduce(bottleneck, "b c x y z -> b c", "max")
        logit: Tensor = self.layers(torch.cat([average, maximum], dim=1))
        return rearrange(logit, "b 1 -> b")
