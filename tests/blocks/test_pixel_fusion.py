"""Mirrors clipseg3d/blocks/pixel_fusion.py. Sizes differ pairwise, so a swapped axis fails."""

import math

import numpy as np
import pytest
import torch

from clipseg3d.blocks.pixel_fusion import PixelFusion
from clipseg3d.intensity import intensity_statistics

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
        means, peaks, available = [], [], []
        for s in range(S):
            values = sorted(v for v in volume[b, s].flat if v != 0)
            available.append(float(len(values) > 0))
            if not values:
                means.append(0.0)
                peaks.append(0.0)
                continue
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
            logits = weight @ np.array(means + peaks + available) + bias
            fused[b] *= (2 / (1 + np.exp(-logits)))[:, None, None, None]
    return torch.from_numpy(fused).float()


@pytest.mark.parametrize("clip", [5.0, 0.7])
def test_equations(raw, clip):
    fused = PixelFusion(clip=clip)(raw)
    torch.testing.assert_close(fused, reference(raw, clip=clip), rtol=1e-5, atol=1e-5)


def test_trained_gate_weighs_sequences_by_mean_maximum_and_availability(raw, randomise):
    block = randomise(PixelFusion())
    raw[1, 2] = 0
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
    block = PixelFusion(sequences=["t1"], norms=["zscore"], gammas=[0.5], clip=9.0)
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
    with pytest.raises(ValueError, match=r"3 norms for 4 sequences \(t1, t1ce, t2, flair\); give"):
        PixelFusion(norms=["zscore"] * 3)
    with pytest.raises(ValueError, match="2 gammas for 1 sequences"):
        PixelFusion(sequences=["t1"], gammas=[1.0, 1.0])


def test_rejects_unknown_norm():
    with pytest.raises(ValueError, match=r"'median'.*'zscore' and 'minmax'"):
        PixelFusion(sequences=["t1", "t2"], norms=["zscore", "median"])


@pytest.mark.parametrize("count", [1, 3])
def test_rejects_another_number_of_sequences(raw, count):
    with pytest.raises(ValueError, match=f"has {count} sequences, expected 4; give zeros"):
        PixelFusion()(raw[:, :count])


def test_without_gate_there_are_no_weights(raw):
    block = PixelFusion(gate=False)
    assert block.state_dict() == {}
    assert torch.equal(block(raw), PixelFusion()(raw))


def test_differences_follow_the_sequences(raw, randomise):
    block = randomise(PixelFusion(differences=[("t1ce", "t1"), ("t2", "flair")]))
    plain = randomise(PixelFusion())
    fused = block(raw)
    assert block.out_channels == fused.shape[1] == S + 2
    assert torch.equal(fused[:, :S], plain(raw))
    # Neither the gate nor the power touches them.
    normal = PixelFusion(gammas=[1.0] * S, gate=False)(raw)
    assert torch.equal(fused[:, S], normal[:, 1] - normal[:, 0])
    assert torch.equal(fused[:, S + 1], normal[:, 2] - normal[:, 3])
    assert not fused[:, S:, :2, :3, :4].any()


def test_differences_are_those_of_clipped_signals():
    block = PixelFusion(sequences=["a", "b"], gammas=[0.5] * 2, clip=2.0, differences=[("a", "b")])
    image = torch.tensor([[9.0, 1.0, 0.0], [-1.0, 4.0, -9.0]]).view(1, 2, 1, 1, 3)
    unit = torch.tensor([-20.0, 20.0, 0.0, 1.0]).expand(1, 2, 4)
    assert block(image, unit)[0, 2].flatten().tolist() == [3.0, -1.0, 2.0]


@pytest.mark.parametrize("missing", [0, 1])
@pytest.mark.parametrize("how", ["zeros", "flag", "flag with statistics"])
def test_difference_with_a_missing_partner_is_zero(raw, missing, how):
    block = PixelFusion(differences=[("t1ce", "t1"), ("t2", "flair")])
    expected = block(raw)
    expected[1, [missing, S]] = 0
    statistics = intensity_statistics(raw) if "statistics" in how else None
    available = torch.ones(B, S, dtype=torch.bool)
    available[1, missing] = False
    if how == "zeros":
        raw[1, missing], available = 0, None
    assert torch.equal(block(raw, statistics, available=available), expected)


@pytest.mark.parametrize("pair", [("t1", "t1"), ("adc", "t1"), ("t1", "adc")])
def test_rejects_differences_of_sequences_that_are_not_there(pair):
    with pytest.raises(ValueError, match=rf"\({pair[0]}, {pair[1]}\).*different.*of t1, t1ce"):
        PixelFusion(differences=[("t1ce", "t1"), pair])


@pytest.mark.parametrize("held", [7.0, float("nan")])
@pytest.mark.parametrize("with_statistics", [False, True])
def test_unavailable_sequence_is_as_if_missing(raw, randomise, held, with_statistics):
    block = randomise(PixelFusion())
    statistics = intensity_statistics(raw) if with_statistics else None
    available = torch.tensor([[True] * S, [True, True, False, True]])
    missing = raw.clone()
    missing[1, 2] = 0
    expected = block(missing)
    raw[1, 2, 3:] = held
    fused = block(raw, statistics, available=available)
    assert torch.equal(fused, expected)
    assert not fused[1, 2].any()
    assert not torch.equal(block(raw, intensity_statistics(missing.clamp(max=9.0)))[1], expected[1])


