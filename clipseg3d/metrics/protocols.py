"""Rules of challenges where they differ: empty masks, lesions, penalties."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from clipseg3d.metrics.hausdorff import HD95Method
from clipseg3d.metrics.nsd import NSDMethod

HIGHER_IS_BETTER: Mapping[str, bool] = {
    "dice": True,
    "hd95_mm": False,
    "sensitivity": True,
    "specificity": True,
    "nsd": True,
    "lesion_dice": True,
    "lesion_hd95_mm": False,
    "lesion_tp": True,
    "lesion_fp": False,
    "lesion_fn": False,
    "lesion_f1": True,
    "nsd_05": True,
    "lesion_nsd": True,
    "lesion_nsd_05": True,
    "small_lesion_tp": True,
    "small_lesion_fn": False,
    "small_lesion_f1": True,
}
"""Every score of a region of a case. ``nsd`` tolerates 1 mm, ``nsd_05`` half of it; ``lesion_tp``,
``lesion_fp`` and ``lesion_fn`` count lesions."""
SCORES = tuple(HIGHER_IS_BETTER)[:11]
"""Scores that most protocols have, in the order of their tables."""
COUNTS = ("lesion_tp", "lesion_fp", "lesion_fn", "small_lesion_tp", "small_lesion_fn")
"""Scores that are numbers of lesions; where both masks are empty, they are 0."""


@dataclass(frozen=True)
class Protocol:
    """The rules of one challenge, for one region of one task.

    Attributes:
        name: as on the command line.
        both_empty: score -> its value if reference and prediction are empty; with NaN, the case is
            left out of the mean. Lesion-wise scores take this value if no lesion is large enough to
            count and there is no false positive.
        penalty_mm: HD95 if only one of the masks is empty, and HD95 of a lesion that is a false
            negative or a false positive. None takes the diagonal of the volume, counted in voxels
            as in the scripts of 2024, which is the same on their grid of 1 mm.
        empty_reference_sensitivity: sensitivity if only the reference is empty.
        hd95_method: definition of the HD95 that the challenge used.
        source: where the rules come from, as text for the user.
        releases: regular expression of the names of the releases that the challenge scored.
        scores: names of the scores, in the order of the table.
        nsd_method: definition of the surface Dice.
        penalise_no_overlap: take ``penalty_mm`` as HD95 of whole masks without a common voxel, too.
        one_to_one: match each lesion with one component at most, by Dice; otherwise with all
            components that it touches once it is dilated.
        dilations: number of dilations before lesions are separated and matched.
        min_lesion_mm3: lesions must be larger than this to count; if matched one to one, as large.
            The scripts count voxels of their grid of 1 mm, which is the same.
        min_lesion_dice: if matched one to one, the Dice from which a lesion counts as found; None
            leaves size and Dice out of account.
        merge_predictions: separate predicted lesions by dilation as well, and take those that are
            too small out of the prediction before anything is scored.
        score_false_positives: False leaves false positives out of the means over lesions.
        joined_by: regions whose lesions join those of this region that touch them, one after the
            other.
        ranked: scores by which several predictions are ranked.
        tasks: task, the part of a release's name after the year -> rules that differ there.
        of_region: region -> rules that differ there.
    """

    name: str
    both_empty: Mapping[str, float]
    penalty_mm: float | None
    empty_reference_sensitivity: float
    hd95_method: HD95Method
    source: str
    releases: str
    scores: tuple[str, ...] = SCORES
    nsd_method: NSDMethod = "surface"
    penalise_no_overlap: bool = False
    one_to_one: bool = False
    dilations: int = 3
    min_lesion_mm3: float = 50.0
    min_lesion_dice: float | None = None
    merge_predictions: bool = False
    score_false_positives: bool = True
    joined_by: tuple[str, ...] = ()
    ranked: tuple[str, ...] = ("dice", "hd95_mm")
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    of_region: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def for_region(self, region: str) -> "Protocol":
        """Return the rules of a region."""
        return replace(self, **self.of_region.get(region, {}))

    def fits(self, release: str) -> bool:
        """Return whether the challenge scored a release, so that scores compare with its own."""
        return re.fullmatch(self.releases, release) is not None

    def lesion_rules(self) -> str:
        """Return what a lesion is, and what counts, as text."""
        if self.one_to_one:
            text = "matched one to one by Dice"
            if self.min_lesion_dice is not None:
                text += f", from {self.min_lesion_mm3:g} mm3 and a Dice of {self.min_lesion_dice:g}"
        else:
            text = f"dilated {self.dilations} times, larger than {self.min_lesion_mm3:g} mm3"
        text += ", predicted ones too" if self.merge_predictions else ""
        text += f", joined by {' and '.join(self.joined_by)}" if self.joined_by else ""
        return text


_PERFECT = {
    name: 0.0 if name in COUNTS else float(better) for name, better in HIGHER_IS_BETTER.items()
}
_MISSING = {name: 0.0 if name in COUNTS else math.nan for name in HIGHER_IS_BETTER}
_TASKS_2023: Mapping[str, Mapping[str, Any]] = {
    "men": {"dilations": 1},
    "met": {"dilations": 1, "min_lesion_mm3": 2.0},
}
_ET_BY_CORE = {"ET": {"joined_by": ("NETC",)}}

BRATS_2020 = Protocol(
    name="brats2020",
    both_empty=_PERFECT,
    penalty_mm=math.sqrt(240**2 + 240**2 + 155**2),
    empty_reference_sensitivity=0.0,
    hd95_method="medpy",
    source="BraTS 2020 (CaPTk; its HD95 was never published, so that of medpy is used, as nnU-Net "
    "does; nsd and lesion-wise scores were not part of it and follow 2023)",
    releases=r"brats20(1\d|2[01])|msd_task01|phantom",
    tasks=_TASKS_2023,
)
BRATS_2023 = Protocol(
    name="brats2023",
    both_empty=_PERFECT,
    penalty_mm=374.0,
    empty_reference_sensitivity=0.0,
    hd95_method="surface",
    source="BraTS 2023 (lesion-wise script; nsd was added in 2024)",
    releases=r"brats2023_\w+",
    ranked=("lesion_dice", "lesion_hd95_mm"),
    tasks=_TASKS_2023,
)
BRATS_2024 = Protocol(
    name="brats2024",
    both_empty=_PERFECT,
    penalty_mm=337.0,
    empty_reference_sensitivity=0.0,
    hd95_method="surface",
    source="BraTS 2024 and 2025 (lesion-wise scripts; sensitivity and specificity are those of "
    "voxels, where the scripts sum the numbers of lesions)",
    releases=r"brats202[45]_\w+|brats2023_(ssa|men|met)",
    scores=(*SCORES, "nsd_05", "lesion_nsd", "lesion_nsd_05"),
    nsd_method="border",
    dilations=3,
    min_lesion_mm3=20.0,
    merge_predictions=True,
    ranked=("lesion_dice", "lesion_hd95_mm"),
    of_region={
        "ET": {"min_lesion_mm3": 10.0, "joined_by": ("NETC", "RC")},
        "NETC": {"dilations": 5, "joined_by": ("ET", "RC")},
        "RC": {"dilations": 5, "joined_by": ("ET", "NETC")},
        "SNFH": {"joined_by": ("ET", "RC", "NETC")},
    },
    tasks={
        "ssa": {"min_lesion_mm3": 50.0, "penalty_mm": 374.0, "of_region": _ET_BY_CORE},
        "ped": {"dilations": 5, "min_lesion_mm3": 10.0, "penalty_mm": 374.0, "of_region": {}},
        "men": {
            "dilations": 1,
            "min_lesion_mm3": 50.0,
            "penalty_mm": 374.0,
            "merge_predictions": False,
            "of_region": {},
        },
        "men_rt": {
            "dilations": 1,
            "min_lesion_mm3": 50.0,
            "penalty_mm": None,
            "score_false_positives": False,
            "of_region": {},
        },
        "met": {
            "dilations": 1,
            "min_lesion_mm3": 2.0,
            "penalty_mm": None,
            "of_region": _ET_BY_CORE,
        },
    },
)
_SCORES_2026 = (
    "dice",
    "hd95_mm",
    "nsd_05",
    "lesion_dice",
    "lesion_hd95_mm",
    "lesion_nsd",
    "lesion_tp",
    "lesion_fp",
    "lesion_fn",
    "lesion_f1",
)
BRATS_2026 = Protocol(
    name="brats2026",
    both_empty=_MISSING,
    penalty_mm=373.0,
    empty_reference_sensitivity=math.nan,
    hd95_method="medpy",
    source="BraTS 2026 (brats-evaluation 0.0.10; regions that are empty in both masks are left "
    "out; its HD95 is infinite where masks have no voxel in common, here 373)",
    releases=r"brats202[456]_\w+|brats2023_(ssa|men|met)",
    scores=_SCORES_2026,
    nsd_method="border",
    penalise_no_overlap=True,
    one_to_one=True,
    dilations=0,
    ranked=("dice", "hd95_mm", "lesion_f1"),
    tasks={
        "met": {
            "min_lesion_mm3": 20.0,
            "min_lesion_dice": 0.1,
            "scores": (*_SCORES_2026, "small_lesion_tp", "small_lesion_fn", "small_lesion_f1"),
        },
    },
)
NAN = Protocol(
    name="nan",
    both_empty=_MISSING,
    penalty_mm=373.0,
    empty_reference_sensitivity=math.nan,
    hd95_method="medpy",
    source="as in BraTS 2026, regions that are empty in both masks are left out; lesions are "
    "matched as in 2023",
    releases=r".*",
    tasks=_TASKS_2023,
)
PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol for protocol in (BRATS_2020, BRATS_2023, BRATS_2024, BRATS_2026, NAN)
}


def get_protocol(name: str, *, release: str = "") -> Protocol:
    """Return a protocol by name, with the rules of a task.

    Args:
        name: one of ``PROTOCOLS``.
        release: name of the release that is scored, such as ``brats2023_met``. What follows the
            year is the task. A task without rules of its own is scored as gliomas are.

    Raises:
        ValueError: the protocol is unknown; the message lists all protocols.
    """
    if name not in PROTOCOLS:
        raise ValueError(
            f"unknown protocol {name!r}: choose one of {', '.join(PROTOCOLS)}; 2021 is scored as "
            "2020, and 2025 as 2024"
        )
    protocol = PROTOCOLS[name]
    return replace(protocol, **protocol.tasks.get(release.partition("_")[2], {}))


def fitting_protocol(release: str) -> str:
    """Return the name of the first protocol that fits a release; ``nan`` fits every one.

    Example:
        >>> fitting_protocol("brats2024_gli")
        'brats2024'
    """
    return next(name for name, protocol in PROTOCOLS.items() if protocol.fits(release))
