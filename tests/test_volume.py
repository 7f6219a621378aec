"""Mirrors clipseg3d/volume.py. Sizes differ pairwise, so a swapped axis fails."""

import statistics

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipseg3d.volume import cut_views, intensity_statistics, scale

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


def brain_like(seed=0):
    """A volume whose brain fills part of the grid, with skewed intensities."""
    generator = torch.Generator().manual_seed(seed)
    inside = torch.zeros(X, Y, Z)
    inside[2:9, 3:18, 1:12] = 1
    return (200 * torch.rand(B, S, X, Y, Z, generator=generator).square() + 5) * inside


def zscore(volume, stats):
    low, high, mean, std = stats.permute(2, 0, 1)[..., None, None, None]
    return (volume.clamp(low, high) - mean) / std * (volume != 0)


def as_rgb(plane):
    """Turn sequences (s, h, w) into the (h, w, 3) that CLIP should see: t1ce, flair, t2."""
    return np.stack([plane[1], plane[3], plane[2]], axis=-1)


# intensity statistics


def test_statistics_by_hand():
    values = list(range(1, 202))  # ranks 1 + 200 * 0.005 = 2 and 1 + 200 * 0.995 = 200
    volume = torch.zeros(1, 1, 5, 6, 7)
    order = torch.randperm(210, generator=torch.Generator().manual_seed(0))[:201]
    volume.view(-1)[order] = torch.tensor(values).float()
    clipped = [min(max(v, 2), 200) for v in values]
    expected = [2.0, 200.0, statistics.fmean(clipped), statistics.pstdev(clipped)]
    torch.testing.assert_close(intensity_statistics(volume)[0, 0], torch.tensor(expected))


def test_percentile_rank_is_the_nearest_one():
    volume = torch.arange(1.0, 151.0).view(1, 1, 5, 6, 5)
    low, high, _, _ = intensity_statistics(volume)[0, 0].tolist()
    assert (low, high) == (2.0, 149.0)  # 1 + round(0.745) and 1 + round(148.255)


def test_statistics_are_per_case_and_sequence():
    volume = brain_like()
    stats = intensity_statistics(volume)
    assert stats.shape == (B, S, 4)
    for b in range(B):
        for s in range(S):
            alone = intensity_statistics(volume[b : b + 1, s : s + 1])
            assert torch.equal(stats[b, s], alone[0, 0])


def test_hot_voxels_do_not_reach_mean_and_sd():
    volume = torch.rand(1, 1, 10, 10, 10, generator=torch.Generator().manual_seed(0)) + 1
    hot = volume.clone()
    hot[0, 0, 0, 0, :3] = 32767
    difference = intensity_statistics(hot) - intensity_statistics(volume)
    assert difference.abs().max() < 0.02


def test_negative_voxels_count_and_background_does_not():
    volume = torch.zeros(1, 1, 3, 4, 5)
    volume[0, 0, 0, 0, :4] = torch.tensor([-3.0, -1.0, 1.0, 3.0])
    torch.testing.assert_close(
        intensity_statistics(volume)[0, 0], torch.tensor([-3.0, 3.0, 0.0, 5**0.5])
    )


def test_missing_sequence_gets_zeros():
    volume = brain_like()
    volume[1, 2] = 0
    stats = intensity_statistics(volume)
    assert stats[1, 2].tolist() == [0.0] * 4
    assert (stats[0, 2] != 0).all()


@pytest.mark.parametrize("value", [0.1, 307.42282, 490.09341, 496.25659])
def test_constant_sequence_has_no_spread(value):
    volume = brain_like()
    volume[1, 2] = value * (volume[1, 2] != 0)
    low, high, mean, std = intensity_statistics(volume)[1, 2].tolist()
    assert low == high == pytest.approx(value)
    assert mean == pytest.approx(value)
    assert std == 0  # rounding must not leave a spread: scale() would blow it up to +-1


def test_statistics_of_integers_are_float():
    stats = intensity_statistics(torch.arange(1, 121, dtype=torch.int16).view(1, 1, 4, 5, 6))
    assert stats.dtype == torch.float32


def test_scale_of_a_constant_is_zero():
    value, offset = torch.tensor([3.0, 3.0]), torch.tensor([1.0, 1.0])
    assert scale(value, offset, torch.tensor([4.0, 0.0])).tolist() == [0.5, 0.0]


# views


