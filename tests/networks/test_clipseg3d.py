"""Mirrors clipseg3d/networks/clipseg3d.py. Sizes differ pairwise, so a swapped axis fails."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertModel, BertTokenizerFast

from clipseg3d.blocks.semantic_attention import SemanticAttention
from clipseg3d.blocks.residual_block import ResidualBlock
from clipseg3d.clip.encoder import HuggingFaceCLIP
from clipseg3d.losses import RegionLoss, cosine_loss, grade_loss
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.pretrained.reader import weight_mismatches
from clipseg3d.networks.config import ABLATIONS, NetworkConfig
from clipseg3d.views import Views, cut_views
from clipseg3d.intensity import intensity_statistics

B, S, X, Y, Z = 3, 4, 12, 16, 8
SMALL = NetworkConfig(channels=(4, 6, 8), num_auxiliary=1, semantic_dim=12, num_heads=3)
FOLDED = NetworkConfig(channels=(4, 6), space_to_depth=2, num_auxiliary=0, semantic_dim=12, num_heads=3)
TINY_LIKE = NetworkConfig(channels=(4, 6, 8), space_to_depth=2, num_auxiliary=1, semantic_dim=12, num_heads=3)
VARIANTS = {
    "default": {},
    "sequential": {"guidance": "sequential"},
    "film": {"guidance": "film"},
    "mean token": {"guidance_tokens": "mean"},
    "gain": {"attention_mode": "gain"},
    "dense": {"dense": True},
    "mixed colours, adapter": {"mix_rgb": True, "adapter": True},
    "attention views": {"view_selection": "attention"},
    "dense attention views": {
        "view_selection": "attention",
        "dense": True,
        "guidance": "sequential",
    },
    "conditional norm": {"conditional_norm": True},
    "nested": {"head": "nested"},
    "nested gain": {"head": "nested", "attention_mode": "gain", "conditional_norm": True},
    "differences": {"difference_channels": True},
    "region contrast": {"region_contrast": 1.0},
    "min-max": {"norms": ("zscore", "zscore", "minmax", "minmax")},
    "grade": {"grade_classifier": True},
    "refinement": {"fold": 2, "refinement": 6},
    **ABLATIONS,
}
PAPER_LIKE = {
    "paper": {"attention_mode": "paper"},
    "nested paper": {"attention_mode": "paper", "head": "nested"},
}
EVERY = VARIANTS | PAPER_LIKE
GUIDED = [name for name in EVERY if name not in ("no_semantic", "unet3d")]
REPORTS = ["Large oedema. Ring of enhancement on the left.", "Small lesion on the right.", ""]


@pytest.fixture
def make(tiny_clip):
    def build(config=SMALL, *, seed=0):
        torch.manual_seed(seed)
        return build_clipseg3d(config, encoder=tiny_clip).eval()

    return build


@pytest.fixture
def trained(make, randomise):
    """A network whose semantic path is as if trained."""
    network = make()
    randomise(network.semantic_fusion)
    return network


def raw_volume(*size, batch=B):
    generator = torch.Generator().manual_seed(0)
    volume = 100 * torch.rand(batch, S, *size, generator=generator) + 10
    volume[..., :2, :1, :1] = 0
    return volume


@pytest.fixture
def image():
    return raw_volume(X, Y, Z)


@pytest.fixture
def views(image):
    return cut_views(image, size=48)


@pytest.fixture
def text(trained):
    return dict(zip(("text", "text_mask"), trained.embed_text(REPORTS), strict=True))


def views_for(config, image):
    return cut_views(image, selection=config.view_selection, size=48)


def case_of(network, config, image, reports=None):
    """All that a forward pass can be given besides the image."""
    batch = len(image)
    text, mask = network.embed_text((REPORTS if reports is None else reports)[:batch])
    return {
        "views": views_for(config, image),
        "text": text,
        "text_mask": mask,
        "crop_box": torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.6, -0.3]]).expand(batch, 2, 3),
        "statistics": intensity_statistics(image) * 0.9,
    }


def plain(network, image, statistics=None):
    """What the network's U-Net makes of the fused image."""
    if network.pixel_fusion is None:
        return network.unet(image)
    return network.unet(network.pixel_fusion(image, statistics))


def changed_regions(after, before):
    return (after != before).flatten(2).any(dim=2).tolist()


# without, or before, semantics


@pytest.mark.parametrize("config", ["tiny", SMALL, FOLDED], ids=["tiny", "small", "folded"])
def test_untrained_semantic_path_is_the_plain_unet(make, config):
    network, image = make(config), raw_volume(37, 41, 29, batch=1)
    text, mask = network.embed_text(REPORTS[:1])
    logits = network(image, views=cut_views(image), text=text, text_mask=mask)
    assert logits.shape == (1, 3, 37, 41, 29)
    assert (logits - plain(network, image)).abs().max() == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_untrained_variant_is_the_plain_unet(make, variant):
    config = replace(TINY_LIKE, **VARIANTS[variant])
    network, image = make(config), raw_volume(37, 41, 29, batch=1)
    given = case_of(network, config, image)
    logits = network(image, **given)
    assert (logits - plain(network, image, given["statistics"])).abs().max() == 0


