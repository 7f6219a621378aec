"""Simulated glioma patients: four MRI sequences, a BraTS label map, a true report.

Nothing here comes from a patient. A phantom lets the whole library be tried, tested and taught
offline, on images that look and behave like BraTS files: same orientation, same labels, same
habits of intensity. The same seed is the same patient at every voxel spacing.

Lengths are millimetres. Positions inside the brain are ``(u, v, w)``, measured from its centre
towards patient left, posterior and superior, the directions in which the array axes grow.
"""

import math
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clipseg3d.data.cases import REPORT_SUFFIX
from clipseg3d.data.releases import SEQUENCES

Side = Literal["left", "right"]
Lobe = Literal["frontal", "parietal", "temporal", "occipital"]
Float = NDArray[np.floating]
Bool = NDArray[np.bool_]
Label = NDArray[np.uint8]

CORE, OEDEMA, ENHANCING = 1, 2, 4
"""BraTS 2018-2021 labels: necrotic or non-enhancing core, oedema, enhancing tumour."""

OEDEMA_WORDS = ((20.0, "limited"), (60.0, "moderate"), (math.inf, "extensive"))
"""A report calls oedema by the first word whose bound, in ml, is above its volume."""
THICK_RIM_MM = 5.0
"""A report calls an enhancing rim thick from here on, thin below."""

_FIELD_MM = (240.0, 240.0, 155.0)
_CENTRE_MM = (120.0, 130.0, 74.0)
_HALF_BOX_MM = (84.0, 100.0, 80.0)
_VOID = np.float32(1.0)  # the darkest brain voxel: background alone is 0

# Signal of each tissue, white matter on T1 being 1; columns follow SEQUENCES.
_SIGNAL: dict[str, tuple[float, float, float, float]] = {
    "white": (1.00, 1.00, 0.78, 0.88),
    "grey": (0.70, 0.75, 1.15, 1.18),
    "csf": (0.36, 0.36, 2.60, 0.34),
    "oedema": (0.70, 0.72, 1.75, 2.05),
    "necrosis": (0.50, 0.52, 2.05, 1.35),
    "enhancing": (0.70, 1.85, 1.45, 1.70),
    "solid": (0.60, 0.62, 1.90, 1.75),  # core of a tumour that does not enhance
    "vessel": (0.80, 2.10, 0.90, 0.90),
}

# Where a tumour of each lobe may be centred: distance from the midline, v, w; and how often.
_LOBES: dict[Lobe, tuple[tuple[float, float], tuple[float, float], tuple[float, float], float]] = {
    "frontal": ((21, 34), (-50, -28), (8, 34), 0.35),
    "parietal": ((22, 36), (14, 36), (16, 38), 0.25),
    "temporal": ((36, 45), (-20, 16), (-36, -24), 0.25),
    "occipital": ((19, 30), (55, 64), (-6, 16), 0.15),
}

# The brain is a union of ellipsoids: centre (distance from the midline, v, w) and semi-axes.
_CEREBRUM = ((0, 0, 8), (71, 87, 60))
_LUMPS = (
    ((40, -8, -28), (25, 44, 25)),  # temporal lobes
    ((20, 50, -42), (31, 32, 25)),  # cerebellum
    ((0, 20, -52), (15, 15, 26)),  # brain stem
)
_NUCLEI = (((11, 9, 5), (8, 14, 9)), ((25, -6, 4), (7, 18, 10)))


