"""Mirrors clipseg3d/cli/configs.py and clipseg3d/configs: configurations by their names."""

import pytest
import yaml

from clipseg3d.cli.config_reader import file_of, named_configs
from clipseg3d.cli.main import main
from clipseg3d.configs import config_names, config_path, summary


def test_the_list_says_in_a_line_what_each_is_for(capsys):
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in config_names():
        (line,) = (line for line in lines if line.startswith(f"{name} "))
        assert line.endswith(summary(name))
        assert len(line) <= 80


@pytest.mark.parametrize("name", config_names())
def test_a_file_says_first_what_it_is_for_and_then_how_to_train_with_it(name):
    text = config_path(name).read_text()
    assert summary(name).endswith(".")
    assert f"fit --config {name}" in text.split("\nseed_everything")[0]
    assert yaml.safe_load(text)["data"]["class_path"].startswith("clipseg3d.")


@pytest.mark.parametrize("place", [(), ("mine.yaml",), ("folder",), ("new/mine.yaml",)])
def test_a_copy_is_the_file_and_replaces_none(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    command = ["configs", "--copy", "phantom_tiny", *place]
    assert main(command) == 0
    copy = tmp_path / capsys.readouterr().out.splitlines()[0]
    assert copy.read_text() == config_path("phantom_tiny").read_text()
    copy.write_text("my changes")
    assert main(command) == 1
    assert "is there already; remove it, or give another PATH" in capsys.readouterr().err
    assert copy.read_text() == "my changes"


@pytest.mark.parametrize(
    "command", [["configs", "--copy"], ["cross-validate", "-o", "o"], ["fit", "--config"]]
)
def test_a_misspelt_name_is_answered_with_the_nearest(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*command, "phantom_tyni"]) == 2
    error = capsys.readouterr().err
    assert error == "clipseg3d: phantom_tyni: no such configuration; did you mean phantom_tiny?\n"


def test_a_missing_file_that_comes_with_the_package_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", "configs/phantom_tiny.yaml"]) == 1
    assert "no such file; give phantom_tiny, which comes with clipseg3d" in capsys.readouterr().err


def test_names_stand_for_files_unless_there_is_such_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = str(config_path("phantom_tiny"))
    given = ["--config", "phantom_tiny", "--config=phantom_tiny", "--data.root", "phantom_tiny"]
    assert named_configs(given) == ["--config", shipped, f"--config={shipped}", *given[3:]]
    (tmp_path / "phantom_tiny").write_text("seed_everything: 1")
    assert named_configs(given) == given


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_every_command_takes_names_of_configurations_and_of_data_modules(command, parsed):
    options = ["--data", "PhantomDataModule", "--ckpt_path", "x.ckpt"]
    options += ["--output", "o"] if command == "predict" else []
    cli = parsed("--config", "phantom_tiny", *options, command=command)
    assert cli.model.plan.lr == 3e-3
    assert cli.datamodule.hparams["spacing_mm"] == 2.0


def test_a_file_may_name_a_data_module_without_the_package(parsed, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("data:\n  class_path: BraTS2020DataModule\n  init_args: {root: scans}\n")
    cli = parsed("--config", path, "--model.network", "tiny")
    assert cli.datamodule.release.name == "brats2020"


def test_the_file_of_a_key_is_found_through_init_args():
    configs = {
        "a.yaml": {"data": {"class_path": "X", "init_args": {"root": "r"}}},
        "b.yaml": {"model": {"network": {"chanels": [4]}}, "data": None},
    }
    assert file_of("data.root", configs) == "a.yaml"
    assert file_of("data.class_path", configs) == "a.yaml"
    assert file_of("model.network.chanels", configs) == "b.yaml"
    assert file_of("trainer", configs) is None
    assert file_of("data.root.x", configs) is None
