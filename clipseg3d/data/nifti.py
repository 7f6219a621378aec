"""Reading and writing NIfTI files, with errors that name the file and the cure."""

import itertools
import math
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
from clipseg3d.data.array_volume import ArrayVolume, VolumeSource

EXTENSIONS = (".nii.gz", ".nii")
GEOMETRY_TOLERANCE_MM = 0.1
"""How far sform and qform may be apart."""
_GZIP = b"\x1f\x8b"
_NIFTI_MAGIC = (b"n+1\0", b"ni1\0")
_NIFTI_2_MAGIC = (b"n+2\0", b"ni2\0")
_OTHER_FORMATS = (
    (128, b"DICM", "DICOM", "convert the whole series with dcm2niix"),
    (0, b"NRRD", "NRRD", "convert it with 3D Slicer or SimpleITK"),
    (0, b"ObjectType", "MetaImage", "convert it with 3D Slicer or SimpleITK"),
    (0, b"NDims", "MetaImage", "convert it with 3D Slicer or SimpleITK"),
    (0, b"\0\0\0\x01", "FreeSurfer's MGH", "convert it with mri_convert"),
    (0, b"PK\x03\x04", "a zip archive", "unpack it"),
    (0, b"7z\xbc\xaf", "a 7z archive", "unpack it"),
    (0, b"\x89HDF", "HDF5 or MINC", "convert it with mnc2nii or nibabel"),
    (0, b"<!DOCTYPE", "a web page", "download the file itself"),
    (0, b"<html", "a web page", "download the file itself"),
    (0, b"version https://git-lfs", "a Git LFS pointer", "download the file with 'git lfs pull'"),
)
"""Where the first bytes of a format lie, what they are, its name, and how to convert it."""
_MAX_GZIP_RATIO = 1040
"""No gzip file is compressed by more."""
_MAX_TRAILING = 2**20
"""Bytes that may follow the voxels."""
_GEOMETRY_FIELDS = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
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
        if name.lower().endswith(extension):
            return name[: -len(extension)]
    return None


def open_nifti(path: VolumeSource, *, axes: int = 3) -> Any:
    """Open a NIfTI file and read its header; the voxels stay on disk.

    Args:
        path: file to open, or a volume in memory.
        axes: expected number of axes: 3 for (x, y, z), 4 for (x, y, z, sequence). Further axes of
            length 1, as some converters write, are accepted.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be opened, or is not a NIfTI volume of real numbers with that
            number of axes.
    """
    if isinstance(path, ArrayVolume):
        return path.image()
    _require_readable(path)
    if (other := other_format(path)) is not None:
        raise ValueError(f"{path}: {other}")
    try:
        image = nib.load(path)
        dtype = image.get_data_dtype()
    except _BROKEN as error:
        raise ValueError(_broken(path, error)) from error
    if not isinstance(image, nib.Nifti1Image):
        raise ValueError(f"{path}: not a NIfTI volume; convert it to .nii.gz")
    if len(image.shape) < axes or set(image.shape[axes:]) - {1}:
        expected = "3 (x, y, z); save one 3D volume per sequence"
        if axes == 4:
            expected = "4 (x, y, z, sequence); save all sequences in one file"
        raise ValueError(f"{path}: has {len(image.shape)} axes {image.shape}, expected {expected}")
    if dtype.kind not in "biuf":
        raise ValueError(
            f"{path}: voxels are {dtype}, expected real numbers; export one number per voxel"
        )
    _require_size(path, image)
    return image


def read_voxels(
    path: VolumeSource,
    *,
    axes: int = 3,
    allow_nan: bool = False,
    dtype: npt.DTypeLike | None = None,
) -> npt.NDArray[Any]:
    """Read the voxels of a NIfTI file, scaled as its header says.

    Args:
        path: file to read, or a volume in memory. A file is read to its end, so that any damage is
            detected.
        axes: as for :func:`open_nifti`.
        allow_nan: whether voxels may be NaN or infinite.
        dtype: of the result; None takes that of the file, or float64 if its header scales voxels.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken, or its voxels are NaN, infinite or not real numbers.
    """
    image = open_nifti(path, axes=axes)
    try:
        if isinstance(path, Path) and path.name.lower().endswith(".gz"):
            # nibabel stops reading before the check sum
            image = type(image).from_bytes(_decompress(path, _declared_bytes(image)))
        voxels: npt.NDArray[Any] = np.asanyarray(image.dataobj, dtype).reshape(image.shape[:axes])
    except (*_BROKEN, MemoryError) as error:
        raise ValueError(_broken(path, error)) from error
    if not allow_nan and voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        count = int((~np.isfinite(voxels)).sum())
        raise ValueError(
            f"{path}: {count} voxels are NaN or infinite; repeat the processing that made them"
        )
    return voxels


def other_format(path: Path) -> str | None:
    """Say what a file is, by its first bytes, if it is no NIfTI file of its name; else None.

    The text says how to convert it.
    """
    with path.open("rb") as file:
        head = file.read(352)
    zipped = head[:2] == _GZIP
    if strip_extension(path.name) is not None:
        plain = head[344:348] in _NIFTI_MAGIC or head[4:8] in _NIFTI_2_MAGIC
        if path.name.lower().endswith(".gz") and plain and not zipped:
            return f"not compressed although it ends in .gz; rename it to {path.name[:-3]}"
        if path.name.lower().endswith(".nii") and zipped:
            return f"compressed although it does not end in .gz; rename it to {path.name}.gz"
    for where, magic, name, cure in _OTHER_FORMATS:
        if head[where : where + len(magic)] == magic:
            return f"is {name}, not NIfTI; {cure}"
    return None


