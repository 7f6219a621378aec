"""Facts of a tumour, measured on its label map."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Bool = NDArray[np.bool_]
Label = NDArray[np.uint8]

CORE, OEDEMA, CAVITY, ENHANCING = 1, 2, 3, 4
"""Labels of BraTS 2018-2021: necrotic or non-enhancing core, oedema, enhancing tumour. These
releases do not use 3, which is the resection cavity here."""

Side = Literal["left", "right"]
Lobe = Literal["frontal", "parietal", "temporal", "occipital"]
Enhancement = Literal["none", "spots", "patches", "rim", "solid"]
OedemaExtent = Literal["limited", "moderate", "extensive"]

OEDEMA_WORDS: tuple[tuple[float, OedemaExtent], ...] = (
    (20.0, "limited"),
    (60.0, "moderate"),
    (math.inf, "extensive"),
)
"""Upper bounds of the oedema volume in ml, each with the word that reports use below it."""
THICK_RIM_MM = 5.0
"""Reports call an enhancing rim of at least this thickness thick, else thin."""
SPOTS_SHARE = 0.15
"""Below this enhancing share of the core, the enhancement is called spots."""
RIM_SHARE = 0.5
"""From this enhancing share of the core's surface on, the enhancement is a rim, else patches."""
SOLID_SHARE = 0.97
"""From this enhancing share of the core on, the enhancement is called solid."""
FOCUS_ML = 0.5
"""Smallest volume of a separate part of the core that counts as a focus."""
COMPRESSED_SHARE = 0.12
"""Ventricles that have lost at least this share of their volume are called compressed."""
SPARED_SHARE = 0.04
"""Ventricles that have lost less are called not compressed; in between, reports say nothing."""
SHIFTED_MM = 3.0
"""From this shift on, the midline is called shifted; below a third of it, not shifted."""


@dataclass(frozen=True)
class TumourFacts:
    """Facts of one patient; :func:`measure_facts` measures all except the mass effect.

    Attributes:
        side: side of the patient on which the centre of mass of the largest focus lies.
        lobe: lobe in which that centre lies.
        foci: number of separate parts of the core of at least :data:`FOCUS_ML`; at least 1.
        crosses_midline: whether more than 5 % of the whole tumour lies on the other side, at least
            5 mm from the midline; the second focus that a twin was given does not count.
        enhancement: ``none``; ``spots``: less than :data:`SPOTS_SHARE` of the core enhances;
            ``solid``: at least :data:`SOLID_SHARE` of the core enhances; else ``rim``: at least
            :data:`RIM_SHARE` of the surface of the core enhances; else ``patches``.
        necrosis: whether a core with an enhancing rim has a part that does not enhance inside; of
            a twin that was given necrosis, whether its core has some.
        wt_ml: volume of the whole tumour, in ml.
        tc_ml: volume of the tumour core, in ml.
        et_ml: volume of the enhancing tumour, in ml.
        ventricle_loss: share of the volume that the ventricles have lost because of the tumour;
            None if unknown.
        midline_shift_mm: displacement of the midline away from the tumour, in mm; None if unknown.
        cavity_ml: volume of the resection cavity, in ml. It belongs neither to the whole tumour
            nor to the core. For side, lobe, foci and rim, it counts as if it still were core.
    """

    side: Side
    lobe: Lobe
    foci: int
    crosses_midline: bool
    enhancement: Enhancement
    necrosis: bool
    wt_ml: float
    tc_ml: float
    et_ml: float
    ventricle_loss: float | None = None
    midline_shift_mm: float | None = None
    cavity_ml: float = 0.0

    @property
    def enhancing(self) -> bool:
        """Whether any part enhances."""
        return self.enhancement != "none"

    @property
    def oedema_ml(self) -> float:
        """Volume of the whole tumour outside its core, in ml."""
        return self.wt_ml - self.tc_ml

    @property
    def oedema_extent(self) -> OedemaExtent:
        """The word of :data:`OEDEMA_WORDS` for its volume."""
        return next(word for bound, word in OEDEMA_WORDS if self.oedema_ml < bound)

    @property
    def rim_mm(self) -> float:
        """Thickness of the enhancing shell, in mm, if it lay between two spheres."""
        outer_ml = self.tc_ml + self.cavity_ml
        return _radius_mm(outer_ml) - _radius_mm(outer_ml - self.et_ml)


