"""All scores of the regions of one case, by the rules of a protocol."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from clipseg3d.metrics.hausdorff import HD95Method, hd95_of_pair
from clipseg3d.metrics.lesions import Numbers, drop_small, join_lesions, number_lesions
from clipseg3d.metrics.lesionwise import LesionScores, score_lesions
from clipseg3d.metrics.mask_pair import Mask, MaskPair
from clipseg3d.metrics.nsd import surface_dice_of_pair
from clipseg3d.metrics.one_to_one import large_lesion_scores, one_to_one_scores
from clipseg3d.metrics.overlap import Overlap
from clipseg3d.metrics.protocols import Protocol

TOLERANCES_MM = {"nsd": 1.0, "nsd_05": 0.5}
"""Score -> largest distance that is not an error in it."""
DIFFERENCES: Mapping[str, tuple[str, str]] = {"NETC": ("TC", "ET")}
"""Region -> the region that it is a part of, and the one that is the rest of that."""


class Neighbour(NamedTuple):
    """Another region of the same case, whose lesions join those of the region that is scored."""

    prediction: Mask
    reference: Mask
    protocol: Protocol
    """With the rules of this region."""


def score_case(
    prediction: Mask,
    reference: Mask,
    *,
    regions: Sequence[str],
    protocol: Protocol,
    method: HD95Method | None = None,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
) -> list[dict[str, float]]:
    """Return all scores of each region of a case.

    Args:
        prediction: (region, x, y, z) bool.
        reference: (region, x, y, z) bool.
        regions: names of the masks, in order.
        protocol: rules of the task.
        method: definition of the HD95; None takes the protocol's.
        spacing_mm: voxel size along x, y and z.

    Raises:
        ValueError: the masks do not fit each other.
    """
    masks = dict(zip(regions, zip(prediction, reference, strict=True), strict=True))
    for part, (whole, rest) in DIFFERENCES.items():
        if part not in masks and {whole, rest} <= masks.keys():
            wholes, rests = masks[whole], masks[rest]
            masks[part] = wholes[0] & ~rests[0], wholes[1] & ~rests[1]
    scores = []
    for region in regions:
        rules = protocol.for_region(region)
        scores.append(
            score_region(
                *masks[region],
                protocol=rules,
                method=method,
                spacing_mm=spacing_mm,
                neighbours=[
                    Neighbour(*masks[name], protocol.for_region(name))
                    for name in rules.joined_by
                    if name in masks
                ],
            )
        )
    return scores


def score_region(
    prediction: Mask,
    reference: Mask,
    *,
    protocol: Protocol,
    method: HD95Method | None = None,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    neighbours: Sequence[Neighbour] = (),
) -> dict[str, float]:
    """Return all scores of one region by name, in the order of ``protocol.scores``.

    Args:
        prediction: (x, y, z) bool.
        reference: (x, y, z) bool.
        protocol: rules of the region.
        method: definition of the HD95; None takes the protocol's. Without an HD95 among the scores
            no distances are computed, which take most of the time.
        spacing_mm: voxel size along x, y and z.
        neighbours: regions whose lesions join those of this one, one after the other.

    Raises:
        ValueError: the masks do not fit each other.
    """
    used_method: HD95Method | None = None
    if any("hd95" in name for name in protocol.scores):
        used_method = method or protocol.hd95_method
    beside = [mask for neighbour in neighbours for mask in neighbour[:2]]
    pair = MaskPair.cut(prediction, reference, spacing_mm=spacing_mm, beside=beside)
    lesions, parts = _number(pair, protocol)
    if protocol.merge_predictions:
        pair = MaskPair(parts > 0, pair.reference, pair.spacing_mm, pair.shape)
    if not pair.prediction.any() and not pair.reference.any():
        return {name: protocol.both_empty[name] for name in protocol.scores}
    for neighbour in neighbours:
        other = MaskPair.cut(
            *neighbour[:2], spacing_mm=spacing_mm, beside=[prediction, reference, *beside]
        )
        others, other_parts = _number(other, neighbour.protocol)
        lesions = join_lesions(lesions, pair.reference, others * other.reference)
        parts = join_lesions(parts, pair.prediction, other_parts)
    penalty_mm = protocol.penalty_mm
    if penalty_mm is None:
        penalty_mm = math.hypot(*pair.shape)
    found = _score_lesions(pair, lesions, parts, protocol, used_method, penalty_mm)
    tolerances = {name: mm for name, mm in TOLERANCES_MM.items() if name in protocol.scores}
    overlap = Overlap.of(pair)
    hd95 = math.nan if used_method is None else hd95_of_pair(pair, used_method)
    if not math.isfinite(hd95) or (protocol.penalise_no_overlap and not overlap.tp):
        hd95 = penalty_mm
    scores = {
        "dice": overlap.dice_empty_is_nan,
        "hd95_mm": hd95,
        "sensitivity": overlap.sensitivity,
        "specificity": overlap.specificity,
        **dict(
            zip(
                tolerances,
                surface_dice_of_pair(pair, [*tolerances.values()], protocol.nsd_method),
                strict=True,
            )
        ),
        "lesion_dice": found.dice,
        "lesion_hd95_mm": found.hd95_mm,
        "lesion_tp": found.tp,
        "lesion_fp": found.fp,
        "lesion_fn": found.fn,
        "lesion_f1": found.f1,
        **dict(zip(_lesion_tolerances(protocol), found.nsd, strict=True)),
        "small_lesion_tp": found.small_tp,
        "small_lesion_fn": found.small_fn,
        "small_lesion_f1": found.small_f1,
    }
    if not pair.reference.any():
        scores["sensitivity"] = protocol.empty_reference_sensitivity
    for name in protocol.scores:
        # Without a lesion that counts, there is nothing to average over.
        if name.startswith("lesion_") and math.isnan(scores[name]):
            scores[name] = protocol.both_empty[name]
    return {name: scores[name] for name in protocol.scores}


def _number(pair: MaskPair, protocol: Protocol) -> tuple[Numbers, Numbers]:
    """Return the dilated lesions of the reference, and what the prediction consists of."""
    lesions = number_lesions(pair.reference, dilations=protocol.dilations)
    if not protocol.merge_predictions:
        return lesions, number_lesions(pair.prediction)
    merged = number_lesions(pair.prediction, dilations=protocol.dilations) * pair.prediction
    volume = protocol.min_lesion_mm3
    return lesions, drop_small(merged, min_volume_mm3=volume, spacing_mm=pair.spacing_mm)


def _lesion_tolerances(protocol: Protocol) -> dict[str, float]:
    """Return the scores of ``protocol`` that are surface Dice of lesions -> their tolerance."""
    tolerances = {f"lesion_{name}": limit for name, limit in TOLERANCES_MM.items()}
    return {name: limit for name, limit in tolerances.items() if name in protocol.scores}


def _score_lesions(
    pair: MaskPair,
    lesions: Numbers,
    parts: Numbers,
    protocol: Protocol,
    method: HD95Method | None,
    penalty_mm: float,
) -> LesionScores:
    """Match and score lesions by the rules of a protocol."""
    tolerances = [*_lesion_tolerances(protocol).values()]
    if not protocol.one_to_one:
        return score_lesions(
            pair,
            lesions,
            parts,
            min_volume_mm3=protocol.min_lesion_mm3,
            penalty_mm=penalty_mm,
            method=method,
            tolerances_mm=tolerances,
            nsd_method=protocol.nsd_method,
            score_false_positives=protocol.score_false_positives,
        )
    if protocol.min_lesion_dice is None:
        return one_to_one_scores(
            pair,
            lesions,
            parts,
            penalty_mm=penalty_mm,
            method=method,
            tolerances_mm=tolerances,
            nsd_method=protocol.nsd_method,
        )
    return large_lesion_scores(
        pair,
        lesions,
        parts,
        min_volume_mm3=protocol.min_lesion_mm3,
        min_dice=protocol.min_lesion_dice,
        penalty_mm=penalty_mm,
        method=method,
        tolerances_mm=tolerances,
        nsd_method=protocol.nsd_method,
    )
