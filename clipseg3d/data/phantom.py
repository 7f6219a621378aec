"""Simulated glioma patients: four MRI sequences, a BraTS label map, a true report.

Nothing here comes from a patient. A phantom lets the whole library be tried, tested and taught
offline, on images that look and behave like BraTS files: same orientation, same labels, same
habits of intensity. The same seed is the same patient at every voxel spacing.
"""

import os
import shutil
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from clipseg3d.data.phantom_anatomy import Anatomy, Individual
from clipseg3d.data.phantom_grid import Float, PhantomGrid
from clipseg3d.data.phantom_report import PhantomFacts, describe, measure_facts
from clipseg3d.data.phantom_signal import scan
from clipseg3d.data.phantom_tumour import GROWTH_GRID, Label, TumourPlan, grow
from clipseg3d.data.releases import SEQUENCES
from clipseg3d.data.reports import REPORT_SUFFIX


@dataclass(frozen=True, eq=False)
class Phantom:
    """One simulated patient.

    Attributes:
        image: t1, t1ce, t2 and flair, (4, x, y, z) float32, in whole scanner units up to 32767;
            0 is background and every brain voxel is at least 1. Where a sequence's field of view
            ends within the head, it is 0 beyond.
        label: BraTS 2018-2021 labels 0, 1, 2 and 4, (x, y, z) uint8.
        affine: voxel index to world millimetres, (4, 4) float64; voxel order is LPS, as in BraTS.
        spacing_mm: edge of the cubic voxel, in mm.
        report: three to seven English sentences, all of them true.
        facts: what the report was written from.
    """

    image: NDArray[np.float32] = field(repr=False)
    label: Label = field(repr=False)
    affine: NDArray[np.float64] = field(repr=False)
    spacing_mm: float
    report: str
    facts: PhantomFacts


def simulate_phantom(seed: int, *, spacing_mm: float = 2.0) -> Phantom:
    """Simulate one patient with a glioma.

    About one tumour in eight does not enhance, one in six does so only in spots, and one in ten
    throughout; all others have an enhancing rim around necrosis. The whole tumour takes up about
    10 to 250 ml.

    Args:
        seed: non-negative; the same seed gives the same patient, at any spacing.
        spacing_mm: edge of the cubic voxel, in mm, in (0, 8]. The field of view is that of BraTS,
            so 1.0 gives (240, 240, 155) voxels.

    Returns:
        The phantom, with a grid of ``ceil(240 / s), ceil(240 / s), ceil(155 / s)`` voxels.

    Raises:
        ValueError: ``spacing_mm`` is outside (0, 8], or ``seed`` is negative.
        ImportError: nilearn, whose tissue maps are used, is not installed.
    """
    if not 0 < spacing_mm <= 8:
        raise ValueError(
            f"spacing_mm={spacing_mm} is outside (0, 8]; use 1.0 for the BraTS grid, 2.0 to 4.0 "
            "for quick trials"
        )
    rng = np.random.default_rng(seed)
    # Only these two may draw a number of values that depends on the grid or on the label map.
    noise_rng, report_rng = rng.spawn(2)
    individual = Individual.draw(rng)
    at_rest = individual.anatomy(GROWTH_GRID)
    plan = TumourPlan.draw(rng, at_rest)
    pushed = individual.anatomy(GROWTH_GRID, plan.pushes)
    grid = PhantomGrid(spacing_mm)
    anatomy = individual.anatomy(grid, plan.pushes)
    tumour = grow(rng, plan, pushed, grid, anatomy)
    scanned = scan(rng, noise_rng, grid, anatomy, tumour)

    image = np.zeros((len(SEQUENCES), *grid.shape), np.float32)
    label = np.zeros(grid.shape, np.uint8)
    x, y, z = grid.box
    image[:, x, y, z] = scanned
    label[x, y, z] = tumour.label
    brain = np.asarray(image.any(axis=0))
    label[~brain] = 0
    seen = measure_facts(label, brain, spacing_mm=spacing_mm)
    facts = replace(
        seen,
        # Labels alone do not tell necrosis from tumour that does not enhance.
        necrosis=seen.necrosis and bool((tumour.necrosis > 0.5).any()),
        ventricle_loss=float(1 - pushed.ventricle.sum() / at_rest.ventricle.sum()),
        midline_shift_mm=_midline_shift_mm(at_rest, pushed),
    )
    return Phantom(image, label, grid.affine, spacing_mm, describe(facts, report_rng), facts)


def _midline_shift_mm(at_rest: Anatomy, pushed: Anatomy) -> float:
    """How far the tissue that has come to lie in the midline plane lay beside it, at most."""
    midline = (np.abs(at_rest.lateral_mm) < 2) & (at_rest.depth_mm > 15)
    return float(np.percentile(np.abs((pushed.lateral_mm - at_rest.lateral_mm)[midline]), 95))


def write_phantom(phantom: Phantom, root: Path, case_id: str) -> Path:
    """Write a phantom as one BraTS case folder, whole or not at all.

    Writes ``{case_id}_t1``, ``_t1ce``, ``_t2``, ``_flair`` and ``_seg`` as ``.nii.gz`` and the
    report as ``{case_id}_flair_text.txt`` (UTF-8). Images are int16 where their values fit, else
    float32.

    Args:
        phantom: what to write.
        root: folder of cases; made if missing.
        case_id: name of the case and of its folder.

    Returns:
        The case folder, ``root / case_id``.

    Raises:
        ValueError: ``case_id`` is no plain, visible folder name.
        FileExistsError: the case folder exists; it is left as it is.
        OSError: ``root`` cannot be written.
    """
    if not case_id or Path(case_id).name != case_id or case_id.startswith("."):
        raise ValueError(f"case_id={case_id!r} is no folder name; use one such as 'Phantom_001'")
    target = root / case_id
    taken = f"{target} exists; choose another case_id, or delete that folder first"
    if target.exists():
        raise FileExistsError(taken)
    root.mkdir(parents=True, exist_ok=True)
    aside = root / f".{case_id}.{uuid.uuid4().hex}.tmp"
    aside.mkdir()
    try:
        for name, volume in zip(SEQUENCES, phantom.image, strict=True):
            _save(aside / f"{case_id}_{name}.nii.gz", _storable(volume), phantom.affine)
        _save(aside / f"{case_id}_seg.nii.gz", phantom.label, phantom.affine)
        (aside / f"{case_id}{REPORT_SUFFIX}").write_text(phantom.report + "\n", encoding="utf-8")
        try:
            os.rename(aside, target)
        except OSError as error:
            if target.exists():  # made by someone else in the meantime
                raise FileExistsError(taken) from error
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _storable(volume: Float) -> NDArray[np.int16] | NDArray[np.float32]:
    """Round to whole numbers without turning brain into background; int16 if that fits."""
    whole = np.rint(volume)
    whole[(volume > 0) & (whole < 1)] = 1
    fits = whole.min() >= np.iinfo(np.int16).min and whole.max() <= np.iinfo(np.int16).max
    return whole.astype(np.int16) if fits else whole.astype(np.float32)


def _save(
    path: Path, volume: NDArray[np.int16] | Float | Label, affine: NDArray[np.float64]
) -> None:
    image = nib.Nifti1Image(volume, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
