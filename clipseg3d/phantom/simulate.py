"""Simulated glioma patients: four MRI sequences, a BraTS label map, a true report.

Nothing here comes from a patient. A phantom lets the whole library be tried, tested and taught
offline, on images that look and behave like BraTS files: same orientation, same labels, same
habits of intensity. The same seed is the same patient at every voxel spacing.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from clipseg3d.phantom.anatomy import Anatomy, Individual
from clipseg3d.phantom.grid import PhantomGrid
from clipseg3d.phantom.report import PhantomFacts, describe, measure_facts
from clipseg3d.phantom.signal import scan
from clipseg3d.phantom.tumour import (
    GROWTH_GRID,
    Label,
    TumourPlan,
    grow,
)
from clipseg3d.vocabulary import SEQUENCES


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