@pytest.mark.parametrize("variant", ["default", "sequential", "dense attention views", "nested"])
def test_semantics_do_not_change_how_the_unet_starts(make, variant):
    config = replace(SMALL, **VARIANTS[variant])
    image = raw_volume(21, 17, 14, batch=1)
    network, baseline = make(config), make(replace(config, **ABLATIONS["no_semantic"]))
    given = case_of(network, config, image)
    expected = baseline(image, statistics=given["statistics"])
    assert (network(image, **given) - expected).abs().max() == 0


def test_untrained_mode_of_the_paper_lowers_probabilities_a_little(make):
    config = replace(TINY_LIKE, attention_mode="paper")
    network, image = make(config), raw_volume(37, 41, 29, batch=1)
    given = case_of(network, config, image)
    before = plain(network, image, given["statistics"])
    after = network(image, **given)
    assert torch.equal(after[:, 0], before[:, 0])
    ratio = after.sigmoid()[:, 1:] / before.sigmoid()[:, 1:]
    factor = torch.sigmoid(torch.tensor(4.0))
    torch.testing.assert_close(ratio, factor.expand_as(ratio), rtol=1e-4, atol=0)


def test_without_views_and_text_it_is_its_unet_to_the_bit(trained, image):
    assert torch.equal(trained(image), plain(trained, image))
    statistics = intensity_statistics(image) * 0.9
    assert torch.equal(trained(image, statistics=statistics), plain(trained, image, statistics))
    assert not torch.equal(plain(trained, image, statistics), plain(trained, image))


@pytest.mark.parametrize("variant", EVERY)
def test_every_trained_variant_is_its_unet_without_views_and_text(make, randomise, variant, image):
    config = replace(SMALL, **EVERY[variant])
    network = randomise(make(config))
    given = case_of(network, config, image)
    unguided = plain(network, image, given["statistics"])
    alone = network(image, crop_box=given["crop_box"], statistics=given["statistics"])
    assert torch.equal(alone, unguided)
    changed = (network(image, **given) - unguided).abs().amax(dim=(1, 2, 3, 4))
    assert (changed > 1e-3).tolist() == [variant in GUIDED] * B
    # a case without signal in its views and without text, in the batch of others
    if variant not in GUIDED or given["text"] is None:
        return
    given["views"].images[1] = 0
    given["text_mask"][1] = False
    changed = (network(image, **given) != unguided).flatten(1).any(dim=1)
    assert changed.tolist() == [True, False, True]


# how far semantics count


@pytest.mark.parametrize("variant", GUIDED)
def test_strength_goes_from_the_plain_unet_to_full_semantics(make, randomise, variant, image):
    config = replace(SMALL, **EVERY[variant])
    network = randomise(make(config))
    given = case_of(network, config, image)
    full = network(image, **given)
    network.semantic_strength.fill_(0.0)
    assert (network(image, **given) - plain(network, image, given["statistics"])).abs().max() == 0
    network.semantic_strength.fill_(0.5)
    half = network(image, **given)
    assert half.isfinite().all()
    none = plain(network, image, given["statistics"])
    assert (half - full).abs().max() > 1e-3
    assert (half - none).abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["residual", "gain", "paper"])
def test_half_the_strength_lies_between(make, randomise, mode, image):
    config = replace(SMALL, attention_mode=mode)
    network = make(config)
    for block in network.semantic_fusion.attention.values():
        randomise(block)
    given = case_of(network, config, image)

    def segment(strength):
        network.semantic_strength.fill_(strength)
        return network(image, **given)

    none, half, full = map(segment, (0.0, 0.5, 1.0))
    low, high = torch.minimum(none, full), torch.maximum(none, full)
    assert ((low - 1e-4 <= half) & (half <= high + 1e-4)).all()
    if mode == "residual":
        torch.testing.assert_close(half, (none + full) / 2)
    if mode == "paper":
        torch.testing.assert_close(half.sigmoid(), (none.sigmoid() + full.sigmoid()) / 2)


def test_strength_is_saved_with_the_weights(make):
    network, other = make(), make(seed=1)
    network.semantic_strength.fill_(0.25)
    state = network.state_dict()
    assert state["semantic_strength"] == 0.25
    assert other.semantic_strength == 1
    other.load_state_dict(state)
    assert other.semantic_strength == 0.25


def test_strength_without_semantic_path_changes_nothing(make, image):
    network = make(replace(SMALL, semantics=False))
    before = network(image)
    network.semantic_strength.fill_(0.0)
    assert torch.equal(network(image), before)


def test_case_with_neither_is_left_unchanged(trained, image, views, text):
    views.images[1] = 0
    text["text_mask"][1] = False
    logits, unguided = trained(image, views=views, **text), plain(trained, image)
    changed = (logits != unguided).flatten(1).any(dim=1)
    assert changed.tolist() == [True, False, True]