@dataclass(frozen=True)
class PhantomFacts:
    """What is true of one label map, as measured by :func:`measure_facts`.

    Attributes:
        side: the patient's side on which the tumour core's centre of mass lies.
        lobe: lobe in which that centre lies.
        enhancing: whether any voxel enhances.
        necrosis: whether an enhancing tumour has a core part that does not enhance. The core of
            a tumour without enhancement counts as solid.
        wt_ml: volume of the whole tumour, in ml.
        tc_ml: volume of the tumour core, in ml.
        et_ml: volume of the enhancing tumour, in ml.
    """

    side: Side
    lobe: Lobe
    enhancing: bool
    necrosis: bool
    wt_ml: float
    tc_ml: float
    et_ml: float

    @property
    def oedema_ml(self) -> float:
        """Volume of the whole tumour outside its core, in ml."""
        return self.wt_ml - self.tc_ml

    @property
    def rim_mm(self) -> float:
        """Thickness of the enhancing shell, were the core and the necrosis spheres, in mm."""
        inner_ml = self.tc_ml - self.et_ml
        return _radius_mm(self.tc_ml) - _radius_mm(inner_ml)


@dataclass(frozen=True, eq=False)
class Phantom:
    """One simulated patient.

    Attributes:
        image: t1, t1ce, t2 and flair, (4, x, y, z) float32, in whole scanner units up to 32767;
            0 is background and every brain voxel is at least 1.
        label: BraTS 2018-2021 labels 0, 1, 2 and 4, (x, y, z) uint8.
        affine: voxel index to world millimetres, (4, 4) float64; voxel order is LPS, as in BraTS.
        spacing_mm: edge of the cubic voxel, in mm.
        report: three to five English sentences, all of them true of ``label``.
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

    About one tumour in five does not enhance, and one in ten enhances without necrosis. The whole
    tumour takes up about 20 to 180 ml.

    Args:
        seed: non-negative; the same seed gives the same patient, at any spacing.
        spacing_mm: edge of the cubic voxel, in mm, in (0, 8]. The field of view is that of BraTS,
            so 1.0 gives (240, 240, 155) voxels.

    Returns:
        The phantom, with a grid of ``ceil(240 / s), ceil(240 / s), ceil(155 / s)`` voxels.

    Raises:
        ValueError: ``spacing_mm`` is outside (0, 8], or ``seed`` is negative.
    """
    if not 0 < spacing_mm <= 8:
        raise ValueError(
            f"spacing_mm={spacing_mm} is outside (0, 8]; use 1.0 for the BraTS grid, 2.0 to 4.0 "
            "for quick trials"
        )
    rng = np.random.default_rng(seed)
    # Only these two may draw a number of values that depends on the grid or on the label map.
    scanner_rng, report_rng = rng.spawn(2)
    grid = _Grid(spacing_mm)
    plan = _TumourPlan.draw(rng)
    anatomy = _Anatomy.build(rng, grid, plan)
    tumour = _Tumour.grow(rng, grid, plan, anatomy)
    scan = _scan(rng, scanner_rng, grid, anatomy, tumour)

    image = np.zeros((len(SEQUENCES), *grid.shape), np.float32)
    x, y, z = grid.box
    image[:, x, y, z] = scan
    label = np.zeros(grid.shape, np.uint8)
    label[x, y, z] = tumour.label
    facts = measure_facts(label, image[0] > 0, spacing_mm=spacing_mm)
    return Phantom(image, label, grid.affine, spacing_mm, describe(facts, report_rng), facts)


