"""Parts of a training given by their class: module, loss, optimiser, schedule and augmentation."""

import json
from importlib import import_module

import numpy as np
import pytest
import torch
import yaml
from monai.losses import DiceCELoss

from clipseg3d import BraTS2020DataModule
from clipseg3d.cli.main import main
from clipseg3d.losses import DiceBCELoss

pytestmark = pytest.mark.filterwarnings("ignore")
PARTS = """
import torch

from clipseg3d import CLIPSeg3DModule


class Weighted(CLIPSeg3DModule):
    '''Halves its loss, by default.'''

    def __init__(self, *args, factor: float = 0.5, **kwargs):
        super().__init__(*args, **kwargs)
        self.factor = factor

    def configure_loss(self):
        loss = super().configure_loss() or torch.nn.BCEWithLogitsLoss()
        return lambda logits, label: self.hparams["factor"] * loss(logits, label)


class Brighter:
    def __init__(self, by: float = 1.0):
        self.by = by

    def __call__(self, sample):
        return {**sample, "image": sample["image"] + self.by * (sample["image"] != 0)}
"""
VALUES = {"channels": [4, 8], "num_auxiliary": 0, "semantic_dim": 16, "num_heads": 2}
NETWORK = {**VALUES, "clip": "tiny-random"}
SGD = ("--optimizer", "SGD", "--optimizer.lr", 0.25, "--optimizer.momentum", 0.5)


@pytest.fixture(autouse=True)
def parts_of_mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts_of_mine.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def command(phantom_folder, cache, write, only, tmp_path):
    """Run a command on five small patients."""
    path = write(network=NETWORK, roi_size=[24, 24, 24])

    def run_command(name, *options):
        only(name)
        return main(
            [
                *(name, "--config", str(path), "--data.root", str(phantom_folder)),
                *("--data.cache_dir", str(cache), "--data.num_cases", "5"),
                *("--data.spacing_mm", "8", "--data.patch_size", "[16, 16, 16]"),
                *("--data.num_workers", "0", "--trainer.accelerator", "cpu"),
                *("--trainer.check_val_every_n_epoch", "1"),
                *("--trainer.enable_progress_bar", "false", "--trainer.logger", "false"),
                *("--trainer.num_sanity_val_steps", "0", "--data.crops_per_case", "1"),
                *("--trainer.default_root_dir", str(tmp_path)),
                *map(str, options),
            ]
        )

    return run_command


def test_a_loss_of_monai_works_as_it_is(parsed, write):
    cli = parsed(
        "--config", write(network=VALUES), "--loss", "DiceCELoss", "--loss.sigmoid", "true"
    )
    assert isinstance(cli.model.loss.loss, DiceCELoss)
    logits, label = torch.randn(1, 3, 8, 8, 8), (torch.rand(1, 3, 8, 8, 8) > 0.5).float()
    whole = DiceCELoss(sigmoid=True)(logits, label)
    assert cli.model.loss([logits], label) == whole
    assert cli.model.replaced["loss"]["class_path"] == "monai.losses.DiceCELoss"


def test_augmentations_of_monai_are_recorded_as_given(parsed, write):
    given = ("--data.augmentation", "monai.transforms.RandFlipd", "--data.augmentation.keys")
    cli = parsed("--config", write(network=VALUES), *given, "[image, label]")
    assert cli.datamodule.augmentation.keys == ("image", "label")
    config = cli.trainer_defaults["callbacks"][0].config
    recorded = config["data"]["init_args"]["augmentation"]["init_args"]
    assert recorded["keys"] == ["image", "label"]
    assert cli.datamodule.hparams["augmentation"]["keys"] == ["image", "label"]


def test_nothing_given_changes_nothing(parsed, write):
    model = parsed("--config", write(network=VALUES)).model
    assert isinstance(model.loss.loss, DiceBCELoss)
    assert model.replaced == {}


def test_a_loss_of_probabilities_is_refused(parsed, write):
    with pytest.raises(ValueError, match=r"DiceLoss takes probabilities.*give it sigmoid=True"):
        parsed("--config", write(network=VALUES), "--loss", "monai.losses.DiceLoss")


def test_a_data_module_goes_by_its_bare_name(parsed, write, tmp_path):
    path = write(network=VALUES)
    values = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**values, "data": None}))
    cli = parsed("--config", path, "--data", "BraTS2020DataModule", "--data.root", tmp_path)
    assert type(cli.datamodule) is BraTS2020DataModule


def test_help_lists_the_data_modules(only, capsys):
    only("fit")
    with pytest.raises(SystemExit):
        main(["fit", "--help-all"])
    words = "".join(capsys.readouterr().out.split())
    for name in ("BraTS2020DataModule", "MSDTask01DataModule", "PhantomDataModule"):
        assert f"clipseg3d.{name}" in words