def test_without_pixel_fusion_the_image_is_taken_as_it_is(make, image):
    network = make(replace(SMALL, **ABLATIONS["unet3d"]))
    assert torch.equal(network(image), network.unet(image))


# semantics at work


@pytest.mark.parametrize("given", ["views", "text"])
def test_one_kind_of_semantics_is_enough(trained, image, views, text, given):
    logits = trained(image, views=views) if given == "views" else trained(image, **text)
    assert logits.isfinite().all()
    assert (logits - plain(trained, image)).abs().amax(dim=(1, 2, 3, 4)).min() > 1e-2


def test_another_report_gives_other_logits(trained, image, views):
    def segment(reports):
        text, mask = trained.embed_text(reports)
        return trained(image, views=views, text=text, text_mask=mask)

    before, after = segment(REPORTS), segment([REPORTS[0], *REPORTS[:1:-1], REPORTS[1]])
    difference = (after - before).abs().amax(dim=(1, 2, 3, 4))
    assert difference[0] < 1e-5
    assert difference[1:].min() > 1e-3


def test_report_of_another_length_in_the_batch_changes_nothing(trained, image, views):
    def segment(reports):
        text, mask = trained.embed_text(reports)
        return trained(image, views=views, text=text, text_mask=mask)[0]

    longer = "One sentence. And another. A third one. And a fourth."
    torch.testing.assert_close(
        segment([REPORTS[0], "", ""]), segment([REPORTS[0], longer, ""]), rtol=1e-4, atol=1e-4
    )


def test_other_views_give_other_logits(trained, image, views, text):
    logits = trained(image, views=views, **text)
    shuffled = trained(image, views=Views(*(part.roll(1, dims=0) for part in views)), **text)
    assert (logits - shuffled).abs().amax(dim=(1, 2, 3, 4)).min() > 1e-3


def test_attention_changes_tc_and_et_but_never_wt(make, randomise, image, views, text):
    network = make()
    randomise(network.semantic_fusion.attention)
    logits = network(image, views=views, **text)
    assert changed_regions(logits, plain(network, image)) == [[False, True, True]] * B


def test_bottleneck_gate_changes_every_region(make, randomise, image, views, text):
    network = make()
    randomise(network.semantic_fusion.gate)
    logits = network(image, views=views, **text)
    assert changed_regions(logits, plain(network, image)) == [[True] * 3] * B


@pytest.mark.parametrize("config", [SMALL, FOLDED], ids=["small", "folded"])
def test_attention_adds_to_the_logits_of_the_unet(make, randomise, config, image, views, text):
    network = make(config)
    randomise(network.semantic_fusion.attention)
    semantics = network.encode_semantics(views, **text)
    prediction = network.segment(image, semantics)
    added = prediction.maps.scores
    assert added.shape == prediction.maps.cosines.shape
    assert added.shape == (B, 2, X // 2, Y // 2, Z // 2)  # on the folded, or a pooled grid
    added = F.interpolate(added, scale_factor=2, mode="trilinear")
    expected = plain(network, image)
    expected[:, 1:] += added
    torch.testing.assert_close(prediction.logits, expected)
    assert (prediction.maps.cosines.abs() <= 1).all()


def test_encoding_once_and_segmenting_is_forward(trained, image, views, text):
    crop_box = torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.6, -0.3]]).expand(B, 2, 3)
    statistics = intensity_statistics(image) * 0.9
    semantics = trained.encode_semantics(views, **text)
    logits = trained.segment(image, semantics, crop_box=crop_box, statistics=statistics).logits
    whole = trained(image, views=views, crop_box=crop_box, statistics=statistics, **text)
    assert torch.equal(logits, whole)
    assert not torch.equal(logits, trained(image, views=views, statistics=statistics, **text))
    assert not torch.equal(logits, trained(image, views=views, crop_box=crop_box, **text))


@pytest.mark.parametrize("config", [SMALL, FOLDED], ids=["small", "folded"])
@pytest.mark.parametrize(
    "crop_box",
    [None, [[0.1, 0.2, 0.3], [0.5, 0.6, 0.4]], [[0.6, 0.2, 0.9], [-0.5, 0.6, -0.8]]],
    ids=["whole", "crop", "mirrored"],
)
def test_padding_does_not_shift_the_places_that_attention_reads(make, randomise, config, crop_box):
    network, image = make(config), raw_volume(9, 14, 5, batch=1)
    crop_box = None if crop_box is None else torch.tensor([crop_box])
    block = randomise(network.semantic_fusion.attention["TC"])
    with torch.no_grad():  # let it add a linear function of the place in the brain
        block.query.weight.zero_()
        block.place[0].bias += 4
        block.context.bias += 40
    text, mask = network.embed_text(REPORTS[:1])
    semantics = network.encode_semantics(None, text, mask)
    added = network(image, text=text, text_mask=mask, crop_box=crop_box) - plain(network, image)
    block.stride = 1  # half the grid, interpolated, must give the same away from the border
    features = torch.zeros(1, config.channels[0], 9, 14, 5)
    expected, _ = block(features, semantics.summary, semantics.regions[:, 1], crop_box)
    inside = (..., *[slice(1, n - 1) for n in (9, 14, 5)])
    assert expected.std() > 1e-2
    torch.testing.assert_close(added[:, 1:2][inside], expected[inside], rtol=1e-4, atol=1e-4)


