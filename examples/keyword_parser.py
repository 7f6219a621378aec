"""A rival of every network that reads: keywords in a report, and edits of a segmentation.

What a network does with a report is worth its cost only if it does more than these rules.
"""

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from clipseg3d.phantom.grid import Bool
from clipseg3d.texts.facts import CORE, ENHANCING, OEDEMA, Label
from clipseg3d.texts.prompt_wording import Request, Target

Extent = Literal["none", "limited", "moderate", "extensive"]

RIM_MM = 3.0
"""Thickness of the rim that is drawn where a report tells of enhancement that is not seen."""
LIMITED_ML, EXTENSIVE_ML = 20.0, 60.0
"""Volumes of oedema: at most, if it is limited; at least, if it is extensive."""

_NO = re.compile(r"\b(no|not|non|nor|neither|without|absent|absence|lacks?|free of|fails?)\b")
_NUMBERS = {"single": 1, "solitary": 1, "one": 1, "two": 2, "three": 3, "four": 4, "several": 5}
_EXTENTS: dict[Extent, str] = {
    "limited": r"limited|mild|slight|minimal|little|small",
    "moderate": r"moderate|medium",
    "extensive": r"extensive|marked|severe|significant|pronounced|large|widespread",
}


@dataclass(frozen=True)
class Reading:
    """Facts that keywords of a report state; None if they state nothing.

    Attributes:
        enhancing: whether anything enhances.
        side: of the patient.
        foci: number of lesions; 5 for several.
        oedema: extent of the oedema.
        necrosis: whether there is necrosis.
    """

    enhancing: bool | None = None
    side: Literal["left", "right"] | None = None
    foci: int | None = None
    oedema: Extent | None = None
    necrosis: bool | None = None


def read(report: str) -> Reading:
    """Read a report by keywords: for each fact the clauses that hold its word, and a negation.

    Example:
        >>> read("A single lesion in the left lobe. No contrast enhancement is seen.").enhancing
        False
    """
    clauses = re.split(r"[.;]\s*", report.lower())
    enhancement = [
        _NO.search(clause) is None
        for clause in clauses
        # necrosis is often said to be what does not take up contrast
        if re.search(r"enhanc|contrast", clause)
        and ("necro" not in clause or re.search(r"\bnor\b|\bno necrosis and no\b", clause))
    ]
    sides = re.findall(r"\b(left|right)\b", report.lower())
    number = "|".join(_NUMBERS)
    counted = re.search(
        rf"\b({number})\b[\w ]*?\b(lesions?|focus|foci|mass|masses|tumou?rs?)\b", report.lower()
    )
    oedema: Extent | None = None
    for clause in clauses:
        if re.search(r"o?edema", clause):
            words = [extent for extent, known in _EXTENTS.items() if re.search(known, clause)]
            oedema = "none" if _NO.search(clause) else words[0] if words else oedema
    necrosis = [_NO.search(_before_that(clause)) is None for clause in clauses if "necro" in clause]
    return Reading(
        enhancing=any(enhancement) if enhancement else None,
        side=sides[0] if sides and len(set(sides)) == 1 else None,
        foci=_NUMBERS[counted[1]] if counted else None,
        oedema=oedema,
        necrosis=any(necrosis) if necrosis else None,
    )


def _before_that(clause: str) -> str:
    """Return a clause without what "that" or "which" adds."""
    return re.split(r"\b(?:that|which)\b", clause)[0]


_PARTS: dict[Target, str] = {
    "necrosis": r"necro|dead|cyst|avascular|non-?enhanc|unenhanc|hypointense|dark",
    "enhancing": r"enhanc|contrast|gadolin|\bgd\b|\brim\b|\bring\b|\bet\b",
    "oedema": r"o?edema|swell|swollen|halo",
    "core": r"\bcore\b|solid|bulk|\btc\b",
    "whole": r"whole|entire|tumou?r|lesion|mass|abnormal|glioma|\bwt\b",
}
"""Target -> words of it, the most special first."""


