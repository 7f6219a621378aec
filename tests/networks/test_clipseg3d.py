"""Mirrors clipseg3d/networks/clipseg3d.py. Sizes differ pairwise, so a swapped axis fails."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from clipseg3d.blocks.attention import SemanticAttention
from clipseg3d.losses import RegionLoss
from clipseg3d.networks.clipseg3d import build_clipseg3d
from clipseg3d.networks.config import ABLATIONS, NetworkConfig
from clipseg3d.volume import cut_views, intensity_statistics

B, S, X, Y, Z = 3, 4, 12, 16, 8
SMALL = NetworkConfig(channels=(4, 6, 8), num_auxiliary=1, semantic_dim=12, num_heads=3)
FOLDED = NetworkConfig(channels=(4, 6), fold=2, num_auxiliary=0, semantic_dim=12, num_heads=3)
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


def plain(network, image, statistics=None):
    """What the network's U-Net makes of the fused image."""
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


def test_without_views_and_text_it_is_its_unet_to_the_bit(trained, image):
    assert torch.equal(trained(image), plain(trained, image))
    statistics = intensity_statistics(image) * 0.9
    assert torch.equal(trained(image, statistics=statistics), plain(trained, image, statistics))
    assert not torch.equal(plain(trained, image, statistics), plain(trained, image))


def test_case_with_neither_is_left_unchanged(trained, image, views, text):
    views[1] = 0
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
    shuffled = trained(image, views=views.roll(1, dims=0), **text)
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
    decoded = network.unet.decode(network.unet.encode(network.pixel_fusion(image)))
    added = network.semantic_fusion.attend(decoded[0], semantics)
    if config.fold > 1:
        added = F.interpolate(added, scale_factor=2, mode="trilinear")
    expected = plain(network, image) + added
    torch.testing.assert_close(network(image, views=views, **text), expected)


def test_encoding_once_and_segmenting_is_forward(trained, image, views, text):
    window = torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.6, -0.3]]).expand(B, 2, 3)
    statistics = intensity_statistics(image) * 0.9
    semantics = trained.encode_semantics(views, **text)
    (logits,) = trained.segment(image, semantics, window=window, statistics=statistics)
    whole = trained(image, views=views, window=window, statistics=statistics, **text)
    assert torch.equal(logits, whole)
    assert not torch.equal(logits, trained(image, views=views, statistics=statistics, **text))
    assert not torch.equal(logits, trained(image, views=views, window=window, **text))


@pytest.mark.parametrize("config", [SMALL, FOLDED], ids=["small", "folded"])
@pytest.mark.parametrize(
    "window",
    [None, [[0.1, 0.2, 0.3], [0.5, 0.6, 0.4]], [[0.6, 0.2, 0.9], [-0.5, 0.6, -0.8]]],
    ids=["whole", "crop", "mirrored"],
)
def test_padding_does_not_shift_the_places_that_attention_reads(make, randomise, config, window):
    network, image = make(config), raw_volume(9, 14, 5, batch=1)
    window = None if window is None else torch.tensor([window])
    block = randomise(network.semantic_fusion.attention["TC"])
    with torch.no_grad():  # let it add a linear function of the place in the brain
        block.query.weight[:, : config.channels[0]] = 0
        block.mix.weight[:, -1] = 0
        block.context.bias += 20
    text, mask = network.embed_text(REPORTS[:1])
    semantics = network.encode_semantics(None, text, mask)
    features = torch.zeros(1, config.channels[0], 9, 14, 5)
    expected = block(features, semantics.summary, semantics.regions[:, 1], window)
    added = network(image, text=text, text_mask=mask, window=window) - plain(network, image)
    inside = (..., *[slice(config.fold - 1, n - config.fold + 1) for n in (9, 14, 5)])
    assert expected.std() > 1e-2
    torch.testing.assert_close(added[:, 1:2][inside], expected[inside], rtol=0, atol=1e-4)


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


def test_bfloat16_autocast(trained, image, views, text):
    expected = trained(image, views=views, **text)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = trained(image, views=views, **text)
    assert logits.isfinite().all()
    assert (logits.float() - expected).abs().mean() < 0.1 * expected.std()


def test_deep_logits_follow_those_of_the_image(trained, image, views, text):
    semantics = trained.encode_semantics(views, **text)
    (logits,) = trained.segment(image, semantics)
    first, coarse = trained.segment(image, semantics, deep=True)
    assert torch.equal(first, logits)
    assert coarse.shape == (B, 3, X // 2, Y // 2, Z // 2)
    assert not torch.equal(trained.segment(image, None, deep=True)[1], coarse)


# gradients


def loss_of(network, image, views, text):
    label = (torch.rand(B, 3, X, Y, Z, generator=torch.Generator().manual_seed(5)) > 0.5).float()
    semantics = network.encode_semantics(views, **text)
    return RegionLoss()(network.segment(image, semantics, deep=True), label)


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
    trainable = sum(w.numel() for w in network.parameters() if w.requires_grad)
    assert clip_weights > 0
    assert sum(weight.numel() for weight in state.values()) == trainable
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
    identity = network.clip_identity()
    assert identity == {"name": "tiny-random", "sha256": tiny_clip.fingerprint()}
    network.require_clip(identity)
    network.require_clip(None)
    with pytest.raises(ValueError, match=r"'tiny-random' has other weights than 'theirs'"):
        network.require_clip({"name": "theirs", "sha256": "0" * 64})


# building


def test_network_without_semantics_has_no_part_of_it(make, image, views):
    network = make(replace(SMALL, **ABLATIONS["no_semantic"]))
    assert not any("semantic" in name for name, _ in network.named_parameters())
    assert network.pixel_fusion is not None
    assert network.embed_text(REPORTS) == (None, None)
    assert network.clip_identity() is None
    assert network.encode_semantics(views, None) is None
    assert torch.equal(network(image, views=views), plain(network, image))


def test_baseline_is_a_plain_unet(make):
    network = make(replace(SMALL, **ABLATIONS["unet3d"]))
    assert {name.split(".")[0] for name, _ in network.named_parameters()} == {"unet"}
    assert not any("attention" in name or "gates" in name for name in network.state_dict())


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
    with pytest.raises(ValueError, match=r"'huge'.*paper, recommended, tiny"):
        build_clipseg3d("huge")


def test_unguided_region_is_refused(make):
    config = replace(SMALL, guided=("TC", "XX"))
    with pytest.raises(ValueError, match=r"\['XX'\] not in regions"):
        make(config)
