"""Learn the thresholds of post-processing from segmented cases that have expert masks."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from clipseg3d.data.cases import DataError
from clipseg3d.data.label_pairs import (
    LabelPair,
    find_label_maps,
    find_references,
    read_pair,
)
from clipseg3d.inference.postprocessing import (
    RULES,
    Masks,
    PostProcessing,
    apply_rule,
)
from clipseg3d.metrics.dice import dice_empty_is_one
from clipseg3d.vocabulary import REGIONS

THRESHOLDS_ML = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Thresholds that are tried for every rule; 0 does nothing."""
_Depths = npt.NDArray[np.uint8]
"""(x, y, z): how many of the nested regions a voxel belongs to; a third of the memory of masks."""


@dataclass(frozen=True)
class Tuned:
    """Rules, and their effect on the cases that they were learned from.

    Attributes:
        rules: thresholds in voxels.
        num_cases: number of cases.
        before: region -> mean Dice over cases, without rules; empty masks as in
            :func:`clipseg3d.metrics.dice.dice_empty_is_one`.
        after: region -> mean Dice over cases, with all rules.
    """

    rules: PostProcessing
    num_cases: int
    before: dict[str, float]
    after: dict[str, float]


def read_validation(folder: Path, root: Path, release: str | None) -> Iterator[LabelPair]:
    """Read the segmentations in a folder and their expert masks, case by case.

    Args:
        folder: segmentations ``{case}.nii.gz``.
        root: references, as for :func:`clipseg3d.data.label_pairs.find_references`; references
            without a segmentation are left out.
        release: as for :func:`clipseg3d.data.label_pairs.find_references`.

    Raises:
        FileNotFoundError: a folder is missing, or holds no such files.
        ValueError: the release of the references cannot be determined.
        DataError: raised after the last case if segmentations have no reference, are broken, or
            differ in grid or voxel size. All faults are listed.
    """
    references, detected = find_references(root, release)
    segmentations = find_label_maps(folder)
    faults = [
        f"{path}: has no reference in {root}; name it {{case}}.nii.gz like one of them, or remove "
        "it"
        for case_id, path in segmentations.items()
        if case_id not in references
    ]
    expected_mm: float | None = None
    for case_id, path in segmentations.items():
        if case_id not in references:
            continue
        try:
            pair = read_pair(path, references[case_id], detected)
        except DataError as error:
            faults += error.faults
            continue
        expected_mm = expected_mm or pair.spacing_mm[0]
        if not np.allclose(pair.spacing_mm, expected_mm, rtol=0.02):
            sides = "x".join(f"{side:.3g}" for side in pair.spacing_mm)
            faults.append(
                f"{path}: voxels of {sides} mm, expected {expected_mm:.3g} mm along all axes; give "
                "cases with one voxel size"
            )
            continue
        yield pair
    if faults:
        raise DataError(faults)


def tune_postprocessing(pairs: Iterable[LabelPair]) -> Tuned:
    """Choose the threshold of each rule by mean Dice, rule by rule in order of application.

    Dice is averaged over WT, TC and ET and over cases. Two empty masks score 1, as in BraTS 2020
    (:func:`clipseg3d.metrics.dice.dice_empty_is_one`). Of equally good thresholds the smallest is
    chosen, so a rule that gains nothing does nothing. Cases are cropped to their tumours, and take
    1 or 2 MB of memory each.

    Args:
        pairs: segmentations and references, nested, all with the same cubic voxels.

    Raises:
        ValueError: there is no case.
    """
    predictions: list[_Depths] = []
    references: list[_Depths] = []
    spacing_mm = 1.0
    for pair in pairs:
        spacing_mm = pair.spacing_mm[0]
        prediction, reference = _crop(pair)
        predictions.append(prediction)
        references.append(reference)
    if not predictions:
        raise ValueError("no case to learn from; give segmentations and their references")
    options = tuple(sorted({round(ml * 1000 / spacing_mm**3) for ml in THRESHOLDS_ML}))
    before = _mean_dice(predictions, references)
    learned: dict[str, dict[str, int]] = {rule: {} for rule in RULES}
    for rule, names in RULES.items():
        for region in names:
            sums = np.zeros(len(options))
            for prediction, reference in zip(predictions, references, strict=True):
                results = apply_rule(_masks(prediction), rule, region, options)
                sums += [float(_dice(result, _masks(reference)).mean()) for result in results]
            # rounded, because rounding errors must not look like gains
            scores = np.round(sums / len(predictions), 9)
            best = options[int(scores.argmax())]
            learned[rule][region] = best
            predictions = [
                _depths(apply_rule(_masks(prediction), rule, region, (best,))[0])
                for prediction in predictions
            ]
    rules = PostProcessing(
        round(spacing_mm, 3),
        small_components=learned["small_components"],
        enhancing_to_core=learned["enhancing_to_core"]["ET"],
        holes=learned["holes"],
    )
    return Tuned(rules, len(predictions), before, _mean_dice(predictions, references))


def _crop(pair: LabelPair) -> tuple[_Depths, _Depths]:
    """Return prediction and reference, cropped to the box that holds both tumours."""
    prediction, reference = _depths(pair.prediction), _depths(pair.reference)
    boxes = ndimage.find_objects(((prediction > 0) | (reference > 0)).astype(np.uint8))
    box = boxes[0] if boxes else (slice(0, 1),) * 3
    return prediction[box].copy(), reference[box].copy()


def _depths(masks: Masks) -> _Depths:
    """Return how many of the nested regions (3, x, y, z) each voxel belongs to."""
    depths: _Depths = masks.sum(axis=0, dtype=np.uint8)
    return depths


def _masks(depths: _Depths) -> Masks:
    """Return the nested regions (3, x, y, z)."""
    return np.stack([depths > index for index in range(len(REGIONS))])


def _mean_dice(predictions: list[_Depths], references: list[_Depths]) -> dict[str, float]:
    """Return region -> mean Dice over cases."""
    scores = [
        _dice(_masks(prediction), _masks(reference))
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return dict(zip(REGIONS, np.mean(scores, axis=0).tolist(), strict=True))


def _dice(prediction: Masks, reference: Masks) -> npt.NDArray[np.float64]:
    """Return the Dice of each region, (3,); 1 where both masks are empty."""
    scores: npt.NDArray[np.float64] = dice_empty_is_one(
        torch.from_numpy(prediction), torch.from_numpy(reference)
    ).numpy()
    return scores
