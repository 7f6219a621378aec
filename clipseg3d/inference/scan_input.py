"""What can be segmented: a case, its folder, its files, or volumes in memory."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from clipseg3d.data.array_volume import ArrayVolume
from clipseg3d.data.cases import Case, DataError, case_from_files, index_cases
from clipseg3d.data.release import BraTSRelease

Voxels: TypeAlias = npt.NDArray[Any]
Scan: TypeAlias = Case | str | Path | Mapping[str, str | Path | Voxels] | Voxels
"""A case, the folder of one, sequence -> file, sequence -> array (x, y, z), or (s, x, y, z)."""


def as_case(
    scan: Scan,
    release: BraTSRelease,
    *,
    affine: Voxels | None = None,
    allow_missing: bool = False,
) -> Case:
    """Return the case that a scan stands for.

    Args:
        scan: see :data:`Scan`; the sequences of an array (s, x, y, z) are those of the release, in
            their order.
        release: says how files are named, and which sequences there are.
        affine: of arrays, (4, 4), from voxels to mm.
        allow_missing: whether the case may lack sequences.

    Raises:
        FileNotFoundError: there is no such folder, or no case in it.
        DataError: files are missing or broken.
        ValueError: a folder holds several cases; arrays come without an affine, or with another
            number of sequences.
    """
    if isinstance(scan, Case):
        return scan
    if isinstance(scan, str | Path):
        return _only_case(Path(scan), release)
    if isinstance(scan, np.ndarray):
        if scan.ndim != 4 or len(scan) != len(release.sequences):
            raise ValueError(
                f"an array of shape {scan.shape}; give (s, x, y, z) with "
                f"{', '.join(release.sequences)}"
            )
        scan = dict(zip(release.sequences, scan, strict=True))
    arrays = {name: volume for name, volume in scan.items() if isinstance(volume, np.ndarray)}
    if not arrays:
        files = {name: path for name, path in scan.items() if isinstance(path, str | Path)}
        return case_from_files(
            files, sequences=list(release.sequences), allow_missing=allow_missing
        )
    if affine is None:
        raise ValueError(
            "arrays do not say how they lie in space; give their affine, a 4 x 4 matrix from "
            "voxels to mm, as in NIfTI"
        )
    unknown = [name for name in scan if name not in release.sequences or name not in arrays]
    if unknown:
        raise ValueError(
            f"{unknown[0]}: give arrays alone, for sequences of {', '.join(release.sequences)}"
        )
    volumes = {
        name: ArrayVolume(f"the array of {name}", arrays[name], np.asarray(affine, float))
        for name in release.sequences
        if name in arrays
    }
    return Case("scan", "scan", volumes)


def _only_case(folder: Path, release: BraTSRelease) -> Case:
    """Return the only case in a folder; faults of its expert mask are of no matter."""
    cases, faults = index_cases(
        folder, release, require_label=False, allow_missing=True, one_grid=False
    )
    if not cases:
        raise FileNotFoundError("\n".join(faults))
    if len(cases) > 1:
        raise ValueError(
            f"{folder}: holds {len(cases)} cases; give the folder of one, or use segment_cases"
        )
    (case,) = cases
    faults = [fault for fault in faults if not fault.startswith(f"{case.label}: ")]
    if faults:
        raise DataError(faults)
    return replace(case, label=None)
