"""Mirrors clipseg3d/metrics/surfaces.py."""

import math

import numpy as np
import pytest
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

from clipseg3d.metrics.mask_pair import MaskPair
from clipseg3d.metrics.surfaces import border_voxels, distances, surface_elements

ISOTROPIC = (1.0, 1.0, 1.0)


def masks(seed, *, density=0.02, size=(23, 19, 31)):
    rng = np.random.default_rng(seed)
    pair = MaskPair.cut(rng.random(size) < density, rng.random(size) < density)
    return pair.prediction, pair.reference


def positions(surface, spacing_mm):
    return np.argwhere(surface.grid) * spacing_mm


def brute_force(origin, target, spacing_mm):
    return cdist(positions(origin, spacing_mm), positions(target, spacing_mm)).min(axis=1)


def test_border_voxels_are_what_erosion_takes_away(random_pairs):
    for prediction, reference, _ in random_pairs[:60]:
        pair = MaskPair.cut(prediction, reference)
        for mask in (pair.prediction, pair.reference):
            surface = border_voxels(mask)
            np.testing.assert_array_equal(surface.grid, mask & ~binary_erosion(mask))
            np.testing.assert_array_equal(surface.indices, np.flatnonzero(surface.grid))
            assert set(surface.areas.tolist()) <= {1.0}


@pytest.mark.parametrize("spacing_mm", [ISOTROPIC, (1.0, 2.0, 5.0)])
def test_the_area_of_a_box_is_that_of_its_faces_but_for_edges_and_corners(spacing_mm):
    x, y, z = spacing_mm
    mask = np.zeros((13, 14, 15), bool)
    mask[3:10, 3:11, 3:12] = True  # 7 x 8 x 9 voxels
    surface = surface_elements(mask, spacing_mm)
    faces = 2 * (6 * 7 * x * y + 6 * 8 * x * z + 7 * 8 * y * z)
    edges = sum(
        4 * count * length * math.hypot(one, two) / 2
        for count, length, one, two in ((6, x, y, z), (7, y, x, z), (8, z, x, y))
    )
    corner = math.sqrt((y * z) ** 2 + (x * z) ** 2 + (x * y) ** 2) / 8
    assert surface.areas.sum() == pytest.approx(faces + edges + 8 * corner)


def test_the_surface_of_one_voxel_is_an_octahedron():
    mask = np.zeros((7, 7, 7), bool)
    mask[3, 3, 3] = True
    surface = surface_elements(mask, ISOTROPIC)
    assert len(surface.indices) == 8
    assert surface.areas.tolist() == pytest.approx([math.sqrt(3) / 8] * 8)


def test_the_surface_is_the_same_seen_from_outside():
    mask = masks(0, density=0.5)[0]
    filled = ~mask
    filled[[0, -1]] = filled[:, [0, -1]] = filled[:, :, [0, -1]] = False
    inner = (slice(1, -2),) * 3
    one, two = (surface_elements(m, (1.0, 2.0, 3.0)) for m in (mask, filled))
    areas = [np.zeros(mask.size) for _ in range(2)]
    for flat, surface in zip(areas, (one, two), strict=True):
        flat[surface.indices] = surface.areas
    np.testing.assert_array_equal(*(flat.reshape(mask.shape)[inner] for flat in areas))


@pytest.mark.parametrize("axes", [(1, 2, 0), (2, 1, 0), (0, 2, 1)])
def test_areas_turn_with_the_mask(axes):
    mask, spacing_mm = masks(3, density=0.4)[0], (1.0, 2.0, 3.5)
    one = surface_elements(mask, spacing_mm)
    turned = np.ascontiguousarray(mask.transpose(axes)[::-1])
    two = surface_elements(turned, tuple(spacing_mm[axis] for axis in axes))
    assert sorted(one.areas) == pytest.approx(sorted(two.areas))


