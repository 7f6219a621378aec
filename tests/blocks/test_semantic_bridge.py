"""Mirrors clipseg3d/blocks/bridge.py. Sizes differ pairwise, so a swapped axis fails."""

import numpy as np
import pytest
import torch
from torch import nn

import clipseg3d.blocks.semantic_bridge
from clipseg3d.blocks.semantic_bridge import SemanticBridge
from clipseg3d.blocks.patch_lifting import lift_patches
from clipseg3d.views import SLICES_PER_AXIS, Views, cut_views

B, V, H, W, S = 2, 3, 40, 28, 4
T1, T1CE, T2, FLAIR = range(4)
X, Y, Z = 6, 4, 5


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
    seen = SemanticBridge(tiny_clip).embed(views)
    assert seen.tokens.shape == (B, V, tiny_clip.embed_dim)
    assert seen.valid.tolist() == [True, True]
    assert seen.patches is None
    assert torch.equal(seen.planes, views.planes)
    for b, v in np.ndindex(B, V):
        expected = alone(tiny_clip, views.images[b, v])
        torch.testing.assert_close(seen.tokens[b, v], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(seen.tokens[0, 0], seen.tokens[0, 1], atol=1e-4)


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


@pytest.mark.parametrize("rgb", [(1, 3, 2), (0, 2, 3)])
def test_only_the_named_sequences_are_shown(tiny_clip, views, rgb):
    bridge = SemanticBridge(tiny_clip, rgb=rgb)
    before = bridge.embed(views).tokens
    for sequence in range(S):
        images = views.images.clone()
        images[..., sequence] = 255 - images[..., sequence]
        changed = not torch.equal(bridge.embed(views._replace(images=images)).tokens, before)
        assert changed == (sequence in rgb)


@pytest.mark.parametrize("dense", [False, True])
def test_a_case_is_invalid_if_all_its_views_are_black(tiny_clip, views, dense):
    views.images[0] = 0
    views.images[1, :2] = 0
    seen = SemanticBridge(tiny_clip, dense=dense).embed(views)
    assert seen.valid.tolist() == [False, True]
    assert seen.valid.dtype == torch.bool
    assert seen.tokens.isfinite().all()
    assert not dense or seen.patches.isfinite().all()


def test_a_sequence_that_is_not_shown_makes_a_case_valid(tiny_clip, views):
    views.images[..., 1:] = 0
    assert SemanticBridge(tiny_clip).embed(views).valid.tolist() == [True, True]


@pytest.mark.parametrize("selection", ["center", "energy", "attention"])
def test_volume_is_cut_and_embedded(volume, selection):
    bridge = SemanticBridge(Thumbnails(), selection=selection)
    seen = bridge(volume)
    expected = bridge.embed(cut_views(volume, selection=selection))
    assert seen.tokens.shape == (B, 3, 3)
    assert torch.equal(seen.tokens, expected.tokens)
    assert torch.equal(seen.planes, expected.planes)
    assert seen.valid.tolist() == [True, True]
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
    seen = SemanticBridge(tiny_clip, dense=True).embed(views)
    torch.testing.assert_close(seen.tokens, SemanticBridge(tiny_clip).embed(views).tokens)
    assert seen.patches.shape == (B, V, 4, 4, tiny_clip.embed_dim)
    for b, v in np.ndindex(B, V):
        colours = torch.stack([views.images[b, v, ..., s] / 255 for s in (T1CE, FLAIR, T2)])
        expected = tiny_clip.encode_patches(colours[None])[1][0]
        torch.testing.assert_close(seen.patches[b, v], expected, rtol=1e-4, atol=1e-5)


def test_patches_are_not_pooled(volume):
    seen = SemanticBridge(Thumbnails(), selection="attention", dense=True)(volume)
    assert seen.tokens.shape == (B, 3, 3)
    assert seen.patches.shape == (B, 3 * SLICES_PER_AXIS, 10, 10, 3)
    assert seen.planes.shape == (B, 3 * SLICES_PER_AXIS, 3)


@pytest.mark.parametrize("corner", [(0, 0, 0), (6, 2, 4), (2, 8, 0), (8, 4, 2)])
def test_what_a_slice_shows_comes_back_to_its_place(corner):
    # A cube of 2 voxels in a volume of 10, one patch per voxel; it must be brightest where it is.
    volume = torch.full((1, S, 10, 10, 10), 100.0)
    cube = tuple(slice(c, c + 2) for c in corner)
    volume[0, FLAIR][cube] = 200.0
    stats = torch.tensor([0.0, 200.0, 0.0, 1.0]).expand(1, S, 4)
    seen = SemanticBridge(Thumbnails(), dense=True).embed(
        cut_views(volume, stats, selection="energy", size=10)
    )
    lifted = lift_patches(seen.patches, seen.planes, volume)
    assert lifted.shape == (1, 3, 10, 10, 10)
    bright = (lifted[0, 1] > 0.99).nonzero()
    assert bright.amin(dim=0).tolist() == list(corner)
    assert bright.amax(dim=0).tolist() == [c + 1 for c in corner]
    assert (lifted[0, 0] - 0.5).abs().max() < 0.01  # t1ce is plain


# the lifted map


def make_patches(per_axis, grid=3, channels=2, dtype=torch.float32):
    """Random patches, on slices in random places, in order."""
    generator = torch.Generator().manual_seed(per_axis)
    patches = torch.randn(B, 3 * per_axis, grid, grid, channels, generator=generator, dtype=dtype)
    places = torch.rand(B, 3, per_axis, generator=generator).sort(dim=2).values.flatten(1)
    shares = torch.rand(B, 3, 1, 2, generator=generator) * 0.5 + 0.5
    shares = shares.expand(-1, -1, per_axis, -1).flatten(1, 2)
    return patches, torch.cat([places[..., None], shares], dim=2)


def reference(patches, planes, crop_box, grid):
    """What each voxel projects to, one voxel, axis and slice at a time, in float64."""
    patches, planes = patches.double().numpy(), planes.double().numpy()
    cases, count, side, _, channels = patches.shape
    per_axis = count // 3
    out = np.zeros((cases, channels, *grid))
    for b, *voxel in np.ndindex(cases, *grid):
        corner, size = crop_box[b].double().numpy()
        place = [corner[i] + size[i] * (voxel[i] + 0.5) / grid[i] for i in range(3)]
        for axis, (along, row, column) in enumerate(((2, 0, 1), (1, 0, 2), (0, 1, 2))):
            mine = range(axis * per_axis, (axis + 1) * per_axis)
            read = []
            for v in mine:
                pixel = [
                    min(max((0.5 + (place[i] - 0.5) * planes[b, v, k]) * side - 0.5, 0), side - 1)
                    for i, k in ((row, 1), (column, 2))
                ]
                top, left = (min(int(p), side - 2) for p in pixel)
                down, right = pixel[0] - top, pixel[1] - left
                upper = (1 - right) * patches[b, v, top, left] + right * patches[
                    b, v, top, left + 1
                ]
                lower = (1 - right) * patches[b, v, top + 1, left]
                lower = lower + right * patches[b, v, top + 1, left + 1]
                read.append((1 - down) * upper + down * lower)
            slices = [planes[b, v, 0] for v in mine]
            out[(b, slice(None), *voxel)] += [
                np.interp(place[along], slices, values) / 3 for values in np.transpose(read)
            ]
    return torch.from_numpy(out)


WHOLE = torch.tensor([[0.0] * 3, [1.0] * 3]).expand(B, 2, 3)
WINDOW = torch.tensor([[[0.1, 0.3, -0.2], [0.5, 0.9, 0.7]], [[0.8, 0.2, 1.1], [-0.5, 0.4, -1.3]]])


@pytest.mark.parametrize("per_axis", [1, 2, 5])
@pytest.mark.parametrize("crop_box", [WHOLE, WINDOW], ids=["whole", "crop_box"])
def test_lifting_against_a_loop(per_axis, crop_box):
    patches, planes = make_patches(per_axis)
    features = torch.zeros(B, 7, X, Y, Z)
    lifted = lift_patches(patches, planes, features, crop_box)
    expected = reference(patches, planes, crop_box, (X, Y, Z))
    torch.testing.assert_close(lifted.double(), expected, rtol=0, atol=2e-6)


def test_constant_views_by_hand():
    # Of each axis, two slices with one value each: the map is linear between and flat beyond.
    values = [[3.0, 6.0], [30.0, 90.0], [300.0, 900.0]]
    patches = torch.tensor(values).view(1, 6, 1, 1, 1).expand(1, 6, 3, 3, 1)
    places = [[0.3, 0.7], [0.5, 0.625], [0.25, 0.75]]  # along z, y and x
    planes = torch.ones(1, 6, 3)
    planes[0, :, 0] = torch.tensor(places).flatten()
    lifted = lift_patches(patches, planes, torch.zeros(1, 1, X, Y, Z))[0, 0]
    along_x = [300, 300, 500, 700, 900, 900]  # centres 1/12, 3/12, 5/12, 7/12, 9/12, 11/12
    along_y = [30, 30, 90, 90]  # centres 0.125, 0.375, 0.625, 0.875
    along_z = [3, 3, 4.5, 6, 6]  # centres 0.1, 0.3, 0.5, 0.7, 0.9
    for x, y, z in np.ndindex(X, Y, Z):
        expected = (along_x[x] + along_y[y] + along_z[z]) / 3
        assert lifted[x, y, z].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("axis", "slab"),
    [
        (0, (slice(4, 6), slice(0, 2), slice(None))),  # axial: rows x, columns y
        (1, (slice(4, 6), slice(None), slice(0, 2))),  # coronal: rows x, columns z
        (2, (slice(None), slice(4, 6), slice(0, 2))),  # sagittal: rows y, columns z
    ],
)
def test_a_bright_patch_lands_at_its_place(axis, slab):
    patches = torch.zeros(1, 3, 4, 4, 1)
    patches[0, axis, 2, 0] = 3.0  # row 2, column 0 of 4
    planes = torch.tensor([0.5, 1.0, 1.0]).expand(1, 3, 3)
    # 8 voxels: each patch covers two, whose centres lie a quarter patch from the patch's centre
    lifted = lift_patches(patches, planes, torch.zeros(1, 1, 8, 8, 8))[0, 0]
    expected = torch.zeros(8, 8, 8)
    expected[slab] = 1.0
    assert torch.equal(lifted > 0.5, expected > 0)


