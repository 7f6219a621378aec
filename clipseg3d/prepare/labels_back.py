"""Labels and probabilities of a prepared case, carried back to the scans that it was made of."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipseg3d.data.array_volume import ArrayVolume
from clipseg3d.data.nifti import open_nifti, read_voxels, strip_extension, write_label, write_map
from clipseg3d.data.resampling import carry
from clipseg3d.formatting import join_sizes

_RECORD = "*_prepare.json"


def carry_back(label: Path, case_folder: Path, output: Path) -> list[Path]:
    """Write a label map or a map of probabilities on the grid of every scan of a prepared case.

    Labels are carried one by one, and each voxel gets the one with the largest share in it.

    Args:
        label: NIfTI file on the grid of the case, as ``clipseg3d segment`` writes it.
        case_folder: the case, as ``clipseg3d prepare`` wrote it.
        output: folder for ``NAME_t1.nii.gz`` and so on, where ``NAME`` is that of the label's file;
            files in it are replaced.

    Returns:
        The files.

    Raises:
        FileNotFoundError: the label is missing, or the folder was not written by ``prepare``.
        ValueError: the label is broken, or lies on another grid.
        OSError: ``output`` cannot be written.
    """
    record = _read_record(case_folder)
    image = open_nifti(label)
    shape, affine = record["atlas"]["grid"], np.array(record["atlas"]["affine"])
    if [*image.shape[:3]] != shape or not np.allclose(image.affine, affine, atol=1e-3):
        raise ValueError(
            f"{label}: {join_sizes(image.shape[:3])} voxels do not lie on the grid of "
            f"{record['case']}, {join_sizes(shape)}; give a label map of the prepared case"
        )
    voxels = read_voxels(label)
    whole = bool((voxels == np.rint(voxels)).all() and 0 <= voxels.min() <= voxels.max() <= 255)
    stem = strip_extension(label.name)
    files = []
    for name, about in record["sequences"].items():
        scan_affine = np.array(about["affine"])
        placed = np.linalg.inv(np.array(about["case_to_scan_mm"])) @ scan_affine
        x, y, z = about["shape"]
        path = output / f"{stem}_{name}.nii.gz"
        source = ArrayVolume(name, np.zeros((x, y, z), np.uint8), scan_affine)
        if whole:
            write_label(path, _labels(voxels, affine, (x, y, z), placed), source=source)
        else:
            values = carry(voxels.astype(np.float32), affine, (x, y, z), placed)
            write_map(path, values, source=source)
        files.append(path)
    return files


def _labels(
    voxels: npt.NDArray[Any],
    affine: npt.NDArray[np.float64],
    shape: tuple[int, int, int],
    to_affine: npt.NDArray[np.float64],
) -> npt.NDArray[np.uint8]:
    """Return labels on another grid."""
    found = np.zeros(shape, np.uint8)
    most = carry((voxels == 0).astype(np.float32), affine, shape, to_affine)
    # Around the case, there is nothing.
    most = np.where(
        most + carry((voxels != 0).astype(np.float32), affine, shape, to_affine) > 0, most, 1
    )
    for value in np.unique(voxels[voxels != 0]):
        share = carry((voxels == value).astype(np.float32), affine, shape, to_affine)
        more = share > most
        found[more] = value
        most[more] = share[more]
    return found


def _read_record(case_folder: Path) -> dict[str, Any]:
    """Return what ``prepare`` wrote about a case."""
    files = sorted(case_folder.glob(_RECORD)) if case_folder.is_dir() else []
    cure = "give the folder of a case that 'clipseg3d prepare' wrote"
    if len(files) != 1:
        raise FileNotFoundError(f"{case_folder}: holds no CASE_prepare.json; {cure}")
    try:
        record: dict[str, Any] = json.loads(files[0].read_text(encoding="utf-8"))
        record["atlas"]["grid"], record["sequences"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{files[0]}: was not written by 'clipseg3d prepare'; {cure}") from error
    return record
