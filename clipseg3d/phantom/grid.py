"""Voxel grids in millimetres, and smooth noise that is the same on every grid.

Positions inside the brain are ``(u, v, w)`` in mm from its centre. They increase towards patient
left, posterior and superior, like the indices of the array axes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating]
Bool = NDArray[np.bool_]

FIELD_MM = (240.0, 240.0, 155.0)
"""Field of view of BraTS."""
CENTRE_MM = (119.5, 130.5, 68.0)
"""Centre of the brain, measured from the right, anterior, inferior corner of the field of view."""
HALF_BOX_MM = (80.0, 100.0, 82.0)
"""Half of the edges of a box around that centre which contains every brain."""


class PhantomGrid:
    """Voxel grid of the box that contains the brain.

    The first voxel of every grid starts at the corner of the BraTS field of view, so that grids of
    different spacing cover the same space.

    Args:
        spacing_mm: edge of the cubic voxel, in mm.

    Attributes:
        shape: number of voxels of the whole field of view along x, y and z.
        box: slices that cut the brain's box out of the field of view.
        axes_mm: u, v and w of the voxel centres in the box, one array per axis.
    """

    def __init__(self, spacing_mm: float) -> None:
        self.spacing_mm = spacing_mm
        self.shape = tuple(math.ceil(length / spacing_mm) for length in FIELD_MM)
        self.axes_mm: list[Float] = []
        box: list[slice] = []
        for n, centre, half in zip(self.shape, CENTRE_MM, HALF_BOX_MM, strict=True):
            position = (np.arange(n) + 0.5) * spacing_mm
            inside = np.flatnonzero(np.abs(position - centre) <= half)
            box.append(slice(int(inside[0]), int(inside[-1]) + 1))
            self.axes_mm.append((position[inside] - centre).astype(np.float32))
        self.box = (box[0], box[1], box[2])

    @property
    def size(self) -> tuple[int, int, int]:
        """Number of voxels of the box along x, y and z."""
        x, y, z = (len(axis) for axis in self.axes_mm)
        return x, y, z

    @property
    def mesh(self) -> tuple[Float, Float, Float]:
        """The positions u, v and w, with shapes that broadcast over the box."""
        u, v, w = self.axes_mm
        return u[:, None, None], v[None, :, None], w[None, None, :]

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel index to world coordinates, LPS; the 1 mm grid has the BraTS origin (0, 239, 0)."""
        s, first = self.spacing_mm, (self.spacing_mm - 1) / 2
        affine = np.diag([-s, -s, s, 1.0])
        affine[:3, 3] = -first, 239 - first, first
        return affine

    def resample(self, volume: Float, target: "PhantomGrid") -> Float:
        """Interpolate a volume in this grid's box linearly at the voxel centres of another grid."""
        weights = [
            linear_weights((positions - own[0]) / self.spacing_mm, len(own))
            for own, positions in zip(self.axes_mm, target.axes_mm, strict=True)
        ]
        return multiply_axes(volume, weights)


@dataclass(frozen=True, eq=False)
class SmoothNoise:
    """Noise with mean 0 and SD of about 1 that varies over ``scale_mm``.

    A random lattice, interpolated with Gaussians. It depends on the position in mm, not on the
    grid, and has no preferred direction.
    """

    scale_mm: float
    lattice: Float = field(repr=False)

    @classmethod
    def draw(cls, rng: np.random.Generator, scale_mm: float) -> "SmoothNoise":
        """Draw a lattice with knots one sigma apart, four of them beyond either end of the box."""
        sigma = scale_mm / math.sqrt(3)
        knots = [math.ceil(2 * half / sigma) + 9 for half in HALF_BOX_MM]
        return cls(scale_mm, rng.standard_normal(knots, dtype=np.float32))

    def on(self, grid: PhantomGrid) -> Float:
        """Return the noise at the voxel centres in the grid's box."""
        sigma = self.scale_mm / math.sqrt(3)
        bases = [
            np.exp(-0.5 * ((axis[:, None] + half) / sigma - (np.arange(n) - 4)) ** 2)
            for axis, half, n in zip(grid.axes_mm, HALF_BOX_MM, self.lattice.shape, strict=True)
        ]
        # At every position, the squares of the Gaussians of one axis add up to the root of pi.
        return multiply_axes(self.lattice, [basis / math.pi**0.25 for basis in bases])


def linear_weights(position: NDArray[np.floating], n: int) -> Float:
    """Return the matrix (m, n) that interpolates n samples at m positions, constant at the ends."""
    clipped = np.clip(position, 0, n - 1)
    return np.asarray(np.maximum(1 - np.abs(clipped[:, None] - np.arange(n)), 0), np.float32)


def multiply_axis(volume: Float, matrix: NDArray[np.floating], axis: int) -> Float:
    """Multiply one axis of a volume by a matrix (m, n); n samples become m."""
    product = np.tensordot(np.asarray(matrix, np.float32), volume, axes=(1, axis))
    return np.moveaxis(product, 0, axis)


def multiply_axes(volume: Float, matrices: Sequence[NDArray[np.floating]]) -> Float:
    """Multiply each axis of a volume by its matrix."""
    for axis, matrix in enumerate(matrices):
        volume = multiply_axis(volume, matrix, axis)
    return np.ascontiguousarray(volume)