def measure_facts(label: Label, brain: Bool, *, spacing_mm: float) -> PhantomFacts:
    """Measure a label map.

    Side and lobe are those of the tumour core's centre of mass within the bounding box of the
    brain. Counting from front to back and from bottom to top of that box, the centre is

    - temporal below 42 % of the height, between 22 % and 72 % of the length,
    - else occipital behind 75 % of the length,
    - else frontal before 48 % of the length,
    - else parietal.

    Args:
        label: BraTS 2018-2021 labels, (x, y, z), in LPS voxel order.
        brain: brain mask, (x, y, z) bool.
        spacing_mm: edge of the cubic voxel, in mm.

    Returns:
        The facts.

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
    low, high = (bound.astype(float) for bound in _bounds(brain))
    centre = np.array([coordinates.mean() for coordinates in np.nonzero(core)])
    # Voxel edges, not centres: a box of n voxels is n wide.
    across, back, up = (float(f) for f in (centre - low + 0.5) / (high - low))
    if up < 0.42 and 0.22 <= back < 0.72:
        lobe: Lobe = "temporal"
    elif back >= 0.75:
        lobe = "occipital"
    else:
        lobe = "frontal" if back < 0.48 else "parietal"
    ml = spacing_mm**3 / 1000
    return PhantomFacts(
        side="left" if across > 0.5 else "right",
        lobe=lobe,
        enhancing=bool(enhancing.any()),
        necrosis=bool(enhancing.any() and (label == CORE).any()),
        wt_ml=float((label > 0).sum() * ml),
        tc_ml=float(core.sum() * ml),
        et_ml=float(enhancing.sum() * ml),
    )


def describe(facts: PhantomFacts, rng: np.random.Generator) -> str:
    """Write a report in which every sentence is true.

    Args:
        facts: what to say; see :data:`OEDEMA_WORDS` and :data:`THICK_RIM_MM` for the words.
        rng: chooses the wording.

    Returns:
        Three to five English sentences on one line.
    """
    side, lobe = facts.side, facts.lobe
    extent = next(word for bound, word in OEDEMA_WORDS if facts.oedema_ml < bound)
    rim = "thick" if facts.rim_mm >= THICK_RIM_MM else "thin"

    def pick(*wordings: str) -> str:
        return wordings[int(rng.integers(len(wordings)))]

    sentences = [
        pick(
            f"The lesion area is in the {side} {lobe} lobe with mixed high and low signals.",
            f"A lesion with uneven signal intensity is centered in the {side} {lobe} lobe.",
            f"There is a mass of mixed signal in the {side} {lobe} lobe.",
            f"The {side} {lobe} lobe contains a space-occupying lesion with mixed signals.",
        ),
        pick(
            f"Edema is {extent}, presenting as high signal on FLAIR in the tissue around the "
            "lesion.",
            f"{extent.capitalize()} edema surrounds the lesion, seen as high signal on T2 and "
            "FLAIR.",
            f"The surrounding edema is {extent} and bright on FLAIR.",
        )
        if facts.oedema_ml > 0
        else "No edema is observed.",
    ]
    if not facts.enhancing and rng.random() < 0.4:
        sentences.append(
            pick(
                "Neither necrosis nor contrast enhancement is observed.",
                "The lesion shows no necrosis and no contrast enhancement.",
            )
        )
    else:
        sentences.append(
            pick(
                "Necrosis is present within the lesion, with low signal on T1.",
                "The core of the lesion contains necrosis, dark on T1 and bright on T2.",
                "Necrosis is seen inside the lesion as an area that does not take up contrast.",
            )
            if facts.necrosis
            else pick(
                "Necrosis is not observed.",
                "There is no sign of necrosis.",
                "No necrosis is seen within the lesion.",
            )
        )
        if not facts.enhancing:
            enhancement = pick(
                "No contrast enhancement is seen.",
                "The lesion does not take up contrast.",
                "Contrast enhancement is absent.",
            )
        elif facts.necrosis:
            enhancement = pick(
                f"A {rim} rim of contrast enhancement surrounds the necrotic core.",
                f"After contrast, the lesion shows {rim} ring enhancement.",
                f"The enhancing rim on T1 after contrast is {rim}.",
            )
        else:
            enhancement = pick(
                "The whole core shows solid contrast enhancement.",
                "After contrast, the core enhances solidly.",
            )
        sentences.append(enhancement)
    if rng.random() < 0.4:
        sentences.append(
            pick(
                "On T1 the lesion is darker than normal white matter.",
                "On T1 the lesion gives a low signal.",
            )
        )
    return " ".join(sentences)


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


def _radius_mm(volume_ml: float) -> float:
    return float(np.cbrt(volume_ml * 1000 * 3 / (4 * math.pi)))


def _bounds(mask: Bool) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """First index of the bounding box along each axis, and one past the last."""
    ends = [np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    return np.array([e[0] for e in ends]), np.array([e[-1] + 1 for e in ends])


class _Grid:
    """Voxel centres of the box that holds the brain, and smooth noise on them.

    Voxel edges of every spacing start at the corner of the BraTS field of view, so that grids of
    different spacing show the same space.
    """

    def __init__(self, spacing_mm: float) -> None:
        self.spacing_mm = spacing_mm
        self.shape = tuple(math.ceil(length / spacing_mm) for length in _FIELD_MM)
        self._axes: list[Float] = []
        box: list[slice] = []
        for n, centre, half in zip(self.shape, _CENTRE_MM, _HALF_BOX_MM, strict=True):
            position = (np.arange(n) + 0.5) * spacing_mm
            inside = np.flatnonzero(np.abs(position - centre) <= half)
            box.append(slice(int(inside[0]), int(inside[-1]) + 1))
            self._axes.append((position[inside] - centre).astype(np.float32))
        self.box = (box[0], box[1], box[2])
        self.u = self._axes[0][:, None, None]
        self.v = self._axes[1][None, :, None]
        self.w = self._axes[2][None, None, :]

    @property
    def affine(self) -> NDArray[np.float64]:
        """LPS voxel order; the 1 mm grid has the BraTS origin, (0, 239, 0)."""
        s, first = self.spacing_mm, (self.spacing_mm - 1) / 2
        affine = np.diag([-s, -s, s, 1.0])
        affine[:3, 3] = -first, 239 - first, first
        return affine

    def noise(self, rng: np.random.Generator, scale_mm: float) -> Float:
        """Smooth noise of mean 0 and spread about 1 that varies over ``scale_mm``.

        A random lattice read through Gaussians, which favour no direction: it depends on the
        position in mm, not on the grid.
        """
        sigma = scale_mm / math.sqrt(3)
        bases = []
        for axis, half in zip(self._axes, _HALF_BOX_MM, strict=True):
            # Knots one sigma apart, four of them beyond either end.
            knots = np.arange(math.ceil(2 * half / sigma) + 9) - 4
            away = (axis[:, None] + half) / sigma - knots
            bases.append(np.exp(-0.5 * away**2).astype(np.float32))
        lattice = rng.standard_normal([basis.shape[1] for basis in bases], dtype=np.float32)
        total = np.einsum("ijk,xi,yj,zk->xyz", lattice, *bases, optimize=True)
        # The squares of one axis' Gaussians add up to the square root of pi, wherever one looks.
        return np.asarray(total / math.pi**0.75, np.float32)


@dataclass(frozen=True)
class _TumourPlan:
    """What is decided about a tumour before it grows."""

    centre_mm: tuple[float, float, float]
    stretch: tuple[float, float, float]
    wt_ml: float
    tc_ml: float
    rim_mm: float
    kind: Literal["low grade", "solid", "necrotic"]

    @property
    def sign(self) -> float:
        """Direction of the tumour's side along u: 1 for left, -1 for right."""
        return math.copysign(1.0, self.centre_mm[0])

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "_TumourPlan":
        names = list(_LOBES)
        *ranges, _ = _LOBES[names[int(rng.choice(len(names), p=[_LOBES[n][3] for n in names]))]]
        lateral, v, w = (float(rng.uniform(*limits)) for limits in ranges)
        wt_ml = math.exp(rng.uniform(math.log(26), math.log(170)))
        chance = rng.random()
        low_grade = chance < 0.2
        share = rng.uniform(0.35, 0.7) if low_grade else rng.uniform(0.25, 0.55)
        stretch = [float(f) for f in np.exp(rng.normal(0, 0.12, 3))]
        return cls(
            centre_mm=(lateral if rng.random() < 0.5 else -lateral, v, w),
            stretch=(stretch[0], stretch[1], stretch[2]),
            wt_ml=wt_ml,
            tc_ml=wt_ml * share,
            rim_mm=float(rng.uniform(2.0, 6.5)),
            kind="low grade" if low_grade else "solid" if chance < 0.3 else "necrotic",
        )


