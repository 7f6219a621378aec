"""Mirrors clipseg3d/networks/build.py."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from clipseg3d.blocks.semantic_attention import SemanticAttention
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.presets import ABLATIONS
from clipseg3d.views import cut_views

B = 3
SMALL = NetworkConfig(channels=(4, 6, 8), num_auxiliary=1, semantic_dim=12, num_heads=3)


# parts


def test_network_without_semantics_has_no_part_of_it(make, image, views, reports, plain):
    network = make(replace(SMALL, **ABLATIONS["no_semantic"]))
    assert not any("semantic" in name for name, _ in network.named_parameters())
    assert network.pixel_fusion is not None
    assert network.embed_text(reports) == (None, None)
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
    "plain_backbone": ("unet.gates.",),
    "no_semantic": SEMANTIC,
    "plain_bridge": (*BRIDGE, "semantic_fusion.from_patches."),
    "no_guidance": ("semantic_fusion.guidance.attention.",),
    "no_attention": ("semantic_fusion.attention.",),
    "unet3d": ("pixel_fusion.", "unet.gates.", *SEMANTIC),
    "shuffled_text": (),
    "no_text": ("semantic_fusion.guidance.map_text.",),
}


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_what_is_switched_off_is_not_built_and_all_else_is(make, trainable, ablation):
    whole = trainable(make(EVERYTHING))
    part = trainable(make(replace(EVERYTHING, **ABLATIONS[ablation])))
    assert all(any(name.startswith(part) for name in whole) for part in NOT_BUILT[ablation])
    gone = {name for name in whole if name.startswith(NOT_BUILT[ablation])}
    if ablation in ("plain_backbone", "unet3d"):  # CBAM lies in every block
        gone |= {name for name in whole if name.startswith("unet") and ".attention." in name}
    resized = set()
    if ablation in ("no_pixel", "unet3d"):  # as many channels as the first level: no shortcut
        gone |= {"unet.encoder.0.shortcut.weight"}
        resized = {"unet.encoder.0.residual.0.weight"}
    assert (gone == set()) == (ablation == "shuffled_text")
    assert set(part) == set(whole) - gone
    assert {name for name in part if part[name] != whole[name]} == resized


@pytest.mark.parametrize(
    ("switch", "parts"),
    [
        ({"conditional_norm": True}, ("semantic_fusion.condition.", "unet.head_norm.")),
        ({"dense": True}, ("semantic_fusion.from_patches.",)),
        ({"mix_rgb": True}, ("semantic_fusion.bridge.mixture.",)),
        ({"adapter": True}, ("semantic_fusion.bridge.adapter.",)),
        ({"view_selection": "attention"}, ("semantic_fusion.bridge.pooling.",)),
        ({"grade_classifier": True}, ("grade_classifier.",)),
        ({"refinement": 6}, ("unet.refine.",)),
        ({"num_auxiliary": 0}, ()),
    ],
    ids=str,
)
def test_a_switch_builds_its_part_and_no_other(make, trainable, switch, parts):
    config = replace(SMALL, space_to_depth=2)
    new = set(trainable(make(replace(config, **switch)))) - set(trainable(make(config)))
    assert [part for part in parts if any(name.startswith(part) for name in new)] == list(parts)
    assert all(name.startswith(parts) for name in new)


def test_guidance_has_the_sizes_of_the_config(make):
    guidance = make(replace(SMALL, guidance_tokens="mean")).semantic_fusion.guidance
    assert (guidance.dim, guidance.num_heads, guidance.tokens) == (12, 3, "mean")


def test_semantic_path_is_built_without_the_unets_attention(
    make, randomise, image, views, plain, changed_regions
):
    config = replace(SMALL, cbam=False, guided=("ET",))
    network = make(config)
    randomise(network.semantic_fusion.attention)
    logits = network(image, views=views)
    assert changed_regions(logits, plain(network, image)) == [[False, False, True]] * B
    assert isinstance(network.semantic_fusion.attention["ET"], SemanticAttention)


def test_every_sequence_has_its_own_norm(make, image):
    """Min-max ends at the 99.5th percentile; a z-score goes below 0."""
    norms = ("minmax", "zscore", "minmax", "zscore")
    fused = make(replace(SMALL, norms=norms)).pixel_fusion(image)
    lowest, highest = fused.amin(dim=(0, 2, 3, 4)), fused.amax(dim=(0, 2, 3, 4))
    assert lowest[[0, 2]].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert highest[[0, 2]].tolist() == pytest.approx([1, 1], abs=1e-6)
    assert (lowest[[1, 3]] < -1).all()


@pytest.mark.parametrize("cube", [1, 2])
def test_new_difference_channels_change_nothing(make, randomise, image, cube):
    config = replace(SMALL, space_to_depth=cube, difference_channels=True)
    network = make(config)
    fused = network.pixel_fusion(image)
    assert fused.shape[1] == 6
    without = torch.cat([fused[:, :4], torch.zeros_like(fused[:, 4:])], dim=1)
    assert fused[:, 4:].any()
    assert torch.equal(network.unet(fused), network.unet(without))
    randomise(network)
    assert not torch.equal(network.unet(fused), network.unet(without))


# text


def test_network_without_text_reads_none(make, randomise, image, reports):
    network = randomise(make(replace(SMALL, text="none")))
    assert network.text_bank is None
    assert network.embed_text(reports) == (None, None)
    assert set(network.encoder_identities()) == {"CLIP"}
    semantics = network.encode_semantics(cut_views(image, size=48), None)
    assert not semantics.regions.any()
    with pytest.raises(ValueError, match="built with text_dim=0"):
        network(image, text=torch.zeros(B, 3, 64))


def test_shuffled_text_builds_the_same_network(make, reports, trainable):
    config = replace(SMALL, text="shuffled")
    one, other = make(), make(config)
    assert trainable(one) == trainable(other)
    assert torch.equal(one.embed_text(reports)[0], other.embed_text(reports)[0])


def test_text_that_nothing_reads_is_not_embedded(make, reports):
    config = replace(SMALL, guided=(), guidance="none")
    network = make(config)
    assert network.embed_text(reports) == (None, None)
    assert network.semantic_fusion.guidance.map_text is None


def test_texts_are_read_from_a_file_of_embeddings(make, tiny_clip, tmp_path, monkeypatch, reports):
    network = make()
    path = tmp_path / "texts.safetensors"
    network.text_bank.save(path, reports)
    expected = network.embed_text(reports)
    cached = build_clipseg3d(SMALL, encoder=tiny_clip, text_cache=str(path))
    monkeypatch.setattr(tiny_clip, "encode_text", None)  # any call would fail
    for value, expected_value in zip(cached.embed_text(reports), expected, strict=True):
        assert torch.equal(value, expected_value)


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
def test_text_may_have_an_encoder_of_its_own(
    make, randomise, bert_folder, tiny_clip, image, case_of, plain
):
    network = make(replace(SMALL, text_encoder=str(bert_folder)))
    identities = network.encoder_identities()
    assert set(identities) == {"CLIP", "text"}
    assert identities["CLIP"]["sha256"] == tiny_clip.fingerprint()
    assert identities["text"]["name"] == str(bert_folder)
    given = case_of(network, image)
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


# presets


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


def test_guided_region_that_is_not_there_is_refused(make):
    config = replace(SMALL, guided=("TC", "XX"))
    with pytest.raises(ValueError, match=r"\['XX'\] not in regions"):
        make(config)


@pytest.mark.parametrize(
    ("changes", "stride"),
    [
        ({}, 2),
        ({"space_to_depth": 2}, 1),
        ({"attention_mode": "paper"}, 1),
        ({"space_to_depth": 2, "attention_stride": 4}, 4),
    ],
)
def test_semantic_attention_has_the_stride_of_the_config(make, image, views, changes, stride):
    network = make(replace(SMALL, channels=(4, 6), num_auxiliary=0, **changes))
    assert network.semantic_fusion.attention_stride == stride
    maps = network.segment(image, network.encode_semantics(views, None)).maps
    cubes = stride * network.config.space_to_depth
    multiple = network.unet.multiple
    padded = [size + -size % multiple for size in image.shape[2:]]
    assert list(maps.scores.shape[2:]) == [-(-size // cubes) for size in padded]


def test_a_stride_of_nothing_is_refused():
    with pytest.raises(ValueError, match="attention_stride=0"):
        replace(SMALL, attention_stride=0)
