"""Predicted label maps and the references they are to be compared with, paired by case."""

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
from clipseg3d.data.layout import group, walk
from clipseg3d.data.nifti import open_nifti, read_voxels, strip_extension
from clipseg3d.data.preprocessing import label_faults
from clipseg3d.data.releases import RELEASES, BraTSRelease, get_release
from clipseg3d.data.submission import find_segmentations
from clipseg3d.vocabulary import LABEL


@dataclass(frozen=True, eq=False)
class LabelPair:
    """Region masks of one case.

    Attributes:
        prediction: (3, x, y, z) bool, in ``REGIONS`` order.
        reference: as ``prediction``.
        spacing_mm: voxel size along x, y and z.
    """

    prediction: npt.NDArray[np.bool_]
    reference: npt.NDArray[np.bool_]
    spacing_mm: tuple[float, float, float]


def find_references(root: Path, release: str | None) -> tuple[dict[str, Path], BraTSRelease]:
    """Find the expert masks of a folder: cases of a release, or files named ``{case}.nii.gz``.

    Args:
        root: folder of cases, however deep, or of label files.
        release: name of the release that the labels are of; None tells it from names and labels.

    Returns:
        Case -> file, by case; and the release.

    Raises:
        FileNotFoundError: there is no such folder, or no NIfTI file in it.
        ValueError: it cannot be told which release the files are of.
        DataError: a case has no mask, or two.
    """
    files, faults = walk(root)
    known = None if release is None else get_release(release)
    kinds = RELEASES.values() if known is None else [known]
    if not any(group(files, kind, ()).cases for kind in kinds):
        try:
            labels = by_case(root)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{root}: holds no masks: neither cases of {release or 'a known release'}, nor "
                "label maps {case}.nii.gz; check the path and the release"
            ) from error
        return labels, known or _release_of(root, list(labels))
    known = known or detect_release(root)
    places = defaultdict(list)
    for case in group(files, known, ()).cases:
        if LABEL in case.files:
            places[case.case_id].append(case.files[LABEL])
        else:
            faults.append(
                f"{case.folder}: {case.case_id} has no expert mask; add it, or move it away"
            )
    faults += [
        f"{' and '.join(map(str, paths))}: both are masks of {case_id}; keep one"
        for case_id, paths in places.items()
        if len(paths) > 1
    ]
    if faults:
        raise DataError(faults)
    return {case_id: places[case_id][0] for case_id in sorted(places)}, known


def by_case(folder: Path) -> dict[str, Path]:
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
        DataError: predictions are missing, doubled, or of no reference. All faults are listed.
    """
    labels = by_case(folder)
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
    """Read a predicted label map and its reference, both in the labels of a release.

    Raises:
        DataError: a file is missing or broken, holds labels that the release does not know or no
            labels at all, or the two lie on different grids. All faults are listed.
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
    found, true = (release.to_regions(np.rint(labels).astype(np.uint8)) for labels in voxels)
    return LabelPair(found, true, (x, y, z))


def _release_of(root: Path, case_ids: list[str]) -> BraTSRelease:
    """Return the one release that all of some cases are named after."""
    fitting = [kind for kind in RELEASES.values() if all(map(kind.owns, case_ids))]
    if len(fitting) == 1:
        return fitting[0]
    seen = "several releases" if fitting else "no known release"
    raise ValueError(
        f"{root}: holds {case_ids[0]} and the like, which are names of {seen}; name the release, "
        f"one of {', '.join(kind.name for kind in fitting or RELEASES.values())}"
    )
