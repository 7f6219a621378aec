"""Thresholds of post-processing, learned from segmented cases whose truth is known."""

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
    by_case,
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
"""What is tried for every rule; 0 does nothing."""
_Depths = npt.NDArray[np.uint8]
"""(x, y, z): in how many of the nested regions a voxel is; a third of the memory of masks."""


@dataclass(frozen=True)
class Tuned:
    """Rules and what they bring on the cases they were learned from.

    Attributes:
        rules: thresholds in voxels.
        num_cases: how many cases.
        before: region -> mean Dice over cases without rules.
        after: region -> mean Dice over cases with all rules.
    """

    rules: PostProcessing
    num_cases: int
    before: dict[str, float]
    after: dict[str, float]


def read_validation(folder: Path, root: Path, release: str | None) -> Iterator[LabelPair]:
    """Read the segmentations in a folder and their expert masks, case by case.

    Args:
        folder: of segmentations ``{case}.nii.gz``.
        root: of references, as for :func:`clipseg3d.data.label_pairs.find_references`; those
            without segmentation are passed over.
        release: as there.

    Raises:
        FileNotFoundError: a folder is missing, or holds nothing of the kind.
        ValueError: it cannot be told which release the references are of.
        DataError: at the end, if files are of no reference, broken, on other grids, or of another
            voxel size. All faults are listed.
    """
    references, known = find_references(root, release)
    segmentations = by_case(folder)
    faults = [
        f"{path}: of no reference in {root}; name it {{case}}.nii.gz like one of them, or take it "
        "out"
        for case_id, path in segmentations.items()
        if case_id not in references
    ]
    size: float | None = None
    for case_id, path in segmentations.items():
        if case_id not in references:
            continue
        try:
            pair = read_pair(path, references[case_id], known)
        except DataError as error:
            faults += error.faults
            continue
        size = size or pair.spacing_mm[0]
        if not np.allclose(pair.spacing_mm, size, rtol=0.02):
            sides = "x".join(f"{side:.3g}" for side in pair.spacing_mm)
            faults.append(
                f"{path}: voxels of {sides} mm, expected {size:.3g} mm along all axes; learn from "
                "cases of one voxel size"
            )
            continue
        yield pair
    if faults:
        raise DataError(faults)


def tune_postprocessing(pairs: Iterable[LabelPair]) -> Tuned:
    """Choose the threshold of each rule by mean Dice, rule by rule in order of application.

    Dice is averaged over WT, TC and ET and over cases; empty masks count as in BraTS 2020. The
    smallest of equally good thresholds is taken, so a rule that brings nothing does nothing.
    Cases are kept cropped to their tumours, 1 or 2 MB each.

    Args:
        pairs: segmentations and references, nested, of one cubic voxel size.

    Raises:
        ValueError: there is no case.
    """
    states: list[_Depths] = []
    truths: list[_Depths] = []
    spacing_mm = 1.0
    for pair in pairs:
        spacing_mm = pair.spacing_mm[0]
        prediction, reference = _cropped(pair)
        states.append(prediction)
        truths.append(reference)
    if not states:
        raise ValueError("no case to learn from; give segmentations and their references")
    options = tuple(sorted({round(ml * 1000 / spacing_mm**3) for ml in THRESHOLDS_ML}))
    before = _mean_dice(states, truths)
    learned: dict[str, dict[str, int]] = {rule: {} for rule in RULES}
    for rule, names in RULES.items():
        for region in names:
            tried = np.zeros(len(options))
            for state, truth in zip(states, truths, strict=True):
                results = apply_rule(_masks(state), rule, region, options)
                tried += [float(_dice(result, _masks(truth)).mean()) for result in results]
            gain = np.round(tried / len(states), 9)  # what rounding makes of equal sums is no gain
            best = options[int(gain.argmax())]
            learned[rule][region] = best
            states = [
                _depths(apply_rule(_masks(state), rule, region, (best,))[0]) for state in states
            ]
    rules = PostProcessing(
        round(spacing_mm, 3),
        small_components=learned["small_components"],
        enhancing_to_core=learned["enhancing_to_core"]["ET"],
        holes=learned["holes"],
    )
    return Tuned(rules, len(states), before, _mean_dice(states, truths))


def _cropped(pair: LabelPair) -> tuple[_Depths, _Depths]:
    """Cut off what is background in both."""
    prediction, reference = _depths(pair.prediction), _depths(pair.reference)
    boxes = ndimage.find_objects(((prediction > 0) | (reference > 0)).astype(np.uint8))
    box = boxes[0] if boxes else (slice(0, 1),) * 3
    return prediction[box].copy(), reference[box].copy()


def _depths(masks: Masks) -> _Depths:
    """Return in how many regions (3, x, y, z) each voxel is."""
    depths: _Depths = masks.sum(axis=0, dtype=np.uint8)
    return depths


def _masks(depths: _Depths) -> Masks:
    """Return the nested regions (3, x, y, z)."""
    return np.stack([depths > index for index in range(len(REGIONS))])


def _mean_dice(states: list[_Depths], truths: list[_Depths]) -> dict[str, float]:
    """Return region -> mean Dice over cases."""
    scores = [
        _dice(_masks(state), _masks(truth)) for state, truth in zip(states, truths, strict=True)
    ]
    return dict(zip(REGIONS, np.mean(scores, axis=0).tolist(), strict=True))


def _dice(prediction: Masks, reference: Masks) -> npt.NDArray[np.float64]:
    """Return the Dice of each region."""
    scores: npt.NDArray[np.float64] = dice_empty_is_one(
        torch.from_numpy(prediction), torch.from_numpy(reference)
    ).numpy()
    return scores
