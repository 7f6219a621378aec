"""Mirrors clipseg3d/training/cli.py: what one part of a configuration makes of another."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import clipseg3d.cli.lightning_cli
from clipseg3d.cli.main import main
from clipseg3d.networks.config import (
    ABLATIONS,
    PRESETS,
    NetworkConfig,
    network_config,
)
from clipseg3d.cli.lightning_cli import CLIPSeg3DCLI, run
from clipseg3d.training.plan import PLANS, TrainingPlan, resolve_plan

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


@pytest.mark.parametrize("name", ["tiny", "paper"])
@pytest.mark.parametrize("where", ["file", "option", "one word"])
def test_a_switch_changes_nothing_else_of_a_preset(parsed, write, name, where):
    given = {
        "file": ("--config", write(network=name)),
        "option": ("--config", PHANTOM, "--model.network", name),
        "one word": (f"--config={PHANTOM}", f"--model.network={name}"),
    }[where]
    switches = ("--model.network.checkpointing=true", "--model.network.clip", "tiny-random")
    module = parsed(*given, *switches).model
    assert module.config == replace(PRESETS[name], checkpointing=True, clip="tiny-random")
    assert module.plan == replace(resolve_plan(None, name), lr=module.plan.lr)


@pytest.mark.parametrize("name", ["tinny", "{"])
def test_a_switch_of_no_preset_is_refused(parsed, name):
    with pytest.raises(ValueError, match=rf"{re.escape(repr(name))}.*recommended, tiny"):
        parsed("--config", PHANTOM, "--model.network", name, "--model.network.cbam", "false")


@pytest.mark.parametrize("network", ["tiny", VALUES])
def test_a_switch_of_the_wrong_type_is_refused(parsed, write, network):
    with pytest.raises(ValueError, match=r"network\.cbam.*maybe"):
        parsed("--config", write(network=network), "--model.network.cbam", "maybe")


def test_a_switch_changes_nothing_else_of_values_on_the_line(parsed):
    given = ("--config", PHANTOM, "--model.network", json.dumps(VALUES))
    changed = parsed(*given, "--model.network.cbam", "false").model.config
    assert changed == replace(parsed(*given).model.config, cbam=False)


@pytest.mark.parametrize("given", [{"plan": "recommended"}, {"plan": {"lr": 0.5}}])
def test_a_switch_leaves_the_plan_of_a_file(parsed, write, given):
    module = parsed("--config", write(**given), "--model.network.cbam", "false").model
    assert module.plan == parsed("--config", write(**given)).model.plan


def test_a_switch_changes_nothing_else_of_values(parsed, write):
    given = parsed("--config", write(network=VALUES)).model.config
    changed = parsed("--config", write(network=VALUES), "--model.network.cbam", "false")
    assert changed.model.config == replace(given, cbam=False)


def test_ablation_of_values(parsed, write):
    path = write(network={**VALUES, "view_selection": "attention"}, ablation="shuffled_text")
    cli = parsed("--config", path)
    assert cli.datamodule.view_selection == "attention"
    assert cli.datamodule.shuffle_reports
    cli = parsed("--config", path, "--model.ablation", "center_mean_bridge")
    assert cli.datamodule.view_selection == cli.model.config.view_selection == "center"


def test_links_take_a_flat_namespace_too():
    """Releases of jsonargparse differ in how they hold the values of a class."""
    flat = clipseg3d.cli.lightning_cli.Namespace(view_selection="attention", text="shuffled")
    wrapped = clipseg3d.cli.lightning_cli.Namespace(class_path="x", init_args=flat)
    for network in (flat, wrapped, {"view_selection": "attention", "text": "shuffled"}):
        assert clipseg3d.cli.lightning_cli.view_selection(network, None) == "attention"
        assert clipseg3d.cli.lightning_cli.is_shuffled(network, None)
        assert not clipseg3d.cli.lightning_cli.is_shuffled(network, "no_text")


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
    checkpoint = {"hyper_parameters": dict(cli.model.hparams), "state_dict": {}}
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


# whole runs, of a few steps


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    return tmp_path_factory.mktemp("patients")


@pytest.fixture
def command(patients, write, tmp_path, monkeypatch):
    """Run a command on five small patients, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    path = write(network=VALUES, roi_size=[16, 16, 16])

    def run_command(name, *options):
        return main(
            [
                *(name, "--config", str(path), "--data.root", str(patients / "phantoms")),
                *("--data.cache_dir", str(patients / "cache"), "--data.num_cases", "5"),
                *("--data.spacing_mm", "8", "--data.patch_size", "[16, 16, 16]"),
                *("--data.num_workers", "0", "--trainer.accelerator", "cpu"),
                *("--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"),
                *("--trainer.enable_progress_bar", "false", "--trainer.logger", "false"),
                *("--trainer.num_sanity_val_steps", "0", "--data.crops_per_case", "1"),
                *map(str, options),
            ]
        )

    return run_command