def test_padding_of_the_square_is_not_lifted():
    # A box half as high as the square: rows 1 and 2 of 4 are all that it fills.
    patches = torch.full((1, 3, 4, 4, 1), 9.0)
    patches[:, :, 1:3] = 1.0
    planes = torch.tensor([0.5, 0.5, 1.0]).expand(1, 3, 3)
    lifted = lift_patches(patches, planes, torch.zeros(1, 1, 2, 2, 2))
    torch.testing.assert_close(lifted, torch.ones(1, 1, 2, 2, 2))


@pytest.mark.parametrize("per_axis", [1, 4])
def test_lift_of_a_crop_is_a_crop_of_the_lift(per_axis):
    patches, planes = make_patches(per_axis)
    features = torch.zeros(B, 1, X, Y, Z)
    start, stop, grid = torch.tensor([1, 0, 3]), torch.tensor([5, 2, 5]), torch.tensor([X, Y, Z])
    crop_box = torch.stack([start / grid, (stop - start) / grid]).expand(B, 2, 3)
    crop = (..., slice(1, 5), slice(0, 2), slice(3, 5))
    whole = lift_patches(patches, planes, features)
    lifted = lift_patches(patches, planes, features[crop], crop_box)
    torch.testing.assert_close(lifted, whole[crop], rtol=0, atol=2e-6)
    unaware = lift_patches(patches, planes, features[crop])
    assert (unaware - whole[crop]).abs().max() > 1e-2


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mirrored_window_mirrors_the_lift(axis):
    patches, planes = make_patches(4)
    features = torch.zeros(B, 1, X, Y, Z)
    mirrored = WINDOW.clone()
    mirrored[:, 0, axis] += WINDOW[:, 1, axis]
    mirrored[:, 1, axis] *= -1
    expected = lift_patches(patches, planes, features, WINDOW).flip(2 + axis)
    lifted = lift_patches(patches, planes, features, mirrored)
    torch.testing.assert_close(lifted, expected, rtol=0, atol=2e-6)


