"""Rules of challenges where they differ: above all, the scores of empty masks."""

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
"""Scores of each region of a case, in the order of all tables."""
HIGHER_IS_BETTER: Mapping[str, bool] = {score: not score.endswith("_mm") for score in SCORES}


@dataclass(frozen=True)
class Protocol:
    """The rules of one challenge.

    Attributes:
        name: as on the command line.
        both_empty: score -> its value if reference and prediction are empty; with NaN, the case is
            left out of the mean. Lesion-wise scores take this value if no lesion is large enough to
            count and there is no false positive.
        penalty_mm: HD95 if only one of the masks is empty, and HD95 of a lesion that is a false
            negative or a false positive.
        empty_reference_sensitivity: sensitivity if only the reference is empty.
        hd95_method: definition of the HD95 that the challenge used.
        nsd_tolerance_mm: largest distance that is not an error in ``nsd``.
        dilations: number of dilations before lesions are separated and matched.
        min_lesion_mm3: lesions must be larger than this to count.
        source: where the rules come from, as text for the user.
        ranked: scores by which several predictions are ranked.
    """

    name: str
    both_empty: Mapping[str, float]
    penalty_mm: float
    empty_reference_sensitivity: float
    hd95_method: HD95Method
    source: str
    nsd_tolerance_mm: float = 1.0
    dilations: int = 3
    min_lesion_mm3: float = 50.0
    ranked: tuple[str, ...] = ("dice", "hd95_mm")


_PERFECT = {score: float(better) for score, better in HIGHER_IS_BETTER.items()}

BRATS_2020 = Protocol(
    name="brats2020",
    both_empty=_PERFECT,
    penalty_mm=math.sqrt(240**2 + 240**2 + 155**2),
    empty_reference_sensitivity=0.0,
    hd95_method="medpy",
    source="BraTS 2020 (CaPTk; its HD95 was never published, so that of medpy is used, as nnU-Net "
    "does; nsd and lesion-wise scores were not part of it and follow 2023)",
)
BRATS_2023 = Protocol(
    name="brats2023",
    both_empty=_PERFECT,
    penalty_mm=374.0,
    empty_reference_sensitivity=0.0,
    hd95_method="surface",
    source="BraTS 2023 (lesion-wise script; nsd was added in 2024)",
    ranked=("lesion_dice", "lesion_hd95_mm"),
)
NAN = Protocol(
    name="nan",
    both_empty=dict.fromkeys(SCORES, math.nan),
    penalty_mm=373.0,
    empty_reference_sensitivity=math.nan,
    hd95_method="medpy",
    source="as in BraTS 2026, regions that are empty in both masks are left out; lesions are "
    "matched as in 2023",
)
PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol for protocol in (BRATS_2020, BRATS_2023, NAN)
}
_LESIONS: Mapping[str, tuple[int, float]] = {
    "brats2023_men": (1, 50.0),
    "brats2023_met": (1, 2.0),
}
"""Release -> ``dilations`` and ``min_lesion_mm3``, if they differ from those of ``Protocol``."""


def get_protocol(name: str, *, release: str = "") -> Protocol:
    """Return a protocol by name, with the lesion rules of a release.

    Args:
        name: one of ``PROTOCOLS``.
        release: name of the release that is scored. Meningiomas and metastases are dilated less
            than other lesions, and smaller metastases count.

    Raises:
        ValueError: the protocol is unknown; the message lists all protocols.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}: choose one of {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    if release not in _LESIONS:
        return protocol
    dilations, min_lesion_mm3 = _LESIONS[release]
    return replace(protocol, dilations=dilations, min_lesion_mm3=min_lesion_mm3)
