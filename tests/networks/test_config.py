"""Mirrors clipseg3d/networks/config.py."""

from dataclasses import FrozenInstanceError, asdict

import pytest

from clipseg3d.networks.config import ABLATIONS, PRESETS, NetworkConfig, network_config


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_found_by_name(preset):
    assert network_config(preset) == PRESETS[preset]


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_ablation_changes_what_it_names_and_nothing_else(ablation):
    whole, part = asdict(network_config("tiny")), asdict(network_config("tiny", ablation=ablation))
    assert {name: part[name] for name in part if part[name] != whole[name]} == ABLATIONS[ablation]


def test_the_papers_channels_and_dropout():
    paper = network_config("paper")
    assert paper.channels == (32, 64, 128, 256, 512)
    assert paper.dropout == 0.2
    assert paper.guided == ("TC", "ET")


def test_config_cannot_be_changed_by_accident():
    with pytest.raises(FrozenInstanceError):
        network_config("tiny").fold = 1


def test_config_survives_as_plain_values():
    config = network_config("tiny", ablation="no_semantic")
    assert NetworkConfig(**asdict(config)) == config


def test_unknown_preset_lists_those_there_are():
    with pytest.raises(ValueError, match=r"'large'.*paper, recommended, tiny"):
        network_config("large")


def test_unknown_ablation_lists_those_there_are():
    with pytest.raises(ValueError, match=r"'no_text'.*unet3d, no_semantic"):
        network_config("tiny", ablation="no_text")
