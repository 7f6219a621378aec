"""The healthy brain of a phantom: tissue maps of an average brain, deformed for each individual.

The maps are those of the ICBM152 2009 average brain. They are part of the nilearn package, so
nothing is downloaded. The average brain is blurred, so folds are drawn for every individual.

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

from clipseg3d.phantom.grid import Bool, Float, PhantomGrid, SmoothNoise

_ATLAS_TO_BRATS = (0.945, 0.945, 0.91)
"""Factors from the size of the average brain to that of BraTS, which uses another atlas."""
_COARSE_MM = 3  # voxel size of the depth map, which is smooth
_VENTRICLE_REACH_MM = 26.0
_SQUEEZE = 0.07  # share by which ventricles shrink per mm that tissue is displaced
# Scale of each deformation, and its amplitudes along u, v and w.
_DEFORMATIONS_MM = ((55.0, (3.0, 4.0, 4.0)), (24.0, (1.6, 1.6, 1.6)))


class Push(NamedTuple):
    """Displacement of tissue away from a tumour.

    Attributes:
        centre_mm: centre of the tumour (u, v, w).
        radius_mm: distance from the centre at which the displacement is largest.
        shift_mm: the largest displacement.
        reach_mm: distance beyond the radius over which the displacement falls by a factor of e.
    """

    centre_mm: tuple[float, float, float]
    radius_mm: float
    shift_mm: float
    reach_mm: float


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The healthy tissue on a grid; every array is (x, y, z) of the grid's box.

    Attributes:
        depth_mm: distance of a voxel from the surface of the brain; negative outside.
        lateral_mm: signed distance from the midline plane, positive on the left.
        white: fraction of white matter.
        grey: fraction of grey matter.
        csf: fraction of cerebrospinal fluid; the three fractions add up to 1.
        ventricle: 1 inside the ventricles, 0 outside.
        growth_mask: voxels in which a tumour may grow: supratentorial brain without falx and
            fluid.
    """

    depth_mm: Float
    lateral_mm: Float
    white: Float
    grey: Float
    csf: Float
    ventricle: Float
    growth_mask: Bool


