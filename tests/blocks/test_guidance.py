"""Mirrors clipseg3d/blocks/guidance.py. Sizes differ pairwise, so a swapped axis fails."""

import math

import numpy as np
import pytest
import torch

from clipseg3d.blocks.guidance import CrossModalGuidance

B, V, N, E, E_TEXT, D, HEADS = 2, 3, 5, 10, 6, 12, 4
NARROW = slice(0, 2 * D)  # of MHSA's input projection: queries and keys
KINDS = ["gate", "sequential", "film", "none"]


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
        guidance = CrossModalGuidance(E, D, kind=kind, num_heads=HEADS, **options)
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
            seen = list(views[b])
            if guidance.tokens == "mean":
                seen = [sum(seen) / len(seen)]
            v = [mapped(w, "map_views", view) for view in seen]
            if guidance.kind == "gate":
                gate = 1 / (1 + np.exp(-t))
                content = [one * gate + t * (1 - gate) for one in v]
                read = multihead(w, "attention", content, content, HEADS)
                content = [c + r for c, r in zip(content, read, strict=True)]
            elif guidance.kind == "film":
                gamma = w["film.weight"][:D] @ t + w["film.bias"][:D]
                beta = w["film.weight"][D:] @ t + w["film.bias"][D:]
                content = [one * (1 + gamma) + beta for one in v]
            else:
                content = v
            out.append([normalised(c, w["norm.weight"], w["norm.bias"]) for c in content])
        return torch.from_numpy(np.array(out))

    return loop


# equations


@pytest.mark.parametrize("kind", ["gate", "film", "none"])
@pytest.mark.parametrize("tokens", ["views", "mean"])
def test_equations(make, reference, views, text, kind, tokens):
    """Equations 3-5 for ``gate``; the literal reading of the paper for ``mean``."""
    guidance = make(kind, tokens=tokens)
    mask = torch.ones(B, N, dtype=torch.bool)
    result, known = guidance(views, text)
    assert result.shape == (B, V if tokens == "views" else 1, D)
    torch.testing.assert_close(result, reference(guidance, views, text, mask), rtol=0, atol=1e-10)
    assert known.shape == result.shape[:2]
    assert known.all()
    mask[0, 2:] = False
    result, _ = guidance(views, text, text_mask=mask)
    torch.testing.assert_close(result, reference(guidance, views, text, mask), rtol=0, atol=1e-10)


@pytest.mark.parametrize("tokens", ["views", "mean"])
def test_sequential_returns_all_tokens(make, mapped, normalised, views, text, tokens):
    guidance = make("sequential", tokens=tokens)
    w = weights_of(guidance)
    valid = torch.tensor([True, False])
    mask = torch.tensor([[True, True, False, True, False], [False, True, True, True, True]])
    result, known = guidance(views, text, views_valid=valid, text_mask=mask)
    count = V if tokens == "views" else 1
    assert result.shape == (B, count + N, D)
    shown = views if tokens == "views" else views.mean(dim=1, keepdim=True)
    for b in range(B):
        expected = [mapped(w, "map_views", shown[b, v]) for v in range(count)]
        expected += [mapped(w, "map_text", text[b, n]) for n in range(N)]
        for token, plain in zip(result[b], expected, strict=True):
            plain = torch.from_numpy(normalised(plain, w["norm.weight"], w["norm.bias"]))
            torch.testing.assert_close(token, plain, rtol=0, atol=1e-10)
        assert known[b].tolist() == [bool(valid[b])] * count + mask[b].tolist()
    only_views, known_views = guidance(views, None, views_valid=valid)
    assert torch.equal(only_views, result[:, :count])
    assert known_views.tolist() == [[True] * count, [False] * count]
    only_text, known_text = guidance(None, text, text_mask=mask)
    torch.testing.assert_close(only_text, result[:, count:])
    assert torch.equal(known_text, mask)
    assert guidance(views, text)[1].all()


def test_queries_and_keys_are_idle_over_one_averaged_token(make, views, text):
    def redraw(guidance):
        with torch.no_grad():
            guidance.attention.in_proj_weight[NARROW] = 3.0 * torch.randn(2 * D, D).double()
            guidance.attention.in_proj_bias[NARROW] = 1.0

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
    guidance = CrossModalGuidance(E, D, kind="film", num_heads=HEADS, text_dim=E_TEXT).double()
    tokens, _ = guidance(views, text)
    assert torch.equal(tokens, guidance.norm(guidance.map_views(views)))


