"""Mirrors clipseg3d/phantom/anatomy.py."""

import sys

import numpy as np
import pytest

from clipseg3d.phantom import anatomy
from clipseg3d.phantom.anatomy import Individual, Push
from clipseg3d.phantom.grid import PhantomGrid

GRID = PhantomGrid(4.0)
CENTRE = (38.0, -10.0, 18.0)


@pytest.fixture(scope="module")
def individual():
    return Individual.draw(np.random.default_rng(0))


@pytest.fixture(scope="module")
def brain(individual):
    return individual.anatomy(GRID)


@pytest.fixture(scope="module")
def pushed(individual):
    return individual.anatomy(GRID, [Push(CENTRE, 20.0, 8.0, 30.0)])


def ml(part):
    return float(part.sum()) * 4**3 / 1000


def at(grid, u, v, w):
    return tuple(
        int(np.argmin(np.abs(axis - p))) for axis, p in zip(grid.axes_mm, (u, v, w), strict=True)
    )


def test_tissue_adds_up(brain):
    np.testing.assert_allclose(brain.white + brain.grey + brain.csf, 1, atol=1e-5)
    outside = brain.depth_mm < 0
    assert (brain.csf[outside] == 1).all()


def test_volumes_are_those_of_a_brain(brain):
    inside = brain.depth_mm > 0
    assert 1200 < ml(inside) < 1900
    assert 300 < ml(brain.white[inside]) < 800
    assert 450 < ml(brain.grey[inside]) < 1000
    assert 5 < ml(brain.ventricle) < 60


def test_left_of_the_brain_has_positive_u_and_front_comes_first(brain):
    assert brain.lateral_mm[-1].mean() > 30
    assert brain.lateral_mm[0].mean() < -30
    # Behind and below lies the cerebellum, in front and below there is no brain.
    assert brain.depth_mm[at(GRID, 25, 50, -40)] > 5
    assert brain.depth_mm[at(GRID, 25, -65, -45)] < -5
    # No tumour starts or goes there; the frontal lobe is open to them.
    u, v, w = np.broadcast_arrays(*GRID.mesh)
    assert not brain.growth_mask[(np.abs(u) < 35) & (v > 35) & (w < -26)].any()
    frontal = (v < -30) & (w > 0) & (brain.depth_mm > 5) & (brain.white > 0.8)
    assert brain.growth_mask[frontal].mean() > 0.9
    # Ventricles lie in the middle.
    assert np.abs(brain.lateral_mm[brain.ventricle > 0.5]).max() < 35


def test_individuals_differ_and_the_hemispheres_too(brain):
    other = Individual.draw(np.random.default_rng(1)).anatomy(GRID)
    assert np.abs(other.white - brain.white).mean() > 0.03
    assert np.abs(brain.white - brain.white[::-1]).mean() > 0.03


def test_a_push_spares_the_surface_and_moves_the_midline_away(brain, pushed):
    np.testing.assert_array_equal(brain.depth_mm, pushed.depth_mm)
    shell = (brain.depth_mm > 0) & (brain.depth_mm < 2)
    assert np.abs(pushed.lateral_mm - brain.lateral_mm)[shell].max() < 2
    midline = at(GRID, 0, -10, 18)
    # The tumour is on the left: what lay left of the middle has moved into it.
    assert pushed.lateral_mm[midline] > brain.lateral_mm[midline] + 1
    far = at(GRID, -60, -10, 18)
    assert abs(pushed.lateral_mm[far] - brain.lateral_mm[far]) < 1


def test_a_push_compresses_the_ventricles(brain, pushed):
    assert ml(pushed.ventricle) < 0.9 * ml(brain.ventricle)


def test_coarse_voxels_average_tissue(individual):
    fine, coarse = (individual.anatomy(PhantomGrid(s)) for s in (3.0, 6.0))
    for name in ("white", "grey"):
        shares = [getattr(a, name)[a.depth_mm > 0].mean() for a in (fine, coarse)]
        assert shares[0] == pytest.approx(shares[1], abs=0.05)


def test_without_nilearn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "clipseg3d\[phantom\]"'):
        anatomy._load_atlas.__wrapped__()
