"""Mirrors clipseg3d/intensity.py. Sizes differ pairwise, so a swapped axis fails."""

import statistics

import pytest
import torch

from clipseg3d.intensity import intensity_statistics, scale

B, S, X, Y, Z = 2, 4, 11, 19, 15


def brain_like():
    """A volume whose brain fills part of the grid, with skewed intensities."""
    inside = torch.zeros(X, Y, Z)
    inside[2:9, 3:18, 1:12] = 1
    values = torch.rand(B, S, X, Y, Z, generator=torch.Generator().manual_seed(0))
    return (200 * values.square() + 5) * inside


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


@pytest.mark.parametrize("count", [1, 2, 150, 201, 301])  # 301: its ranks lie between two voxels
def test_a_graph_gives_the_same(monkeypatch, count):
    volume = torch.zeros(1, 4, 7, 6, 8)
    volume.flatten(2)[:, 1, :count] = torch.randperm(count).float() - 20.5
    volume.flatten(2)[:, 2, :count] = 307.42282
    volume.flatten(2)[:, 3, ::3] = torch.rand(112)
    expected = intensity_statistics(volume)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    found = intensity_statistics(volume)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found[..., :2], expected[..., :2])
    assert found[0, 0].tolist() == [0.0] * 4
    assert found[0, 2, 3] == 0


def test_scale_of_a_constant_is_zero():
    value, offset = torch.tensor([3.0, 3.0]), torch.tensor([1.0, 1.0])
    assert scale(value, offset, torch.tensor([4.0, 0.0])).tolist() == [0.5, 0.0]
