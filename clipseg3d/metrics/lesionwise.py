"""Scores lesion by lesion, as BraTS 2023 takes them."""

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
    """How well the lesions of one region were found.

    Attributes:
        dice: sum of the lesions' Dice / number of lesions, false positives included; NaN where there
            is none.
        hd95_mm: as ``dice``, where false negatives and false positives count as some fixed distance.
        num_lesions: lesions of the reference that are large enough to count.
        fn: those of them that no predicted component touches.
        fp: predicted components that touch no lesion, however small.
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
    missed_mm: float,
    method: HD95Method,
) -> LesionScores:
    """Match predicted components to lesions and score each lesion.

    Components of the reference are one lesion if they touch, by a corner at least, once each has
    grown. A predicted component belongs to every lesion that it touches when that has grown, and a
    lesion is scored against all that belongs to it, in full.

    Args:
        pair: masks of one region.
        dilations: times that lesions grow by the 18 neighbours of each voxel, up to ``MARGIN``.
        min_volume_mm3: lesions must be larger than this; what belongs to smaller ones is neither
            scored nor a false positive.
        missed_mm: distance that a false negative or false positive counts as.
        method: definition of the HD95 of a lesion.

    Raises:
        ValueError: ``dilations`` is larger than ``MARGIN``.
    """
    if dilations > MARGIN:
        raise ValueError(f"dilations={dilations} is larger than {MARGIN}; masks have no more room")
    lesions, num_lesions = ndimage.label(_grown(pair.reference, dilations), ALL_NEIGHBOURS)
    parts, num_parts = ndimage.label(pair.prediction, ALL_NEIGHBOURS)
    touching = (lesions > 0) & pair.prediction
    owner, part = np.divmod(
        np.unique(lesions[touching].astype(np.int64) * (num_parts + 1) + parts[touching]),
        num_parts + 1,
    )
    fp = num_parts - len(np.unique(part))
    sizes = np.bincount(lesions[pair.reference], minlength=num_lesions + 1)
    volumes_mm3 = sizes * math.prod(pair.spacing_mm)
    lesion_boxes = ndimage.find_objects(lesions)
    part_boxes = ndimage.find_objects(parts)
    dice, hd95, fn = [0.0] * fp, [missed_mm] * fp, 0
    for lesion in np.flatnonzero(volumes_mm3 > min_volume_mm3):
        own = part[owner == lesion]
        if not len(own):
            fn += 1
            dice.append(0.0)
            hd95.append(missed_mm)
            continue
        box = _around([lesion_boxes[lesion - 1], *(part_boxes[number - 1] for number in own)])
        belongs = np.zeros(num_parts + 1, dtype=np.bool_)
        belongs[own] = True
        found = belongs[parts[box]]
        true = (lesions[box] == lesion) & pair.reference[box]
        one = MaskPair.cut(found, true, spacing_mm=pair.spacing_mm)
        dice.append(Overlap.of(one).dice_empty_is_nan)
        hd95.append(hd95_of_pair(one, method))
    return LesionScores(
        dice=sum(dice) / len(dice) if dice else math.nan,
        hd95_mm=sum(hd95) / len(hd95) if hd95 else math.nan,
        num_lesions=len(dice) - fp,
        fn=fn,
        fp=fp,
    )


def _grown(mask: Mask, dilations: int) -> Mask:
    """Dilate a mask by the 18 neighbours of each voxel, some times over."""
    for _ in range(dilations):
        along_x, along_y = _spread(mask, 0), _spread(mask, 1)
        mask = _spread(along_x, 1)
        mask |= _spread(along_x, 2)
        mask |= _spread(along_y, 2)
    return mask


def _spread(mask: Mask, axis: int) -> Mask:
    """Add the two neighbours of each voxel along an axis."""
    wider: Mask = mask.copy()
    rows, spread = np.moveaxis(mask, axis, 0), np.moveaxis(wider, axis, 0)
    spread[1:] |= rows[:-1]
    spread[:-1] |= rows[1:]
    return wider


def _around(boxes: list[tuple[slice, slice, slice]]) -> tuple[slice, ...]:
    """Return the smallest box that holds all of some boxes."""
    return tuple(
        slice(min(side.start for side in sides), max(side.stop for side in sides))
        for sides in zip(*boxes, strict=True)
    )
