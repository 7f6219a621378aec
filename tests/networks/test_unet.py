"""Mirrors clipseg3d/networks/unet.py. Sizes differ pairwise, so a swapped axis fails."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clipseg3d.blocks.nested_regions import NestedRegions
from clipseg3d.networks.unet import UNet3D, crop_like

B, IN, OUT, X, Y, Z = 2, 4, 3, 9, 14, 11
CHANNELS = (4, 6, 8)


def make(**options):
    torch.manual_seed(0)
    return UNet3D(IN, OUT, **{"channels": CHANNELS, "num_auxiliary": 1, **options})


@pytest.fixture
def image():
    return torch.randn(B, IN, X, Y, Z, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("cube", [1, 2])
@pytest.mark.parametrize("size", [(X, Y, Z), (16, 8, 24), (5, 12, 1)])
def test_logits_lie_on_the_grid_of_the_image(cube, size):
    assert make(space_to_depth=cube)(torch.randn(1, IN, *size)).shape == (1, OUT, *size)


@pytest.mark.parametrize("cube", [1, 2])
def test_a_second_voxel_at_the_bottleneck_is_enough(cube):
    unet = make(space_to_depth=cube)
    image = torch.randn(1, IN, 1, unet.multiple + 1, 2)
    assert unet(image).isfinite().all()


@pytest.mark.parametrize("cube", [1, 2])
def test_an_image_of_one_voxel_at_the_bottleneck_is_refused(cube):
    unet = make(space_to_depth=cube)
    image = torch.randn(1, IN, 3, unet.multiple, 2)
    with pytest.raises(ValueError, match=rf"\(3, {unet.multiple}, 2\).*more than {unet.multiple}"):
        unet(image)


@pytest.mark.parametrize("cube", [1, 2])
def test_padding_is_zeros_behind_the_last_voxel(image, cube):
    unet = make(space_to_depth=cube)
    padding = [p for size in (Z, Y, X) for p in (0, -size % unet.multiple)]
    padded = unet(F.pad(image, padding))
    assert padded.shape[2:] == ((12, 16, 12) if cube == 1 else (16, 16, 16))
    torch.testing.assert_close(unet(image), padded[..., :X, :Y, :Z])


def test_multiple_is_the_product_of_cube_and_strides():
    assert make().multiple == 4
    assert make(space_to_depth=2).multiple == 8
    assert UNet3D(channels=(2, 2, 2, 2, 2)).multiple == 16


def test_crop_cuts_behind_the_last_voxel(image):
    assert torch.equal(crop_like(F.pad(image, (0, 5, 0, 2, 0, 3)), image), image)


@pytest.mark.parametrize("cube", [2, 4])
def test_stem_turns_cubes_into_channels_and_heads_turn_them_back(image, cube):
    unet = UNet3D(IN, IN, channels=(4, 6), num_auxiliary=0, space_to_depth=cube)
    stems = []
    unet.encoder[0].register_forward_pre_hook(lambda _, given: stems.append(given[0]))
    unet.encode(image)
    (stem,) = stems
    padded = F.pad(image, [p for n in (Z, Y, X) for p in (0, -n % unet.multiple)])
    assert stem.shape[1] == IN * cube**3
    for x, y, z in itertools.product(*(range(n) for n in stem.shape[2:])):
        voxels = padded[
            ...,
            x * cube : (x + 1) * cube,
            y * cube : (y + 1) * cube,
            z * cube : (z + 1) * cube,
        ]
        expected = voxels.flatten(1).sort(dim=1).values
        assert torch.equal(stem[:, :, x, y, z].sort(dim=1).values, expected)
    unet.heads[0] = nn.Identity()
    assert torch.equal(unet.finish_logits(unet.head_logits(unet.head_input([stem])), image), image)


def test_a_voxel_changes_logits_around_its_position():
    unet = make(space_to_depth=2, channels=(4, 6), num_auxiliary=0)
    for module in unet.modules():  # normalisation would spread a voxel over the whole grid
        if isinstance(module, nn.InstanceNorm3d):
            module.forward = lambda features: features
    image = torch.zeros(1, IN, 64, 72, 80)
    before = unet(image)
    image[0, 0, 30, 36, 42] = 5
    changed = (unet(image) - before).detach()[0].ne(0).any(dim=0).nonzero()
    first, last = changed.amin(dim=0), changed.amax(dim=0)
    assert ((first + last) / 2 - torch.tensor([30, 36, 42])).abs().max() <= unet.multiple
    assert (last - first).max() < 48


@pytest.mark.parametrize(
    ("options", "grids"),
    [
        ({"channels": (4, 6, 8, 10), "num_auxiliary": 2}, [(8, 8, 8), (4, 4, 4)]),
        ({"channels": (4, 6, 8), "num_auxiliary": 1}, [(6, 8, 6)]),
        ({"channels": (4, 6, 8), "num_auxiliary": 1, "space_to_depth": 2}, [(4, 4, 4)]),
        ({"channels": (4, 6), "num_auxiliary": 0}, []),
    ],
)
def test_auxiliary_logits_halve_the_padded_grid(image, options, grids):
    unet = make(**options)
    auxiliary = unet.auxiliary_logits(unet.decode(unet.encode(image)))
    assert [tuple(level.shape) for level in auxiliary] == [(B, OUT, *grid) for grid in grids]


def test_decoded_features_start_at_the_top_level(image):
    unet = make()
    decoded = unet.decode(unet.encode(image))
    shapes = [tuple(level.shape[1:]) for level in decoded]
    assert shapes == [(4, 12, 16, 12), (6, 6, 8, 6)]


def test_features_halve_and_widen_towards_the_bottleneck(image):
    levels = make().encode(image)
    shapes = [tuple(level.shape[1:]) for level in levels]
    assert shapes == [(4, 12, 16, 12), (6, 6, 8, 6), (8, 3, 4, 3)]


@pytest.mark.parametrize(
    "options",
    [
        {"space_to_depth": 1},
        {"space_to_depth": 2, "refinement": 5},
        {"head": "nested", "head_norm": True, "checkpointing": True},
    ],
)
def test_gradient_reaches_every_weight(image, options, randomise, dead_weights):
    unet = randomise(make(**options), size=0.1)
    decoded = unet.decode(unet.encode(image))
    logits = unet.finish_logits(unet.head_logits(unet.head_input(decoded)), image)
    outputs = [logits, *unet.auxiliary_logits(decoded)]
    sum(logits.square().sum() for logits in outputs).backward()
    assert dead_weights(unet) == []


@pytest.mark.parametrize(("switch", "level"), [("cbam", "attention"), ("attention_skips", "gates")])
def test_new_attention_changes_no_bit(image, switch, level):
    with_attention, plain = make(), make(**{switch: False})
    plain.load_state_dict({k: v for k, v in with_attention.state_dict().items() if level not in k})
    assert torch.equal(with_attention(image), plain(image))


def test_skips_reach_the_decoder(image):
    unet = make()
    levels = unet.encode(image)
    whole = unet.decode(levels)[0]
    for index in range(len(levels)):
        silenced = [0 * level if i == index else level for i, level in enumerate(levels)]
        assert not torch.allclose(unet.decode(silenced)[0], whole, atol=1e-3)


def test_kaiming_initialisation_of_convolutions():
    unet = UNet3D(channels=(16, 32), num_auxiliary=0)
    weight = unet.decoder[0].residual[0].weight  # fan-in 32 * 27
    assert weight.std().item() == pytest.approx((2 / (1 + 0.01**2) / (32 * 27)) ** 0.5, rel=0.05)
    assert not unet.heads[0].bias.any()


def test_cases_do_not_mix(image, randomise):
    unet = randomise(make(), size=0.1)
    together = unet(image)
    for b in range(B):
        torch.testing.assert_close(unet(image[b : b + 1])[0], together[b], rtol=1e-4, atol=1e-4)


def test_dropout_is_for_training_only(image):
    unet = make(dropout=0.5)
    assert not torch.equal(unet(image), unet(image))
    unet.eval()
    assert torch.equal(unet(image), unet(image))


def test_rejects_a_single_level():
    with pytest.raises(ValueError, match=r"channels=\(8,\) has fewer than two levels"):
        UNet3D(channels=(8,), num_auxiliary=0)


@pytest.mark.parametrize("count", [-1, 2])
def test_rejects_heads_for_levels_that_are_not_there(count):
    with pytest.raises(ValueError, match=rf"num_auxiliary={count} is not in 0\.\.1"):
        make(num_auxiliary=count)


def test_logits_start_equal_within_a_cube_and_differ_between_regions(image):
    unet = UNet3D(IN, 3, channels=(4, 6), num_auxiliary=0, space_to_depth=2)
    logits = unet(image)[..., :4, :6, :8].detach()
    corner = logits[..., ::2, ::2, ::2]
    for i, j, k in itertools.product(range(2), repeat=3):
        assert torch.equal(logits[..., i::2, j::2, k::2], corner)
    assert not torch.equal(corner[:, 0], corner[:, 1])


@pytest.mark.parametrize("cube", [1, 2])
@pytest.mark.parametrize("width", ["other", "without extra", "with extra"])
def test_extra_channels_start_unread_and_learn(image, cube, width):
    """Where the first block keeps its width, its shortcut has no weights of its own."""
    first = {"other": 6, "without extra": IN * cube**3, "with extra": (IN + 2) * cube**3}[width]
    options = {"channels": (first, 8), "num_auxiliary": 0, "space_to_depth": cube}
    plain = UNet3D(IN, OUT, **options)
    unet = UNet3D(IN + 2, OUT, extra_channels=2, **options)
    weights = unet.state_dict()
    for name, weight in plain.state_dict().items():
        weights[name][tuple(slice(n) for n in weight.shape)] = weight
    six = torch.cat([image, 9 * torch.randn(B, 2, X, Y, Z)], dim=1)
    logits = unet(six)
    assert torch.equal(logits, plain(image))
    logits.square().sum().backward()
    first_block = unet.encoder[0]
    for layer in (first_block.residual[0], first_block.shortcut):
        before, extra = layer.weight.split([IN * cube**3, 2 * cube**3], dim=1)
        assert before.any()
        assert not extra.any()
        assert layer.weight.grad[:, IN * cube**3 :].abs().amax(dim=(0, 2, 3, 4)).gt(0).all()


def test_other_channels_keep_the_kaiming_initialisation():
    unet = UNet3D(40, channels=(64, 4), num_auxiliary=0, extra_channels=4)
    weight = unet.encoder[0].shortcut.weight[:, :-4]
    assert weight.std().item() == pytest.approx((2 / (1 + 0.01**2) / 40) ** 0.5, rel=0.1)


@pytest.mark.parametrize("count", [-1, IN])
def test_rejects_extra_channels_that_leave_none(count):
    with pytest.raises(ValueError, match=rf"extra_channels={count} is not in 0\.\.{IN - 1}"):
        make(extra_channels=count)


def test_rejects_unknown_head():
    with pytest.raises(ValueError, match=r"head='softmax'.*'sigmoid' or 'nested'"):
        make(head="softmax")


def test_nested_head_nests_every_level(image, randomise):
    plain, nested = (randomise(make(head=head), size=0.1) for head in ("sigmoid", "nested"))
    nest = NestedRegions()
    torch.testing.assert_close(nested(image), nest(plain(image)))
    decoded = plain.decode(plain.encode(image))
    raw = plain.head_logits(decoded[0])
    assert torch.equal(nested.head_logits(decoded[0]), raw)  # what is added comes before nesting
    torch.testing.assert_close(nested.finish_logits(raw + 1, image), nest(raw + 1)[..., :X, :Y, :Z])
    (plain_level,), (nested_level,) = (u.auxiliary_logits(decoded) for u in (plain, nested))
    torch.testing.assert_close(nested_level, nest(plain_level))
    assert not torch.allclose(nested_level, plain_level, atol=0.1)


def test_head_logits_lie_on_the_padded_grid(image):
    unet = make(space_to_depth=2)
    raw = unet.head_logits(unet.head_input(unet.decode(unet.encode(image))))
    assert raw.shape == (B, OUT, 16, 16, 16)
    assert torch.equal(unet.finish_logits(raw, image), unet(image))


def test_new_refinement_changes_no_bit_and_then_every_voxel_by_its_own(image):
    plain, refined = make(space_to_depth=2), make(space_to_depth=2, refinement=6)
    assert torch.equal(refined(image), plain(image))  # other weights start as they would without
    with torch.no_grad():
        refined.refine.layers[-1].weight.normal_()
    raw = plain.head_logits(plain.head_input(plain.decode(plain.encode(image))))
    padded = F.pad(image, [p for n in (Z, Y, X) for p in (0, -n % plain.multiple)])
    expected = crop_like(refined.refine(raw, padded), image)
    assert not torch.allclose(expected, plain(image), atol=1e-2)
    torch.testing.assert_close(refined(image), expected)


def test_rejects_a_refinement_without_space_to_depth():
    with pytest.raises(
        ValueError, match=r"refinement=6 reads the voxels .* space_to_depth=1 makes none; set"
    ):
        make(refinement=6)


def test_head_norm_normalises_what_the_head_reads(image):
    unet = make(head_norm=True)
    with torch.no_grad():
        unet.head_norm.weight.fill_(3)
        unet.head_norm.bias.fill_(2)
    decoded = unet.decode(unet.encode(image))
    top = unet.head_input(decoded)
    spread, mean = torch.std_mean(top, dim=(2, 3, 4), correction=0)
    torch.testing.assert_close(mean, torch.full_like(mean, 2))
    torch.testing.assert_close(spread, torch.full_like(spread, 3), rtol=1e-3, atol=0)
    assert torch.equal(unet(image), unet.finish_logits(unet.head_logits(top), image))
    assert torch.equal(make().head_input(decoded), decoded[0])


def train_step(unet, image):
    torch.manual_seed(3)
    logits = unet(image)
    logits.square().mean().backward()
    return logits.detach(), [p.grad for p in unet.parameters() if p.grad is not None]


def test_checkpointing_changes_neither_output_nor_gradients(image, randomise):
    options = {"dropout": 0.4, "space_to_depth": 2}
    plain, saving = (randomise(make(checkpointing=on, **options), size=0.1) for on in (False, True))
    (logits, grads), (same_logits, same_grads) = (train_step(u, image) for u in (plain, saving))
    assert torch.equal(same_logits, logits)
    assert len(grads) == len(same_grads) > 20
    for grad, same in zip(grads, same_grads, strict=True):
        torch.testing.assert_close(same, grad)


@pytest.mark.parametrize(
    ("checkpointing", "training", "runs"), [(True, True, 2), (True, False, 1), (False, True, 1)]
)
def test_checkpointing_recomputes_every_block_in_training(image, checkpointing, training, runs):
    unet = make(checkpointing=checkpointing).train(training)
    counts = {}
    for name in ("encoder", "decoder"):
        for index, block in enumerate(getattr(unet, name)):
            counts[name, index] = 0

            def count(*_, key=(name, index)):
                counts[key] += 1

            # A convolution, since a recomputation stops at the last tensor that it needs.
            block.residual[0].register_forward_hook(count)
    unet(image).sum().backward()
    assert counts == dict.fromkeys(counts, runs)
    assert len(counts) == 2 * len(CHANNELS) - 1