@dataclass(frozen=True, eq=False)
class _Anatomy:
    """The healthy part of the brain; every array is (x, y, z) of the grid's box.

    Attributes:
        brain: brain mask.
        depth_mm: about how far below the brain's surface a voxel lies; negative outside.
        lateral_mm: signed distance from the midline, positive on the left.
        grey: grey matter, as a fraction; what is neither grey nor CSF is white.
        csf: CSF, as a fraction.
        ventricle: the part of ``csf`` that no tumour enters.
    """

    brain: Bool
    depth_mm: Float
    lateral_mm: Float
    grey: Float
    csf: Float
    ventricle: Float

    @classmethod
    def build(cls, rng: np.random.Generator, grid: _Grid, plan: _TumourPlan) -> "_Anatomy":
        size = [float(f) for f in np.clip(rng.normal(1, 0.03, 3), 0.94, 1.06)]
        u, v, w = (
            axis / f + amplitude * grid.noise(rng, 42)
            for axis, f, amplitude in zip(
                (grid.u, grid.v, grid.w), size, (2.2, 3.0, 3.0), strict=True
            )
        )
        # Narrower in front; the surface itself does not feel the tumour.
        across = np.abs(u) * (1 - 0.0011 * v)
        depth = -_ellipsoid(across, v, w, *_CEREBRUM)
        for lump in _LUMPS:
            np.maximum(depth, -_ellipsoid(across, v, w, *lump), out=depth)
        brain = depth > 0

        # Mass effect: what lies here has been pushed away from the tumour.
        reach = 1.3 * _radius_mm(plan.wt_ml)
        away = [axis - c for axis, c in zip((grid.u, grid.v, grid.w), plan.centre_mm, strict=True)]
        push = -0.30 * np.exp(-sum(a**2 for a in away) / reach**2)
        u, v, w = (axis + push * a for axis, a in zip((u, v, w), away, strict=True))

        lateral = np.abs(u)
        ventricle = np.zeros_like(depth)
        size_of_ventricle = rng.uniform(0.75, 1.35)
        bend = (v / 36) ** 2
        for centre, axes in (
            ((8 + 9 * bend, 4, 13 - 11 * bend), (5.0, 36, 7.5)),  # lateral ventricles
            ((0, 4, -2), (2.2, 13, 9)),  # third
            ((0, 36, -38), (6, 5, 7)),  # fourth
        ):
            scaled = tuple(a * size_of_ventricle for a in axes)
            np.maximum(
                ventricle, _ramp(-_ellipsoid(lateral, v, w, centre, scaled), 0, 1.5), out=ventricle
            )

        # Cortex: the zero surface of a noise field is folded like sulci.
        fold = np.abs(grid.noise(rng, 11.5) + 0.2 * grid.noise(rng, 6))
        sulcus_mm = 7 * fold - rng.uniform(0.6, 1.3) * _ramp(20 - depth, 0, 14)
        fissure_mm = np.where((w > -2) & (depth < 34), lateral - 1.1, 9)
        csf = _ramp(-np.minimum(sulcus_mm, fissure_mm), -0.7, 0.7) * _ramp(22 - depth, 0, 4)
        fissure = _ramp(-fissure_mm, -0.7, 0.7)
        ribbon = _ramp(3.0 - np.minimum(sulcus_mm, fissure_mm), -0.8, 0.8) * _ramp(26 - depth, 0, 6)
        grey = np.maximum(ribbon, _ramp(3.2 - depth, -0.8, 0.8))
        for nucleus in _NUCLEI:
            np.maximum(grey, 0.8 * _ramp(-_ellipsoid(lateral, v, w, *nucleus), -1, 1), out=grey)
        csf = np.maximum(np.maximum(csf, fissure), ventricle)
        return cls(brain, depth, u, grey * (1 - csf), csf, ventricle)