def read_prompt(prompt: str) -> Request:
    """Read a prompt by keywords; what has none asks for nothing.

    Example:
        >>> read_prompt("the largest enhancing nodule on the left")
        Request(target='enhancing', side='left', site=None, pick='largest')
    """
    text = prompt.lower()
    found = [target for target, words in _PARTS.items() if re.search(words, text)]
    target: Target = found[0] if found else "none"
    if "oedema" in found and re.search(r"\b(and|with|including|plus)\b|\bwhole\b|entire", text):
        target = "whole"
    side = re.search(r"\b(left|right)\b", text)
    site = re.search(r"\b(frontal|parietal|temporal|occipital)\b", text)
    pick = re.search(r"\b(largest|biggest|smallest)\b", text)
    return Request(
        target,
        side=side and side[1],
        site=site and site[1],
        pick=pick and ("smallest" if pick[1] == "smallest" else "largest"),
    )


def edit(label: Label, report: str, brain: Bool, *, spacing_mm: float) -> Label:
    """Change a segmentation as a report says.

    Without enhancement, enhancing tumour becomes core. With it, a core where none enhances gets a
    rim. A side keeps the parts on that side, a single lesion the largest part; neither removes all
    there is. Limited oedema shrinks to what is nearest to the core, extensive oedema grows.

    Args:
        label: BraTS 2018-2021 labels that a network found without a report, in LPS voxel order.
        report: text about the case.
        brain: brain mask.
        spacing_mm: edge of the cubic voxel, in mm.
    """
    reading, label = read(report), label.copy()
    if not label.any():
        return label
    if reading.side is not None or reading.foci == 1:
        label = _select(label, reading, brain)
    core = (label == CORE) | (label == ENHANCING)
    if reading.enhancing is False:
        label[core] = CORE
    elif reading.enhancing and not (label == ENHANCING).any() and core.any():
        depth = ndimage.distance_transform_edt(core, sampling=spacing_mm)
        label[core & (depth <= RIM_MM)] = ENHANCING
    if reading.oedema is not None and core.any():
        label = _resize_oedema(label, core, reading.oedema, brain, spacing_mm)
    return label


def _select(label: Label, reading: Reading, brain: Bool) -> Label:
    """Keep the parts of a tumour that a report tells of."""
    parts, count = ndimage.label(label > 0, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    kept = sizes > 0
    if reading.side is not None:
        inside = np.flatnonzero(brain.any(axis=(1, 2)))
        middle = (inside[0] + inside[-1]) / 2
        centres = ndimage.center_of_mass(parts > 0, parts, range(1, count + 1))
        on_left = np.array([False, *(centre[0] > middle for centre in centres)])
        named = kept & (on_left if reading.side == "left" else ~on_left)
        kept = named if named.any() else kept
    if reading.foci == 1:
        largest = np.argmax(np.where(kept, sizes, 0))
        kept = np.arange(count + 1) == largest
    return np.asarray(np.where(kept[parts], label, 0), np.uint8)


def _resize_oedema(
    label: Label, core: Bool, extent: Extent, brain: Bool, spacing_mm: float
) -> Label:
    """Let oedema shrink or grow, by distance from what stays."""
    oedema = label == OEDEMA
    voxel_ml = spacing_mm**3 / 1000
    wanted = {"none": 0.0, "limited": LIMITED_ML, "extensive": EXTENSIVE_ML}.get(extent)
    volume = oedema.sum() * voxel_ml
    if wanted is None or (volume >= wanted if extent == "extensive" else volume <= wanted):
        return label
    start = core | oedema if extent == "extensive" else core
    allowed = (brain & ~start) if extent == "extensive" else oedema
    missing = wanted - volume if extent == "extensive" else wanted
    distance = ndimage.distance_transform_edt(~start, sampling=spacing_mm)[allowed]
    count = min(round(missing / voxel_ml), distance.size)
    nearest = np.zeros(distance.size, bool)
    nearest[np.argsort(distance, kind="stable")[:count]] = True
    label[allowed] = np.where(nearest, OEDEMA, 0)
    return label
