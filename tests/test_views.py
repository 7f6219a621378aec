"""Mirrors clipseg3d/views.py. Sizes differ pairwise, so a swapped axis fails."""

import statistics
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipseg3d.intensity import intensity_statistics
from clipseg3d.views import (
    SLICES_PER_AXIS,
    Views,
    cut_reduced_views,
    cut_views,
    lesion_energy,
    views_without,
)
from clipseg3d.vocabulary import SEQUENCES

B, S, X, Y, Z = 2, 4, 11, 19, 15
AXIAL, CORONAL, SAGITTAL = 0, 1, 2


@pytest.fixture
def volume():
    """Integers from 1 to 255 everywhere, so that grey levels can be read off the views."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (B, S, X, Y, Z), generator=generator).float()


def byte_range(batch=B):
    """Statistics under which an intensity is its own grey level."""
    return torch.tensor([0.0, 255.0, 0.0, 1.0]).expand(batch, S, 4)


def brain_like():
    """A volume whose brain fills part of the grid, with skewed intensities."""
    generator = torch.Generator().manual_seed(0)
    inside = torch.zeros(X, Y, Z)
    inside[2:9, 3:18, 1:12] = 1
    return (200 * torch.rand(B, S, X, Y, Z, generator=generator).square() + 5) * inside


def zscore(volume, stats):
    low, high, mean, std = stats.permute(2, 0, 1)[..., None, None, None]
    return (volume.clamp(low, high) - mean) / std * (volume != 0)


@pytest.fixture
def coordinates():
    """Voxels that say where they are: 10 (x + 1), 10 (y + 1), 10 (z + 1) and 255."""
    grids = torch.meshgrid(torch.arange(X), torch.arange(Y), torch.arange(Z), indexing="ij")
    marks = [10 * (grid + 1) for grid in grids]
    return torch.stack([*marks, torch.full((X, Y, Z), 255)]).float()[None]


def slices_of(views, v, axis):
    """Return the index that every voxel of view v of :func:`coordinates` has on an axis."""
    shown = views.images[0, v]
    return (shown[shown[..., 3] == 255][:, axis].unique() // 10 - 1).tolist()


def as_image(plane):
    """Turn sequences (s, h, w) into (h, w, s)."""
    return np.moveaxis(plane, 0, -1)


def assert_same(views, expected):
    assert torch.equal(views.images, expected.images)
    assert torch.equal(views.planes, expected.planes)


# what views show


def test_views_are_the_xy_xz_and_yz_planes(volume):
    # Size 19 and 15 leave the padded planes unresized.
    wide, narrow = cut_views(volume, byte_range(), size=Y), cut_views(volume, byte_range(), size=Z)
    assert wide.images.shape == (B, 3, Y, Y, S)
    assert wide.images.dtype == torch.uint8
    for b, case in enumerate(volume.numpy()):
        axial = np.pad(as_image(case[:, :, :, 7]), ((4, 4), (0, 0), (0, 0)))
        coronal = np.pad(as_image(case[:, :, 9, :]), ((2, 2), (0, 0), (0, 0)))
        sagittal = np.pad(as_image(case[:, 5, :, :]), ((0, 0), (2, 2), (0, 0)))
        np.testing.assert_array_equal(wide.images[b, AXIAL].numpy(), axial)
        np.testing.assert_array_equal(narrow.images[b, CORONAL].numpy(), coronal)
        np.testing.assert_array_equal(wide.images[b, SAGITTAL].numpy(), sagittal)


def test_views_are_the_paper_s_axis_orders(volume):
    for order, view in (((0, 1, 2), AXIAL), ((0, 2, 1), CORONAL), ((1, 2, 0), SAGITTAL)):
        permuted = volume.permute(0, 1, *(2 + axis for axis in order))
        middle = permuted[..., permuted.shape[-1] // 2]
        side = max(middle.shape[2:])
        shown = cut_views(volume, byte_range(), size=side).images[:, view]
        top, left = (side - middle.shape[2]) // 2, (side - middle.shape[3]) // 2
        shown = shown[:, top : top + middle.shape[2], left : left + middle.shape[3]]
        assert torch.equal(shown.permute(0, 3, 1, 2).float(), middle)


def test_a_marker_is_seen_by_the_two_views_that_cut_it():
    volume = torch.full((1, S, X, Y, Z), 50.0)
    volume[0, 1, 5, 9, 2] = 255.0  # in the middle of x and y, low in z, in t1ce only
    wide = cut_views(volume, byte_range(1), size=Y).images[0]
    narrow = cut_views(volume, byte_range(1), size=Z).images[0]
    assert (wide[AXIAL] == 255).nonzero().tolist() == []
    assert (narrow[CORONAL] == 255).nonzero().tolist() == [[2 + 5, 2, 1]]
    assert (wide[SAGITTAL] == 255).nonzero().tolist() == [[9, 2 + 2, 1]]


@pytest.mark.parametrize("sequence", range(5))
def test_views_hold_the_sequences_in_order(sequence):
    generator = torch.Generator().manual_seed(0)
    volume = torch.randint(1, 256, (B, 5, X, Y, Z), generator=generator).float()
    stats = torch.tensor([0.0, 255.0, 0.0, 1.0]).expand(B, 5, 4)
    changed = volume.clone()
    changed[:, sequence] = 256 - changed[:, sequence]
    names = [*SEQUENCES, "adc"]
    before, after = (cut_views(v, stats, sequences=names).images for v in (volume, changed))
    difference = before != after
    assert difference.flatten(0, 3).any(dim=0).nonzero().flatten().tolist() == [sequence]


def test_views_span_low_to_high_and_clip_beyond():
    volume = torch.full((1, S, X, Y, Z), 30.0)
    volume[:, :, :, :, ::2] = 10.0
    volume[:, :, :, :, ::3] = 900.0
    stats = torch.tensor([10.0, 30.0, 0.0, 1.0]).expand(1, S, 4)
    sagittal = cut_views(volume, stats, size=Y).images[0, SAGITTAL]
    assert set(sagittal.unique().tolist()) == {0, 255}


def test_grey_levels_by_hand():
    volume = torch.full((1, S, 3, 3, 3), 20.0)
    stats = torch.tensor([[lo, hi, 0, 1] for lo, hi in [(0, 40), (10, 60), (-20, 60), (20, 30)]])
    shown = cut_views(volume, stats[None].float(), size=3).images
    assert shown[0, 0, 1, 1].tolist() == [128, 51, 128, 0]  # 127.5 rounds to even


def test_views_keep_the_slice_in_proportion(volume):
    views = cut_views(volume, byte_range(), size=95)  # 5 pixels per voxel of the longest side
    rows, columns = views.images[0, AXIAL].any(dim=-1).nonzero().T
    height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
    assert width == 5 * Y
    assert abs(height - 5 * X) <= 4  # bilinear resizing smears the border over its neighbours
    assert rows.min() + rows.max() == 94  # in the middle


def test_raw_and_zscored_volume_look_alike():
    raw = brain_like()
    stats = intensity_statistics(raw)
    normalised = zscore(raw, stats)
    difference = (
        cut_views(raw, stats).images.int()
        - cut_views(normalised, intensity_statistics(normalised)).images.int()
    )
    assert difference.abs().max() <= 1


def test_background_stays_black_where_intensities_are_negative():
    volume = brain_like()
    shown = cut_views(zscore(volume, intensity_statistics(volume)), size=15).images
    # the brain box is 7 x 15 x 11: sagittal slices have two black columns on either side
    assert not shown[:, SAGITTAL, :, :2].any()
    assert not shown[:, SAGITTAL, :, 13:].any()
    holed = brain_like()
    holed[:, :, 5, 10, 6] = 0
    shown = cut_views(holed - 100 * (holed != 0), size=15).images
    assert not shown[:, SAGITTAL, 7, 2 + 5].any()


def test_missing_sequence_is_black():
    volume = brain_like()
    volume[0, 2] = 0
    visible = cut_views(volume).images.flatten(1, 3).any(dim=1)
    assert visible.tolist() == [[True, True, False, True], [True] * 4]


@pytest.mark.parametrize("selection", ["center", "energy", "attention"])
def test_statistics_are_computed_when_not_given(selection):
    volume = brain_like()
    given = cut_views(volume, intensity_statistics(volume), selection=selection)
    assert_same(cut_views(volume, selection=selection), given)


def test_views_are_as_large_as_clip_takes_them():
    assert cut_views(brain_like()).images.shape == (B, 3, 224, 224, S)


# positions of views


def test_planes_by_hand(volume):
    planes = cut_views(volume, byte_range()).planes
    assert planes.dtype == torch.float32
    expected = [[7.5 / 15, 11 / 19, 1], [9.5 / 19, 11 / 15, 1], [5.5 / 11, 1, 15 / 19]]
    torch.testing.assert_close(planes, torch.tensor([expected] * B))


def test_even_boxes_take_the_lower_of_two_middles():
    planes = cut_views(torch.ones(1, S, 4, 6, 8), byte_range(1)).planes[0]
    expected = [[3.5 / 8, 4 / 6, 1], [2.5 / 6, 4 / 8, 1], [1.5 / 4, 6 / 8, 1]]
    torch.testing.assert_close(planes, torch.tensor(expected).float())


def test_planes_are_shares_of_the_brain_box(coordinates):
    off = torch.zeros_like(coordinates)
    off[..., 1:6, 4:17, 5:14] = coordinates[..., 1:6, 4:17, 5:14]  # 5 x 13 x 9 voxels
    views = cut_views(off, byte_range(1), size=13)
    expected = [[4.5 / 9, 5 / 13, 1], [6.5 / 13, 5 / 9, 1], [2.5 / 5, 1, 9 / 13]]
    torch.testing.assert_close(views.planes[0], torch.tensor(expected))
    assert slices_of(views, AXIAL, 2) == [9]
    assert slices_of(views, CORONAL, 1) == [10]
    assert slices_of(views, SAGITTAL, 0) == [3]


def test_the_middle_of_the_volume_keeps_its_background(coordinates):
    off = torch.zeros_like(coordinates)  # 11 x 19 x 15 voxels
    off[..., 1:5, 4:17, 5:14] = coordinates[..., 1:5, 4:17, 5:14]
    views = cut_views(off, byte_range(1), selection="volume_center", size=33)
    assert slices_of(views, AXIAL, 2) == [7]
    assert slices_of(views, CORONAL, 1) == [9]
    assert not views.images[0, SAGITTAL].any()  # its slice, 5, has no brain
    shown = views.images[0, AXIAL, :, :, 3] > 127  # each of 11 rows three times
    assert shown.any(dim=1).nonzero().flatten().tolist() == [*range(3, 15)]
    assert shown.any(dim=0).sum() == pytest.approx(33 * 13 / 19, abs=1)
    expected = [[2.5 / 9, 4 / 11, 13 / 19], [5.5 / 13, 4 / 11, 9 / 15], [4.5 / 4, 13 / 19, 9 / 15]]
    torch.testing.assert_close(views.planes[0], torch.tensor(expected))


@pytest.mark.parametrize("selection", ["center", "energy", "attention"])
@pytest.mark.parametrize("padding", [(5, 0, 2, 7, 1, 4), (1, 0, 0, 1, 3, 0)])
def test_background_around_the_brain_changes_no_bit(selection, padding):
    brain = brain_like()[:, :, 2:9, 3:18, 1:12]
    brain[:, 3, 1, 12, 3] = 900.0
    views = cut_views(brain, selection=selection)
    assert_same(cut_views(F.pad(brain, padding), selection=selection), views)


@pytest.mark.parametrize("selection", ["center", "energy", "attention"])
def test_every_case_is_cut_on_its_own(selection):
    volume = brain_like()
    volume[1] = volume[1].roll((2, -3, 3), dims=(1, 2, 3))
    volume[1, :, 7:] = 0
    alone = [cut_views(volume[b : b + 1], selection=selection) for b in range(B)]
    together = cut_views(volume, selection=selection)
    assert_same(together, Views(*(torch.cat(part) for part in zip(*alone, strict=True))))


@pytest.mark.parametrize(("selection", "count"), [("center", 1), ("energy", 1), ("attention", 8)])
def test_volume_without_signal_gives_black_views(selection, count):
    volume = brain_like()
    volume[1] = 0
    views = cut_views(volume, size=20, selection=selection)
    assert views.images.shape == (B, 3 * count, 20, 20, S)
    assert views.images[0].any()
    assert not views.images[1].any()
    assert views.images.dtype == torch.uint8
    assert views.planes.shape == (B, 3 * count, 3)
    assert ((views.planes > 0) & (views.planes <= 1)).all()


@pytest.mark.parametrize(("axis", "view"), [(2, SAGITTAL), (3, CORONAL), (4, AXIAL)])
def test_blank_middle_slice_gives_way_to_the_nearest_with_brain(volume, axis, view):
    gap = torch.zeros(volume.shape[axis], dtype=torch.bool)
    middle = len(gap) // 2
    gap[middle - 1 : middle + 4] = True  # the nearest slice with brain lies 2 before the middle
    gap[1:3] = True  # nor is it the middle one of the slices with brain
    shape = [1] * 5
    shape[axis] = -1
    holed = volume * ~gap.view(shape)
    filled = volume.clone()  # whatever a slice in the gap could show, show the expected one
    for index in range(middle - 1, middle + 4):
        filled.select(axis, index).copy_(volume.select(axis, middle - 2))
    views = cut_views(holed, byte_range())
    assert views.images[:, view].any()
    assert torch.equal(views.images[:, view], cut_views(filled, byte_range()).images[:, view])
    assert views.planes[0, view, 0].item() == pytest.approx((middle - 1.5) / len(gap))


@pytest.mark.parametrize("size", [(37, 41, 29), (48, 48, 31)])
@pytest.mark.parametrize(("selection", "count"), [("center", 1), ("energy", 1), ("attention", 8)])
def test_odd_sizes(size, selection, count):
    generator = torch.Generator().manual_seed(0)
    volume = torch.zeros(1, S, *size)
    volume[..., 3:, :-6, 2:-2] = (
        torch.rand(1, S, size[0] - 3, size[1] - 6, size[2] - 4, generator=generator) + 1
    )
    views = cut_views(volume, selection=selection)
    assert views.images.shape == (1, 3 * count, 224, 224, S)
    x, y, z = size[0] - 3, size[1] - 6, size[2] - 4
    shares = views.planes[0, ::count, 1:]
    expected = [
        [x / max(x, y), y / max(x, y)],
        [x / max(x, z), z / max(x, z)],
        [y / max(y, z), z / max(y, z)],
    ]
    torch.testing.assert_close(shares, torch.tensor(expected))


# which slices


def test_attention_takes_evenly_spread_slices_in_order(coordinates):
    views = cut_views(coordinates, byte_range(1), selection="attention", size=Y)
    # the nearest to (i + 0.5) / 8 * n - 0.5; e.g. 0.1875, 1.5625, 2.9375, ... for n = 11
    expected = {
        SAGITTAL: [0, 2, 3, 4, 6, 7, 8, 10],
        CORONAL: [1, 3, 5, 8, 10, 13, 15, 17],
        AXIAL: [0, 2, 4, 6, 8, 10, 12, 14],
    }
    for view, axis in ((AXIAL, 2), (CORONAL, 1), (SAGITTAL, 0)):
        first = view * SLICES_PER_AXIS
        for v, index in enumerate(expected[view]):
            if view != CORONAL:  # that one is resized
                assert slices_of(views, first + v, axis) == [index]
            assert views.planes[0, first + v, 0].item() == pytest.approx(
                (index + 0.5) / (X, Y, Z)[axis]
            )


def test_attention_skips_blank_slices(volume):
    volume[..., 5:11] = 0
    positions = cut_views(volume, byte_range(), selection="attention").planes[0, :8, 0]
    # of 0, 2, 4, 6, 8, 10, 12, 14 the blank ones give way
    expected = [(index + 0.5) / 15 for index in (0, 2, 4, 4, 11, 11, 12, 14)]
    torch.testing.assert_close(positions, torch.tensor(expected))


def test_more_slices_than_the_brain_has():
    views = cut_views(torch.ones(1, S, 2, 3, 5), byte_range(1), selection="attention", size=5)
    positions = views.planes[0, :, 0].view(3, SLICES_PER_AXIS)
    assert (positions.diff(dim=1) >= 0).all()
    assert [len(row.unique()) for row in positions] == [5, 3, 2]


def tissue():
    """A brain that is wide in the middle of each axis, with plain tissue of slight texture."""
    generator = torch.Generator().manual_seed(0)
    grids = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in (21, 33, 27)), indexing="ij")
    inside = sum(grid**2 for grid in grids) <= 1.05
    return (100 + 4 * torch.rand(S, 21, 33, 27, generator=generator)) * inside


def plant(case, sequence, center, radius=2, value=150.0):
    """Set a diamond of voxels, whose largest sections run through its centre."""
    grids = torch.meshgrid(*(torch.arange(n) for n in case.shape[1:]), indexing="ij")
    distance = sum((grid - c).abs() for grid, c in zip(grids, center, strict=True))
    case[sequence][distance <= radius] = value


RANGE = torch.tensor([100.0, 200.0, 0.0, 1.0])  # of low, high; mean and SD are not used
T1, T1CE, T2, FLAIR = range(4)
HERE, THERE = (6, 9, 19), (14, 24, 8)
CUTS = (cut_views, cut_reduced_views)


def chosen_slices(case, *missing):
    """Return the indices on x, y and z of the slices with most energy."""
    stats = RANGE.repeat(1, S, 1)
    case = case.clone()
    for sequence in missing:
        stats[0, sequence] = 0
    views = cut_views(case[None], stats, selection="energy", size=33)
    return tuple(
        round(views.planes[0, view, 0].item() * n - 0.5)
        for view, n in ((SAGITTAL, 21), (CORONAL, 33), (AXIAL, 27))
    )


@pytest.mark.parametrize("center", [HERE, THERE, (15, 6, 13)])
@pytest.mark.parametrize(("sequence", "value"), [(FLAIR, 150.0), (T1CE, 150.0), (T1, 190.0)])
def test_energy_finds_a_lesion_off_centre(center, sequence, value):
    case = tissue()
    plant(case, sequence, center, value=value)
    assert chosen_slices(case) == center


def test_energy_view_shows_the_lesion():
    case = tissue()
    plant(case, FLAIR, HERE, radius=0, value=200.0)
    stats = RANGE.repeat(1, S, 1)
    wide = cut_views(case[None], stats, selection="energy", size=33).images[0]
    narrow = cut_views(case[None], stats, selection="energy", size=27).images[0]
    assert (wide[AXIAL] == 255).nonzero().tolist() == [[6 + 6, 9, FLAIR]]
    assert (narrow[CORONAL] == 255).nonzero().tolist() == [[3 + 6, 19, FLAIR]]
    assert (wide[SAGITTAL] == 255).nonzero().tolist() == [[9, 3 + 19, FLAIR]]


def test_t2_and_what_t1_shows_too_are_no_energy():
    case = tissue()
    plant(case, FLAIR, HERE)
    plant(case, T2, THERE, radius=3, value=200.0)
    for sequence in (T1, T1CE):  # fat or blood: bright with and without contrast agent
        plant(case, sequence, THERE, radius=3, value=200.0)
    assert chosen_slices(case) == HERE


@pytest.mark.parametrize(("missing", "bright"), [(T1, T1CE), (T1CE, T1)])
def test_energy_does_without_t1_or_t1ce(missing, bright):
    case = tissue()
    case[missing] = 0
    plant(case, FLAIR, HERE)
    plant(case, bright, THERE, radius=4, value=200.0)
    assert chosen_slices(case, missing) == HERE  # nothing to subtract: the other one says nothing


def test_energy_does_without_flair():
    case = tissue()
    case[FLAIR] = 0
    plant(case, T1CE, HERE)
    assert chosen_slices(case, FLAIR) == HERE


def test_energy_counts_what_exceeds_the_mean_by_an_sd():
    image = torch.zeros(S, 1, 2, 4)
    image[T1, 0, 0], image[T1CE, 0, 0] = 0.5, torch.tensor([0.5, 0.25, 1.0, 0.5])
    image[FLAIR, 0, 0] = torch.tensor([0.0, 0.0, 0.5, 0.25])
    brain = torch.zeros(1, 2, 4, dtype=torch.bool)
    brain[0, 0] = True
    image[FLAIR, 0, 1] = 1.0  # outside the brain
    energies = [0.0, 0.25, 1.0, 0.25]
    threshold = statistics.fmean(energies) + statistics.pstdev(energies)
    result = lesion_energy(image, brain, torch.ones(S, dtype=torch.bool))
    expected = torch.zeros(1, 2, 4)
    expected[0, 0, 2] = 1.0 - threshold
    torch.testing.assert_close(result, expected)
    for missing in (T1, T1CE):
        available = torch.arange(S) != missing
        energies = [0.0, 0.0, 0.5, 0.25]
        threshold = statistics.fmean(energies) + statistics.pstdev(energies)
        expected[0, 0, 2] = 0.5 - threshold
        torch.testing.assert_close(lesion_energy(image, brain, available), expected)


@pytest.mark.parametrize("kept", list(product((False, True), repeat=S)))
def test_views_without_sequences_are_those_of_a_case_without_them(kept):
    case = tissue()
    plant(case, FLAIR, HERE)
    plant(case, T1CE, THERE, value=160.0)
    stats = RANGE.repeat(1, S, 1)
    views, reduced = (f(case[None], stats, selection="energy", size=33) for f in CUTS)
    chosen = views_without(views, reduced, torch.tensor([kept]))
    stats[0, ~torch.tensor(kept)] = 0
    expected = cut_views(case[None], stats, selection="energy", size=33)
    assert torch.equal(chosen.planes, expected.planes)
    assert torch.equal(chosen.images[..., list(kept)], expected.images[..., list(kept)])


def test_other_sequences_choose_slices_together_or_not_at_all():
    case = tissue()
    plant(case, FLAIR, HERE)
    plant(case, T1CE, THERE, value=160.0)
    stats = RANGE.repeat(1, S, 1)
    options = {"selection": "energy", "size": 33, "sequences": ("a", "b", "c", "d")}
    views, reduced = (f(case[None], stats, **options) for f in CUTS)
    assert reduced.images.shape == (1, 1, *views.images.shape[1:])
    middle = cut_views(case[None], stats, size=33)
    assert torch.equal(reduced.planes[:, 0], middle.planes)
    stats[0, 0] = 0
    assert torch.equal(cut_views(case[None], stats, **options).planes, middle.planes)


@pytest.mark.parametrize("selection", ["center", "attention", "volume_center"])
def test_choices_that_read_no_intensities_have_no_others(selection):
    views, reduced = (f(tissue()[None], selection=selection, size=33) for f in CUTS)
    assert reduced.images.shape == (1, 0, *views.images.shape[1:])
    assert reduced.planes.shape == (1, 0, *views.planes.shape[1:])
    assert [part.dtype for part in reduced] == [part.dtype for part in views]
    assert views_without(views, reduced, torch.zeros(1, S, dtype=torch.bool)) is views


def test_no_energy_falls_back_to_the_middle():
    volume = torch.stack([tissue(), tissue()])
    volume[:, T1] = volume[:, T1CE]
    volume[:, FLAIR] = 100.0 * (volume[:, FLAIR] != 0)
    plant(volume[1], FLAIR, HERE)
    stats = RANGE.repeat(2, S, 1)
    middle, energetic = cut_views(volume, stats), cut_views(volume, stats, selection="energy")
    assert torch.equal(energetic.images[0], middle.images[0])
    assert torch.equal(energetic.planes[0], middle.planes[0])
    assert (energetic.planes[1, :, 0] != middle.planes[1, :, 0]).all()


# errors


@pytest.mark.parametrize(
    "shape", [(4, 5, 6, 7), (1, 3, 5, 6, 7), (1, 1, 4, 5, 6, 7)], ids=["4D", "three", "6D"]
)
def test_rejects_what_is_no_batch_of_four_sequences(shape):
    with pytest.raises(ValueError, match=r"expected \(b, s, x, y, z\) with t1, t1ce, t2, flair"):
        cut_views(torch.ones(shape))


def test_rejects_unknown_selection():
    with pytest.raises(
        ValueError, match="selection='best': choose from center, energy, attention, volume"
    ):
        cut_views(torch.ones(1, S, 3, 4, 5), selection="best")
