"""The 95 % Hausdorff distance (HD95), in three definitions that share this name."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from clipseg3d.metrics.mask_pair import Mask, MaskPair
from clipseg3d.metrics.surfaces import (
    Floats,
    border_voxels,
    distances,
    surface_elements,
)

HD95Method = Literal["surface", "medpy", "monai"]
HD95_METHODS: tuple[HD95Method, ...] = get_args(HD95Method)
HD95_DEFINITIONS: dict[HD95Method, str] = {
    "surface": "larger of both directed 95th percentiles, weighted by surface area (DeepMind)",
    "medpy": "95th percentile of the border distances of both directions together",
    "monai": "larger of both directed 95th percentiles of border distances",
}
PERCENTILE = 0.95


def hd95(
    prediction: Mask,
    reference: Mask,
    *,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    method: HD95Method,
) -> float:
    """Return the 95 % Hausdorff distance of two masks in mm.

    ``surface`` and ``medpy`` give the results of the packages ``surface-distance`` (DeepMind) and
    ``medpy``; ``monai`` gives that of ``compute_hausdorff_distance(percentile=95)``, in single
    precision as there.

    Args:
        prediction: (x, y, z) bool.
        reference: (x, y, z) bool.
        spacing_mm: voxel size along x, y and z.
        method: one of ``HD95_METHODS``. The choice matters: the same two masks may have a distance
            of 2 mm by one and 44 mm by another.

    Returns:
        The distance; infinite where one mask is empty, NaN where both are.

    Raises:
        ValueError: the masks do not fit each other, or the method is unknown.
    """
    return hd95_of_pair(MaskPair.cut(prediction, reference, spacing_mm=spacing_mm), method)


def hd95_of_pair(pair: MaskPair, method: HD95Method) -> float:
    """Return the same as :func:`hd95`, for masks that are already cropped."""
    if method not in HD95_METHODS:
        raise ValueError(f"unknown HD95 method {method!r}: choose one of {', '.join(HD95_METHODS)}")
    if method == "surface":
        one = surface_elements(pair.prediction, pair.spacing_mm)
        two = surface_elements(pair.reference, pair.spacing_mm)
    else:
        one, two = border_voxels(pair.prediction), border_voxels(pair.reference)
    if not len(one.indices) or not len(two.indices):
        return np.nan if len(one.indices) == len(two.indices) else np.inf
    if method == "medpy":
        both = [distances(one, two, pair.spacing_mm), distances(two, one, pair.spacing_mm)]
        return float(np.percentile(np.concatenate(both), 100 * PERCENTILE))
    larger = 0.0
    for origin, target in ((one, two), (two, one)):
        lengths = distances(origin, target, pair.spacing_mm, share=PERCENTILE, above_mm=larger)
        larger = max(larger, _percentile(lengths, origin.areas if method == "surface" else None))
    return larger


def _percentile(lengths: Floats, areas: Floats | None) -> float:
    """Return the 95th percentile of distances: as in MONAI, or with areas as in DeepMind's code."""
    if areas is None:
        import torch  # loads for a second; other definitions do without

        return float(torch.quantile(torch.from_numpy(lengths.astype(np.float32)), PERCENTILE))
    order = np.lexsort((areas, lengths))
    shares = np.cumsum(areas[order]) / areas[order].sum()
    index = min(int(np.searchsorted(shares, PERCENTILE)), len(order) - 1)
    return float(lengths[order[index]])
