"""Mirrors clipseg3d/blocks/pixel_fusion.py. Sizes differ pairwise, so a swapped axis fails."""

import math

import numpy as np
import pytest
import torch

from clipseg3d.blocks.pixel_fusion import PixelFusion
from clipseg3d.volume import intensity_statistics

B, S, X, Y, Z = 2, 4, 5, 6, 7


@pytest.fixture
def raw():
    """Raw intensities of four unlike sequences; a corner is background."""
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(B, S, X, Y, Z, generator=generator).pow(3) * 900 + 10
    volume *= torch.tensor([1.0, 3.0, 0.2, 7.0]).view(S, 1, 1, 1)
    volume[:, :, :2, :3, :4] = 0
    return volume


def zscored(volume):
    """Normalise every sequence over its brain, clipped to its percentiles."""
    low, high, mean, std = intensity_statistics(volume).permute(2, 0, 1)[..., None, None, None]
    return (volume.clamp(low, high) - mean) / std * (volume != 0)


def reference(volume, *, clip, weight=None, bias=None):
    """The documented equations, voxel by voxel, in float64."""
    volume = volume.double().numpy()
    fused = np.zeros_like(volume)
    for b in range(B):
        means, peaks = [], []
        for s in range(S):
            values = sorted(v for v in volume[b, s].flat if v != 0)
            low = values[round((len(values) - 1) * 0.005)]
            high = values[round((len(values) - 1) * 0.995)]
            inside = [min(max(v, low), high) for v in values]
            mean = sum(inside) / len(inside)
            sd = math.sqrt(sum((v - mean) ** 2 for v in inside) / len(inside))
            for place in np.ndindex(X, Y, Z):
                v = volume[(b, s, *place)]
                if v == 0:
                    continue
                v = min(max(v, low), high)
                v = (v - mean) / sd if s in (0, 1) else (v - low) / (high - low)
                v = min(max(v, -clip), clip)
                fused[(b, s, *place)] = math.copysign(abs(v) ** 0.9, v) if s == 1 else v
            means.append(fused[b, s].sum() / len(values))
            peaks.append(fused[b, s].max())
        if weight is not None:
            logits = weight @ np.array(means + peaks) + bias
            fused[b] *= (2 / (1 + np.exp(-logits)))[:, None, None, None]
    return torch.from_numpy(fused).float()


@pytest.mark.parametrize("clip", [5.0, 0.7])
def test_equations(raw, clip):
    fused = PixelFusion(clip=clip)(raw)
    torch.testing.assert_close(fused, reference(raw, clip=clip), rtol=1e-5, atol=1e-5)


def test_trained_gate_weighs_sequences_by_mean_and_maximum(raw, randomise):
    block = randomise(PixelFusion())
    weight, bias = (p.detach().double().numpy() for p in (block.gate.weight, block.gate.bias))
    expected = reference(raw, clip=5.0, weight=weight, bias=bias)
    torch.testing.assert_close(block(raw), expected, rtol=1e-5, atol=1e-5)


def test_new_gate_weighs_every_sequence_by_one(raw):
    block = PixelFusion()
    fused = block(raw)
    with torch.no_grad():
        block.gate.bias[2] = math.log(3)  # 2 sigmoid(log 3) = 1.5
    factor = torch.tensor([1.0, 1.0, 1.5, 1.0]).view(S, 1, 1, 1)
    torch.testing.assert_close(block(raw), fused * factor)


def test_gradient_reaches_the_gate(raw, dead_weights):
    block = PixelFusion()
    block(raw).square().sum().backward()
    assert dead_weights(block) == []


def test_raw_and_zscored_volume_give_the_same(raw):
    block = PixelFusion()
    normalised = zscored(raw)
    torch.testing.assert_close(block(normalised), block(raw), rtol=1e-4, atol=1e-4)
    with_statistics = block(normalised, intensity_statistics(normalised))
    torch.testing.assert_close(with_statistics, block(raw), rtol=1e-4, atol=1e-4)


def test_crop_with_whole_statistics_is_a_crop_of_the_whole(raw):
    block = PixelFusion()
    crop = (..., slice(1, 4), slice(2, 6), slice(0, 5))
    fused = block(raw[crop], intensity_statistics(raw))
    assert torch.equal(fused, block(raw)[crop])
    assert not torch.allclose(fused, block(raw[crop]))  # its own statistics would differ


@pytest.mark.parametrize("fill", [0.0, 0.1, 412.7])
@pytest.mark.parametrize("sequence", [1, 2])
def test_missing_or_constant_sequence_is_zero(raw, sequence, fill):
    expected = PixelFusion()(raw)
    expected[1, sequence] = 0
    raw[1, sequence] = fill * (raw[1, sequence] != 0)
    assert torch.equal(PixelFusion()(raw), expected)


def test_empty_volume_is_zero_and_gradients_finite(raw):
    block = PixelFusion()
    fused = block(raw * 0)
    fused.sum().backward()
    assert not fused.any()
    assert block.gate.weight.grad.isfinite().all()


def test_background_stays_zero(raw, randomise):
    fused = randomise(PixelFusion())(raw)
    assert not fused[raw == 0].any()
    assert fused[:, 0][raw[:, 0] != 0].all()


def test_power_keeps_the_sign():
    block = PixelFusion(norms=["zscore"], gammas=[0.5], clip=9.0)
    image = torch.tensor([-16.0, -4.0, -0.25, 0.25, 4.0, 16.0]).view(1, 1, 1, 2, 3)
    unit = torch.tensor([-20.0, 20.0, 0.0, 1.0]).view(1, 1, 4)
    assert block(image, unit).flatten().tolist() == [-3.0, -2.0, -0.5, 0.5, 2.0, 3.0]


def test_autocast_changes_nothing(raw, randomise):
    block = randomise(PixelFusion())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = block(raw)
    assert fused.dtype == torch.float32
    assert torch.equal(fused, block(raw))


def test_state_holds_the_gate_only():
    assert sorted(PixelFusion().state_dict()) == ["gate.bias", "gate.weight"]


def test_rejects_norms_and_gammas_of_different_length():
    with pytest.raises(ValueError, match="3 norms but 2 gammas"):
        PixelFusion(norms=["zscore"] * 3, gammas=[1.0, 1.0])


def test_rejects_unknown_norm():
    with pytest.raises(ValueError, match=r"'median'.*'zscore' and 'minmax'"):
        PixelFusion(norms=["zscore", "median"], gammas=[1.0, 1.0])


def test_rejects_another_number_of_sequences(raw):
    with pytest.raises(RuntimeError):
        PixelFusion()(raw[:, :3])