def test_a_slice_taken_twice_counts_once():
    patches, planes = make_patches(2)
    axes = torch.tensor([0, 0, 1, 2, 2, 3, 4, 4, 5])  # two of three slices of each axis are one
    features = torch.zeros(B, 1, X, Y, Z)
    lifted = lift_patches(patches[:, axes], planes[:, axes], features)
    torch.testing.assert_close(lifted, lift_patches(patches, planes, features))


def test_places_are_exact_for_features_of_low_precision():
    patches, planes = make_patches(4)
    features = torch.zeros(B, 1, 40, 30, 20)
    lifted = lift_patches(patches, planes, features.bfloat16(), WINDOW)
    assert torch.equal(lifted, lift_patches(patches, planes, features, WINDOW))


def test_lift_keeps_the_type_and_passes_gradient():
    patches, planes = make_patches(2)
    features = torch.zeros(B, 1, X, Y, Z)
    low = lift_patches(patches.bfloat16(), planes, features.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(
        low.float(), lift_patches(patches, planes, features), rtol=0, atol=0.05
    )
    patches.requires_grad_()
    lift_patches(patches, planes, torch.zeros(B, 1, 12, 12, 12)).square().sum().backward()
    assert patches.grad.flatten(2).any(dim=2).all()


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


@pytest.mark.parametrize("rgb", [(1, 2), (1, 2, 4)])
def test_rejects_colours_that_are_not_there(tiny_clip, rgb):
    with pytest.raises(ValueError, match=r"rgb=\(1, 2.*name three of 4 sequences"):
        SemanticBridge(tiny_clip, rgb=rgb)


# a frozen encoder is asked once


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


def test_processes_share_the_cases_that_they_look_at(views, monkeypatch):
    bridges = [SemanticBridge(Counted()) for _ in range(2)]
    bridges[1].look(views.images[1:2])  # what a second process will have seen
    other = dict(bridges[1]._known)

    def gather(seen, own):
        seen[:] = [dict(own), other]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    bridges[0].look(views.images, rank=0, world_size=2)
    assert bridges[0].encoder.shown == V
    expected = SemanticBridge(Counted()).embed(views).tokens
    torch.testing.assert_close(bridges[0].embed(views).tokens, expected, rtol=0, atol=0)
    assert bridges[0].encoder.shown == V


@pytest.mark.parametrize("options", [{"mix_rgb": True}, {"dense": True}])
def test_nothing_is_looked_at_before_it_can_be_kept(views, options):
    bridge = SemanticBridge(Counted(), **options)
    bridge.look(views.images)
    assert not bridge.encoder.shown


def test_what_is_seen_follows_every_voxel(views):
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
def test_what_learns_or_is_large_is_not_kept(views, options):
    bridge = SemanticBridge(Counted(), **options)
    for times in (1, 2):
        bridge.embed(views)
        assert bridge.encoder.shown == times * B * V
    assert not bridge._known


def test_an_encoder_that_may_learn_is_asked_again(views):
    encoder = Counted()
    encoder.frozen = False
    bridge = SemanticBridge(encoder)
    bridge.embed(views)
    bridge.embed(views)
    assert encoder.shown == 2 * B * V


def test_training_goes_on_from_what_validation_has_seen(tiny_clip, views):
    bridge = SemanticBridge(tiny_clip, adapter=True)
    with torch.inference_mode():
        bridge.embed(Views(views.images.clone(), views.planes.clone()))
    bridge.embed(views).tokens.sum().backward()
    assert all(weight.grad is not None for weight in bridge.adapter.parameters())


def test_memory_is_bounded(views, monkeypatch):
    monkeypatch.setattr(clipseg3d.blocks.semantic_bridge, "MAX_KNOWN", 1)
    bridge = SemanticBridge(Counted())
    bridge.embed(views)
    bridge.embed(views)
    assert len(bridge._known) == 1
    assert bridge.encoder.shown == 2 * B * V
