"""Mirrors clipseg3d/cli/lightning_cli.py: what one part of a configuration makes of another."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import Namespace
from pytorch_lightning.plugins.io import AsyncCheckpointIO

from clipseg3d.cli import lightning_cli
from clipseg3d.cli.lightning_cli import count_folds, is_shuffled, view_selection
from clipseg3d.cli.main import main
from clipseg3d.configs import config_names, config_path
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.presets import PRESETS, network_config
from clipseg3d.pretrained.formats import FORMAT
from clipseg3d.training.checkpoint_io import AtomicCheckpointIO
from clipseg3d.training.module import CLIPSeg3DModule
from clipseg3d.training.plan import PLANS, TrainingPlan

pytestmark = pytest.mark.filterwarnings("ignore")
CONFIGS = {name: config_path(name) for name in config_names()}
PHANTOM = CONFIGS["phantom_tiny"]
VALUES = {
    "clip": "tiny-random",
    "channels": [4, 8],
    "num_auxiliary": 0,
    "semantic_dim": 16,
    "num_heads": 2,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_shipped_configurations_are_in_step(parsed, name):
    path = CONFIGS[name]
    model = yaml.safe_load(path.read_text())["model"]
    network = model["network"]
    mapping = isinstance(network, dict)
    offline = ("--model.network.clip", "tiny-random") if mapping else ()
    cli = parsed("--config", path, *offline)
    preset = "recommended" if mapping else "tiny"
    values = {**network, "clip": "tiny-random"} if mapping else {}
    tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    expected = replace(PRESETS[preset], **values | tuples)
    assert cli.model.config == expected
    plan = TrainingPlan(**model["plan"]) if "plan" in model else PLANS[preset]
    assert cli.model.plan == replace(plan, lr=model.get("lr", plan.lr))
    assert cli.datamodule.view_selection == expected.view_selection == "energy"
    assert cli.datamodule.shuffle_reports is False
    assert cli.model.hparams["release"] == cli.datamodule.release.name


@pytest.mark.parametrize("ablation", ["plain_bridge", "shuffled_text", "unet3d"])
def test_ablations_reach_module_and_data(parsed, ablation):
    cli = parsed("--config", PHANTOM, "--model.ablation", ablation)
    expected = network_config("tiny", ablation=ablation)
    assert cli.model.config == expected
    selection = "volume_center" if ablation == "plain_bridge" else "energy"
    assert cli.datamodule.view_selection == expected.view_selection == selection
    assert cli.datamodule.shuffle_reports == (ablation == "shuffled_text")
    assert cli.model.plan == replace(PLANS["tiny"], lr=3e-3)  # of the YAML file


@pytest.mark.parametrize(
    ("selection", "text"), [("center", "own"), ("energy", "none"), ("attention", "shuffled")]
)
def test_network_given_as_values_reaches_the_data(parsed, write, selection, text):
    cli = parsed("--config", write(network={**VALUES, "view_selection": selection, "text": text}))
    values = {**VALUES, "channels": (4, 8)}
    assert cli.model.config == NetworkConfig(**values, view_selection=selection, text=text)
    assert cli.datamodule.view_selection == selection
    assert cli.datamodule.shuffle_reports == (text == "shuffled")
    assert not cli.datamodule.allow_missing_sequences


def test_settings_are_shared_by_module_and_data(parsed, write):
    path = write(network={**VALUES, "view_selection": "attention"}, ablation="shuffled_text")
    options = ("--data.spacing_mm", 4, "--model.sequence_dropout", 0.25)
    rules = ("--model.postprocessing", "{relative_components: {WT: 0.1}}")
    cli = parsed("--config", path, *options, *rules)
    assert cli.model.hparams["postprocessing"] == {"relative_components": {"WT": 0.1}}
    assert cli.model.hparams["spacing_mm"] == 4.0
    assert cli.model.hparams["release"] == "phantom"
    assert cli.datamodule.allow_missing_sequences
    assert cli.datamodule.view_selection == "attention"
    assert cli.datamodule.shuffle_reports


def test_links_take_a_flat_namespace_too():
    """Releases of jsonargparse differ in how they hold the values of a class."""
    flat = Namespace(view_selection="attention", text="shuffled")
    for network in (flat, Namespace(class_path="x", init_args=flat)):
        assert view_selection(network, None) == "attention"
        assert is_shuffled(network, None)
        assert not is_shuffled(network, "no_text")


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ("paper_appendix", PLANS["paper_appendix"]),
        (
            {"schedule": "cosine", "semantic_ramp": [2, 3]},
            TrainingPlan(schedule="cosine", semantic_ramp=(2, 3)),
        ),
    ],
)
def test_plans_by_name_and_as_values(parsed, write, plan, expected):
    cli = parsed("--config", write(plan=plan, network=VALUES, lr=None))
    assert cli.model.plan == expected


@pytest.fixture
def trained(tmp_path):
    """A checkpoint of another network than the configuration's, and its content."""
    network = NetworkConfig(**{**VALUES, "channels": (4, 8), "view_selection": "attention"})
    values = dict(CLIPSeg3DModule(network, plan="paper_body", roi_size=(16, 16, 24)).hparams)
    content = {"format": FORMAT, "hyper_parameters": values, "state_dict": {}}
    torch.save(content, tmp_path / "w.ckpt")
    return tmp_path / "w.ckpt", content