@dataclass(frozen=True, eq=False)
class _Tumour:
    """A grown tumour; every array is (x, y, z) of the grid's box.

    Attributes:
        label: BraTS labels, uint8.
        strength: how far the tumour has replaced healthy tissue, 0 to 1.
        enhances: False for low grade.
    """

    label: Label
    strength: Float
    enhances: bool

    @classmethod
    def grow(
        cls, rng: np.random.Generator, grid: _Grid, plan: _TumourPlan, anatomy: _Anatomy
    ) -> "_Tumour":
        s = grid.spacing_mm
        away = [
            (axis - c) / f
            for axis, c, f in zip(
                (grid.u, grid.v, grid.w), plan.centre_mm, plan.stretch, strict=True
            )
        ]
        radius = np.sqrt(sum(a**2 for a in away))
        bumps = 0.20 * grid.noise(rng, 26) + 0.11 * grid.noise(rng, 12)
        fingers = 6.0 * grid.noise(rng, 19) + 3.0 * grid.noise(rng, 10)
        allowed = (
            anatomy.brain
            & (anatomy.depth_mm > 0.8)
            & (anatomy.ventricle < 0.5)
            & (plan.sign * anatomy.lateral_mm > 2.5)
        )
        core_field = radius * np.exp(bumps)
        core = _lowest(core_field, allowed, plan.tc_ml * 1000 / s**3)
        core = _part_at(core, core_field)

        # Oedema follows white matter and stops at cortex.
        white = ndimage.gaussian_filter(1 - anatomy.grey - anatomy.csf, 2.0 / s)
        spread = radius * np.exp(0.5 * bumps) + fingers - 18 * white
        oedema = _lowest(spread, allowed & ~core, plan.wt_ml * 1000 / s**3 - core.sum())
        whole = _part_at(core | oedema, core_field)

        label = np.where(whole, OEDEMA, 0).astype(np.uint8)
        label[core] = CORE
        thickness = plan.rim_mm * np.exp(0.45 * grid.noise(rng, 15))
        if plan.kind == "solid":
            label[core] = ENHANCING
        elif plan.kind == "necrotic":
            inside = ndimage.distance_transform_edt(core, sampling=s) - s / 2
            label[core & (inside < np.maximum(thickness, 0.95 * s))] = ENHANCING
        edge = float(np.max(spread[whole], initial=-math.inf))
        strength = np.where(core, 1, 0.6 + 0.4 * _ramp(edge - spread, 0, 14)) * whole
        return cls(label, strength.astype(np.float32), plan.kind != "low grade")


