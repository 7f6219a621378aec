"""Check segmentations as the portals of the challenges do, before they are submitted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.affines import voxel_sizes

from clipseg3d.data.cases import AFFINE_TOLERANCE_MM, Case, index_cases
from clipseg3d.data.label_checks import compare_values
from clipseg3d.data.nifti import open_nifti, read_voxels, strip_extension
from clipseg3d.data.release import BraTSRelease
from clipseg3d.formatting import join_numbers

SUFFIX = ".nii.gz"
"""The ending that portals accept; the rest of the name is the case alone."""
SPACING_TOLERANCE_MM = 1e-3
DIRECTION_TOLERANCE = 1e-3
"""For the cosines between voxel axes and patient axes."""


def check_submission(folder: Path, root: Path, release: BraTSRelease) -> tuple[int, list[str]]:
    """Compare segmentations with their cases.

    Each must be named ``{case}.nii.gz``, hold labels of the release as whole numbers, and have
    shape, spacing, origin and orientation of its case. Subfolders are not searched.

    Args:
        folder: folder of segmentations.
        root: folder of cases, with or without expert masks.
        release: release of the cases.

    Returns:
        The number of cases, and every fault, one line each.

    Raises:
        FileNotFoundError: one of the folders is missing, ``folder`` holds no segmentation, or
            ``root`` no case.
    """
    cases, faults = index_cases(root, release, require_label=False, allow_missing=True)
    if not cases:
        raise FileNotFoundError("\n".join(faults))
    volumes = find_segmentations(folder)
    assigned = set[Path]()
    for case in cases:
        faults += _segmentation_faults(folder, volumes, case, release)
        expected = folder / f"{case.case_id}{SUFFIX}"
        assigned.update([expected] if expected in volumes else _misnamed(volumes, case.case_id))
    faults += [
        f"{path}: belongs to no case in {root}; move it away"
        for path in volumes
        if path not in assigned
    ]
    return len(cases), faults


def find_segmentations(folder: Path) -> list[Path]:
    """List the NIfTI files of a folder, by name.

    Raises:
        FileNotFoundError: there is no such folder, or no NIfTI file in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give the folder of segmentations")
    volumes = sorted(
        path
        for path in folder.iterdir()
        if strip_extension(path.name) and not path.name.startswith(".")
    )
    if not volumes:
        raise FileNotFoundError(
            f"{folder}: holds no segmentation (files {{case}}{SUFFIX}); give the folder that "
            "'clipseg3d segment' wrote to"
        )
    return volumes


def _segmentation_faults(
    folder: Path, volumes: Sequence[Path], case: Case, release: BraTSRelease
) -> list[str]:
    """Return what is wrong with the segmentation of one case, one line each.

    Args:
        folder: folder of segmentations.
        volumes: the files in it.
        case: case whose grid is expected.
        release: release whose labels are expected.
    """
    expected = folder / f"{case.case_id}{SUFFIX}"
    if expected not in volumes:
        misnamed = _misnamed(volumes, case.case_id)
        if not misnamed:
            return [f"{expected}: missing; segment the case"]
        return [
            f"{path}: portals accept only {expected.name}; "
            + ("compress it" if path.suffix == ".nii" else "rename it")
            for path in misnamed
        ]
    try:
        image = open_nifti(expected)
        voxels = read_voxels(expected)
        source = open_nifti(next(iter(case.sequences.values())), axes=case.axes)
    except (ValueError, FileNotFoundError) as error:
        return [str(error)]
    return [
        f"{expected}: {fault}"
        for fault in [*_value_faults(image, voxels, release), *_grid_faults(image, source)]
    ]


def _misnamed(volumes: Sequence[Path], case_id: str) -> list[Path]:
    """Return the files whose names start with a case name, but do not end after it."""
    starts = f"{case_id}.", f"{case_id}_", f"{case_id}-"
    return [path for path in volumes if path.name.startswith(starts)]


def _value_faults(image: Any, voxels: npt.NDArray[Any], release: BraTSRelease) -> list[str]:
    """Return what is wrong with number type and values of a label map."""
    fractions, unknown, other_releases = compare_values(voxels, release, rounding=0)
    if len(fractions):
        return [
            f"holds {fractions[0]:g}, which is not a whole number; submit labels, not probabilities"
        ]
    faults = []
    if voxels.dtype.kind == "f":
        faults.append(
            f"stored as {image.get_data_dtype()} and read as {voxels.dtype}; save labels as uint8, "
            "unscaled"
        )
    if len(unknown):
        hint = f" (these are labels of {', '.join(other_releases)})" if other_releases else ""
        faults.append(
            f"holds label {join_numbers(unknown, at_most=5)}, but {release.name} has "
            f"{join_numbers(release.labels)}; write the labels of that release{hint}"
        )
    return faults


def _grid_faults(image: Any, source: Any) -> list[str]:
    """Return how the grid of a label map differs from that of its scan."""
    cure = f"copy header and affine of {Path(source.get_filename()).name}"
    faults = []
    if image.shape != source.shape[:3]:
        faults.append(f"shape {image.shape} differs from the scan's {source.shape[:3]}; {cure}")
    if not np.isfinite(image.affine).all() or np.linalg.det(image.affine) == 0:
        return [*faults, f"its affine has no inverse, or is not finite; {cure}"]
    spacing, scan_spacing = voxel_sizes(image.affine), voxel_sizes(source.affine)
    if not np.allclose(spacing, scan_spacing, rtol=0, atol=SPACING_TOLERANCE_MM):
        faults.append(
            f"spacing ({join_numbers(spacing)}) mm differs from ({join_numbers(scan_spacing)}) mm; "
            f"{cure}"
        )
    origin, scan_origin = image.affine[:3, 3], source.affine[:3, 3]
    if not np.allclose(origin, scan_origin, rtol=0, atol=AFFINE_TOLERANCE_MM):
        faults.append(
            f"origin ({join_numbers(origin)}) differs from ({join_numbers(scan_origin)}); {cure}"
        )
    gap = np.abs(image.affine[:3, :3] / spacing - source.affine[:3, :3] / scan_spacing).max()
    if not gap <= DIRECTION_TOLERANCE:
        axes, scan_axes = ("".join(nib.aff2axcodes(i.affine)) for i in (image, source))
        faults.append(
            f"orientation {axes} differs from {scan_axes} by up to {gap:.3g} in direction; {cure}"
        )
    return faults
