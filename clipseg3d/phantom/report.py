"""Facts of a tumour, and a report that states them."""

import copy
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from clipseg3d.phantom.grid import Bool
from clipseg3d.phantom.tumour import CAVITY, CORE, ENHANCING, OEDEMA, Label

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
class PhantomFacts:
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


def measure_facts(label: Label, brain: Bool, *, spacing_mm: float) -> PhantomFacts:
    """Measure the facts in a label map, except the mass effect.

    Side and lobe follow from the position of the centre of mass of the largest focus in the
    bounding box of the brain. Length is measured from the front, height from the bottom of the
    box. The lobe is

    - temporal below 42 % of the height, between 22 % and 72 % of the length,
    - else occipital behind 75 % of the length,
    - else frontal before 48 % of the length,
    - else parietal.

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
    x, length, height = (float(f) for f in (centre - low + 0.5) / (high - low))
    if height < 0.42 and 0.22 <= length < 0.72:
        lobe: Lobe = "temporal"
    elif length >= 0.75:
        lobe = "occipital"
    else:
        lobe = "frontal" if length < 0.48 else "parietal"
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
    return PhantomFacts(
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


def describe(
    facts: PhantomFacts, rng: np.random.Generator, *, like: PhantomFacts | None = None
) -> str:
    """Write a report in which every sentence is true.

    Args:
        facts: facts to state; the constants of this module define the words for numbers.
        rng: chooses the wording.
        like: facts of a twin. The report is worded as the same ``rng`` words that of the twin:
            sentences about facts that they share are the same.

    Returns:
        Three to eight English sentences on one line.
    """
    sentences: list[str] = []
    for section in (_location, _cavity, _oedema, _inside, _midline_crossing, _ventricles, _shift):
        if like is None:
            sentences += section(facts, rng)
        else:
            sentences += section(facts, copy.deepcopy(rng))
            section(like, rng)  # the next section starts where that of the twin does
    return " ".join(sentences)


def _location(facts: PhantomFacts, rng: np.random.Generator) -> list[str]:
    """Return a sentence about the number and location of foci."""
    lobe = f"the {facts.side} {facts.lobe} lobe"
    if facts.foci > 1:
        count = ("two", "three", "four")[facts.foci - 2] if facts.foci < 5 else "several"
        return _pick(
            rng,
            f"There are {count} separate foci of mixed signal, the largest of them in {lobe}.",
            f"The lesion consists of {count} foci; the largest is centered in {lobe}.",
            f"{count.capitalize()} foci with uneven signals are seen, the main one in {lobe}.",
        )
    return _pick(
        rng,
        f"The lesion area is in {lobe} with mixed high and low signals.",
        f"A single lesion with uneven signal intensity is centered in {lobe}.",
        f"There is a mass of mixed signal in {lobe}.",
        f"{lobe[0].upper()}{lobe[1:]} contains a space-occupying lesion with mixed signals.",
    )


def _cavity(facts: PhantomFacts, rng: np.random.Generator) -> list[str]:
    """Return a sentence about a resection cavity; none if there is none."""
    if facts.cavity_ml <= 0:
        return []
    return _pick(
        rng,
        "A resection cavity filled with fluid lies within the lesion.",
        "After resection, a cavity remains, dark on FLAIR and bright on T2.",
        "There is a postoperative cavity with the signal of fluid.",
    )


def _oedema(facts: PhantomFacts, rng: np.random.Generator) -> list[str]:
    """Return a sentence about oedema."""
    if facts.oedema_ml <= 0:
        return ["No edema is observed."]
    extent = facts.oedema_extent
    return _pick(
        rng,
        f"Edema is {extent}, presenting as high signal on FLAIR in the tissue around the lesion.",
        f"{extent.capitalize()} edema surrounds the lesion, seen as high signal on T2 and FLAIR.",
        f"The surrounding edema is {extent} and bright on FLAIR.",
    )


def _inside(facts: PhantomFacts, rng: np.random.Generator) -> list[str]:
    """Return sentences about necrosis, where something is certain, and enhancement."""
    if not facts.enhancing and not facts.necrosis and rng.random() < 0.4:
        return _pick(
            rng,
            "Neither necrosis nor contrast enhancement is observed.",
            "The lesion shows no necrosis and no contrast enhancement.",
        )
    if facts.necrosis or facts.enhancement in ("none", "rim", "solid"):
        return _necrosis(facts, rng) + _enhancement(facts, rng)
    return _enhancement(facts, rng)


def _necrosis(facts: PhantomFacts, rng: np.random.Generator) -> list[str]:
    """Return a sentence about necrosis."""
    if facts.necrosis:
        return _pick(
            rng,
            "Necrosis is present within the lesion, with low signal on T1.",
            "The core of the lesion contains necrosis, dark on T1 and bright on T2.",
            "Necrosis is seen inside the lesion as an area that does not take up contrast.",
        )
    return _pick(
        rng,
        "Necrosis is not observed.",
        "There is no sign of necrosis.",
        "No necrosis is seen within the lesion.",
    )


def _enhancement(facts: PhantomFacts, rng: np.random.Generator) -> list[str]:
    """Return a sentence about enhancement."""
    rim = "thick" if facts.rim_mm >= THICK_RIM_MM else "thin"
    if facts.cavity_ml > 0 and facts.enhancing:
        remaining = {
            "spots": "Only small parts of the remaining tumor take up contrast.",
            "patches": "Parts of the remaining tumor take up contrast, in patches.",
            "rim": f"A {rim} rim of contrast enhancement surrounds the cavity.",
            "solid": "All of the remaining tumor takes up contrast.",
        }
        return [remaining[facts.enhancement]]
    wordings: dict[Enhancement, tuple[str, ...]] = {
        "none": (
            "No contrast enhancement is seen.",
            "The lesion does not take up contrast.",
            "Contrast enhancement is absent.",
        ),
        "spots": (
            "Most of the core does not enhance; only small parts of it take up contrast.",
            "After contrast, a few small spots within the core enhance.",
            "Enhancement is confined to small areas of the core.",
        ),
        "patches": (
            "Parts of the core take up contrast, in patches.",
            "Patchy contrast enhancement is seen within the core.",
        ),
        "rim": (
            f"A {rim} rim of contrast enhancement surrounds the core.",
            f"After contrast, the lesion shows {rim} ring enhancement.",
            f"The enhancing rim on T1 after contrast is {rim}.",
        ),
        "solid": (
            "The whole core shows solid contrast enhancement.",
            "After contrast, the core enhances solidly.",
        ),
    }
    return _pick(rng, *wordings[facts.enhancement])


def _midline_crossing(facts: PhantomFacts, rng: np.random.Generator) -> list[str]:
    """Return a sentence about a tumour on both sides; none if it is on one."""
    if not facts.crosses_midline:
        return []
    return _pick(
        rng,
        "The abnormal signal extends across the midline.",
        "The lesion reaches beyond the midline into the other hemisphere.",
    )


def _ventricles(facts: PhantomFacts, rng: np.random.Generator) -> list[str]:
    """Return a sentence about the ventricles; none if nothing is certain."""
    loss = facts.ventricle_loss
    if loss is not None and loss >= COMPRESSED_SHARE:
        return _pick(
            rng,
            "Ventricular compression is present.",
            "The ventricles are compressed by the mass.",
            "The lesion compresses the ventricular system.",
        )
    if loss is not None and loss < SPARED_SHARE:
        return _pick(
            rng,
            "No ventricular compression is observed.",
            "The ventricles are not compressed.",
        )
    return []


def _shift(facts: PhantomFacts, rng: np.random.Generator) -> list[str]:
    """Return a sentence about a shift of the midline; none if nothing is certain."""
    shift = facts.midline_shift_mm
    if shift is not None and shift >= SHIFTED_MM:
        return _pick(
            rng,
            "The midline is shifted away from the lesion.",
            "Midline structures are displaced to the opposite side.",
        )
    if shift is not None and shift < SHIFTED_MM / 3:
        return _pick(rng, "There is no midline shift.", "Midline structures are in their place.")
    return []


def _pick(rng: np.random.Generator, *wordings: str) -> list[str]:
    """Draw one of some wordings."""
    return [wordings[int(rng.integers(len(wordings)))]]


def _radius_mm(volume_ml: float) -> float:
    """Return the radius of a sphere of this volume."""
    return float(np.cbrt(volume_ml * 1000 * 3 / (4 * math.pi)))