# shapes and types


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("config", [SMALL, FOLDED], ids=["small", "folded"])
def test_odd_sizes(make, randomise, config, batch):
    network, image = make(config), raw_volume(13, 17, 11, batch=batch)
    randomise(network.semantic_fusion)
    text, mask = network.embed_text(REPORTS[:batch])
    logits = network(image, views=cut_views(image, size=48), text=text, text_mask=mask)
    assert logits.shape == (batch, 3, 13, 17, 11)
    assert logits.isfinite().all()


@pytest.mark.parametrize("config", [SMALL, FOLDED], ids=["small", "folded"])
def test_missing_sequence_and_empty_volume_stay_finite(make, randomise, config, image):
    network = make(config)
    randomise(network.semantic_fusion)
    image[0, 2] = 0
    image[1] = 0
    text, mask = network.embed_text(REPORTS)
    logits = network(image, views=cut_views(image, size=48), text=text, text_mask=mask)
    assert logits.isfinite().all()


@pytest.mark.parametrize("size", [(37, 41, 29), (14, 9, 155)])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("variant", EVERY)
def test_every_variant_takes_odd_sizes(make, randomise, variant, batch, size):
    config = replace(TINY_LIKE, **EVERY[variant])
    network, image = randomise(make(config)), raw_volume(*size, batch=batch)
    prediction = network.segment(
        image,
        network.encode_semantics(views_for(config, image), *network.embed_text(REPORTS[:batch])),
    )
    assert prediction.logits.shape == (batch, 3, *size)
    assert all(part.isfinite().all() for part in prediction if torch.is_tensor(part))
    assert (prediction.grade is not None) == config.grade_classifier
    if config.grade_classifier:
        assert prediction.grade.shape == (batch,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", EVERY)
def test_every_variant_in_half_precision(make, randomise, variant, dtype):
    config = replace(TINY_LIKE, **EVERY[variant])
    network, image = randomise(make(config)), raw_volume(37, 41, 29, batch=1)
    given = case_of(network, config, image)
    with torch.autocast("cpu", dtype=dtype):
        assert network(image, **given).isfinite().all()


@pytest.mark.parametrize("mode", ["residual", "gain", "paper"])
@pytest.mark.parametrize("seed", range(3))
def test_nested_head_contains_et_in_tc_in_wt(make, randomise, mode, seed):
    config = replace(TINY_LIKE, head="nested", attention_mode=mode, conditional_norm=True)
    network, image = make(config, seed=seed), raw_volume(37, 41, 29, batch=1)
    randomise(network, size=1.0, seed=seed)
    prediction = network.segment(
        image,
        network.encode_semantics(views_for(config, image), *network.embed_text(REPORTS[:1])),
        deep=True,
    )
    for logits in (prediction.logits, *prediction.auxiliary):
        for threshold in (-3.0, 0.0, 2.0):
            wt, tc, et = (logits > threshold).unbind(dim=1)
            assert not (tc & ~wt).any()
            assert not (et & ~tc).any()
    assert (prediction.logits > 0).any()
    independent = make(replace(config, head="sigmoid"))
    independent.load_state_dict(network.state_dict())
    wt, tc, et = (plain(independent, image) > 0).unbind(dim=1)
    assert (tc & ~wt).any() or (et & ~tc).any()


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 0.1), (torch.float16, 0.01)])
def test_half_precision(trained, image, views, text, dtype, share):
    expected = trained(image, views=views, **text)
    with torch.autocast("cpu", dtype=dtype):
        logits = trained(image, views=views, **text)
    assert logits.isfinite().all()
    assert (logits.float() - expected).abs().mean() < share * expected.std()


def test_deep_logits_follow_those_of_the_image(trained, image, views, text):
    semantics = trained.encode_semantics(views, **text)
    shallow = trained.segment(image, semantics)
    assert shallow.auxiliary == []
    deep = trained.segment(image, semantics, deep=True)
    assert torch.equal(deep.logits, shallow.logits)
    (coarse,) = deep.auxiliary
    assert coarse.shape == (B, 3, X // 2, Y // 2, Z // 2)
    assert not torch.equal(trained.segment(image, None, deep=True).auxiliary[0], coarse)


# gradients


def loss_of(network, image, views, text):
    prediction = network.segment(image, network.encode_semantics(views, **text), deep=True)
    return RegionLoss()([prediction.logits, *prediction.auxiliary], some_label())


def test_scaled_gradients_in_float16(trained, image, views, text):
    """What 16-mixed trains with: losses times 2^16, and gradients divided by it."""
    gradients = {}
    for dtype in (torch.float32, torch.float16):
        trained.zero_grad()
        half = dtype == torch.float16
        scaler = torch.amp.GradScaler("cpu", enabled=half)
        with torch.autocast("cpu", dtype=torch.float16, enabled=half):
            loss = loss_of(trained, image, views, text)
        assert loss.dtype == torch.float32
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.0)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert not half or scaler.get_scale() == 2.0**16  # nothing overflowed
        gradients[dtype] = {
            n: w.grad.clone() for n, w in trained.named_parameters() if w.requires_grad
        }
    single, half = (torch.cat([g.flatten() for g in one.values()]) for one in gradients.values())
    # rounding moves a few maxima that CBAM sees to other voxels
    assert (half - single).norm() < 0.05 * single.norm()
    assert F.cosine_similarity(half, single, dim=0) > 0.998


