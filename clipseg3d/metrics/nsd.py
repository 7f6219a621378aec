"""Normalised surface distance (NSD), in two definitions: how much of two surfaces lies close by."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from clipseg3d.metrics.mask_pair import Mask, MaskPair
from clipseg3d.metrics.surfaces import border_voxels, distances, surface_elements

NSDMethod = Literal["surface", "border"]
NSD_METHODS: tuple[NSDMethod, ...] = get_args(NSDMethod)
NSD_DEFINITIONS: dict[NSDMethod, str] = {
    "surface": "share of the area of both surfaces (DeepMind)",
    "border": "mean of the two shares of border voxels (nnU-Net, panoptica)",
}


def surface_dice(
    prediction: Mask,
    reference: Mask,
    *,
    tolerance_mm: float,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    method: NSDMethod = "surface",
) -> float:
    """Return the normalised surface distance (NSD, surface Dice) of two masks.

    This is the share of both surfaces that lies within the tolerance of the other surface.
    ``surface`` weights by area, as DeepMind's ``surface-distance`` (Nikolov et al., arXiv
    1809.04430); ``border`` counts voxels, and is the mean of the shares of the two masks.

    Args:
        prediction: (x, y, z) bool.
        reference: (x, y, z) bool.
        tolerance_mm: largest distance that does not count as an error.
        spacing_mm: voxel size along x, y and z.
        method: one of ``NSD_METHODS``.

    Returns:
        The share, in [0, 1]; 0 where one mask is empty, NaN where both are.

    Raises:
        ValueError: the masks do not fit each other, or the method is unknown.
    """
    if method not in NSD_METHODS:
        raise ValueError(f"unknown NSD method {method!r}: choose one of {', '.join(NSD_METHODS)}")
    pair = MaskPair.cut(prediction, reference, spacing_mm=spacing_mm)
    return surface_dice_of_pair(pair, [tolerance_mm], method)[0]


def surface_dice_of_pair(
    pair: MaskPair, tolerances_mm: Sequence[float], method: NSDMethod
) -> list[float]:
    """Return the same as :func:`surface_dice`, one for each tolerance, for cropped masks."""
    if not tolerances_mm:
        return []
    if method == "surface":
        one = surface_elements(pair.prediction, pair.spacing_mm)
        two = surface_elements(pair.reference, pair.spacing_mm)
    else:
        one, two = border_voxels(pair.prediction), border_voxels(pair.reference)
    if not len(one.indices) or not len(two.indices):
        is_empty = len(one.indices) == len(two.indices)
        return [np.nan if is_empty else 0.0] * len(tolerances_mm)
    near, total = np.zeros((2, len(tolerances_mm))), np.zeros((2, 1))
    for index, (origin, target) in enumerate(((one, two), (two, one))):
        lengths = distances(origin, target, pair.spacing_mm, share=0, reach_mm=max(tolerances_mm))
        near[index] = [origin.areas[lengths <= limit].sum() for limit in tolerances_mm]
        total[index] = origin.areas.sum()
    if method == "surface":
        shares: list[float] = (near.sum(axis=0) / total.sum()).tolist()
    else:
        shares = (near / total).mean(axis=0).tolist()
    return shares
