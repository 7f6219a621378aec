"""Mirrors clipseg3d/networks/clipseg3d.py. Sizes differ pairwise, so a swapped axis fails."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from clipseg3d.blocks.residual_block import ResidualBlock
from clipseg3d.clip.hugging_face_clip import HuggingFaceCLIP
from clipseg3d.intensity import intensity_statistics
from clipseg3d.losses import RegionLoss, cosine_loss, grade_loss, presence_loss
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.presets import ABLATIONS
from clipseg3d.views import Views, cut_views

B, X, Y, Z = 3, 12, 16, 8
ODD = (13, 17, 11)
SMALL = NetworkConfig(channels=(4, 6, 8), num_auxiliary=1, semantic_dim=12, num_heads=3)
CUBES = replace(SMALL, channels=(4, 6), space_to_depth=2, num_auxiliary=0)
TINY_LIKE = replace(SMALL, space_to_depth=2)
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
    "refinement": {"space_to_depth": 2, "refinement": 6},
    "sentences": {"sentences": True, "presence": True, "guided_skips": 1},
    "nested presence": {"head": "nested", "presence": True, "space_to_depth": 2},
    **ABLATIONS,
}
PAPER_LIKE = {
    "damped": {"attention_mode": "damped"},
    "nested damped": {"attention_mode": "damped", "head": "nested"},
    "paper": {
        "attention_mode": "paper",
        "running_norms": False,
        "guiding_text": "all",
        "sequence_gate": False,
        "view_selection": "volume_center",
    },
}
EVERY = VARIANTS | PAPER_LIKE
GUIDED = [name for name in EVERY if name not in ("no_semantic", "unet3d")]


def each_with(*factors):
    """Pair every variant with one combination of other factors, all combinations in turn."""
    combinations = itertools.cycle(itertools.product(*factors))
    return [(variant, *next(combinations)) for variant in EVERY]


@pytest.fixture
def trained(make, randomise):
    """A network whose semantic path is as if trained."""
    network = make()
    randomise(network.semantic_fusion)
    return network


@pytest.fixture
def text(trained, reports):
    return dict(zip(("text", "text_mask"), trained.embed_text(reports), strict=True))


# without, or before, semantics


@pytest.mark.parametrize(
    ("config", "size"),
    [("tiny", (37, 41, 29)), (SMALL, ODD), (CUBES, ODD)],
    ids=["tiny", "small", "cubes"],
)
def test_untrained_semantic_path_is_the_plain_unet(make, raw_volume, reports, plain, config, size):
    network, image = make(config), raw_volume(*size, batch=1)
    text, mask = network.embed_text(reports[:1])
    logits = network(image, views=cut_views(image), text=text, text_mask=mask)
    assert logits.shape == (1, 3, *size)
    assert (logits - plain(network, image)).abs().max() == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_untrained_variant_is_the_plain_unet(make, raw_volume, case_of, plain, variant):
    network = make(replace(TINY_LIKE, **VARIANTS[variant]))
    image = raw_volume(*ODD, batch=1)
    given = case_of(network, image)
    logits = network(image, **given)
    assert (logits - plain(network, image, given["statistics"])).abs().max() == 0


@pytest.mark.parametrize("variant", ["default", "sequential", "dense attention views", "nested"])
def test_semantics_do_not_change_how_the_unet_starts(make, raw_volume, case_of, variant):
    config = replace(SMALL, **VARIANTS[variant])
    image = raw_volume(21, 17, 14, batch=1)
    network, baseline = make(config), make(replace(config, **ABLATIONS["no_semantic"]))
    given = case_of(network, image)
    expected = baseline(image, statistics=given["statistics"])
    assert (network(image, **given) - expected).abs().max() == 0


def test_untrained_mode_of_the_paper_lowers_probabilities_a_little(
    make, raw_volume, case_of, plain
):
    network = make(replace(TINY_LIKE, attention_mode="damped"))
    image = raw_volume(*ODD, batch=1)
    given = case_of(network, image)
    before = plain(network, image, given["statistics"])
    after = network(image, **given)
    assert torch.equal(after[:, 0], before[:, 0])
    ratio = after.sigmoid()[:, 1:] / before.sigmoid()[:, 1:]
    factor = torch.sigmoid(torch.tensor(4.0))
    torch.testing.assert_close(ratio, factor.expand_as(ratio), rtol=1e-4, atol=0)


def test_without_views_and_text_it_is_its_unet_to_the_bit(trained, image, plain):
    assert torch.equal(trained(image), plain(trained, image))
    statistics = intensity_statistics(image) * 0.9
    assert torch.equal(trained(image, statistics=statistics), plain(trained, image, statistics))
    assert not torch.equal(plain(trained, image, statistics), plain(trained, image))


@pytest.mark.parametrize("variant", EVERY)
def test_every_trained_variant_goes_from_its_unet_to_full_semantics(
    make, randomise, case_of, plain, variant, image
):
    network = randomise(make(replace(SMALL, **EVERY[variant])))
    given = case_of(network, image)
    unguided = plain(network, image, given["statistics"])
    alone = network(image, crop_box=given["crop_box"], statistics=given["statistics"])
    assert torch.equal(alone, unguided)
    full = network(image, **given)
    changed = (full - unguided).abs().amax(dim=(1, 2, 3, 4))
    assert (changed > 1e-3).tolist() == [variant in GUIDED] * B
    if variant not in GUIDED:
        return
    # half and none of the semantics
    network.semantic_strength.fill_(0.5)
    half = network(image, **given)
    assert half.isfinite().all()
    assert (half - full).abs().max() > 1e-3
    assert (half - unguided).abs().max() > 1e-3
    network.semantic_strength.fill_(0.0)
    assert (network(image, **given) - unguided).abs().max() == 0
    # a case without signal in its views and without text, in the batch of others
    if given["text"] is None:
        return
    network.semantic_strength.fill_(1.0)
    given["views"].images[1] = 0
    given["text_mask"][1] = False
    changed = (network(image, **given) != unguided).flatten(1).any(dim=1)
    assert changed.tolist() == [True, False, True]


# weight of semantics


@pytest.mark.parametrize("mode", ["residual", "gain", "damped"])
def test_half_the_strength_lies_between(make, randomise, case_of, mode, image):
    network = make(replace(SMALL, attention_mode=mode))
    for block in network.semantic_fusion.attention.values():
        randomise(block)
    given = case_of(network, image)

    def segment(strength):
        network.semantic_strength.fill_(strength)
        return network(image, **given)

    none, half, full = map(segment, (0.0, 0.5, 1.0))
    low, high = torch.minimum(none, full), torch.maximum(none, full)
    assert ((low - 1e-4 <= half) & (half <= high + 1e-4)).all()
    if mode == "residual":
        torch.testing.assert_close(half, (none + full) / 2)
    if mode == "damped":
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


def test_case_with_neither_is_left_unchanged(trained, image, views, text, plain):
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
def test_one_kind_of_semantics_is_enough(trained, image, views, text, plain, given):
    logits = trained(image, views=views) if given == "views" else trained(image, **text)
    assert logits.isfinite().all()
    assert (logits - plain(trained, image)).abs().amax(dim=(1, 2, 3, 4)).min() > 1e-2


def test_another_report_gives_other_logits(trained, image, views, reports):
    def segment(reports):
        text, mask = trained.embed_text(reports)
        return trained(image, views=views, text=text, text_mask=mask)

    before, after = segment(reports), segment([reports[0], *reports[:1:-1], reports[1]])
    difference = (after - before).abs().amax(dim=(1, 2, 3, 4))
    assert difference[0] < 1e-5
    assert difference[1:].min() > 1e-3


def test_report_of_another_length_in_the_batch_changes_nothing(trained, image, views, reports):
    def segment(other):
        text, mask = trained.embed_text([reports[0], other, ""])
        return trained(image, views=views, text=text, text_mask=mask)[0]

    longer = "One sentence. And another. A third one. And a fourth."
    torch.testing.assert_close(segment(""), segment(longer), rtol=1e-4, atol=1e-4)


def test_other_views_give_other_logits(trained, image, views, text):
    logits = trained(image, views=views, **text)
    shuffled = trained(image, views=Views(*(part.roll(1, dims=0) for part in views)), **text)
    assert (logits - shuffled).abs().amax(dim=(1, 2, 3, 4)).min() > 1e-3


def test_attention_changes_tc_and_et_but_never_wt(
    make, randomise, image, views, text, plain, changed_regions
):
    network = make()
    randomise(network.semantic_fusion.attention)
    logits = network(image, views=views, **text)
    assert changed_regions(logits, plain(network, image)) == [[False, True, True]] * B


def test_semantics_at_the_bottleneck_change_every_region(
    make, randomise, image, views, text, plain, changed_regions
):
    network = make()
    randomise(network.semantic_fusion.bottleneck)
    logits = network(image, views=views, **text)
    assert changed_regions(logits, plain(network, image)) == [[True] * 3] * B


@pytest.mark.parametrize("config", [SMALL, CUBES], ids=["small", "cubes"])
def test_attention_adds_to_the_logits_of_the_unet(
    make, randomise, config, image, views, text, plain
):
    network = make(config)
    randomise(network.semantic_fusion.attention)
    semantics = network.encode_semantics(views, **text)
    prediction = network.segment(image, semantics)
    added = prediction.maps.scores
    assert added.shape == prediction.maps.cosines.shape
    assert added.shape == (B, 2, X // 2, Y // 2, Z // 2)  # on the grid of cubes, or a pooled one
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


@pytest.mark.parametrize("config", [SMALL, CUBES], ids=["small", "cubes"])
@pytest.mark.parametrize(
    "crop_box",
    [
        None,
        [[0.1, 0.2, 0.3], [0.5, 0.6, 0.4]],
        [[0.6, 0.2, 0.9], [-0.5, 0.6, -0.8]],
        [[0.1, 0.2, 0.3], [0.5, 0.1, 0.2], [-0.1, 0.6, 0.1], [0.1, 0.0, 0.4]],
    ],
    ids=["whole", "crop", "mirrored", "turned"],
)
def test_padding_does_not_shift_the_positions_that_attention_reads(
    make, randomise, raw_volume, reports, plain, config, crop_box
):
    network, image = make(config), raw_volume(9, 14, 5, batch=1)
    crop_box = None if crop_box is None else torch.tensor([crop_box])
    block = randomise(network.semantic_fusion.attention["TC"])
    with torch.no_grad():  # let it add a linear function of the position in the brain
        block.query.weight.zero_()
        block.position[0].bias += 4
        block.context.bias += 40
    text, mask = network.embed_text(reports[:1])
    semantics = network.encode_semantics(None, text, mask)
    added = network(image, text=text, text_mask=mask, crop_box=crop_box) - plain(network, image)
    # half the grid, interpolated, must give the same away from the border
    features = torch.zeros(1, config.channels[0], 9, 14, 5)
    expected, _ = block(features, semantics.summary, semantics.regions[:, 1], crop_box)
    inside = (..., *[slice(1, n - 1) for n in (9, 14, 5)])
    assert expected.std() > 1e-2
    torch.testing.assert_close(added[:, 1:2][inside], expected[inside], rtol=1e-4, atol=1e-4)


# shapes and types


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("config", [SMALL, CUBES], ids=["small", "cubes"])
def test_odd_sizes(make, randomise, raw_volume, reports, config, batch):
    network, image = make(config), raw_volume(*ODD, batch=batch)
    randomise(network.semantic_fusion)
    text, mask = network.embed_text(reports[:batch])
    logits = network(image, views=cut_views(image, size=48), text=text, text_mask=mask)
    assert logits.shape == (batch, 3, *ODD)
    assert logits.isfinite().all()


@pytest.mark.parametrize("config", [SMALL, CUBES], ids=["small", "cubes"])
def test_missing_sequence_and_empty_volume_stay_finite(make, randomise, config, image, reports):
    network = make(config)
    randomise(network.semantic_fusion)
    image[0, 2] = 0
    image[1] = 0
    text, mask = network.embed_text(reports)
    logits = network(image, views=cut_views(image, size=48), text=text, text_mask=mask)
    assert logits.isfinite().all()


@pytest.mark.parametrize(("variant", "batch", "size"), each_with([1, 3], [ODD, (6, 9, 43)]))
def test_every_variant_takes_odd_sizes(make, randomise, raw_volume, case_of, variant, batch, size):
    config = replace(TINY_LIKE, **EVERY[variant])
    network, image = randomise(make(config)), raw_volume(*size, batch=batch)
    given = case_of(network, image)
    prediction = network.segment(
        image, network.encode_semantics(given["views"], given["text"], given["text_mask"])
    )
    assert prediction.logits.shape == (batch, 3, *size)
    assert all(part.isfinite().all() for part in prediction if torch.is_tensor(part))
    assert (prediction.grade is not None) == config.grade_classifier
    if config.grade_classifier:
        assert prediction.grade.shape == (batch,)


@pytest.mark.parametrize(
    ("variant", "dtype"),
    [*each_with([torch.bfloat16, torch.float16]), ("default", torch.float16)]
    + [(variant, torch.bfloat16) for variant in PAPER_LIKE],
)
def test_every_variant_in_half_precision(make, randomise, raw_volume, case_of, variant, dtype):
    network = randomise(make(replace(TINY_LIKE, **EVERY[variant])))
    image = raw_volume(*ODD, batch=1)
    given = case_of(network, image)
    with torch.autocast("cpu", dtype=dtype):
        assert network(image, **given).isfinite().all()


@pytest.mark.parametrize(("seed", "mode"), list(enumerate(["residual", "gain", "damped"])))
def test_nested_head_contains_et_in_tc_in_wt(
    make, randomise, raw_volume, case_of, plain, mode, seed
):
    config = replace(TINY_LIKE, head="nested", attention_mode=mode, conditional_norm=True)
    network, image = make(config, seed=seed), raw_volume(*ODD, batch=1)
    randomise(network, size=1.0, seed=seed)
    given = case_of(network, image)
    prediction = network.segment(
        image,
        network.encode_semantics(given["views"], given["text"], given["text_mask"]),
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


def some_label():
    return (torch.rand(B, 3, X, Y, Z, generator=torch.Generator().manual_seed(5)) > 0.5).float()


def loss_of(network, image, views, text):
    prediction = network.segment(image, network.encode_semantics(views, **text), deep=True)
    return RegionLoss()([prediction.logits, *prediction.auxiliary], some_label())


def training_loss(network, image, given, *, cosines=False):
    """What training computes, with everything that a config switches on."""
    label = some_label()
    prediction = network.segment(
        image,
        network.encode_semantics(given["views"], given["text"], given["text_mask"]),
        crop_box=given["crop_box"],
        statistics=given["statistics"],
        regions=label if network.config.region_contrast else None,
        deep=True,
    )
    loss = RegionLoss()([prediction.logits, *prediction.auxiliary], label)
    if prediction.grade is not None:
        loss = loss + grade_loss(prediction.grade, torch.full((B,), -1))
    if prediction.presence is not None:
        loss = loss + presence_loss(*prediction.presence, some_label())
    if cosines and prediction.maps is not None and prediction.maps.cosines is not None:
        loss = loss + cosine_loss(prediction.maps.cosines, label[:, 1:], temperature=0.07)
    return loss


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


# The first step of a schedule of semantics has strength 0; that is where paths may be cut.
STRENGTHS = [(variant, 0.0, cosines) for variant, cosines in each_with([True, False])] + [
    (variant, strength, cosines)
    for variant in ("default", "nested gain", "damped")
    for strength, cosines in ((0.5, False), (1.0, True))
]


@pytest.mark.parametrize(("variant", "strength", "cosines"), STRENGTHS)
def test_no_weight_is_left_without_a_gradient(make, case_of, variant, strength, cosines, image):
    """Distributed training waits for each of them, from the first step on."""
    network = make(replace(SMALL, dropout=0.2, **EVERY[variant])).train()
    network.semantic_strength.fill_(strength)
    training_loss(network, image, case_of(network, image), cosines=cosines).backward()
    weights = {name: w for name, w in network.named_parameters() if w.requires_grad}
    assert [name for name, weight in weights.items() if weight.grad is None] == []
    assert all(weight.grad.isfinite().all() for weight in weights.values())


@pytest.mark.parametrize("variant", EVERY)
def test_gradient_reaches_every_weight_of_every_variant(
    make, randomise, case_of, variant, image, dead_weights
):
    network = randomise(make(replace(SMALL, **EVERY[variant])))
    given = case_of(network, image)
    prediction = network.segment(
        image,
        network.encode_semantics(given["views"], given["text"], given["text_mask"]),
        deep=True,
    )
    loss = RegionLoss()([prediction.logits, *prediction.auxiliary], some_label())
    if prediction.grade is not None:
        loss = loss + grade_loss(prediction.grade, torch.tensor([1, 0, -1]))
    if prediction.presence is not None:
        loss = loss + presence_loss(*prediction.presence, some_label())
    loss.backward()
    expected = []
    if variant == "no_text":  # attention compares voxels with zeros
        keys = ("key", "position_key")
        expected = [f"semantic_fusion.attention.{r}.{k}.weight" for r in ("TC", "ET") for k in keys]
    assert dead_weights(network) == expected


def test_checkpointing_gives_the_same_loss_and_gradients(make, randomise, case_of, image):
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
        loss = training_loss(network, image, case_of(network, image))
        loss.backward()
        losses.append(loss)
        calls.append(count)
    assert calls == [5, 10]
    assert torch.equal(*losses)
    for one, other in zip(kept.parameters(), recomputed.parameters(), strict=True):
        if one.requires_grad:
            assert torch.equal(one.grad, other.grad)


def test_semantic_path_opens_step_by_step(make, image, views, text, dead_weights):
    network = make()
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1.0)
    loss_of(network, image, views, text).backward()
    fusion = network.semantic_fusion
    assert dead_weights(fusion.bottleneck) == []
    assert not {"TC.score.weight", "ET.score.weight"} & set(dead_weights(fusion.attention))
    assert len(dead_weights(fusion.guidance)) == len(list(fusion.guidance.parameters()))
    optimiser.step()
    optimiser.zero_grad()
    loss_of(network, image, views, text).backward()
    assert dead_weights(fusion) == []


def test_gradient_reaches_every_weight_but_clip(
    make, randomise, image, views, text, tiny_clip, dead_weights
):
    network = randomise(make())
    loss_of(network, image, views, text).backward()
    assert dead_weights(network) == []
    assert all(weight.grad is None for weight in tiny_clip.parameters())
    assert not any(weight.requires_grad for weight in tiny_clip.parameters())


# region contrast


def test_regions_in_evaluation_are_refused(make, image):
    for config in (SMALL, replace(SMALL, region_contrast=0.5)):
        network = make(config)
        with pytest.raises(ValueError, match="regions in evaluation"):
            network.segment(image, None, regions=some_label())


def test_presence_is_known_in_training_and_told_in_evaluation(make, image, text):
    network = make(replace(SMALL, presence=True))
    semantics = network.encode_semantics(None, **text)
    semantics = semantics._replace(evidence=torch.full((B, 3), -9.0))  # all are absent
    plain = network.segment(image, semantics._replace(weight=torch.zeros(B)))
    told = network.segment(image, semantics)
    assert (told.logits < 0).all()
    network.train()
    regions = some_label()
    regions[0, 2] = 0
    shown = network.segment(image, semantics, regions=regions)
    torch.testing.assert_close(shown.presence.log_odds, told.presence.log_odds)
    is_absent = torch.zeros(B, 3, dtype=torch.bool)
    is_absent[0, 2] = True
    assert (shown.logits[is_absent] < -10).all()
    torch.testing.assert_close(shown.logits[~is_absent], plain.logits[~is_absent])


def test_region_contrast_is_for_training_only(make, image):
    network = make(replace(SMALL, region_contrast=1.0))
    network.train()
    stretched = network.segment(image, None, regions=some_label()).logits
    assert not torch.equal(stretched, network.segment(image, None).logits)
    other = make(SMALL).train()
    assert torch.equal(
        other.segment(image, None, regions=some_label()).logits, other.segment(image, None).logits
    )


# CLIP and checkpoints


def test_training_mode_leaves_clip_in_evaluation(make, tiny_clip):
    network = make().train()
    assert network.unet.training
    assert network.semantic_fusion.guidance.training
    assert not any(module.training for module in tiny_clip.modules())


def test_checkpoint_restores_the_logits_and_holds_no_clip(
    make, randomise, image, views, text, tiny_clip, trainable
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


@pytest.mark.parametrize("name", ["unet.heads.0.bias", "semantic_fusion.bottleneck.scale.weight"])
def test_strict_loading_misses_every_other_weight(make, name):
    network = make()
    state = network.state_dict()
    del state[name]
    with pytest.raises(RuntimeError, match=rf'Missing key\(s\) in state_dict: "{name}"'):
        network.load_state_dict(state, strict=True)


def test_strict_loading_refuses_unknown_weights(make):
    network = make()
    state = {**network.state_dict(), "semantic_fusion.bottleneck.extra": torch.zeros(1)}
    with pytest.raises(RuntimeError, match=r"Unexpected key.*semantic_fusion\.bottleneck\.extra"):
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


def test_refinement_reads_the_sequences_as_they_are_fused(make, randomise, image):
    network = make(replace(TINY_LIKE, refinement=6))
    randomise(network.unet.refine)
    logits = network(image)
    torch.testing.assert_close(network(5 * image), logits, rtol=1e-3, atol=1e-3)
    network.unet.refine = None
    assert not torch.allclose(network(image), logits, atol=0.1)


# compiling and exporting


@pytest.fixture
def compiled_case(make, randomise, raw_volume, case_of):
    """Build a network as if trained, with an image and all else that it takes."""

    def build(config):
        network, image = randomise(make(config)), raw_volume(24, 40, 16, batch=1)
        return network, image, case_of(network, image)

    return build


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant", ["default", "sequential", "dense attention views", "nested gain", "damped"]
)
def test_the_whole_network_exports(compiled_case, variant):
    network, image, given = compiled_case(replace(CUBES, **EVERY[variant]))
    exported = torch.export.export(network, (image,), given, strict=False).module()
    expected = network(image, **given)
    torch.testing.assert_close(exported(image, **given), expected)
    again = {**given, "views": Views(given["views"].images.flip(1), given["views"].planes)}
    assert not torch.equal(network(image, **again), expected)
    torch.testing.assert_close(exported(image, **again), network(image, **again))


@pytest.mark.slow
def test_the_whole_network_is_one_graph(compiled_case):
    network, image, given = compiled_case(TINY_LIKE)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(image, **given), network(image, **given))


@pytest.mark.slow
def test_compiled_segmentation_gives_the_eager_logits(compiled_case):
    """Inductor takes most of a minute; CLIP's towers run outside."""
    network, image, given = compiled_case(CUBES)
    semantics = network.encode_semantics(given["views"], given["text"], given["text_mask"])
    position = {name: given[name] for name in ("crop_box", "statistics")}
    with torch.no_grad():
        expected = network.segment(image, semantics, **position)
        compiled = torch.compile(network.segment)(image, semantics, **position)
    torch.testing.assert_close(compiled.logits, expected.logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(compiled.maps.cosines, expected.maps.cosines, rtol=1e-3, atol=1e-3)