def some_label():
    return (torch.rand(B, 3, X, Y, Z, generator=torch.Generator().manual_seed(5)) > 0.5).float()


def training_loss(network, config, image, *, cosines=False, text=True):
    """What training computes, with everything that a config switches on."""
    given = case_of(network, config, image)
    said = (given["text"], given["text_mask"]) if text else (None, None)
    label = some_label()
    prediction = network.segment(
        image,
        network.encode_semantics(given["views"], *said),
        crop_box=given["crop_box"],
        statistics=given["statistics"],
        regions=label if config.region_contrast else None,
        deep=True,
    )
    loss = RegionLoss()([prediction.logits, *prediction.auxiliary], label)
    if prediction.grade is not None:
        loss = loss + grade_loss(prediction.grade, torch.full((B,), -1))
    if cosines and prediction.maps is not None:
        loss = loss + cosine_loss(prediction.maps.cosines, label[:, 1:], temperature=0.07)
    return loss


@pytest.mark.parametrize("cosines", [False, True], ids=["", "cosines"])
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("variant", EVERY)
def test_no_weight_is_left_without_a_gradient(make, variant, strength, cosines, image):
    """Distributed training waits for each of them, from the first step on."""
    config = replace(SMALL, dropout=0.2, **EVERY[variant])
    network = make(config).train()
    network.semantic_strength.fill_(strength)
    training_loss(network, config, image, cosines=cosines).backward()
    trainable = {name: w for name, w in network.named_parameters() if w.requires_grad}
    assert [name for name, weight in trainable.items() if weight.grad is None] == []
    assert all(weight.grad.isfinite().all() for weight in trainable.values())


@pytest.mark.parametrize("variant", EVERY)
def test_gradient_reaches_every_weight_of_every_variant(
    make, randomise, variant, image, dead_weights
):
    config = replace(SMALL, **EVERY[variant])
    network = randomise(make(config))
    given = case_of(network, config, image)
    prediction = network.segment(
        image,
        network.encode_semantics(given["views"], given["text"], given["text_mask"]),
        deep=True,
    )
    loss = RegionLoss()([prediction.logits, *prediction.auxiliary], some_label())
    if prediction.grade is not None:
        loss = loss + grade_loss(prediction.grade, torch.tensor([1, 0, -1]))
    loss.backward()
    expected = []
    if variant == "no_text":  # attention compares voxels with zeros
        keys = ("key", "place_key")
        expected = [f"semantic_fusion.attention.{r}.{k}.weight" for r in ("TC", "ET") for k in keys]
    assert dead_weights(network) == expected


def test_checkpointing_gives_the_same_loss_and_gradients(make, randomise, image):
    config = replace(SMALL, dropout=0.2)
    kept, recomputed = (make(replace(config, checkpointing=flag)) for flag in (False, True))
    losses, calls = [], []
    for network in (kept, recomputed):
        randomise(network).train()
        count = 0

        def tick(*_):
            nonlocal count
            count += 1

        for module in network.unet.modules():
            if isinstance(module, ResidualBlock):
                module.register_forward_pre_hook(tick)
        torch.manual_seed(3)
        loss = training_loss(network, config, image)
        loss.backward()
        losses.append(loss)
        calls.append(count)
    assert calls == [5, 10]
    assert torch.equal(*losses)
    for one, other in zip(kept.parameters(), recomputed.parameters(), strict=True):
        if one.requires_grad:
            assert torch.equal(one.grad, other.grad)


# region contrast


def test_regions_in_evaluation_are_refused(make, image):
    for config in (SMALL, replace(SMALL, region_contrast=0.5)):
        network = make(config)
        with pytest.raises(ValueError, match="regions in evaluation"):
            network.segment(image, None, regions=some_label())


def test_region_contrast_is_for_training_only(make, image):
    network = make(replace(SMALL, region_contrast=1.0))
    network.train()
    stretched = network.segment(image, None, regions=some_label()).logits
    assert not torch.equal(stretched, network.segment(image, None).logits)
    other = make(SMALL).train()
    assert torch.equal(
        other.segment(image, None, regions=some_label()).logits, other.segment(image, None).logits
    )


