"""The healthy brain of a phantom: an average brain's tissue maps, bent into an individual.

The maps are those of the ICBM152 2009 average, which nilearn ships; they are read from its package
without any download. Averaging has blurred them, so folds are drawn anew for every individual.

Source of the maps: Fonov et al., NeuroImage, 2011, https://doi.org/10.1016/j.neuroimage.2010.07.033.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clipseg3d.phantom.grid import (
    Bool,
    Float,
    PhantomGrid,
    SmoothNoise,
)

_ATLAS_TO_BRATS = (0.945, 0.945, 0.91)
"""The average brain is larger than those in BraTS, which lie in another atlas' space."""
_COARSE_MM = 3  # of the maps that are smooth anyway
_VENTRICLE_REACH_MM = 26.0
_SQUEEZE = 0.07  # ventricles shrink by this share per mm that tissue is pushed aside
# Amplitude of the bends along u, v and w at each scale.
_BENDS_MM = ((55.0, (3.0, 4.0, 4.0)), (24.0, (1.6, 1.6, 1.6)))


class Push(NamedTuple):
    """Tissue displaced away from a tumour.

    Attributes:
        centre_mm: (u, v, w).
        radius_mm: displacement is largest there.
        shift_mm: the largest displacement.
        reach_mm: beyond the radius the displacement falls by a factor e over this length.
    """

    centre_mm: tuple[float, float, float]
    radius_mm: float
    shift_mm: float
    reach_mm: float


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The healthy tissue on a grid; every array is (x, y, z) of the grid's box.

    Attributes:
        depth_mm: how far below the brain's surface a voxel lies; negative outside.
        lateral_mm: signed distance from the midline plane, positive on the left.
        white: white matter, as a fraction.
        grey: grey matter, as a fraction.
        csf: fluid, as a fraction; the three add up to 1.
        ventricle: 1 inside the ventricles, 0 outside.
        open: where a tumour may spread: supratentorial brain, neither falx nor fluid.
    """

    depth_mm: Float
    lateral_mm: Float
    white: Float
    grey: Float
    csf: Float
    ventricle: Float
    open: Bool


@dataclass(frozen=True, eq=False)
class Individual:
    """What makes one brain differ from the average one; the same on every grid."""

    size: tuple[float, float, float]
    bends: Sequence[Sequence[SmoothNoise]] = field(repr=False)
    ventricle_growth: float
    folds: Sequence[SmoothNoise] = field(repr=False)
    blur: Sequence[SmoothNoise] = field(repr=False)
    sulcus_mm: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Individual":
        """Draw one."""
        u, v, w = (
            float(f * size) for f, size in zip(rng.normal(1, 0.03, 3), _ATLAS_TO_BRATS, strict=True)
        )
        return cls(
            size=(u, v, w),
            bends=[[SmoothNoise.draw(rng, scale) for _ in range(3)] for scale, _ in _BENDS_MM],
            ventricle_growth=float(np.clip(rng.normal(0.1, 0.15), -0.2, 0.4)),
            folds=[SmoothNoise.draw(rng, 12.0), SmoothNoise.draw(rng, 6.0)],
            blur=[SmoothNoise.draw(rng, 7.0) for _ in range(2)],
            sulcus_mm=float(rng.uniform(0.5, 2.2)),
        )

    def anatomy(self, grid: PhantomGrid, pushes: Sequence[Push] = ()) -> Anatomy:
        """Show the brain on a grid, its tissue pushed aside by tumours; its surface stays."""
        atlas = _load_atlas()
        place = [np.broadcast_to(axis, grid.size) for axis in grid.mesh]
        bends = self._bends_on(grid)
        inside = self._in_average(place, bends)
        depth = atlas.depth(inside)
        if pushes:
            room = np.clip(depth / 14, 0, 1)
            moved, pressure = list(place), np.zeros(grid.size, np.float32)
            for push in pushes:
                away = [p - c for p, c in zip(place, push.centre_mm, strict=True)]
                far = np.sqrt(sum(a**2 for a in away)) + np.float32(1e-3)
                beyond = np.maximum(far - push.radius_mm, 0) / push.reach_mm
                shift = push.shift_mm * np.exp(-beyond) * np.minimum(far / push.radius_mm, 1)
                pressure += shift
                moved = [m - a / far * shift * room for m, a in zip(moved, away, strict=True)]
            inside = self._in_average(moved, bends, pressure)
        ventricle = atlas.ventricle(inside)
        white, grey, csf = self._tissue(grid, depth, ventricle, *atlas.tissue(inside, grid))

        u, v, w = inside
        # The tentorium rises from the back and the sides towards the midline.
        cerebellum = (v > 14) & (w < -10 - 0.25 * np.abs(u) + 0.1 * (v - 14))
        brain_stem = (v > -2) & (w < -34)
        falx = (np.abs(u) < 1.5) & (white < 0.5)
        tissue = (depth > 0.5) & (csf < 0.5) & (ventricle < 0.5)
        return Anatomy(
            depth_mm=depth,
            lateral_mm=u,
            white=white,
            grey=grey,
            csf=csf,
            ventricle=ventricle,
            open=tissue & ~cerebellum & ~brain_stem & ~falx,
        )

    def _tissue(
        self, grid: PhantomGrid, depth: Float, ventricle: Float, grey: Float, white: Float
    ) -> tuple[Float, Float, Float]:
        """Draw folds into the average brain, and decide it for white, grey and fluid."""
        csf = np.clip(1 - grey - white, 0, 1)
        # Fluid runs along the zero surface of a noise field, cortex on either side of it.
        shell = np.clip((22 - depth) / 6, 0, 1) * (ventricle < 0.2)
        fold_mm = 7 * np.abs(self.folds[0].on(grid) + 0.25 * self.folds[1].on(grid))
        half_mm = self.sulcus_mm * (0.6 + 0.4 * np.clip(1 - depth / 22, 0, 1))
        soft = max(0.7, 0.6 * grid.spacing_mm)
        scores = [
            white + 0.10 * self.blur[0].on(grid),
            grey + 0.35 * shell * _below(fold_mm, half_mm + 3.2, soft),
            csf + 0.55 * shell * _below(fold_mm, half_mm, soft) + 0.06 * self.blur[1].on(grid),
        ]
        # A person's voxel is one tissue or the other, but for the size of the voxel.
        sharpness = 1 / (0.06 + 0.02 * grid.spacing_mm)
        odds = [np.exp(sharpness * (score - 0.5)) for score in scores]
        outside, total = depth < 0, sum(odds)
        decided = [
            np.where(outside, beyond, odd / total).astype(np.float32)
            for odd, beyond in zip(odds, (0, 0, 1), strict=True)
        ]
        return decided[0], decided[1], decided[2]

    def _bends_on(self, grid: PhantomGrid) -> list[Float]:
        """How far tissue is bent along u, v and w, in mm."""
        bends = [np.zeros(grid.size, np.float32) for _ in range(3)]
        for (_, amplitudes), noises in zip(_BENDS_MM, self.bends, strict=True):
            for bend, amplitude, noise in zip(bends, amplitudes, noises, strict=True):
                bend += amplitude * noise.on(grid)
        return bends

    def _in_average(
        self, place: Sequence[Float], bends: Sequence[Float], pressure: Float | None = None
    ) -> list[Float]:
        """Where in the average brain the tissue at these places lies, in mm from its centre."""
        moved = [p / f + bend for p, f, bend in zip(place, self.size, bends, strict=True)]
        # Wide ventricles: what lies near their middle is magnified; under pressure it shrinks.
        middle = [m - c for m, c in zip(moved, _load_atlas().ventricle_centre_mm, strict=True)]
        far2 = sum(m**2 for m in middle)
        growth = self.ventricle_growth - (0 if pressure is None else _SQUEEZE * pressure)
        inward = growth * np.exp(-far2 / (2 * _VENTRICLE_REACH_MM**2))
        return [np.asarray(m - inward * d, np.float32) for m, d in zip(moved, middle, strict=True)]


class _Atlas:
    """Tissue maps of the average brain, in LPS voxel order at 1 mm."""

    def __init__(self, grey: Float, white: Float, brain: Bool) -> None:
        self._maps = {1.0: (grey, white)}
        (box,) = ndimage.find_objects(brain.astype(np.uint8))
        self._centre = np.array([(side.start + side.stop - 1) / 2 for side in box])
        half = _COARSE_MM // 2
        coarse = brain[half::_COARSE_MM, half::_COARSE_MM, half::_COARSE_MM]
        inside, outside = (
            ndimage.distance_transform_edt(mask, sampling=_COARSE_MM) for mask in (coarse, ~coarse)
        )
        self._depth = (inside - outside).astype(np.float32)
        fluid = (brain & (grey + white < 0.5)).astype(np.float32)
        u, v, w = np.ogrid[
            tuple(slice(-c, n - c) for c, n in zip(self._centre, brain.shape, strict=True))
        ]
        # The box holds the ventricles, and shares with them no other large space of fluid.
        box = (np.abs(u) < 30) & (v > -42) & (v < 40) & (w > -10) & (w < 24)
        parts, _ = ndimage.label(fluid * box)
        largest = int(np.argmax(np.bincount(parts.ravel())[1:])) + 1
        filled = ndimage.gaussian_filter((parts == largest).astype(np.float32), 1.0)
        self._ventricle = np.clip(2 * filled - 0.5, 0, 1)
        places = np.nonzero(parts == largest)
        self.ventricle_centre_mm = tuple(
            float(p.mean() - c) for p, c in zip(places, self._centre, strict=True)
        )

    def depth(self, place: Sequence[Float]) -> Float:
        """How far below the surface places lie, in mm; negative outside."""
        half = _COARSE_MM // 2
        index = [(p + c - half) / _COARSE_MM for p, c in zip(place, self._centre, strict=True)]
        return _sample(self._depth, index, "nearest")

    def ventricle(self, place: Sequence[Float]) -> Float:
        """1 where places lie in the ventricles."""
        return self._at(self._ventricle, place)

    def tissue(self, place: Sequence[Float], grid: PhantomGrid) -> tuple[Float, Float]:
        """Fractions of grey and white matter around places, averaged over a voxel's size."""
        size = max(1.0, grid.spacing_mm)
        if size not in self._maps:
            sigma = 0.3 * math.sqrt(size**2 - 1)
            grey, white = (ndimage.gaussian_filter(m, sigma) for m in self._maps[1.0])
            self._maps[size] = (grey, white)
        grey, white = self._maps[size]
        return self._at(grey, place), self._at(white, place)

    def _at(self, volume: Float, place: Sequence[Float]) -> Float:
        return _sample(volume, [p + c for p, c in zip(place, self._centre, strict=True)], "nearest")


