"""Predicted label maps and their references, paired by case."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.affines import voxel_sizes

from clipseg3d.data.cases import (
    Case,
    DataError,
    check_geometry,
    detect_release,
)
from clipseg3d.data.label_checks import label_faults, round_labels
from clipseg3d.data.layout import group, walk
from clipseg3d.data.nifti import open_nifti, read_voxels, strip_extension
from clipseg3d.data.release import BraTSRelease
from clipseg3d.data.releases import RELEASES, get_release
from clipseg3d.data.submission import find_segmentations
from clipseg3d.vocabulary import LABEL


@dataclass(frozen=True, eq=False)
class LabelPair:
    """Predicted and reference region masks of one case.

    Attributes:
        prediction: (3, x, y, z) bool, in ``REGIONS`` order.
        reference: as ``prediction``.
        spacing_mm: voxel size along x, y and z.
        predicted_labels: labels in the predicted map, without the background.
        reference_labels: labels in the reference, without the background.
    """

    prediction: npt.NDArray[np.bool_]
    reference: npt.NDArray[np.bool_]
    spacing_mm: tuple[float, float, float]
    predicted_labels: frozenset[int] = frozenset()
    reference_labels: frozenset[int] = frozenset()


def find_references(root: Path, release: str | None) -> tuple[dict[str, Path], BraTSRelease]:
    """Find the expert masks of a folder: cases of a release, or files named ``{case}.nii.gz``.

    Args:
        root: folder of cases, however deep, or of label files.
        release: name of the release of the labels; None detects it from names and labels.

    Returns:
        Case -> file, sorted by case; and the release.

    Raises:
        FileNotFoundError: there is no such folder, or no NIfTI file in it.
        ValueError: the release cannot be detected.
        DataError: a case has no expert mask, or more than one.
    """
    files, faults = walk(root)
    named = None if release is None else get_release(release)
    candidates = RELEASES.values() if named is None else [named]
    if not any(group(files, candidate, ()).cases for candidate in candidates):
        try:
            labels = find_label_maps(root)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{root}: holds no expert masks: neither cases of {release or 'a known release'}, "
                "nor label maps {case}.nii.gz; check the path and the release"
            ) from error
        return labels, named or _release_of(root, list(labels))
    named = named or detect_release(root)
    masks = defaultdict(list)
    for case in group(files, named, ()).cases:
        if LABEL in case.files:
            masks[case.case_id].append(case.files[LABEL])
        else:
            faults.append(
                f"{case.folder}: {case.case_id} has no expert mask; add it, or move it away"
            )
    faults += [
        f"{' and '.join(map(str, paths))}: expert masks of the same case {case_id}; keep one"
        for case_id, paths in masks.items()
        if len(paths) > 1
    ]
    if faults:
        raise DataError(faults)
    return {case_id: masks[case_id][0] for case_id in sorted(masks)}, named


def find_label_maps(folder: Path) -> dict[str, Path]:
    """Return case -> file for the label maps in a folder, named ``{case}.nii.gz`` or ``.nii``.

    Raises:
        FileNotFoundError: there is no such folder, or no NIfTI file in it.
        DataError: a case has two files.
    """
    labels: dict[str, Path] = {}
    faults = []
    for path in find_segmentations(folder):
        other = labels.setdefault(str(strip_extension(path.name)), path)
        if other != path:
            faults.append(f"{path}: the same case as {other.name}; keep one of the two")
    if faults:
        raise DataError(faults)
    return labels


def find_predictions(folder: Path, references: Mapping[str, Path]) -> dict[str, Path]:
    """Return case -> predicted label map, one for each reference.

    Raises:
        FileNotFoundError: there is no such folder, or no NIfTI file in it.
        DataError: predictions are missing, doubled, or without a reference. All faults are
            listed.
    """
    labels = find_label_maps(folder)
    faults = [
        f"{folder / case_id}.nii.gz: missing; segment the case, or take it out of the references"
        for case_id in references
        if case_id not in labels
    ]
    faults += [
        f"{path}: of no reference; name it {{case}}.nii.gz like one of them, or take it out"
        for case_id, path in labels.items()
        if case_id not in references
    ]
    if faults:
        raise DataError(faults)
    return {case_id: labels[case_id] for case_id in references}


def read_pair(prediction: Path, reference: Path, release: BraTSRelease) -> LabelPair:
    """Read a predicted label map and its reference, both with the labels of a release.

    Raises:
        DataError: a file is missing or broken, or holds values that are not labels of the
            release, or the two lie on different grids. All faults are listed.
    """
    name = prediction.name
    faults = check_geometry(Case(name, name, {"reference": reference}, label=prediction))
    voxels: list[npt.NDArray[Any]] = []
    for path in (prediction, reference):
        try:
            voxels.append(read_voxels(path))
        except (ValueError, FileNotFoundError) as error:
            faults.append(str(error))
        else:
            faults += label_faults(path, voxels[-1], release)
    if faults:
        raise DataError(list(dict.fromkeys(faults)))
    x, y, z = voxel_sizes(open_nifti(reference).affine).tolist()
    maps = [round_labels(labels) for labels in voxels]
    predicted, true = (release.to_regions(labels) for labels in maps)
    return LabelPair(predicted, true, (x, y, z), *map(labels_in, maps))


def labels_in(label: npt.NDArray[np.integer]) -> frozenset[int]:
    """Return the labels in a label map, without the background."""
    flat = label.ravel(order="K")
    return frozenset(np.unique(flat[flat != 0]).tolist())


def _release_of(root: Path, case_ids: list[str]) -> BraTSRelease:
    """Return the only release that has all of these case names.

    Raises:
        ValueError: no release has them, or more than one.
    """
    fitting = [release for release in RELEASES.values() if all(map(release.owns, case_ids))]
    if len(fitting) == 1:
        return fitting[0]
    owners = "several releases" if fitting else "no known release"
    raise ValueError(
        f"{root}: holds case names of {owners}, such as {case_ids[0]}; name the release, one of "
        f"{', '.join(release.name for release in fitting or RELEASES.values())}"
    )