@pytest.fixture(scope="module")
def trained(patients):
    return patients / "fit"


def test_a_fit_writes_scores_of_its_best_checkpoint(command, trained, tmp_path):
    here = ("--trainer.default_root_dir", trained)
    assert command("fit", *here, "--scores", "scores.csv") == 0
    folder = trained / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.ckpt",
        "best.manifest.json",
        "last-0000004.ckpt",
        "last-0000004.manifest.json",
    ]
    best = ("--ckpt_path", folder / "best.ckpt")
    assert command("validate", *best, "--scores", "again.csv") == 0
    assert command("test", *best, "--scores", "test.csv") == 0
    texts = {(tmp_path / f"{name}.csv").read_text() for name in ("scores", "again", "test")}
    (text,) = texts
    assert [line.rpartition(",")[0] for line in text.splitlines()] == [
        "case,region",
        *(f"Phantom_00000,{region}" for region in ("WT", "TC", "ET")),
    ]


def test_a_finished_fit_goes_no_further(command, trained):
    folder = trained / "checkpoints"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = ("fit", "--trainer.default_root_dir", trained, "--ckpt_path", "last")
    assert command(*again) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def damage(path):
    path.write_bytes(path.read_bytes()[:-100])
    return path


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "fit",
            ["--data.batch_size", "9"],
            "batch_size=9 is more than the 4 samples that an epoch",
        ),
        ("fit", ["--data.fold", "5"], "fold=5 is not in 0..4, the folds there are"),
        ("fit", ["--data.num_folds", "6"], "5 patients cannot fill num_folds=6 folds"),
        ("fit", ["--ckpt_path", "gone.ckpt"], "gone.ckpt: no such file"),
        ("fit", ["--ckpt_path", "{broken}"], "{broken}: not a whole checkpoint; give another"),
        ("validate", ["--ckpt_path", "{broken}"], "{broken}: not a whole checkpoint; give another"),
        (
            "fit",
            ["--ckpt_path", "{whole}", "--trainer.max_epochs", "2", "--data.fold", "1"],
            "the checkpoint was saved with other settings (trainer.max_epochs: 1 -> 2; data.fold: "
            "0 -> 1",
        ),
        (
            "fit",
            [
                *("--ckpt_path", "{whole}", "--model.network.cbam", "false"),
                *("--model.resume_changed", "true"),
            ],
            "the checkpoint is of another architecture (",
        ),
        (
            "fit",
            ["--trainer.check_val_every_n_epoch", "2", "--scores", "scores.csv"],
            "no epoch was validated, so --scores scores.csv has none to score",
        ),
    ],
)
def test_what_cannot_be_run_ends_in_one_message(
    command, trained, tmp_path, capsys, name, options, message
):
    whole = trained / "checkpoints" / "best.ckpt"
    places = {"whole": whole, "broken": tmp_path / "broken.ckpt"}
    shutil.copy(whole, places["broken"])
    damage(places["broken"])
    capsys.readouterr()
    assert command(name, *(option.format(**places) for option in options)) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"clipseg3d: {message.format(**places)}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.colour", "red"], "colour"),
        (["--data.flavour", "sweet"], "flavour"),
        (["--trainer.epochs", "3"], "epochs"),
        (["--model.overlap", "much"], "overlap"),
        (["--data.batch_size", "some"], "batch_size"),
        (["--data", "clipseg3d.NoSuchData"], "NoSuchData"),
    ],
)
def test_unknown_keys_and_wrong_types_are_named(command, capsys, options, message):
    with pytest.raises(SystemExit) as caught:
        command("fit", *options)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.partition("error: ")[2]


def test_unknown_keys_of_a_file_are_named(write, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(write(colour="red"))])
    assert "colour" in capsys.readouterr().err
