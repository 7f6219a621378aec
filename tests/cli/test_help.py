"""What a person reads first: the list of commands, and the short help of Lightning's commands."""

import pytest

import clipseg3d
from clipseg3d.cli.lightning_options import OPTIONS
from clipseg3d.cli.main import COMMANDS, main

VALUES = {
    "--config": "phantom_tiny",
    "--data": "PhantomDataModule",
    "--data.reports": "reports.json",
    "--data.cache_dir": "cache",
    "--data.patch_size": "[8,8,8]",
    "--model.roi_size": "[8,8,8]",
    "--model.network": "tiny",
    "--model.network.clip": "tiny-random",
    "--model.ablation": "no_text",
    "--trainer.accelerator": "cpu",
    "--trainer.precision": "32-true",
    "--ckpt_path": "last",
    "--prompts": "[oedema]",
}
"""A value for each option of the help; 1 for the others."""


def page(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        main([*argv])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_without_arguments_every_command_takes_one_line(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([]) == 0
    shown = capsys.readouterr().out.partition("commands:\n")[2].partition("\n\n")[0]
    names = [command.__name__.rpartition(".")[2].replace("_", "-") for command in COMMANDS]
    assert [line.split()[0] for line in shown.splitlines()[1:]] == names
    assert all(len(line.split()) > 3 for line in shown.splitlines()[1:])


def test_version(capsys):
    assert page(capsys, "--version") == f"clipseg3d {clipseg3d.__version__}\n"


@pytest.mark.parametrize("argv", [["fit", "--help"], ["fit", "--config", "gone.yaml", "-h"]])
def test_help_of_fit_is_short_and_names_the_long_one(argv, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = page(capsys, *argv)
    assert len(shown.splitlines()) < 45
    assert "fit --help-all" in shown
    assert "--dry-run" in shown


def test_the_long_help_has_all_options(only, capsys):
    only("fit")
    assert "--trainer.gradient_clip_algorithm" in page(capsys, "fit", "--help-all")


@pytest.mark.parametrize("command", OPTIONS)
def test_the_short_help_shows_options_that_there_are(command, parsed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {
        option: VALUES.get(option, "1")
        for option, (value, _) in OPTIONS[command].items()
        if value is not None
    }
    built = parsed(*(word for pair in given.items() for word in pair), command=command)
    assert built.datamodule.hparams["cache_dir"] == "cache"
    assert built.model.hparams["roi_size"] == (8, 8, 8)
    assert built.trainer.precision == "32-true"
