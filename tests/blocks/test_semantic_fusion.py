"""Mirrors clipseg3d/blocks/semantic_fusion.py. Sizes differ pairwise, so a swapped axis fails."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clipseg3d.blocks.guidance import GUIDANCE, build_guidance
from clipseg3d.blocks.patch_lifting import lift_patches
from clipseg3d.blocks.semantic_bridge import SemanticBridge
from clipseg3d.blocks.semantic_fusion import SemanticFusion
from clipseg3d.views import Views

B, V, H, W, S, N, D, DEEP, TOP = 3, 3, 40, 28, 4, 5, 12, 9, 6
REGIONS = ("WT", "TC", "ET")
KINDS = list(GUIDANCE)
MODES = ["residual", "gain", "damped"]
BRIDGE_OPTIONS = ("selection", "mix_rgb", "adapter", "dense")
GUIDANCE_OPTIONS = ("tokens", "text_dim")


@pytest.fixture
def make(tiny_clip):
    """Build an untrained part; options go to the part they belong to."""

    def build(**options):
        torch.manual_seed(0)

        def pick(names):
            return {name: options.pop(name) for name in names if name in options}

        bridge = SemanticBridge(tiny_clip, **pick(BRIDGE_OPTIONS))
        guidance = build_guidance(
            options.pop("kind", "gate"),
            tiny_clip.embed_dim,
            D,
            num_heads=3,
            **pick(GUIDANCE_OPTIONS),
        )
        options = {"bottleneck_channels": DEEP, "decoder_channels": TOP, **options}
        return SemanticFusion(bridge, guidance, **options).eval()

    return build


@pytest.fixture
def trained(make, randomise):
    return randomise(make())


@pytest.fixture
def views():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (B, V, H, W, S), generator=generator, dtype=torch.uint8)
    return Views(images, torch.rand(B, V, 3, generator=generator) * 0.4 + 0.5)


@pytest.fixture
def text(tiny_clip):
    return torch.randn(B, N, tiny_clip.embed_dim, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def bottleneck():
    return torch.randn(B, DEEP, 2, 4, 5, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def features():
    return torch.randn(B, TOP, 7, 5, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def head():
    torch.manual_seed(4)
    return nn.Conv3d(TOP, 3, 1).requires_grad_(False)


def name_of(options):
    return ",".join(f"{key}={value}" for key, value in options.items()) or "default"


def changed(after, before):
    """Which cases differ in any bit."""
    return (after != before).flatten(1).any(dim=1).tolist()


def part_of(views, cases):
    return Views(views.images[cases], views.planes[cases])


CROP_BOX = torch.tensor([[0.2, 0.1, 0.3], [0.5, 0.8, 0.4]]).repeat(B, 1, 1)


def mirror(crop_box, axis):
    mirrored = crop_box.clone()
    mirrored[:, 0, axis] += crop_box[:, 1, axis]
    mirrored[:, 1, axis] *= -1
    return mirrored


# untrained


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options", [{"mode": "gain"}, {"dense": True, "conditional": True}], ids=name_of
)
def test_new_part_changes_nothing(make, views, text, bottleneck, features, head, kind, options):
    fusion = make(kind=kind, **options)
    for given in ((views, text), (views, None), (None, text)):
        semantics = fusion.encode(*given)
        assert torch.equal(fusion.guide(bottleneck, semantics), bottleneck)
        assert torch.equal(fusion.attend(features, semantics, head), head(features))


def test_new_paper_mode_multiplies_by_sigmoid_4(make, views, text, features, head):
    fusion = make(mode="damped")
    result = fusion.attend(features, fusion.encode(views, text), head)
    expected = torch.sigmoid(head(features))
    expected[:, 1:] *= 0.9820138
    torch.testing.assert_close(torch.sigmoid(result), expected)


@pytest.mark.parametrize("regions", [2, 4])
def test_a_head_of_other_regions_is_refused(make, views, text, features, regions):
    fusion = make()
    semantics = fusion.encode(views, text)
    with pytest.raises(ValueError, match=rf"the head gives {regions} regions.* 3 \(WT, TC, ET\)"):
        fusion.attend(features, semantics, nn.Conv3d(TOP, regions, 1))


# encoding


@pytest.mark.parametrize("kind", KINDS)
def test_encode_summarises_the_tokens_that_mean_something(make, randomise, views, text, kind):
    fusion = randomise(make(kind=kind))
    calls = []
    fusion.guidance.register_forward_hook(lambda *call: calls.append(call), with_kwargs=True)
    mask = torch.tensor([[True] * N, [True, True, True, False, False], [True] * N])
    views.images[2] = 0
    semantics = fusion.encode(views, text, mask)
    ((_, (_, read), masks, (tokens, token_mask)),) = calls
    assert masks["views_valid"].tolist() == [True, True, False]
    guiding = mask.clone()
    if kind != "sequential":  # where there is a report, prompts do not guide
        guiding[mask[:, len(REGIONS) :].any(dim=1), : len(REGIONS)] = False
    assert torch.equal(masks["text_mask"], guiding)
    assert torch.equal(semantics.tokens, tokens)
    assert torch.equal(semantics.token_mask, token_mask)
    for b in range(B):
        kept = tokens[b][token_mask[b]]
        expected = kept.mean(dim=0) if len(kept) else torch.zeros(D)
        torch.testing.assert_close(semantics.summary[b], expected)
    mapped = fusion.guidance.map_text(read)
    for b in range(B):
        chunks = [mapped[b, n] for n in range(len(REGIONS), N) if mask[b, n]]
        report = sum(chunks) / len(chunks) if chunks else 0
        for r in range(len(REGIONS)):
            prompt = mapped[b, r] if mask[b, r] else 0
            torch.testing.assert_close(semantics.regions[b, r], prompt + report)
    assert semantics.weight.tolist() == [1.0] * B
    assert semantics.patches is None
    assert torch.equal(semantics.planes, views.planes)


@pytest.mark.parametrize("kind", KINDS)
def test_weight_follows_views_and_text(make, randomise, views, text, kind):
    fusion = randomise(make(kind=kind))
    views.images[1:] = 0
    mask = torch.ones(B, N, dtype=torch.bool)
    mask[0] = mask[2] = False
    semantics = fusion.encode(views, text, mask)
    assert semantics.weight.tolist() == [1, 1, 0]
    assert fusion.encode(views, None).weight.tolist() == [1, 0, 0]
    assert fusion.encode(None, text, mask).weight.tolist() == [0, 1, 0]
    assert fusion.encode(None, text).weight.tolist() == [1, 1, 1]
    assert not semantics.regions[[0, 2]].any()
    assert semantics.regions[1].any()


def test_a_mask_without_text_is_no_text(trained, views):
    views.images[1:] = 0
    mask = torch.ones(B, N, dtype=torch.bool)
    assert trained.encode(views, None, mask).weight.tolist() == [1, 0, 0]


def test_text_that_nothing_reads_does_not_count(make, views, text):
    fusion = make(kind="none", guided=())
    views.images[1] = 0
    assert fusion.encode(views, text).weight.tolist() == [1, 0, 1]
    assert not fusion.encode(views, text).regions.any()


def test_masked_prompt_leaves_the_report_or_nothing(trained, views, text):
    mask = torch.tensor([[True, False, True, False, False], [True, False, True, True, True]])
    regions = trained.encode(part_of(views, [0, 1]), text[:2], mask).regions
    assert regions.any(dim=2).tolist() == [[True, False, True], [True] * 3]


def test_views_alone_leave_region_texts_at_zero(trained, views):
    semantics = trained.encode(views, None)
    assert semantics.regions.shape == (B, len(REGIONS), D)
    assert not semantics.regions.any()


@pytest.mark.parametrize("kind", KINDS)
def test_patches_are_blended_with_the_text(make, randomise, views, text, monkeypatch, kind):
    fusion = randomise(make(kind=kind, dense=True))
    calls, blend = [], fusion.guidance.blend
    monkeypatch.setattr(
        fusion.guidance, "blend", lambda *a, **k: calls.append((a, k)) or blend(*a, **k)
    )
    mask = torch.tensor([[True] * N, [False] * N, [True, False, False, False, True]])
    views.images[2] = 0
    semantics = fusion.encode(views, text, mask)
    (patches, read), masks = calls[-1]
    assert masks["views_valid"].tolist() == [True, True, False]
    guiding = mask.clone()
    if kind != "sequential":  # where there is a report, prompts do not guide
        guiding[mask[:, len(REGIONS) :].any(dim=1), : len(REGIONS)] = False
    assert torch.equal(masks["text_mask"], guiding)
    assert semantics.patches.shape == (B, V, 4, 4, D)
    for v, row, column in ((0, 0, 0), (1, 2, 3), (2, 3, 1)):
        index = (v * 4 + row) * 4 + column
        alone = blend(patches[:, index : index + 1], read, **masks)
        expected = fusion.guidance.norm(alone)[:, 0]
        torch.testing.assert_close(semantics.patches[:, v, row, column], expected)


@pytest.mark.parametrize("index", [(0, 1, 2, 3), (2, 0, 3, 1)])
def test_patches_keep_their_order(make, randomise, views, text, monkeypatch, index):
    fusion = randomise(make(dense=True))
    before, embedded = fusion.encode(views, text), fusion.bridge.embed(views)
    embedded.patches[index] *= -1
    monkeypatch.setattr(fusion.bridge, "embed", lambda _: embedded)
    moved = (fusion.encode(views, text).patches != before.patches).any(dim=-1)
    assert moved.nonzero().tolist() == [list(index)]


# changes of bottleneck and logits


@pytest.mark.parametrize("kind", KINDS)
def test_bottleneck_is_changed_as_its_kind_says(make, randomise, views, text, bottleneck, kind):
    fusion = randomise(make(kind=kind))
    mask = torch.tensor([[True] * N, [True, True, True, False, False], [True] * N])
    semantics = fusion.encode(views, text, mask)
    result = fusion.guide(bottleneck, semantics, CROP_BOX)
    if kind == "sequential":
        expected = fusion.bottleneck(bottleneck, semantics.tokens, semantics.token_mask, CROP_BOX)
    else:
        expected = fusion.bottleneck(bottleneck, semantics.summary)
    assert torch.equal(result, expected)
    assert changed(result, bottleneck) == [True] * B


def test_a_bottleneck_of_other_channels_is_refused(trained, views, text, bottleneck):
    semantics = trained.encode(views, text)
    with pytest.raises(ValueError, match=r"has 8 channels, expected bottleneck_channels=9; build"):
        trained.guide(bottleneck[:, :8], semantics)


@pytest.mark.parametrize("kind", KINDS)
def test_dense_adds_a_projection_of_the_lifted_patches(
    make, randomise, views, text, bottleneck, kind
):
    fusion = randomise(make(kind=kind, dense=True))
    semantics = fusion.encode(views, text)
    lifted = lift_patches(semantics.patches, semantics.planes, bottleneck, CROP_BOX)
    plain = fusion.guide(bottleneck, semantics._replace(patches=None), CROP_BOX)
    weight, bias = fusion.from_patches.weight.flatten(1), fusion.from_patches.bias
    added = torch.einsum("cd,bdxyz->bcxyz", weight, lifted) + bias.view(-1, 1, 1, 1)
    result = fusion.guide(bottleneck, semantics, CROP_BOX)
    torch.testing.assert_close(result, plain + added, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_only_guided_regions_change(trained, views, text, features, head, mode):
    trained.mode = mode
    logits, maps = trained.attend_with_maps(features, trained.encode(views, text), head)
    assert logits.shape == (B, 3, 7, 5, 8)
    moved = (logits != head(features)).flatten(2).any(dim=2)
    assert moved.tolist() == [[False, True, True]] * B
    assert maps.scores.shape == maps.cosines.shape == (B, 2, 7, 5, 8)
    assert maps.cosines.abs().max() <= 1


def test_maps_are_those_of_the_guided_regions_in_order(make, randomise, views, text, features):
    fusion = randomise(make(guided=("ET", "WT")))
    torch.manual_seed(4)
    head = nn.Conv3d(TOP, 3, 1)
    semantics = fusion.encode(views, text)
    logits, maps = fusion.attend_with_maps(features, semantics, head, CROP_BOX)
    for channel, region in enumerate((0, 2)):
        scores, cosines = fusion.attention[REGIONS[region]](
            features, semantics.summary, semantics.regions[:, region], CROP_BOX
        )
        torch.testing.assert_close(maps.scores[:, channel], scores[:, 0])
        torch.testing.assert_close(maps.cosines[:, channel], cosines[:, 0])
        torch.testing.assert_close(logits[:, region], head(features)[:, region] + scores[:, 0])
    assert torch.equal(logits, fusion.attend(features, semantics, head, CROP_BOX))


def test_stride_averages_what_attention_sees(make, randomise, views, text, features, head):
    fusion = randomise(make(attention_stride=2))
    semantics = fusion.encode(views, text)
    logits, maps = fusion.attend_with_maps(features, semantics, head, CROP_BOX)
    coarse = F.avg_pool3d(features, 2, ceil_mode=True, count_include_pad=False)
    for channel, region in enumerate((1, 2)):
        scores, cosines = fusion.attention[REGIONS[region]](
            coarse, semantics.summary, semantics.regions[:, region], CROP_BOX
        )
        torch.testing.assert_close(maps.scores[:, channel], scores[:, 0])
        torch.testing.assert_close(maps.cosines[:, channel], cosines[:, 0])
    fine = F.interpolate(maps.scores, size=features.shape[2:], mode="trilinear")
    torch.testing.assert_close(logits[:, 1:], head(features)[:, 1:] + fine)


def test_other_regions_can_be_guided(make, randomise, views, text, features):
    fusion = randomise(make(regions=("A", "B"), guided=("A",)))
    head = nn.Conv3d(TOP, 2, 1)
    moved = fusion.attend(features, fusion.encode(views, text), head) != head(features)
    assert moved.flatten(2).any(dim=2).tolist() == [[True, False]] * B


def test_no_guided_region_builds_no_attention(make, randomise, views, text, features, head):
    fusion = randomise(make(guided=()))
    logits, maps = fusion.attend_with_maps(features, fusion.encode(views, text), head)
    assert torch.equal(logits, head(features))
    assert maps is None
    assert len(fusion.attention) == 0
    conditional = randomise(make(guided=(), conditional=True))
    semantics = conditional.encode(views, text)
    expected = head(conditional.condition(features, semantics.summary))
    torch.testing.assert_close(conditional.attend(features, semantics, head), expected)


def test_conditional_gates_what_head_and_attention_see(
    make, randomise, views, text, features, head
):
    fusion = randomise(make(conditional=True))
    semantics = fusion.encode(views, text)
    conditioned = fusion.condition(features, semantics.summary)
    fusion.condition, expected = None, fusion.attend(features, semantics, head)
    torch.testing.assert_close(fusion.attend(conditioned, semantics, head), expected)
    assert not torch.allclose(fusion.attend(features, semantics, head), expected, atol=1e-2)


@pytest.mark.parametrize("mode", MODES)
def test_each_region_reads_its_own_prompt(trained, views, text, features, head, mode):
    trained.mode = mode
    before = trained.encode(views, text)
    for region in range(3):
        regions = before.regions.clone()
        regions[:, region] *= -1
        after = trained.attend(features, before._replace(regions=regions), head)
        moved = (after != trained.attend(features, before, head)).flatten(2).any(dim=2)
        expected = [index == region and region > 0 for index in range(3)]
        assert moved.tolist() == [expected] * B


@pytest.mark.parametrize("kind", KINDS)
def test_text_shifts_the_result(make, randomise, views, text, bottleneck, features, head, kind):
    fusion = randomise(make(kind=kind))
    before, after = fusion.encode(views, text), fusion.encode(views, text.roll(1, dims=0))
    shift = fusion.attend(features, after, head) - fusion.attend(features, before, head)
    assert (shift[:, 1:].mean(dim=(2, 3, 4)).abs() > 1e-4).all()  # the level, not only contrast
    moved = changed(fusion.guide(bottleneck, after), fusion.guide(bottleneck, before))
    assert moved == [kind != "none"] * B


# what is missing


VARIANTS = [
    {},
    *({"kind": kind, "dense": dense} for kind in KINDS for dense in (False, True)),
    {"conditional": True},
    {"mode": "gain", "conditional": True},
    {"mode": "damped"},
    {"tokens": "mean", "dense": True},
    {"kind": "sequential", "tokens": "mean"},
    {"selection": "attention", "mix_rgb": True, "adapter": True, "dense": True},
]


@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_case_with_neither_is_never_changed(
    make, randomise, views, text, bottleneck, features, head, options
):
    fusion = randomise(make(**options))
    views.images[1] = 0
    mask = torch.ones(B, N, dtype=torch.bool)
    mask[1] = False
    semantics = fusion.encode(views, text, mask)
    assert changed(fusion.guide(bottleneck, semantics), bottleneck) == [True, False, True]
    logits = fusion.attend(features, semantics, head)
    assert changed(logits, head(features)) == [True, False, True]
    for given in ((views, None, None), (None, text, mask)):
        semantics = fusion.encode(*given)
        assert not changed(fusion.guide(bottleneck, semantics), bottleneck)[1]
        assert not changed(fusion.attend(features, semantics, head), head(features))[1]


def test_not_even_overflow_changes_a_case_with_neither(trained, views, bottleneck):
    nn.init.constant_(trained.bottleneck.shift.bias, float("inf"))  # as float16 may get it
    views.images[1] = 0
    guided = trained.guide(bottleneck, trained.encode(views, None))
    assert torch.equal(guided[1], bottleneck[1])
    assert not guided[0].isfinite().any()


@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_weight_ramps_the_semantics_in(
    make, randomise, views, text, bottleneck, features, head, options
):
    fusion = randomise(make(**options), size=0.1)
    semantics = fusion.encode(views, text)
    off, half, full = (
        semantics._replace(weight=torch.full((B,), weight)) for weight in (0.0, 0.5, 1.0)
    )
    assert torch.equal(fusion.guide(bottleneck, off), bottleneck)
    assert torch.equal(fusion.attend(features, off, head), head(features))
    first, middle, last = (fusion.guide(bottleneck, s) for s in (off, half, full))
    torch.testing.assert_close(middle, (first + last) / 2)
    assert torch.equal(last, fusion.guide(bottleneck, semantics))
    first, middle, last = (fusion.attend(features, s, head) for s in (off, half, full))
    distance = (last - first)[:, 1:].abs()
    # between the two, but for voxels where gate and attention pull apart
    assert ((middle - first)[:, 1:].abs() <= distance + 1e-5).float().mean() > 0.9
    assert ((middle - last)[:, 1:].abs() <= distance + 1e-5).float().mean() > 0.9
    assert ((middle != first) & (middle != last))[:, 1:].float().mean() > 0.9


def test_ramped_residual_lies_in_the_middle(trained, views, text, features, head):
    semantics = trained.encode(views, text)
    half = semantics._replace(weight=torch.tensor([0.5, 0.25, 0.0]))
    plain, full = head(features), trained.attend(features, semantics, head)
    result = trained.attend(features, half, head)
    for b, share in enumerate((0.5, 0.25, 0.0)):
        torch.testing.assert_close(result[b], torch.lerp(plain[b], full[b], share))


# batches, crops, flips, precision


@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_cases_do_not_mix(make, randomise, views, text, bottleneck, features, head, options):
    fusion = randomise(make(**options), size=0.1)
    semantics = fusion.encode(views, text)
    for b in range(B):
        case = slice(b, b + 1)
        alone = fusion.encode(part_of(views, case), text[case])
        for result, batched in (
            (fusion.guide(bottleneck[case], alone), fusion.guide(bottleneck, semantics)),
            (fusion.attend(features[case], alone, head), fusion.attend(features, semantics, head)),
        ):
            assert result.isfinite().all()
            torch.testing.assert_close(result, batched[case], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_crop_with_its_crop_box_is_a_crop_of_the_whole(trained, views, text, features, head, mode):
    trained.mode = mode
    semantics = trained.encode(views, text)
    crop_box = torch.tensor([[2 / 7, 1 / 5, 0.0], [4 / 7, 3 / 5, 6 / 8]]).expand(B, 2, 3)
    crop = (..., slice(2, 6), slice(1, 4), slice(0, 6))
    result = trained.attend(features[crop], semantics, head, crop_box)
    whole = trained.attend(features, semantics, head)
    torch.testing.assert_close(result, whole[crop], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    ("kind", "mode"), [("gate", "residual"), ("sequential", "gain"), ("gate", "damped")]
)
def test_mirrored_features_and_crop_box_give_mirrored_results(
    make, randomise, views, text, bottleneck, features, head, axis, kind, mode
):
    fusion = randomise(make(kind=kind, mode=mode, dense=True), size=0.1)
    semantics = fusion.encode(views, text)
    mirrored, dim = mirror(CROP_BOX, axis), 2 + axis
    expected = fusion.guide(bottleneck, semantics, CROP_BOX).flip(dim)
    result = fusion.guide(bottleneck.flip(dim), semantics, mirrored)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    logits, maps = fusion.attend_with_maps(features, semantics, head, CROP_BOX)
    flipped, flipped_maps = fusion.attend_with_maps(features.flip(dim), semantics, head, mirrored)
    torch.testing.assert_close(flipped, logits.flip(dim), rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(maps, flipped_maps, strict=True):
        torch.testing.assert_close(theirs, ours.flip(dim), rtol=1e-4, atol=1e-4)
    unaware = fusion.guide(bottleneck.flip(dim), semantics, CROP_BOX)
    assert (unaware - expected).abs().max() > 1e-3


@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
def test_bf16_features(make, randomise, views, text, bottleneck, features, head, options):
    fusion = randomise(make(**options), size=0.1)
    views.images[1] = 0
    mask = torch.tensor([[True] * N, [False] * N, [True] * N])
    deep, top = bottleneck.bfloat16(), features.bfloat16()
    exact = fusion.encode(views, text, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        semantics = fusion.encode(views, text, mask)
        guided, logits = fusion.guide(deep, semantics), fusion.attend(top, semantics, head)
        plain = head(top)
    assert guided.dtype == torch.bfloat16
    assert semantics.weight.tolist() == [1, 0, 1]
    assert torch.equal(guided[1], deep[1])
    assert torch.equal(logits[1], plain[1])
    expected = fusion.guide(deep.float(), exact)
    assert (guided - expected).norm() < 0.03 * expected.norm()
    expected = fusion.attend(top.float(), exact, head)
    assert (logits - expected).norm() < 0.05 * expected.norm()


# training


@pytest.mark.parametrize(
    "options",
    [
        *VARIANTS,
        *(
            {"kind": kind, "mode": mode, "dense": dense, "conditional": True}
            for (kind, mode), dense in zip(
                itertools.product(KINDS, MODES), itertools.cycle((False, True)), strict=False
            )
        ),
    ],
    ids=name_of,
)
def test_gradient_reaches_every_weight_but_clip(
    make, randomise, views, text, bottleneck, features, head, dead_weights, options
):
    fusion = randomise(make(**options), size=0.1)
    if options.get("selection") == "attention":  # two slices per axis, to be weighed
        views = Views(*(torch.cat([part, part.flip(0)], dim=1) for part in views))
    semantics = fusion.encode(views, text)
    loss = fusion.guide(bottleneck, semantics).square().sum()
    (loss + fusion.attend(features, semantics, head).square().sum()).backward()
    assert dead_weights(fusion) == []
    assert all(weight.grad is None for weight in fusion.bridge.encoder.parameters())


def test_first_backward_opens_every_way(make, views, text, bottleneck, features, head):
    fusion = make(dense=True, conditional=True)
    semantics = fusion.encode(views, text)
    loss = fusion.guide(bottleneck, semantics).square().sum()
    (loss + fusion.attend(features, semantics, head).square().sum()).backward()
    for layer in (
        *(fusion.bottleneck.scale, fusion.bottleneck.shift, fusion.from_patches),
        *(fusion.condition.scale, fusion.condition.shift),
        *(fusion.attention[region].score for region in fusion.guided),
    ):
        assert layer.weight.grad.any()
        assert layer.bias.grad.any()


# errors


def test_rejects_unknown_guided_region(make):
    with pytest.raises(ValueError, match=r"\['NCR'\] not in regions=\('WT', 'TC', 'ET'\)"):
        make(guided=("TC", "NCR"))


def test_rejects_unknown_mode(make):
    with pytest.raises(
        ValueError, match="mode='product': choose from residual, gain, damped, paper"
    ):
        make(mode="product")


def test_rejects_fewer_texts_than_regions(make, text):
    with pytest.raises(ValueError, match=r"2 text tokens for 3 regions.*WT, TC, ET"):
        make().encode(None, text[:, :2])


def test_rejects_batches_of_different_size(make, views, text):
    with pytest.raises(ValueError, match="3 cases with views but 2 with text"):
        make().encode(views, text[:2])


def test_rejects_text_without_three_axes(make, views, text):
    with pytest.raises(ValueError, match=r"text is \(3, 64\), expected three axes"):
        make().encode(views, text[:, 0])


def test_rejects_nothing(make):
    with pytest.raises(ValueError, match="neither views nor text"):
        make().encode(None, None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rejects_embeddings_that_are_not_finite(make, views, text, value):
    fusion = make(adapter=True)
    text[1, 2, 3] = value
    with pytest.raises(ValueError, match="a text embedding holds NaN or infinity"):
        fusion.encode(views, text)
    nn.init.constant_(fusion.bridge.adapter.layers[-1].bias, value)
    with pytest.raises(ValueError, match="a view embedding holds NaN or infinity"):
        fusion.encode(views, None)


def test_a_report_that_names_a_side_is_learned(make):
    """Two like lesions, and the side to keep is 0.3 % of what reports vary in."""
    fusion = make(text_dim=48, guided=("WT",), regions=("WT",))
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(48, generator=generator)
    direction = direction / direction.norm()
    prompt = torch.randn(1, 48, generator=generator)

    def draw(count):
        """Reports (b, 2, e) in a narrow cone, and the labels (b, 1, x, y, z) they ask for."""
        side = torch.randint(2, (count,), generator=generator) * 2.0 - 1
        noise = torch.randn(count, 8, generator=generator) @ directions
        reports = 8 + 7 * noise + side[:, None] * direction
        text = torch.stack([prompt.expand(count, -1), reports], dim=1)
        label = (
            both
            * (torch.sign(torch.linspace(-1, 1, 8)) * side[:, None] > 0)[:, None, :, None, None]
        )
        return text, label

    directions = torch.linalg.qr(torch.randn(48, 8, generator=generator))[0].T
    both = torch.zeros(1, 1, 8, 4, 4)
    both[:, :, [1, 6], 1:3, 1:3] = 1
    features = both.expand(-1, TOP, -1, -1, -1)

    def logits(text):
        semantics = fusion.encode(None, text)
        given = features.expand(len(text), -1, -1, -1, -1)
        return fusion.attend(given, semantics, lambda x: 8 * (x[:, :1] - 0.5) - 4 * x[:, :1])

    optimizer = torch.optim.Adam(fusion.parameters(), 1e-2)
    fusion.train()
    for _ in range(150):
        text, label = draw(8)
        loss = nn.functional.binary_cross_entropy_with_logits(logits(text), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fusion.eval()
    text, label = draw(200)
    right = ((logits(text) > 0) == (label > 0)).flatten(1).all(dim=1).float().mean()
    assert right > 0.9
