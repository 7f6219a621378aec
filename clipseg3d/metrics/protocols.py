"""Named sets of rules that scores follow where they differ: above all, what empty masks score."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from clipseg3d.metrics.hausdorff import HD95Method

SCORES = (
    "dice",
    "hd95_mm",
    "sensitivity",
    "specificity",
    "nsd",
    "lesion_dice",
    "lesion_hd95_mm",
)
"""What every region of a case is scored by, in the order of all tables."""
HIGHER_IS_BETTER: Mapping[str, bool] = {score: not score.endswith("_mm") for score in SCORES}


@dataclass(frozen=True)
class Protocol:
    """The rules of one challenge.

    Attributes:
        name: as on the command line.
        nothing: score -> its value where there is nothing to find and nothing was predicted; NaN
            leaves the case out of the mean. Lesion-wise scores take it where no lesion is large
            enough to count and none is false.
        missed_mm: HD95 where only one of the masks is empty, and that of a false negative or false positive lesion.
        sensitivity_of_nothing: sensitivity where only the reference is empty.
        hd95_method: definition of the HD95 that the challenge used.
        nsd_tolerance_mm: distance that is no error in ``nsd``.
        dilations: how often lesions grow before they are told apart and matched.
        min_lesion_mm3: lesions must be larger than this to count.
        source: where the rules are from, for people.
        ranked: scores that several predictions are ranked by.
    """

    name: str
    nothing: Mapping[str, float]
    missed_mm: float
    sensitivity_of_nothing: float
    hd95_method: HD95Method
    source: str
    nsd_tolerance_mm: float = 1.0
    dilations: int = 3
    min_lesion_mm3: float = 50.0
    ranked: tuple[str, ...] = ("dice", "hd95_mm")


_PERFECT = {score: float(better) for score, better in HIGHER_IS_BETTER.items()}

BRATS_2020 = Protocol(
    name="brats2020",
    nothing=_PERFECT,
    missed_mm=math.sqrt(240**2 + 240**2 + 155**2),
    sensitivity_of_nothing=0.0,
    hd95_method="medpy",
    source="BraTS 2020 (CaPTk; its HD95 was never published, medpy's is what nnU-Net took; it had "
    "neither nsd nor lesion-wise scores, which are those of 2023)",
)
BRATS_2023 = Protocol(
    name="brats2023",
    nothing=_PERFECT,
    missed_mm=374.0,
    sensitivity_of_nothing=0.0,
    hd95_method="surface",
    source="BraTS 2023 (lesion-wise script; its nsd came in 2024)",
    ranked=("lesion_dice", "lesion_hd95_mm"),
)
NAN = Protocol(
    name="nan",
    nothing=dict.fromkeys(SCORES, math.nan),
    missed_mm=373.0,
    sensitivity_of_nothing=math.nan,
    hd95_method="medpy",
    source="as BraTS 2026, what is empty in both masks is left out; lesions are matched as in 2023",
)
PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol for protocol in (BRATS_2020, BRATS_2023, NAN)
}
_LESIONS: Mapping[str, tuple[int, float]] = {
    "brats2023_men": (1, 50.0),
    "brats2023_met": (1, 2.0),
}
"""Release -> ``dilations`` and ``min_lesion_mm3``, where they are others than in ``Protocol``."""


def get_protocol(name: str, *, release: str = "") -> Protocol:
    """Return the protocol of that name, for the lesions of a release.

    Args:
        name: one of ``PROTOCOLS``.
        release: name of the release that is scored. Meningiomas and metastases are told apart at
            shorter distances than other lesions, and metastases count from a smaller size on.

    Raises:
        ValueError: there is no such protocol; the message lists those there are.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}: choose one of {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    if release not in _LESIONS:
        return protocol
    dilations, min_lesion_mm3 = _LESIONS[release]
    return replace(protocol, dilations=dilations, min_lesion_mm3=min_lesion_mm3)
