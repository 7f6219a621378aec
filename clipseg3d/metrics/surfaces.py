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
"""The cases of marching cubes (Lorensen and Cline, SIGGRAPH 1987): code of the corners of a cube
that lie inside the mask -> triangles between these corners and the others, drawn between midpoints
of edges. Corner (x, y, z) is bit 4 x + 2 y + z of the code. A triangle is given by the areas of its
projections along x, y and z, in eighths of a face. All other cases follow from these by rotation,
mirroring, or exchange of inside and outside."""

BLOCK = 4
"""Edge length, in voxels, of the blocks that group far elements; see :func:`distances`."""


@dataclass(frozen=True, eq=False)
class Surface:
    """A surface as a set of elements on a grid.

    Attributes:
        grid: (x, y, z) bool, True at each element; contiguous, with a margin of False.
        indices: indices of the elements in the flat grid.
        areas: areas of the elements, in mm2; 1 for border voxels, which all count the same.
    """

    grid: Mask
    indices: Indices
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
    indices = np.flatnonzero(border)
    return Surface(border.reshape(mask.shape), indices, np.ones(len(indices)))


def surface_elements(mask: Mask, spacing_mm: Spacing) -> Surface:
    """Return the surface between a mask and its background, one element per cube of 8 voxels.

    This is the surface of DeepMind's ``surface-distance``: an element lies between the voxels
    (x, y, z) and (x + 1, y + 1, z + 1), and has the total area of the triangles that marching cubes
    draws there.

    Args:
        mask: as for :func:`border_voxels`.
        spacing_mm: voxel size along x, y and z.
    """
    codes: npt.NDArray[np.uint8] = mask.ravel().view(np.uint8)
    for bits, step in zip((4, 2, 1), _steps(mask.shape), strict=True):
        codes = codes[:-step] | np.left_shift(codes[step:], bits, dtype=np.uint8)
    grid = np.zeros(mask.size, dtype=np.bool_)
    np.less(codes - np.uint8(1), 254, out=grid[: len(codes)])  # neither all outside nor all inside
    indices = np.flatnonzero(grid)
    return Surface(grid.reshape(mask.shape), indices, _areas(spacing_mm)[codes[indices]])


def distances(
    origin: Surface,
    target: Surface,
    spacing_mm: Spacing,
    *,
    share: float = 1.0,
    above_mm: float = 0.0,
    reach_mm: float = 0.0,
) -> Floats:
    """Return the distance in mm from each element of one surface to the nearest one of another.

    Short distances are found by looking at neighbours, nearest first, long ones with a k-d tree. If
    only a percentile is needed, most of the long ones are not computed exactly: all elements of a
    block have similar distances, and bounds on them tell on which side of the percentile they lie.

    Args:
        origin: surface whose distances are returned, in the order of its ``indices``.
        target: surface with at least one element, on the same grid.
        spacing_mm: voxel size along x, y and z.
        share: the percentile that must be exact, in [0, 1], by area; of all other distances, only
            on which side of it they lie. With 1, all distances are exact.
        above_mm: if the percentile is below this distance, it need not be exact, only below.
        reach_mm: distances up to this one are exact in any case.
    """
    lengths = np.full(len(origin.indices), np.inf)
    area_above = (1 - share) * origin.areas.sum() if share else np.inf
    slack = 2 * origin.areas.max(initial=0)  # a percentile between two elements depends on both
    is_target = target.grid.ravel()
    pending, indices = np.arange(len(lengths)), origin.indices  # elements without a distance yet
    for length, steps in _rings(origin.grid.shape, spacing_mm):
        if length > reach_mm and origin.areas[pending].sum() <= area_above - slack:
            return lengths
        is_near = is_target[indices + steps[0]]
        for step in steps[1:]:
            is_near |= is_target[indices + step]
        lengths[pending[is_near]] = length
        pending, indices = pending[~is_near], indices[~is_near]
    if not len(pending):
        return lengths
    tree = cKDTree(
        _points(target.indices, target.grid.shape, spacing_mm),
        leafsize=64,
        compact_nodes=False,  # compact nodes make queries from far away twice as slow
        balanced_tree=False,
    )
    points = _points(indices, origin.grid.shape, spacing_mm)
    if share == 1 or reach_mm > length:
        lengths[pending] = tree.query(points)[0]
        return lengths
    # The exact distance of one element in each block gives bounds for the others.
    chosen = _choose_per_block(indices, origin.grid.shape)
    to_query = np.flatnonzero(chosen == np.arange(len(chosen)))
    exact = np.empty(len(chosen))
    exact[to_query] = tree.query(points[to_query])[0]
    offsets = points - points[chosen]
    offset_lengths = np.sqrt(np.einsum("nd,nd->n", offsets, offsets))
    low, high = exact[chosen] - offset_lengths, exact[chosen] + offset_lengths
    at_least = _upper_quantile(low, origin.areas[pending], area_above + slack)
    at_most = _upper_quantile(high, origin.areas[pending], area_above - slack)
    if at_most <= above_mm:
        lengths[pending] = low
        return lengths
    unsure = (low <= at_most) & (high >= at_least)
    low[unsure] = tree.query(points[unsure])[0]
    lengths[pending] = np.where(high < at_least, high, low)
    return lengths


