"""All scores of one region of one case, by the rules of a protocol."""

import math
from collections.abc import Sequence

from clipseg3d.metrics.hausdorff import HD95Method, hd95_of_pair
from clipseg3d.metrics.lesionwise import lesion_scores
from clipseg3d.metrics.mask_pair import Mask, MaskPair
from clipseg3d.metrics.nsd import surface_dice_of_pair
from clipseg3d.metrics.overlap import Overlap
from clipseg3d.metrics.protocols import Protocol


def score_region(
    prediction: Mask,
    reference: Mask,
    *,
    protocol: Protocol,
    method: HD95Method | None = None,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
) -> dict[str, float]:
    """Return all scores of one region by name, in the order of ``SCORES``.

    Args:
        prediction: (x, y, z) bool.
        reference: (x, y, z) bool.
        protocol: rules for empty masks and for matching lesions.
        method: definition of the HD95; None takes the protocol's.
        spacing_mm: voxel size along x, y and z.

    Raises:
        ValueError: the masks do not fit each other.
    """
    method = method or protocol.hd95_method
    pair = MaskPair.cut(prediction, reference, spacing_mm=spacing_mm)
    overlap = Overlap.of(pair)
    if not pair.prediction.any() and not pair.reference.any():
        return dict(protocol.both_empty)
    hd95 = hd95_of_pair(pair, method)
    lesions = lesion_scores(
        pair,
        dilations=protocol.dilations,
        min_volume_mm3=protocol.min_lesion_mm3,
        penalty_mm=protocol.penalty_mm,
        method=method,
    )
    scores = {
        "dice": overlap.dice_empty_is_nan,
        "hd95_mm": hd95 if math.isfinite(hd95) else protocol.penalty_mm,
        "sensitivity": overlap.sensitivity,
        "specificity": overlap.specificity,
        "nsd": surface_dice_of_pair(pair, protocol.nsd_tolerance_mm),
        "lesion_dice": lesions.dice,
        "lesion_hd95_mm": lesions.hd95_mm,
    }
    if not pair.reference.any():
        scores["sensitivity"] = protocol.empty_reference_sensitivity
    if math.isnan(lesions.dice):
        scores |= {name: protocol.both_empty[name] for name in ("lesion_dice", "lesion_hd95_mm")}
    return scores
