"""Mirrors clipseg3d/phantom/tumour.py."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from scipy import ndimage

from clipseg3d.phantom import tumour as module
from clipseg3d.phantom.anatomy import Anatomy
from clipseg3d.phantom.grid import PhantomGrid
from clipseg3d.phantom.tumour import GROWTH_GRID, TumourPlan, grow

GRID = PhantomGrid(4.0)
PLAN = TumourPlan(
    kind="necrotic",
    foci=[tuple(n // 2 for n in GROWTH_GRID.size)],
    starts=[0.0],
    tc_ml=30.0,
    oedema_ml=40.0,
    rim_mm=3.5,
    gap=0.0,
    speed=0.15,
    grey_speed=0.3,
    swelling=1.0,
)


def tissue(grid, *, grey=False, wall=False):
    """A brain of white matter; its left half grey, or a wall of fluid through its middle."""
    shape = grid.size
    u = np.broadcast_to(grid.mesh[0], shape)
    is_grey = (u > 0) if grey else np.zeros(shape, bool)
    is_csf = (np.abs(u - 18) < 3.1) if wall else np.zeros(shape, bool)
    return Anatomy(
        depth_mm=np.full(shape, 30, np.float32),
        lateral_mm=u.astype(np.float32),
        white=(~is_grey & ~is_csf).astype(np.float32),
        grey=(is_grey & ~is_csf).astype(np.float32),
        csf=is_csf.astype(np.float32),
        ventricle=np.zeros(shape, np.float32),
        growth_mask=~is_csf,
    )


@lru_cache(maxsize=1)
def plain_tumour():
    """The tumour that PLAN grows in white matter."""
    return grown()


def grown(plan=PLAN, seed=0, grid=GRID, **options):
    rng = np.random.default_rng(seed)
    return grow(rng, plan, tissue(GROWTH_GRID, **options), grid, tissue(grid, **options))


def ml(mask, grid=GRID):
    return float(mask.sum()) * grid.spacing_mm**3 / 1000


def core_of(label):
    return np.isin(label, (1, 4))


@pytest.mark.parametrize("spacing_mm", [3.0, 5.0])
def test_volumes_are_those_planned(spacing_mm):
    grid = PhantomGrid(spacing_mm)
    label = grown(grid=grid).label
    assert ml(core_of(label), grid) == pytest.approx(30, rel=0.1)
    assert ml(label == 2, grid) == pytest.approx(40, rel=0.1)


def test_the_core_lies_at_its_focus_and_in_oedema():
    label = plain_tumour().label
    core = core_of(label)
    focus = [axis[i] for axis, i in zip(GROWTH_GRID.axes_mm, PLAN.foci[0], strict=True)]
    centre = [
        np.interp(c, np.arange(len(axis)), axis)
        for c, axis in zip(ndimage.center_of_mass(core), GRID.axes_mm, strict=True)
    ]
    np.testing.assert_allclose(centre, focus, atol=8)
    assert (ndimage.binary_dilation(core) & (label == 2)).any()


def test_cells_spread_faster_in_white_matter():
    cells = module._spread_cells(PLAN, tissue(GROWTH_GRID, grey=True))
    u = np.broadcast_to(GROWTH_GRID.mesh[0], cells.shape)
    assert ml(cells[u < 0] > 0.5, GROWTH_GRID) > 1.2 * ml(cells[u > 0] > 0.5, GROWTH_GRID)


def test_nothing_grows_in_fluid_nor_through_it():
    cells = module._spread_cells(PLAN, tissue(GROWTH_GRID, wall=True))
    u = np.broadcast_to(GROWTH_GRID.mesh[0], cells.shape)
    assert cells[u > 15].max() == 0
    label = grown(wall=True).label
    assert not core_of(label)[np.broadcast_to(GRID.mesh[0], label.shape) > 16].any()


def test_cells_stay_between_0_and_1_and_spread_out_evenly_without_growth():
    flow = module._Diffusion(np.ones((9, 9, 9), np.float32))
    cells = np.zeros((9, 9, 9), np.float32)
    cells[4, 4, 4] = 1
    for _ in range(6):
        cells += flow(cells)
        assert cells.min() >= 0
        assert cells.sum() == pytest.approx(1, rel=1e-5)
    # one step of diffusion widens each axis by twice the step in variance
    spread = (cells * (np.arange(9) - 4)[:, None, None] ** 2).sum()
    assert spread == pytest.approx(2 * 0.15 * 6, rel=0.02)


@pytest.mark.parametrize("kind", ["necrotic", "solid", "spotted", "plain"])
def test_kinds_enhance_as_they_are_called(kind):
    tumour = grown(replace(PLAN, kind=kind))
    label = tumour.label
    share = (label == 4).sum() / core_of(label).sum()
    low, high = {
        "necrotic": (0.2, 0.95),
        "solid": (1.0, 1.0),
        "spotted": (0.005, 0.15),
        "plain": (0, 0),
    }[kind]
    assert low <= share <= high
    assert (tumour.necrosis.max() > 0.5) == (kind == "necrotic")
    assert (tumour.solid.max() > 0.5) == (kind in ("spotted", "plain"))


def test_spots_are_small():
    for seed in range(2):
        label = grown(replace(PLAN, kind="spotted"), seed).label
        assert 0 < (label == 4).sum() / core_of(label).sum() < 0.149


def test_necrosis_lies_behind_the_rim():
    label = plain_tumour().label
    assert not (ndimage.binary_dilation(~core_of(label)) & (label == 1)).any()


def test_a_thick_rim_leaves_less_necrosis():
    thick = grown(replace(PLAN, rim_mm=7.0)).necrosis.sum()
    assert thick < 0.7 * grown(replace(PLAN, rim_mm=2.5)).necrosis.sum()


def test_gaps_let_the_core_reach_the_oedema():
    label = grown(replace(PLAN, gap=0.4)).label
    assert (ndimage.binary_dilation(~core_of(label)) & (label == 1)).any()


def test_a_second_focus_grows_apart_from_the_first():
    x, y, z = PLAN.foci[0]
    plan = replace(PLAN, foci=[(x, y, z), (x - 18, y, z)], starts=[0.0, 0.1], oedema_ml=5.0)
    _, count = ndimage.label(core_of(grown(plan).label))
    assert count == 2


def test_fractions_follow_the_labels():
    tumour = plain_tumour()
    total = tumour.oedema + tumour.solid + tumour.necrosis + tumour.enhancing
    assert total.max() <= 1.01
    away = ~ndimage.binary_dilation(tumour.label > 0, iterations=4)
    assert total[away].max() < 1e-3
    assert tumour.enhancing[tumour.label == 4].mean() > tumour.enhancing[tumour.label == 1].mean()


def test_plans_are_drawn_in_open_white_matter():
    brain = tissue(GROWTH_GRID, grey=True)
    for seed in range(10):
        plan = TumourPlan.draw(np.random.default_rng(seed), brain)
        assert brain.white[plan.foci[0]] > 0.5
        assert len(plan.starts) == len(plan.foci)
        assert plan.starts[0] == 0