def _choose_per_block(indices: Indices, shape: tuple[int, ...]) -> Indices:
    """Choose one element per block of the grid; return, for each element, that of its block."""
    x, y, z = (index // BLOCK for index in np.unravel_index(indices, shape))
    blocks = (x * shape[1] + y) * shape[2] + z
    chosen_in = np.empty(blocks.max() + 1, dtype=np.intp)
    chosen_in[blocks] = np.arange(len(indices))
    chosen: Indices = chosen_in[blocks]
    return chosen


def _upper_quantile(values: Floats, areas: Floats, area_above: float) -> float:
    """Return the largest value for which the area at or above it is more than ``area_above``."""
    order = np.argsort(values)[::-1]
    index = int(np.searchsorted(np.cumsum(areas[order]), area_above, side="right"))
    return float(values[order[min(index, len(order) - 1)]])


def _steps(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return the distance of neighbours along x, y and z in the flat grid, in indices."""
    _, y, z = shape
    return y * z, z, 1


def _points(indices: Indices, shape: tuple[int, ...], spacing_mm: Spacing) -> Floats:
    """Return the positions of elements, (n, 3), in mm."""
    points: Floats = np.stack(np.unravel_index(indices, shape), axis=1) * np.array(spacing_mm)
    return points


def _rings(shape: tuple[int, ...], spacing_mm: Spacing) -> list[tuple[float, Indices]]:
    """Return all short distances in mm, each with the steps in the flat grid that have this length.

    A step beyond the margin of the grid ends in the margin on the other side, which is empty.
    """
    lengths, offsets, starts = _neighbours(spacing_mm)
    steps = offsets @ np.array(_steps(shape))
    return list(zip(lengths, np.split(steps, starts), strict=True))


@lru_cache(maxsize=8)
def _neighbours(
    spacing_mm: Spacing,
) -> tuple[list[float], Indices, Indices]:
    """Return short distances in mm, their offsets (n, 3), and where those of each next start."""
    offsets = np.array(list(itertools.product(range(-MARGIN, MARGIN + 1), repeat=3)))
    lengths = np.sqrt(((offsets * spacing_mm) ** 2).sum(axis=1))
    complete = lengths < (MARGIN + 1) * min(spacing_mm)  # all offsets of such a length are listed
    offsets, lengths = offsets[complete], lengths[complete]
    order = np.argsort(lengths, kind="stable")
    offsets, lengths = offsets[order], lengths[order]
    starts = np.flatnonzero(np.diff(lengths)) + 1
    return [float(lengths[start]) for start in (0, *starts)], offsets, starts


@lru_cache(maxsize=8)
def _areas(spacing_mm: Spacing) -> Floats:
    """Return the area in mm2 of the surface in a cube of 8 voxels, (256,), by corner code."""
    x, y, z = spacing_mm
    face = np.array([y * z, x * z, x * y])
    areas = np.zeros(256)
    corners = np.array(list(itertools.product((0, 1), repeat=3)))
    for code, triangles in _TRIANGLES.items():
        inside = corners[[code >> bit & 1 == 1 for bit in range(8)]]
        projections = np.array(triangles) / 8
        for axes in itertools.permutations(range(3)):
            area = np.linalg.norm(projections[:, axes] * face, axis=1).sum()
            for mirror in corners:
                transformed = (inside ^ mirror)[:, axes]
                same_area = sum(1 << int(bit) for bit in transformed @ (4, 2, 1))
                areas[[same_area, 255 - same_area]] = area
    return areas