def _scan(
    rng: np.random.Generator,
    scanner_rng: np.random.Generator,
    grid: _Grid,
    anatomy: _Anatomy,
    tumour: _Tumour,
) -> Float:
    """Image the brain in all four sequences, (4, x, y, z) of the grid's box."""
    brain, label = anatomy.brain, tumour.label
    vessel = _vessels(rng, grid, anatomy) * (label == 0)
    texture = 0.025 * grid.noise(rng, 7)
    patches = 0.12 * grid.noise(rng, 9)
    tissue_of = {
        OEDEMA: "oedema",
        ENHANCING: "enhancing",
        CORE: "necrosis" if tumour.enhances else "solid",
    }
    scan = np.zeros((len(SEQUENCES), *brain.shape), np.float32)
    for i in range(len(SEQUENCES)):
        signal = {k: v[i] * math.exp(rng.normal(0, 0.025)) for k, v in _SIGNAL.items()}
        volume = np.full(brain.shape, signal["white"], np.float32)
        volume += (signal["grey"] - volume) * anatomy.grey / np.maximum(1 - anatomy.csf, 1e-3)
        volume += (signal["csf"] - volume) * anatomy.csf
        volume += (signal["vessel"] - volume) * vessel
        volume *= 1 + texture
        for value, tissue in tissue_of.items():
            here = label == value
            sick = signal[tissue] * (1 + patches[here])
            volume[here] += (sick - volume[here]) * tumour.strength[here]
        volume *= np.exp(0.07 * grid.noise(rng, 75))
        volume = ndimage.gaussian_filter(np.where(brain, volume, 0), 0.45)
        # Rician: the magnitude of a signal with noise in both channels.
        level = rng.uniform(0.015, 0.04)
        real, imaginary = level * scanner_rng.standard_normal((2, *brain.shape), dtype=np.float32)
        volume = np.hypot(volume + real, imaginary)
        # Scanners have no unit: BraTS files peak anywhere between 255 and 32767.
        peak = math.exp(rng.uniform(math.log(255), math.log(32767)))
        volume *= peak / volume[brain].max()
        scan[i] = np.where(brain, np.maximum(np.rint(volume), _VOID), 0)
    return scan