@dataclass(frozen=True, eq=False)
class Individual:
    """The differences of one brain from the average brain; the same on every grid."""

    size: tuple[float, float, float]
    deformations: Sequence[Sequence[SmoothNoise]] = field(repr=False)
    ventricle_growth: float
    folds: Sequence[SmoothNoise] = field(repr=False)
    blur: Sequence[SmoothNoise] = field(repr=False)
    sulcus_mm: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Individual":
        """Draw the differences."""
        u, v, w = (
            float(f * size) for f, size in zip(rng.normal(1, 0.03, 3), _ATLAS_TO_BRATS, strict=True)
        )
        return cls(
            size=(u, v, w),
            deformations=[
                [SmoothNoise.draw(rng, scale) for _ in range(3)] for scale, _ in _DEFORMATIONS_MM
            ],
            ventricle_growth=float(np.clip(rng.normal(0.1, 0.15), -0.2, 0.4)),
            folds=[SmoothNoise.draw(rng, 12.0), SmoothNoise.draw(rng, 6.0)],
            blur=[SmoothNoise.draw(rng, 7.0) for _ in range(2)],
            sulcus_mm=float(rng.uniform(0.5, 2.2)),
        )

    def anatomy(self, grid: PhantomGrid, pushes: Sequence[Push] = ()) -> Anatomy:
        """Return the brain on a grid, with tissue displaced by tumours; the surface stays."""
        atlas = _load_atlas()
        position = [np.broadcast_to(axis, grid.size) for axis in grid.mesh]
        deformations = self._deformations_on(grid)
        atlas_position = self._to_atlas(position, deformations)
        depth = atlas.depth(atlas_position)
        if pushes:
            freedom = np.clip(depth / 14, 0, 1)  # tissue at the surface does not move
            source, pressure = list(position), np.zeros(grid.size, np.float32)
            for push in pushes:
                offset = [p - c for p, c in zip(position, push.centre_mm, strict=True)]
                distance = np.sqrt(sum(o**2 for o in offset)) + np.float32(1e-3)
                beyond = np.maximum(distance - push.radius_mm, 0) / push.reach_mm
                shift = push.shift_mm * np.exp(-beyond) * np.minimum(distance / push.radius_mm, 1)
                pressure += shift
                source = [
                    p - o / distance * shift * freedom for p, o in zip(source, offset, strict=True)
                ]
            atlas_position = self._to_atlas(source, deformations, pressure)
        ventricle = atlas.ventricle(atlas_position)
        white, grey, csf = self._tissue(grid, depth, ventricle, *atlas.tissue(atlas_position, grid))

        u, v, w = atlas_position
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
            growth_mask=tissue & ~cerebellum & ~brain_stem & ~falx,
        )

    def _tissue(
        self, grid: PhantomGrid, depth: Float, ventricle: Float, grey: Float, white: Float
    ) -> tuple[Float, Float, Float]:
        """Add folds to the average brain; return fractions of white and grey matter and fluid."""
        csf = np.clip(1 - grey - white, 0, 1)
        # Sulci follow the zero surface of a noise field, with cortex on both sides.
        shell = np.clip((22 - depth) / 6, 0, 1) * (ventricle < 0.2)
        fold_mm = 7 * np.abs(self.folds[0].on(grid) + 0.25 * self.folds[1].on(grid))
        half_width_mm = self.sulcus_mm * (0.6 + 0.4 * np.clip(1 - depth / 22, 0, 1))
        softness = max(0.7, 0.6 * grid.spacing_mm)
        scores = [
            white + 0.10 * self.blur[0].on(grid),
            grey + 0.35 * shell * _below(fold_mm, half_width_mm + 3.2, softness),
            csf
            + 0.55 * shell * _below(fold_mm, half_width_mm, softness)
            + 0.06 * self.blur[1].on(grid),
        ]
        # In one person, a voxel is mostly one tissue; large voxels mix tissues.
        sharpness = 1 / (0.06 + 0.02 * grid.spacing_mm)
        odds = [np.exp(sharpness * (score - 0.5)) for score in scores]
        outside, total = depth < 0, sum(odds)
        fractions = [
            np.where(outside, value, odd / total).astype(np.float32)
            for odd, value in zip(odds, (0, 0, 1), strict=True)
        ]
        return fractions[0], fractions[1], fractions[2]

    def _deformations_on(self, grid: PhantomGrid) -> list[Float]:
        """Return the displacement of tissue along u, v and w, in mm."""
        deformations = [np.zeros(grid.size, np.float32) for _ in range(3)]
        for (_, amplitudes), noises in zip(_DEFORMATIONS_MM, self.deformations, strict=True):
            for deformation, amplitude, noise in zip(deformations, amplitudes, noises, strict=True):
                deformation += amplitude * noise.on(grid)
        return deformations

    def _to_atlas(
        self,
        position: Sequence[Float],
        deformations: Sequence[Float],
        pressure: Float | None = None,
    ) -> list[Float]:
        """Return the positions of tissue in the average brain, in mm from its centre."""
        deformed = [
            p / f + deformation
            for p, f, deformation in zip(position, self.size, deformations, strict=True)
        ]
        # Wide ventricles: the surroundings of their centre are magnified; pressure shrinks them.
        centre_mm = _load_atlas().ventricle_centre_mm
        offset = [d - c for d, c in zip(deformed, centre_mm, strict=True)]
        squared = sum(o**2 for o in offset)
        growth = self.ventricle_growth - (0 if pressure is None else _SQUEEZE * pressure)
        inward = growth * np.exp(-squared / (2 * _VENTRICLE_REACH_MM**2))
        return [
            np.asarray(d - inward * o, np.float32) for d, o in zip(deformed, offset, strict=True)
        ]


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
        # This box contains the ventricles, and no other large fluid space.
        box = (np.abs(u) < 30) & (v > -42) & (v < 40) & (w > -10) & (w < 24)
        parts, _ = ndimage.label(fluid * box)
        largest = int(np.argmax(np.bincount(parts.ravel())[1:])) + 1
        filled = ndimage.gaussian_filter((parts == largest).astype(np.float32), 1.0)
        self._ventricle = np.clip(2 * filled - 0.5, 0, 1)
        indices = np.nonzero(parts == largest)
        self.ventricle_centre_mm = tuple(
            float(i.mean() - c) for i, c in zip(indices, self._centre, strict=True)
        )

    def depth(self, position: Sequence[Float]) -> Float:
        """Return the distance of positions from the surface, in mm; negative outside."""
        half = _COARSE_MM // 2
        index = [(p + c - half) / _COARSE_MM for p, c in zip(position, self._centre, strict=True)]
        return _sample(self._depth, index, "nearest")

    def ventricle(self, position: Sequence[Float]) -> Float:
        """Return 1 at positions in the ventricles, 0 elsewhere."""
        return self._at(self._ventricle, position)

    def tissue(self, position: Sequence[Float], grid: PhantomGrid) -> tuple[Float, Float]:
        """Return fractions of grey and white matter, averaged over voxels of the grid's spacing."""
        size = max(1.0, grid.spacing_mm)
        if size not in self._maps:
            sigma = 0.3 * math.sqrt(size**2 - 1)
            grey, white = (ndimage.gaussian_filter(m, sigma) for m in self._maps[1.0])
            self._maps[size] = (grey, white)
        grey, white = self._maps[size]
        return self._at(grey, position), self._at(white, position)

    def _at(self, volume: Float, position: Sequence[Float]) -> Float:
        """Interpolate a volume of 1 mm voxels at positions in mm."""
        return _sample(
            volume, [p + c for p, c in zip(position, self._centre, strict=True)], "nearest"
        )


@lru_cache(maxsize=1)
def _load_atlas() -> _Atlas:
    """Read the tissue maps from the nilearn package; kept in memory."""
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
    lps = nib.orientations.axcodes2ornt("LPS")
    volumes = []
    for image in images:
        ornt = nib.orientations.ornt_transform(nib.io_orientation(image.affine), lps)
        volumes.append(nib.apply_orientation(np.asarray(image.dataobj), ornt))
    grey, white = (np.ascontiguousarray(v, np.float32) for v in volumes[:2])
    return _Atlas(grey, white, np.ascontiguousarray(volumes[2] > 0))


def _sample(volume: Float, index: Sequence[NDArray[np.floating]], mode: str) -> Float:
    """Interpolate linearly between voxels."""
    coordinates = np.stack([np.asarray(i, np.float32) for i in index])
    return np.asarray(
        ndimage.map_coordinates(volume, coordinates, order=1, mode=mode, output=np.float32)
    )


def _below(value: Float, bound: Float, softness: float) -> Float:
    """Return 1 below a bound and 0 above, with a linear transition ``2 * softness`` wide."""
    return np.asarray(np.clip((bound - value) / (2 * softness) + 0.5, 0, 1), np.float32)
