"""Scores of one case after the other, by the rules of a named protocol, on NumPy arrays."""

from collections.abc import Sequence

from clipseg3d.metrics.hausdorff import HD95_DEFINITIONS, HD95Method
from clipseg3d.metrics.mask_pair import Mask
from clipseg3d.metrics.nsd import NSD_DEFINITIONS
from clipseg3d.metrics.protocols import get_protocol
from clipseg3d.metrics.region_scores import DIFFERENCES, score_case


class CaseScorer:
    """Dice, HD95, sensitivity, specificity, surface Dice and lesion-wise scores of a case.

    Args:
        regions: names of the masks, in order.
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
        self.regions = tuple(regions)
        self.protocol = get_protocol(protocol, release=release)
        self.hd95_method = hd95_method or self.protocol.hd95_method
        if self.hd95_method not in HD95_DEFINITIONS:
            raise ValueError(
                f"unknown HD95 method {hd95_method!r}: choose one of {', '.join(HD95_DEFINITIONS)}"
            )

    def __call__(
        self,
        prediction: Mask,
        reference: Mask,
        *,
        spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> list[list[float]]:
        """Return the scores of each region, in the order of ``protocol.scores``.

        Args:
            prediction: (r, x, y, z) bool.
            reference: (r, x, y, z) bool.
            spacing_mm: voxel size along x, y and z.

        Raises:
            ValueError: the masks do not fit each other.
        """
        regions = score_case(
            prediction,
            reference,
            regions=self.regions,
            protocol=self.protocol,
            method=self.hd95_method,
            spacing_mm=spacing_mm,
        )
        return [list(scores.values()) for scores in regions]

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