def geometry_notes(path: VolumeSource, *, axes: int = 3) -> list[str]:
    """Return what is in doubt about where a volume lies, one line each; only the header is read.

    Raises:
        FileNotFoundError, ValueError: as :func:`open_nifti`.
    """
    image = open_nifti(path, axes=axes)
    header = image.header
    orientation = "".join(code or "?" for code in nib.aff2axcodes(image.affine))
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    guess = (
        f"{path}: the file does not say how it lies in space; {orientation} is assumed, so left "
        "may be right in labels and reports; restore the orientation from the source"
    )
    if not sform and not qform:
        return [guess]
    if np.array_equal(image.affine, np.eye(4)):
        return [guess.replace("does not say", "has an identity affine, which does not say")]
    if sform and qform:
        corners = np.array(list(itertools.product(*((0, n - 1) for n in image.shape[:3]))))
        gap = nib.affines.apply_affine(header.get_sform() - header.get_qform(), corners)
        distance = float(np.linalg.norm(gap, axis=1).max())
        if distance > GEOMETRY_TOLERANCE_MM:
            return [
                f"{path}: its sform and qform disagree by up to {distance:.3g} mm; the sform is "
                "used; check which of them is right"
            ]
    return []


def _declared_bytes(image: Any) -> int:
    """Return the size of an uncompressed file, as its header says."""
    data: int = math.prod(image.shape) * image.get_data_dtype().itemsize
    return int(image.dataobj.offset) + data


def _require_size(path: Path, image: Any) -> None:
    """Raise a ValueError for axes of no length, or more voxels than the file can hold."""
    if 0 in image.shape:
        raise ValueError(f"{path}: has an axis of length 0 {image.shape}; export the file again")
    possible = path.stat().st_size
    if path.name.lower().endswith(".gz"):
        possible *= _MAX_GZIP_RATIO
    if _declared_bytes(image) > possible:
        raise ValueError(
            f"{path}: its header declares {image.shape} voxels, more than the file holds; copy or "
            "download it again"
        )


def _decompress(path: Path, declared: int) -> bytes:
    """Return the content of a gzip file, its check sums verified; no more than is declared.

    Raises:
        ValueError: there is more in it.
        EOFError: it is cut off.
        zlib.error: it is damaged.
    """
    compressed, parts, size = path.read_bytes(), [], 0
    while compressed.rstrip(b"\0"):  # members follow one another; some writers pad with zeros
        member = zlib.decompressobj(wbits=31)
        parts.append(member.decompress(compressed, max(1, declared + _MAX_TRAILING - size)))
        size += len(parts[-1])
        if size >= declared + _MAX_TRAILING:
            raise ValueError("it holds more than its header declares")
        if not member.eof:
            raise EOFError("it is cut off")
        compressed = member.unused_data
    return b"".join(parts)


def write_label(
    path: Path, label: npt.NDArray[np.uint8], *, source: VolumeSource, axes: int = 3
) -> None:
    """Write a label map on the grid of ``source``, all or nothing.

    The header has the geometry and the units of the source, to the bit, and nothing else of it: no
    description, extension or intent, in which names of patients may stand.

    Args:
        path: file to write, ending in .nii.gz or .nii; its folder is made if missing.
        label: (x, y, z), in the voxel order of the source.
        source: file or volume whose grid the label lies on; it is not changed.
        axes: number of axes of the source; the label has the first three of them.

    Raises:
        ValueError: the shapes differ, or ``path`` has another ending.
        OSError: ``path`` cannot be written; an older file stays as it was.
    """
    _write_like(path, label, np.uint8, source=source, axes=axes)


def write_map(
    path: Path, values: npt.NDArray[np.floating], *, source: VolumeSource, axes: int = 3
) -> None:
    """Write a map, such as a probability, as float32; arguments as in :func:`write_label`.

    Values are first rounded to the precision of float16, which NIfTI does not have: the compressed
    files are about a third as large.
    """
    _write_like(path, values.astype(np.float16), np.float32, source=source, axes=axes)


def _write_like(
    path: Path,
    volume: npt.NDArray[Any],
    dtype: type[np.generic],
    *,
    source: VolumeSource,
    axes: int,
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
    header = _geometry_of(reference.header)
    header.set_data_dtype(dtype)
    # Without an affine, qform, sform and their codes stay exactly those of the source.
    image = type(reference)(volume.astype(dtype, copy=False), None, header)
    with atomic_write(path) as tmp:
        nib.save(image, tmp)


def _geometry_of(header: Any) -> Any:
    """Return a new header with only the geometry and the units of another one."""
    new = type(header)(endianness=header.endianness)
    for field in _GEOMETRY_FIELDS:
        new[field] = header[field]
    return new


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


def _broken(path: VolumeSource, error: BaseException) -> str:
    """Return the message for a file that could not be read."""
    if isinstance(path, Path) and path.stat().st_size == 0:
        return f"{path}: the file is empty; copy or download it again"
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{path}: not a readable NIfTI file ({reason}); copy or download it again"