def measure_facts(label: Label, brain: Bool, *, spacing_mm: float) -> TumourFacts:
    """Measure the facts in a label map, except the mass effect.

    Side and lobe follow from the position of the centre of mass of the largest focus in the
    bounding box of the brain; see :func:`lobe_masks`.

    Args:
        label: BraTS 2018-2021 labels, and 3 in a resection cavity, (x, y, z), in LPS voxel order.
        brain: brain mask, (x, y, z) bool.
        spacing_mm: edge of the cubic voxel, in mm.

    Returns:
        The facts, without mass effect.

    Raises:
        ValueError: the shapes differ, or ``label`` has no core, or ``brain`` is empty.
    """
    if label.shape != brain.shape:
        raise ValueError(
            f"label has shape {label.shape} but brain has shape {brain.shape}; "
            "pass both on the same grid"
        )
    enhancing = label == ENHANCING
    core = enhancing | (label == CORE)
    if not core.any() or not brain.any():
        raise ValueError("no voxel of label is core (1 or 4), or none of brain is set; pass both")
    ml = spacing_mm**3 / 1000
    cavity = label == CAVITY
    lesion = core | cavity
    whole_tumour = core | (label == OEDEMA)
    parts, _ = ndimage.label(lesion, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel())[1:]
    largest = parts == int(np.argmax(sizes)) + 1

    (box,) = ndimage.find_objects(brain.astype(np.uint8))
    low = np.array([side.start for side in box], float)
    high = np.array([side.stop for side in box], float)
    centre = np.array([coordinates.mean() for coordinates in np.nonzero(largest)])
    # Voxel edges, not centres: a box of n voxels is n wide.
    x, length, height = (centre - low + 0.5) / (high - low)
    lobe: Lobe = next(name for name, is_here in lobe_masks(length, height).items() if is_here)
    side: Side = "left" if x > 0.5 else "right"
    to_left_mm = (np.nonzero(whole_tumour)[0] + 0.5 - (low[0] + high[0]) / 2) * spacing_mm
    beyond_midline = to_left_mm <= -5 if side == "left" else to_left_mm >= 5
    share = float(enhancing.sum() / core.sum())
    surface = core & ndimage.binary_dilation(~lesion)
    at_surface = enhancing[surface].mean() if surface.any() else 0.0
    enhancement: Enhancement = "rim" if at_surface >= RIM_SHARE else "patches"
    if share < SPOTS_SHARE:
        enhancement = "spots" if share else "none"
    elif share >= SOLID_SHARE:
        enhancement = "solid"
    return TumourFacts(
        side=side,
        lobe=lobe,
        foci=max(1, int((sizes * ml >= FOCUS_ML).sum())),
        crosses_midline=bool(beyond_midline.mean() > 0.05),
        enhancement=enhancement,
        necrosis=enhancement == "rim" and bool((core & ~surface & ~enhancing).any()),
        wt_ml=float(whole_tumour.sum() * ml),
        tc_ml=float(core.sum() * ml),
        et_ml=float(enhancing.sum() * ml),
        cavity_ml=float(cavity.sum() * ml),
    )


def measure_regions(
    regions: Mapping[str, Bool], brain: Bool, *, spacing_mm: float
) -> TumourFacts | None:
    """Measure the facts of a tumour whose regions are given; None if it has no core.

    Args:
        regions: WT, TC and ET, and others that are ignored, each (x, y, z) in LPS voxel order.
        brain: brain mask, (x, y, z).
        spacing_mm: edge of the cubic voxel, in mm.
    """
    if not regions["TC"].any():
        return None
    label = np.where(regions["WT"], OEDEMA, 0).astype(np.uint8)
    label[regions["TC"]] = CORE
    label[regions["ET"]] = ENHANCING
    return measure_facts(label, brain, spacing_mm=spacing_mm)


def lobe_masks(length: Any, height: Any) -> dict[Lobe, Any]:
    """Return lobe -> whether a position lies in it, by rough bounds.

    - temporal: below 42 % of the height, between 22 % and 72 % of the length,
    - else occipital: behind 75 % of the length,
    - else frontal: before 48 % of the length,
    - else parietal.

    Args:
        length: from the front of the brain box, in [0, 1]; a number, or an array or tensor.
        height: from its bottom, likewise.
    """
    temporal = (height < 0.42) & (length >= 0.22) & (length < 0.72)
    occipital = (length >= 0.75) & (temporal == 0)
    frontal = (length < 0.48) & (temporal == 0)
    parietal = (length >= 0.48) & (length < 0.75) & (temporal == 0)
    return {
        "frontal": frontal,
        "parietal": parietal,
        "temporal": temporal,
        "occipital": occipital,
    }


def _radius_mm(volume_ml: float) -> float:
    """Return the radius of a sphere of this volume."""
    return float(np.cbrt(volume_ml * 1000 * 3 / (4 * math.pi)))
