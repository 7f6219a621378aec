"""Mirrors clipseg3d/pretrained/formats.py: files of older formats are read, of newer ones not."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from clipseg3d.networks.clipseg3d import CLIPSeg3D
from clipseg3d.pretrained.checkpoint import read_checkpoint_file
from clipseg3d.pretrained.formats import (
    FORMAT,
    check_format,
    upgrade_checkpoint,
    upgrade_config,
    upgrade_weights,
)
from clipseg3d.pretrained.reader import read_networks
from clipseg3d.training.module import CLIPSeg3DModule

pytestmark = pytest.mark.filterwarnings("ignore")
KINDS = ["gate", "sequential", "film", "none"]
SEMANTIC = "semantic_fusion"
FORMAT_1 = {
    f"{SEMANTIC}.gate.scale.weight": f"{SEMANTIC}.bottleneck.scale.weight",
    f"{SEMANTIC}.gate.shift.bias": f"{SEMANTIC}.bottleneck.shift.bias",
    f"{SEMANTIC}.sequential.place.weight": f"{SEMANTIC}.bottleneck.position.weight",
    f"{SEMANTIC}.sequential.found.bias": f"{SEMANTIC}.bottleneck.read_norm.bias",
    f"{SEMANTIC}.sequential.read.out_proj.bias": f"{SEMANTIC}.bottleneck.read.out_proj.bias",
    f"{SEMANTIC}.attention.TC.place.0.weight": f"{SEMANTIC}.attention.TC.position.0.weight",
    f"{SEMANTIC}.attention.ET.place.2.bias": f"{SEMANTIC}.attention.ET.position.2.bias",
    f"{SEMANTIC}.attention.TC.place_key.bias": f"{SEMANTIC}.attention.TC.position_key.bias",
    # the same words, but of other parts
    f"{SEMANTIC}.attention.TC.key.weight": f"{SEMANTIC}.attention.TC.key.weight",
    f"{SEMANTIC}.guidance.map_text.0.weight": f"{SEMANTIC}.guidance.map_text.0.weight",
    "unet.gates.0.from_gate.weight": "unet.gates.0.from_gate.weight",
    "pixel_fusion.gate.weight": "pixel_fusion.gate.weight",
    "unet.encoder.0.attention.channel.0.weight": "unet.encoder.0.attention.channel.0.weight",
}
"""Names that the library gave weights in files of format 1, and their names today."""


def old_name(name, kind):
    """Return the name that a weight had in format 1."""
    bottleneck = "sequential" if kind == "sequential" else "gate"
    for new, old in (
        (f"{SEMANTIC}.bottleneck.read_norm.", f"{SEMANTIC}.bottleneck.found."),
        (f"{SEMANTIC}.bottleneck.position.", f"{SEMANTIC}.bottleneck.place."),
        (f"{SEMANTIC}.bottleneck.", f"{SEMANTIC}.{bottleneck}."),
        (".position_key.", ".place_key."),
        (".position.", ".place."),
    ):
        name = name.replace(new, old)
    return name


def old_values(values, **names):
    """Return values under the names that they had in format 1."""
    return {names.get(name, name): value for name, value in values.items()}


def make_folder_old(folder, kind):
    """Rewrite a folder in format 1."""
    path = folder / "config.json"
    content = json.loads(path.read_text())
    assert content.pop("format") == FORMAT
    del content["weights_sha256"]
    content["network"] = old_values(content["network"], space_to_depth="fold")
    content["prediction"] = old_values(content["prediction"], roi_size="window")
    assert {"fold", "window"} <= {*content["network"], *content["prediction"]}
    path.write_text(json.dumps(content))
    path = folder / "model.safetensors"
    weights = {old_name(name, kind): weight for name, weight in load_file(path).items()}
    assert not any("bottleneck" in name or "position" in name for name in weights)
    save_file(weights, path)


def make_checkpoint_old(path, kind):
    """Rewrite a checkpoint in format 1."""
    content = torch.load(path, weights_only=True)
    assert content.pop("format") == FORMAT
    values = old_values(content["hyper_parameters"], roi_size="window")
    values["network"] = old_values(values["network"], space_to_depth="fold")
    content["hyper_parameters"] = values
    content["state_dict"] = {old_name(n, kind): w for n, w in content["state_dict"].items()}
    torch.save(content, path)


@pytest.mark.parametrize("cube", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_files_of_format_1_give_the_same_logits_to_the_bit(
    trained, tmp_path, save_checkpoint, logits, settings, kind, cube
):
    network = trained(guidance=kind, space_to_depth=cube)
    expected = logits(network)
    folder, path = tmp_path / "net", tmp_path / "w.ckpt"
    network.save_pretrained(folder)
    make_folder_old(folder, kind)
    save_checkpoint(
        network, network.config, path, **{"pytorch-lightning_version": "2.6.0", "epoch": 3}
    )
    make_checkpoint_old(path, kind)
    (from_checkpoint,) = read_networks([path])
    module = CLIPSeg3DModule.load_from_checkpoint(path).eval()
    pretrained = CLIPSeg3D.from_pretrained(folder)
    for loaded in (pretrained, from_checkpoint.network, module.network):
        assert torch.equal(logits(loaded), expected)
        assert loaded.config == network.config
        assert loaded.state_dict().keys() == network.state_dict().keys()
    assert pretrained.settings == settings
    assert from_checkpoint.settings == module.network.settings
    assert module.hparams["roi_size"] == from_checkpoint.settings.roi_size == (16, 20, 12)


def test_names_of_format_1():
    weights = {name: float(i) for i, name in enumerate(FORMAT_1)}
    upgraded = upgrade_weights(weights)
    assert list(upgraded) == list(FORMAT_1.values())  # in the same order
    assert list(upgraded.values()) == list(weights.values())
    prefixed = upgrade_weights({f"network.{name}": 0 for name in FORMAT_1})
    assert list(prefixed) == [f"network.{name}" for name in FORMAT_1.values()]


@pytest.mark.parametrize("prefix", ["", "network."])
def test_prompt_heads_of_format_3_leave_open_how_many_lesions_there_are(prefix):
    weights = {f"{prefix}prompt_head.presence.{name}": torch.ones(1) for name in ("weight", "bias")}
    weights[f"{prefix}semantic_fusion.presence.bias"] = torch.ones(3)
    upgraded = upgrade_weights(weights)
    assert set(upgraded) - set(weights) == {
        f"{prefix}prompt_head.several.{name}" for name in ("weight", "bias")
    }
    assert not upgraded[f"{prefix}prompt_head.several.bias"].any()
    upgraded[f"{prefix}prompt_head.several.bias"] += 1
    assert upgrade_weights(upgraded) == upgraded


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_today_stay(trained, kind):
    state = trained(guidance=kind, dense=True, conditional_norm=True).state_dict()
    assert list(upgrade_weights(state)) == list(state)


def test_a_fit_can_go_on_from_format_1():
    """Averaged and current weights, and the settings that are compared with those of the fit."""
    old = {
        "epoch": 3,
        "state_dict": {f"network.{SEMANTIC}.gate.scale.weight": 0.5},
        "current_model_state": {f"network.{SEMANTIC}.gate.scale.weight": 0.75},
        "optimizer_states": [{"state": {0: {"window": 1.0}}}],
        "hyper_parameters": {"network": {"fold": 2, "head": "nested"}, "window": (8, 8, 8)},
        "settings": {
            "seed": 3,
            "model.network.fold": 2,
            "model.window": [8, 8, 8],
            "data.fold": 1,
        },
    }
    assert upgrade_checkpoint(old) == {
        "format": FORMAT,
        "epoch": 3,
        "state_dict": {f"network.{SEMANTIC}.bottleneck.scale.weight": 0.5},
        "current_model_state": {f"network.{SEMANTIC}.bottleneck.scale.weight": 0.75},
        "optimizer_states": old["optimizer_states"],
        "hyper_parameters": {
            "network": {"space_to_depth": 2, "head": "nested"},
            "roi_size": (8, 8, 8),
        },
        "settings": {
            "seed": 3,
            "model.network.space_to_depth": 2,
            "model.roi_size": [8, 8, 8],
            "data.fold": 1,  # of the cross-validation
        },
    }


@pytest.mark.parametrize("file_format", [None, 1, 2])
def test_the_attention_mode_paper_of_older_formats_is_damped(file_format):
    old = {"format": file_format, "network": {"attention_mode": "paper"}, "prediction": None}
    assert upgrade_config(old)["network"] == {"attention_mode": "damped"}
    old = {
        "hyper_parameters": {"network": {"attention_mode": "paper"}},
        "settings": {"model.network.attention_mode": "paper", "model.network": "paper"},
    }
    upgraded = upgrade_checkpoint(old)
    assert upgraded["hyper_parameters"]["network"] == {"attention_mode": "damped"}
    assert upgraded["settings"] == {
        "model.network.attention_mode": "damped",
        "model.network": "paper",  # a preset
    }


def test_foreign_checkpoints_pass_the_upgrade():
    assert upgrade_checkpoint({"state_dict": {"a": 1}}) == {
        "format": FORMAT,
        "state_dict": {"a": 1},
    }
    odd = {"state_dict": {}, "hyper_parameters": [1], "settings": None}
    assert upgrade_checkpoint(odd) == {**odd, "format": FORMAT}
    odd = {"state_dict": {}, "hyper_parameters": {"network": "tiny", "window": 3}}
    assert upgrade_checkpoint(odd)["hyper_parameters"] == {"network": "tiny", "roi_size": 3}


def test_a_config_without_settings_is_upgraded():
    old = {"clipseg3d": "0.1", "network": {"fold": 2}, "prediction": None, "encoders": {}}
    expected = {**old, "format": FORMAT, "network": {"space_to_depth": 2}}
    assert upgrade_config(old) == expected


# newer formats


@pytest.mark.parametrize("value", [5, 0, -1, "2", 2.5, [2]])
def test_formats_that_are_not_known_are_refused(value):
    with pytest.raises(ValueError, match=r"^format .*, expected 1 to 4$"):
        check_format(value)
    assert [check_format(n) for n in (None, 1, 2, 3)] == [1, 1, 2, 3]


def test_a_folder_of_a_newer_format_is_refused_in_one_line(folder, change_config):
    change_config(folder, format=5, clipseg3d="9.1", network=None, future={})
    with pytest.raises(ValueError, match=r"format 5, expected 1 to 4") as info:
        CLIPSeg3D.from_pretrained(folder)
    message = str(info.value)
    assert message.startswith(f"{folder / 'config.json'}: written by clipseg3d 9.1, not understood")
    assert message.endswith("install that version, or repair the file")
    assert "\n" not in message


def test_a_checkpoint_of_a_newer_format_is_refused_in_one_line(trained, tmp_path, save_checkpoint):
    network, path = trained(semantics=False), tmp_path / "w.ckpt"
    save_checkpoint(network, network.config, path, format=5)
    for read in (read_checkpoint_file, CLIPSeg3DModule.load_from_checkpoint):
        with pytest.raises(ValueError, match=r"\(format 5, expected 1 to 4\)") as info:
            read(path)
        message = str(info.value)
        assert message.startswith(f"{path}: not understood by this version of clipseg3d")
        assert message.endswith("install the version that wrote it")
        assert "\n" not in message
