"""Simulated glioma patients: four MRI sequences, a BraTS label map, a true report.

No data of a real patient are used. With phantoms, the whole library can be tried, tested and taught
offline. Their images resemble BraTS files: same orientation, same labels, similar intensities. The
same seed gives the same patient at every voxel spacing.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipseg3d.phantom.anatomy import Anatomy, Individual
from clipseg3d.phantom.counterfactual import Counterfactual
from clipseg3d.phantom.grid import Float, PhantomGrid
from clipseg3d.phantom.report import describe
from clipseg3d.phantom.signal import Examination
from clipseg3d.phantom.tumour import (
    GROWTH_GRID,
    Growth,
    Tumour,
    TumourPlan,
    grow,
    grow_second_focus,
)
from clipseg3d.ranges import require_share
from clipseg3d.texts.facts import Label, TumourFacts, measure_facts
from clipseg3d.vocabulary import SEQUENCES

MIN_SPACING_MM = 0.5
"""Finer grids take more than all memory."""


@dataclass(frozen=True, eq=False)
class Phantom:
    """One simulated patient.

    Attributes:
        image: t1, t1ce, t2 and flair, (4, x, y, z) float32, in integer scanner units up to 32767;
            a twin may be brighter. Background is 0, every brain voxel is at least 1. Where the
            field of view of a sequence ends within the head, voxels outside of it are 0.
        label: BraTS 2018-2021 labels 0, 1, 2 and 4, (x, y, z) uint8; 3 in a resection cavity,
            which is in no region of those releases. :func:`clipseg3d.phantom.write_phantom` writes
            the labels of any release.
        affine: voxel index to world coordinates in mm, (4, 4) float64; voxel order is LPS, as in
            BraTS.
        spacing_mm: edge of the cubic voxel, in mm.
        report: three to eight English sentences, all of them true.
        facts: the facts that the report states.
    """

    image: NDArray[np.float32] = field(repr=False)
    label: Label = field(repr=False)
    affine: NDArray[np.float64] = field(repr=False)
    spacing_mm: float
    report: str
    facts: TumourFacts


def simulate_phantom(
    seed: int,
    *,
    spacing_mm: float = 2.0,
    change: Counterfactual | None = None,
    plain_share: float | None = None,
    cavity_share: float = 0.0,
) -> Phantom:
    """Simulate one patient with a glioma.

    About one tumour in eight does not enhance, one in six enhances only in spots, and one in ten
    enhances throughout. All others have an enhancing rim around necrosis. The volume of the whole
    tumour is about 10 to 250 ml.

    Args:
        seed: non-negative; the same seed gives the same patient, at any spacing.
        spacing_mm: edge of the cubic voxel, in mm, in [0.5, 8]. The field of view is that of BraTS,
            so 1.0 gives (240, 240, 155) voxels.
        change: what is different from the patient of this seed, see :func:`simulate_twins`.
        plain_share: share of patients whose tumour does not enhance, in [0, 1]; the kind of some
            is drawn anew, and nothing else of them. None keeps the kinds.
        cavity_share: share of patients after a resection, in [0, 1]. A cavity with the signal of
            fluid takes half to nine tenths of the largest focus, from its middle on; the mass
            effect stays.

    Returns:
        The phantom, with a grid of ``ceil(240 / s), ceil(240 / s), ceil(155 / s)`` voxels.

    Raises:
        ValueError: ``spacing_mm`` is outside [0.5, 8], ``seed`` is negative, or a share is outside
            [0, 1].
        ImportError: nilearn is not installed; its tissue maps are used.
    """
    return _simulate(seed, spacing_mm, change, plain_share, cavity_share)[-1]


def simulate_twins(
    seed: int,
    change: Counterfactual,
    *,
    spacing_mm: float = 2.0,
    plain_share: float | None = None,
    cavity_share: float = 0.0,
) -> tuple[Phantom, Phantom]:
    """Simulate a patient, and the same patient with a fact changed.

    Brain, scanner, artefacts and noise of the twins are the same, and so is the mass effect: it is
    that of the unchanged tumour. Voxels of the image differ only where the tumour does, and as
    far around as blur and thick slices reach; all others are equal to the last bit. Sentences of
    the report about facts that the twins share are the same.

    Args:
        seed: as for :func:`simulate_phantom`, with all other arguments.
        change: what is different in the twin.
        spacing_mm: edge of the cubic voxel, in mm.
        plain_share: share of patients whose tumour does not enhance.
        cavity_share: share of patients after a resection.

    Returns:
        The patient as without ``change``, and the twin.

    Example:
        >>> patient, twin = simulate_twins(0, Counterfactual(kind="plain"), spacing_mm=8.0)
        >>> patient.facts.enhancement, twin.facts.enhancement
        ('solid', 'none')
    """
    patient, twin = _simulate(seed, spacing_mm, change, plain_share, cavity_share)
    return patient, twin


def _simulate(
    seed: int,
    spacing_mm: float,
    change: Counterfactual | None,
    plain_share: float | None,
    cavity_share: float,
) -> list[Phantom]:
    """Return the patient and, if there is a change, its twin."""
    if not MIN_SPACING_MM <= spacing_mm <= 8:
        raise ValueError(
            f"spacing_mm={spacing_mm} is outside [{MIN_SPACING_MM}, 8]; use 1.0 for the BraTS "
            "grid, 2.0 to 4.0 for quick trials"
        )
    require_share(plain_share=plain_share or 0.0, cavity_share=cavity_share)
    rng = np.random.default_rng(seed)
    # The number of values drawn from rng must not depend on the grid or on options, or the same
    # seed would give different patients. What needs such numbers has a generator of its own.
    noise_rng, report_rng, share_rng, twin_rng = rng.spawn(4)
    individual = Individual.draw(rng)
    healthy = individual.anatomy(GROWTH_GRID)
    plan = TumourPlan.draw(rng, healthy)
    plan = plan.with_shares(share_rng, plain_share=plain_share, cavity_share=cavity_share)
    pushed = individual.anatomy(GROWTH_GRID, plan.pushes)
    grid = PhantomGrid(spacing_mm)
    anatomy = individual.anatomy(grid, plan.pushes)
    growth = grow(rng, plan, pushed, grid, anatomy)
    tumours = [growth.tumour()]
    examination = Examination.draw(rng, grid, anatomy)
    if change is not None:
        label = np.where(examination.brain, tumours[0].label, 0)
        facts = measure_facts(label, examination.brain, spacing_mm=spacing_mm)
        tumours.append(_changed(change, growth, facts, twin_rng, pushed, anatomy))
    mass_effect = {
        "ventricle_loss": float(1 - pushed.ventricle.sum() / healthy.ventricle.sum()),
        "midline_shift_mm": _midline_shift_mm(healthy, pushed),
    }
    images = examination.scan(rng, noise_rng, tumours)
    wording_rng = copy.deepcopy(report_rng)
    image, label, facts = _measure(grid, images[0], tumours[0], mass_effect)
    report = describe(facts, report_rng)
    patient = Phantom(image, label, grid.affine, spacing_mm, report, facts)
    if change is None:
        return [patient]
    image, label, facts = _measure(grid, images[1], tumours[1], mass_effect, change)
    if change.second_focus and patient.facts.foci == 1:
        # a focus in the other hemisphere is no extension of the tumour into it
        facts = replace(facts, crosses_midline=patient.facts.crosses_midline)
    report = describe(facts, wording_rng, like=patient.facts)
    return [patient, Phantom(image, label, grid.affine, spacing_mm, report, facts)]


def _changed(
    change: Counterfactual,
    growth: Growth,
    facts: TumourFacts,
    rng: np.random.Generator,
    growth_anatomy: Anatomy,
    anatomy: Anatomy,
) -> Tumour:
    """Return the tumour of the twin; mirroring is left to :func:`_measure`.

    Args:
        change: what is different.
        growth: of the patient's tumour.
        facts: of the patient.
        rng: draws what is new.
        growth_anatomy: anatomy on the growth grid.
        anatomy: anatomy on the grid of the growth.
    """
    plan = change.change(growth.plan, facts, rng)
    tumour = growth.tumour(plan)
    if change.second_focus and facts.foci == 1:
        second = grow_second_focus(rng, growth, growth_anatomy, growth.grid, anatomy)
        inside = replace(second.plan, kind=plan.kind, necrosis=plan.necrosis, resected=False)
        tumour = tumour.plus(second.tumour(inside))
    if change.second_focus is False and facts.foci > 1:
        tumour = tumour.main_focus()
    return tumour


def _measure(
    grid: PhantomGrid,
    box_image: Float,
    tumour: Tumour,
    mass_effect: Mapping[str, Any],
    change: Counterfactual | None = None,
) -> tuple[NDArray[np.float32], Label, TumourFacts]:
    """Place image and labels in the field of view, on the wanted side, and measure the facts.

    Args:
        grid: of the phantom.
        box_image: (4, x, y, z) of the grid's box.
        tumour: on the grid's box.
        mass_effect: facts that cannot be measured in labels.
        change: of a twin.
    """
    image = np.zeros((len(SEQUENCES), *grid.shape), np.float32)
    label = np.zeros(grid.shape, np.uint8)
    x, y, z = grid.box
    image[:, x, y, z] = box_image
    label[x, y, z] = tumour.label
    brain = np.asarray(image.any(axis=0))
    label[~brain] = 0
    facts = measure_facts(label, brain, spacing_mm=grid.spacing_mm)
    if change is not None and change.side not in (None, facts.side):
        image, label, brain = (np.flip(array, -3).copy() for array in (image, label, brain))
        facts = measure_facts(label, brain, spacing_mm=grid.spacing_mm)
    # In labels alone, necrosis looks like tumour that does not enhance.
    certain = facts.necrosis or (change is not None and change.necrosis is True)
    necrosis = certain and bool((tumour.necrosis > 0.5).any())
    return image, label, replace(facts, necrosis=necrosis, **mass_effect)


def _midline_shift_mm(healthy: Anatomy, pushed: Anatomy) -> float:
    """Return how far tissue has moved into the midline plane from the side (95th percentile)."""
    midline = (np.abs(healthy.lateral_mm) < 2) & (healthy.depth_mm > 15)
    return float(np.percentile(np.abs((pushed.lateral_mm - healthy.lateral_mm)[midline]), 95))