@pytest.mark.slow
def test_a_fit_with_other_parts_is_resumed_scored_and_recorded(command, tmp_path, capsys):
    parts = (
        *("--model", "parts_of_mine.Weighted", "--model.factor", 0.25),
        *("--loss", "torch.nn.BCEWithLogitsLoss", *SGD),
        *("--lr_scheduler", "StepLR", "--lr_scheduler.step_size", 1, "--lr_scheduler.gamma", 0.1),
        *("--data.augmentation", "parts_of_mine.Brighter", "--data.augmentation.by", 0.5),
    )
    short = (*parts, "--trainer.limit_train_batches", 1)
    plateau = ("--lr_scheduler", "ReduceLROnPlateau", "--lr_scheduler.monitor", "val/dice_mean")
    assert command("fit", *parts[:6], *plateau, "--dry-run") == 0
    assert "validation_step" not in capsys.readouterr().err
    assert command("fit", *short, "--trainer.max_epochs", 2) == 0
    notes = capsys.readouterr().err
    assert "--optimizer torch.optim.SGD(lr=0.25, momentum=0.5" in notes
    assert "not the plan's adamw, lr=0.003" in notes
    *_, last = sorted((tmp_path / "checkpoints").glob("last-*.ckpt"))
    content = torch.load(last, weights_only=True)
    (group,) = content["optimizer_states"][0]["param_groups"]
    assert group["lr"] == pytest.approx(0.25 * 0.1**2)
    assert group["momentum"] == 0.5
    assert content["hyper_parameters"]["factor"] == 0.25
    assert content["settings"]["optimizer.class_path"] == "torch.optim.SGD"
    assert content["settings"]["data.augmentation.by"] == 0.5
    config = json.loads(last.with_suffix(".manifest.json").read_text())["config"]
    assert config["model"]["class_path"] == "parts_of_mine.Weighted"
    assert config["data"]["init_args"]["augmentation"]["init_args"] == {"by": 0.5}

    more = ("--trainer.max_epochs", 3, "--ckpt_path", "last")
    assert command("fit", *short, *more, "--optimizer.lr", 0.5) == 1
    assert "optimizer.init_args.lr: 0.25 -> 0.5" in capsys.readouterr().err
    changed = ("--model.resume_changed", "true", "--optimizer.lr", 0.5)
    assert command("fit", *short, *more, *changed) == 0
    *_, last = sorted((tmp_path / "checkpoints").glob("last-*.ckpt"))
    (group,) = torch.load(last, weights_only=True)["optimizer_states"][0]["param_groups"]
    assert group["lr"] == pytest.approx(0.5 * 0.1**3)

    best = tmp_path / "checkpoints" / "best.ckpt"
    assert command("validate", *parts[:2], "--ckpt_path", best) == 0
    module = import_module("parts_of_mine").Weighted.load_from_checkpoint(best)
    assert module.hparams["factor"] == module.factor == 0.25


@pytest.mark.slow
def test_labels_are_those_of_segment(command, phantom_folder, tmp_path, capsys):
    import nibabel

    assert command("fit", "--trainer.limit_train_batches", 1, "--trainer.max_epochs", 1) == 0
    best = tmp_path / "checkpoints" / "best.ckpt"
    assert command("predict", "--ckpt_path", best) == 1
    assert "predict needs --ckpt_path and --output" in capsys.readouterr().err
    asked = ("--output", tmp_path / "asked", "--prompts", "[the rim, oedema]")
    elsewhere = ("--trainer.default_root_dir", tmp_path / "asked")  # a config is written there
    assert command("predict", "--ckpt_path", best, *asked, *elsewhere) == 1
    assert "clipseg3d: these weights answer no prompts" in capsys.readouterr().err
    for _ in range(2):  # the second time, all are finished
        assert command("predict", "--ckpt_path", best, "--output", tmp_path / "one") == 0
    assert main(["segment", str(phantom_folder), "-o", "two", "--weights", str(best)]) == 0
    files = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*")}
    assert len([path for path in files if path.suffix == ".gz"]) == 6
    for path in files:
        one, two = tmp_path / "one" / path, tmp_path / "two" / path
        if path.suffix == ".json":
            assert (
                json.loads(one.read_text())["made_with"] == json.loads(two.read_text())["made_with"]
            )
        else:
            one, two = nibabel.load(one), nibabel.load(two)
            np.testing.assert_array_equal(one.get_fdata(), two.get_fdata())
            assert one.header == two.header
