"""Normalised surface distance (NSD): the share of two surfaces that lie near each other."""

from collections.abc import Sequence

import numpy as np

from clipseg3d.metrics.mask_pair import Mask, MaskPair
from clipseg3d.metrics.surfaces import distances, surface_elements


def surface_dice(
    prediction: Mask,
    reference: Mask,
    *,
    tolerance_mm: float,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
) -> float:
    """Return the normalised surface distance (NSD, surface Dice) of two masks.

    This is the share, by area, of both surfaces that lies within the tolerance of the other
    surface, as in DeepMind's ``surface-distance`` (Nikolov et al., arXiv 1809.04430).

    Args:
        prediction: (x, y, z) bool.
        reference: (x, y, z) bool.
        tolerance_mm: largest distance that does not count as an error.
        spacing_mm: voxel size along x, y and z.

    Returns:
        The share, in [0, 1]; 0 where one mask is empty, NaN where both are.

    Raises:
        ValueError: the masks do not fit each other.
    """
    return surface_dice_of_pair(
        MaskPair.cut(prediction, reference, spacing_mm=spacing_mm), tolerance_mm
    )


def surface_dice_of_pair(pair: MaskPair, tolerance_mm: float) -> float:
    """Return the same as :func:`surface_dice`, for masks that are already cropped."""
    one = surface_elements(pair.prediction, pair.spacing_mm)
    two = surface_elements(pair.reference, pair.spacing_mm)
    if not len(one.indices) or not len(two.indices):
        return np.nan if len(one.indices) == len(two.indices) else 0.0
    near = total = 0.0
    for origin, target in ((one, two), (two, one)):
        lengths = distances(origin, target, pair.spacing_mm, share=0, reach_mm=tolerance_mm)
        near += origin.areas[lengths <= tolerance_mm].sum()
        total += origin.areas.sum()
    return float(near / total)
