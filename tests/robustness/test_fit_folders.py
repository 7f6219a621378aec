"""Fits that share a folder, and what killed and damaged ones leave there.

Cases folds_at_once.py, last_left_behind.py and cross_validate_settings.py.
"""

import functools
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader

from clipseg3d.cli import lightning_cli
from clipseg3d.cli.lightning_cli import CLIPSeg3DCLI
from clipseg3d.cli.main import main
from clipseg3d.configs import config_path
from clipseg3d.metrics.score_table import ScoreTable
from clipseg3d.training.last_checkpoints import LastCheckpoints

pytestmark = pytest.mark.filterwarnings("ignore")
PHANTOM = config_path("phantom_tiny")


@pytest.fixture
def only_fit(monkeypatch):
    """Build the parser of one command only, and modules without their network."""
    methods = CLIPSeg3DCLI.subcommands()
    monkeypatch.setattr(CLIPSeg3DCLI, "subcommands", staticmethod(lambda: {"fit": methods["fit"]}))
    monkeypatch.setattr(
        "clipseg3d.training.module.build_clipseg3d", lambda *_, **options: torch.nn.Module()
    )


@pytest.mark.parametrize(
    ("options", "folder"),
    [
        (["--checkpoint.dirpath", "run/states"], "run/states"),
        (["--trainer.logger", "false", "--trainer.default_root_dir", "run"], "run/checkpoints"),
        (["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "run"], None),
    ],
)
def test_a_folder_that_another_fit_writes_to_is_refused(
    only_fit, tmp_path, monkeypatch, capsys, options, folder
):
    monkeypatch.chdir(tmp_path)
    trained = []

    @functools.wraps(Trainer.fit)  # the parser takes its options from the arguments
    def fit(self, *_, **__):
        trained.append(self)

    monkeypatch.setattr(Trainer, "fit", fit)
    if folder is None:  # the version is given, and its folder is there
        options = [*options, "--trainer.logger.version", "3"]
        folder = "run/lightning_logs/version_3"
        Path(folder).mkdir(parents=True)
    path = Path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    given = ["fit", "--config", str(PHANTOM), "--data.root", "patients", *options]
    with FileLock(path.with_name(f".{path.name}.lock")):
        assert main(given) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"clipseg3d: {path.absolute()}: another fit is writing its checkpoints")
    assert not trained
    assert main(given) == 0  # and the lock is free again after a fit
    assert main(given) == 0
    assert len(trained) == 2


def test_fits_that_start_at_once_take_versions_of_their_own(tmp_path):
    first, second = (CSVLogger(tmp_path) for _ in range(2))
    assert lightning_cli._take_version(first) is lightning_cli._take_version(second) is None
    assert [Path(log.log_dir).name for log in (first, second)] == ["version_0", "version_1"]
    assert lightning_cli._take_version(second) == tmp_path / "lightning_logs" / "version_1"


class Line(LightningModule):
    """One weight, trained on numbers."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(folder, epochs, checkpoint=None):
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[LastCheckpoints(2, dirpath=str(folder))],
        default_root_dir=folder,
    )
    trainer.fit(Line(), DataLoader(torch.arange(4.0)[:, None]), ckpt_path=checkpoint)
    return sorted(path.name for path in folder.glob("last-*.ckpt"))


def test_a_resumed_fit_leaves_two_states_also_after_kills(tmp_path):
    assert train(tmp_path, 2) == ["last-0000006.ckpt", "last-0000008.ckpt"]
    resumed = tmp_path / "last-0000008.ckpt"
    # A kill between saving a state and removing the one before the last leaves a third.
    (tmp_path / "last-0000004.ckpt").write_bytes(resumed.read_bytes())
    (tmp_path / "last-0000099.ckpt").write_bytes(b"of another fit")
    assert train(tmp_path, 4, resumed) == [
        "last-0000014.ckpt",
        "last-0000016.ckpt",
        "last-0000099.ckpt",
    ]


def test_states_of_another_folder_are_not_removed(tmp_path):
    train(tmp_path / "first", 1)
    resumed = tmp_path / "first" / "last-0000004.ckpt"
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "last-0000001.ckpt").write_bytes(resumed.read_bytes())
    assert "last-0000001.ckpt" in train(tmp_path / "second", 2, resumed)
    assert resumed.is_file()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"config": "seed_ever', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"[]", "not settings of cross-validate"),
        (b'{"config": ""}', "not settings of cross-validate"),
    ],
)
def test_damaged_settings_of_a_cross_validation_are_one_line(
    only_fit, phantom_folder, tmp_path, capsys, content, reason
):
    config = yaml.safe_load(PHANTOM.read_text())
    config["data"]["init_args"] |= {"root": str(phantom_folder), "num_cases": 5, "spacing_mm": 8.0}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    settings = tmp_path / "cv" / "c" / "settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_bytes(content)
    assert main(["cross-validate", str(tmp_path / "c.yaml"), "-o", str(tmp_path / "cv")]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"clipseg3d: {settings}: {reason}")
    assert line.endswith("remove it, or give another --output")
    assert settings.read_bytes() == content


def test_damaged_scores_are_one_error(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text(f"case,region,dice\n{'x' * 200_000},WT,1\n")
    with pytest.raises(ValueError, match=r"scores.csv: not a table of scores \(field larger"):
        ScoreTable.read(path)
