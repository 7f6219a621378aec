"""Learn the thresholds of post-processing from segmented cases that have expert masks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    read_pair,
)
from clipseg3d.data.release import BraTSRelease
from clipseg3d.data.releases import BRATS_2020
from clipseg3d.inference.postprocessing import (
    ENHANCING,
    RULES,
    Masks,
    PostProcessing,
    apply_rule,
    rule_regions,
)
from clipseg3d.metrics.dice import dice_empty_is_one

THRESHOLDS_ML = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Thresholds that are tried for every rule; 0 does nothing."""
_Codes = npt.NDArray[np.uint16]
"""(x, y, z): the regions that a voxel belongs to, a bit for each; less memory than masks."""


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


def read_validation(
    folder: Path, references: Mapping[str, Path], release: BraTSRelease
) -> Iterator[LabelPair]:
    """Read the segmentations in a folder and their expert masks, case by case.

    Args:
        folder: segmentations ``{case}.nii.gz``.
        references: case -> expert mask; those without a segmentation are left out.
        release: of the references; see :func:`clipseg3d.data.label_pairs.find_references`.

    Raises:
        FileNotFoundError: the folder is missing, or holds no such files.
        DataError: raised after the last case if segmentations have no reference, are broken, or
            differ in grid or voxel size. All faults are listed.
    """
    segmentations = find_label_maps(folder)
    faults = [
        f"{path}: has no reference; name it {{case}}.nii.gz like one of them, or remove it"
        for case_id, path in segmentations.items()
        if case_id not in references
    ]
    expected_mm: float | None = None
    for case_id, path in segmentations.items():
        if case_id not in references:
            continue
        try:
            pair = read_pair(path, references[case_id], release)
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


def tune_postprocessing(pairs: Iterable[LabelPair], release: BraTSRelease = BRATS_2020) -> Tuned:
    """Choose the threshold of each rule by mean Dice, rule by rule in order of application.

    Dice is averaged over regions and over cases. Two empty masks score 1, as in BraTS 2020
    (:func:`clipseg3d.metrics.dice.dice_empty_is_one`). Of equally good thresholds the smallest is
    chosen, so a rule that gains nothing does nothing. Cases are cropped to their tumours, and take
    1 or 2 MB of memory each.

    Args:
        pairs: segmentations and references, all with the same cubic voxels.
        release: whose regions they are.

    Raises:
        ValueError: there is no case.
    """
    predictions: list[_Codes] = []
    references: list[_Codes] = []
    regions = list(release.regions)
    spacing_mm = 1.0
    for pair in pairs:
        spacing_mm = pair.spacing_mm[0]
        prediction, reference = _crop(pair)
        predictions.append(prediction)
        references.append(reference)
    if not predictions:
        raise ValueError("no case to learn from; give segmentations and their references")
    options = tuple(sorted({round(ml * 1000 / spacing_mm**3) for ml in THRESHOLDS_ML}))
    before = _mean_dice(predictions, references, regions)
    learned: dict[str, dict[str, int]] = {rule: {} for rule in RULES}
    for rule in RULES:
        for region in rule_regions(rule, release):
            sums = np.zeros(len(options))
            for prediction, reference in zip(predictions, references, strict=True):
                masks = _masks(prediction, len(regions))
                true = _masks(reference, len(regions))
                results = apply_rule(masks, rule, region, options, release)
                sums += [float(_dice(result, true).mean()) for result in results]
            # rounded, because rounding errors must not look like gains
            scores = np.round(sums / len(predictions), 9)
            best = options[int(scores.argmax())]
            learned[rule][region] = best
            predictions = [
                _codes(
                    apply_rule(_masks(prediction, len(regions)), rule, region, (best,), release)[0]
                )
                for prediction in predictions
            ]
    rules = PostProcessing(
        round(spacing_mm, 3),
        small_components=learned["small_components"],
        enhancing_to_core=learned["enhancing_to_core"].get(ENHANCING, 0),
        holes=learned["holes"],
    )
    return Tuned(rules, len(predictions), before, _mean_dice(predictions, references, regions))


def _crop(pair: LabelPair) -> tuple[_Codes, _Codes]:
    """Return prediction and reference, cropped to the box that holds both tumours."""
    prediction, reference = _codes(pair.prediction), _codes(pair.reference)
    boxes = ndimage.find_objects(((prediction > 0) | (reference > 0)).astype(np.uint8))
    box = boxes[0] if boxes else (slice(0, 1),) * 3
    return prediction[box].copy(), reference[box].copy()


def _codes(masks: Masks) -> _Codes:
    """Return the regions (r, x, y, z) that each voxel belongs to, as bits."""
    codes: _Codes = np.zeros(masks.shape[1:], np.uint16)
    for bit, mask in enumerate(masks):
        codes |= mask.astype(np.uint16) << bit
    return codes


def _masks(codes: _Codes, num_regions: int) -> Masks:
    """Return the regions (r, x, y, z)."""
    return np.stack([codes >> bit & 1 > 0 for bit in range(num_regions)])


def _mean_dice(
    predictions: list[_Codes], references: list[_Codes], regions: Sequence[str]
) -> dict[str, float]:
    """Return region -> mean Dice over cases."""
    scores = [
        _dice(_masks(prediction, len(regions)), _masks(reference, len(regions)))
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return dict(zip(regions, np.mean(scores, axis=0).tolist(), strict=True))


def _dice(prediction: Masks, reference: Masks) -> npt.NDArray[np.float64]:
    """Return the Dice of each region, (r,); 1 where both masks are empty."""
    scores: npt.NDArray[np.float64] = dice_empty_is_one(
        torch.from_numpy(prediction), torch.from_numpy(reference)
    ).numpy()
    return scores