@pytest.mark.parametrize("spacing_mm", [ISOTROPIC, (0.5, 1.0, 3.0), (2.0, 0.7, 0.9)])
@pytest.mark.parametrize(
    ("density", "size"), [(0.0005, (23, 19, 31)), (0.01, (23, 19, 31)), (0.3, (9, 8, 11))]
)
@pytest.mark.parametrize("elements", [True, False])
def test_distances_are_those_to_the_nearest_element(spacing_mm, density, size, elements):
    one, two = (
        surface_elements(mask, spacing_mm) if elements else border_voxels(mask)
        for mask in masks(7, density=density, size=size)
    )
    expected = brute_force(one, two, spacing_mm)
    np.testing.assert_allclose(distances(one, two, spacing_mm), expected, rtol=1e-12)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_percentile_is_exact_though_other_distances_are_not(seed, share):
    rng = np.random.default_rng(seed)
    size = (40, 50, 45)
    prediction = np.zeros(size, bool)
    prediction[2:5, 3:5, 1:4] = True
    near, far = rng.random(size) < 0.03, rng.random(size) < 0.01
    reference = (near & (np.arange(50) < 9)[:, None]) | (far & (rng.random() < 0.8))
    pair = MaskPair.cut(prediction, reference)
    one, two = border_voxels(pair.prediction), border_voxels(pair.reference)
    exact = np.sort(brute_force(two, one, ISOTROPIC))
    result = np.sort(distances(two, one, ISOTROPIC, share=share))
    rank = share * (len(exact) - 1)
    for index in (math.floor(rank), math.ceil(rank)):
        assert result[index] == pytest.approx(exact[index], rel=1e-12)
    low = distances(two, one, ISOTROPIC, share=share, above_mm=exact[math.ceil(rank)] + 1)
    assert np.sort(low)[math.ceil(rank)] < exact[math.ceil(rank)] + 1
    same = np.sort(distances(two, one, ISOTROPIC, share=share, above_mm=exact[math.floor(rank)]))
    assert same[math.ceil(rank)] == pytest.approx(exact[math.ceil(rank)], rel=1e-12)


def test_most_distances_are_not_looked_up_for_a_percentile(monkeypatch):
    looked_up = []

    class CountingTree:
        def __init__(self, points, **options):
            from scipy.spatial import cKDTree

            self.tree = cKDTree(points, **options)

        def query(self, points):
            looked_up.append(len(points))
            return self.tree.query(points)

    monkeypatch.setattr("clipseg3d.metrics.surfaces.cKDTree", CountingTree)
    prediction = np.zeros((60, 60, 60), bool)
    prediction[:3] = True
    reference = np.random.default_rng(0).random((60, 60, 60)) < 0.1
    pair = MaskPair.cut(prediction, reference)
    one, two = border_voxels(pair.prediction), border_voxels(pair.reference)
    distances(two, one, ISOTROPIC, share=0.95)
    assert 0 < sum(looked_up) < 0.4 * len(two.indices)


@pytest.mark.parametrize("reach_mm", [0.0, 1.0, 2.9, 6.0])
def test_short_distances_are_exact_where_only_they_are_asked_for(reach_mm):
    one, two = map(border_voxels, masks(9, density=0.01))
    exact = brute_force(one, two, ISOTROPIC)
    result = distances(one, two, ISOTROPIC, share=0, reach_mm=reach_mm)
    np.testing.assert_array_equal(result <= reach_mm, exact <= reach_mm)


def test_nothing_beyond_the_grid_is_seen():
    """A step past one end of the grid must not find what lies at the other end."""
    one, two = np.zeros((8, 8, 8), bool), np.zeros((8, 8, 8), bool)
    one[0, 0, 0] = two[-1, -1, -1] = True
    for mask, other in ((one, two), (two, one)):
        pair = MaskPair.cut(mask, other)
        for make in (border_voxels, lambda m: surface_elements(m, ISOTROPIC)):
            surfaces = make(pair.prediction), make(pair.reference)
            expected = brute_force(*surfaces, ISOTROPIC)
            np.testing.assert_allclose(distances(*surfaces, ISOTROPIC), expected)
