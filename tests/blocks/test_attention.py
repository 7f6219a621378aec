"""Mirrors clipseg3d/blocks/attention.py. Sizes differ pairwise, so a swapped axis fails."""

import math

import numpy as np
import pytest
import torch

from clipseg3d.blocks.attention import SemanticAttention, SemanticGate, voxel_positions

B, C, X, Y, Z, D, HIDDEN = 2, 6, 5, 3, 4, 7, 8


@pytest.fixture
def features():
    return torch.randn(B, C, X, Y, Z, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def summary():
    return torch.randn(B, D, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def region():
    return torch.randn(B, D, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def opened(randomise):
    """An attention block as if trained."""
    torch.manual_seed(0)
    return randomise(SemanticAttention(C, D, hidden=HIDDEN))


# bottleneck gate


def test_new_gate_changes_nothing(features, summary):
    assert torch.equal(SemanticGate(C, D)(features, summary), features)


def test_gate_scales_and_shifts_channels(features, summary, randomise):
    gate = randomise(SemanticGate(C, D))
    result = gate(features, summary)
    w = {name: weight.detach().numpy() for name, weight in gate.named_parameters()}
    for b in range(B):
        logit = w["scale.weight"] @ summary[b].numpy() + w["scale.bias"]
        shift = w["shift.weight"] @ summary[b].numpy() + w["shift.bias"]
        for c in range(C):
            expected = features[b, c] * (2 / (1 + math.exp(-logit[c]))) + float(shift[c])
            torch.testing.assert_close(result[b, c], expected)


def test_gradient_reaches_the_new_gate(features, summary, dead_weights):
    gate = SemanticGate(C, D)
    gate(features, summary).square().sum().backward()
    assert dead_weights(gate) == []


def test_semantics_get_gradient_once_the_gate_is_open(features, summary, randomise):
    summary.requires_grad_()
    gate = SemanticGate(C, D)
    gate(features, summary).square().sum().backward()
    assert not summary.grad.any()
    randomise(gate)(features, summary).square().sum().backward()
    assert summary.grad.all()


# voxel positions


def test_positions_run_between_the_corners_of_the_box(features):
    positions = voxel_positions(features)
    assert positions.shape == (B, 3, X, Y, Z)
    for b, x, y, z in np.ndindex(B, X, Y, Z):
        expected = [(2 * x + 1) / X - 1, (2 * y + 1) / Y - 1, (2 * z + 1) / Z - 1]
        assert positions[b, :, x, y, z].tolist() == pytest.approx(expected, abs=1e-6)


def test_window_is_read_per_case(features):
    window = torch.tensor([[[0.0] * 3, [1.0] * 3], [[0.1, 0.5, 0.9], [0.4, 0.25, -0.6]]])
    positions = voxel_positions(features, window)
    torch.testing.assert_close(positions[0], voxel_positions(features)[0])
    first, last = positions[1, :, 0, 0, 0], positions[1, :, -1, -1, -1]
    corner, size, grid = window[1, 0], window[1, 1], torch.tensor([X, Y, Z])
    torch.testing.assert_close(first, 2 * (corner + size * 0.5 / grid) - 1)
    torch.testing.assert_close(last, 2 * (corner + size * (grid - 0.5) / grid) - 1)


def test_positions_of_a_padded_window_leave_the_box():
    window = torch.tensor([[[-0.5, 0.0, 0.0], [2.0, 1.0, 1.0]]])
    along_x = voxel_positions(torch.zeros(1, 1, 4, 1, 1), window)[0, 0].flatten()
    torch.testing.assert_close(along_x, torch.tensor([-1.5, -0.5, 0.5, 1.5]))


# semantic attention


def test_new_attention_adds_nothing(features, summary, region):
    added = SemanticAttention(C, D)(features, summary, region)
    assert added.shape == (B, 1, X, Y, Z)
    assert not added.any()


def test_attention_equations(features, summary, region, opened):
    opened.double()
    w = {n: p.detach().numpy() for n, p in opened.named_parameters()}
    w = {n: p.reshape(p.shape[0], -1) if p.ndim == 5 else p for n, p in w.items()}
    added = opened(features.double(), summary.double(), region.double())
    for b, x, y, z in np.ndindex(B, X, Y, Z):
        place = [(2 * x + 1) / X - 1, (2 * y + 1) / Y - 1, (2 * z + 1) / Z - 1]
        given = np.concatenate([features[b, :, x, y, z].double().numpy(), place])
        query = w["query.weight"] @ given + w["query.bias"]
        key = w["key.weight"] @ region[b].double().numpy() + w["key.bias"]
        cosine = query @ key / math.sqrt((query @ query + 1e-6) * (key @ key + 1e-6))
        semantics = torch.cat([summary[b], region[b]]).double().numpy()
        context = w["context.weight"] @ semantics + w["context.bias"]
        mixed = w["mix.weight"] @ np.append(query, cosine) + w["mix.bias"] + context
        mixed = np.where(mixed > 0, mixed, 0.01 * mixed)
        expected = w["score.weight"] @ mixed + w["score.bias"]
        assert added[b, 0, x, y, z].item() == pytest.approx(expected.item(), abs=1e-10)


def test_first_backward_reaches_the_last_layer(features, summary, region, dead_weights):
    block = SemanticAttention(C, D)
    block(features, summary, region).sum().backward()
    waiting = dead_weights(block)
    assert "score.weight" not in waiting
    assert "score.bias" not in waiting


def test_gradient_reaches_every_weight_once_open(features, summary, region, opened, dead_weights):
    opened(features, summary, region).square().sum().backward()
    assert dead_weights(opened) == []


@pytest.mark.parametrize("changed", ["summary", "region"])
def test_text_constant_over_space_changes_the_output(features, summary, region, opened, changed):
    before = opened(features, summary, region)
    given = {"summary": summary, "region": region}
    given[changed] = -given[changed]
    difference = (opened(features, **given) - before).flatten(1)
    assert (difference.mean(dim=1).abs() > 1e-2).all()  # the level moves, not only the contrast


def test_crop_with_its_window_is_a_crop_of_the_whole(features, summary, region, opened):
    start, stop, grid = torch.tensor([1, 0, 1]), torch.tensor([4, 2, 4]), torch.tensor([X, Y, Z])
    window = torch.stack([start / grid, (stop - start) / grid]).expand(B, 2, 3)
    crop = (..., slice(1, 4), slice(0, 2), slice(1, 4))
    whole = opened(features, summary, region)
    cropped = opened(features[crop], summary, region, window)
    torch.testing.assert_close(cropped, whole[crop], rtol=0, atol=1e-5)
    without = opened(features[crop], summary, region)
    assert (without - whole[crop]).abs().max() > 1e-3  # the window is what makes it so


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mirrored_window_mirrors_the_output(features, summary, region, opened, axis):
    window = torch.tensor([[0.2, 0.1, 0.3], [0.5, 0.8, 0.4]]).repeat(B, 1, 1)
    mirrored = window.clone()
    mirrored[:, 0, axis] += window[:, 1, axis]
    mirrored[:, 1, axis] *= -1
    expected = opened(features, summary, region, window).flip(2 + axis)
    result = opened(features.flip(2 + axis), summary, region, mirrored)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_only_the_changed_voxel_changes(features, summary, region, opened):
    moved = features.clone()
    moved[1, 2, 4, 0, 3] += 1
    changed = (opened(moved, summary, region) - opened(features, summary, region)).abs() > 1e-6
    assert changed.nonzero().tolist() == [[1, 0, 4, 0, 3]]


def test_adding_moves_decisions_where_a_positive_factor_moves_none(
    features, summary, region, opened
):
    added = opened(features, summary, region)
    logits = torch.randn(added.shape, generator=torch.Generator().manual_seed(3))
    assert torch.equal(logits * 2 * torch.sigmoid(added) > 0, logits > 0)
    moved = (logits + added > 0) != (logits > 0)
    assert moved.any()
    assert not moved.all()


def test_zero_key_and_query_stay_finite(summary, region, opened):
    for layer in (opened.query, opened.key):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    added = opened(torch.zeros(B, C, X, Y, Z), summary, region)
    added.sum().backward()
    assert added.isfinite().all()
    assert all(weight.grad.isfinite().all() for weight in opened.parameters())
