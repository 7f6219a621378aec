"""Base of metrics that keep scores case by case, across ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from clipseg3d.metrics.score_table import ScoreTable

NAME_END = b"\0"
"""Follows each case name: ranks exchange names as bytes."""


class CaseMetric(Metric):
    """Base of metrics that score cases one by one, on any number of ranks, each case once.

    Distributed samplers repeat cases so that all ranks have the same number. Repeats are recognised
    by case name, and the first one counts. A rank may have no case at all.

    Args:
        regions: names of the mask channels, in order.
        scores: names of the scores of each region, in order.
    """

    full_state_update = False
    values: list[Tensor]
    names: list[Tensor]

    def __init__(self, regions: Sequence[str], scores: Sequence[str]) -> None:
        super().__init__()
        self.regions = tuple(regions)
        self.scores = tuple(scores)
        self.add_state("values", default=[], dist_reduce_fx="cat")
        self.add_state("names", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all cases."""
        super().reset()
        # Ranks without cases take part in the exchange too, with tensors of the same kind.
        self.add((), torch.empty(0, len(self.regions), len(self.scores)))

    def add(self, case_id: Sequence[str], values: Tensor) -> None:
        """Keep the scores (b, region, score) of b cases."""
        names = b"".join(name.encode() + NAME_END for name in case_id)
        self.values.append(values.to(self.device, torch.float64))
        self.names.append(torch.tensor(list(names), dtype=torch.uint8, device=self.device))

    def table(self) -> ScoreTable:
        """Return the scores of this rank; within :meth:`compute`, those of all ranks."""
        names = bytes(dim_zero_cat(self.names).tolist()).split(NAME_END)[:-1]
        first = {name: index for index, name in reversed(list(enumerate(names)))}
        rows = sorted(first.values())
        return ScoreTable(
            case_ids=tuple(names[row].decode() for row in rows),
            regions=self.regions,
            scores=self.scores,
            values=dim_zero_cat(self.values)[rows].cpu().numpy(),
        )
