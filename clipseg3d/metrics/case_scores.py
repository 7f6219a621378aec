"""All scores of each case, by the rules of a named protocol."""

from collections.abc import Sequence

import torch
from torch import Tensor

from clipseg3d.metrics.case_metric import CaseMetric
from clipseg3d.metrics.hausdorff import HD95_DEFINITIONS, HD95Method
from clipseg3d.metrics.protocols import SCORES, get_protocol
from clipseg3d.metrics.region_scores import score_region
from clipseg3d.metrics.score_table import ScoreTable


class CaseScores(CaseMetric):
    """Dice, HD95, sensitivity, specificity, surface Dice and lesion-wise scores, case by case.

    Each case counts once on any number of ranks.

    Args:
        regions: names of the mask channels, in order.
        protocol: name of the rules; see :data:`clipseg3d.metrics.protocols.PROTOCOLS`.
        hd95_method: definition of the HD95; None takes the protocol's.
        release: name of the release that is scored; it decides how large lesions must be to count.

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
        super().__init__(regions, SCORES)
        self.protocol = get_protocol(protocol, release=release)
        self.hd95_method = hd95_method or self.protocol.hd95_method
        if self.hd95_method not in HD95_DEFINITIONS:
            raise ValueError(
                f"unknown HD95 method {hd95_method!r}: choose one of {', '.join(HD95_DEFINITIONS)}"
            )

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
            [
                list(
                    score_region(
                        mask.numpy(),
                        true_mask.numpy(),
                        protocol=self.protocol,
                        method=self.hd95_method,
                        spacing_mm=spacing_mm,
                    ).values()
                )
                for mask, true_mask in zip(*case, strict=True)
            ]
            for case in zip(prediction.cpu(), reference.cpu(), strict=True)
        ]
        self.add(case_id, torch.tensor(values, dtype=torch.float64))

    def compute(self) -> ScoreTable:
        """Return the scores of all cases on all ranks."""
        return self.table()

    def rules(self) -> str:
        """Return the rules of the scores as text: protocol and definition of the HD95."""
        return (
            f"Protocol {self.protocol.name}: {self.protocol.source}\n"
            f"HD95 {self.hd95_method}: {HD95_DEFINITIONS[self.hd95_method]}"
        )
