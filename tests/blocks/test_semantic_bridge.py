"""Mirrors clipseg3d/blocks/semantic_bridge.py. Sizes differ pairwise, so a swapped axis fails."""

import numpy as np
import pytest
import torch
from torch import nn

import clipseg3d.blocks.semantic_bridge
from clipseg3d.blocks.patch_lifting import lift_patches
from clipseg3d.blocks.semantic_bridge import SemanticBridge
from clipseg3d.views import SLICES_PER_AXIS, Views, cut_views
from clipseg3d.vocabulary import SEQUENCES

B, V, H, W, S = 2, 3, 40, 28, 4
T1, T1CE, T2, FLAIR = range(4)


def make_views(count=V):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (B, count, H, W, S), generator=generator, dtype=torch.uint8)
    return Views(images, torch.rand(B, count, 3, generator=generator))


@pytest.fixture
def views():
    return make_views()


@pytest.fixture
def volume():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(B, S, 7, 9, 8, generator=generator) + 0.1


class Thumbnails(nn.Module):
    """An image tower whose patch embeddings are the colours of the patches."""

    embed_dim = 3

    def encode_image(self, images):
        return images.mean(dim=(2, 3))

    def encode_patches(self, images):
        patches = nn.functional.adaptive_avg_pool2d(images, 10)
        return images.mean(dim=(2, 3)), patches.permute(0, 2, 3, 1)


def alone(clip, image):
    """Embed one image (h, w, s) by itself."""
    colours = torch.stack([image[..., s] / 255 for s in (T1CE, FLAIR, T2)])
    return clip.encode_image(colours[None])[0]


# tokens


def test_tokens_are_those_of_the_single_views(tiny_clip, views):
    embedded = SemanticBridge(tiny_clip).embed(views)
    assert embedded.tokens.shape == (B, V, tiny_clip.embed_dim)
    assert embedded.valid.tolist() == [True, True]
    assert embedded.patches is None
    assert torch.equal(embedded.planes, views.planes)
    for b, v in np.ndindex(B, V):
        expected = alone(tiny_clip, views.images[b, v])
        torch.testing.assert_close(embedded.tokens[b, v], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(embedded.tokens[0, 0], embedded.tokens[0, 1], atol=1e-4)


def test_paper_summary_is_the_mean_of_the_views(tiny_clip, views):
    """F3D, the fusion of axial, coronal and sagittal class tokens."""
    tokens = SemanticBridge(tiny_clip).embed(views).tokens
    for b in range(B):
        single = [alone(tiny_clip, views.images[b, v]) for v in range(3)]
        expected = (single[0] + single[1] + single[2]) / 3
        torch.testing.assert_close(tokens[b].mean(dim=0), expected, rtol=1e-4, atol=1e-5)


def test_tokens_have_unit_norm(tiny_clip, views):
    tokens = SemanticBridge(tiny_clip).embed(views).tokens
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(B, V))


@pytest.mark.parametrize("rgb", [("t1ce", "flair", "t2"), ("t1", "t2", "flair")])
def test_only_the_named_sequences_are_shown(tiny_clip, views, rgb):
    bridge = SemanticBridge(tiny_clip, rgb=rgb)
    before = bridge.embed(views).tokens
    for sequence in range(S):
        images = views.images.clone()
        images[..., sequence] = 255 - images[..., sequence]
        changed = not torch.equal(bridge.embed(views._replace(images=images)).tokens, before)
        assert changed == (SEQUENCES[sequence] in rgb)


@pytest.mark.parametrize("dense", [False, True])
def test_a_case_is_invalid_if_all_its_views_are_black(tiny_clip, views, dense):
    views.images[0] = 0
    views.images[1, :2] = 0
    embedded = SemanticBridge(tiny_clip, dense=dense).embed(views)
    assert embedded.valid.tolist() == [False, True]
    assert embedded.valid.dtype == torch.bool
    assert embedded.tokens.isfinite().all()
    assert not dense or embedded.patches.isfinite().all()


def test_a_sequence_that_is_not_shown_makes_a_case_valid(tiny_clip, views):
    views.images[..., 1:] = 0
    assert SemanticBridge(tiny_clip).embed(views).valid.tolist() == [True, True]


@pytest.mark.parametrize("selection", ["center", "energy", "attention"])
def test_volume_is_cut_and_embedded(volume, selection):
    bridge = SemanticBridge(Thumbnails(), selection=selection)
    embedded = bridge(volume)
    expected = bridge.embed(cut_views(volume, selection=selection))
    assert embedded.tokens.shape == (B, 3, 3)
    assert torch.equal(embedded.tokens, expected.tokens)
    assert torch.equal(embedded.planes, expected.planes)
    assert embedded.valid.tolist() == [True, True]
    half = bridge(volume * torch.tensor([1.0, 0.0]).view(B, 1, 1, 1, 1))
    assert half.valid.tolist() == [True, False]


# learned parts


