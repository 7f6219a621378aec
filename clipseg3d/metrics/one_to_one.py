"""Scores of lesions that are matched one to one, as BraTS 2026 does."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from clipseg3d.metrics.hausdorff import HD95Method
from clipseg3d.metrics.lesions import Numbers, find_boxes
from clipseg3d.metrics.lesionwise import LesionScores, f1_score, mean_scores, score_pair
from clipseg3d.metrics.mask_pair import MaskPair
from clipseg3d.metrics.nsd import NSDMethod

NO_OVERLAP = -1e-6
"""What a pair without a common voxel adds to the sum of Dice: fewer such pairs decide ties."""


def one_to_one_scores(
    pair: MaskPair,
    lesions: Numbers,
    parts: Numbers,
    *,
    penalty_mm: float,
    method: HD95Method | None,
    tolerances_mm: Sequence[float] = (),
    nsd_method: NSDMethod = "border",
) -> LesionScores:
    """Match each lesion with at most one predicted component, and average over the matches.

    Among all ways to match them, the one with the largest
    sum of Dice is taken. Lesions without a match are false negatives, components without one false
    positives; both are counted, but they are in no mean.

    Args:
        pair: masks of one region.
        lesions: (x, y, z) numbers of the lesions of the reference.
        parts: (x, y, z) numbers of the components of the prediction.
        penalty_mm: HD95 if nothing is matched.
        method: definition of the HD95 of a lesion; None leaves it out, as NaN.
        tolerances_mm: tolerances of the surface Dice of a lesion.
        nsd_method: definition of that surface Dice.
    """
    num_lesions, num_parts = int(lesions.max(initial=0)), int(parts.max(initial=0))
    matches = match_one_to_one(lesions, parts)
    scores = _score_matches(pair, lesions, parts, matches, method, tolerances_mm, nsd_method)
    missed = (0.0, penalty_mm, *[0.0] * len(tolerances_mm))
    if not matches and num_lesions + num_parts:
        scores = {0: missed}
    dice, hd95, *nsd = mean_scores(list(scores.values()), len(missed))
    fn, fp = num_lesions - len(matches), num_parts - len(matches)
    f1 = f1_score(len(matches), fp, fn)
    return LesionScores(dice, hd95, num_lesions, fn, fp, f1, tuple(nsd))


def large_lesion_scores(
    pair: MaskPair,
    lesions: Numbers,
    parts: Numbers,
    *,
    min_volume_mm3: float,
    min_dice: float,
    penalty_mm: float,
    method: HD95Method | None,
    tolerances_mm: Sequence[float] = (),
    nsd_method: NSDMethod = "border",
) -> LesionScores:
    """Match as :func:`one_to_one_scores`, and score as BraTS 2026 scores metastases.

    Means are taken over large lesions and all false positives; who has no match scores 0 and the
    penalty. A lesion is only found if its Dice is large enough. Small lesions are counted apart.
    Without a large lesion there is no mean.

    Args:
        pair: masks of one region.
        lesions: (x, y, z) numbers of the lesions of the reference.
        parts: (x, y, z) numbers of the components of the prediction.
        min_volume_mm3: volume from which a lesion is large.
        min_dice: Dice from which a matched lesion is found; below, it is a false negative.
        penalty_mm: HD95 of lesions and components without a match.
        method: definition of the HD95 of a lesion; None leaves it out, as NaN.
        tolerances_mm: tolerances of the surface Dice of a lesion.
        nsd_method: definition of that surface Dice.
    """
    matches = match_one_to_one(lesions, parts)
    scores = _score_matches(pair, lesions, parts, matches, method, tolerances_mm, nsd_method)
    volumes = np.bincount(lesions.ravel())[1:] * math.prod(pair.spacing_mm)
    large, small = (
        [index + 1 for index in np.flatnonzero(chosen).tolist()]
        for chosen in (volumes >= min_volume_mm3, volumes < min_volume_mm3)
    )
    missed = (0.0, penalty_mm, *[0.0] * len(tolerances_mm))
    found = {lesion for lesion, score in scores.items() if score[0] >= min_dice}
    fp = int(parts.max(initial=0)) - len(matches)
    counted = [scores.get(lesion, missed) for lesion in large] + [missed] * fp
    dice, hd95, *nsd = mean_scores(counted if large else [], len(missed))
    fn, small_fn = len(set(large) - found), len(set(small) - found)
    return LesionScores(
        dice,
        hd95,
        len(large),
        fn,
        fp,
        f1_score(len(large) - fn, fp, fn) if large else math.nan,
        tuple(nsd),
        small_tp=len(small) - small_fn,
        small_fn=small_fn,
        small_f1=f1_score(len(small) - small_fn, fp, small_fn) if small else math.nan,
    )


def match_one_to_one(lesions: Numbers, parts: Numbers) -> dict[int, int]:
    """Return lesion -> its predicted component, so that the sum of Dice is as large as possible."""
    base = int(parts.max(initial=0)) + 1
    both = (lesions > 0) & (parts > 0)
    pairs, shared = np.unique(
        lesions[both].astype(np.int64) * base + parts[both], return_counts=True
    )
    lesion, part = np.divmod(pairs, base)
    rows, row = np.unique(lesion, return_inverse=True)
    columns, column = np.unique(part, return_inverse=True)
    gains = np.full((len(rows), len(columns)), NO_OVERLAP)
    sizes = np.bincount(lesions.ravel())[lesion] + np.bincount(parts.ravel())[part]
    gains[row, column] = 2 * shared / sizes
    chosen = zip(*linear_sum_assignment(gains, maximize=True), strict=True)
    return {int(rows[r]): int(columns[c]) for r, c in chosen if gains[r, c] > 0}


def _score_matches(
    pair: MaskPair,
    lesions: Numbers,
    parts: Numbers,
    matches: dict[int, int],
    method: HD95Method | None,
    tolerances_mm: Sequence[float],
    nsd_method: NSDMethod,
) -> dict[int, tuple[float, ...]]:
    """Return lesion -> its scores, for lesions with a match."""
    lesion_boxes, part_boxes = find_boxes(lesions), find_boxes(parts)
    scores = {}
    for lesion, part in matches.items():
        sides = zip(lesion_boxes[lesion - 1], part_boxes[part - 1], strict=True)
        box = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in sides)
        matched = MaskPair.cut(
            parts[box] == part, lesions[box] == lesion, spacing_mm=pair.spacing_mm
        )
        scores[lesion] = score_pair(matched, method, tolerances_mm, nsd_method)
    return scores