@pytest.mark.parametrize(("command", "old"), [("validate", False), ("test", True)])
def test_a_checkpoint_brings_its_network_and_its_views(parsed, trained, command, old):
    path, content = trained
    if old:  # of format 1
        values = content["hyper_parameters"]
        values["window"] = values.pop("roi_size")
        values["network"]["fold"] = values["network"].pop("space_to_depth")
        torch.save({**content, "format": None}, path)
    given = ("--config", PHANTOM, "--model.overlap", 0.25, "--data.spacing_mm", 4)
    cli = parsed(*given, "--ckpt_path", path, command=command)
    assert cli.model.config.view_selection == "attention"
    assert cli.model.config.channels == (4, 8)
    assert cli.model.hparams["roi_size"] == (16, 16, 24)
    assert cli.model.hparams["overlap"] == 0.5
    assert cli.model.plan == replace(PLANS["paper_body"], lr=3e-3)
    assert cli.datamodule.view_selection == "attention"
    assert cli.config_init[command].ckpt_path == cli.config[command].ckpt_path == str(path)


def test_a_checkpoint_names_no_class_to_be_built(parsed, trained):
    """It may come from anybody."""
    path, content = trained
    content["hyper_parameters"]["encoder"] = {"class_path": "clipseg3d.clip.HuggingFaceCLIP"}
    torch.save(content, path)
    cli = parsed("--config", PHANTOM, "--ckpt_path", path, command="validate")
    assert cli.config.validate.model.init_args.encoder is None


@pytest.mark.parametrize("command", ["validate", "test"])
def test_weights_that_were_not_trained_are_not_scored(parsed, command):
    with pytest.raises(ValueError, match=rf"{command} needs --ckpt_path; give the best\.ckpt"):
        parsed("--config", PHANTOM, command=command)


def test_a_checkpoint_does_not_change_what_is_fitted(parsed, trained):
    path, _ = trained
    cli = parsed("--config", PHANTOM, "--model.overlap", 0.25, "--ckpt_path", path)
    assert cli.model.config == PRESETS["tiny"]
    assert cli.model.hparams["overlap"] == 0.25
    assert cli.model.hparams["roi_size"] == (64, 64, 64)
    assert cli.datamodule.view_selection == "energy"
    assert cli.config_init.fit.ckpt_path == cli.config.fit.ckpt_path == str(path)


def test_checkpoints_are_atomic_unless_a_plugin_writes_them(parsed, write):
    given = ("--config", write(network=VALUES))
    assert type(parsed(*given).trainer.strategy.checkpoint_io) is AtomicCheckpointIO
    cli = parsed(*given, "--trainer.plugins", "AsyncCheckpointIO")
    assert type(cli.trainer.strategy.checkpoint_io) is AsyncCheckpointIO


def test_a_fit_goes_on_in_the_folder_of_its_last_checkpoint(parsed, write, tmp_path):
    """Every run has a folder of its own, but the checkpoints of a fit stay together."""
    given = ("--config", write(network=VALUES), "--ckpt_path", "last")
    given += ("--trainer.default_root_dir", tmp_path, "--trainer.logger", "CSVLogger")
    cli = parsed(*given, "--trainer.logger.save_dir", tmp_path)
    cli.before_fit()
    assert cli.config_init.fit.ckpt_path is None
    assert {callback.dirpath for callback in cli.trainer.checkpoint_callbacks} == {None}
    path = tmp_path / "lightning_logs" / "version_3" / "checkpoints" / "last-0000004.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, path)
    cli.config_init.fit.ckpt_path = "last"
    cli.before_fit()
    assert cli.config_init.fit.ckpt_path == path
    assert [callback.dirpath for callback in cli.trainer.checkpoint_callbacks] == [
        str(path.parent),
        str(path.parent),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.network", "huge"], "unknown preset 'huge': choose one of"),
        (["--model.ablation", "no_brain"], "unknown ablation 'no_brain': choose one of"),
        (["--model.plan", "fast"], "unknown plan 'fast': choose one of"),
    ],
)
def test_wrong_names_end_in_one_message(options, message, only, capsys, tmp_path, monkeypatch):
    only("fit")
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", str(PHANTOM), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"clipseg3d: {message}")
    assert "compute_fn" not in error
    assert "Traceback" not in error