def test_semantic_path_opens_step_by_step(make, image, views, text, dead_weights):
    network = make()
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1.0)
    loss_of(network, image, views, text).backward()
    gate, attention = network.semantic_fusion.gate, network.semantic_fusion.attention
    assert dead_weights(gate) == []
    assert not {"TC.score.weight", "ET.score.weight"} & set(dead_weights(attention))
    guidance = network.semantic_fusion.guidance
    assert len(dead_weights(guidance)) == len(list(guidance.parameters()))
    optimiser.step()
    optimiser.zero_grad()
    loss_of(network, image, views, text).backward()
    assert dead_weights(network.semantic_fusion) == []


def test_gradient_reaches_every_weight_but_clip(
    make, randomise, image, views, text, tiny_clip, dead_weights
):
    network = randomise(make())
    loss_of(network, image, views, text).backward()
    assert dead_weights(network) == []
    assert all(weight.grad is None for weight in tiny_clip.parameters())
    assert not any(weight.requires_grad for weight in tiny_clip.parameters())


# CLIP and checkpoints


def test_training_mode_leaves_clip_in_evaluation(make, tiny_clip):
    network = make().train()
    assert network.unet.training
    assert network.semantic_fusion.guidance.training
    assert not any(module.training for module in tiny_clip.modules())


def test_checkpoint_restores_the_logits_and_holds_no_clip(
    make, randomise, image, views, text, tiny_clip
):
    network, other = randomise(make()), make(seed=1)
    state = network.state_dict()
    clip_weights = sum(weight.numel() for weight in tiny_clip.parameters())
    kept = set(trainable(network)) | {name for name, _ in network.named_buffers() if name in state}
    assert clip_weights > 0
    assert set(state) == kept
    assert {"semantic_strength", "unet.heads.0.bias"} <= kept
    assert not any(".encoder." in name for name in kept if not name.startswith("unet."))
    assert not any("clip" in name for name in state)
    assert not torch.equal(other(image, views=views, **text), network(image, views=views, **text))
    other.load_state_dict(state, strict=True)
    assert torch.equal(other(image, views=views, **text), network(image, views=views, **text))


@pytest.mark.parametrize("name", ["unet.heads.0.bias", "semantic_fusion.gate.scale.weight"])
def test_strict_loading_misses_every_other_weight(make, name):
    network = make()
    state = network.state_dict()
    del state[name]
    with pytest.raises(RuntimeError, match=rf'Missing key\(s\) in state_dict: "{name}"'):
        network.load_state_dict(state, strict=True)


def test_strict_loading_refuses_unknown_weights(make):
    network = make()
    state = {**network.state_dict(), "semantic_fusion.gate.extra": torch.zeros(1)}
    with pytest.raises(RuntimeError, match=r"Unexpected key.*semantic_fusion\.gate\.extra"):
        network.load_state_dict(state, strict=True)


def test_another_clip_is_refused(make, tiny_clip):
    network = make()
    identities = network.encoder_identities()
    assert identities == {"CLIP": {"name": "tiny-random", "sha256": tiny_clip.fingerprint()}}
    network.require_encoders(identities)
    renamed = {"CLIP": {**identities["CLIP"], "name": "elsewhere"}}
    network.require_encoders(renamed)
    other = {"CLIP": {"name": "theirs", "sha256": "0" * 64}}
    with pytest.raises(
        ValueError, match=r"CLIP encoder 'tiny-random' has other weights than 'theirs'"
    ):
        network.require_encoders(other)


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    """A small BERT with random weights, as save_pretrained leaves it."""
    folder = tmp_path_factory.mktemp("bert")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, "left", "right", "on", "the", "large", "small", "lesion", "oedema", "."]
    (folder / "vocab.txt").write_text("\n".join(words))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(
            BertConfig(
                vocab_size=len(words),
                hidden_size=10,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=40,
            )
        )
    BertTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:the weights of the tiny CLIP are random")
def test_text_may_have_an_encoder_of_its_own(make, randomise, bert_folder, tiny_clip, image):
    config = replace(SMALL, text_encoder=str(bert_folder))
    network = make(config)
    identities = network.encoder_identities()
    assert set(identities) == {"CLIP", "text"}
    assert identities["CLIP"]["sha256"] == tiny_clip.fingerprint()
    assert identities["text"]["name"] == str(bert_folder)
    given = case_of(network, config, image)
    assert given["text"].shape[2] == 10 != tiny_clip.embed_dim
    assert torch.equal(network(image, **given), plain(network, image, given["statistics"]))
    randomise(network)
    assert not torch.equal(network(image, **given), plain(network, image, given["statistics"]))
    assert not any("text_bank" in name or "frozen" in name for name in network.state_dict())
    network.require_encoders(identities)
    other = copy.deepcopy(identities)
    other["text"]["sha256"] = "0" * 64
    with pytest.raises(ValueError, match=r"text encoder '.*' has other weights than"):
        network.require_encoders(other)
    with pytest.raises(ValueError, match="CLIP encoder"):
        network.require_encoders({**identities, "CLIP": identities["text"]})


