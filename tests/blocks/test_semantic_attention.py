"""Mirrors clipseg3d/blocks/semantic_attention.py. Sizes differ pairwise."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from clipseg3d.blocks.semantic_attention import SemanticAttention, apply_scores

B, C, X, Y, Z, D, HIDDEN, R = 2, 6, 5, 3, 4, 7, 8, 3
MODES = ["residual", "gain", "damped"]


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


# semantic attention


def test_scores_of_new_attention_are_zero(features, summary, region):
    scores, cosines = SemanticAttention(C, D)(features, summary, region)
    assert scores.shape == cosines.shape == (B, 1, X, Y, Z)
    assert not scores.any()
    assert cosines.all()


def test_attention_equations(features, summary, region, opened):
    opened.double()
    w = {n: p.detach().numpy() for n, p in opened.named_parameters()}
    w = {n: p.reshape(p.shape[0], -1) if p.ndim == 5 else p for n, p in w.items()}
    scores, cosines = opened(features.double(), summary.double(), region.double())
    for b, x, y, z in np.ndindex(B, X, Y, Z):
        position = [(2 * x + 1) / X - 1, (2 * y + 1) / Y - 1, (2 * z + 1) / Z - 1]
        voxel, prompt = features[b, :, x, y, z].double().numpy(), region[b].double().numpy()
        query = w["query.weight"] @ voxel + w["query.bias"]
        key = w["key.weight"] @ prompt + w["key.bias"]
        cosine = query @ key / math.sqrt((query @ query + 1e-6) * (key @ key + 1e-6))
        hidden = w["position.0.weight"] @ position + w["position.0.bias"]
        hidden = np.where(hidden > 0, hidden, 0.01 * hidden)
        embedded = w["position.2.weight"] @ hidden + w["position.2.bias"]
        position_key = w["position_key.weight"] @ prompt + w["position_key.bias"]
        cues = [cosine / 0.07, *(embedded * position_key)]
        text = torch.cat([summary[b], region[b]]).double().numpy()
        context = w["context.weight"] @ text + w["context.bias"]
        mixed = w["mix.weight"] @ np.append(query, cues) + w["mix.bias"] + context
        mixed = np.where(mixed > 0, mixed, 0.01 * mixed)
        expected = w["score.weight"] @ np.append(mixed, cues) + w["score.bias"]
        assert scores[b, 0, x, y, z].item() == pytest.approx(expected.item(), abs=1e-10)
        assert cosines[b, 0, x, y, z].item() == pytest.approx(cosine, abs=1e-10)


def test_first_backward_reaches_the_last_layer(features, summary, region, dead_weights):
    block = SemanticAttention(C, D)
    block(features, summary, region)[0].sum().backward()
    waiting = dead_weights(block)
    assert "score.weight" not in waiting
    assert "score.bias" not in waiting


def test_gradient_reaches_every_weight_once_open(features, summary, region, opened, dead_weights):
    opened(features, summary, region)[0].square().sum().backward()
    assert dead_weights(opened) == []


def test_cosines_alone_train_query_and_key(features, summary, region, dead_weights):
    block = SemanticAttention(C, D)
    block(features, summary, region)[1].square().sum().backward()
    trained = {"query.weight", "query.bias", "key.weight", "key.bias"}
    assert not trained & set(dead_weights(block))


@pytest.mark.parametrize("changed", ["summary", "region"])
def test_text_constant_over_space_changes_the_scores(features, summary, region, opened, changed):
    before, cosines = opened(features, summary, region)
    given = {"summary": summary, "region": region}
    given[changed] = -given[changed]
    after, moved = opened(features, **given)
    # the level moves, not only the contrast
    assert ((after - before).flatten(1).mean(dim=1).abs() > 1e-3).all()
    assert torch.allclose(moved, cosines, atol=1e-2) == (changed == "summary")


def test_crop_with_its_crop_box_is_a_crop_of_the_whole(features, summary, region, opened):
    start, stop, grid = torch.tensor([1, 0, 1]), torch.tensor([4, 2, 4]), torch.tensor([X, Y, Z])
    crop_box = torch.stack([start / grid, (stop - start) / grid]).expand(B, 2, 3)
    crop = (..., slice(1, 4), slice(0, 2), slice(1, 4))
    whole = torch.stack(opened(features, summary, region))
    cropped = torch.stack(opened(features[crop], summary, region, crop_box))
    torch.testing.assert_close(cropped, whole[crop], rtol=0, atol=1e-5)
    without = torch.stack(opened(features[crop], summary, region))
    assert (without - whole[crop]).abs().max() > 1e-3  # the crop_box is what makes it so


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mirrored_crop_box_mirrors_the_output(features, summary, region, opened, axis):
    crop_box = torch.tensor([[0.2, 0.1, 0.3], [0.5, 0.8, 0.4]]).repeat(B, 1, 1)
    mirrored = crop_box.clone()
    mirrored[:, 0, axis] += crop_box[:, 1, axis]
    mirrored[:, 1, axis] *= -1
    expected = torch.stack(opened(features, summary, region, crop_box)).flip(3 + axis)
    result = torch.stack(opened(features.flip(2 + axis), summary, region, mirrored))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_only_the_changed_voxel_changes(features, summary, region, opened):
    moved = features.clone()
    moved[1, 2, 4, 0, 3] += 1
    for before, after in zip(
        opened(features, summary, region), opened(moved, summary, region), strict=True
    ):
        assert ((after - before).abs() > 1e-6).nonzero().tolist() == [[1, 0, 4, 0, 3]]


def test_zero_key_and_query_stay_finite(summary, region, opened):
    for layer in (opened.query, opened.key):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    scores, cosines = opened(torch.zeros(B, C, X, Y, Z), summary, region)
    (scores.sum() + cosines.sum()).backward()
    assert scores.isfinite().all()
    assert not cosines.any()
    assert all(weight.grad.isfinite().all() for weight in opened.parameters())


# logits changed by scores


@pytest.fixture
def head():
    torch.manual_seed(4)
    return nn.Conv3d(C, R, 1)


@pytest.fixture
def scores():
    """Of two guided regions; large enough to move decisions."""
    generator = torch.Generator().manual_seed(5)
    return 4 * torch.randn(B, 2, X, Y, Z, generator=generator)


FULL, GUIDED = torch.ones(B), (2, 0)  # channel 1 is not guided


def change(head, features, scores, weight=FULL, **options):
    return apply_scores(head, features, scores, weight, **{"guided": GUIDED, **options})


def test_residual_adds(head, features, scores):
    logits = head(features)
    weight = torch.tensor([0.25, 1.0])
    result = change(head, features, scores, weight)
    assert torch.equal(result, change(head, features, scores, weight, mode="residual"))
    assert result.shape == (B, R, X, Y, Z)
    for b in range(B):
        for channel, region in enumerate(GUIDED):
            torch.testing.assert_close(
                result[b, region], logits[b, region] + weight[b] * scores[b, channel]
            )


@pytest.mark.parametrize("weight", [1.0, 0.5, 0.125, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_paper_multiplies_probabilities(head, features, scores, weight, dtype):
    """Equation 6, faded in by the weight."""
    head, features, scores = head.to(dtype), features.to(dtype), scores.to(dtype)
    probabilities = torch.sigmoid(head(features).double())
    weights = torch.full((B,), weight)
    result = change(head, features, scores, weights, mode="damped")
    assert result.dtype == dtype
    for channel, region in enumerate(GUIDED):
        factor = torch.sigmoid(scores[:, channel].double() + 4)
        expected = probabilities[:, region] * (1 - weight + weight * factor)
        got = torch.sigmoid(result[:, region].double())
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_paper_weights_are_per_case(head, features, scores):
    weight = torch.tensor([0.5, 1.0])
    result = change(head, features, scores, weight, mode="damped")
    for b in range(B):
        case = slice(b, b + 1)
        alone = change(head, features[case], scores[case], weight[case], mode="damped")
        torch.testing.assert_close(result[case], alone)


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_paper_only_lowers(head, features, scores, weight):
    logits = head(features)
    result = change(head, features, scores, torch.full((B,), weight), mode="damped")
    for region in GUIDED:
        assert (result[:, region] < logits[:, region]).all()
    assert not ((result > 0) & (logits <= 0)).any()
    lower = change(head, features, scores - 6, torch.full((B,), weight), mode="damped")
    assert ((lower > 0) != (logits > 0)).any()


def test_new_paper_gate_hardly_lowers(head, features):
    zeros = torch.zeros(B, 2, X, Y, Z)
    probabilities = torch.sigmoid(change(head, features, zeros, mode="damped"))
    expected = torch.sigmoid(head(features))
    expected[:, GUIDED] *= 0.9820138
    torch.testing.assert_close(probabilities, expected)


def test_gain_shows_the_head_gained_features(head, features, scores):
    weight = torch.tensor([0.25, 1.0])
    result = change(head, features, scores, weight, mode="gain")
    for b in range(B):
        for channel, region in enumerate(GUIDED):
            gain = 2 / (1 + torch.exp(-weight[b] * scores[b, channel]))
            expected = head((features[b] * gain)[None])[0, region]
            torch.testing.assert_close(result[b, region], expected)


def test_a_positive_factor_on_logits_moves_no_decision_but_the_modes_do(head, features, scores):
    logits = head(features)
    assert torch.equal(logits[:, :2] * 2 * torch.sigmoid(scores) > 0, logits[:, :2] > 0)
    for mode in ("residual", "gain"):
        result = change(head, features, scores, mode=mode)
        assert ((result > 0) & (logits <= 0)).any(), mode
        assert ((result <= 0) & (logits > 0)).any(), mode
        assert ((result > 0) == (logits > 0)).any(), mode


@pytest.mark.parametrize("mode", MODES)
def test_weight_zero_changes_no_bit(head, features, scores, mode):
    logits = head(features)
    mixed = change(head, features, scores, torch.tensor([0.0, 1.0]), mode=mode)
    assert torch.equal(mixed[0], logits[0])
    assert not torch.equal(mixed[1], logits[1])
    none = change(head, features, 2500 * scores, torch.zeros(B), mode=mode)
    assert torch.equal(none, logits)


@pytest.mark.parametrize("mode", MODES)
def test_unguided_channels_change_no_bit(head, features, scores, mode):
    logits = head(features)
    result = change(head, features, scores, mode=mode)
    changed = (result != logits).flatten(2).any(dim=2)
    assert changed.tolist() == [[True, False, True]] * B


@pytest.mark.parametrize("mode", MODES)
def test_each_score_changes_its_own_channel(head, features, scores, mode):
    before = change(head, features, scores, mode=mode)
    for channel, region in enumerate(GUIDED):
        moved = scores.clone()
        moved[:, channel] += 1
        changed = (change(head, features, moved, mode=mode) != before).flatten(2).any(dim=2)
        assert changed.tolist() == [[r == region for r in range(R)]] * B


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("score", [-1e4, 1e4])
@pytest.mark.parametrize("level", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_extreme_scores_stay_finite(head, features, mode, score, level, weight):
    nn.init.constant_(head.bias, level)
    features.requires_grad_()
    scores = torch.full((B, 2, X, Y, Z), score, requires_grad=True)
    result = change(head, features, scores, torch.full((B,), weight), mode=mode)
    assert result.isfinite().all()
    result.sum().backward()
    assert features.grad.isfinite().all()
    assert scores.grad.isfinite().all()
    assert all(w.grad.isfinite().all() for w in head.parameters())


@pytest.mark.parametrize("mode", MODES)
def test_scores_get_gradient(head, features, scores, mode):
    scores.requires_grad_()
    change(head, features, scores, mode=mode).square().sum().backward()
    assert scores.grad.ne(0).float().mean() > 0.99


def test_coarser_scores_are_interpolated():
    def head(features):
        return nn.functional.interpolate(features, scale_factor=2)

    def run(axis, mode):
        shape = [1, 1, 1, 1, 1]
        shape[axis] = 2
        scores = torch.tensor([0.0, 4.0]).view(shape)
        logits = torch.full(shape, 0.5)
        return apply_scores(head, logits, scores, torch.ones(1), guided=[0], mode=mode)

    for axis in (2, 3, 4):
        finer = [2, 2, 2]
        finer[axis - 2] = 4
        expected = torch.tensor([0.0, 1.0, 3.0, 4.0])  # half a voxel from the centres 0 and 4
        along = [1, 1, 1, 1, 1]
        along[axis] = 4
        expected = expected.view(along).expand(1, 1, *finer)
        torch.testing.assert_close(run(axis, "residual"), 0.5 + expected)
        lowered = torch.sigmoid(torch.tensor(0.5)) * torch.sigmoid(expected + 4)
        torch.testing.assert_close(torch.sigmoid(run(axis, "damped")), lowered)
        gained = 0.5 * 2 * torch.sigmoid(torch.tensor([0.0, 0.0, 4.0, 4.0]))
        torch.testing.assert_close(run(axis, "gain"), gained.view(along).expand(1, 1, *finer))


@pytest.mark.parametrize("mode", MODES)
def test_scores_and_regions_must_be_equally_many(head, features, scores, mode):
    with pytest.raises(ValueError, match="argument"):
        change(head, features, scores, guided=(0,), mode=mode)


def test_unknown_mode_is_refused():
    with pytest.raises(
        ValueError, match="mode='product': choose from residual, gain, damped, paper"
    ):
        change(
            torch.nn.Identity(),
            torch.zeros(1, 1, 2, 2, 2),
            torch.zeros(1, 1, 2, 2, 2),
            mode="product",
        )
