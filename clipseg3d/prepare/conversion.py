"""A DICOM series as a NIfTI file."""

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from clipseg3d.atomic_write import atomic_write
from clipseg3d.data.nifti import open_nifti
from clipseg3d.prepare.extra import import_extra
from clipseg3d.prepare.series import Series


def convert_series(series: Series, folder: Path) -> Path:
    """Convert a series to NIfTI with dcm2niix, all or nothing.

    Voxels keep their values (those that rescale slope and intercept give) and their order, up to
    flips along an axis. Of the headers, the file
    gets the geometry and the scaling of voxels and nothing else: no name, date, time or text.

    Args:
        series: without a fault.
        folder: where to write; made if missing.

    Returns:
        The file, named after the sequence, such as ``t1ce.nii.gz``, or else after the number, such
        as ``series_5.nii.gz``.

    Raises:
        ImportError: dcm2niix or pydicom is not installed.
        OSError: the file cannot be written; an older one stays as it was.
        ValueError: the series has a fault, or dcm2niix cannot convert it.
    """
    if series.fault:
        raise ValueError(series.fault)
    dcm2niix = import_extra("dcm2niix", needed_for="DICOM")
    path = folder / f"{series.sequence or f'series_{series.number}'}.nii.gz"
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name, "dicom"), Path(name, "nifti")
        source.mkdir()
        target.mkdir()
        for index, file in enumerate(series.files):
            # Names of files may hold names of patients, which dcm2niix could repeat.
            os.symlink(file.resolve(), source / f"{index:05d}.dcm")
        options = ["-g", "i", "-b", "n", "-z", "n", "-x", "i", "-m", "y", "-p", "n", "-f", "%s"]
        run = subprocess.run(
            [dcm2niix.bin, *options, "-o", str(target), str(source)],
            capture_output=True,
            text=True,
            errors="replace",
        )
        image = _only_volume(series, sorted(target.glob("*.nii")), f"{run.stdout}\n{run.stderr}")
        with atomic_write(path) as tmp:
            nib.save(_without_texts(image), tmp)
    return path


def _only_volume(series: Series, files: list[Path], output: str) -> Any:
    """Return the volume that has all slices of a series.

    dcm2niix writes others beside it, such as one that it has made even or straight.

    Raises:
        ValueError: there is none, or there are several.
    """
    images = [open_nifti(file) for file in files if len(nib.load(file).shape) == 3]
    whole = [image for image in images if image.shape[2] == series.num_slices]
    if len(whole) == 1:
        return whole[0]
    if whole or images:
        raise ValueError(
            f"series {series.title}: dcm2niix made {len(files)} volumes of it, and "
            f"{len(whole) or 'none'} with its {series.num_slices} slices; convert it by hand and "
            "give the NIfTI file"
        )
    errors = [line for line in output.splitlines() if line.startswith("Error")]
    reason = f" ({errors[0]})" if errors else ""
    if (compression := _compression(series.files[0])) is not None:
        raise ValueError(
            f"series {series.title}: dcm2niix cannot read it{reason}; it is compressed as "
            f"{compression}; decompress it, as with 'gdcmconv --raw', or export it uncompressed"
        )
    raise ValueError(
        f"series {series.title}: dcm2niix cannot convert it{reason}; copy or export it again, or "
        "convert it by hand and give the NIfTI file"
    )


def _compression(file: Path) -> str | None:
    """Return the name of a compressed transfer syntax; None if pixels are not compressed."""
    pydicom = import_extra("pydicom", needed_for="DICOM")
    syntax = pydicom.filereader.read_file_meta_info(file).get("TransferSyntaxUID")
    return None if syntax is None or not syntax.is_compressed else str(syntax.name)


def _without_texts(image: Any) -> Any:
    """Return a volume with only the geometry and the scaling of voxels in its header."""
    slope, inter = image.dataobj.slope, image.dataobj.inter
    voxels = np.asanyarray(image.dataobj.get_unscaled())
    clean = nib.Nifti1Image(voxels, image.affine)
    clean.header.set_data_dtype(voxels.dtype)
    clean.header.set_xyzt_units("mm")
    clean.set_qform(image.affine, code=1)
    clean.set_sform(image.affine, code=1)
    clean.header.set_slope_inter(slope, inter)
    return clean
