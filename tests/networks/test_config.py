"""Mirrors clipseg3d/networks/config.py."""

from dataclasses import FrozenInstanceError, asdict, replace

import pytest

from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.presets import ABLATIONS, PRESETS, network_config

EVERYTHING = NetworkConfig(
    difference_channels=True,
    region_contrast=0.5,
    view_selection="attention",
    mix_rgb=True,
    adapter=True,
    dense=True,
    conditional_norm=True,
    sentences=True,
    presence=True,
    guided_skips=2,
    prompt_head=True,
)
"""A config that every ablation changes in all that it names, but for the text."""


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_found_by_name(preset):
    assert network_config(preset) == PRESETS[preset]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_every_ablation_applies_to_every_preset(preset, ablation):
    whole = asdict(network_config(preset))
    part = asdict(network_config(preset, ablation=ablation))
    assert part == {**whole, **ABLATIONS[ablation]}
    assert part != whole


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_ablation_changes_what_it_names_and_nothing_else(ablation):
    whole, part = asdict(EVERYTHING), asdict(network_config(EVERYTHING, ablation=ablation))
    assert {name: part[name] for name in part if part[name] != whole[name]} == ABLATIONS[ablation]


@pytest.mark.parametrize("ablation", [None, *ABLATIONS])
@pytest.mark.parametrize("config", [PRESETS["tiny"], PRESETS["paper_appendix"], EVERYTHING])
def test_config_its_values_and_its_name_are_alike(config, ablation):
    expected = network_config(config, ablation=ablation)
    assert network_config(asdict(config), ablation=ablation) == expected
    names = [name for name, preset in PRESETS.items() if preset == config]
    assert all(network_config(name, ablation=ablation) == expected for name in names)


def test_missing_values_are_those_of_the_recommended_network():
    assert network_config({"clip": "folder"}) == replace(PRESETS["recommended"], clip="folder")
    assert network_config({}) == PRESETS["recommended"] == NetworkConfig()


def test_the_rows_of_the_papers_tables():
    removed = {name: network_config("paper", ablation=name) for name in ABLATIONS}
    assert not removed["no_pixel"].pixel_fusion
    assert not removed["plain_backbone"].cbam
    assert not removed["plain_backbone"].attention_skips
    assert not removed["no_semantic"].semantics
    assert removed["no_guidance"].guidance == "none"
    assert removed["no_attention"].guided == ()
    baseline = removed["unet3d"]
    assert not any((baseline.pixel_fusion, baseline.cbam, baseline.semantics))
    # Deep supervision is no mechanism of the paper's: it stays in every row.
    assert {config.num_auxiliary for config in removed.values()} == {2}


@pytest.mark.parametrize("preset", ["paper", "paper_body", "paper_appendix"])
def test_what_the_paper_fixes(preset):
    paper = network_config(preset)
    assert paper.sequences == ("t1", "t1ce", "t2", "flair")
    assert paper.regions == ("WT", "TC", "ET")
    assert paper.channels == (32, 64, 128, 256, 512)
    assert paper.space_to_depth == 1
    assert paper.pixel_fusion
    assert paper.norms == ("zscore", "zscore", "minmax", "minmax")
    assert paper.region_contrast == 0.5
    assert paper.cbam
    assert paper.attention_skips
    assert paper.num_auxiliary == 2
    assert not paper.sequence_gate
    assert paper.view_selection == "volume_center"
    assert paper.mix_rgb
    assert not paper.running_norms
    assert paper.guiding_text == "all"
    assert paper.guidance == "gate"
    assert paper.guidance_tokens == "mean"
    assert paper.attention_mode == "paper"
    assert paper.guided == ("TC", "ET")
    assert paper.clip == "openai/clip-vit-base-patch32"
    assert not paper.difference_channels


