"""Mirrors clipseg3d/training/dry_run.py, through the command line."""

import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer

import clipseg3d.training.dry_run
from clipseg3d.cli.main import main
from clipseg3d.phantom.datamodule import PhantomDataModule
from clipseg3d.phantom.write import write_phantoms
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.training.dry_run import dry_run
from clipseg3d.training.memory import predict_peak_memory
from clipseg3d.training.module import CLIPSeg3DModule

pytestmark = pytest.mark.filterwarnings("ignore")
PHANTOM = Path(__file__).parents[2] / "examples/configs/phantom_tiny.yaml"
SPACING_MM = 8.0
SMALL = NetworkConfig(
    channels=(4, 8), num_auxiliary=0, semantic_dim=16, num_heads=2, clip="tiny-random"
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("patients")
    write_phantoms(root, 5, spacing_mm=SPACING_MM)
    return root


@pytest.fixture
def patients(written, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(written, tmp_path / "p")


@pytest.fixture
def fit(tmp_path, monkeypatch, capsys):
    """Run ``clipseg3d fit --dry-run`` in a folder of its own; return code, output and errors."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(root, *options):
        code = main(
            [
                *("fit", "--dry-run", "--config", str(PHANTOM), "--data.root", str(root)),
                *("--data.cache_dir", str(tmp_path / "cache"), "--data.num_workers", "0"),
                *("--data.spacing_mm", str(SPACING_MM), "--data.num_cases", "5"),
                *("--data.patch_size", "[40, 36, 48]", "--trainer.accelerator", "cpu"),
                *options,
            ]
        )
        return code, *capsys.readouterr()

    return run


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everything_is_said_and_nothing_written(fit, patients, tmp_path):
    before = contents(tmp_path)
    code, out, _ = fit(patients)
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


def test_patients_that_are_not_there_yet_stay_away(fit, tmp_path):
    code, out, _ = fit(tmp_path / "nobody")
    assert code == 0
    assert "5 of 5 patients are still to be simulated" in out
    assert "4 to train on, 1 to validate on" in out
    assert not (tmp_path / "nobody").exists()


def test_faults_of_data_are_listed_and_fail(fit, patients):
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


def test_too_few_cases_for_the_folds(fit, patients):
    code, out, _ = fit(patients, "--data.num_folds", "6")
    assert code == 1
    assert "5 patients cannot fill num_folds=6 folds" in out
    assert "0 to train on" in out


def test_a_batch_larger_than_an_epoch(fit, patients):
    code, out, _ = fit(patients, "--data.batch_size", "5", "--data.crops_per_case", "1")
    assert code == 1
    assert "batch_size=5 is more than the 4 samples that an epoch has for each device" in out
    assert " 0 steps " in out


def test_a_step_that_does_not_fit_is_not_tried(fit, patients):
    code, out, _ = fit(patients, "--data.patch_size", "[4096, 4096, 4096]")
    assert code == 1
    assert "patch_size=(4096, 4096, 4096) with batch_size=1 needs" in out
    assert "take a smaller patch or batch" in out
    assert "a step" not in out


def test_other_errors_end_in_one_message(fit, patients):
    code, _, error = fit(patients, "--model.network", "huge")
    assert code == 1
    assert error.splitlines()[-1].startswith("clipseg3d: unknown preset 'huge'")


def test_a_disk_that_is_full(fit, patients, monkeypatch, tmp_path):
    monkeypatch.setattr(clipseg3d.training.dry_run, "_free", lambda folder: 1)
    code, out, _ = fit(patients)
    assert code == 1
    assert f"{tmp_path / 'cache'}: 0.00 GB to be written, 0.00 GB free; make room" in out


@pytest.fixture
def data(patients, tmp_path):
    return PhantomDataModule(
        str(patients),
        num_cases=5,
        spacing_mm=SPACING_MM,
        patch_size=(16, 24, 20),
        crops_per_case=3,
        batch_size=5,
        num_workers=0,
        cache_dir=str(tmp_path / "cache"),
    )


def quiet(folder, **options):
    return Trainer(accelerator="cpu", logger=False, default_root_dir=folder, **options)


def test_numbers_are_those_of_module_and_data(data, tmp_path):
    module = CLIPSeg3DModule(SMALL, release="phantom", spacing_mm=SPACING_MM)
    peak = predict_peak_memory(module.network, (16, 24, 20), batch_size=5, precision="bf16-mixed")
    trained = sum(w.numel() for w in module.network.parameters() if w.requires_grad)
    found = dry_run(module, data, quiet(tmp_path, precision="bf16-mixed", max_epochs=7))
    assert found.peak == peak
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


def test_cached_cases_need_no_disk(data, tmp_path):
    data.prepare_data()
    module = CLIPSeg3DModule(SMALL, release="phantom", spacing_mm=SPACING_MM)
    found = dry_run(module, data, quiet(tmp_path, max_steps=3, max_epochs=-1))
    assert list(found.disk) == [tmp_path]
    assert found.epochs is None


def test_two_steps_run_as_the_fit_would(data, tmp_path, monkeypatch):
    module = CLIPSeg3DModule(SMALL, release="phantom", spacing_mm=SPACING_MM)
    seen = []
    step = module.training_step

    def spy(batch, batch_idx):
        seen.append((tuple(batch["image"].shape), torch.is_autocast_enabled("cpu")))
        return step(batch, batch_idx)

    monkeypatch.setattr(module, "training_step", spy)
    dry_run(module, data, quiet(tmp_path, precision="bf16-mixed", max_epochs=1))
    assert seen == [((5, 4, 16, 24, 20), True)] * 2