def test_text_guides_nothing_in_none(make, views, text):
    guidance = make("none")
    tokens, known = guidance(views, text)
    assert torch.equal(tokens, guidance(views, -text)[0])
    assert torch.equal(tokens, guidance(views, None)[0])
    assert known.all()
    valid = torch.tensor([True, False])
    assert guidance(views, text, views_valid=valid)[1].tolist() == [[True] * V, [False] * V]
    tokens, known = guidance(None, text)
    assert tokens.shape == (B, 1, D)
    assert not known.any()
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
    result, known = guidance(views, text, text_mask=mask)
    compact, _ = guidance(views, text[:, [0, 1, 3]])
    torch.testing.assert_close(
        result[known].view(B, -1, D) if kind == "sequential" else result, compact
    )
    text[:, 2], text[:, 4] = 100, -100
    after, _ = guidance(views, text, text_mask=mask)
    assert torch.equal(after[known], result[known])


@pytest.mark.parametrize("kind", ["gate", "film"])
def test_shapes_with_one_side_only(make, views, text, kind):
    guidance = make(kind)
    for given, count in (((views, text), V), ((views, None), V), ((None, text), 1)):
        tokens, known = guidance(*given)
        assert tokens.shape == (B, count, D)
        assert known.shape == (B, count)
        assert known.all()


@pytest.mark.parametrize("kind", ["gate", "sequential", "film"])
def test_one_side_only_is_that_one(make, views, text, kind):
    guidance = make(kind)
    seen = guidance.map_views(views)
    said = guidance.map_text(text).mean(dim=1, keepdim=True)
    torch.testing.assert_close(guidance.blend(views, None), seen)
    torch.testing.assert_close(guidance.blend(None, text), said)
    if kind == "film":
        torch.testing.assert_close(guidance(views, None)[0], guidance.norm(seen))
        torch.testing.assert_close(guidance(None, text)[0], guidance.norm(said))
    if kind == "gate":
        attended = guidance.attention(seen, seen, seen)[0]
        torch.testing.assert_close(guidance(views, None)[0], guidance.norm(seen + attended))


@pytest.mark.parametrize("kind", ["gate", "film"])
def test_each_case_of_a_mixed_batch_gets_what_it_has(make, kind):
    guidance = make(kind)
    generator = torch.Generator().manual_seed(2)
    views = torch.randn(4, V, E, generator=generator, dtype=torch.float64)
    text = torch.randn(4, N, E_TEXT, generator=generator, dtype=torch.float64)
    has_views = torch.tensor([True, True, False, False])
    has_text = torch.tensor([True, False, True, False])
    mask = has_text[:, None] & torch.tensor([True, True, True, False, False])
    tokens, known = guidance(views, text, views_valid=has_views, text_mask=mask)
    both, _ = guidance(views[:1], text[:1, :3])
    only_views, _ = guidance(views[1:2], None)
    only_text = guidance(None, text[2:3, :3])[0].expand(1, V, D)
    torch.testing.assert_close(tokens[:3], torch.cat([both, only_views, only_text]))
    assert tokens.isfinite().all()
    assert known.tolist() == [[True] * V] * 3 + [[False] * V]


@pytest.mark.parametrize("kind", KINDS)
def test_ignored_views_have_no_influence(make, views, text, kind):
    guidance = make(kind)
    valid = torch.tensor([True, False])
    tokens, known = guidance(views, text, views_valid=valid)
    views[1] = 7
    after, _ = guidance(views, text, views_valid=valid)
    assert torch.equal(after[known], tokens[known])


@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_what_is_not_given_do_not_count(make, views, text, kind):
    guidance = make(kind)
    nothing = torch.zeros(B, dtype=torch.bool)
    _, known = guidance(
        views, None, views_valid=nothing, text_mask=torch.ones(B, N, dtype=torch.bool)
    )
    assert not known.any()
    _, known = guidance(
        None, text, views_valid=~nothing, text_mask=torch.zeros(B, N, dtype=torch.bool)
    )
    assert not known.any()


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
    guidance = CrossModalGuidance(E, D, kind=kind, num_heads=HEADS).double()
    tokens, _ = guidance(views, views[:, :2])
    assert tokens.shape == (B, V + 2 * (kind == "sequential"), D)


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_without_text(make, views, text, kind, dead_weights):
    guidance = make(kind, text_dim=0)
    assert guidance.map_text is None
    tokens, known = guidance(views, None)
    assert tokens.shape == (B, V, D)
    assert known.all()
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
    guidance = CrossModalGuidance(E, D, kind="film", num_heads=HEADS, text_dim=E_TEXT).double()
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
        ({"kind": "cross"}, "kind='cross': choose from gate, sequential, film, none"),
        ({"tokens": "max"}, "tokens='max': choose from views, mean"),
    ],
)
def test_rejects_options_it_does_not_know(options, message):
    with pytest.raises(ValueError, match=message):
        CrossModalGuidance(E, D, **options)
