"""Simulated patients as case folders in BraTS layout."""

from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from clipseg3d.atomic_write import atomic_folder, locked
from clipseg3d.data.nifti import open_nifti
from clipseg3d.data.release import BraTSRelease
from clipseg3d.data.releases import PHANTOM, get_release
from clipseg3d.data.reports import REPORT_SUFFIX
from clipseg3d.phantom.grid import Float
from clipseg3d.phantom.simulate import Phantom, simulate_phantom
from clipseg3d.texts.facts import CAVITY, Label
from clipseg3d.vocabulary import LABEL, SEQUENCES

_REGIONS = {**PHANTOM.regions, "RC": (CAVITY,)}
_CASE_NAMES = (
    "Phantom_{:05d}",
    "Brats18_Phantom_{:05d}_1",
    "BraTS19_Phantom_{:05d}_1",
    "BraTS20_Training_{:03d}",
    "BraTS2021_{:05d}",
    *(
        f"BraTS-{kind}-{{:05d}}-{timepoint}"
        for kind in ("GLI", "SSA", "MEN", "MET", "PED")
        for timepoint in ("000", "100")
    ),
)
"""Names of cases; the first that is an official name of a release is used for it."""

MAX_CASES = 100_000
"""Patients at once; more is a slip."""


def write_phantom(
    phantom: Phantom, root: Path, case_id: str, *, release: str | BraTSRelease = PHANTOM
) -> Path:
    """Write a phantom as one case folder of a release, all or nothing.

    Writes sequences and labels as ``.nii.gz``, with the names and the label values of the release,
    and the report as ``{case_id}_flair_text.txt`` (UTF-8). Images are int16 if their values fit,
    else float32. The resection cavity of a phantom is the region RC, which BraTS has from 2024 on.

    Args:
        phantom: what to write.
        root: folder of cases; made if missing.
        case_id: name of the case and of its folder.
        release: a release, or its name or file. Regions that no phantom has, such as cysts (CC),
            stay empty.

    Returns:
        The case folder, ``root / case_id``.

    Raises:
        ValueError: ``case_id`` is no valid folder name, or hidden; or the release has sequences
            that phantoms lack, or lacks a region that the phantom has, or its files are not laid
            out in a folder per case.
        FileExistsError: the case folder exists; it stays unchanged.
        OSError: ``root`` cannot be written.
    """
    if not case_id or Path(case_id).name != case_id or case_id.startswith("."):
        raise ValueError(f"case_id={case_id!r} is no folder name; use one such as 'Phantom_001'")
    release = get_release(release)
    require_writable(release, cavity=bool((phantom.label == CAVITY).any()))
    masks = [np.isin(phantom.label, _REGIONS.get(region, ())) for region in release.regions]
    target = root / case_id
    exists = f"{target} exists; choose another case_id, or delete that folder first"
    if target.exists():
        raise FileExistsError(exists)
    try:
        with atomic_folder(target) as tmp:
            for sequence in release.sequences:
                volume = _round_to_integers(phantom.image[SEQUENCES.index(sequence)])
                file = f"{release.file_name(case_id, sequence)}.nii.gz"
                _save(tmp / file, volume, phantom.affine)
            file = f"{release.file_name(case_id, LABEL)}.nii.gz"
            _save(tmp / file, release.to_labels(np.stack(masks)), phantom.affine)
            (tmp / f"{case_id}{REPORT_SUFFIX}").write_text(phantom.report + "\n", encoding="utf-8")
    except OSError as error:
        if target.exists():  # another process has made it
            raise FileExistsError(exists) from error
        raise
    return target


def require_writable(release: BraTSRelease, *, cavity: bool) -> None:
    """Refuse a release in which phantoms cannot be written.

    Args:
        release: names of files and labels.
        cavity: whether a phantom has a resection cavity.

    Raises:
        ValueError: it has sequences that phantoms lack, lacks a region that a phantom has, or does
            not keep the files of a case in a folder.
    """
    if unknown := [name for name in release.sequences if name not in SEQUENCES]:
        raise ValueError(
            f"{release.name} has the sequence {unknown[0]}; phantoms have {', '.join(SEQUENCES)}"
        )
    needed = [region for region in _REGIONS if cavity or region != "RC"]
    if lacking := [region for region in needed if region not in release.regions]:
        cure = "brats2024_gli" if cavity else PHANTOM.name
        raise ValueError(
            f"{release.name} has no region {lacking[0]}, but the phantom has; write it as {cure}"
        )
    parsed = release.parse(Path("case") / release.file_name("case", LABEL))
    if parsed != ("case", LABEL):
        raise ValueError(
            f"{release.name} does not keep the files of a case in a folder; write phantoms as "
            f"{PHANTOM.name}"
        )


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
    root: Path,
    num_cases: int,
    *,
    spacing_mm: float = 2.0,
    seed: int = 0,
    release: str | BraTSRelease = PHANTOM,
    plain_share: float | None = None,
    cavity_share: float = 0.0,
) -> list[str]:
    """Write simulated patients as the cases of a release; existing ones are kept.

    Existing ones are known by their names and voxels alone: patients of other shares need a folder
    of their own.

    Args:
        root: folder of the cases ``Phantom_00000``, ``Phantom_00001`` and so on; with a release,
            they have official names of it.
        num_cases: number of patients.
        spacing_mm: edge of the cubic voxel, in mm.
        seed: seed of the first patient; it increases by 1 from patient to patient.
        release: as for :func:`write_phantom`.
        plain_share: share of patients whose tumour does not enhance, see
            :func:`clipseg3d.phantom.simulate_phantom`.
        cavity_share: share of patients after a resection.

    Returns:
        Case names.

    Raises:
        ValueError: a share is outside [0, 1], the release does not fit, or an existing patient has
            another voxel size.
    """
    release = get_release(release)
    require_writable(release, cavity=cavity_share > 0)
    names = case_names(num_cases, seed, release)
    for name in names:
        _require_spacing(root / name, spacing_mm)
    missing = [index for index, name in enumerate(names) if not (root / name).is_dir()]
    for index in tqdm(missing, desc="Simulating patients", unit="case", delay=2, disable=None):
        target = root / names[index]
        with locked(target):
            if not target.is_dir():  # written by another process meanwhile
                phantom = simulate_phantom(
                    seed + index,
                    spacing_mm=spacing_mm,
                    plain_share=plain_share,
                    cavity_share=cavity_share,
                )
                write_phantom(phantom, root, names[index], release=release)
    return names


def _require_spacing(folder: Path, spacing_mm: float) -> None:
    """Refuse an existing patient of another voxel size."""
    for path in sorted(folder.glob("*.nii.gz"))[:1]:
        sizes = open_nifti(path).header.get_zooms()
        if not np.allclose(sizes, spacing_mm, rtol=1e-3):
            raise ValueError(
                f"{folder}: was simulated with voxels of {sizes[0]:g} mm, not {spacing_mm:g} mm; "
                "give another folder for these patients, or delete that one"
            )


def case_names(num_cases: int, seed: int, release: BraTSRelease = PHANTOM) -> list[str]:
    """Return the names of the cases that :func:`write_phantoms` writes."""
    official = (name for name in _CASE_NAMES if release.owns(name.format(0)))
    template = next(official, _CASE_NAMES[0])
    return [template.format(seed + index) for index in range(num_cases)]
