"""Simulated MRI scans of a phantom: tissue parameters, signal equations, and image artefacts.

Signals follow the spin-echo and inversion-recovery equations (Bernstein et al., Handbook of MRI
Pulse Sequences, 2004, chapter 14). Relaxation times of healthy tissue are textbook values at 1.5 T.
Those of diseased tissue have a wide range, so that contrasts vary at least as much as between
scanners.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from clipseg3d.phantom.anatomy import Anatomy
from clipseg3d.phantom.grid import (
    Bool,
    Float,
    PhantomGrid,
    SmoothNoise,
    linear_weights,
    multiply_axis,
)
from clipseg3d.phantom.tumour import Tumour
from clipseg3d.vocabulary import SEQUENCES

_RELAXIVITY = 4.5, 5.5  # effect of gadolinium on 1/T1 and 1/T2, per second and mmol/l
_MIN_SIGNAL = np.float32(1.0)  # of a brain voxel; only background is 0


class Tissue(NamedTuple):
    """Properties of a tissue that determine its signal, at 1.5 T.

    Attributes:
        t1_ms: longitudinal relaxation time.
        t2_ms: transverse relaxation time.
        water: proton density, relative to fluid.
        gadolinium_mm: concentration of contrast agent, in mmol/l.
    """

    t1_ms: float
    t2_ms: float
    water: float
    gadolinium_mm: float = 0.0


# Each tissue lies between two extremes, at a point that differs between patients and positions.
_TISSUES: dict[str, tuple[Tissue, Tissue]] = {
    "white": (Tissue(600, 74, 0.70), Tissue(660, 80, 0.72)),
    "grey": (Tissue(950, 88, 0.81, 0.02), Tissue(1100, 98, 0.84, 0.03)),
    "csf": (Tissue(3800, 1500, 1.0), Tissue(4300, 2000, 1.0)),
    "oedema": (Tissue(740, 105, 0.76), Tissue(1200, 180, 0.87)),
    "solid": (Tissue(900, 140, 0.82, 0.05), Tissue(2900, 480, 0.97, 0.0)),
    "necrosis": (Tissue(950, 150, 0.84, 0.12), Tissue(2800, 500, 0.97, 0.02)),
    "enhancing": (Tissue(820, 110, 0.80, 0.04), Tissue(1200, 160, 0.87, 0.45)),
    "dura": (Tissue(800, 60, 0.45, 0.1), Tissue(1100, 90, 0.6, 0.6)),
    "blood": (Tissue(1350, 150, 0.82, 0.6), Tissue(1500, 180, 0.86, 1.5)),
}
# Range of that point over patients, 0 to 1, and how much it varies over positions.
_MIXES: dict[str, tuple[tuple[float, float], float]] = {
    "white": ((0.3, 0.7), 0.2),
    "grey": ((0.3, 0.7), 0.2),
    "csf": ((0.3, 0.7), 0.2),
    "oedema": ((0.0, 0.75), 0.28),
    "solid": ((0.0, 0.9), 0.28),
    "necrosis": ((0.0, 0.75), 0.28),
    "enhancing": ((0.0, 0.75), 0.28),
    "dura": ((0.3, 0.7), 0.2),
    "blood": ((0.3, 0.7), 0.2),
}


@dataclass(frozen=True)
class _Scanner:
    """Scanner settings of one examination."""

    tesla: float
    t1_spin_echo: tuple[bool, bool]  # for t1 and t1ce; else inversion-prepared
    t1_times_ms: tuple[tuple[float, float, float], tuple[float, float, float]]  # TR, TE, TI
    t2_times_ms: tuple[float, float]  # TR, TE
    flair_times_ms: tuple[float, float, float]  # TR, TE, and TI / TI that nulls fluid

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "_Scanner":
        """Draw settings."""
        spin_echoes, times = [], []
        for probability in (0.75, 0.5):
            spin_echo = bool(rng.random() < probability)
            spin_echoes.append(spin_echo)
            times.append(
                (rng.uniform(420, 750), rng.uniform(8, 17), 0.0)
                if spin_echo
                else (rng.uniform(1700, 2300), rng.uniform(2.5, 5), rng.uniform(800, 1100))
            )
        return cls(
            tesla=3.0 if rng.random() < 0.5 else 1.5,
            t1_spin_echo=(spin_echoes[0], spin_echoes[1]),
            t1_times_ms=(times[0], times[1]),
            t2_times_ms=(rng.uniform(2500, 6500), rng.uniform(80, 120)),
            flair_times_ms=(
                rng.uniform(7500, 11000),
                rng.uniform(90, 145),
                rng.uniform(0.92, 1.02),
            ),
        )

    def signal(self, sequence: str, tissue: Tissue, csf_t1_ms: float) -> float:
        """Return the signal magnitude of a tissue."""
        t1, t2 = tissue.t1_ms, tissue.t2_ms
        if self.tesla > 2:
            t1, t2 = t1 * (1.25 if t1 < 2500 else 1.03), t2 * 0.92
            csf_t1_ms *= 1.03
        if sequence == "t1ce":
            t1 = 1 / (1 / t1 + _RELAXIVITY[0] * tissue.gadolinium_mm / 1000)
            t2 = 1 / (1 / t2 + _RELAXIVITY[1] * tissue.gadolinium_mm / 1000)
        if sequence in ("t1", "t1ce"):
            after_contrast = sequence == "t1ce"
            tr, te, ti = self.t1_times_ms[after_contrast]
            if self.t1_spin_echo[after_contrast]:
                recovered = 1 - math.exp(-tr / t1)
            else:
                recovered = 1 - 2 * math.exp(-ti / t1) / (1 + math.exp(-tr / t1))
        elif sequence == "t2":
            tr, te = self.t2_times_ms
            recovered = 1 - math.exp(-tr / t1)
        else:
            tr, te, factor = self.flair_times_ms
            nulling_ti = csf_t1_ms * math.log(2 / (1 + math.exp(-tr / csf_t1_ms)))
            recovered = 1 - 2 * math.exp(-factor * nulling_ti / t1) + math.exp(-tr / t1)
        return tissue.water * abs(recovered) * math.exp(-te / t2)


@dataclass(frozen=True, eq=False)
class Examination:
    """One visit to the scanner.

    Attributes:
        scanner: its settings.
        grid: grid of the scans.
        anatomy: healthy tissue on the grid.
        brain: brain mask of the scans, (x, y, z) of the grid's box.
    """

    scanner: _Scanner
    grid: PhantomGrid
    anatomy: Anatomy = field(repr=False)
    brain: Bool = field(repr=False)

    @classmethod
    def draw(cls, rng: np.random.Generator, grid: PhantomGrid, anatomy: Anatomy) -> "Examination":
        """Draw settings and brain mask; the number of drawn values does not depend on the grid."""
        return cls(_Scanner.draw(rng), grid, anatomy, _brain_mask(rng, grid, anatomy))

    def scan(
        self,
        rng: np.random.Generator,
        noise_rng: np.random.Generator,
        tumours: Sequence[Tumour],
    ) -> list[Float]:
        """Simulate scans of the brain in all four sequences, once with each of some tumours.

        Only the tumour differs between them: level of noise and scale of intensities are those of
        the first, and so voxels far from a difference are equal to the last bit.

        Args:
            rng: draws tissues and artefacts; the number of drawn values does not depend on the
                grid, nor on the tumours.
            noise_rng: draws the noise of every voxel.
            tumours: diseased tissue on the grid.

        Returns:
            For each tumour (4, x, y, z) of the grid's box, integers as float32; 0 outside the
            brain.
        """
        grid, brain = self.grid, self.brain
        healthy = _Healthy.draw(rng, grid, self.anatomy)
        contents = [healthy.fractions(self.anatomy, tumour) for tumour in tumours]
        mixes = {name: _mix(rng, grid, *_MIXES[name]) for name in _TISSUES}
        tissues = {
            name: tuple(_vary(rng, tissue) for tissue in pair) for name, pair in _TISSUES.items()
        }
        csf_t1_ms = tissues["csf"][0].t1_ms
        # Flowing blood leaves the slice before its signal is measured.
        blood_gain = dict(
            zip(SEQUENCES, rng.uniform((0.2, 0.5, 0.05, 0.05), (0.9, 1, 0.4, 0.4)), strict=True)
        )
        peak = math.exp(rng.uniform(math.log(255), math.log(32767)))
        thick_axis = int(rng.choice([0, 1, 2], p=[0.12, 0.13, 0.75]))
        top_mm = grid.axes_mm[2][brain.any(axis=(0, 1))].max()

        images = [np.zeros((len(SEQUENCES), *grid.size), np.float32) for _ in tumours]
        for i, sequence in enumerate(SEQUENCES):
            volumes = [np.zeros(grid.size, np.float32) for _ in tumours]
            for name in contents[0]:
                first, second = (self.scanner.signal(sequence, t, csf_t1_ms) for t in tissues[name])
                gain = blood_gain[sequence] if name == "blood" else 1.0
                for volume, fractions in zip(volumes, contents, strict=True):
                    volume += fractions[name] * gain * (first + (second - first) * mixes[name])
            bias = rng.uniform(0.02, 0.16) * SmoothNoise.draw(rng, 80.0).on(grid)
            grain = rng.uniform(0, 0.07) * SmoothNoise.draw(rng, 4.5).on(grid)
            sensitivity, blur = np.exp(bias + grain) * brain, rng.uniform(0.3, 0.8)
            volumes = [
                ndimage.gaussian_filter(volume * sensitivity, blur / grid.spacing_mm)
                for volume in volumes
            ]
            thick, thickness_mm, offset = rng.random() < 0.5, rng.uniform(2.0, 5.5), rng.uniform()
            if thick and thickness_mm > grid.spacing_mm:
                thickness = thickness_mm / grid.spacing_mm
                volumes = [_thick_slices(v, thick_axis, thickness, offset) for v in volumes]
            # Rician noise: the magnitude of a complex signal with noise in both parts.
            level = np.float32(rng.uniform(0.01, 0.045) * volumes[0][brain].mean())
            real, imaginary = level * noise_rng.standard_normal((2, *grid.size), dtype=np.float32)
            volumes = [np.hypot(volume + real, imaginary) for volume in volumes]
            # Intensities have no unit; the maxima of BraTS files lie between 255 and 32767.
            scale = max(255.0, peak * rng.uniform(0.4, 1)) / volumes[0][brain].max()
            cut_off, cut_mm = rng.random() < 0.03, rng.uniform(6, 22)
            for image, volume in zip(images, volumes, strict=True):
                image[i] = np.where(brain, np.maximum(np.rint(volume * scale), _MIN_SIGNAL), 0)
                if cut_off:  # the field of view ends within the head
                    image[i, :, :, grid.axes_mm[2] > top_mm - cut_mm] = 0
        return images


def _mix(
    rng: np.random.Generator, grid: PhantomGrid, mean_range: tuple[float, float], spread: float
) -> Float:
    """Return where a tissue lies between its two extremes, 0 to 1."""
    mean = rng.uniform(*mean_range)
    fine, wide = (SmoothNoise.draw(rng, mm).on(grid) for mm in (8.0, 22.0))
    return np.clip(mean + spread * (fine + 0.8 * wide), 0, 1)


def _brain_mask(rng: np.random.Generator, grid: PhantomGrid, anatomy: Anatomy) -> Bool:
    """Return the brain mask of an imperfect skull-stripping, too large or too small in parts."""
    offset, waviness = rng.normal(-0.8, 0.8), rng.uniform(0.2, 1.3)
    surface = anatomy.depth_mm + offset + waviness * SmoothNoise.draw(rng, 22.0).on(grid)
    parts, _ = ndimage.label(surface > 0)
    largest = int(np.argmax(np.bincount(parts.ravel())[1:])) + 1
    return np.asarray(parts == largest)


@dataclass(frozen=True, eq=False)
class _Healthy:
    """What one brain has beside its tissue maps: ageing, blood vessels and dura."""

    aged: Float
    blood: Float
    dura_share: Float

    @classmethod
    def draw(cls, rng: np.random.Generator, grid: PhantomGrid, anatomy: Anatomy) -> "_Healthy":
        """Draw it."""
        # Ageing white matter around the ventricles is also bright on FLAIR, but is no tumour.
        ageing = float(np.clip(rng.normal(0.2, 0.3), 0, 0.8))
        noise = SmoothNoise.draw(rng, 10.0).on(grid)
        halo = ndimage.gaussian_filter(anatomy.ventricle, 3.0 / grid.spacing_mm)
        scars = np.clip(noise - 1.9, 0, 1) * (anatomy.depth_mm > 12)
        aged = ageing * np.clip(1.6 * halo * (1 + 0.5 * noise) + scars, 0, 1)
        blood = _vessels(rng, grid, anatomy)
        # After skull-stripping, the surface shows more dura than fluid.
        dura_share = np.clip(0.9 - anatomy.depth_mm / 2.5, 0, 1) * float(rng.uniform(0.6, 1))
        return cls(aged, blood, dura_share)

    def fractions(self, anatomy: Anatomy, tumour: Tumour) -> dict[str, Float]:
        """Return the fraction of each tissue in every voxel."""
        core = tumour.solid + tumour.necrosis + tumour.enhancing + tumour.cavity
        healthy = 1 - core - tumour.oedema * (1 - core)
        oedema = tumour.oedema * (1 - core)
        blood = self.blood * (tumour.label == 0)
        white, grey, csf = (
            healthy * part * (1 - blood) for part in (anatomy.white, anatomy.grey, anatomy.csf)
        )
        dura = csf * self.dura_share
        return {
            "dura": dura,
            "white": white * (1 - self.aged),
            "grey": grey,
            "csf": csf - dura + tumour.cavity,
            "oedema": oedema + white * self.aged,
            "solid": tumour.solid,
            "necrosis": tumour.necrosis,
            "enhancing": tumour.enhancing,
            "blood": healthy * blood,
        }


def _vessels(rng: np.random.Generator, grid: PhantomGrid, anatomy: Anatomy) -> Float:
    """Return the fraction of blood in every voxel: sinuses, choroid plexus, thin vessels."""
    s = grid.spacing_mm
    lateral, depth = np.abs(anatomy.lateral_mm), anatomy.depth_mm
    _, v, w = grid.mesh
    fraction = float(rng.uniform(0.2, 0.9))
    sinus = (lateral < 2.5) & (depth < 4) & ((w > 15) | (v > 50))
    plexus = (anatomy.ventricle > 0.6) & (v > 10) & (SmoothNoise.draw(rng, 7.0).on(grid) > 1.0)
    blood = fraction * (sinus | plexus).astype(np.float32)
    # The points where two noise fields are both 0 form winding lines.
    first, second = (SmoothNoise.draw(rng, 11.0).on(grid) for _ in range(2))
    distance_mm = np.hypot(first, second) * 6.0
    share = float(rng.uniform(0.1, 0.8))
    lines = np.clip(1.0 - distance_mm / max(1.0, 0.6 * s), 0, 1) * (depth < 28) * min(1.0, 1.5 / s)
    return np.asarray(np.maximum(blood, share * lines), np.float32)


def _vary(rng: np.random.Generator, tissue: Tissue) -> Tissue:
    """Return a tissue that differs a little, as it does between patients."""
    t1, t2, water, gadolinium = np.exp(rng.normal(0, (0.06, 0.07, 0.02, 0.3)))
    return Tissue(
        tissue.t1_ms * float(t1),
        tissue.t2_ms * float(t2),
        min(1.0, tissue.water * float(water)),
        tissue.gadolinium_mm * float(gadolinium),
    )


def _thick_slices(volume: Float, axis: int, thickness: float, offset: float) -> Float:
    """Average along an axis over slices, ``thickness`` voxels each, and interpolate back."""
    n = volume.shape[axis]
    edges = (np.arange(math.ceil(n / thickness) + 2) - 1 + offset) * thickness - 0.5
    low = np.maximum(edges[:-1, None], np.arange(n) - 0.5)
    high = np.minimum(edges[1:, None], np.arange(n) + 0.5)
    overlap = np.maximum(high - low, 0)
    inside = overlap.sum(axis=1) > 0
    averaging = overlap[inside] / overlap[inside].sum(axis=1, keepdims=True)
    centres = ((edges[:-1] + edges[1:]) / 2)[inside]
    interpolation = linear_weights((np.arange(n) - centres[0]) / thickness, len(centres))
    return np.ascontiguousarray(multiply_axis(volume, interpolation @ averaging, axis))
