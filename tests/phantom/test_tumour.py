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
    anatomies = tissue(GROWTH_GRID, **options), tissue(grid, **options)
    return grow(rng, plan, anatomies[0], grid, anatomies[1]).tumour()


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


def shared(plan, seed, **shares):
    rng = np.random.default_rng(seed)
    return plan.with_shares(rng, **{"plain_share": None, "cavity_share": 0.0, **shares})


def test_shares_of_kinds_and_of_resections_are_those_asked_for():
    kinds = [shared(PLAN, seed, plain_share=1 / 3).kind for seed in range(600)]
    assert set(kinds) == {"plain", "necrotic"}
    assert np.mean([kind == "plain" for kind in kinds]) == pytest.approx(1 / 3, abs=0.06)
    resected = [shared(PLAN, seed, cavity_share=0.25).resected for seed in range(600)]
    assert np.mean(resected) == pytest.approx(0.25, abs=0.06)
    plain = replace(PLAN, kind="plain")
    others = [shared(plain, seed, plain_share=0.0).kind for seed in range(600)]
    assert np.mean([kind == "necrotic" for kind in others]) == pytest.approx(0.62 / 0.89, abs=0.06)
    assert set(others) == {"necrotic", "solid", "spotted"}


def test_shares_change_nothing_else_and_add_up():
    for seed in range(20):
        plans = [shared(PLAN, seed, plain_share=share) for share in (None, 0.0, 0.5, 1.0)]
        assert plans[0].kind == plans[1].kind == "necrotic"
        assert plans[3].kind == "plain"
        assert len({plan.resection for plan in plans}) == 1
        assert 0.5 <= plans[0].resection <= 0.9
        for plan in plans:
            assert replace(plan, kind=PLAN.kind, resection=PLAN.resection) == PLAN
        small = {shared(PLAN, seed, plain_share=share).kind for share in (0.2, 0.4)}
        assert small != {"plain"} or plans[3].kind == "plain"


def resected(**changes):
    plan = replace(PLAN, resected=True, **changes)
    anatomies = tissue(GROWTH_GRID), tissue(GRID)
    growth = grow(np.random.default_rng(0), plan, anatomies[0], GRID, anatomies[1])
    return growth.tumour(), growth.tumour(replace(plan, resected=False))


@pytest.mark.parametrize("resection", [0.5, 0.8])
def test_a_resection_takes_its_share_from_the_middle(resection):
    tumour, before = resected(resection=resection)
    core, cavity = core_of(before.label), tumour.label == 3
    assert cavity.sum() / core.sum() == pytest.approx(resection, abs=0.05)
    depth = ndimage.distance_transform_edt(core)
    assert depth[cavity].mean() > depth[core & ~cavity].mean() + 0.5
    assert ndimage.label(cavity, structure=np.ones((3, 3, 3)))[1] == 1
    np.testing.assert_array_equal(tumour.cavity, cavity)
    total = tumour.oedema + tumour.solid + tumour.necrosis + tumour.enhancing
    assert not total[cavity].any()
    np.testing.assert_array_equal(tumour.enhancing[~cavity], before.enhancing[~cavity])


def test_a_resection_leaves_something_of_a_tiny_core():
    tumour, _ = resected(tc_ml=0.13, resection=0.9)  # two voxels
    assert core_of(tumour.label).any()


def test_necrosis_can_be_put_inside_other_kinds_and_taken_out():
    plain = grown(replace(PLAN, kind="plain", necrosis=True))
    assert set(np.unique(plain.label)) == {0, 1, 2}
    np.testing.assert_array_equal(plain.necrosis, plain_tumour().necrosis)
    without = grown(replace(PLAN, necrosis=False))
    np.testing.assert_array_equal(without.label, plain_tumour().label)
    assert not without.necrosis.any()
    np.testing.assert_allclose(
        without.solid, plain_tumour().solid + plain_tumour().necrosis, atol=1e-6
    )


def blobs(*places, oedema=None):
    """A tumour of enhancing cubes of 3 voxels at some places along x, and oedema."""
    label = np.zeros((40, 9, 9), np.uint8)
    if oedema:
        label[slice(*oedema), 2:7, 2:7] = 2
    for x in places:
        label[x : x + 3, 3:6, 3:6] = 4
    zero = np.zeros(label.shape, np.float32)
    parts = [(label == value).astype(np.float32) for value in (2, 4)]
    return module.Tumour(label, parts[0], zero, zero, parts[1], zero)


def test_smaller_foci_become_the_oedema_that_connects_them():
    tumour = blobs(5, 6, 12, oedema=(3, 18)).main_focus()
    np.testing.assert_array_equal(tumour.label, blobs(5, 6, oedema=(3, 18)).label)
    np.testing.assert_array_equal(tumour.oedema, (tumour.label == 2).astype(np.float32))
    np.testing.assert_array_equal(tumour.enhancing, (tumour.label == 4).astype(np.float32))


def test_smaller_foci_vanish_where_nothing_connects_them():
    far = blobs(30)
    both = blobs(5, 6, oedema=(3, 18)).plus(far)
    assert ndimage.label(both.label)[1] == 2
    np.testing.assert_array_equal(both.enhancing[25:], far.enhancing[25:])
    alone = both.main_focus()
    np.testing.assert_array_equal(alone.label, blobs(5, 6, oedema=(3, 18)).label)
    assert not alone.enhancing[25:].any()


def test_two_tumours_do_not_touch():
    first, second = blobs(5, oedema=(3, 12)), blobs(12, oedema=(10, 20))
    both = first.plus(second)
    assert not both.label[12].any()
    assert set(np.unique(both.label[13:15])) == {0, 2, 4}
    total = both.oedema + both.solid + both.necrosis + both.enhancing + both.cavity
    assert total.max() <= 1


def test_another_focus_starts_apart_where_there_is_room():
    brain = tissue(GROWTH_GRID)
    growth = grow(np.random.default_rng(0), PLAN, brain, GRID, tissue(GRID))
    allowed = growth.apart(brain, 25.0)
    positions = np.argwhere(allowed) * GROWTH_GRID.spacing_mm
    core = np.array(PLAN.foci[0]) * GROWTH_GRID.spacing_mm
    distances = np.linalg.norm(positions - core, axis=1)
    radius_mm = (70_000 * 3 / 4 / np.pi) ** (1 / 3)  # of the whole tumour, if it were a sphere
    assert radius_mm + 15 < distances.min() < radius_mm + 35
    assert growth.apart(brain, 1000.0).any()  # no room, and yet a place
