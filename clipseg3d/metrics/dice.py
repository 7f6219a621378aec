"""Dice per region and case, gathered across ranks by case name."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


def dice_score(prediction: Tensor, reference: Tensor) -> Tensor:
    """Return the Dice score of masks, with the empty-mask rule of BraTS 2020.

    Args:
        prediction: (..., x, y, z) bool.
        reference: (..., x, y, z) bool, of the same shape.

    Returns:
        (...) float64: ``2 |P & R| / (|P| + |R|)``; 1 where both masks are empty.

    Raises:
        ValueError: the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} != {tuple(reference.shape)}")
    axes = (-3, -2, -1)
    overlap = (prediction & reference).sum(dim=axes).double()
    size = (prediction.sum(dim=axes) + reference.sum(dim=axes)).double()
    return torch.where(size > 0, 2 * overlap / size.clamp(min=1), 1.0)


class CaseDice(Metric):
    """Mean Dice per region over cases, each case counted once.

    Distributed samplers repeat cases to even out ranks; repeats are recognised by case name.

    Args:
        regions: names of the mask channels, in order.
    """

    full_state_update = False
    scores: list[Tensor]
    keys: list[Tensor]

    def __init__(self, regions: Sequence[str]) -> None:
        super().__init__()
        self.regions = tuple(regions)
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("keys", default=[], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, reference: Tensor, case_id: Sequence[str]) -> None:
        """Add cases: masks (b, r, x, y, z) bool and b names."""
        self.scores.append(dice_score(prediction, reference))
        self.keys.append(torch.tensor([_key(name) for name in case_id], device=self.device))

    def compute(self) -> dict[str, Tensor]:
        """Return region -> mean Dice over cases, and ``mean`` over regions."""
        keys, scores = dim_zero_cat(self.keys), dim_zero_cat(self.scores)
        first = {key: index for index, key in reversed(list(enumerate(keys.tolist())))}
        means = scores[list(first.values())].mean(dim=0)
        return {**dict(zip(self.regions, means, strict=True)), "mean": means.mean()}


def _key(case_id: str) -> int:
    """Return a number that stands for a case name on every rank, since ranks exchange tensors."""
    digest = hashlib.sha256(case_id.encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)