def test_new_mixture_shows_the_fixed_colours(tiny_clip, views):
    fixed, mixed = SemanticBridge(tiny_clip), SemanticBridge(tiny_clip, mix_rgb=True)
    for case in range(B):  # last digits depend on what is encoded together
        alone = Views(views.images[case : case + 1], views.planes[case : case + 1])
        assert torch.equal(mixed.embed(alone).tokens, fixed.embed(alone).tokens)


def test_gradient_reaches_the_mixture_but_not_clip(tiny_clip, views, randomise, dead_weights):
    bridge = SemanticBridge(tiny_clip, mix_rgb=True)
    target = torch.randn(tiny_clip.embed_dim, generator=torch.Generator().manual_seed(1))
    (bridge.embed(views).tokens @ target).sum().backward()
    assert set(dead_weights(bridge)) == {"mixture.0.weight", "mixture.0.bias"}
    bridge.zero_grad()
    randomise(bridge, size=0.05)
    (bridge.embed(views).tokens @ target).sum().backward()
    assert dead_weights(bridge) == []
    assert all(weight.grad is None for weight in tiny_clip.parameters())
    assert [name for name, weight in bridge.named_parameters() if weight.requires_grad] == [
        f"mixture.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")
    ]


def test_trained_mixture_shows_every_sequence(tiny_clip, views, randomise):
    bridge = randomise(SemanticBridge(tiny_clip, mix_rgb=True), size=0.1)
    before = bridge.embed(views).tokens
    for sequence in range(S):
        images = views.images.clone()
        images[..., sequence] = 255 - images[..., sequence]
        after = bridge.embed(views._replace(images=images)).tokens
        assert not torch.allclose(after, before, atol=1e-4)


def test_new_adapter_changes_nothing(tiny_clip, views, randomise):
    plain = SemanticBridge(tiny_clip).embed(views).tokens
    bridge = SemanticBridge(tiny_clip, adapter=True).eval()
    assert torch.equal(bridge.embed(views).tokens, plain)
    expected = randomise(bridge).adapter(plain)
    assert not torch.allclose(expected, plain, atol=1e-2)
    torch.testing.assert_close(bridge.embed(views).tokens, expected)


@pytest.mark.parametrize("per_axis", [1, 5])
def test_new_attention_pooling_is_the_mean_of_each_axis(tiny_clip, randomise, per_axis):
    views = make_views(3 * per_axis)
    every = SemanticBridge(tiny_clip).embed(views).tokens
    assert every.shape == (B, 3 * per_axis, tiny_clip.embed_dim)
    bridge = SemanticBridge(tiny_clip, selection="attention")
    pooled = bridge.embed(views).tokens
    for axis in range(3):
        group = every[:, axis * per_axis : (axis + 1) * per_axis]
        torch.testing.assert_close(pooled[:, axis], group.mean(dim=1))
    trained = randomise(bridge).embed(views).tokens
    for axis in range(3):
        group = every[:, axis * per_axis : (axis + 1) * per_axis]
        torch.testing.assert_close(trained[:, axis], bridge.pooling(group))
    assert per_axis == 1 or not torch.allclose(trained, pooled, atol=1e-4)


# patches


def test_patches_belong_to_their_views(tiny_clip, views):
    embedded = SemanticBridge(tiny_clip, dense=True).embed(views)
    torch.testing.assert_close(embedded.tokens, SemanticBridge(tiny_clip).embed(views).tokens)
    assert embedded.patches.shape == (B, V, 4, 4, tiny_clip.embed_dim)
    for b, v in np.ndindex(B, V):
        colours = torch.stack([views.images[b, v, ..., s] / 255 for s in (T1CE, FLAIR, T2)])
        expected = tiny_clip.encode_patches(colours[None])[1][0]
        torch.testing.assert_close(embedded.patches[b, v], expected, rtol=1e-4, atol=1e-5)


def test_patches_are_not_pooled(volume):
    embedded = SemanticBridge(Thumbnails(), selection="attention", dense=True)(volume)
    assert embedded.tokens.shape == (B, 3, 3)
    assert embedded.patches.shape == (B, 3 * SLICES_PER_AXIS, 10, 10, 3)
    assert embedded.planes.shape == (B, 3 * SLICES_PER_AXIS, 3)


@pytest.mark.parametrize("corner", [(0, 0, 0), (6, 2, 4), (2, 8, 0), (8, 4, 2)])
def test_patches_are_lifted_back_to_their_position(corner):
    # A cube of 2 voxels in a volume of 10, one patch per voxel; it must be brightest where it is.
    volume = torch.full((1, S, 10, 10, 10), 100.0)
    cube = tuple(slice(c, c + 2) for c in corner)
    volume[0, FLAIR][cube] = 200.0
    stats = torch.tensor([0.0, 200.0, 0.0, 1.0]).expand(1, S, 4)
    embedded = SemanticBridge(Thumbnails(), dense=True).embed(
        cut_views(volume, stats, selection="energy", size=10)
    )
    lifted = lift_patches(embedded.patches, embedded.planes, volume)
    assert lifted.shape == (1, 3, 10, 10, 10)
    bright = (lifted[0, 1] > 0.99).nonzero()
    assert bright.amin(dim=0).tolist() == list(corner)
    assert bright.amax(dim=0).tolist() == [c + 1 for c in corner]
    assert (lifted[0, 0] - 0.5).abs().max() < 0.01  # t1ce is plain


