"""The tumour of a phantom: planned, grown through grey and white matter, and labelled.

Cells spread by diffusion and multiply up to what tissue can hold, faster along white than in grey
matter and never in fluid. Oedema is fluid that leaks out of the core and seeps through white
matter. Both run on a grid of their own, so that a tumour is the same at every voxel size.

Source of the growth model: Swanson et al., Cell Proliferation, 2000,
https://doi.org/10.1046/j.1365-2184.2000.00177.x.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clipseg3d.phantom.anatomy import Anatomy, Push
from clipseg3d.phantom.grid import (
    Bool,
    Float,
    PhantomGrid,
    SmoothNoise,
)

Label = NDArray[np.uint8]
Kind = Literal["necrotic", "solid", "spotted", "plain"]

CORE, OEDEMA, ENHANCING = 1, 2, 4
"""BraTS 2018-2021 labels: necrotic or non-enhancing core, oedema, enhancing tumour."""

GROWTH_GRID = PhantomGrid(3.0)
"""The grid that tumours grow on."""

_KINDS: dict[Kind, float] = {"necrotic": 0.62, "solid": 0.07, "spotted": 0.2, "plain": 0.11}
_STEP = 0.15  # diffusion per step in voxels^2; up to 1/6 is stable
_MOST_STEPS = 320


@dataclass(frozen=True)
class TumourPlan:
    """What is decided about a tumour before it grows.

    Attributes:
        kind: ``necrotic`` enhances around necrosis, ``solid`` throughout, ``spotted`` in small
            parts, ``plain`` nowhere.
        foci: index of each focus on the growth grid, the main one first.
        starts: share of the core's volume at which each focus begins to grow; 0 for the first.
        tc_ml: volume of the core.
        oedema_ml: volume of the oedema.
        rim_mm: usual thickness of the enhancing rim.
        gap: share of the rim that does not enhance, roughly.
        speed: growth per step; slow tumours infiltrate more widely.
        grey_speed: diffusion in grey matter, white matter having 1.
        swelling: how strongly it pushes, usually 0.3 to 1.2.
    """

    kind: Kind
    foci: Sequence[tuple[int, int, int]]
    starts: Sequence[float]
    tc_ml: float
    oedema_ml: float
    rim_mm: float
    gap: float
    speed: float
    grey_speed: float
    swelling: float

    @classmethod
    def draw(cls, rng: np.random.Generator, anatomy: Anatomy) -> "TumourPlan":
        """Draw a tumour that starts in the white matter of a brain on the growth grid."""
        kind: Kind = rng.choice(np.array(list(_KINDS)), p=list(_KINDS.values()))
        enhancing = kind in ("necrotic", "solid")
        tc_ml = math.exp(rng.normal(math.log(30 if enhancing else 60), 0.8))
        tc_ml = float(np.clip(tc_ml, 4, 115))
        ratio = math.exp(rng.normal(math.log(1.4 if enhancing else 0.8), 0.75))
        oedema_ml = float(np.clip(tc_ml * ratio, 4, 140))
        u, v, w = GROWTH_GRID.mesh
        deep = (np.abs(u) < 18) & (np.abs(v) < 28) & (w < 22)
        hemispheres = anatomy.open & (anatomy.white > 0.5) & (anatomy.depth_mm > 9) & ~deep
        # Temporal lobes hold little white matter and yet a quarter of the tumours.
        temporal = hemispheres & (np.abs(u) > 22) & (np.abs(v) < 28) & (w < -12)
        first = _pick(rng, temporal if rng.random() < 0.22 and temporal.any() else hemispheres)
        foci, starts = [first], [0.0]
        others = int(rng.choice([0, 1, 2, 3], p=[0.82, 0.11, 0.05, 0.02]))
        for _ in range(others):
            far = _distance_mm(first, anatomy.open.shape)
            # A satellite lies near the first focus, another lesion anywhere.
            near = (far < 40) if rng.random() < 0.7 else (far < 200)
            foci.append(_pick(rng, anatomy.open & (anatomy.white > 0.4) & (far > 15) & near))
            starts.append(float(rng.uniform(0, 0.5)))
        return cls(
            kind=kind,
            foci=foci,
            starts=starts,
            tc_ml=tc_ml,
            oedema_ml=oedema_ml,
            rim_mm=float(rng.uniform(1.8, 6.0)),
            gap=float(rng.uniform(0, 0.25)) if rng.random() < 0.6 else 0.0,
            speed=math.exp(rng.uniform(math.log(0.05), math.log(0.3))),
            grey_speed=float(rng.uniform(0.15, 0.6)),
            swelling=float(rng.uniform(0.3, 1.2)),
        )

    @property
    def pushes(self) -> list[Push]:
        """The mass effect of the main focus."""
        radius = _radius_mm(0.9 * self.tc_ml + 0.1 * self.oedema_ml)
        centre = tuple(
            float(axis[i]) for axis, i in zip(GROWTH_GRID.axes_mm, self.foci[0], strict=True)
        )
        shift = 0.32 * self.swelling * radius
        return [Push((centre[0], centre[1], centre[2]), radius, shift, 30.0)]


@dataclass(frozen=True, eq=False)
class Tumour:
    """A grown tumour on a grid; every array is (x, y, z) of the grid's box.

    Attributes:
        label: BraTS labels.
        oedema: fraction of each voxel's tissue that is oedema.
        solid: fraction that is tumour which does not enhance.
        necrosis: fraction that is necrosis.
        enhancing: fraction that is enhancing tumour.
    """

    label: Label
    oedema: Float
    solid: Float
    necrosis: Float
    enhancing: Float


def grow(
    rng: np.random.Generator,
    plan: TumourPlan,
    grown_in: Anatomy,
    grid: PhantomGrid,
    anatomy: Anatomy,
) -> Tumour:
    """Grow a tumour and show it on a grid.

    Args:
        rng: draws irregularities; as many values on every grid.
        plan: what to grow.
        grown_in: the brain on the growth grid.
        grid: where to show it.
        anatomy: the same brain there.
    """
    wide, middle, fine = (SmoothNoise.draw(rng, mm).on(grid) for mm in (26.0, 13.0, 5.5))
    s = grid.spacing_mm
    voxel_ml = s**3 / 1000
    cells = _spread_cells(plan, grown_in)
    fluid = _seep_fluid(cells > 0.5, grown_in, int(rng.integers(40, 140)))

    # Scores that noise and the grid's own anatomy refine; volumes are met by rank.
    density = GROWTH_GRID.resample(cells, grid)
    rough = 0.8 * wide + 0.7 * middle + 0.4 * fine
    dense = ndimage.gaussian_filter(density + rng.uniform(0.05, 0.22) * rough, 0.7 / s)
    core = _highest(dense, anatomy.open & (density > 0.05), plan.tc_ml / voxel_ml)
    core = _tidy(core, 0.05 / voxel_ml)

    wet = np.log(GROWTH_GRID.resample(fluid, grid) + 1e-5)
    wet += 0.7 * SmoothNoise.draw(rng, 9.0).on(grid) + 0.4 * middle
    wet += 3.0 * ndimage.gaussian_filter(anatomy.white - anatomy.csf, 1.6 / s)
    wet = ndimage.gaussian_filter(wet, rng.uniform(0.6, 1.4) / s)
    soaked = (anatomy.depth_mm > 0.5) & (anatomy.ventricle < 0.4) & (anatomy.csf < 0.8) & ~core
    whole = core | _highest(wet, soaked, plan.oedema_ml / voxel_ml)
    parts, _ = ndimage.label(whole, structure=np.ones((3, 3, 3)))
    outer = np.isin(parts, np.unique(parts[core])) & whole & ~core

    enhancing, necrosis = _enhancement(rng, plan, grid, core)
    label = np.where(outer, OEDEMA, 0).astype(np.uint8)
    label[core] = CORE
    label[enhancing] = ENHANCING
    # Partial volume: at its edge a voxel holds a bit of both.
    oedema, solid, dead, bright = (
        ndimage.gaussian_filter(part.astype(np.float32), max(0.4, 1.1 / s))
        for part in (outer, core & ~enhancing & ~necrosis, necrosis, enhancing)
    )
    # Oedema dilutes tissue, most of all near the core, and cortex takes up less of it.
    fade = rng.uniform(0.45, 0.95)
    near = np.clip((wet - wet.min(where=outer, initial=np.inf)) / 3, 0, 1)
    oedema *= (fade + (1 - fade) * near) * (1 - 0.35 * anatomy.grey)
    return Tumour(label, oedema, solid, dead, bright)


def _enhancement(
    rng: np.random.Generator, plan: TumourPlan, grid: PhantomGrid, core: Bool
) -> tuple[Bool, Bool]:
    """Return which parts of the core enhance, and which are necrotic."""
    s = grid.spacing_mm
    slow, patches, spots = (SmoothNoise.draw(rng, mm).on(grid) for mm in (18.0, 8.0, 9.0))
    septa, spotted = rng.uniform(0, 0.5), math.exp(rng.uniform(math.log(0.01), math.log(0.14)))
    inside = np.zeros(core.shape, np.float32)
    box = ndimage.find_objects(core.astype(np.uint8))[0]
    padded = ndimage.distance_transform_edt(np.pad(core[box], 1), sampling=s)
    inside[box] = padded[1:-1, 1:-1, 1:-1] - s / 2
    nothing = np.zeros_like(core)
    if plan.kind == "solid":
        return core, nothing
    if plan.kind == "plain":
        return nothing, nothing
    if plan.kind == "spotted":
        likely = spots + 0.5 * patches + np.minimum(inside, 8) / 12
        return _highest(likely, core, spotted * core.sum()), nothing
    rim = plan.rim_mm * np.exp(0.45 * slow + 0.3 * patches)
    necrosis = core & (inside > np.maximum(rim, 0.9 * s)) & (spots < 2.2 - 1.6 * septa)
    bare = slow + 0.4 * patches < _quantile(plan.gap)
    return core & ~necrosis & ~bare, necrosis


def _spread_cells(plan: TumourPlan, anatomy: Anatomy) -> Float:
    """Return the density of cells, 0 to 1, once the core has reached its volume."""
    conductance = (anatomy.white + plan.grey_speed * anatomy.grey) * anatomy.open
    flow, alive = _Diffusion(conductance), conductance > 0
    cells = np.zeros(anatomy.open.shape, np.float32)
    waiting = list(zip(plan.starts, plan.foci, strict=True))
    wanted = plan.tc_ml * 1000 / GROWTH_GRID.spacing_mm**3
    for step in range(_MOST_STEPS):
        if step % 4 == 0:
            size = float((cells > 0.5).sum())
            if size >= wanted and not waiting:
                break
            for start, focus in list(waiting):
                if size >= start * wanted:
                    near = _distance_mm(focus, cells.shape) < 8
                    cells = np.where(near & anatomy.open, np.float32(1), cells)
                    waiting.remove((start, focus))
        cells += flow(cells) + np.float32(plan.speed) * cells * (1 - cells) * alive
    return cells


def _seep_fluid(core: Bool, anatomy: Anatomy, steps: int) -> Float:
    """Return how much fluid from the core reaches each voxel, 1 in the core."""
    passable = (anatomy.depth_mm > 0.5) & (anatomy.csf < 0.6)
    flow = _Diffusion((anatomy.white + 0.06 * anatomy.grey) * passable)
    fluid = core.astype(np.float32)
    for _ in range(steps):
        fluid += flow(fluid)
        fluid[core] = 1
    return fluid


class _Diffusion:
    """One explicit step of diffusion through a medium; nothing leaves the grid.

    Neighbours exchange along the smaller of their conductances, so nothing enters a voxel of 0.
    """

    def __init__(self, conductance: Float) -> None:
        self._faces = []
        for axis in range(3):
            lower, upper = _neighbours(conductance, axis)
            self._faces.append((_STEP * np.minimum(lower, upper)).astype(np.float32))

    def __call__(self, volume: Float) -> Float:
        change = np.zeros_like(volume)
        for axis, face in enumerate(self._faces):
            lower, upper = _neighbours(volume, axis)
            flux = face * (upper - lower)
            gain, loss = _neighbours(change, axis)
            gain += flux
            loss -= flux
        return change


def _neighbours(volume: Float, axis: int) -> tuple[Float, Float]:
    """Views of all voxels but the last, and of all but the first, along an axis."""
    before = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
    after = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
    return volume[before], volume[after]


def _pick(rng: np.random.Generator, allowed: Bool) -> tuple[int, int, int]:
    """Pick one voxel of a mask."""
    places = np.argwhere(allowed)
    x, y, z = places[int(rng.integers(len(places)))].tolist()
    return x, y, z


def _distance_mm(place: tuple[int, int, int], shape: Sequence[int]) -> Float:
    """Distance of every voxel of the growth grid from one of them."""
    squares = [
        ((np.arange(n) - i) * GROWTH_GRID.spacing_mm) ** 2
        for n, i in zip(shape, place, strict=True)
    ]
    return np.asarray(
        np.sqrt(squares[0][:, None, None] + squares[1][:, None] + squares[2]), np.float32
    )


def _radius_mm(volume_ml: float) -> float:
    return float(np.cbrt(volume_ml * 1000 * 3 / (4 * math.pi)))


def _quantile(share: float) -> float:
    """Value below which a share of a field with a spread of 1.1 lies."""
    return 1.1 * NormalDist().inv_cdf(share) if share else -math.inf


def _highest(score: Float, allowed: Bool, count: float) -> Bool:
    """The ``count`` allowed voxels of highest value."""
    values = score[allowed]
    if not values.size:
        return np.zeros_like(allowed)
    n = min(max(round(count), 1), values.size)
    return np.asarray(allowed & (score >= np.partition(values, -n)[-n]))


def _tidy(mask: Bool, least: float) -> Bool:
    """Drop parts of fewer voxels, but never the largest, and fill holes."""
    parts, count = ndimage.label(mask)
    if count > 1:
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        kept = (sizes >= least) | (sizes == sizes.max())
        kept[0] = False
        mask = kept[parts]
    return np.asarray(ndimage.binary_fill_holes(mask))
