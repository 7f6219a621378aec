"""A volume in memory, in the place of a NIfTI file."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import nibabel as nib
import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class ArrayVolume:
    """Voxels and where they lie; the library reads it like a file.

    Attributes:
        name: for messages.
        voxels: (x, y, z) real numbers; not changed.
        affine: (4, 4), from voxels to mm, as in NIfTI.

    Raises:
        ValueError: the voxels are no volume of real numbers, or the affine is no (4, 4) matrix.
    """

    name: str
    voxels: npt.NDArray[Any] = field(repr=False)
    affine: npt.NDArray[np.floating] = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be a volume."""
        if self.voxels.ndim != 3 or 0 in self.voxels.shape or self.voxels.dtype.kind not in "biuf":
            raise ValueError(
                f"{self.name}: {self.voxels.dtype} of shape {self.voxels.shape} is no volume; give "
                "real numbers (x, y, z)"
            )
        if np.shape(self.affine) != (4, 4):
            raise ValueError(
                f"{self.name}: an affine of shape {np.shape(self.affine)}; give a 4 x 4 matrix, "
                "from voxels to mm"
            )

    def __str__(self) -> str:
        """Return the name, as a path returns its own."""
        return self.name

    def sha256(self) -> str:
        """Return the SHA-256 of voxels and affine."""
        voxels = np.ascontiguousarray(self.voxels)
        digest = hashlib.sha256(f"{voxels.dtype.str} {voxels.shape}".encode())
        digest.update(voxels.tobytes())
        digest.update(np.asarray(self.affine, np.float64).tobytes())
        return digest.hexdigest()

    def image(self) -> Any:
        """Return the volume as nibabel's image, in scanner space and millimetres."""
        voxels = self.voxels.astype(np.uint8) if self.voxels.dtype.kind == "b" else self.voxels
        if voxels.dtype in (np.int64, np.uint64, np.float16):
            voxels = voxels.astype(np.float64)
        image = nib.Nifti1Image(voxels, self.affine)
        image.set_qform(self.affine, code=1)
        image.set_sform(self.affine, code=1)
        image.header.set_xyzt_units("mm")
        return image


VolumeSource: TypeAlias = Path | ArrayVolume
"""A NIfTI file, or a volume in memory."""
