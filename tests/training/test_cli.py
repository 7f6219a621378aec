"""Mirrors clipseg3d/training/cli.py: what one part of a configuration makes of another."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import clipseg3d.training.cli
from clipseg3d.cli.main import main
from clipseg3d.networks.config import ABLATIONS, PRESETS, NetworkConfig, network_config
from clipseg3d.training.cli import CLIPSeg3DCLI, run
from clipseg3d.training.plan import PLANS, TrainingPlan

pytestmark = pytest.mark.filterwarnings("ignore")
CONFIGS = {path.stem: path for path in Path(__file__).parents[2].glob("examples/configs/*.yaml")}
PHANTOM = CONFIGS["phantom_tiny"]
VALUES = {
    "clip": "tiny-random",
    "channels": [4, 8],
    "num_auxiliary": 0,
    "semantic_dim": 16,
    "num_heads": 2,
}


@pytest.fixture
def parsed(monkeypatch):
    """Build module and data of a command, and run nothing."""

    def parse(*arguments, command="fit"):
        found = []
        monkeypatch.setattr(CLIPSeg3DCLI, "_run_subcommand", lambda self, name: found.append(self))
        run([command, *map(str, arguments)])
        return found[0]

    return parse


@pytest.fixture
def write(tmp_path):
    """Write the phantom configuration with a model of one's own."""

    def config(**model):
        values = yaml.safe_load(PHANTOM.read_text())
        values["model"] = {**values["model"], **model}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return config


@pytest.mark.parametrize("name", CONFIGS)
def test_shipped_configurations_are_in_step(parsed, name):
    path = CONFIGS[name]
    network = yaml.safe_load(path.read_text())["model"]["network"]
    mapping = isinstance(network, dict)
    offline = ("--model.network.clip", "tiny-random") if mapping else ()
    cli = parsed("--config", path, *offline)
    preset = "recommended" if mapping else "tiny"
    values = {**network, "clip": "tiny-random"} if mapping else {}
    expected = replace(PRESETS[preset], **values)
    assert cli.model.config == expected
    assert cli.model.plan == replace(PLANS[preset], lr=cli.model.plan.lr)
    assert cli.datamodule.view_selection == expected.view_selection == "energy"
    assert cli.datamodule.shuffle_reports is False
    assert cli.model.hparams["release"] == cli.datamodule.release.name


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_ablations_reach_module_and_data(parsed, ablation):
    cli = parsed("--config", PHANTOM, "--model.ablation", ablation)
    expected = network_config("tiny", ablation=ablation)
    assert cli.model.config == expected
    assert cli.datamodule.view_selection == expected.view_selection
    assert cli.datamodule.shuffle_reports == (ablation == "shuffled_text")
    assert cli.model.plan == replace(PLANS["tiny"], lr=3e-3)  # of the YAML file


def test_bridge_of_the_paper_sees_middle_slices(parsed):
    cli = parsed("--config", PHANTOM, "--model.ablation", "center_mean_bridge")
    assert cli.datamodule.view_selection == "center"


@pytest.mark.parametrize("selection", ["center", "energy", "attention"])
@pytest.mark.parametrize("text", ["own", "shuffled", "none"])
def test_network_given_as_values_reaches_the_data(parsed, write, selection, text):
    cli = parsed("--config", write(network={**VALUES, "view_selection": selection, "text": text}))
    values = {**VALUES, "channels": (4, 8)}
    assert cli.model.config == NetworkConfig(**values, view_selection=selection, text=text)
    assert cli.datamodule.view_selection == selection
    assert cli.datamodule.shuffle_reports == (text == "shuffled")


def test_ablation_of_values(parsed, write):
    path = write(network={**VALUES, "view_selection": "attention"}, ablation="shuffled_text")
    cli = parsed("--config", path)
    assert cli.datamodule.view_selection == "attention"
    assert cli.datamodule.shuffle_reports
    cli = parsed("--config", path, "--model.ablation", "center_mean_bridge")
    assert cli.datamodule.view_selection == cli.model.config.view_selection == "center"


def test_links_take_a_flat_namespace_too():
    """Releases of jsonargparse differ in how they hold the values of a class."""
    flat = clipseg3d.training.cli.Namespace(view_selection="attention", text="shuffled")
    wrapped = clipseg3d.training.cli.Namespace(class_path="x", init_args=flat)
    for network in (flat, wrapped, {"view_selection": "attention", "text": "shuffled"}):
        assert clipseg3d.training.cli.view_selection(network, None) == "attention"
        assert clipseg3d.training.cli.is_shuffled(network, None)
        assert not clipseg3d.training.cli.is_shuffled(network, "no_text")


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ("paper_appendix", PLANS["paper_appendix"]),
        (
            {"schedule": "cosine", "semantic_ramp": [2, 3]},
            TrainingPlan(schedule="cosine", semantic_ramp=(2, 3)),
        ),
        ({"cosine_weight": 0.1}, TrainingPlan(cosine_weight=0.1)),
    ],
)
def test_plans_by_name_and_as_values(parsed, write, plan, expected):
    cli = parsed("--config", write(plan=plan, network=VALUES, lr=None))
    assert cli.model.plan == expected


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_checkpoint_brings_its_network_and_its_views(parsed, write, tmp_path, command):
    path = write(network={**VALUES, "view_selection": "attention"}, plan="paper_body")
    cli = parsed("--config", path)
    checkpoint = {"hyper_parameters": dict(cli.model.hparams)}
    torch.save(checkpoint, tmp_path / "w.ckpt")
    cli = parsed("--config", PHANTOM, "--ckpt_path", tmp_path / "w.ckpt", command=command)
    assert cli.model.config.view_selection == "attention"
    assert cli.model.config.channels == (4, 8)
    assert cli.datamodule.view_selection == "attention"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.network", "huge"], "unknown preset 'huge': choose one of"),
        (["--model.ablation", "no_brain"], "unknown ablation 'no_brain': choose one of"),
        (["--model.plan", "fast"], "unknown plan 'fast': choose one of"),
    ],
)
def test_wrong_names_end_in_one_message(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", str(PHANTOM), *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"clipseg3d: {message}")
    assert "compute_fn" not in error
    assert "Traceback" not in error