def test_flag_does_not_make_an_empty_sequence_available(raw, randomise):
    block = randomise(PixelFusion(differences=[("t2", "flair")]))
    raw[1, 2] = 0
    available = torch.ones(B, S, dtype=torch.bool)
    assert torch.equal(block(raw, available=available), block(raw))
    assert not block(raw)[1, S].any()


@pytest.fixture
def regions():
    """Nested WT, TC, ET, over background too; the second case has no ET."""
    mask = torch.zeros(B, 3, X, Y, Z)
    mask[:, 0, 1:5, 1:6, 1:7] = 1
    mask[:, 1, 1:4, 1:6, 2:6] = 1
    mask[0, 2, 1:3, 2:5, 3:6] = 1
    return mask


def stretched(fused, raw, regions):
    """Contrast about the mean of each part, voxel by voxel, in float64."""
    fused = fused.double().numpy()
    out = fused.copy()
    for b, s in np.ndindex(B, S):
        parts = {1.25: [], 1.2: []}
        for place in np.ndindex(X, Y, Z):
            if raw[(b, s, *place)] == 0:
                continue
            if regions[(b, 2, *place)] == 1:
                parts[1.25].append(place)
            elif regions[(b, 1, *place)] == 1:
                parts[1.2].append(place)
        for factor, places in parts.items():
            mean = sum(fused[(b, s, *place)] for place in places) / max(1, len(places))
            for place in places:
                out[(b, s, *place)] = mean + factor * (fused[(b, s, *place)] - mean)
    return torch.from_numpy(out)


def test_contrast_stretches_enhancing_and_core(raw, regions):
    raw[:, 2, 2, 3, 3:5] = 0  # sequences need not have the same background
    block = PixelFusion(contrast=1.0, gate=False)
    plain = block(raw)
    expected = stretched(plain, raw, regions)
    assert (expected - plain).abs().amax(dim=(2, 3, 4)).min() > 0.01
    fused = block(raw, regions=regions)
    torch.testing.assert_close(fused.double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(block(raw, regions=regions.bool()), fused)


def test_gate_reads_the_stretched_signal_and_differences_do_not(raw, regions, randomise):
    pairs = [("t1ce", "t1"), ("t2", "flair")]
    block = randomise(PixelFusion(contrast=1.0, differences=pairs))
    ungated = PixelFusion(contrast=1.0, gate=False)(raw, regions=regions)
    count = (raw != 0).sum(dim=(2, 3, 4))
    read = [ungated.sum(dim=(2, 3, 4)) / count, ungated.amax(dim=(2, 3, 4)), torch.ones(B, S)]
    weight = 2 * torch.sigmoid(block.gate(torch.cat(read, dim=1)))
    fused = block(raw, regions=regions)
    torch.testing.assert_close(fused[:, :S], ungated * weight[..., None, None, None])
    assert torch.equal(fused[:, S:], block(raw)[:, S:])


def test_contrast_is_drawn_per_sample(raw, regions):
    block = PixelFusion(contrast=0.3)
    many, masks = raw[:1].repeat(400, 1, 1, 1, 1), regions[:1].repeat(400, 1, 1, 1, 1)
    torch.manual_seed(0)
    fused = block(many, regions=masks)
    drawn = fused.ne(block(raw[:1])).flatten(1).any(dim=1)
    assert 0.22 < drawn.float().mean() < 0.38  # 3.5 standard errors
    expected = PixelFusion(contrast=1.0)(raw[:1], regions=regions[:1])
    assert torch.equal(fused[drawn], expected.expand(int(drawn.sum()), -1, -1, -1, -1))
    torch.manual_seed(0)
    assert torch.equal(block(many, regions=masks), fused)


def test_contrast_of_zero_ignores_regions(raw, regions):
    block = PixelFusion()
    state = torch.get_rng_state()
    assert torch.equal(block(raw, regions=regions), block(raw))
    assert torch.equal(torch.get_rng_state(), state)


def test_contrast_needs_regions(raw):
    assert torch.equal(PixelFusion(contrast=1.0)(raw), PixelFusion()(raw))


def test_empty_or_missing_has_no_contrast(raw, regions):
    block = PixelFusion(contrast=1.0)
    assert torch.equal(block(raw, regions=regions * 0), block(raw))
    raw[1, 2] = 0
    fused = block(raw, regions=regions)
    assert fused.isfinite().all()
    assert not fused[raw == 0].any()
    image = raw.clone().requires_grad_()
    block(image, intensity_statistics(raw), regions=regions).sum().backward()
    assert image.grad.isfinite().all()


@pytest.mark.parametrize("contrast", [0.0, 0.5])
def test_regions_in_evaluation_are_refused(raw, regions, contrast):
    block = PixelFusion(contrast=contrast).eval()
    with pytest.raises(ValueError, match=r"leak.*pass no regions, or call \.train\(\)"):
        block(raw, regions=regions)
    assert torch.equal(block(raw), PixelFusion()(raw))


@pytest.mark.parametrize("contrast", [-0.1, 1.1, float("nan")])
def test_rejects_contrast_that_is_no_probability(contrast):
    with pytest.raises(ValueError, match=rf"contrast={contrast}.*\[0, 1\]"):
        PixelFusion(contrast=contrast)