# errors


@pytest.mark.parametrize(
    "change",
    [
        lambda images: images.float(),
        lambda images: images[0],
        lambda images: images.permute(0, 1, 4, 2, 3),
        lambda images: images[..., :1],
        lambda images: images[:, :2],
    ],
    ids=["float", "without batch", "channels first", "one sequence", "two views"],
)
def test_rejects_what_cut_views_does_not_give(tiny_clip, views, change):
    views = views._replace(images=change(views.images))
    with pytest.raises(ValueError, match=r"expected uint8 \(b, v, h, w, .*cut_views"):
        SemanticBridge(tiny_clip).embed(views)


@pytest.mark.parametrize("rgb", [("t1ce", "t2"), ("t1ce", "t2", "adc")])
def test_rejects_colours_that_are_not_there(tiny_clip, rgb):
    with pytest.raises(ValueError, match=r"rgb=\('t1ce', 't2'.*name three sequences, of t1, t1ce"):
        SemanticBridge(tiny_clip, rgb=rgb)


# tokens of a frozen encoder are cached


class Counted(Thumbnails):
    """Counts the images that it is shown."""

    frozen = True

    def __init__(self):
        super().__init__()
        self.shown = 0

    def encode_image(self, images):
        self.shown += len(images)
        return super().encode_image(images)

    def encode_patches(self, images):
        self.shown += len(images)
        return super().encode_patches(images)


def test_a_frozen_encoder_sees_each_case_once(views):
    bridge = SemanticBridge(Counted())
    first = bridge.embed(views).tokens
    assert bridge.encoder.shown == B * V
    swapped = Views(views.images.flip(0), views.planes.flip(0))
    torch.testing.assert_close(bridge.embed(swapped).tokens, first.flip(0), rtol=0, atol=0)
    assert bridge.encoder.shown == B * V
    torch.testing.assert_close(first, SemanticBridge(Thumbnails()).embed(views).tokens)


def test_processes_share_the_tokens_that_they_compute(views, monkeypatch):
    bridges = [SemanticBridge(Counted()) for _ in range(2)]
    bridges[1].precompute(views.images[1:2])  # the cache of a second process
    other = dict(bridges[1]._token_cache)

    def gather(caches, own):
        caches[:] = [dict(own), other]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    bridges[0].precompute(views.images, rank=0, world_size=2)
    assert bridges[0].encoder.shown == V
    expected = SemanticBridge(Counted()).embed(views).tokens
    torch.testing.assert_close(bridges[0].embed(views).tokens, expected, rtol=0, atol=0)
    assert bridges[0].encoder.shown == V


@pytest.mark.parametrize("options", [{"mix_rgb": True}, {"dense": True}])
def test_nothing_is_computed_in_advance_that_cannot_be_cached(views, options):
    bridge = SemanticBridge(Counted(), **options)
    bridge.precompute(views.images)
    assert not bridge.encoder.shown


def test_tokens_follow_every_voxel(views):
    bridge = SemanticBridge(Counted())
    first = bridge.embed(views).tokens
    views.images[1, 2, 0, 0, FLAIR] ^= 1
    changed = (bridge.embed(views).tokens != first).any(dim=-1)
    assert changed.nonzero().tolist() == [[1, 2]]
    assert bridge.encoder.shown == B * V + V  # the case whose view has changed
    views.images[..., T1] = 0  # which is not among the colours
    bridge.embed(views)
    assert bridge.encoder.shown == B * V + V


@pytest.mark.parametrize("options", [{"mix_rgb": True}, {"dense": True}])
def test_what_learns_or_is_large_is_not_cached(views, options):
    bridge = SemanticBridge(Counted(), **options)
    for times in (1, 2):
        bridge.embed(views)
        assert bridge.encoder.shown == times * B * V
    assert not bridge._token_cache


def test_an_encoder_that_may_learn_has_no_cache(views):
    encoder = Counted()
    encoder.frozen = False
    bridge = SemanticBridge(encoder)
    bridge.embed(views)
    bridge.embed(views)
    assert encoder.shown == 2 * B * V


def test_training_can_use_tokens_that_validation_computed(tiny_clip, views):
    bridge = SemanticBridge(tiny_clip, adapter=True)
    with torch.inference_mode():
        bridge.embed(Views(views.images.clone(), views.planes.clone()))
    assert len(bridge._token_cache) == B
    assert not any(tokens.is_inference() for tokens in bridge._token_cache.values())
    bridge.embed(views).tokens.sum().backward()
    assert all(weight.grad is not None for weight in bridge.adapter.parameters())


def test_the_cache_is_bounded(views, monkeypatch):
    monkeypatch.setattr(clipseg3d.blocks.semantic_bridge, "MAX_CACHED_CASES", 1)
    bridge = SemanticBridge(Counted())
    bridge.embed(views)
    bridge.embed(views)
    assert len(bridge._token_cache) == 1
    assert bridge.encoder.shown == 2 * B * V
