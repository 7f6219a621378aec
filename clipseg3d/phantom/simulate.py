"""Simulated glioma patients: four MRI sequences, a BraTS label map, a true report.

No data of a real patient are used. With phantoms, the whole library can be tried, tested and taught
offline. Their images resemble BraTS files: same orientation, same labels, similar intensities. The
same seed gives the same patient at every voxel spacing.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from clipseg3d.phantom.anatomy import Anatomy, Individual
from clipseg3d.phantom.grid import PhantomGrid
from clipseg3d.phantom.report import PhantomFacts, describe, measure_facts
from clipseg3d.phantom.signal import scan
from clipseg3d.phantom.tumour import GROWTH_GRID, Label, TumourPlan, grow
from clipseg3d.vocabulary import SEQUENCES

MIN_SPACING_MM = 0.5
"""Finer grids take more than all memory."""


@dataclass(frozen=True, eq=False)
class Phantom:
    """One simulated patient.

    Attributes:
        image: t1, t1ce, t2 and flair, (4, x, y, z) float32, in integer scanner units up to 32767.
            Background is 0, every brain voxel is at least 1. Where the field of view of a sequence
            ends within the head, voxels outside of it are 0.
        label: BraTS 2018-2021 labels 0, 1, 2 and 4, (x, y, z) uint8.
        affine: voxel index to world coordinates in mm, (4, 4) float64; voxel order is LPS, as in
            BraTS.
        spacing_mm: edge of the cubic voxel, in mm.
        report: three to seven English sentences, all of them true.
        facts: the facts that the report states.
    """

    image: NDArray[np.float32] = field(repr=False)
    label: Label = field(repr=False)
    affine: NDArray[np.float64] = field(repr=False)
    spacing_mm: float
    report: str
    facts: PhantomFacts


def simulate_phantom(seed: int, *, spacing_mm: float = 2.0) -> Phantom:
    """Simulate one patient with a glioma.

    About one tumour in eight does not enhance, one in six enhances only in spots, and one in ten
    enhances throughout. All others have an enhancing rim around necrosis. The volume of the whole
    tumour is about 10 to 250 ml.

    Args:
        seed: non-negative; the same seed gives the same patient, at any spacing.
        spacing_mm: edge of the cubic voxel, in mm, in [0.5, 8]. The field of view is that of BraTS,
            so 1.0 gives (240, 240, 155) voxels.

    Returns:
        The phantom, with a grid of ``ceil(240 / s), ceil(240 / s), ceil(155 / s)`` voxels.

    Raises:
        ValueError: ``spacing_mm`` is outside [0.5, 8], or ``seed`` is negative.
        ImportError: nilearn is not installed; its tissue maps are used.
    """
    if not MIN_SPACING_MM <= spacing_mm <= 8:
        raise ValueError(
            f"spacing_mm={spacing_mm} is outside [{MIN_SPACING_MM}, 8]; use 1.0 for the BraTS "
            "grid, 2.0 to 4.0 for quick trials"
        )
    rng = np.random.default_rng(seed)
    # The number of values drawn from rng must not depend on the grid, or the same seed would give
    # different patients. Noise and wording need such numbers, so they have generators of their own.
    noise_rng, report_rng = rng.spawn(2)
    individual = Individual.draw(rng)
    healthy = individual.anatomy(GROWTH_GRID)
    plan = TumourPlan.draw(rng, healthy)
    pushed = individual.anatomy(GROWTH_GRID, plan.pushes)
    grid = PhantomGrid(spacing_mm)
    anatomy = individual.anatomy(grid, plan.pushes)
    tumour = grow(rng, plan, pushed, grid, anatomy)
    box_image = scan(rng, noise_rng, grid, anatomy, tumour)

    image = np.zeros((len(SEQUENCES), *grid.shape), np.float32)
    label = np.zeros(grid.shape, np.uint8)
    x, y, z = grid.box
    image[:, x, y, z] = box_image
    label[x, y, z] = tumour.label
    brain = np.asarray(image.any(axis=0))
    label[~brain] = 0
    measured = measure_facts(label, brain, spacing_mm=spacing_mm)
    facts = replace(
        measured,
        # In labels alone, necrosis looks like tumour that does not enhance.
        necrosis=measured.necrosis and bool((tumour.necrosis > 0.5).any()),
        ventricle_loss=float(1 - pushed.ventricle.sum() / healthy.ventricle.sum()),
        midline_shift_mm=_midline_shift_mm(healthy, pushed),
    )
    return Phantom(image, label, grid.affine, spacing_mm, describe(facts, report_rng), facts)


def _midline_shift_mm(healthy: Anatomy, pushed: Anatomy) -> float:
    """Return how far tissue has moved into the midline plane from the side (95th percentile)."""
    midline = (np.abs(healthy.lateral_mm) < 2) & (healthy.depth_mm > 15)
    return float(np.percentile(np.abs((pushed.lateral_mm - healthy.lateral_mm)[midline]), 95))