@pytest.mark.filterwarnings("ignore:the weights of the tiny CLIP are random")
def test_another_saved_clip_is_refused(make, tmp_path):
    folders = []
    for seed in (0, 1):
        clip = HuggingFaceCLIP.tiny_random(seed=seed)
        folders.append(str(tmp_path / f"clip{seed}"))
        clip.frozen_model.save_pretrained(folders[-1])
        clip.tokenizer.save_pretrained(folders[-1])
    one, other = (build_clipseg3d(replace(SMALL, clip=folder)) for folder in folders)
    one.require_encoders(make().encoder_identities())  # the same weights under another name
    with pytest.raises(ValueError, match=r"clip1' has other weights than .*clip0'"):
        other.require_encoders(one.encoder_identities())


def test_texts_are_read_from_a_file_of_embeddings(make, tiny_clip, tmp_path, monkeypatch):
    network = make()
    path = tmp_path / "texts.safetensors"
    network.text_bank.save(path, REPORTS)
    expected = network.embed_text(REPORTS)
    cached = build_clipseg3d(SMALL, encoder=tiny_clip, text_cache=str(path))
    monkeypatch.setattr(tiny_clip, "encode_text", None)  # any call would fail
    for found, due in zip(cached.embed_text(REPORTS), expected, strict=True):
        assert torch.equal(found, due)


# building


def test_network_without_semantics_has_no_part_of_it(make, image, views):
    network = make(replace(SMALL, **ABLATIONS["no_semantic"]))
    assert not any("semantic" in name for name, _ in network.named_parameters())
    assert network.pixel_fusion is not None
    assert network.embed_text(REPORTS) == (None, None)
    assert network.encoder_identities() == {}
    network.require_encoders({})
    assert network.encode_semantics(views, None) is None
    assert torch.equal(network(image, views=views), plain(network, image))


def test_baseline_is_a_plain_unet(make):
    network = make(replace(SMALL, **ABLATIONS["unet3d"]))
    assert {name.split(".")[0] for name, _ in network.named_parameters()} == {"unet"}
    assert not any("attention" in name or "gates" in name for name in network.state_dict())


EVERYTHING = replace(
    SMALL,
    dropout=0.2,
    difference_channels=True,
    region_contrast=0.5,
    mix_rgb=True,
    adapter=True,
    dense=True,
    view_selection="attention",
    conditional_norm=True,
    grade_classifier=True,
    guidance="gate",
)
SEMANTIC = ("semantic_fusion.", "unet.head_norm.")
BRIDGE = tuple(f"semantic_fusion.bridge.{part}." for part in ("mixture", "adapter", "pooling"))
NOT_BUILT = {
    "no_pixel": ("pixel_fusion.",),
    "no_feature": ("unet.gates.",),
    "no_semantic": SEMANTIC,
    "center_mean_bridge": (*BRIDGE, "semantic_fusion.from_patches."),
    "no_guidance": ("semantic_fusion.guidance.attention.",),
    "no_attention": ("semantic_fusion.attention.",),
    "unet3d": ("pixel_fusion.", "unet.gates.", *SEMANTIC),
    "shuffled_text": (),
    "no_text": ("semantic_fusion.guidance.map_text.",),
}


def trainable(network):
    return {name: w.shape for name, w in network.named_parameters() if w.requires_grad}


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_what_is_switched_off_is_not_built_and_all_else_is(make, ablation):
    whole = trainable(make(EVERYTHING))
    part = trainable(make(replace(EVERYTHING, **ABLATIONS[ablation])))
    assert all(any(name.startswith(part) for name in whole) for part in NOT_BUILT[ablation])
    gone = {name for name in whole if name.startswith(NOT_BUILT[ablation])}
    if ablation in ("no_feature", "unet3d"):  # CBAM lies in every block
        gone |= {name for name in whole if name.startswith("unet") and ".attention." in name}
    resized = set()
    if ablation in ("no_pixel", "unet3d"):  # as many channels as the first level: no shortcut
        gone |= {"unet.encoder.0.shortcut.weight"}
        resized = {"unet.encoder.0.residual.0.weight"}
    assert (gone == set()) == (ablation == "shuffled_text")
    assert set(part) == set(whole) - gone
    assert {name for name in part if part[name] != whole[name]} == resized


def test_every_sequence_has_its_own_norm(make, image):
    """Min-max ends at the 99.5th percentile; a z-score goes below 0."""
    norms = ("minmax", "zscore", "minmax", "zscore")
    fused = make(replace(SMALL, norms=norms)).pixel_fusion(image)
    lowest, highest = fused.amin(dim=(0, 2, 3, 4)), fused.amax(dim=(0, 2, 3, 4))
    assert lowest[[0, 2]].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert highest[[0, 2]].tolist() == pytest.approx([1, 1], abs=1e-6)
    assert (lowest[[1, 3]] < -1).all()


def test_refinement_reads_the_sequences_as_they_are_fused(make, randomise, image):
    network = make(replace(TINY_LIKE, refinement=6))
    randomise(network.unet.refine)
    logits = network(image)
    torch.testing.assert_close(network(5 * image), logits, rtol=1e-3, atol=1e-3)
    network.unet.refine = None
    assert not torch.allclose(network(image), logits, atol=0.1)


