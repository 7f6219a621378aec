"""All scores of each case, by the rules of a named protocol."""

from collections.abc import Sequence

import torch
from torch import Tensor

from clipseg3d.metrics.case_metric import CaseMetric
from clipseg3d.metrics.case_scorer import CaseScorer
from clipseg3d.metrics.hausdorff import HD95Method
from clipseg3d.metrics.score_table import ScoreTable


class CaseScores(CaseMetric):
    """Dice, HD95, sensitivity, specificity, surface Dice and lesion-wise scores, case by case.

    Each case counts once on any number of ranks.

    Args:
        regions: names of the mask channels, in order.
        protocol: name of the rules; see :data:`clipseg3d.metrics.protocols.PROTOCOLS`.
        hd95_method: definition of the HD95; None takes the protocol's.
        release: name of the release that is scored; it decides what a lesion is, and how large one
            must be to count.

    Raises:
        ValueError: the protocol or the method is unknown.
    """

    def __init__(
        self,
        regions: Sequence[str],
        *,
        protocol: str,
        hd95_method: HD95Method | None = None,
        release: str = "",
    ) -> None:
        self.scorer = CaseScorer(
            regions, protocol=protocol, hd95_method=hd95_method, release=release
        )
        super().__init__(regions, self.scorer.protocol.scores)
        self.protocol = self.scorer.protocol
        self.hd95_method = self.scorer.hd95_method

    def update(
        self,
        prediction: Tensor,
        reference: Tensor,
        case_id: Sequence[str],
        *,
        spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        """Add cases.

        Args:
            prediction: (b, r, x, y, z) bool.
            reference: (b, r, x, y, z) bool.
            case_id: b case names.
            spacing_mm: voxel size along x, y and z, the same for all b cases.

        Raises:
            ValueError: the masks do not fit each other, or not ``regions``.
        """
        sizes = (len(case_id), len(self.regions))
        if prediction.shape[:2] != sizes or reference.shape[:2] != sizes:
            raise ValueError(
                f"prediction {tuple(prediction.shape)} and reference {tuple(reference.shape)} do "
                f"not begin with {sizes}, the numbers of cases and regions"
            )
        values = [
            self.scorer(*case, spacing_mm=spacing_mm)
            for case in zip(prediction.cpu().numpy(), reference.cpu().numpy(), strict=True)
        ]
        self.add(case_id, torch.tensor(values, dtype=torch.float64))

    def compute(self) -> ScoreTable:
        """Return the scores of all cases on all ranks."""
        return self.table()

    def rules(self) -> str:
        """Return the rules as text: protocol, definitions of HD95 and surface Dice, lesions."""
        return self.scorer.rules()
