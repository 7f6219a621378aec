"""How the voxels of a mask become lesions: components, dilation, size, and neighbours."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from clipseg3d.metrics.mask_pair import Mask

ALL_NEIGHBOURS = np.ones((3, 3, 3), dtype=np.bool_)
"""Voxels that share a corner are connected too."""
Numbers = npt.NDArray[np.int32]


def number_lesions(mask: Mask, *, dilations: int = 0) -> Numbers:
    """Number the lesions of a mask from 1, (x, y, z); 0 is background.

    Components that touch, if only at a corner, once the mask is dilated are one lesion.

    Args:
        mask: (x, y, z).
        dilations: number of dilations, each by the 18 neighbours of a voxel. What they add to a
            lesion has its number too.
    """
    numbers: Numbers = ndimage.label(_dilate(mask, dilations), ALL_NEIGHBOURS)[0]
    return numbers


def drop_small(numbers: Numbers, *, min_volume_mm3: float, spacing_mm: Sequence[float]) -> Numbers:
    """Return the lesions that are larger than a volume, numbered from 1 in the same order."""
    volumes = np.bincount(numbers.ravel()) * math.prod(spacing_mm)
    is_kept = volumes > min_volume_mm3
    is_kept[0] = False
    return _renumber(is_kept.cumsum() * is_kept, numbers)


def join_lesions(numbers: Numbers, mask: Mask, others: Numbers) -> Numbers:
    """Join the lesions that touch the same lesion of another region, and number them from 1.

    A lesion that touches several is joined by the first of them, as in the scripts of BraTS 2024:
    two lesions may touch a third one and yet stay two.

    Args:
        numbers: (x, y, z) lesions of a region, as :func:`number_lesions` returns them.
        mask: (x, y, z) the region itself, without what a dilation added.
        others: (x, y, z) lesions of the other region, not dilated. Voxels touch if one is among
            the 18 neighbours of the other.
    """
    own, count = numbers * mask, int(others.max(initial=0))
    first = np.full(int(numbers.max(initial=0)) + 1, count + 1)
    for step in itertools.product((-1, 0, 1), repeat=3):
        if np.abs(step).sum() == 3:
            continue  # a corner, which is none of the 18 neighbours
        here = own[tuple(slice(max(-s, 0), -s if s > 0 else None) for s in step)]
        there = others[tuple(slice(max(s, 0), s if s < 0 else None) for s in step)]
        touching = (here > 0) & (there > 0)
        np.minimum.at(first, here[touching], there[touching])
    joined = np.where(first <= count, first, count + np.arange(len(first)))
    joined[0] = 0
    return _renumber(np.unique(joined, return_inverse=True)[1], numbers)


def find_boxes(numbers: Numbers) -> list[tuple[slice, slice, slice]]:
    """Return the box around each lesion, in the order of their numbers."""
    boxes: list[tuple[slice, slice, slice]] = ndimage.find_objects(numbers)
    return boxes


def _renumber(new: npt.NDArray[np.integer], numbers: Numbers) -> Numbers:
    renumbered: Numbers = new.astype(np.int32)[numbers]
    return renumbered


def _dilate(mask: Mask, dilations: int) -> Mask:
    """Dilate a mask several times, each time by the 18 neighbours of each voxel.

    What falls off the grid is not missed: dilated lesions that touch off a box that holds the mask
    also touch inside of it.
    """
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
