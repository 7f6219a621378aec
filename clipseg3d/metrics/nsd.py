"""Share of the surfaces of two masks that lie near each other."""

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

    It is the share, by area, of both surfaces that is no farther from the other one than the
    tolerance, as DeepMind's ``surface-distance`` defines it (Nikolov et al., arXiv 1809.04430).

    Args:
        prediction: (x, y, z) bool.
        reference: (x, y, z) bool.
        tolerance_mm: distance that does not count as an error.
        spacing_mm: voxel size along x, y and z.

    Returns:
        The share, in [0, 1]; 0 where one mask is empty, NaN where both are.

    Raises:
        ValueError: the masks do not fit together.
    """
    return surface_dice_of_pair(
        MaskPair.cut(prediction, reference, spacing_mm=spacing_mm), tolerance_mm
    )


def surface_dice_of_pair(pair: MaskPair, tolerance_mm: float) -> float:
    """Return the same of masks that are cut out already."""
    one = surface_elements(pair.prediction, pair.spacing_mm)
    two = surface_elements(pair.reference, pair.spacing_mm)
    if not len(one.places) or not len(two.places):
        return np.nan if len(one.places) == len(two.places) else 0.0
    near = total = 0.0
    for origin, target in ((one, two), (two, one)):
        found = distances(origin, target, pair.spacing_mm, share=0, reach_mm=tolerance_mm)
        near += origin.areas[found <= tolerance_mm].sum()
        total += origin.areas.sum()
    return float(near / total)
