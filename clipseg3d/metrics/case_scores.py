"""All scores of each case, by the rules of a named protocol."""

from collections.abc import Sequence

import torch
from torch import Tensor

from clipseg3d.metrics.case_metric import CaseMetric
from clipseg3d.metrics.hausdorff import HD95_DEFINITIONS, HD95Method
from clipseg3d.metrics.nsd import NSD_DEFINITIONS
from clipseg3d.metrics.protocols import get_protocol
from clipseg3d.metrics.region_scores import DIFFERENCES, score_case
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
        rules = get_protocol(protocol, release=release)
        super().__init__(regions, rules.scores)
        self.protocol = rules
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
                list(scores.values())
                for scores in score_case(
                    *case,
                    regions=self.regions,
                    protocol=self.protocol,
                    method=self.hd95_method,
                    spacing_mm=spacing_mm,
                )
            ]
            for case in zip(prediction.cpu().numpy(), reference.cpu().numpy(), strict=True)
        ]
        self.add(case_id, torch.tensor(values, dtype=torch.float64))

    def compute(self) -> ScoreTable:
        """Return the scores of all cases on all ranks."""
        return self.table()

    def rules(self) -> str:
        """Return the rules as text: protocol, definitions of HD95 and surface Dice, lesions."""
        of_region = {name: self.protocol.for_region(name) for name in self.regions}
        lesions = [f"{name} {rules.lesion_rules()}" for name, rules in of_region.items()]
        if len({rules.lesion_rules() for rules in of_region.values()}) == 1:
            lesions = [self.protocol.lesion_rules()]
        known = {*self.regions}
        known |= {part for part, sources in DIFFERENCES.items() if known.issuperset(sources)}
        joining = {name for rules in of_region.values() for name in rules.joined_by}
        text = (
            f"Protocol {self.protocol.name}: {self.protocol.source}\n"
            f"HD95 {self.hd95_method}: {HD95_DEFINITIONS[self.hd95_method]}\n"
            f"NSD {self.protocol.nsd_method}: {NSD_DEFINITIONS[self.protocol.nsd_method]}\n"
            f"Lesions: {'; '.join(lesions)}"
        )
        if missing := sorted(joining - known):
            text += f"\nNote: {', '.join(missing)} is not scored, and so joins no lesions"
        return text
