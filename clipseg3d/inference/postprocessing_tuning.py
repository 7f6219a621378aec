"""Learn the thresholds of post-processing from segmented cases that have expert masks."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

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
from clipseg3d.data.release import BraTSRelease, region_codes
from clipseg3d.data.releases import BRATS_2020
from clipseg3d.inference.case_record import CaseRecord, record_path
from clipseg3d.inference.postprocessing import (
    RULES,
    Masks,
    PostProcessing,
    apply_rule,
    rule_regions,
)
from clipseg3d.metrics.dice import dice_empty_is_one
from clipseg3d.metrics.protocols import fitting_protocol, get_protocol
from clipseg3d.metrics.region_scores import score_case

THRESHOLDS_ML = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Thresholds that are tried for every rule on volumes; 0 does nothing."""
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Shares of the largest component that are tried."""
Criterion = Literal["dice", "lesion_dice"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
_Codes = npt.NDArray[np.uint16]
"""(x, y, z): the regions that a voxel belongs to, a bit for each; less memory than masks."""
_Score = Callable[[Masks, Masks], npt.NDArray[np.float64]]
"""Prediction and reference (r, x, y, z) -> the score of each region, (r,)."""


@dataclass(frozen=True)
class Tuned:
    """Rules, and their effect on the cases that they were learned from.

    Attributes:
        rules: those that were chosen.
        num_cases: number of cases.
        before: region -> mean score over cases, without rules.
        after: region -> mean score over cases, with all rules.
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
        DataError: raised after the last case if segmentations have no reference, are broken, differ
            in grid or voxel size, or rules have been applied to them. All faults are listed.
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
        record = CaseRecord.read(record_path(folder, case_id), folder)
        if record is not None and record.made_with.get("postprocessing"):
            faults.append(
                f"{path}: segmented with rules of post-processing; segment it again with "
                "'clipseg3d segment --no-postprocessing'"
            )
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


def tune_postprocessing(
    pairs: Iterable[LabelPair],
    release: BraTSRelease = BRATS_2020,
    *,
    criterion: Criterion = "dice",
) -> Tuned:
    """Choose the threshold of each rule by a mean score, rule by rule in order of application.

    The score is averaged over regions and over cases. Of equally good thresholds the smallest is
    chosen, so a rule that gains nothing does nothing. Cases are cropped to their tumours, and take
    1 or 2 MB of memory each.

    Args:
        pairs: segmentations and references, all with the same cubic voxels.
        release: whose regions they are.
        criterion: ``dice``, of whole masks; or ``lesion_dice``, lesion-wise by the protocol that
            fits the release, as BraTS ranks since 2023, for which a small false lesion counts as
            much as a missed tumour. Two empty masks score 1 either way.

    Raises:
        ValueError: there is no case, or no such criterion.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"unknown criterion {criterion!r}: choose one of {', '.join(CRITERIA)}")
    predictions: list[_Codes] = []
    references: list[_Codes] = []
    regions = list(release.regions)
    spacing_mm = (1.0, 1.0, 1.0)
    for pair in pairs:
        spacing_mm = pair.spacing_mm
        prediction, reference = _crop(pair)
        predictions.append(prediction)
        references.append(reference)
    if not predictions:
        raise ValueError("no case to learn from; give segmentations and their references")
    score = _dice if criterion == "dice" else _lesion_dice(release, spacing_mm)
    voxel_ml = math.prod(spacing_mm) / 1000
    before = _mean_scores(predictions, references, regions, score)
    learned: dict[str, dict[str, float]] = {rule: {} for rule in RULES}
    for rule in RULES:
        options = SHARES if rule == "relative_components" else THRESHOLDS_ML
        for region in rule_regions(rule, release):
            sums = np.zeros(len(options))
            for prediction, reference in zip(predictions, references, strict=True):
                masks = _masks(prediction, len(regions))
                true = _masks(reference, len(regions))
                results = apply_rule(masks, rule, region, options, release, voxel_ml=voxel_ml)
                sums += _means(results, true, score)
            # rounded, because rounding errors must not look like gains
            scores = np.round(sums / len(predictions), 9)
            best = options[int(scores.argmax())]
            learned[rule][region] = best
            for number, prediction in enumerate(predictions):
                masks = _masks(prediction, len(regions))
                (masks,) = apply_rule(masks, rule, region, (best,), release, voxel_ml=voxel_ml)
                predictions[number] = region_codes(masks)
    rules = PostProcessing.from_values(
        {
            rule: thresholds if rule != "enhancing_to_core" else sum(thresholds.values())
            for rule, thresholds in learned.items()
        }
    )
    return Tuned(
        rules, len(predictions), before, _mean_scores(predictions, references, regions, score)
    )


def _crop(pair: LabelPair) -> tuple[_Codes, _Codes]:
    """Return prediction and reference, cropped to the box that holds both tumours."""
    prediction, reference = region_codes(pair.prediction), region_codes(pair.reference)
    boxes = ndimage.find_objects(((prediction > 0) | (reference > 0)).astype(np.uint8))
    box = boxes[0] if boxes else (slice(0, 1),) * 3
    return prediction[box].copy(), reference[box].copy()


def _masks(codes: _Codes, num_regions: int) -> Masks:
    """Return the regions (r, x, y, z)."""
    return np.stack([codes >> bit & 1 > 0 for bit in range(num_regions)])


def _means(results: Sequence[Masks], true: Masks, score: _Score) -> list[float]:
    """Return the mean over regions of each result; equal neighbours are scored once."""
    means: list[float] = []
    last: Masks | None = None
    for result in results:
        if last is None or not np.array_equal(result, last):
            means.append(float(score(result, true).mean()))
        else:
            means.append(means[-1])
        last = result
    return means


def _mean_scores(
    predictions: list[_Codes], references: list[_Codes], regions: Sequence[str], score: _Score
) -> dict[str, float]:
    """Return region -> mean score over cases."""
    scores = [
        score(_masks(prediction, len(regions)), _masks(reference, len(regions)))
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return dict(zip(regions, np.mean(scores, axis=0).tolist(), strict=True))


def _dice(prediction: Masks, reference: Masks) -> npt.NDArray[np.float64]:
    """Return the Dice of each region, (r,); 1 where both masks are empty."""
    scores: npt.NDArray[np.float64] = dice_empty_is_one(
        torch.from_numpy(prediction), torch.from_numpy(reference)
    ).numpy()
    return scores


def _lesion_dice(release: BraTSRelease, spacing_mm: Sequence[float]) -> _Score:
    """Return what gives the lesion-wise Dice of each region, (r,); 1 where there is no lesion."""
    name = "lesion_dice"
    rules = get_protocol(fitting_protocol(release.name), release=release.name)
    protocol = replace(rules, scores=(name,), both_empty={name: 1.0})

    def score(prediction: Masks, reference: Masks) -> npt.NDArray[np.float64]:
        scores = score_case(
            prediction,
            reference,
            regions=list(release.regions),
            protocol=protocol,
            spacing_mm=spacing_mm,
        )
        return np.array([of_region[name] for of_region in scores])

    return score
