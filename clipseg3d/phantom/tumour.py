"""The tumour of a phantom: planned, grown in grey and white matter, and labelled.

Cells spread by diffusion and multiply up to a maximum density. They spread faster in white than in
grey matter, and never into fluid. Oedema is fluid that leaks out of the core and spreads through
white matter. Both are simulated on the growth grid, so that a tumour is the same at every voxel
size.

Source of the growth model: Swanson et al., Cell Proliferation, 2000,
https://doi.org/10.1046/j.1365-2184.2000.00177.x.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clipseg3d.phantom.anatomy import Anatomy, Push
from clipseg3d.phantom.grid import Bool, Float, PhantomGrid, SmoothNoise
from clipseg3d.texts.facts import CAVITY, CORE, ENHANCING, OEDEMA, Label

Kind = Literal["necrotic", "solid", "spotted", "plain"]

GROWTH_GRID = PhantomGrid(3.0)
"""Grid on which tumours grow."""

_KINDS: dict[Kind, float] = {"necrotic": 0.62, "solid": 0.07, "spotted": 0.2, "plain": 0.11}
_STEP = 0.15  # diffusion per step in voxels^2; up to 1/6 is stable
_MAX_STEPS = 320


@dataclass(frozen=True)
class TumourPlan:
    """Properties of a tumour that are drawn before it grows.

    Attributes:
        kind: ``necrotic`` enhances around necrosis, ``solid`` throughout, ``spotted`` in small
            parts, ``plain`` nowhere.
        foci: index of each focus on the growth grid, the main focus first.
        starts: for each focus, the share of the core's volume at which it begins to grow; 0 for
            the first.
        tc_ml: volume of the core, in ml.
        oedema_ml: volume of the oedema, in ml.
        rim_mm: mean thickness of the enhancing rim, in mm.
        gap: approximate share of the rim that does not enhance.
        speed: growth per step; slow tumours infiltrate more widely.
        grey_speed: diffusion in grey matter, relative to white matter.
        swelling: strength of the mass effect, usually 0.3 to 1.2.
        necrosis: whether there is necrosis inside; None follows the kind, of which only
            ``necrotic`` has it. A solid core has no room for it.
        resected: whether a resection has left a cavity in the main focus.
        resection: share of the main focus that a resection takes.
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
    necrosis: bool | None = None
    resected: bool = False
    resection: float = 0.7

    @classmethod
    def draw(cls, rng: np.random.Generator, anatomy: Anatomy) -> "TumourPlan":
        """Draw a tumour that starts in the white matter of an anatomy on the growth grid."""
        kind: Kind = rng.choice(np.array(list(_KINDS)), p=list(_KINDS.values()))
        enhancing = kind in ("necrotic", "solid")
        tc_ml = math.exp(rng.normal(math.log(30 if enhancing else 60), 0.8))
        tc_ml = float(np.clip(tc_ml, 4, 115))
        ratio = math.exp(rng.normal(math.log(1.4 if enhancing else 0.8), 0.75))
        oedema_ml = float(np.clip(tc_ml * ratio, 4, 140))
        u, v, w = GROWTH_GRID.mesh
        deep = (np.abs(u) < 18) & (np.abs(v) < 28) & (w < 22)
        hemispheres = anatomy.growth_mask & (anatomy.white > 0.5) & (anatomy.depth_mm > 9) & ~deep
        # Temporal lobes have little white matter, but a quarter of the tumours.
        temporal = hemispheres & (np.abs(u) > 22) & (np.abs(v) < 28) & (w < -12)
        first = _pick(rng, temporal if rng.random() < 0.22 and temporal.any() else hemispheres)
        foci, starts = [first], [0.0]
        num_others = int(rng.choice([0, 1, 2, 3], p=[0.82, 0.11, 0.05, 0.02]))
        for _ in range(num_others):
            distance = _distance_mm(first, anatomy.growth_mask.shape)
            # A satellite is near the first focus, a further lesion may be anywhere.
            max_mm = 40 if rng.random() < 0.7 else 200
            allowed = anatomy.growth_mask & (anatomy.white > 0.4)
            foci.append(_pick(rng, allowed & (distance > 15) & (distance < max_mm)))
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

    def with_shares(
        self, rng: np.random.Generator, *, plain_share: float | None, cavity_share: float
    ) -> "TumourPlan":
        """Return the plan with its kind and its treatment drawn anew; nothing else changes.

        Args:
            rng: draws; the number of drawn values does not depend on the shares.
            plain_share: probability of the kind ``plain``; the other kinds keep their proportions.
                None keeps the kind.
            cavity_share: probability of a resection.
        """
        others = [kind for kind in _KINDS if kind != "plain"]
        weights = np.array([_KINDS[kind] for kind in others])
        becomes_plain, resected, resection = rng.uniform((0, 0, 0.5), (1, 1, 0.9)).tolist()
        other: Kind = rng.choice(np.array(others), p=weights / weights.sum())
        kind = self.kind
        if plain_share is not None and becomes_plain < plain_share:
            kind = "plain"
        elif plain_share is not None and kind == "plain":
            kind = other
        return replace(self, kind=kind, resected=resected < cavity_share, resection=resection)

    @property
    def pushes(self) -> list[Push]:
        """Mass effect of the main focus."""
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
        label: BraTS labels, and 3 in a resection cavity.
        oedema: fraction of each voxel that is oedema, 0 to 1.
        solid: fraction that is solid tumour without enhancement.
        necrosis: fraction that is necrosis.
        enhancing: fraction that is enhancing tumour.
        cavity: fraction that is the fluid of a resection cavity.
    """

    label: Label
    oedema: Float
    solid: Float
    necrosis: Float
    enhancing: Float
    cavity: Float

    def main_focus(self) -> "Tumour":
        """Return the tumour without its smaller foci.

        They become oedema where oedema connects them with the largest focus; apart from it, they
        vanish together with their oedema.
        """
        core_mask = np.isin(self.label, (CORE, CAVITY, ENHANCING))
        nearest, largest = _nearest_part(core_mask)
        whole, _ = _nearest_part(self.label > 0)
        kept = whole == whole[core_mask & (nearest == largest)].max()
        further, alone = kept & (nearest != largest), kept & (nearest == largest)
        core = self.solid + self.necrosis + self.enhancing
        label = np.where(further & (self.label > 0), OEDEMA, self.label) * kept
        return Tumour(
            label.astype(np.uint8),
            (self.oedema + core * further) * kept,
            self.solid * alone,
            self.necrosis * alone,
            self.enhancing * alone,
            self.cavity * alone,
        )

    def plus(self, other: "Tumour") -> "Tumour":
        """Return both tumours; there is a gap of at least one voxel between their labels."""
        free = ~ndimage.binary_dilation(self.label > 0, structure=np.ones((3, 3, 3)))
        filled = self.oedema + self.solid + self.necrosis + self.enhancing + self.cavity
        room = free * np.clip(1 - filled, 0, 1)
        return Tumour(
            np.where(free, other.label, self.label),
            self.oedema + room * other.oedema,
            self.solid + room * other.solid,
            self.necrosis + room * other.necrosis,
            self.enhancing + room * other.enhancing,
            self.cavity + room * other.cavity,
        )


@dataclass(frozen=True, eq=False)
class Growth:
    """How far a tumour has grown, and all that was drawn for it; :meth:`tumour` fills it.

    Attributes:
        plan: properties of the tumour.
        grid: grid of the arrays, if not said otherwise.
        core: mask of the core.
        wetness: where fluid is; the wettest voxels become oedema.
        permeable: mask of the voxels that may become oedema.
        grey: fraction of grey matter.
        fluid: fluid on the growth grid, 1 in the core.
        noises: three noises, of 18, 8 and 9 mm.
        septa: how much of the inside of a necrotic core is not necrosis.
        spot_share: share of a spotted core that enhances.
        fade: strength of oedema far from the core.
    """

    plan: TumourPlan
    grid: PhantomGrid
    core: Bool = field(repr=False)
    wetness: Float = field(repr=False)
    permeable: Bool = field(repr=False)
    grey: Float = field(repr=False)
    fluid: Float = field(repr=False)
    noises: Sequence[Float] = field(repr=False)
    septa: float
    spot_share: float
    fade: float

    def tumour(self, plan: TumourPlan | None = None) -> Tumour:
        """Return the tumour of this extent.

        Args:
            plan: another plan; its kind, rim, gaps, oedema, necrosis and resection count. None
                takes that of the growth.
        """
        plan = plan or self.plan
        s, core = self.grid.spacing_mm, self.core
        oedema_mask = self._oedema(plan.oedema_ml)
        depth_mm = np.zeros(core.shape, np.float32)
        box = ndimage.find_objects(core.astype(np.uint8))[0]
        padded = ndimage.distance_transform_edt(np.pad(core[box], 1), sampling=s)
        depth_mm[box] = padded[1:-1, 1:-1, 1:-1] - s / 2
        enhancing, necrosis = self._enhancement(plan, depth_mm)
        label = np.where(oedema_mask, OEDEMA, 0).astype(np.uint8)
        label[core] = CORE
        label[enhancing] = ENHANCING
        # Partial volumes: a voxel at an edge contains some of both tissues.
        oedema, solid_part, necrotic_part, enhancing_part = (
            ndimage.gaussian_filter(part.astype(np.float32), max(0.4, 1.1 / s))
            for part in (oedema_mask, core & ~enhancing & ~necrosis, necrosis, enhancing)
        )
        # Oedema is strongest near the core, and weaker in cortex. More or less oedema than planned
        # does not change how strong it is anywhere.
        planned = oedema_mask if plan is self.plan else self._oedema(self.plan.oedema_ml)
        near = np.clip((self.wetness - self.wetness.min(where=planned, initial=np.inf)) / 3, 0, 1)
        oedema *= (self.fade + (1 - self.fade) * near) * (1 - 0.35 * self.grey)
        parts = [oedema, solid_part, necrotic_part, enhancing_part]
        cavity = np.zeros(core.shape, np.float32)
        if plan.resected:
            resected = self._resection(plan, depth_mm)
            label[resected] = CAVITY
            # its border is sharp
            parts = [part * ~resected for part in parts]
            cavity = resected.astype(np.float32)
        return Tumour(label, parts[0], parts[1], parts[2], parts[3], cavity)

    def apart(self, anatomy: Anatomy, distance_mm: float) -> Bool:
        """Return where on the growth grid another focus may start, apart from this tumour.

        Args:
            anatomy: on the growth grid.
            distance_mm: smallest distance from the whole tumour; less if there is no such place.
        """
        ml = GROWTH_GRID.spacing_mm**3 / 1000
        total = (self.plan.tc_ml + self.plan.oedema_ml) / ml
        tumour = _highest(self.fluid, np.ones_like(anatomy.growth_mask), total)
        distance = ndimage.distance_transform_edt(~tumour, sampling=GROWTH_GRID.spacing_mm)
        allowed = anatomy.growth_mask & (anatomy.white > 0.4)
        farthest = float(distance[allowed].max())
        return np.asarray(allowed & (distance >= min(distance_mm, 0.8 * farthest)))

    def _oedema(self, oedema_ml: float) -> Bool:
        """Return the mask of the oedema; what has no contact to the core is left out."""
        core, voxel_ml = self.core, self.grid.spacing_mm**3 / 1000
        whole_tumour = core | _highest(self.wetness, self.permeable, oedema_ml / voxel_ml)
        parts, _ = ndimage.label(whole_tumour, structure=np.ones((3, 3, 3)))
        return np.asarray(np.isin(parts, np.unique(parts[core])) & whole_tumour & ~core)

    def _enhancement(self, plan: TumourPlan, depth_mm: Float) -> tuple[Bool, Bool]:
        """Return masks of the enhancing and of the necrotic part of the core."""
        core, (slow, patches, spots) = self.core, self.noises
        rim = plan.rim_mm * np.exp(0.45 * slow + 0.3 * patches)
        deep = depth_mm > np.maximum(rim, 0.9 * self.grid.spacing_mm)
        inside = core & deep & (spots < 2.2 - 1.6 * self.septa)
        if plan.kind == "solid":
            enhancing = core
        elif plan.kind == "plain":
            enhancing = np.zeros_like(core)
        elif plan.kind == "spotted":
            score = spots + 0.5 * patches + np.minimum(depth_mm, 8) / 12
            enhancing = _highest(score, core, self.spot_share * core.sum())
        else:
            gaps = slow + 0.4 * patches < _quantile(plan.gap)
            enhancing = core & ~inside & ~gaps
        necrotic = plan.kind == "necrotic" if plan.necrosis is None else plan.necrosis
        return enhancing, inside & ~enhancing if necrotic else np.zeros_like(core)

    def _resection(self, plan: TumourPlan, depth_mm: Float) -> Bool:
        """Return the mask of the cavity: one piece of the largest focus, from its middle on."""
        nearest, largest = _nearest_part(self.core)
        focus = self.core & (nearest == largest)
        size = int(focus.sum())
        count = min(round(plan.resection * size), size - 1)  # some of the core must remain
        if count < 1:
            return np.zeros_like(focus)
        taken = _highest(depth_mm + 1.5 * self.noises[0], focus, count)
        return np.asarray(_clean(taken, math.inf) & focus)


def grow(
    rng: np.random.Generator,
    plan: TumourPlan,
    growth_anatomy: Anatomy,
    grid: PhantomGrid,
    anatomy: Anatomy,
) -> Growth:
    """Grow a tumour on the growth grid, and resample it to another grid.

    Args:
        rng: draws irregularities; the number of drawn values does not depend on the grid.
        plan: properties of the tumour.
        growth_anatomy: anatomy on the growth grid.
        grid: grid of the result.
        anatomy: the same anatomy on ``grid``.
    """
    wide, middle, fine = (SmoothNoise.draw(rng, mm).on(grid) for mm in (26.0, 13.0, 5.5))
    s = grid.spacing_mm
    voxel_ml = s**3 / 1000
    cells = _spread_cells(plan, growth_anatomy)
    fluid = _spread_fluid(cells > 0.5, growth_anatomy, int(rng.integers(40, 140)))

    # Noise and the anatomy of the grid refine the scores of voxels. The highest scores are taken
    # until the planned volume is reached.
    density = GROWTH_GRID.resample(cells, grid)
    noise = 0.8 * wide + 0.7 * middle + 0.4 * fine
    score = ndimage.gaussian_filter(density + rng.uniform(0.05, 0.22) * noise, 0.7 / s)
    core = _highest(score, anatomy.growth_mask & (density > 0.05), plan.tc_ml / voxel_ml)
    core = _clean(core, 0.05 / voxel_ml)

    wetness = np.log(GROWTH_GRID.resample(fluid, grid) + 1e-5)
    wetness += 0.7 * SmoothNoise.draw(rng, 9.0).on(grid) + 0.4 * middle
    wetness += 3.0 * ndimage.gaussian_filter(anatomy.white - anatomy.csf, 1.6 / s)
    wetness = ndimage.gaussian_filter(wetness, rng.uniform(0.6, 1.4) / s)
    permeable = (anatomy.depth_mm > 0.5) & (anatomy.ventricle < 0.4) & (anatomy.csf < 0.8) & ~core
    return Growth(
        plan=plan,
        grid=grid,
        core=core,
        wetness=wetness,
        permeable=permeable,
        grey=anatomy.grey,
        fluid=fluid,
        noises=[SmoothNoise.draw(rng, mm).on(grid) for mm in (18.0, 8.0, 9.0)],
        septa=rng.uniform(0, 0.5),
        spot_share=math.exp(rng.uniform(math.log(0.01), math.log(0.14))),
        fade=rng.uniform(0.45, 0.95),
    )


def grow_second_focus(
    rng: np.random.Generator,
    growth: Growth,
    growth_anatomy: Anatomy,
    grid: PhantomGrid,
    anatomy: Anatomy,
) -> Growth:
    """Grow one more focus, smaller than a tumour and apart from it; arguments as for :func:`grow`.

    Args:
        rng: draws place, size and irregularities.
        growth: of the tumour.
        growth_anatomy: anatomy on the growth grid.
        grid: grid of the result.
        anatomy: the same anatomy on ``grid``.
    """
    start = _pick(rng, growth.apart(growth_anatomy, 20.0))
    tc_ml = float(np.clip(growth.plan.tc_ml * rng.uniform(0.15, 0.5), 1.5, 10))
    oedema_ml = tc_ml * float(rng.uniform(0.3, 0.8))
    plan = replace(growth.plan, foci=[start], starts=[0.0], tc_ml=tc_ml, oedema_ml=oedema_ml)
    return grow(rng, plan, growth_anatomy, grid, anatomy)


def _spread_cells(plan: TumourPlan, anatomy: Anatomy) -> Float:
    """Return the density of cells, 0 to 1, at the time when the core has its planned volume."""
    conductance = (anatomy.white + plan.grey_speed * anatomy.grey) * anatomy.growth_mask
    diffuse, may_multiply = _Diffusion(conductance), conductance > 0
    cells = np.zeros(anatomy.growth_mask.shape, np.float32)
    waiting = list(zip(plan.starts, plan.foci, strict=True))
    target = plan.tc_ml * 1000 / GROWTH_GRID.spacing_mm**3
    for step in range(_MAX_STEPS):
        if step % 4 == 0:
            size = float((cells > 0.5).sum())
            if size >= target and not waiting:
                break
            for start, focus in list(waiting):
                if size >= start * target:
                    near = _distance_mm(focus, cells.shape) < 8
                    cells = np.where(near & anatomy.growth_mask, np.float32(1), cells)
                    waiting.remove((start, focus))
        cells += diffuse(cells) + np.float32(plan.speed) * cells * (1 - cells) * may_multiply
    return cells


def _spread_fluid(core: Bool, anatomy: Anatomy, steps: int) -> Float:
    """Return the amount of fluid from the core in each voxel; it is 1 in the core."""
    passable = (anatomy.depth_mm > 0.5) & (anatomy.csf < 0.6)
    diffuse = _Diffusion((anatomy.white + 0.06 * anatomy.grey) * passable)
    fluid = core.astype(np.float32)
    for _ in range(steps):
        fluid += diffuse(fluid)
        fluid[core] = 1
    return fluid


class _Diffusion:
    """One explicit step of diffusion in a medium; nothing leaves the grid.

    The exchange of two neighbours depends on the smaller of their conductances, so nothing enters
    a voxel with a conductance of 0.
    """

    def __init__(self, conductance: Float) -> None:
        self._faces = []
        for axis in range(3):
            lower, upper = _neighbours(conductance, axis)
            self._faces.append((_STEP * np.minimum(lower, upper)).astype(np.float32))

    def __call__(self, volume: Float) -> Float:
        """Return the change of each voxel in one step."""
        change = np.zeros_like(volume)
        for axis, face in enumerate(self._faces):
            lower, upper = _neighbours(volume, axis)
            flux = face * (upper - lower)
            gain, loss = _neighbours(change, axis)
            gain += flux
            loss -= flux
        return change


def _neighbours(volume: Float, axis: int) -> tuple[Float, Float]:
    """Return views of a volume along an axis: without its last plane, and without its first."""
    before = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
    after = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
    return volume[before], volume[after]


def _pick(rng: np.random.Generator, allowed: Bool) -> tuple[int, int, int]:
    """Draw the index of one voxel of a mask."""
    indices = np.argwhere(allowed)
    x, y, z = indices[int(rng.integers(len(indices)))].tolist()
    return x, y, z


def _distance_mm(index: tuple[int, int, int], shape: Sequence[int]) -> Float:
    """Return the distance of every voxel of the growth grid from one voxel."""
    squares = [
        ((np.arange(n) - i) * GROWTH_GRID.spacing_mm) ** 2
        for n, i in zip(shape, index, strict=True)
    ]
    return np.asarray(
        np.sqrt(squares[0][:, None, None] + squares[1][:, None] + squares[2]), np.float32
    )


def _radius_mm(volume_ml: float) -> float:
    """Return the radius of a sphere of this volume."""
    return float(np.cbrt(volume_ml * 1000 * 3 / (4 * math.pi)))


def _quantile(share: float) -> float:
    """Return the value below which a share of normal noise with an SD of 1.1 lies."""
    return 1.1 * NormalDist().inv_cdf(share) if share else -math.inf


def _highest(score: Float, allowed: Bool, count: float) -> Bool:
    """Return a mask of the ``count`` allowed voxels with the highest scores."""
    values = score[allowed]
    if not values.size:
        return np.zeros_like(allowed)
    n = min(max(round(count), 1), values.size)
    return np.asarray(allowed & (score >= np.partition(values, -n)[-n]))


def _nearest_part(mask: Bool) -> tuple[NDArray[np.intp], int]:
    """Return the number of the part of a mask that is nearest to each voxel, and of the largest."""
    parts, _ = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    indices = ndimage.distance_transform_edt(~mask, return_distances=False, return_indices=True)
    return parts[tuple(indices)], int(np.argmax(np.bincount(parts.ravel())[1:])) + 1


def _clean(mask: Bool, min_voxels: float) -> Bool:
    """Remove parts that are too small, but never the largest part, and fill holes."""
    parts, count = ndimage.label(mask)
    if count > 1:
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        kept = (sizes >= min_voxels) | (sizes == sizes.max())
        kept[0] = False
        mask = kept[parts]
    return np.asarray(ndimage.binary_fill_holes(mask))