def test_folds_are_counted_and_nothing_is_trained(write, only, phantom_folder, tmp_path):
    only("fit")
    options = {"data.root": phantom_folder, "data.num_cases": 6, "data.spacing_mm": 8}
    given = ["fit", "--config", str(write(network=VALUES)), "--trainer.default_root_dir"]
    given += [str(tmp_path / "out"), *(f"--{name}={value}" for name, value in options.items())]
    assert count_folds([*given, "--data.num_folds=3", "--scores=scores.csv"]) == 3
    assert not (tmp_path / "out").exists()


# whole runs, of a few steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fit")


@pytest.fixture
def command(phantom_folder, folder, write, only, tmp_path, monkeypatch):
    """Run a command on five small patients, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    path = write(network=VALUES, roi_size=[24, 24, 24])

    def run_command(name, *options):
        only(name)
        return main(
            [
                *(name, "--config", str(path), "--data.root", str(phantom_folder)),
                *("--data.cache_dir", str(folder / "cache"), "--data.num_cases", "5"),
                *("--data.spacing_mm", "8", "--data.patch_size", "[16, 16, 16]"),
                *("--data.num_workers", "0", "--trainer.accelerator", "cpu"),
                *("--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"),
                *("--trainer.enable_progress_bar", "false", "--trainer.logger", "false"),
                *("--trainer.num_sanity_val_steps", "0", "--data.crops_per_case", "1"),
                *map(str, options),
            ]
        )

    return run_command


def test_a_fit_writes_scores_of_its_best_checkpoint(command, folder, tmp_path, capsys):
    assert command("fit", "--trainer.default_root_dir", folder, "--scores", "scores.csv") == 0
    checkpoints = folder / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        "best.ckpt",
        "best.manifest.json",
        "last-0000004.ckpt",
        "last-0000004.manifest.json",
    ]
    config = json.loads((checkpoints / "best.manifest.json").read_text())["config"]
    network = config["model"]["init_args"]["network"]
    assert network.get("init_args", network)["channels"] == [4, 8]
    assert config["data"]["init_args"]["spacing_mm"] == 8
    best = ("--ckpt_path", checkpoints / "best.ckpt")
    capsys.readouterr()
    for name, stage in (("validate", "val"), ("test", "test")):
        assert command(name, *best, "--scores", f"{name}.csv") == 0
        assert f"{stage}/dice_mean" in capsys.readouterr().out
    texts = {(tmp_path / f"{name}.csv").read_text() for name in ("scores", "validate", "test")}
    (text,) = texts
    assert [line.rpartition(",")[0] for line in text.splitlines()] == [
        "case,region",
        *(f"Phantom_00000,{region}" for region in ("WT", "TC", "ET")),
    ]


def test_a_finished_fit_is_not_trained_on(command, folder, capsys):
    checkpoints = folder / "checkpoints"
    before = {path: path.stat().st_mtime_ns for path in checkpoints.iterdir()}
    again = ("fit", "--trainer.default_root_dir", folder, "--ckpt_path", "last")
    assert command(*again) == 0
    assert "this fit was complete, so nothing was trained" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in checkpoints.iterdir()} == before


def test_a_fit_says_what_matters_and_little_else(command, folder, tmp_path, capsys):
    options = ("--trainer.max_epochs", "2", "--trainer.enable_progress_bar", "true")
    assert command("fit", *options, "--trainer.logger", "true") == 0
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("clipseg3d: note: ")]
    first, *epochs = lines
    assert re.fullmatch(
        r"\d+ cases to train on, 1 to validate on, 2 epochs, \d+ steps, on \w+", first
    )
    assert [line.split(":")[0] for line in epochs] == ["Epoch 1/2", "Epoch 2/2"]
    notes = [line for line in err.splitlines() if line.startswith("clipseg3d: note: ")]
    assert len(notes) <= 2  # of random weights, and of few epochs
    results = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert list(results) == ["Best", "Weights", "Log", "Curves", "Segment"]
    run = Path("lightning_logs/version_0")
    best = run / "checkpoints" / "best.ckpt"
    assert (results["Weights"], results["Log"]) == (str(best), str(run / "metrics.csv"))
    assert results["Segment"] == f"clipseg3d segment CASE -o labels --weights {best}"
    assert (tmp_path / results["Curves"]).stat().st_size > 1000
    manifest = json.loads(best.with_suffix(".manifest.json").read_text())
    scores = {name.removeprefix("val/dice_"): score for name, score in manifest["scores"].items()}
    regions = ", ".join(f"{name.upper()} {scores[name]:.3f}" for name in ("wt", "tc", "et"))
    stated = f"epoch  {manifest['epoch'] + 1} of 2: Dice {scores['mean']:.3f} ({regions})"
    assert results["Best"] == stated
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert [int(row["step"]) for row in rows] == list(range(8))
    assert float(rows[-1]["train/lr"]) < float(rows[0]["train/lr"])


def test_a_fit_without_validation_names_the_weights_of_its_last_epoch(command, capsys):
    never = ("--trainer.check_val_every_n_epoch", "2")
    assert command("fit", "--trainer.logger", "true", *never) == 0
    results = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert results["Best"] == "epoch  none was validated (trainer.check_val_every_n_epoch=2)"
    assert results["Weights"] == "lightning_logs/version_0/checkpoints/last-0000004.ckpt"
    assert Path(results["Weights"]).is_file()
    assert results["Segment"] == f"clipseg3d segment CASE -o labels --weights {results['Weights']}"


def damage(path):
    path.write_bytes(path.read_bytes()[:-100])
    return path


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fit", ["--data.fold", "5"], "fold=5 is not in 0..4, the folds there are"),
        ("validate", ["--ckpt_path", "gone.ckpt"], "gone.ckpt: no such file"),
        ("fit", ["--ckpt_path", "{broken}"], "{broken}: not a"),
        ("validate", ["--ckpt_path", "{broken}"], "{broken}: not a"),
        ("fit", ["--trainer.default_root_dir", "{lost}", "--ckpt_path", "last"], "{lost}/checkpo"),
        (
            "fit",
            ["--ckpt_path", "{best}", "--trainer.max_epochs", "2", "--data.fold", "1"],
            "the checkpoint was saved with other settings (trainer.max_epochs: 1 -> 2; data.fold: "
            "0 -> 1",
        ),
        (
            "fit",
            ["--trainer.check_val_every_n_epoch", "2", "--scores", "scores.csv"],
            "no epoch was validated, so --scores scores.csv has none to score",
        ),
    ],
)
def test_what_cannot_be_run_ends_in_one_message(
    command, folder, tmp_path, capsys, name, options, message
):
    best = folder / "checkpoints" / "best.ckpt"
    paths = {"best": best, "broken": tmp_path / "broken.ckpt", "lost": tmp_path / "lost"}
    shutil.copy(best, paths["broken"])
    damage(paths["broken"])
    (paths["lost"] / "checkpoints").mkdir(parents=True)
    shutil.copy(paths["broken"], paths["lost"] / "checkpoints" / "last-0000001.ckpt")
    capsys.readouterr()
    assert command(name, *(option.format(**paths) for option in options)) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"clipseg3d: {message.format(**paths)}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.colour", "red"], "colour"),
        (["--data.flavour", "sweet"], "flavour"),
        (["--trainer.epochs", "3"], "epochs"),
        (["--data.batch_size", "some"], "batch_size"),
        (["--data", "clipseg3d.NoSuchData"], "NoSuchData"),
    ],
)
def test_unknown_keys_and_wrong_types_are_named(command, capsys, options, message):
    assert command("fit", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("clipseg3d: --")
    assert message in line


@pytest.mark.parametrize(
    "model", [{"network": {**VALUES, "colour": "red"}}, {"network": {"cbam": 3}}]
)
def test_wrong_values_of_a_file_are_named(write, only, capsys, model):
    only("fit")
    assert main(["fit", "--config", str(write(**model))]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert ("cbam" if model.get("network") == {"cbam": 3} else "colour") in error


@pytest.mark.parametrize("options", [[], ["--data.release=brats2024_gli"]])
def test_loggers_may_merge_the_settings_of_module_and_data(tmp_path, options):
    command = ["fit", f"--config={PHANTOM}", f"--data.root={tmp_path}", *options]
    cli = lightning_cli._run(lightning_cli.SetupCLI, command)
    module, data = cli.model.hparams_initial, cli.datamodule.hparams_initial
    assert {name for name in module.keys() & data.keys() if module[name] != data[name]} == set()