@lru_cache(maxsize=1)
def _load_atlas() -> _Atlas:
    try:
        from nilearn.datasets import (
            load_mni152_brain_mask,
            load_mni152_gm_template,
            load_mni152_wm_template,
        )
    except ImportError as error:
        raise ImportError(
            'phantoms need the tissue maps of nilearn: pip install "clipseg3d[phantom]"'
        ) from error
    images = [load_mni152_gm_template(), load_mni152_wm_template(), load_mni152_brain_mask()]
    turn = nib.orientations.axcodes2ornt("LPS")
    volumes = []
    for image in images:
        ornt = nib.orientations.ornt_transform(nib.io_orientation(image.affine), turn)
        volumes.append(nib.apply_orientation(np.asarray(image.dataobj), ornt))
    grey, white = (np.ascontiguousarray(v, np.float32) for v in volumes[:2])
    return _Atlas(grey, white, np.ascontiguousarray(volumes[2] > 0))


def _sample(volume: Float, index: Sequence[NDArray[np.floating]], mode: str) -> Float:
    """Interpolate linearly between voxels."""
    places = np.stack([np.asarray(i, np.float32) for i in index])
    return np.asarray(
        ndimage.map_coordinates(volume, places, order=1, mode=mode, output=np.float32)
    )


def _below(value: Float, bound: Float, soft: float) -> Float:
    """1 where a value is below a bound, 0 where above, linear across ``2 * soft``."""
    return np.asarray(np.clip((bound - value) / (2 * soft) + 0.5, 0, 1), np.float32)
