"""Lesion-wise scores, as defined by BraTS 2023 and 2024."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipseg3d.metrics.hausdorff import HD95Method, hd95_of_pair
from clipseg3d.metrics.lesions import Numbers, find_boxes, number_lesions
from clipseg3d.metrics.mask_pair import MaskPair
from clipseg3d.metrics.nsd import NSDMethod, surface_dice_of_pair
from clipseg3d.metrics.overlap import Overlap


@dataclass(frozen=True)
class LesionScores:
    """Lesion-wise scores of one region.

    Attributes:
        dice: mean Dice over the lesions that count and the false positives, which score 0, as
            false negatives do; NaN if there are none.
        hd95_mm: mean HD95 over the same, where false negatives and false positives count as a fixed
            distance.
        num_lesions: number of lesions in the reference that are large enough to count.
        fn: false negatives, those of them that no predicted component touches.
        fp: false positives, predicted components that touch no lesion, not even a small one.
        f1: 2 TP / (2 TP + FP + FN); NaN if there is nothing to find and nothing found.
        nsd: mean surface Dice over the same as ``dice``, one for each tolerance.
        small_tp: lesions that are too small to count, and found; only where they are told apart.
        small_fn: those of them that are not found.
        small_f1: as ``f1``, for them.
    """

    dice: float
    hd95_mm: float
    num_lesions: int
    fn: int
    fp: int
    f1: float
    nsd: tuple[float, ...] = ()
    small_tp: int = 0
    small_fn: int = 0
    small_f1: float = math.nan

    @property
    def tp(self) -> int:
        """True positives, the lesions that count and are no false negatives."""
        return self.num_lesions - self.fn


def lesion_scores(
    pair: MaskPair,
    *,
    dilations: int,
    min_volume_mm3: float,
    penalty_mm: float,
    method: HD95Method,
) -> LesionScores:
    """Match predicted components to lesions and score each lesion, as in BraTS 2023.

    The reference is dilated first. Components that then touch, if only at a corner, are one lesion.
    A predicted component that overlaps a dilated lesion is matched to it; it may be matched to
    several. A lesion is scored against all components that are matched to it, in their full size.

    Args:
        pair: masks of one region.
        dilations: number of dilations, each by the 18 neighbours of a voxel.
        min_volume_mm3: lesions must be larger than this to count. Components that are matched only
            to smaller lesions are neither scored nor false positives.
        penalty_mm: HD95 of a false negative or a false positive.
        method: definition of the HD95 of a lesion.
    """
    return score_lesions(
        pair,
        number_lesions(pair.reference, dilations=dilations),
        number_lesions(pair.prediction),
        min_volume_mm3=min_volume_mm3,
        penalty_mm=penalty_mm,
        method=method,
    )


def score_lesions(
    pair: MaskPair,
    lesions: Numbers,
    parts: Numbers,
    *,
    min_volume_mm3: float,
    penalty_mm: float,
    method: HD95Method | None,
    tolerances_mm: Sequence[float] = (),
    nsd_method: NSDMethod = "border",
    score_false_positives: bool = True,
) -> LesionScores:
    """Score lesions as :func:`lesion_scores` does, with any rule of what a lesion is.

    Args:
        pair: masks of one region.
        lesions: (x, y, z) numbers of the dilated lesions of the reference.
        parts: (x, y, z) numbers of what the prediction consists of, not dilated.
        min_volume_mm3: as in :func:`lesion_scores`.
        penalty_mm: as in :func:`lesion_scores`.
        method: as in :func:`lesion_scores`; None leaves HD95 of lesions out, as NaN.
        tolerances_mm: tolerances of the surface Dice of a lesion.
        nsd_method: definition of that surface Dice.
        score_false_positives: False leaves them out of all means; they are counted all the same.
    """
    num_lesions, num_parts = int(lesions.max(initial=0)), int(parts.max(initial=0))
    shared = (lesions > 0) & (parts > 0)
    # pairs of a lesion and a part that overlap, each once
    matched_lesions, matched_parts = np.divmod(
        np.unique(lesions[shared].astype(np.int64) * (num_parts + 1) + parts[shared]),
        num_parts + 1,
    )
    fp = num_parts - len(np.unique(matched_parts))
    sizes = np.bincount(lesions[pair.reference], minlength=num_lesions + 1)
    volumes_mm3 = sizes * math.prod(pair.spacing_mm)
    is_large = volumes_mm3 > min_volume_mm3
    lesion_boxes, part_boxes = find_boxes(lesions), find_boxes(parts)
    missed = (0.0, penalty_mm, *[0.0] * len(tolerances_mm))
    scores = [missed] * fp if score_false_positives else []
    fn = 0
    for lesion in np.flatnonzero(is_large):
        own = matched_parts[matched_lesions == lesion]
        if not len(own):
            fn += 1
            scores.append(missed)
            continue
        box = _joint_box([lesion_boxes[lesion - 1], *(part_boxes[number - 1] for number in own)])
        is_own = np.zeros(num_parts + 1, dtype=np.bool_)
        is_own[own] = True
        lesion_pair = MaskPair.cut(
            is_own[parts[box]],
            (lesions[box] == lesion) & pair.reference[box],
            spacing_mm=pair.spacing_mm,
        )
        scores.append(score_pair(lesion_pair, method, tolerances_mm, nsd_method))
    dice, hd95, *nsd = mean_scores(scores, 2 + len(tolerances_mm))
    count = int(is_large.sum())
    return LesionScores(dice, hd95, count, fn, fp, f1_score(count - fn, fp, fn), tuple(nsd))


def score_pair(
    pair: MaskPair,
    method: HD95Method | None,
    tolerances_mm: Sequence[float],
    nsd_method: NSDMethod,
) -> tuple[float, ...]:
    """Return Dice, HD95 and surface Dice, one for each tolerance, of one lesion."""
    return (
        Overlap.of(pair).dice_empty_is_nan,
        math.nan if method is None else hd95_of_pair(pair, method),
        *surface_dice_of_pair(pair, tolerances_mm, nsd_method),
    )


def mean_scores(scores: Sequence[Sequence[float]], number: int) -> list[float]:
    """Return the mean of each score over lesions; NaN without lesions."""
    if not scores:
        return [math.nan] * number
    return [sum(column) / len(scores) for column in zip(*scores, strict=True)]


def f1_score(tp: int, fp: int, fn: int) -> float:
    """Return 2 TP / (2 TP + FP + FN); NaN if all are 0."""
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else math.nan


def _joint_box(boxes: list[tuple[slice, slice, slice]]) -> tuple[slice, ...]:
    """Return the smallest box that holds all the boxes."""
    return tuple(
        slice(min(side.start for side in sides), max(side.stop for side in sides))
        for sides in zip(*boxes, strict=True)
    )
