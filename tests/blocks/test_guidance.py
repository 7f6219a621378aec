"""Mirrors clipseg3d/blocks/guidance.py. Sizes differ pairwise, so a swapped axis fails."""

import math
from typing import get_args

import numpy as np
import pytest
import torch

from clipseg3d.blocks.guidance import (
    GUIDANCE,
    CrossModalGuidance,
    FilmGuidance,
    Guidance,
    GuidanceKind,
    NoGuidance,
    SequentialGuidance,
    build_guidance,
)
from clipseg3d.blocks.semantic_bridge import SemanticBridge
from clipseg3d.blocks.semantic_fusion import SemanticFusion
from clipseg3d.blocks.semantic_gate import SemanticGate
from clipseg3d.blocks.sequential_attention import SequentialCrossAttention
from clipseg3d.views import Views

B, V, N, E, E_TEXT, D, HEADS = 2, 3, 5, 10, 6, 12, 4
QUERIES_AND_KEYS = slice(0, 2 * D)  # of MHSA's input projection
KINDS = list(GUIDANCE)


@pytest.fixture
def views():
    return torch.randn(B, V, E, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def text():
    return torch.randn(
        B, N, E_TEXT, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )


@pytest.fixture
def make(randomise):
    """Build guidance as if trained."""

    def build(kind="gate", **options):
        options = {"text_dim": E_TEXT, **options}
        torch.manual_seed(0)
        guidance = build_guidance(kind, E, D, num_heads=HEADS, **options)
        return randomise(guidance).double().eval()

    return build


def weights_of(module):
    return {name: weight.detach().numpy() for name, weight in module.named_parameters()}


@pytest.fixture
def mapped(normalised):
    """A mapper, Linear-LayerNorm-GELU-Linear, on one vector."""

    def apply(w, tower, vector):
        hidden = w[f"{tower}.0.weight"] @ vector.numpy() + w[f"{tower}.0.bias"]
        hidden = normalised(hidden, w[f"{tower}.1.weight"], w[f"{tower}.1.bias"])
        hidden = np.array([0.5 * h * (1 + math.erf(h / math.sqrt(2))) for h in hidden])
        return w[f"{tower}.3.weight"] @ hidden + w[f"{tower}.3.bias"]

    return apply


@pytest.fixture
def reference(mapped, normalised, multihead):
    """Each kind with loops over cases, heads and tokens, in float64."""

    def loop(guidance, views, text, mask):
        w = weights_of(guidance)
        out = []
        for b in range(len(views)):
            t = [mapped(w, "map_text", text[b, n]) for n in range(N) if mask[b, n]]
            t = sum(t) / len(t)
            shown = list(views[b])
            if guidance.tokens == "mean":
                shown = [sum(shown) / len(shown)]
            v = [mapped(w, "map_views", view) for view in shown]
            if isinstance(guidance, CrossModalGuidance):
                gate = 1 / (1 + np.exp(-t))
                content = [one * gate + t * (1 - gate) for one in v]
                read = multihead(w, "attention", content, content, HEADS)
                content = [c + r for c, r in zip(content, read, strict=True)]
            elif isinstance(guidance, FilmGuidance):
                gamma = w["film.weight"][:D] @ t + w["film.bias"][:D]
                beta = w["film.weight"][D:] @ t + w["film.bias"][D:]
                content = [one * (1 + gamma) + beta for one in v]
            else:
                assert isinstance(guidance, NoGuidance)
                content = v
            out.append([normalised(c, w["norm.weight"], w["norm.bias"]) for c in content])
        return torch.from_numpy(np.array(out))

    return loop


# kinds


def test_every_kind_has_a_name_and_a_class():
    assert dict(GUIDANCE) == {
        "gate": CrossModalGuidance,
        "sequential": SequentialGuidance,
        "film": FilmGuidance,
        "none": NoGuidance,
    }
    assert set(get_args(GuidanceKind)) == set(GUIDANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_build_guidance_passes_every_argument_on(kind):
    options = {"tokens": "mean", "text_dim": E_TEXT, "num_heads": HEADS, "dropout": 0.7}
    guidance = build_guidance(kind, E, D, **options)
    assert type(guidance) is GUIDANCE[kind]
    assert (guidance.embed_dim, guidance.dim) == (E, D)
    assert {name: getattr(guidance, name) for name in options} == options
    assert build_guidance(kind, E).dim == 256


def test_a_kind_must_say_how_views_and_text_combine():
    with pytest.raises(TypeError, match="combine"):
        Guidance(E, D)


class MeanGuidance(Guidance):
    """The mean of views and text."""

    def combine(self, views, text):
        return (views + text) / 2


def test_a_new_kind_needs_only_a_class_and_an_entry(monkeypatch, tiny_clip, randomise):
    monkeypatch.setitem(GUIDANCE, "average", MeanGuidance)
    guidance = build_guidance("average", tiny_clip.embed_dim, D, text_dim=E_TEXT, num_heads=HEADS)
    assert type(guidance) is MeanGuidance
    fusion = SemanticFusion(
        SemanticBridge(tiny_clip), guidance, bottleneck_channels=9, decoder_channels=8
    ).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (B, V, 32, 32, 4), generator=generator, dtype=torch.uint8)
    views = Views(images, torch.rand(B, V, 3, generator=generator))
    text = torch.randn(B, N, E_TEXT, generator=generator)
    bottleneck = torch.randn(B, 9, 2, 3, 4, generator=generator)
    features = torch.randn(B, 8, 4, 6, 8, generator=generator)

    def head(features):
        return features[:, :3]

    semantics = fusion.encode(views, text)
    assert semantics.tokens.shape == (B, V, D)
    assert torch.equal(fusion.guide(bottleneck, semantics), bottleneck)
    assert torch.equal(fusion.attend(features, semantics, head), head(features))
    semantics = randomise(fusion).encode(views, text)
    embedded = fusion.bridge.embed(views).tokens
    everything = torch.ones(B, V, dtype=torch.bool)
    mapped = guidance.map_views(fusion.centre_views(embedded, everything))
    reports = fusion.whiten_reports(text[:, 3:], everything[:, :2])  # they guide, prompts do not
    mean_text = guidance.map_text(reports).mean(dim=1, keepdim=True)
    torch.testing.assert_close(semantics.tokens, guidance.norm((mapped + mean_text) / 2))
    assert (fusion.guide(bottleneck, semantics) != bottleneck).any()
    assert (fusion.attend(features, semantics, head) != head(features)).any()


# the bottleneck


@pytest.mark.parametrize("kind", ["gate", "film", "none"])
def test_a_gate_changes_the_bottleneck_by_the_summary(make, randomise, kind):
    guidance = make(kind)
    block = guidance.build_bottleneck(9)
    assert type(block) is SemanticGate
    randomise(block)
    features, summary = torch.randn(B, 9, 2, 4, 5), torch.randn(B, D)
    changed = guidance.change_bottleneck(
        block, features, summary=summary, tokens=None, token_mask=None, crop_box=None
    )
    assert torch.equal(changed, block(features, summary))
    assert not guidance.reads_prompts


def test_sequential_changes_the_bottleneck_by_all_tokens(make, randomise):
    guidance = make("sequential", dropout=0.4)
    block = guidance.build_bottleneck(9)
    assert type(block) is SequentialCrossAttention
    assert block.read.num_heads == HEADS
    assert block.read.dropout == 0.4
    randomise(block).eval()
    features, tokens = torch.randn(B, 9, 2, 4, 5), torch.randn(B, N, D)
    mask = torch.tensor([[True] * N, [True, False, True, False, True]])
    crop_box = torch.tensor([[0.2, 0.1, 0.3], [0.5, 0.8, 0.4]]).repeat(B, 1, 1)
    changed = guidance.change_bottleneck(
        block, features, summary=None, tokens=tokens, token_mask=mask, crop_box=crop_box
    )
    assert torch.equal(changed, block(features, tokens, mask, crop_box))
    assert guidance.reads_prompts


# equations


@pytest.mark.parametrize("kind", ["gate", "film", "none"])
@pytest.mark.parametrize("tokens", ["views", "mean"])
def test_equations(make, reference, views, text, kind, tokens):
    """Equations 3-5 for ``gate``; the literal reading of the paper for ``mean``."""
    guidance = make(kind, tokens=tokens)
    mask = torch.ones(B, N, dtype=torch.bool)
    result, token_mask = guidance(views, text)
    assert result.shape == (B, V if tokens == "views" else 1, D)
    torch.testing.assert_close(result, reference(guidance, views, text, mask), rtol=0, atol=1e-10)
    assert token_mask.shape == result.shape[:2]
    assert token_mask.all()
    mask[0, 2:] = False
    result, _ = guidance(views, text, text_mask=mask)
    torch.testing.assert_close(result, reference(guidance, views, text, mask), rtol=0, atol=1e-10)


@pytest.mark.parametrize("tokens", ["views", "mean"])
def test_sequential_returns_all_tokens(make, mapped, normalised, views, text, tokens):
    guidance = make("sequential", tokens=tokens)
    w = weights_of(guidance)
    valid = torch.tensor([True, False])
    mask = torch.tensor([[True, True, False, True, False], [False, True, True, True, True]])
    result, token_mask = guidance(views, text, views_valid=valid, text_mask=mask)
    count = V if tokens == "views" else 1
    assert result.shape == (B, count + N, D)
    shown = views if tokens == "views" else views.mean(dim=1, keepdim=True)
    for b in range(B):
        expected = [mapped(w, "map_views", shown[b, v]) for v in range(count)]
        expected += [mapped(w, "map_text", text[b, n]) for n in range(N)]
        for token, plain in zip(result[b], expected, strict=True):
            plain = torch.from_numpy(normalised(plain, w["norm.weight"], w["norm.bias"]))
            torch.testing.assert_close(token, plain, rtol=0, atol=1e-10)
        assert token_mask[b].tolist() == [bool(valid[b])] * count + mask[b].tolist()
    only_views, mask_views = guidance(views, None, views_valid=valid)
    assert torch.equal(only_views, result[:, :count])
    assert mask_views.tolist() == [[True] * count, [False] * count]
    only_text, mask_text = guidance(None, text, text_mask=mask)
    torch.testing.assert_close(only_text, result[:, count:])
    assert torch.equal(mask_text, mask)
    assert guidance(views, text)[1].all()


def test_queries_and_keys_are_idle_over_one_averaged_token(make, views, text):
    def redraw(guidance):
        with torch.no_grad():
            guidance.attention.in_proj_weight[QUERIES_AND_KEYS] = (
                3.0 * torch.randn(2 * D, D).double()
            )
            guidance.attention.in_proj_bias[QUERIES_AND_KEYS] = 1.0

    literal, ours = make(tokens="mean"), make(tokens="views")
    one, three = literal(views, text)[0], ours(views, text)[0]
    assert one.shape == (B, 1, D)
    redraw(literal)
    redraw(ours)
    assert torch.equal(literal(views, text)[0], one)
    assert (ours(views, text)[0] - three).abs().max() > 1e-3
    torch.testing.assert_close(one, literal(views.mean(dim=1, keepdim=True), text)[0])


def test_film_starts_as_layer_norm_of_the_views(views, text):
    torch.manual_seed(0)
    guidance = FilmGuidance(E, D, num_heads=HEADS, text_dim=E_TEXT).double()
    tokens, _ = guidance(views, text)
    assert torch.equal(tokens, guidance.norm(guidance.map_views(views)))


def test_text_guides_nothing_in_none(make, views, text):
    guidance = make("none")
    tokens, token_mask = guidance(views, text)
    assert torch.equal(tokens, guidance(views, -text)[0])
    assert torch.equal(tokens, guidance(views, None)[0])
    assert token_mask.all()
    valid = torch.tensor([True, False])
    assert guidance(views, text, views_valid=valid)[1].tolist() == [[True] * V, [False] * V]
    tokens, token_mask = guidance(None, text)
    assert tokens.shape == (B, 1, D)
    assert not token_mask.any()
    assert torch.equal(tokens, guidance(None, -text)[0])


@pytest.mark.parametrize("kind", ["gate", "sequential", "film"])
def test_text_and_views_both_count(make, views, text, kind):
    guidance = make(kind)
    result, _ = guidance(views, text)
    assert not torch.allclose(guidance(views.flip(0), text)[0], result)
    assert not torch.allclose(guidance(views, text.flip(0))[0], result)


# what is missing


@pytest.mark.parametrize("kind", KINDS)
def test_masked_text_changes_nothing(make, views, text, kind):
    guidance = make(kind)
    mask = torch.tensor([True, True, False, True, False]).expand(B, N)
    result, token_mask = guidance(views, text, text_mask=mask)
    compact, _ = guidance(views, text[:, [0, 1, 3]])
    torch.testing.assert_close(
        result[token_mask].view(B, -1, D) if kind == "sequential" else result, compact
    )
    text[:, 2], text[:, 4] = 100, -100
    after, _ = guidance(views, text, text_mask=mask)
    assert torch.equal(after[token_mask], result[token_mask])


@pytest.mark.parametrize("kind", ["gate", "film"])
def test_shapes_with_one_side_only(make, views, text, kind):
    guidance = make(kind)
    for given, count in (((views, text), V), ((views, None), V), ((None, text), 1)):
        tokens, token_mask = guidance(*given)
        assert tokens.shape == (B, count, D)
        assert token_mask.shape == (B, count)
        assert token_mask.all()


@pytest.mark.parametrize("kind", ["gate", "sequential", "film"])
def test_one_side_only_is_that_one(make, views, text, kind):
    guidance = make(kind)
    mapped = guidance.map_views(views)
    mean_text = guidance.map_text(text).mean(dim=1, keepdim=True)
    torch.testing.assert_close(guidance.blend(views, None), mapped)
    torch.testing.assert_close(guidance.blend(None, text), mean_text)
    if kind == "film":
        torch.testing.assert_close(guidance(views, None)[0], guidance.norm(mapped))
        torch.testing.assert_close(guidance(None, text)[0], guidance.norm(mean_text))
    if kind == "gate":
        attended = guidance.attention(mapped, mapped, mapped)[0]
        torch.testing.assert_close(guidance(views, None)[0], guidance.norm(mapped + attended))


@pytest.mark.parametrize("kind", ["gate", "film"])
def test_each_case_of_a_mixed_batch_gets_what_it_has(make, kind):
    guidance = make(kind)
    generator = torch.Generator().manual_seed(2)
    views = torch.randn(4, V, E, generator=generator, dtype=torch.float64)
    text = torch.randn(4, N, E_TEXT, generator=generator, dtype=torch.float64)
    has_views = torch.tensor([True, True, False, False])
    has_text = torch.tensor([True, False, True, False])
    mask = has_text[:, None] & torch.tensor([True, True, True, False, False])
    tokens, token_mask = guidance(views, text, views_valid=has_views, text_mask=mask)
    both, _ = guidance(views[:1], text[:1, :3])
    only_views, _ = guidance(views[1:2], None)
    only_text = guidance(None, text[2:3, :3])[0].expand(1, V, D)
    torch.testing.assert_close(tokens[:3], torch.cat([both, only_views, only_text]))
    assert tokens.isfinite().all()
    assert token_mask.tolist() == [[True] * V] * 3 + [[False] * V]


@pytest.mark.parametrize("kind", KINDS)
def test_ignored_views_have_no_influence(make, views, text, kind):
    guidance = make(kind)
    valid = torch.tensor([True, False])
    tokens, token_mask = guidance(views, text, views_valid=valid)
    views[1] = 7
    after, _ = guidance(views, text, views_valid=valid)
    assert torch.equal(after[token_mask], tokens[token_mask])


@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_what_is_not_given_do_not_count(make, views, text, kind):
    guidance = make(kind)
    nothing = torch.zeros(B, dtype=torch.bool)
    _, token_mask = guidance(
        views, None, views_valid=nothing, text_mask=torch.ones(B, N, dtype=torch.bool)
    )
    assert not token_mask.any()
    _, token_mask = guidance(
        None, text, views_valid=~nothing, text_mask=torch.zeros(B, N, dtype=torch.bool)
    )
    assert not token_mask.any()


def test_patches_are_blended_one_by_one(make, views, text):
    patches = torch.cat([views, -views, 2 * views], dim=1)
    for kind in KINDS:
        for tokens in ("views", "mean"):
            guidance = make(kind, tokens=tokens)
            together = guidance.blend(patches, text)
            assert together.shape == (B, 3 * V, D)
            for index in range(3 * V):
                single = guidance.blend(patches[:, index : index + 1], text)
                torch.testing.assert_close(together[:, index : index + 1], single)


# text of other sizes


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_as_wide_as_the_views_unless_told(views, kind):
    guidance = build_guidance(kind, E, D, num_heads=HEADS).double()
    tokens, _ = guidance(views, views[:, :2])
    assert tokens.shape == (B, V + 2 * (kind == "sequential"), D)


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_without_text(make, views, text, kind, dead_weights):
    guidance = make(kind, text_dim=0)
    assert guidance.map_text is None
    tokens, token_mask = guidance(views, None)
    assert tokens.shape == (B, V, D)
    assert token_mask.all()
    tokens.pow(3).sum().backward()
    assert dead_weights(guidance) == []
    with pytest.raises(ValueError, match="text is given to guidance built with text_dim=0"):
        guidance(views, text)
    with pytest.raises(ValueError, match="text is given to guidance built with text_dim=0"):
        guidance.blend(None, text)


# training


@pytest.mark.parametrize("kind", ["gate", "sequential", "film"])
def test_gradient_reaches_every_weight(make, views, text, kind, dead_weights):
    guidance = make(kind)
    guidance(views, text)[0].pow(3).sum().backward()
    assert dead_weights(guidance) == []


def test_gradient_reaches_new_film(views, text, dead_weights):
    guidance = FilmGuidance(E, D, num_heads=HEADS, text_dim=E_TEXT).double()
    guidance(views, text)[0].pow(3).sum().backward()
    assert not {"film.weight", "film.bias"} & set(dead_weights(guidance))


def test_eval_ignores_dropout(views, text):
    torch.manual_seed(0)
    guidance = CrossModalGuidance(E, D, num_heads=HEADS, text_dim=E_TEXT, dropout=0.5).double()
    assert not torch.equal(guidance(views, text)[0], guidance(views, text)[0])
    guidance.eval()
    assert torch.equal(guidance(views, text)[0], guidance(views, text)[0])


# errors


def test_rejects_batches_of_different_size(make, views, text):
    with pytest.raises(ValueError, match="2 cases with views but 1 with text"):
        make()(views, text[:1])


@pytest.mark.parametrize("kind", KINDS)
def test_rejects_nothing(make, kind):
    with pytest.raises(ValueError, match="neither views nor text"):
        make(kind)(None, None)


def test_rejects_tokens_without_three_axes(make, views, text):
    with pytest.raises(ValueError, match=r"views is \(2, 10\), expected three axes"):
        make()(views[:, 0], text)
    with pytest.raises(ValueError, match=r"text is \(1, 2, 5, 6\), expected three axes"):
        make()(views, text[None])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, r"dim=12 .* num_heads=5"),
        ({"tokens": "max"}, "tokens='max': choose from views, mean"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_rejects_options_it_does_not_know(kind, options, message):
    with pytest.raises(ValueError, match=message):
        build_guidance(kind, E, D, **options)


def test_rejects_an_unknown_kind():
    with pytest.raises(ValueError, match="kind='cross': choose from gate, sequential, film, none"):
        build_guidance("cross", E, D)