@pytest.mark.parametrize("fold", [1, 2])
def test_new_difference_channels_change_nothing(make, randomise, image, fold):
    config = replace(SMALL, space_to_depth=fold, difference_channels=True)
    network = make(config)
    fused = network.pixel_fusion(image)
    assert fused.shape[1] == 6
    without = torch.cat([fused[:, :4], torch.zeros_like(fused[:, 4:])], dim=1)
    assert fused[:, 4:].any()
    assert torch.equal(network.unet(fused), network.unet(without))
    randomise(network)
    assert not torch.equal(network.unet(fused), network.unet(without))


def test_network_without_text_reads_none(make, randomise, image):
    network = randomise(make(replace(SMALL, text="none")))
    assert network.text_bank is None
    assert network.embed_text(REPORTS) == (None, None)
    assert set(network.encoder_identities()) == {"CLIP"}
    semantics = network.encode_semantics(cut_views(image, size=48), None)
    assert not semantics.regions.any()
    with pytest.raises(ValueError, match="built with text_dim=0"):
        network(image, text=torch.zeros(B, 3, 64))


def test_shuffled_text_builds_the_same_network(make, image):
    config = replace(SMALL, text="shuffled")
    one, other = make(), make(config)
    assert trainable(one) == trainable(other)
    assert torch.equal(one.embed_text(REPORTS)[0], other.embed_text(REPORTS)[0])


def test_text_that_nothing_reads_is_not_embedded(make, image):
    config = replace(SMALL, guided=(), guidance="none")
    network = make(config)
    assert network.embed_text(REPORTS) == (None, None)
    assert network.semantic_fusion.guidance.map_text is None


# compiling and exporting


def compiled_case(make, randomise, config):
    network, image = randomise(make(config)), raw_volume(24, 40, 16, batch=1)
    return network, image, case_of(network, config, image)


@pytest.mark.parametrize(
    "variant", ["default", "sequential", "dense attention views", "nested gain", "paper"]
)
def test_the_whole_network_exports(make, randomise, variant):
    network, image, given = compiled_case(
        make, randomise, replace(TINY_LIKE, channels=(4, 6), num_auxiliary=0, **EVERY[variant])
    )
    exported = torch.export.export(network, (image,), given, strict=False).module()
    expected = network(image, **given)
    torch.testing.assert_close(exported(image, **given), expected)
    again = {**given, "views": Views(given["views"].images.flip(1), given["views"].planes)}
    assert not torch.equal(network(image, **again), expected)
    torch.testing.assert_close(exported(image, **again), network(image, **again))


def test_the_whole_network_is_one_graph(make, randomise):
    network, image, given = compiled_case(make, randomise, TINY_LIKE)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(image, **given), network(image, **given))


def test_compiled_segmentation_gives_the_eager_logits(make, randomise):
    """Inductor takes most of a minute; what CLIP's towers give is encoded outside."""
    network, image, given = compiled_case(
        make, randomise, replace(TINY_LIKE, channels=(4, 6), num_auxiliary=0)
    )
    semantics = network.encode_semantics(given["views"], given["text"], given["text_mask"])
    place = {name: given[name] for name in ("crop_box", "statistics")}
    with torch.no_grad():
        expected = network.segment(image, semantics, **place)
        found = torch.compile(network.segment)(image, semantics, **place)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.maps.cosines, expected.maps.cosines, rtol=1e-3, atol=1e-3)


def test_semantic_path_is_built_without_the_unets_attention(make, randomise, image, views):
    config = replace(SMALL, cbam=False, guided=("ET",))
    network = make(config)
    randomise(network.semantic_fusion.attention)
    logits = network(image, views=views)
    assert changed_regions(logits, plain(network, image)) == [[False, False, True]] * B
    assert isinstance(network.semantic_fusion.attention["ET"], SemanticAttention)


def test_paper_preset_has_the_papers_size(make):
    network = make("paper")
    assert network.unet.channels == (32, 64, 128, 256, 512)
    assert 22e6 < sum(weight.numel() for weight in network.unet.parameters()) < 25e6
    assert network.unet.multiple == 16
    assert network.semantic_fusion.guidance.dim == 256


def test_preset_that_is_not_there():
    with pytest.raises(
        ValueError, match=r"'huge'.*paper, paper_body, paper_appendix, recommended, tiny"
    ):
        build_clipseg3d("huge")


def test_unguided_region_is_refused(make):
    config = replace(SMALL, guided=("TC", "XX"))
    with pytest.raises(ValueError, match=r"\['XX'\] not in regions"):
        make(config)


def test_weights_of_another_architecture():
    own = {"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(1)}
    assert weight_mismatches(own, own) == []
    assert weight_mismatches({"a": torch.ones(2), "b": torch.ones(4), "d": torch.ones(1)}, own) == [
        "1 missing, such as c",
        "1 unknown, such as d",
        "1 of another shape, such as b",
    ]
