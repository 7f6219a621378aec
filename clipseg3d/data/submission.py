"""Check segmentations as the portals of the challenges do, before they are handed in."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.affines import voxel_sizes

from clipseg3d.data.cases import AFFINE_TOLERANCE_MM, Case, index_cases
from clipseg3d.data.nifti import open_nifti, read_voxels, strip_extension
from clipseg3d.data.releases import RELEASES, BraTSRelease
from clipseg3d.formatting import join_numbers

SUFFIX = ".nii.gz"
"""What portals take; a segmentation is named by its case alone."""
SPACING_TOLERANCE_MM = 1e-3
DIRECTION_TOLERANCE = 1e-3
"""Of the cosines between voxel axes and those of the patient."""


def check_submission(folder: Path, root: Path, release: BraTSRelease) -> tuple[int, list[str]]:
    """Compare segmentations with the cases that they are of.

    Each must be ``{case}.nii.gz``, with the labels of the release as whole numbers, and shape,
    spacing, origin and orientation of its case. Subfolders are passed over.

    Args:
        folder: of segmentations.
        root: folder of cases, with or without expert masks.
        release: of the cases.

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
    named = set[Path]()
    for case in cases:
        faults += _segmentation_faults(folder, volumes, case, release)
        due = folder / f"{case.case_id}{SUFFIX}"
        named.update([due] if due in volumes else _misnamed(volumes, case.case_id))
    faults += [
        f"{path}: of no case in {root}; take it out" for path in volumes if path not in named
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
        folder: of segmentations.
        volumes: the files in it.
        case: whose grid is due.
        release: whose labels are due.
    """
    due = folder / f"{case.case_id}{SUFFIX}"
    if due not in volumes:
        misnamed = _misnamed(volumes, case.case_id)
        if not misnamed:
            return [f"{due}: missing; segment the case"]
        return [
            f"{path}: portals take {due.name}; "
            + ("compress it" if path.suffix == ".nii" else "rename it")
            for path in misnamed
        ]
    try:
        image = open_nifti(due)
        voxels = read_voxels(due)
        source = open_nifti(next(iter(case.sequences.values())), axes=case.axes)
    except (ValueError, FileNotFoundError) as error:
        return [str(error)]
    return [
        f"{due}: {fault}"
        for fault in [*_value_faults(image, voxels, release), *_grid_faults(image, source)]
    ]


def _misnamed(volumes: Sequence[Path], case_id: str) -> list[Path]:
    """Return the files that are named after a case, but with something more or another ending."""
    starts = f"{case_id}.", f"{case_id}_", f"{case_id}-"
    return [path for path in volumes if path.name.startswith(starts)]


def _value_faults(image: Any, voxels: npt.NDArray[Any], release: BraTSRelease) -> list[str]:
    """Return what is wrong with number type and values of a label map."""
    values = np.unique(voxels)
    broken = values[values != np.rint(values)]
    if len(broken):
        return [f"holds {broken[0]:g}, no whole number; hand in labels, not probabilities"]
    faults = []
    if voxels.dtype.kind == "f":
        faults.append(
            f"stored as {image.get_data_dtype()} and read as {voxels.dtype}; save labels as uint8, "
            "unscaled"
        )
    unknown = values[~np.isin(values, release.labels)]
    if len(unknown):
        fitting = [name for name, other in RELEASES.items() if np.isin(values, other.labels).all()]
        hint = f" (these are labels of {', '.join(fitting)})" if fitting else ""
        faults.append(
            f"holds label {join_numbers(unknown, at_most=5)}, but {release.name} "
            f"has {', '.join(map(str, release.labels))}; write the labels of that release{hint}"
        )
    return faults


def _grid_faults(image: Any, source: Any) -> list[str]:
    """Return where a label map lies elsewhere than the scan."""
    cure = f"copy header and affine of {Path(source.get_filename()).name}"
    faults = []
    if image.shape != source.shape[:3]:
        faults.append(f"shape {image.shape} differs from the scan's {source.shape[:3]}; {cure}")
    if not np.isfinite(image.affine).all() or np.linalg.det(image.affine) == 0:
        return [*faults, f"its affine is no place in space; {cure}"]
    sizes, due = voxel_sizes(image.affine), voxel_sizes(source.affine)
    if not np.allclose(sizes, due, rtol=0, atol=SPACING_TOLERANCE_MM):
        faults.append(
            f"spacing ({join_numbers(sizes)}) mm differs from ({join_numbers(due)}) mm; {cure}"
        )
    origin, origin_due = image.affine[:3, 3], source.affine[:3, 3]
    if not np.allclose(origin, origin_due, rtol=0, atol=AFFINE_TOLERANCE_MM):
        faults.append(
            f"origin ({join_numbers(origin)}) differs from ({join_numbers(origin_due)}); {cure}"
        )
    turned = np.abs(image.affine[:3, :3] / sizes - source.affine[:3, :3] / due).max()
    if not turned <= DIRECTION_TOLERANCE:
        axes, axes_due = ("".join(nib.aff2axcodes(i.affine)) for i in (image, source))
        faults.append(
            f"orientation {axes} differs from {axes_due} by up to {turned:.3g} in direction; {cure}"
        )
    return faults
