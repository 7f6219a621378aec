"""Dice per region and case, across ranks; two empty masks score 1."""

from collections.abc import Sequence

import torch
from torch import Tensor

from clipseg3d.metrics.case_metric import CaseMetric


def dice_empty_is_one(prediction: Tensor, reference: Tensor) -> Tensor:
    """Return the Dice score of masks; 1 where both are empty, as in BraTS 2020.

    For NaN in that case, see
    :attr:`clipseg3d.metrics.overlap.Overlap.dice_empty_is_nan`.

    Args:
        prediction: (..., x, y, z) bool.
        reference: (..., x, y, z) bool, of the same shape.

    Returns:
        (...) float64: ``2 |P & R| / (|P| + |R|)``; 1 where both masks are empty.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> mask = torch.zeros(4, 4, 4, dtype=torch.bool)
        >>> mask[:2] = True
        >>> float(dice_empty_is_one(mask, mask.roll(1, dims=0)))
        0.5
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} != {tuple(reference.shape)}")
    axes = (-3, -2, -1)
    overlap = (prediction & reference).sum(dim=axes).double()
    size = (prediction.sum(dim=axes) + reference.sum(dim=axes)).double()
    return torch.where(size > 0, 2 * overlap / size.clamp(min=1), 1.0)


class CaseDice(CaseMetric):
    """Mean Dice per region over cases, each case counted once; two empty masks score 1.

    It is computed on the device of the masks, so validation on a GPU stays on the GPU.

    Args:
        regions: names of the mask channels, in order.
    """

    def __init__(self, regions: Sequence[str]) -> None:
        super().__init__(regions, ["dice"])

    def update(self, prediction: Tensor, reference: Tensor, case_id: Sequence[str]) -> None:
        """Add cases: masks (b, r, x, y, z) bool and b names."""
        self.add(case_id, dice_empty_is_one(prediction, reference)[..., None])

    def compute(self) -> dict[str, Tensor]:
        """Return region -> mean Dice over cases, and ``mean`` over regions."""
        means = torch.from_numpy(self.table().means()[:, 0]).to(self.device)
        return {**dict(zip(self.regions, means, strict=True)), "mean": means.mean()}