def test_the_papers_body_and_appendix_differ():
    body, appendix = network_config("paper_body"), network_config("paper_appendix")
    assert (body.dropout, appendix.dropout) == (0.2, 0.0)
    assert (body.adapter, appendix.adapter) == (False, True)
    assert replace(body, dropout=0.0, adapter=True, plan="paper_appendix") == appendix


def test_recommended_repairs_what_is_inert():
    recommended = network_config("recommended")
    assert recommended.channels == network_config("paper").channels
    assert recommended.view_selection == "energy"
    assert recommended.guidance_tokens == "views"
    assert recommended.attention_mode == "residual"
    assert recommended.region_contrast == 0
    assert set(recommended.norms) == {"zscore"}


def test_tiny_needs_no_download():
    tiny = network_config("tiny")
    assert tiny.clip == "tiny"
    assert tiny.space_to_depth == 2
    assert tiny.semantic_dim % tiny.num_heads == 0


def test_fast_differs_from_recommended_in_sizes_and_what_space_to_depth_needs():
    fast = network_config("fast")
    assert fast.space_to_depth == 2
    assert fast.refinement
    full_resolution = replace(
        fast, channels=NetworkConfig().channels, space_to_depth=1, refinement=0
    )
    assert full_resolution == network_config("recommended")
    assert all(f < r for f, r in zip(fast.channels, NetworkConfig().channels, strict=True))


@pytest.mark.parametrize("network", [EVERYTHING, "paper", "paper_appendix", "recommended"])
def test_the_plain_bridge_is_that_of_the_paper_without_weights(network):
    paper, bridge = network_config("paper"), network_config(network, ablation="plain_bridge")
    assert bridge.view_selection == paper.view_selection
    assert bridge.guidance_tokens == paper.guidance_tokens
    assert not any((bridge.mix_rgb, bridge.adapter, bridge.dense))


def test_dense_patches_need_views_of_the_brain():
    with pytest.raises(ValueError, match="dense lifts patches of views that are cut to the brain"):
        NetworkConfig(dense=True, view_selection="volume_center")


def test_controls_of_the_text():
    assert network_config("tiny").text == "own"
    assert network_config("tiny", ablation="shuffled_text").text == "shuffled"
    assert network_config("tiny", ablation="no_text").text == "none"


@pytest.mark.parametrize("switch", [{"difference_channels": True}, {"region_contrast": 0.1}])
def test_parts_of_pixel_fusion_without_it_are_refused(switch):
    assert NetworkConfig(**switch).pixel_fusion
    with pytest.raises(ValueError, match="are parts of pixel fusion; set pixel_fusion"):
        NetworkConfig(pixel_fusion=False, **switch)
    assert not network_config(NetworkConfig(**switch), ablation="no_pixel").pixel_fusion


def test_a_clip_without_name_is_refused():
    with pytest.raises(ValueError, match="clip=None is no name; give that of a CLIP, such as"):
        NetworkConfig(clip=None)


def test_unknown_text_is_refused():
    with pytest.raises(ValueError, match="text='shuffle': choose from own, shuffled, none"):
        NetworkConfig(text="shuffle")


def test_config_cannot_be_changed_by_accident():
    with pytest.raises(FrozenInstanceError):
        network_config("tiny").space_to_depth = 1


def test_config_survives_as_plain_values():
    config = network_config("tiny", ablation="no_semantic")
    assert NetworkConfig(**asdict(config)) == config


def test_unknown_preset_lists_those_there_are():
    with pytest.raises(ValueError, match=r"'large'.*paper, .*, recommended, tiny"):
        network_config("large")


def test_unknown_ablation_lists_those_there_are():
    with pytest.raises(ValueError, match=r"'no_brain'.*no_pixel, .*unet3d, .*shuffled_text"):
        network_config("tiny", ablation="no_brain")


def test_conditional_norm_needs_semantics():
    with pytest.raises(ValueError, match="conditional_norm: steered by semantics; set semantics"):
        NetworkConfig(conditional_norm=True, semantics=False)
