"""Mirrors clipseg3d/blocks/guidance.py. Sizes differ pairwise, so a swapped axis fails."""

import math

import numpy as np
import pytest
import torch

from clipseg3d.blocks.guidance import CrossModalGuidance

B, V, N, E, D, HEADS = 2, 3, 5, 10, 12, 4
NARROW = slice(0, 2 * D)  # of MHSA's input projection: queries and keys


@pytest.fixture
def views():
    return torch.randn(B, V, E, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def text():
    return torch.randn(B, N, E, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def guidance(randomise):
    return randomise(CrossModalGuidance(E, D, num_heads=HEADS)).double().eval()


def layer_norm(vector, weight, bias):
    centred = vector - vector.mean()
    return centred / math.sqrt((centred**2).mean() + 1e-5) * weight + bias


def reference(guidance, views, text, mask):
    """Equations 3-5 with loops over cases, heads and tokens, in float64."""
    w = {name: weight.detach().numpy() for name, weight in guidance.named_parameters()}

    def mapped(tower, vector):
        hidden = w[f"{tower}.0.weight"] @ vector + w[f"{tower}.0.bias"]
        hidden = layer_norm(hidden, w[f"{tower}.1.weight"], w[f"{tower}.1.bias"])
        hidden = np.array([0.5 * h * (1 + math.erf(h / math.sqrt(2))) for h in hidden])
        return w[f"{tower}.3.weight"] @ hidden + w[f"{tower}.3.bias"]

    out = np.zeros((B, V, D))
    for b in range(B):
        kept = [mapped("map_text", text[b, n].numpy()) for n in range(N) if mask[b, n]]
        t = sum(kept) / len(kept)
        gate = 1 / (1 + np.exp(-t))
        content = [
            mapped("map_views", views[b, v].numpy()) * gate + t * (1 - gate) for v in range(V)
        ]
        query, key, value = (
            [
                w["attention.in_proj_weight"][i * D : (i + 1) * D] @ c
                + w["attention.in_proj_bias"][i * D : (i + 1) * D]
                for c in content
            ]
            for i in range(3)
        )
        size = D // HEADS
        for v in range(V):
            read = np.zeros(D)
            for head in range(HEADS):
                part = slice(head * size, (head + 1) * size)
                scores = [query[v][part] @ key[u][part] / math.sqrt(size) for u in range(V)]
                total = sum(math.exp(s) for s in scores)
                for u in range(V):
                    read[part] += math.exp(scores[u]) / total * value[u][part]
            read = w["attention.out_proj.weight"] @ read + w["attention.out_proj.bias"]
            out[b, v] = layer_norm(content[v] + read, w["norm.weight"], w["norm.bias"])
    return torch.from_numpy(out)


def test_equations_3_to_5(guidance, views, text):
    mask = torch.ones(B, N, dtype=torch.bool)
    expected = reference(guidance, views, text, mask)
    torch.testing.assert_close(guidance(views, text), expected, rtol=0, atol=1e-10)
    mask[0, 2:] = False
    expected = reference(guidance, views, text, mask)
    result = guidance(views, text, text_mask=mask)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-10)


def test_masked_text_changes_nothing(guidance, views, text):
    mask = torch.tensor([True, True, False, True, False]).expand(B, N)
    result = guidance(views, text, text_mask=mask)
    torch.testing.assert_close(result, guidance(views, text[:, [0, 1, 3]]))
    text[:, 2], text[:, 4] = 100, -100
    assert torch.equal(guidance(views, text, text_mask=mask), result)


def test_text_and_views_both_count(guidance, views, text):
    result = guidance(views, text)
    assert not torch.allclose(guidance(views.flip(0), text), result)
    assert not torch.allclose(guidance(views, text.flip(0)), result)


def test_shapes_with_one_side_only(guidance, views, text):
    assert guidance(views, text).shape == (B, V, D)
    assert guidance(views, None).shape == (B, V, D)
    assert guidance(None, text).shape == (B, 1, D)


def test_each_case_of_a_mixed_batch_gets_what_it_has(guidance):
    generator = torch.Generator().manual_seed(2)
    views = torch.randn(4, V, E, generator=generator, dtype=torch.float64)
    text = torch.randn(4, N, E, generator=generator, dtype=torch.float64)
    has_views = torch.tensor([True, True, False, False])
    has_text = torch.tensor([True, False, True, False])
    mask = has_text[:, None] & torch.tensor([True, True, True, False, False])
    tokens = guidance(views, text, views_valid=has_views, text_mask=mask)
    both = guidance(views[:1], text[:1, :3])
    only_views = guidance(views[1:2], None)
    only_text = guidance(None, text[2:3, :3]).expand(1, V, D)
    torch.testing.assert_close(tokens[:3], torch.cat([both, only_views, only_text]))
    assert tokens.isfinite().all()


def test_ignored_views_have_no_influence(guidance, views, text):
    valid = torch.tensor([True, False])
    tokens = guidance(views, text, views_valid=valid)
    views[1] = 7
    assert torch.equal(guidance(views, text, views_valid=valid), tokens)


def test_queries_and_keys_are_idle_over_one_averaged_token(guidance, views, text):
    averaged = views.mean(dim=1, keepdim=True)
    one, three = guidance(averaged, text), guidance(views, text)
    with torch.no_grad():
        guidance.attention.in_proj_weight[NARROW] = 3.0 * torch.randn(2 * D, D).double()
        guidance.attention.in_proj_bias[NARROW] = 1.0
    assert torch.equal(guidance(averaged, text), one)
    assert (guidance(views, text) - three).abs().max() > 1e-3


def test_gradient_reaches_every_weight(guidance, views, text, dead_weights):
    guidance(views, text).pow(3).sum().backward()
    assert dead_weights(guidance) == []


def test_eval_ignores_dropout(views, text):
    torch.manual_seed(0)
    guidance = CrossModalGuidance(E, D, num_heads=HEADS, dropout=0.5).double()
    assert not torch.equal(guidance(views, text), guidance(views, text))
    guidance.eval()
    assert torch.equal(guidance(views, text), guidance(views, text))


def test_rejects_batches_of_different_size(guidance, views, text):
    with pytest.raises(ValueError, match="2 cases with views but 1 with text"):
        guidance(views, text[:1])


def test_rejects_nothing(guidance):
    with pytest.raises(ValueError, match="neither views nor text"):
        guidance(None, None)


def test_rejects_indivisible_heads():
    with pytest.raises(ValueError, match=r"dim=12 .* num_heads=5"):
        CrossModalGuidance(E, D, num_heads=5)
