"""Reading and writing NIfTI files, with errors that name the file and the cure."""

import gzip
import os
import stat
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from clipseg3d.atomic_write import atomic_write

EXTENSIONS = (".nii.gz", ".nii")
_BROKEN = (
    ImageFileError,
    HeaderDataError,
    EOFError,
    OSError,
    OverflowError,
    ValueError,
    zlib.error,
)


def strip_extension(name: str) -> str | None:
    """Return a file name without its ending .nii or .nii.gz; None for other files."""
    for extension in EXTENSIONS:
        if name.endswith(extension):
            return name[: -len(extension)]
    return None


def open_nifti(path: Path, *, axes: int = 3) -> Any:
    """Open a NIfTI file and read its header; the voxels stay on disk.

    Args:
        path: file to open.
        axes: expected number of axes: 3 for (x, y, z), 4 for (x, y, z, sequence).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be opened, or is not a NIfTI volume of real numbers with that
            number of axes.
    """
    _require_readable(path)
    try:
        image = nib.load(path)
        dtype = image.get_data_dtype()
    except _BROKEN as error:
        raise ValueError(_broken(path, error)) from error
    if not isinstance(image, nib.Nifti1Image):
        raise ValueError(f"{path}: not a NIfTI volume; convert it to .nii.gz")
    if len(image.shape) != axes:
        expected = "3 (x, y, z); save one 3D volume per sequence"
        if axes == 4:
            expected = "4 (x, y, z, sequence); save all sequences in one file"
        raise ValueError(f"{path}: has {len(image.shape)} axes {image.shape}, expected {expected}")
    if dtype.kind not in "biuf":
        raise ValueError(
            f"{path}: voxels are {dtype}, expected real numbers; export one number per voxel"
        )
    return image


def read_voxels(path: Path, *, axes: int = 3) -> npt.NDArray[Any]:
    """Read the voxels of a NIfTI file, scaled as its header says.

    Args:
        path: file to read; it is read to its end, so that any damage is detected.
        axes: as for :func:`open_nifti`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken, or its voxels are NaN, infinite or not real numbers.
    """
    image = open_nifti(path, axes=axes)
    try:
        if path.name.endswith(".gz"):  # nibabel stops reading before the check sum
            image = type(image).from_bytes(gzip.decompress(path.read_bytes()))
        voxels: npt.NDArray[Any] = np.asanyarray(image.dataobj)
    except _BROKEN as error:
        raise ValueError(_broken(path, error)) from error
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        count = int((~np.isfinite(voxels)).sum())
        raise ValueError(
            f"{path}: {count} voxels are NaN or infinite; repeat the processing that made them"
        )
    return voxels


def write_label(path: Path, label: npt.NDArray[np.uint8], *, source: Path, axes: int = 3) -> None:
    """Write a label map with the header, affine and shape of ``source``, all or nothing.

    Args:
        path: file to write, ending in .nii.gz or .nii; its folder is made if missing.
        label: (x, y, z), in the voxel order of the source.
        source: NIfTI file whose grid the label lies on; it is not changed.
        axes: number of axes of the source; the label has the first three of them.

    Raises:
        ValueError: the shapes differ, or ``path`` has another ending.
        OSError: ``path`` cannot be written; an older file stays as it was.
    """
    _write_like(path, label, np.uint8, source=source, axes=axes)


def write_map(path: Path, values: npt.NDArray[np.floating], *, source: Path, axes: int = 3) -> None:
    """Write a map, such as a probability, as float32; arguments as in :func:`write_label`.

    Values are first rounded to the precision of float16, which NIfTI does not have: the compressed
    files are about a third as large.
    """
    _write_like(path, values.astype(np.float16), np.float32, source=source, axes=axes)


def _write_like(
    path: Path, volume: npt.NDArray[Any], dtype: type[np.generic], *, source: Path, axes: int
) -> None:
    """Write a volume on the grid of ``source``."""
    if strip_extension(path.name) is None:
        raise ValueError(f"{path}: is not a name of a .nii.gz or .nii file; rename it")
    reference = open_nifti(source, axes=axes)
    if volume.shape != reference.shape[:3]:
        raise ValueError(
            f"{source}: shape {reference.shape} differs from {volume.shape} of the volume to "
            f"write; give the scan that {path.name} belongs to"
        )
    header = reference.header.copy()
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0  # the display range of the scan would hide labels
    # Without an affine, qform, sform and their codes stay exactly those of the source.
    image = type(reference)(volume.astype(dtype, copy=False), None, header)
    with atomic_write(path) as tmp:
        nib.save(image, tmp)


def _require_readable(path: Path) -> None:
    """Fail for a file that is missing or cannot be opened; nibabel would report its format.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the system does not open it.
    """
    try:
        if stat.S_ISREG(path.stat().st_mode):  # opening a pipe would block
            path.open("rb").close()
            return
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be opened ({error.strerror}); check its permissions and its path"
        ) from error
    if os.path.islink(path):
        raise FileNotFoundError(
            f"{path}: a link to {os.readlink(path)}, which is not a file; restore the file, or "
            "remove the link"
        )
    raise FileNotFoundError(f"{path}: no such file; check the path")


def _broken(path: Path, error: BaseException) -> str:
    """Return the message for a file that could not be read."""
    if path.stat().st_size == 0:
        return f"{path}: the file is empty; copy or download it again"
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{path}: not a readable NIfTI file ({reason}); copy or download it again"