def _vessels(rng: np.random.Generator, grid: _Grid, anatomy: _Anatomy) -> Float:
    """Fraction of each voxel filled with blood: a sinus, winding arteries and veins."""
    s = grid.spacing_mm
    lateral, depth = np.abs(anatomy.lateral_mm), anatomy.depth_mm
    sinus = (lateral < 2.2) & (depth < 4) & ((grid.w > 10) | (grid.v > 40))
    plexus = (anatomy.ventricle > 0.5) & (grid.v > 14) & (grid.noise(rng, 6) > 1.1)
    blood = (sinus | plexus).astype(np.float32) * 0.8
    for _ in range(12):
        heading = rng.normal(size=3)
        step = rng.normal(size=3)
        place = heading / np.linalg.norm(heading) * (58, 74, 50) * rng.uniform(0.6, 1.0)
        path = []
        for turn in rng.normal(0, 0.3, (int(rng.integers(25, 70)), 3)):
            step = step / np.linalg.norm(step) + turn
            place = place + step
            path.append(place)
        index = np.floor((np.array(path) + _CENTRE_MM) / s).astype(int)
        index -= [part.start for part in grid.box]
        index = index[((index >= 0) & (index < blood.shape)).all(axis=1)]
        blood[tuple(index.T)] = min(1.0, 1.6 / s)
    return blood * (depth > 0.5)


def _ellipsoid(
    u: Float,
    v: Float,
    w: Float,
    centre: Sequence[float | Float],
    semi_axes: Sequence[float],
) -> Float:
    """Distance from an ellipsoid's surface in mm, to first order; negative inside."""
    parts = [(p - c) / a for p, c, a in zip((u, v, w), centre, semi_axes, strict=True)]
    reach = np.sqrt(sum(p**2 for p in parts)) + 1e-6
    slope = np.sqrt(sum((p / a) ** 2 for p, a in zip(parts, semi_axes, strict=True))) + 1e-6
    # At the very centre both vanish; the shortest semi-axis bounds the depth there.
    return np.asarray(np.maximum(reach * (reach - 1) / slope, -min(semi_axes)))


def _ramp(x: Float, low: float, high: float) -> Float:
    """Rise linearly from 0 at ``low`` to 1 at ``high``."""
    return np.asarray(np.clip((x - low) / (high - low), 0, 1))


def _lowest(score: Float, allowed: Bool, count: float) -> Bool:
    """The ``count`` allowed voxels of lowest value."""
    values = score[allowed]
    n = min(max(int(count), 1), values.size)
    return np.asarray(allowed & (score <= np.partition(values, n - 1)[n - 1]))


def _part_at(mask: Bool, score: Float) -> Bool:
    """The connected part of ``mask`` that holds its lowest value of ``score``."""
    parts, _ = ndimage.label(mask)
    seed = np.unravel_index(np.argmin(np.where(mask, score, np.inf)), mask.shape)
    return np.asarray(parts == parts[seed])
