"""Thresholds of post-processing, learned from segmented cases whose truth is known."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from nibabel.affines import voxel_sizes

from clipseg3d.data.cases import DataError, index_cases
from clipseg3d.data.nifti import open_nifti, read_voxels
from clipseg3d.data.releases import REGIONS, BraTSRelease
from clipseg3d.data.submission import SUFFIX, find_segmentations, segmentation_faults
from clipseg3d.inference.postprocess import RULES, Masks, PostProcessing, apply_rule
from clipseg3d.metrics.dice import dice_score

THRESHOLDS_ML = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""What is tried for every rule; 0 does nothing."""


class LabelledPrediction(NamedTuple):
    """Two label maps (x, y, z) of one case, on one grid."""

    prediction: npt.NDArray[np.integer]
    reference: npt.NDArray[np.integer]


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


def read_labelled_predictions(
    folder: Path, root: Path, release: BraTSRelease
) -> tuple[Iterator[LabelledPrediction], float]:
    """Find the segmentations of cases with expert masks, and check them.

    Args:
        folder: of segmentations ``{case}.nii.gz``.
        root: folder of cases; those without expert mask or segmentation are passed over.
        release: of the cases.

    Returns:
        The pairs, each read when it is asked for; and the voxel size in mm that all share.

    Raises:
        FileNotFoundError: a folder is missing, or holds nothing of the kind.
        DataError: a segmentation or a case is faulty, or voxel sizes differ. All faults are
            listed.
    """
    volumes = find_segmentations(folder)
    cases, faults = index_cases(root, release, require_label=False, allow_missing=True)
    if not cases:
        raise FileNotFoundError("\n".join(faults))
    pairs: list[tuple[Path, Path]] = []
    sizes: dict[Path, float] = {}
    for case in cases:
        path = folder / f"{case.case_id}{SUFFIX}"
        if case.label is None or path not in volumes:
            continue
        found = segmentation_faults(folder, volumes, case, release)
        faults += found
        if not found:
            pairs.append((path, case.label))
            sizes[path] = float(voxel_sizes(open_nifti(path).affine).prod() ** (1 / 3))
    if not pairs and not faults:
        raise FileNotFoundError(
            f"{folder}: holds no segmentation of a case with expert mask in {root}; check that "
            f"they are named {{case}}{SUFFIX}"
        )
    first = next(iter(sizes.values()), 1.0)
    faults += [
        f"{path}: voxels of {size:.3g} mm, others of {first:.3g} mm; learn from cases of one size"
        for path, size in sizes.items()
        if abs(size / first - 1) > 0.02
    ]
    if faults:
        raise DataError(faults)
    read = (LabelledPrediction(read_voxels(path), read_voxels(mask)) for path, mask in pairs)
    return read, round(first, 3)


def tune_postprocessing(
    cases: Iterable[LabelledPrediction], release: BraTSRelease, *, spacing_mm: float
) -> Tuned:
    """Choose the threshold of each rule by mean Dice, rule by rule in order of application.

    Dice is averaged over WT, TC and ET and over cases; empty masks count as in BraTS 2020. The
    smallest of equally good thresholds is taken, so a rule that brings nothing does nothing.
    Cases are kept cropped to their tumours, some 1 MB each.

    Args:
        cases: predictions and references, in the labels of ``release``.
        release: what the labels mean.
        spacing_mm: voxel size of the cases.

    Raises:
        ValueError: there is no case.
    """
    kept = [_cropped(case) for case in cases]
    if not kept:
        raise ValueError("no case to learn from; give predictions and their references")
    truths = [case.reference for case in kept]
    states = [release.to_labels(release.to_regions(case.prediction)) for case in kept]
    options = tuple(sorted({round(ml * 1000 / spacing_mm**3) for ml in THRESHOLDS_ML}))
    before = _mean_dice(states, truths, release)
    learned: dict[str, dict[str, int]] = {rule: {} for rule in RULES}
    for rule, names in RULES.items():
        for region in names:
            tried = np.zeros(len(options))
            for state, truth in zip(states, truths, strict=True):
                masks, due = release.to_regions(state), release.to_regions(truth)
                results = apply_rule(masks, rule, region, options)
                tried += [float(_dice(result, due).mean()) for result in results]
            gain = np.round(tried / len(kept), 9)  # what rounding makes of equal sums is no gain
            best = options[int(gain.argmax())]
            learned[rule][region] = best
            states = [
                release.to_labels(apply_rule(release.to_regions(s), rule, region, (best,))[0])
                for s in states
            ]
    rules = PostProcessing(
        spacing_mm,
        small_components=learned["small_components"],
        enhancing_to_core=learned["enhancing_to_core"]["ET"],
        holes=learned["holes"],
    )
    return Tuned(rules, len(kept), before, _mean_dice(states, truths, release))


def _cropped(case: LabelledPrediction) -> LabelledPrediction:
    """Cut off what is background in both, but for one voxel around, which keeps holes enclosed."""
    box = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        inside = np.flatnonzero(
            (case.prediction.any(axis=others)) | case.reference.any(axis=others)
        )
        box.append(slice(max(0, inside[0] - 1), inside[-1] + 2) if len(inside) else slice(0, 1))
    return LabelledPrediction(*(part[tuple(box)].astype(np.uint8) for part in case))


def _mean_dice(
    states: list[npt.NDArray[np.uint8]],
    truths: list[npt.NDArray[np.integer]],
    release: BraTSRelease,
) -> dict[str, float]:
    """Return region -> mean Dice over cases."""
    scores = [
        _dice(release.to_regions(state), release.to_regions(truth))
        for state, truth in zip(states, truths, strict=True)
    ]
    return dict(zip(REGIONS, np.mean(scores, axis=0).tolist(), strict=True))


def _dice(found: Masks, due: Masks) -> npt.NDArray[np.float64]:
    """Return the Dice of each region."""
    scores: npt.NDArray[np.float64] = dice_score(
        torch.from_numpy(found), torch.from_numpy(due)
    ).numpy()
    return scores
