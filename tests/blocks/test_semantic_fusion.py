"""Mirrors clipseg3d/blocks/semantic_fusion.py. Sizes differ pairwise, so a swapped axis fails."""

import pytest
import torch

from clipseg3d.blocks.bridge import SemanticBridge
from clipseg3d.blocks.guidance import CrossModalGuidance
from clipseg3d.blocks.semantic_fusion import SemanticFusion

B, V, H, W, N, D, DEEP, TOP = 3, 3, 40, 28, 5, 12, 9, 6
REGIONS = ("WT", "TC", "ET")


@pytest.fixture
def make(tiny_clip):
    def build(**options):
        torch.manual_seed(0)
        guidance = CrossModalGuidance(tiny_clip.embed_dim, D, num_heads=3).eval()
        options = {"bottleneck_channels": DEEP, "decoder_channels": TOP, **options}
        return SemanticFusion(SemanticBridge(tiny_clip), guidance, **options)

    return build


@pytest.fixture
def trained(make, randomise):
    return randomise(make())


@pytest.fixture
def views():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (B, V, H, W, 3), generator=generator, dtype=torch.uint8)


@pytest.fixture
def text(tiny_clip):
    return torch.randn(B, N, tiny_clip.embed_dim, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def bottleneck():
    return torch.randn(B, DEEP, 2, 4, 5, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def features():
    return torch.randn(B, TOP, 7, 5, 8, generator=torch.Generator().manual_seed(3))


def test_new_part_changes_nothing(make, views, text, bottleneck, features):
    fusion = make()
    semantics = fusion.encode(views, text)
    assert torch.equal(fusion.guide(bottleneck, semantics), bottleneck)
    assert not fusion.attend(features, semantics).any()


def test_encode_summarises_the_guided_tokens(trained, views, text):
    mask = torch.tensor([[True] * N, [True, True, True, False, False], [True] * N])
    semantics = trained.encode(views, text, mask)
    tokens, _ = trained.bridge.embed(views)
    expected = trained.guidance(tokens, text, text_mask=mask).mean(dim=1)
    torch.testing.assert_close(semantics.summary, expected)
    prompts = [trained.guidance.map_text(text[:, r]) for r in range(len(REGIONS))]
    torch.testing.assert_close(semantics.regions, torch.stack(prompts, dim=1))
    assert semantics.present.tolist() == [True] * B


def test_presence_follows_views_and_text(trained, views, text):
    views[1:] = 0
    mask = torch.ones(B, N, dtype=torch.bool)
    mask[0] = mask[2] = False
    semantics = trained.encode(views, text, mask)
    assert semantics.present.tolist() == [True, True, False]
    assert trained.encode(views, None).present.tolist() == [True, False, False]
    assert trained.encode(None, text, mask).present.tolist() == [False, True, False]
    assert trained.encode(None, text).present.tolist() == [True, True, True]
    assert not semantics.regions[[0, 2]].any()
    assert semantics.regions[1].any()


def test_views_alone_leave_region_texts_at_zero(trained, views):
    semantics = trained.encode(views, None)
    assert semantics.regions.shape == (B, len(REGIONS), D)
    assert not semantics.regions.any()


def test_case_with_neither_is_never_changed(trained, views, text, bottleneck, features):
    views[1] = 0
    mask = torch.ones(B, N, dtype=torch.bool)
    mask[1] = False
    semantics = trained.encode(views, text, mask)
    moved = (trained.guide(bottleneck, semantics) != bottleneck).flatten(1).any(dim=1)
    added = trained.attend(features, semantics).flatten(1).any(dim=1)
    assert moved.tolist() == [True, False, True]
    assert added.tolist() == [True, False, True]


def test_cases_do_not_mix(trained, views, text, bottleneck, features):
    semantics = trained.encode(views, text)
    for b in range(B):
        case = slice(b, b + 1)
        alone = trained.encode(views[case], text[case])
        torch.testing.assert_close(
            trained.guide(bottleneck[case], alone),
            trained.guide(bottleneck, semantics)[case],
            rtol=1e-4,
            atol=1e-4,
        )
        torch.testing.assert_close(
            trained.attend(features[case], alone),
            trained.attend(features, semantics)[case],
            rtol=1e-4,
            atol=1e-4,
        )


def test_only_guided_regions_get_logits(trained, views, text, features):
    added = trained.attend(features, trained.encode(views, text))
    assert added.shape == (B, 3, 7, 5, 8)
    assert added.flatten(2).any(dim=2).tolist() == [[False, True, True]] * B


def test_other_regions_can_be_guided(make, randomise, views, text, features):
    fusion = randomise(make(regions=("A", "B"), guided=("A",)))
    added = fusion.attend(features, fusion.encode(views, text))
    assert added.flatten(2).any(dim=2).tolist() == [[True, False]] * B


def test_each_region_reads_its_own_prompt(trained, views, text, features):
    before = trained.encode(views, text)
    for region in range(3):
        regions = before.regions.clone()
        regions[:, region] *= -1
        after = trained.attend(features, before._replace(regions=regions))
        changed = (after != trained.attend(features, before)).flatten(2).any(dim=2)
        expected = [index == region and region > 0 for index in range(3)]
        assert changed.tolist() == [expected] * B


def test_crop_with_its_window_is_a_crop_of_the_whole(trained, views, text, features):
    semantics = trained.encode(views, text)
    window = torch.tensor([[2 / 7, 1 / 5, 0.0], [4 / 7, 3 / 5, 6 / 8]]).expand(B, 2, 3)
    crop = (..., slice(2, 6), slice(1, 4), slice(0, 6))
    result = trained.attend(features[crop], semantics, window)
    whole = trained.attend(features, semantics)
    torch.testing.assert_close(result, whole[crop], rtol=0, atol=1e-5)


def test_gradient_reaches_every_weight_but_clip(
    trained, views, text, bottleneck, features, dead_weights
):
    semantics = trained.encode(views, text)
    loss = trained.guide(bottleneck, semantics).square().sum()
    (loss + trained.attend(features, semantics).square().sum()).backward()
    assert dead_weights(trained) == []
    assert all(weight.grad is None for weight in trained.bridge.encoder.parameters())


def test_rejects_unknown_guided_region(make):
    with pytest.raises(ValueError, match=r"\['NCR'\] not in regions=\('WT', 'TC', 'ET'\)"):
        make(guided=("TC", "NCR"))


def test_rejects_fewer_texts_than_regions(make, text):
    with pytest.raises(ValueError, match=r"2 text tokens for 3 regions.*WT, TC, ET"):
        make().encode(None, text[:, :2])


def test_rejects_batches_of_different_size(make, views, text):
    with pytest.raises(ValueError, match="3 cases with views but 2 with text"):
        make().encode(views, text[:2])


def test_rejects_nothing(make):
    with pytest.raises(ValueError, match="neither views nor text"):
        make().encode(None, None)
