"""A sequence as the scanner gave it, read and checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from nibabel.affines import apply_affine, voxel_sizes

from clipseg3d.data.array_volume import ArrayVolume
from clipseg3d.data.nifti import geometry_notes, open_nifti, read_voxels
from clipseg3d.formatting import join_sizes

Affine = npt.NDArray[np.float64]

FIELD_OF_VIEW_MM = (100.0, 600.0)
"""Least and largest length of the longest side of a scan of a head."""
MIN_SIDE_MM = 40.0
"""Least length of the shortest side; a slab thinner than that holds too little of a brain."""


@dataclass(frozen=True, eq=False)
class NativeScan:
    """One sequence as the scanner gave it.

    Attributes:
        path: its file, for messages.
        voxels: (x, y, z) float32.
        affine: 4 x 4, from voxels to mm.
        forms: qform and sform of its header, each with its code, as plain values; none without one.
        notes: what is in doubt about its place, a line each.
    """

    path: Path
    voxels: npt.NDArray[np.float32] = field(repr=False)
    affine: Affine
    forms: Mapping[str, tuple[int, list[list[float]] | None]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> "NativeScan":
        """Read a NIfTI file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is broken or empty, has four axes, or is no scan of a head in mm.
        """
        image = open_nifti(path)
        sizes = voxel_sizes(image.affine)
        sides = sizes * image.shape[:3]
        low, high = FIELD_OF_VIEW_MM
        if not low <= sides.max() <= high or sides.min() < MIN_SIDE_MM:
            raise ValueError(
                f"{path}: {join_sizes(image.shape[:3])} voxels of {join_sizes(sizes)} mm are "
                f"{join_sizes(sides)} mm, which no scan of a whole brain is; give another file, or "
                "correct the voxel size in its header"
            )
        voxels = read_voxels(path, dtype=np.float32)
        if voxels.min() == voxels.max():
            raise ValueError(f"{path}: every voxel is {voxels.flat[0]:g}; export the file again")
        forms = {}
        for name, (form, code) in {
            "qform": image.get_qform(coded=True),
            "sform": image.get_sform(coded=True),
        }.items():
            forms[name] = int(code), None if form is None else form.tolist()
        return cls(path, voxels, image.affine, forms, tuple(geometry_notes(path)))

    def sha256(self) -> str:
        """Return the SHA-256 of voxels and affine."""
        return ArrayVolume(self.path.name, self.voxels, self.affine).sha256()

    @property
    def middle_mm(self) -> npt.NDArray[np.float64]:
        """The middle of the field of view."""
        middle: npt.NDArray[np.float64] = apply_affine(
            self.affine, (np.array(self.voxels.shape) - 1) / 2
        )
        return middle
