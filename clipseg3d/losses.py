"""The training loss: by default soft Dice plus binary cross-entropy, deeply supervised."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SMOOTH = 1e-5
_EMPTY_SHARE = 1e-3
"""Share of the voxels that smooths the Dice of an empty region."""
_SMALL_REGION = 8
"""Voxels of a map that a smaller region counts as."""


def cosine_loss(cosines: Tensor, label: Tensor, *, temperature: float) -> Tensor:
    """Return the binary cross-entropy between text-voxel cosines and their regions.

    Args:
        cosines: (b, n, x, y, z), on the grid of the label or a coarser, padded one.
        label: (b, n, x, y, z) in {0, 1}.
        temperature: cosines divided by this are the logits.

    Source: DenseCLIP (Rao et al., CVPR 2022, https://arxiv.org/abs/2112.01518), the loss of its
    score maps.
    """
    with torch.autocast(label.device.type, enabled=False):
        target = _downsample(label, cosines)
        return F.binary_cross_entropy_with_logits(cosines.float() / temperature, target)


class DiceBCELoss(nn.Module):
    """Soft Dice + binary cross-entropy over overlapping regions.

    Dice is computed for each sample and region, and averaged: ``1 - (2 sum(p t) + s) / (sum(p) +
    sum(t) + s)``, with s = 1e-5, as in MONAI's ``DiceLoss``. With this s, the Dice of a region that
    a crop does not hold is constantly 1 and has no gradient. So for an empty region, s is a
    thousandth of the crop's voxels: the term is ``sum(p) / (sum(p) + s)``, 0 if nothing is
    predicted. A false voxel then costs about as much as beside a region of half that size. nnU-Net
    has ``batch_dice``, the Dice of all samples of a batch together, which does not help a batch of
    one crop; for that, give a loss of MONAI with ``batch=True``.

    Source: the paper states no loss; Dice + cross-entropy is the usual choice for BraTS (Isensee
    et al., nnU-Net, Nature Methods 2021). Differs: empty regions, which are ours.
    """

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the loss, a scalar; logits are (b, r, x, y, z), and the label is in [0, 1]."""
        probability = torch.sigmoid(logits)
        axes = (2, 3, 4)
        overlap = (label * probability).sum(axes)
        size = label.sum(axes)
        smooth = torch.where(size > 0, _SMOOTH, _EMPTY_SHARE * label[0, 0].numel())
        dice = 1 - (2 * overlap + smooth) / (size + probability.sum(axes) + smooth)
        return dice.mean() + F.binary_cross_entropy_with_logits(logits, label)


class RegionLoss(nn.Module):
    """A loss of regions, at every supervised level.

    The weights of the levels are 1, 1/2, 1/4, ..., divided by their sum. A coarser level is
    compared with the label averaged over its larger voxels. Computed in float32, also under
    autocast.

    Args:
        loss: called as ``loss(logits, label)`` for each level, both (b, r, x, y, z) float32, such
            as a loss of MONAI with ``sigmoid=True``; None takes :class:`DiceBCELoss`.

    Raises:
        ValueError: a loss of MONAI takes probabilities, not logits.

    Example:
        >>> label = torch.zeros(1, 3, 8, 8, 8)
        >>> label[..., :4] = 1
        >>> bool(RegionLoss()([20 * label - 10], label) < 1e-4)
        True
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.loss = DiceBCELoss() if loss is None else loss
        for part in self.modules():
            activations = (
                getattr(part, name, True) for name in ("sigmoid", "softmax", "other_act")
            )
            if not any(activations):
                raise ValueError(
                    f"{type(part).__name__} takes probabilities, but the network gives logits; "
                    "give it sigmoid=True"
                )

    def forward(self, logits: Sequence[Tensor], label: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            logits: (b, r, x, y, z), then those of coarser levels, whose grids may be padded at the
                far ends.
            label: (b, r, x, y, z) in {0, 1}.

        Raises:
            ValueError: the loss of a level is no single number.
        """
        with torch.autocast(label.device.type, enabled=False):
            weights = [0.5**level for level in range(len(logits))]
            total = label.new_zeros(())
            for weight, level in zip(weights, logits, strict=True):
                total = total + weight * self.loss(level.float(), _downsample(label, level))
        if total.numel() != 1:
            raise ValueError(
                f"{type(self.loss).__name__} returns {tuple(total.shape)} numbers; give it "
                'reduction="mean"'
            )
        return total / sum(weights)


def _downsample(label: Tensor, level: Tensor) -> Tensor:
    """Return the label averaged over the voxels of a level, whose grid may be padded."""
    if label.shape[2:] == level.shape[2:]:
        return label
    sizes = list(zip(label.shape[2:], level.shape[2:], strict=True))
    # Each level halves the grid: take the power of two with which no axis is too short.
    factor = 2 ** math.ceil(math.log2(max(fine / coarse for fine, coarse in sizes)))
    padding = [coarse * factor - fine for fine, coarse in sizes]
    padded = F.pad(label, [p for amount in reversed(padding) for p in (0, amount)])
    return F.avg_pool3d(padded, factor)


def presence_loss(log_odds: Tensor, maps: Tensor, label: Tensor) -> Tensor:
    """Return the loss of the presence of regions, and of the maps that it is told from.

    Both are binary cross-entropies: of whether there is any of each region, and of the share of
    each region in the voxels of the maps, in proportion to the size of the region in the batch.
    Without that, a region of one voxel in a thousand would hardly be learned. A Dice loss would
    make maps certain where the image cannot tell. Computed in float32, also under autocast.

    Args:
        log_odds: (b, r), of any of each region.
        maps: (b, r, x, y, z) logits, on a coarser grid than the label's, padded at the far ends.
        label: (b, r, x, y, z) in {0, 1}.
    """
    with torch.autocast(label.device.type, enabled=False):
        target = label.flatten(2).any(dim=2).float()
        told = F.binary_cross_entropy_with_logits(log_odds.float(), target)
        maps = maps.float()
        shares = _downsample(label, maps)
        errors = F.binary_cross_entropy_with_logits(maps, shares, reduction="none")
        error, size = (x.mean(dim=(0, 2, 3, 4)) for x in (errors, shares))  # of each region
        smallest = _SMALL_REGION / maps[0, 0].numel()
        return told + (error / size.clamp(min=smallest)).mean()


def grade_loss(logit: Tensor, grade: Tensor, *, count: Tensor | None = None) -> Tensor:
    """Return the mean binary cross-entropy of the tumour grade over the cases that have one.

    In distributed training, gradients are averaged over ranks that have different numbers of such
    cases. With their mean number as ``count``, that average is the gradient of the mean over the
    cases of all ranks.

    If no case has a grade, the loss is 0 but still depends on ``logit``: distributed training waits
    for a gradient of every weight. Computed in float32, also under autocast.

    Args:
        logit: (b,) logit of high grade.
        grade: (b,) int: 1 high grade (HGG), 0 low grade (LGG), -1 unknown.
        count: number of cases with a grade, a scalar; None counts those of ``grade``.
    """
    with torch.autocast(logit.device.type, enabled=False):
        has_grade = grade >= 0
        terms = F.binary_cross_entropy_with_logits(
            logit.float(), grade.clamp(min=0).float(), reduction="none"
        )
        count = has_grade.sum() if count is None else count
        return (terms * has_grade).sum() / torch.where(count > 0, count, 1)