def test_views_are_the_xy_xz_and_yz_planes(volume):
    # Size 19 and 15 leave the padded planes unresized.
    wide, narrow = cut_views(volume, byte_range(), size=Y), cut_views(volume, byte_range(), size=Z)
    assert wide.shape == (B, 3, Y, Y, 3)
    assert wide.dtype == torch.uint8
    for b, case in enumerate(volume.numpy()):
        axial = np.pad(as_rgb(case[:, :, :, 7]), ((4, 4), (0, 0), (0, 0)))
        coronal = np.pad(as_rgb(case[:, :, 9, :]), ((2, 2), (0, 0), (0, 0)))
        sagittal = np.pad(as_rgb(case[:, 5, :, :]), ((0, 0), (2, 2), (0, 0)))
        np.testing.assert_array_equal(wide[b, AXIAL].numpy(), axial)
        np.testing.assert_array_equal(narrow[b, CORONAL].numpy(), coronal)
        np.testing.assert_array_equal(wide[b, SAGITTAL].numpy(), sagittal)


def test_a_marker_is_seen_by_the_two_views_that_cut_it():
    volume = torch.full((1, S, X, Y, Z), 50.0)
    volume[0, 1, 5, 9, 2] = 255.0  # in the middle of x and y, low in z, in t1ce only
    wide = cut_views(volume, byte_range(1), size=Y)[0]
    narrow = cut_views(volume, byte_range(1), size=Z)[0]
    assert (wide[AXIAL] == 255).nonzero().tolist() == []
    assert (narrow[CORONAL] == 255).nonzero().tolist() == [[2 + 5, 2, 0]]
    assert (wide[SAGITTAL] == 255).nonzero().tolist() == [[9, 2 + 2, 0]]


@pytest.mark.parametrize(("sequence", "colour"), [(1, 0), (3, 1), (2, 2), (0, None)])
def test_colours_are_t1ce_flair_t2(volume, sequence, colour):
    changed = volume.clone()
    changed[:, sequence] = 256 - changed[:, sequence]
    difference = cut_views(changed, byte_range()) != cut_views(volume, byte_range())
    seen = difference.flatten(0, 3).any(dim=0).nonzero().flatten().tolist()
    assert seen == ([] if colour is None else [colour])


def test_background_around_the_brain_changes_no_bit():
    brain = brain_like()[:, :, 2:9, 3:18, 1:12]
    padded = F.pad(brain, (5, 0, 2, 7, 1, 4))
    assert torch.equal(cut_views(padded), cut_views(brain))


def test_every_case_is_cut_at_its_own_middle():
    volume = brain_like()
    volume[1] = volume[1].roll((2, -3, 3), dims=(1, 2, 3))
    volume[1, :, 7:] = 0
    alone = [cut_views(volume[b : b + 1]) for b in range(B)]
    assert torch.equal(cut_views(volume), torch.cat(alone))


def test_volume_without_signal_gives_black_views():
    volume = brain_like()
    volume[1] = 0
    views = cut_views(volume, size=20)
    assert views.shape == (B, 3, 20, 20, 3)
    assert views[0].any()
    assert not views[1].any()


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
    seen = cut_views(holed, byte_range())[:, view]
    assert seen.any()
    assert torch.equal(seen, cut_views(filled, byte_range())[:, view])


def test_raw_and_zscored_volume_look_alike():
    raw = brain_like()
    stats = intensity_statistics(raw)
    normalised = zscore(raw, stats)
    difference = (
        cut_views(raw, stats).int() - cut_views(normalised, intensity_statistics(normalised)).int()
    )
    assert difference.abs().max() <= 1


def test_statistics_are_computed_when_not_given():
    volume = brain_like()
    assert torch.equal(cut_views(volume), cut_views(volume, intensity_statistics(volume)))


def test_views_span_low_to_high_and_clip_beyond():
    volume = torch.full((1, S, X, Y, Z), 30.0)
    volume[:, :, :, :, ::2] = 10.0
    volume[:, :, :, :, ::3] = 900.0
    stats = torch.tensor([10.0, 30.0, 0.0, 1.0]).expand(1, S, 4)
    assert set(cut_views(volume, stats, size=Y)[0, SAGITTAL].unique().tolist()) == {0, 255}


def test_views_keep_the_slice_in_proportion(volume):
    views = cut_views(volume, byte_range(), size=95)  # 5 pixels per voxel of the longest side
    rows, columns = views[0, AXIAL].any(dim=-1).nonzero().T
    height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
    assert width == 5 * Y
    assert abs(height - 5 * X) <= 4  # bilinear resizing smears the border over its neighbours
