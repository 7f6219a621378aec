"""Surfaces of masks, as border voxels or as surface elements, and the distances between them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from clipseg3d.metrics.mask_pair import MARGIN, Mask

Spacing = tuple[float, float, float]
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

_TRIANGLES: dict[int, Sequence[tuple[int, int, int]]] = {
    0b00000001: [(1, 1, 1)],
    0b00000011: [(2, 2, 0), (2, 2, 0)],
    0b00000110: [(1, 1, 1), (1, 1, 1)],
    0b00000111: [(4, 0, 0), (2, 2, 2), (1, 1, 1)],
    0b00001111: [(4, 0, 0), (4, 0, 0)],
    0b00010110: [(1, 1, 1), (1, 1, 1), (1, 1, 1)],
    0b00010111: [(1, 1, 1), (2, 2, 2), (2, 2, 2), (1, 1, 1)],
    0b00011000: [(1, 1, 1), (1, 1, 1)],
    0b00011001: [(0, 2, 2), (0, 2, 2), (1, 1, 1)],
    0b00011011: [(1, 1, 1), (3, 3, 3), (0, 2, 2), (2, 0, 2)],
    0b00011110: [(4, 0, 0), (1, 1, 1), (2, 2, 2), (1, 1, 1)],
    0b00111100: [(2, 2, 0), (2, 2, 0), (2, 2, 0), (2, 2, 0)],
    0b01101001: [(1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1)],
}
"""The cases of marching cubes (Lorensen and Cline, SIGGRAPH 1987): which corners of a cube lie
inside -> the triangles between those and the others, from one midpoint of an edge to the next.
Corner (x, y, z) is bit 4 x + 2 y + z; a triangle is given by its shadows along x, y and z, in
eighths of a face. Every other case is one of these turned, mirrored, or inside out."""


BLOCK = 4
"""Edge in voxels of the blocks in which far elements are taken together."""


@dataclass(frozen=True, eq=False)
class Surface:
    """The elements that a surface consists of.

    Attributes:
        grid: (x, y, z), True where an element is, contiguous, with a margin of False.
        places: indices of the elements in the flat grid.
        areas: of the elements, in mm2; 1 for border voxels, which all count the same.
    """

    grid: Mask
    places: Indices
    areas: Floats


def border_voxels(mask: Mask) -> Surface:
    """Return the voxels that have a face neighbour outside the mask.

    Args:
        mask: (x, y, z), contiguous, with ``MARGIN`` voxels of background around it.
    """
    flat = mask.ravel()
    steps = _steps(mask.shape)
    inside = slice(steps[0], -steps[0])
    inner = flat[inside].copy()
    for step in steps:
        for start in (steps[0] - step, steps[0] + step):
            inner &= flat[start : start + len(inner)]
    border = flat.copy()
    border[inside] ^= inner
    places = np.flatnonzero(border)
    return Surface(border.reshape(mask.shape), places, np.ones(len(places)))


def surface_elements(mask: Mask, spacing_mm: Spacing) -> Surface:
    """Return the surface between a mask and its background, one element per cube of 8 voxels.

    This is the surface of DeepMind's ``surface-distance``: an element lies between voxel
    (x, y, z) and (x + 1, y + 1, z + 1), and has the area of the triangles that marching cubes puts
    there.

    Args:
        mask: as for :func:`border_voxels`.
        spacing_mm: voxel size along x, y and z.
    """
    codes: npt.NDArray[np.uint8] = mask.ravel().view(np.uint8)
    for bits, step in zip((4, 2, 1), _steps(mask.shape), strict=True):
        codes = codes[:-step] | np.left_shift(codes[step:], bits, dtype=np.uint8)
    grid = np.zeros(mask.size, dtype=np.bool_)
    np.less(codes - np.uint8(1), 254, out=grid[: len(codes)])  # neither all outside nor all inside
    places = np.flatnonzero(grid)
    return Surface(grid.reshape(mask.shape), places, _areas(spacing_mm)[codes[places]])


def distances(
    origin: Surface,
    target: Surface,
    spacing_mm: Spacing,
    *,
    share: float = 1.0,
    above_mm: float = 0.0,
    reach_mm: float = 0.0,
) -> Floats:
    """Return the distance from every element of one surface to the nearest one of another, in mm.

    Short distances are found by looking around, ever farther; long ones in a tree. Where the one
    percentile is all that matters, most of the long ones need not be known: that neighbours are
    about equally far is enough to tell on which side of the percentile they lie.

    Args:
        origin: its distances are returned, in the order of ``places``.
        target: at least one element, on the same grid.
        spacing_mm: voxel size along x, y and z.
        share: the percentile that has to be right, in [0, 1], by area. Of
            other distances, only on which side of it they lie. With 1, all are exact.
        above_mm: a percentile below this one need not be right, but only below.
        reach_mm: distances up to this one have to be exact anyway.
    """
    found = np.full(len(origin.places), np.inf)
    beyond = (1 - share) * origin.areas.sum() if share else np.inf
    slack = 2 * origin.areas.max(initial=0)  # a percentile between two elements depends on both
    near = target.grid.ravel()
    open_, places = np.arange(len(found)), origin.places
    for length, steps in _rings(origin.grid.shape, spacing_mm):
        if length > reach_mm and origin.areas[open_].sum() <= beyond - slack:
            return found
        hit = near[places + steps[0]]
        for step in steps[1:]:
            hit |= near[places + step]
        found[open_[hit]] = length
        open_, places = open_[~hit], places[~hit]
    if not len(open_):
        return found
    tree = cKDTree(
        _points(target.places, target.grid.shape, spacing_mm),
        leafsize=64,
        compact_nodes=False,  # compact ones make queries from far away twice as slow
        balanced_tree=False,
    )
    points = _points(places, origin.grid.shape, spacing_mm)
    if share == 1 or reach_mm > length:
        found[open_] = tree.query(points)[0]
        return found
    # Distances of one element in each block bound those of the others.
    one = _one_in_each_block(places, origin.grid.shape)
    known = np.flatnonzero(one == np.arange(len(one)))
    exact = np.empty(len(one))
    exact[known] = tree.query(points[known])[0]
    apart = points - points[one]
    apart = np.sqrt(np.einsum("nd,nd->n", apart, apart))
    low, high = exact[one] - apart, exact[one] + apart
    at_least = _from_top(low, origin.areas[open_], beyond + slack)
    at_most = _from_top(high, origin.areas[open_], beyond - slack)
    if at_most <= above_mm:
        found[open_] = low
        return found
    unsure = (low <= at_most) & (high >= at_least)
    low[unsure] = tree.query(points[unsure])[0]
    found[open_] = np.where(high < at_least, high, low)
    return found


def _one_in_each_block(places: Indices, shape: tuple[int, ...]) -> Indices:
    """Return, for each element, the number of the one that stands for its block of the grid."""
    x, y, z = (index // BLOCK for index in np.unravel_index(places, shape))
    blocks = (x * shape[1] + y) * shape[2] + z
    chosen = np.empty(blocks.max() + 1, dtype=np.intp)
    chosen[blocks] = np.arange(len(places))
    one: Indices = chosen[blocks]
    return one


def _from_top(values: Floats, areas: Floats, share: float) -> float:
    """Return the largest value whose area, with those above it, is more than ``share``."""
    order = np.argsort(values)[::-1]
    index = int(np.searchsorted(np.cumsum(areas[order]), share, side="right"))
    return float(values[order[min(index, len(order) - 1)]])


def _steps(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return how far neighbours along x, y and z are apart in a flat grid."""
    _, y, z = shape
    return y * z, z, 1


