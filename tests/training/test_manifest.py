"""Mirrors clipseg3d/training/manifest.py."""

import hashlib
import json

import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

import clipseg3d.data.brats
from clipseg3d.data.cases import find_cases
from clipseg3d.data.releases import PHANTOM
from clipseg3d.data.splits import Splits
from clipseg3d.training.manifest import RunManifest

pytestmark = pytest.mark.filterwarnings("ignore")


def test_every_checkpoint_says_what_was_run(small, tmp_path):
    small.data().prepare_data()
    splits = tmp_path / "folds.json"
    # the folder holds one patient more
    Splits.draw(find_cases(small.patients, PHANTOM, spacing_mm=8.0)[:5]).write(splits)
    folder = tmp_path / "fit"
    manifest = RunManifest()
    manifest.config = {"given": (1, 2)}
    module, _ = small(
        tmp_path,
        data=small.data(splits=str(splits)),
        callbacks=[manifest, ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)],
        max_epochs=2,
    )
    found = {path.stem: torch.load(path, weights_only=True) for path in folder.glob("*.ckpt")}
    assert set(found) == {"epoch=0", "epoch=1"}
    for name, checkpoint in found.items():
        beside = json.loads((folder / f"{name}.manifest.json").read_text())
        assert beside == checkpoint["manifest"]
    first, second = (found[name]["manifest"] for name in sorted(found))
    assert (first["epoch"], first["step"], second["step"]) == (0, 4, 8)
    assert 0 < first["seconds"] < second["seconds"]
    assert second["seed"] == 3
    assert second["config"] == {"given": [1, 2]}
    assert second["hyper_parameters"]["network"]["channels"] == [4, 8]
    assert second["versions"]["torch"] == torch.__version__
    assert second["versions"]["clipseg3d"] == clipseg3d.__version__
    assert second["encoders"] == module.network.encoder_identities()
    assert second["hardware"]["device"] == "cpu"
    assert second["hardware"]["devices"] == 1
    data = second["data"]
    assert data["release"] == "phantom"
    assert data["split"]["file"] == str(splits)
    assert data["split"]["file_sha256"] == hashlib.sha256(splits.read_bytes()).hexdigest()
    assert len(data["split"]["training"]) == 4
    assert len(data["split"]["validation"]) == 1
    assert set(data["cache_files"]) == {*data["split"]["training"], *data["split"]["validation"]}
    assert "git" in second
    assert "command" in second


class Checksums(Callback):
    """Counts the check sums that are computed of data, until training starts and until it ends."""

    def __init__(self, monkeypatch):
        self.count = 0
        compute = clipseg3d.data.brats.sha256_of_values
        monkeypatch.setattr(
            clipseg3d.data.brats, "sha256_of_values", lambda values: self.add() or compute(values)
        )

    def add(self):
        self.count += 1

    def on_train_start(self, trainer, pl_module):
        self.before = self.count


def test_saving_computes_no_check_sum_of_data(small, tmp_path, monkeypatch):
    checksums = Checksums(monkeypatch)
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    small(tmp_path, max_epochs=1, limit_val_batches=0, callbacks=[RunManifest(), checksums, saving])
    assert len(list(tmp_path.glob("*.ckpt"))) == 4
    assert checksums.before > 0
    assert checksums.count == checksums.before


def test_time_before_an_interruption_counts(small, tmp_path):
    manifest = RunManifest()
    manifest.load_state_dict({"seconds": 1000.0})
    small(tmp_path, max_epochs=1, callbacks=[manifest])
    assert 1000 < manifest.state_dict()["seconds"] < 1100


def test_check_sums_tell_other_data_and_splits_apart(small):
    def provenance(**options):
        data = small.data(**options)
        data.prepare_data()
        data.setup("fit")
        return data.provenance()

    whole, again, fold, reports = (
        provenance(**options) for options in ({}, {}, {"fold": 1}, {"shuffle_reports": True})
    )
    assert whole == again
    assert fold["split"]["sha256"] != whole["split"]["sha256"]
    assert reports["split"] == whole["split"]
    assert reports["sha256"] != whole["sha256"]
