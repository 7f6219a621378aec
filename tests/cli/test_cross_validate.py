"""Mirrors clipseg3d/cli/cross_validate.py, on six small patients in two folds."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from clipseg3d.cli import cross_validate
from clipseg3d.cli.main import main
from clipseg3d.metrics.score_table import ScoreTable
from clipseg3d.pretrained.checkpoint import read_checkpoint_file
from clipseg3d.training.module import CLIPSeg3DModule

pytestmark = pytest.mark.filterwarnings("ignore")
CASES = [f"Phantom_{number:05d}" for number in range(6)]
NETWORK = {
    "channels": [4, 8],
    "num_auxiliary": 0,
    "semantic_dim": 16,
    "num_heads": 2,
    "clip": "tiny-random",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cross")


@pytest.fixture(scope="module")
def configs(folder, phantom_folder):
    """Two configurations that differ in the ablation, and one with more folds."""
    values = {
        "model": {"network": NETWORK, "plan": {"lr": 0.01}, "roi_size": [16, 16, 16]},
        "data": {
            "class_path": "clipseg3d.PhantomDataModule",
            "init_args": {
                "root": str(phantom_folder),
                "cache_dir": str(folder / "cache"),
                "num_cases": 6,
                "spacing_mm": 8.0,
                "num_folds": 2,
                "patch_size": [16, 16, 16],
                "num_workers": 0,
            },
        },
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "logger": False,
        },
    }
    paths = [folder / f"{name}.yaml" for name in ("guided", "plain", "thirds")]
    paths[0].write_text(yaml.safe_dump(values))
    values["model"]["ablation"] = "unet3d"
    paths[1].write_text(yaml.safe_dump(values))
    values["data"]["init_args"]["num_folds"] = 3
    paths[2].write_text(yaml.safe_dump(values))
    return paths


@pytest.fixture
def calls(only, no_network, monkeypatch):
    """Do not run fits, but note their commands and write random scores of their cases."""
    only("fit")
    noted, generator = [], np.random.default_rng(0)

    def call(arguments, log):
        noted.append(arguments)
        assert log.parent == Path(arguments[-3].partition("=")[2])
        options = dict(argument.split("=") for argument in arguments if "=" in argument)
        cases = CASES[int(options["--data.fold"]) :: 2]
        values = generator.random((len(cases), 3, 1))
        table = ScoreTable(tuple(cases), ("WT", "TC", "ET"), ("dice",), values)
        Path(options["--scores"]).write_text(table.csv())
        return 0

    monkeypatch.setattr(cross_validate, "_call", call)
    return noted


def cross(*arguments):
    return main(["cross-validate", *map(str, arguments)])


def dice(path):
    """Return region -> case -> Dice."""
    values = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            values.setdefault(row["region"], {})[row["case"]] = float(row["dice"])
    return values


def check_summary(out, folder):
    """Check what is printed of two configurations against their files of scores."""
    scores = {name: dice(folder / name / "scores.csv") for name in ("guided", "plain")}
    for name, regions in scores.items():
        assert {region: list(values) for region, values in regions.items()} == dict.fromkeys(
            ("WT", "TC", "ET"), CASES
        )
        line = next(line for line in out.split(f"{name}, mean")[1].splitlines() if "WT" in line)
        values = list(regions["WT"].values())
        mean, sd = f"{np.mean(values):.3f}", f"{np.std(values, ddof=1):.3f}"
        assert line.split() == ["WT", mean, "±", sd]
    folds = [dice(folder / "plain" / f"fold_{fold}" / "scores.csv") for fold in (0, 1)]
    means = [np.mean(list(fold["ET"].values())) for fold in folds]
    assert f"{np.mean(means):.3f} ± {np.std(means, ddof=1):.3f}" in out.split("2 folds:")[2]
    assert "guided - plain: mean, 95 % bootstrap interval" in out
    row = out.split("guided - plain")[1].splitlines()[2].split()
    change = [scores["guided"]["WT"][case] - scores["plain"]["WT"][case] for case in CASES]
    assert row[:3] == ["WT", "dice", f"{np.mean(change):+.4f}"]
    assert row[-1] == "6"


def test_all_folds_are_trained_and_compared(configs, tmp_path, calls, capsys):
    options = ("--trainer.max_epochs", "1")
    assert cross(*configs[:2], "-o", tmp_path, "--fit", *options) == 0
    out = capsys.readouterr().out
    for name, config, commands in zip(
        ("guided", "plain"), configs, (calls[:2], calls[2:]), strict=False
    ):
        for fold, command in enumerate(commands):
            folder = tmp_path / name / f"fold_{fold}"
            assert command == [
                *("fit", "--config", str(config), *options, f"--data.fold={fold}"),
                *(f"--trainer.default_root_dir={folder}", f"--checkpoint.dirpath={folder}"),
                *("--ckpt_path=last", f"--scores={folder / 'scores.csv'}"),
            ]
            means = {
                region: np.mean([*v.values()]) for region, v in dice(folder / "scores.csv").items()
            }
            (line,) = (line for line in out.splitlines() if line.startswith(f"{name}, fold {fold}"))
            regions = ", ".join(f"{region} {mean:.3f}" for region, mean in means.items())
            mean = np.mean([*means.values()])
            assert line == f"{name}, fold {fold}: Dice {mean:.3f} ({regions}), 3 cases"
    assert len(calls) == 4
    check_summary(out, tmp_path)
    # given again, it goes on with what is missing
    (tmp_path / "plain" / "fold_1" / "scores.csv").unlink()
    assert cross(*configs[:2], "-o", tmp_path, "--fit", *options) == 0
    assert calls[4:] == calls[3:4]
    out = capsys.readouterr().out
    assert "cases, finished before" in out.split("plain, fold 0: ")[1].splitlines()[0]
    check_summary(out, tmp_path)


def test_finished_folds_are_not_mixed_with_other_settings(configs, tmp_path, calls, capsys):
    assert cross(configs[0], "-o", tmp_path) == 0
    changed = ("--fit", "--model.lr", "0.02")
    assert cross(configs[0], "-o", tmp_path, *changed) == 1
    assert "guided: begun with another options, see " in capsys.readouterr().err
    assert len(calls) == 2


@pytest.fixture(scope="module")
def killed(folder, configs):
    """What a command leaves that was killed, with all it had started, in its second fold."""
    out = folder / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "clipseg3d", "cross-validate", configs[0], "-o", out],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(6000):
        if list((out / "guided" / "fold_1").glob("last-*.ckpt")) or process.poll() is not None:
            break
        time.sleep(0.02)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return out


@pytest.mark.slow
def test_a_killed_command_goes_on_and_compares(killed, configs, capsys, monkeypatch):
    first = (killed / "guided" / "fold_0" / "best.ckpt").stat().st_mtime_ns
    newest = read_checkpoint_file(max((killed / "guided" / "fold_1").glob("last-*.ckpt")))
    calls, loaded, load = [], [], CLIPSeg3DModule.on_load_checkpoint
    monkeypatch.setattr(
        cross_validate, "_call", lambda arguments, log: calls.append(arguments) or main(arguments)
    )
    monkeypatch.setattr(
        CLIPSeg3DModule,
        "on_load_checkpoint",
        lambda self, content: loaded.append(content["global_step"]) or load(self, content),
    )
    assert cross(*configs[:2], "-o", killed) == 0
    out = capsys.readouterr().out
    assert "cases, finished before" in out.split("guided, fold 0: ")[1].splitlines()[0]
    assert (killed / "guided" / "fold_0" / "best.ckpt").stat().st_mtime_ns == first
    assert [next(a for a in call if "data.fold" in a) for call in calls] == [
        "--data.fold=1",
        "--data.fold=0",
        "--data.fold=1",
    ]
    assert loaded[0] == newest["global_step"] > 0
    assert len(loaded) == 4  # and the best of each of the three
    end = read_checkpoint_file(max((killed / "guided" / "fold_1").glob("last-*.ckpt")))
    assert end["global_step"] == 6
    check_summary(out, killed)
    manifests = [
        json.loads((killed / "guided" / f"fold_{fold}" / "best.manifest.json").read_text())
        for fold in (0, 1)
    ]
    assert [one["config"]["data"]["init_args"]["fold"] for one in manifests] == [0, 1]
    splits = [one["data"]["split"] for one in manifests]
    assert sorted(splits[0]["validation"] + splits[1]["validation"]) == CASES


def test_a_fit_that_fails_ends_in_one_message(folder, configs, calls, monkeypatch, capsys):
    def fail(arguments, log):
        log.write_text("Epoch 1/2\nclipseg3d: no memory; buy some\n")
        return 3

    monkeypatch.setattr(cross_validate, "_call", fail)
    assert cross(configs[1], "-o", folder / "failed") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "fold_0: the fit ended with code 3 (no memory; buy some); see " in line


def test_what_a_fit_prints_goes_to_its_log(tmp_path, capfd):
    (tmp_path / "fit.log").write_text("earlier\n")
    assert cross_validate._call(["--version"], tmp_path / "fit.log") == 0
    assert cross_validate._call(["fitt"], tmp_path / "fit.log") == 2
    assert capfd.readouterr() == ("", "")
    first, version, fault = (tmp_path / "fit.log").read_text().splitlines()
    assert (first, version.split()[0]) == ("earlier", "clipseg3d")
    assert "no such command" in fault


@pytest.mark.parametrize("name", ["fold_0/.lock", ".fold_0.lock"])
def test_a_fold_that_is_still_trained_is_waited_for(tmp_path, capsys, name):
    """By an earlier command, or by its fit, which has outlived it."""
    folder = tmp_path / "fold_0"
    folder.mkdir()
    lock = (
        "import filelock, sys, time; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); "
        "print('held', flush=True); time.sleep(1); open(sys.argv[2], 'w')"
    )
    scores = folder / "scores.csv"
    with subprocess.Popen(
        [sys.executable, "-c", lock, tmp_path / name, scores], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        cross_validate._train(["fit"], folder, 0, scores)
    assert "still being trained by an earlier command; waiting" in capsys.readouterr().out
    assert scores.is_file()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--fit", "--data.fold", "1"], 1, "--data.fold is set for every fold; leave it out"),
        (["--fit", "--ckpt_path=x"], 1, "--ckpt_path is set for every fold; leave it out"),
        (["--fit", "--data.num_folds", "7"], 1, "6 patients cannot fill num_folds=7 folds"),
        (["--fit", "--model.network", "huge"], 2, "unknown preset 'huge': choose one of"),
    ],
)
def test_options_that_cannot_be(configs, tmp_path, calls, capsys, options, code, message):
    assert cross(configs[0], "-o", tmp_path / "out", *options) == code
    assert message in capsys.readouterr().err
    assert calls == []


def test_configurations_that_cannot_be(configs, tmp_path, calls, capsys, monkeypatch):
    twin = tmp_path / configs[0].name
    shutil.copy(configs[0], twin)
    for given, message in (
        (configs, "3 configurations are given; give one, or two to compare"),
        ([configs[0], twin], "two configurations are called guided; rename one file"),
        ([tmp_path / "gone.yaml"], "gone.yaml: no such file; give a YAML file, or a name"),
        (configs[1:], "has 2 folds and "),
    ):
        assert cross(*given, "-o", tmp_path / "out") == 1
        assert message in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cross(configs[0], "-o", tmp_path / "out") == 1
    assert "without torchrun or srun" in capsys.readouterr().err
    assert calls == []
