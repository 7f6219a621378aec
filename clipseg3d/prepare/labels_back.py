"""Labels and probabilities of a prepared case, carried back to the scans that it was made of."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.affines import voxel_sizes

from clipseg3d.data.nifti import open_nifti, read_voxels, strip_extension, write_label, write_map
from clipseg3d.data.resampling import carry
from clipseg3d.formatting import join_sizes
from clipseg3d.prepare.record import read_record


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
    record = read_record(case_folder)
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
    with tempfile.TemporaryDirectory() as folder:
        for name, about in record["sequences"].items():
            placed = np.linalg.inv(np.array(about["case_to_scan_mm"])) @ np.array(about["affine"])
            x, y, z = about["shape"]
            path = output / f"{stem}_{name}.nii.gz"
            source = _write_grid(about, Path(folder, f"{name}.nii"))
            if whole:
                write_label(path, _labels(voxels, affine, (x, y, z), placed), source=source)
            else:
                values = carry(voxels.astype(np.float32), affine, (x, y, z), placed)
                write_map(path, values, source=source)
            files.append(path)
    return files


def _write_grid(about: Mapping[str, Any], path: Path) -> Path:
    """Write an empty file with the geometry of a scan.

    Its forms and their codes are those of the scan: programs differ in which of them they read.
    """
    affine = np.array(about["affine"])
    image = nib.Nifti1Image(np.zeros(about["shape"], np.uint8), affine)
    image.header.set_zooms(voxel_sizes(affine))
    image.header.set_xyzt_units("mm")
    for name, write in (("qform", image.header.set_qform), ("sform", image.header.set_sform)):
        code, form = about[name]
        write(None if form is None else np.array(form), code)
    nib.save(nib.Nifti1Image(image.dataobj, None, image.header), path)
    return path


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