def _points(places: Indices, shape: tuple[int, ...], spacing_mm: Spacing) -> Floats:
    """Return the position of elements, (n, 3), in mm."""
    points: Floats = np.stack(np.unravel_index(places, shape), axis=1) * np.array(spacing_mm)
    return points


def _rings(shape: tuple[int, ...], spacing_mm: Spacing) -> list[tuple[float, Indices]]:
    """Return every distance up to some reach, and the steps in a flat grid that lead so far.

    Steps beyond the grid's margin end in the margin on the other side, where nothing is.
    """
    lengths, offsets, starts = _neighbours(spacing_mm)
    steps = offsets @ np.array(_steps(shape))
    return list(zip(lengths, np.split(steps, starts), strict=True))


@lru_cache(maxsize=8)
def _neighbours(
    spacing_mm: Spacing,
) -> tuple[list[float], Indices, Indices]:
    """Return distances, the grid offsets (n, 3) that have them, and where each but one starts."""
    offsets = np.array(list(itertools.product(range(-MARGIN, MARGIN + 1), repeat=3)))
    lengths = np.sqrt(((offsets * spacing_mm) ** 2).sum(axis=1))
    complete = lengths < (MARGIN + 1) * min(spacing_mm)
    offsets, lengths = offsets[complete], lengths[complete]
    order = np.argsort(lengths, kind="stable")
    offsets, lengths = offsets[order], lengths[order]
    starts = np.flatnonzero(np.diff(lengths)) + 1
    return [float(lengths[start]) for start in (0, *starts)], offsets, starts


@lru_cache(maxsize=8)
def _areas(spacing_mm: Spacing) -> Floats:
    """Return the area in mm2 of the surface in a cube of 8 voxels, by which of them are inside."""
    x, y, z = spacing_mm
    face = np.array([y * z, x * z, x * y])
    areas = np.zeros(256)
    corners = np.array(list(itertools.product((0, 1), repeat=3)))
    for code, triangles in _TRIANGLES.items():
        inside = corners[[code >> bit & 1 == 1 for bit in range(8)]]
        shadows = np.array(triangles) / 8
        for axes in itertools.permutations(range(3)):
            area = np.linalg.norm(shadows[:, axes] * face, axis=1).sum()
            for mirror in corners:
                turned = (inside ^ mirror)[:, axes]
                same = sum(1 << int(bit) for bit in turned @ (4, 2, 1))
                areas[[same, 255 - same]] = area
    return areas
