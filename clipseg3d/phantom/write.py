"""Simulated patients as case folders in BraTS layout."""

from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from clipseg3d.atomic_write import atomic_folder, locked
from clipseg3d.data.reports import REPORT_SUFFIX
from clipseg3d.phantom.grid import Float
from clipseg3d.phantom.simulate import Phantom, simulate_phantom
from clipseg3d.phantom.tumour import Label
from clipseg3d.vocabulary import SEQUENCES

MAX_CASES = 100_000
"""Patients at once; more is a slip."""


def write_phantom(phantom: Phantom, root: Path, case_id: str) -> Path:
    """Write a phantom as one BraTS case folder, all or nothing.

    Writes ``{case_id}_t1``, ``_t1ce``, ``_t2``, ``_flair`` and ``_seg`` as ``.nii.gz`` and the
    report as ``{case_id}_flair_text.txt`` (UTF-8). Images are int16 if their values fit, else
    float32.

    Args:
        phantom: what to write.
        root: folder of cases; made if missing.
        case_id: name of the case and of its folder.

    Returns:
        The case folder, ``root / case_id``.

    Raises:
        ValueError: ``case_id`` is no valid folder name, or hidden.
        FileExistsError: the case folder exists; it stays unchanged.
        OSError: ``root`` cannot be written.
    """
    if not case_id or Path(case_id).name != case_id or case_id.startswith("."):
        raise ValueError(f"case_id={case_id!r} is no folder name; use one such as 'Phantom_001'")
    target = root / case_id
    exists = f"{target} exists; choose another case_id, or delete that folder first"
    if target.exists():
        raise FileExistsError(exists)
    try:
        with atomic_folder(target) as tmp:
            for name, volume in zip(SEQUENCES, phantom.image, strict=True):
                _save(tmp / f"{case_id}_{name}.nii.gz", _round_to_integers(volume), phantom.affine)
            _save(tmp / f"{case_id}_seg.nii.gz", phantom.label, phantom.affine)
            (tmp / f"{case_id}{REPORT_SUFFIX}").write_text(phantom.report + "\n", encoding="utf-8")
    except OSError as error:
        if target.exists():  # another process has made it
            raise FileExistsError(exists) from error
        raise
    return target


def _round_to_integers(volume: Float) -> NDArray[np.int16] | NDArray[np.float32]:
    """Return integers, as int16 if they fit; voxels above 0 become at least 1."""
    rounded = np.rint(volume)
    rounded[(volume > 0) & (rounded < 1)] = 1
    limits = np.iinfo(np.int16)
    fits = rounded.min() >= limits.min and rounded.max() <= limits.max
    return rounded.astype(np.int16) if fits else rounded.astype(np.float32)


def _save(
    path: Path, volume: NDArray[np.int16] | Float | Label, affine: NDArray[np.float64]
) -> None:
    """Write one volume as NIfTI."""
    image = nib.Nifti1Image(volume, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def write_phantoms(
    root: Path, num_cases: int, *, spacing_mm: float = 2.0, seed: int = 0
) -> list[str]:
    """Write simulated patients in BraTS layout; existing ones are kept.

    Args:
        root: folder of the cases ``Phantom_00000``, ``Phantom_00001`` and so on.
        num_cases: number of patients.
        spacing_mm: edge of the cubic voxel, in mm.
        seed: seed of the first patient; it increases by 1 from patient to patient.

    Returns:
        Case names.
    """
    names = case_names(num_cases, seed)
    missing = [index for index, name in enumerate(names) if not (root / name).is_dir()]
    for index in tqdm(missing, desc="Simulating patients", unit="case", delay=2):
        target = root / names[index]
        with locked(target):
            if not target.is_dir():  # written by another process meanwhile
                phantom = simulate_phantom(seed + index, spacing_mm=spacing_mm)
                write_phantom(phantom, root, names[index])
    return names


def case_names(num_cases: int, seed: int) -> list[str]:
    """Return the names of the cases that :func:`write_phantoms` writes."""
    return [f"Phantom_{seed + index:05d}" for index in range(num_cases)]
