"""Lesion-wise scores, as defined by BraTS 2023."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from clipseg3d.metrics.hausdorff import HD95Method, hd95_of_pair
from clipseg3d.metrics.mask_pair import MARGIN, Mask, MaskPair
from clipseg3d.metrics.overlap import Overlap

ALL_NEIGHBOURS = np.ones((3, 3, 3), dtype=np.bool_)


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
    """

    dice: float
    hd95_mm: float
    num_lesions: int
    fn: int
    fp: int


def lesion_scores(
    pair: MaskPair,
    *,
    dilations: int,
    min_volume_mm3: float,
    penalty_mm: float,
    method: HD95Method,
) -> LesionScores:
    """Match predicted components to lesions and score each lesion.

    The reference is dilated first. Components that then touch, if only at a corner, are one lesion.
    A predicted component that overlaps a dilated lesion is matched to it; it may be matched to
    several. A lesion is scored against all components that are matched to it, in their full size.

    Args:
        pair: masks of one region.
        dilations: number of dilations, each by the 18 neighbours of a voxel; at most ``MARGIN``.
        min_volume_mm3: lesions must be larger than this to count. Components that are matched only
            to smaller lesions are neither scored nor false positives.
        penalty_mm: HD95 of a false negative or a false positive.
        method: definition of the HD95 of a lesion.

    Raises:
        ValueError: ``dilations`` is larger than ``MARGIN``.
    """
    if dilations > MARGIN:
        raise ValueError(
            f"dilations={dilations} is larger than {MARGIN}; the margin of the masks is no wider"
        )
    lesions, num_lesions = ndimage.label(_dilate(pair.reference, dilations), ALL_NEIGHBOURS)
    parts, num_parts = ndimage.label(pair.prediction, ALL_NEIGHBOURS)
    shared = (lesions > 0) & pair.prediction
    # pairs of a lesion and a predicted component that overlap, each once
    matched_lesions, matched_parts = np.divmod(
        np.unique(lesions[shared].astype(np.int64) * (num_parts + 1) + parts[shared]),
        num_parts + 1,
    )
    fp = num_parts - len(np.unique(matched_parts))
    sizes = np.bincount(lesions[pair.reference], minlength=num_lesions + 1)
    volumes_mm3 = sizes * math.prod(pair.spacing_mm)
    lesion_boxes = ndimage.find_objects(lesions)
    part_boxes = ndimage.find_objects(parts)
    dice, hd95, fn = [0.0] * fp, [penalty_mm] * fp, 0
    for lesion in np.flatnonzero(volumes_mm3 > min_volume_mm3):
        own = matched_parts[matched_lesions == lesion]
        if not len(own):
            fn += 1
            dice.append(0.0)
            hd95.append(penalty_mm)
            continue
        box = _joint_box([lesion_boxes[lesion - 1], *(part_boxes[number - 1] for number in own)])
        is_own = np.zeros(num_parts + 1, dtype=np.bool_)
        is_own[own] = True
        lesion_pair = MaskPair.cut(
            is_own[parts[box]],
            (lesions[box] == lesion) & pair.reference[box],
            spacing_mm=pair.spacing_mm,
        )
        dice.append(Overlap.of(lesion_pair).dice_empty_is_nan)
        hd95.append(hd95_of_pair(lesion_pair, method))
    return LesionScores(
        dice=sum(dice) / len(dice) if dice else math.nan,
        hd95_mm=sum(hd95) / len(hd95) if hd95 else math.nan,
        num_lesions=len(dice) - fp,
        fn=fn,
        fp=fp,
    )


def _dilate(mask: Mask, dilations: int) -> Mask:
    """Dilate a mask several times, each time by the 18 neighbours of each voxel."""
    for _ in range(dilations):
        along_x, along_y = _dilate_along(mask, 0), _dilate_along(mask, 1)
        mask = _dilate_along(along_x, 1)
        mask |= _dilate_along(along_x, 2)
        mask |= _dilate_along(along_y, 2)
    return mask


def _dilate_along(mask: Mask, axis: int) -> Mask:
    """Dilate a mask by the two neighbours of each voxel along an axis."""
    dilated: Mask = mask.copy()
    source, target = np.moveaxis(mask, axis, 0), np.moveaxis(dilated, axis, 0)
    target[1:] |= source[:-1]
    target[:-1] |= source[1:]
    return dilated


def _joint_box(boxes: list[tuple[slice, slice, slice]]) -> tuple[slice, ...]:
    """Return the smallest box that holds all the boxes."""
    return tuple(
        slice(min(side.start for side in sides), max(side.stop for side in sides))
        for sides in zip(*boxes, strict=True)
    )
