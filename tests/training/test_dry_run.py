"""Mirrors clipseg3d/training/dry_run.py, and what the command line prints of it."""

import json
import re
import shutil
from dataclasses import asdict

import nibabel as nib
import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer

import clipseg3d.training.dry_run
from clipseg3d.cli.main import main
from clipseg3d.configs import config_path
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.phantom.datamodule import PhantomDataModule
from clipseg3d.training.dry_run import dry_run
from clipseg3d.training.memory import PeakMemory
from clipseg3d.training.module import CLIPSeg3DModule

pytestmark = pytest.mark.filterwarnings("ignore")
PHANTOM = config_path("phantom_tiny")
SPACING_MM = 8.0
SMALL = NetworkConfig(
    channels=(4, 8), num_auxiliary=0, semantic_dim=16, num_heads=2, clip="tiny-random"
)


@pytest.fixture
def patients(phantom_folder, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(phantom_folder, tmp_path / "p")


@pytest.fixture
def peak(monkeypatch):
    """Replace the prediction of memory, which takes seconds; return it, and calls of it."""
    predicted, calls = PeakMemory(10**9, 10**9, 10**9), []
    monkeypatch.setattr(
        clipseg3d.training.dry_run,
        "predict_peak_memory",
        lambda *args, **options: calls.append((*args, options)) or predicted,
    )
    return predicted, calls


@pytest.fixture
def quick(peak, monkeypatch):
    """Neither predict memory nor try steps."""
    monkeypatch.setattr(clipseg3d.training.dry_run, "_measure", lambda *_: 0.5)


@pytest.fixture
def fit(tmp_path, monkeypatch, capsys):
    """Run ``clipseg3d fit --dry-run`` in a folder of its own; return code, output and errors."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(root, *options):
        code = main(
            [
                *("fit", "--dry-run", "--config", str(PHANTOM), "--data.root", str(root)),
                *("--model.network", json.dumps(asdict(SMALL))),
                *("--data.cache_dir", str(tmp_path / "cache"), "--data.num_workers", "0"),
                *("--data.spacing_mm", str(SPACING_MM), "--data.num_cases", "5"),
                *("--data.patch_size", "[20, 16, 24]", "--trainer.accelerator", "cpu"),
                *options,
            ]
        )
        return code, *capsys.readouterr()

    return run


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everything_is_printed_and_nothing_written(fit, patients, tmp_path):
    before = contents(tmp_path)
    code, out, _ = fit(patients, "--model.ablation", "unet3d")
    assert code == 0
    assert contents(tmp_path) == before
    assert not (tmp_path / "cache").exists()
    assert "4 to train on, 1 to validate on" in out
    number = r"\d+\.\d+"
    assert re.search(rf"weights +{number} M trained, {number} M frozen", out)
    assert re.search(rf"peak memory +{number} GB predicted .* on cpu", out)
    # four cases of four crops, ten epochs
    assert re.search(rf"time +{number} s a step, 16 steps and .* an epoch, 10 epochs", out)
    assert f"{tmp_path / 'cache'}: " in out
    assert "fault" not in out


def test_faults_of_data_are_listed_and_fail(fit, patients, quick):
    broken = patients / "Phantom_00001" / "Phantom_00001_flair.nii.gz"
    image = nib.load(broken)
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), image.affine), broken)
    gone = patients / "Phantom_00003" / "Phantom_00003_t1.nii.gz"
    gone.unlink()
    code, out, error = fit(patients)
    assert code == 1
    assert str(broken) in out
    assert "Phantom_00003_t1" in out
    assert error.splitlines()[-1].startswith("clipseg3d: this fit would fail: ")
    assert "Traceback" not in error


def test_other_errors_end_in_one_message(fit, patients):
    code, _, error = fit(patients, "--model.network", "huge")
    assert code == 2
    assert error.splitlines()[-1].startswith("clipseg3d: unknown preset 'huge'")


@pytest.fixture
def module():
    return CLIPSeg3DModule(SMALL, release="phantom", spacing_mm=SPACING_MM)


@pytest.fixture
def data(phantom_folder, tmp_path):
    """Return a data module of five patients."""

    def make(root=phantom_folder, **options):
        defaults = {
            "num_cases": 5,
            "spacing_mm": SPACING_MM,
            "patch_size": (16, 24, 20),
            "crops_per_case": 3,
            "batch_size": 5,
            "num_workers": 0,
            "cache_dir": str(tmp_path / "cache"),
        }
        return PhantomDataModule(str(root), **{**defaults, **options})

    return make


@pytest.fixture
def trainer(tmp_path):
    def make(**options):
        return Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path, **options)

    return make


def test_numbers_are_those_of_module_and_data(module, data, trainer, tmp_path, peak):
    predicted, calls = peak
    trained = sum(w.numel() for w in module.network.parameters() if w.requires_grad)
    found = dry_run(module, data(), trainer(precision="bf16-mixed", max_epochs=7))
    options = {"batch_size": 5, "precision": "bf16-mixed"}
    assert calls == [(module.network, (16, 24, 20), options)]
    assert found.peak == predicted
    assert found.trained == trained
    assert found.frozen == sum(w.numel() for w in module.network.parameters()) - trained
    assert (found.training, found.validation) == (4, 1)
    assert found.steps_per_epoch == 12 // 5
    assert found.epochs == 7
    assert found.step_seconds > 0
    # five cases of 20 MB at 1 mm; two checkpoints of weights and two moments
    assert found.disk[tmp_path / "cache"][0] == pytest.approx(5 * 20e6 / 8**3, rel=0.01)
    assert found.disk[tmp_path][0] == 2 * 3 * 4 * trained
    assert found.faults == ()


def notes_of(found, word):
    return [note for note in found.notes if word in note]


@pytest.mark.parametrize(
    ("options", "steps", "batch"),
    [
        ({"max_epochs": 7}, 14, 5),  # two steps an epoch
        ({"max_epochs": 7, "max_steps": 3}, 3, 5),
        ({"max_epochs": -1, "max_steps": 9}, 9, 5),
        ({"max_epochs": 7, "accumulate_grad_batches": 2}, 7, 10),
        ({"max_epochs": 7, "limit_train_batches": 1}, 7, 5),
        ({"max_epochs": 7, "limit_train_batches": 0.5}, 7, 5),
        ({"max_epochs": -1}, None, 5),
    ],
)
def test_steps_and_samples_are_those_of_the_fit(
    module, data, trainer, quick, options, steps, batch
):
    found = dry_run(module, data(), trainer(**options))
    assert (found.optimizer_steps, found.global_batch, found.lr) == (steps, batch, 3e-4)
    if steps:
        line = (
            f"{steps} optimiser steps, each of a global batch of {batch}: {steps * batch} samples"
        )
        assert f"{line}, peak learning rate 0.0003" in str(found)
    else:
        assert "optimiser steps" not in str(found)


def test_too_few_steps_are_noted(module, data, trainer, quick):
    found = dry_run(module, data(), trainer(max_epochs=12_499))
    (note,) = notes_of(found, "steps are few")
    assert "24,998 optimiser steps are few" in note
    assert note.endswith("give 12500 epochs")
    assert not notes_of(dry_run(module, data(), trainer(max_epochs=12_500)), "steps are few")


@pytest.mark.parametrize(
    ("plan", "lr", "batch", "due"),
    [
        (None, None, 4, "0.0006"),
        (None, 6e-4, 4, None),
        (None, 3e-4, 1, None),
        (None, 6e-4, 1, "0.0003"),
        ("paper_body", None, 4, "0.0002"),
        ("tiny", 3e-3, 1, None),
        ({"lr": 0.5, "warmup": 0.5}, None, 4, None),  # no plan of ours
    ],
)
def test_a_rate_that_is_not_scaled_to_the_batch_is_noted(
    data, trainer, quick, plan, lr, batch, due
):
    module = CLIPSeg3DModule(SMALL, release="phantom", spacing_mm=SPACING_MM, plan=plan, lr=lr)
    found = dry_run(module, data(batch_size=batch), trainer(max_epochs=9))
    notes = notes_of(found, "square root")
    assert [note.rpartition(" is ")[2] for note in notes] == ([due] if due else [])


def test_the_rate_of_another_optimiser_is_not_known(module, data, trainer, quick):
    module.replaced["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 1.0}}
    found = dry_run(module, data(), trainer(max_epochs=9))
    assert found.lr is None
    assert "learning rate" not in str(found)


def test_windows_of_another_size_than_the_crops_are_noted(module, data, trainer, quick):
    found = dry_run(module, data(), trainer(max_epochs=9))
    (note,) = notes_of(found, "windows")
    assert "crops of training have the size (16, 24, 20), and windows of validation (128, " in note
    same = data(patch_size=(128, 128, 128))
    assert not notes_of(dry_run(module, same, trainer(max_epochs=9)), "windows")


@pytest.mark.parametrize(
    ("epochs", "ablation", "said"), [(8, None, 1), (11, None, 0), (8, "unet3d", 0)]
)
def test_a_fit_that_is_shorter_than_the_ramp(data, trainer, quick, epochs, ablation, said):
    module = CLIPSeg3DModule(SMALL, release="phantom", spacing_mm=SPACING_MM, ablation=ablation)
    found = dry_run(module, data(), trainer(max_epochs=epochs))
    assert len(notes_of(found, "views and text are never switched on")) == said


def test_the_two_steps_do_not_warn_of_their_own_length(module, data, trainer, peak, recwarn):
    dry_run(module, data(), trainer(max_epochs=20))
    assert not [one for one in recwarn if "semantics rise" in str(one.message)]


def test_patients_that_do_not_exist_yet_are_not_written(module, data, trainer, tmp_path, quick):
    found = dry_run(module, data(tmp_path / "nobody"), trainer(max_epochs=1))
    assert "5 of 5 patients are still to be simulated" in str(found)
    assert "4 to train on, 1 to validate on" in str(found)
    assert found.faults == ()
    assert not (tmp_path / "nobody").exists()


def test_too_few_cases_for_the_folds(module, data, trainer, quick):
    found = dry_run(module, data(num_folds=6), trainer(max_epochs=1))
    (fault,) = found.faults
    assert fault.startswith("5 patients cannot fill num_folds=6 folds")
    assert "0 to train on" in str(found)


def test_a_batch_larger_than_an_epoch(module, data, trainer, quick):
    found = dry_run(module, data(crops_per_case=1), trainer(max_epochs=1))
    (fault,) = found.faults
    assert "batch_size=5 is more than the 4 samples that an epoch has for each device" in fault
    assert " 0 steps " in str(found)


def test_a_step_that_does_not_fit_is_not_tried(module, data, trainer, peak, monkeypatch):
    capacity = peak[0].total
    monkeypatch.setattr(clipseg3d.training.dry_run, "_capacity", lambda device: capacity)
    monkeypatch.setattr(module, "training_step", None)
    found = dry_run(module, data(), trainer(max_epochs=1))
    (fault,) = found.faults
    assert "patch_size=(16, 24, 20) with batch_size=5 needs 3.0 GB, and cpu has 3.0" in fault
    assert "take a smaller patch or batch" in fault
    assert found.step_seconds is None
    assert "a step" not in str(found)


def test_a_precision_without_prediction_is_noted(module, data, trainer, quick):
    found = dry_run(module, data(), trainer(precision="64-true", max_epochs=1))
    assert found.peak is None
    assert "memory cannot be predicted for precision 64-true" in found.notes
    assert found.step_seconds == 0.5


def test_a_disk_that_is_full(module, data, trainer, quick, monkeypatch, tmp_path):
    monkeypatch.setattr(clipseg3d.training.dry_run, "_free", lambda folder: 1)
    found = dry_run(module, data(), trainer(max_epochs=1))
    fault = f"{tmp_path / 'cache'}: 0.00 GB to be written, 0.00 GB free; make room"
    assert any(fault in one for one in found.faults)


def test_cached_cases_need_no_disk(module, data, trainer, quick, tmp_path):
    cached = data()
    cached.prepare_data()
    found = dry_run(module, cached, trainer(max_steps=3, max_epochs=-1))
    assert list(found.disk) == [tmp_path]
    assert found.epochs is None


def test_two_steps_run_as_the_fit_would(module, data, trainer, peak, monkeypatch):
    seen = []
    step = module.training_step

    def spy(batch, batch_idx):
        seen.append((tuple(batch["image"].shape), torch.is_autocast_enabled("cpu")))
        return step(batch, batch_idx)

    monkeypatch.setattr(module, "training_step", spy)
    dry_run(module, data(), trainer(precision="bf16-mixed", max_epochs=1))
    assert seen == [((5, 4, 16, 24, 20), True)] * 2
