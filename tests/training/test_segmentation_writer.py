"""Mirrors clipseg3d/training/segmentation_writer.py."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from clipseg3d.data.cases import segmentable_cases
from clipseg3d.inference.batch_prediction import segment_cases
from clipseg3d.inference.predictor import Predictor
from clipseg3d.training.segmentation_writer import SegmentationWriter

pytestmark = pytest.mark.filterwarnings("ignore")
SCRIPT = Path(__file__).with_name("predict_folder.py")


@pytest.fixture(scope="module")
def checkpoint(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit")
    _, trainer = small(folder, max_steps=2)
    trainer.save_checkpoint(folder / "two.ckpt")
    return folder / "two.ckpt"


@pytest.fixture
def unlabelled(phantom_folder, tmp_path):
    """The patients without expert masks."""
    masks = shutil.ignore_patterns("*seg*")
    return shutil.copytree(phantom_folder, tmp_path / "scans", ignore=masks)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_processes_share_the_cases_and_write_what_segment_writes(
    checkpoint, unlabelled, tmp_path, devices
):
    command = [sys.executable, str(SCRIPT), str(devices), str(checkpoint), str(unlabelled)]
    run = subprocess.run([*command, str(tmp_path / "one")], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    shares = [line.split() for line in run.stdout.splitlines() if line.startswith("Phantom")]
    assert len(shares) == devices
    assert sorted(name for share in shares for name in share) == [
        f"Phantom_{number:05d}" for number in range(6)
    ]
    predictor = Predictor.from_checkpoint(checkpoint)
    cases, *_ = segmentable_cases(unlabelled, predictor.release)
    finished = list(segment_cases(predictor, cases, tmp_path / "one"))
    assert {result.status for result in finished} == {"finished"}  # made with the same
    list(segment_cases(predictor, cases, tmp_path / "two"))
    for result in finished:
        one = nibabel.load(result.files[0])
        two = nibabel.load(tmp_path / "two" / result.files[0].name)
        np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(two.dataobj))
        assert one.header == two.header


def test_a_case_that_fails_does_not_stop_the_others(small, unlabelled, tmp_path):
    scan = next((unlabelled / "Phantom_00001").glob("*flair.nii*"))
    voxels = nibabel.load(scan)
    nibabel.save(nibabel.Nifti1Image(np.zeros(voxels.shape), voxels.affine), scan)
    writer = SegmentationWriter(str(tmp_path / "out"))
    trainer = small.trainer(tmp_path, max_epochs=1, callbacks=[writer], enable_checkpointing=False)
    data = small.data()
    data.root = unlabelled
    trainer.predict(small.module(sequence_dropout=0.0), data)
    status = {result.case.case_id: result.status for result in writer.results}
    assert status.pop("Phantom_00001") == "failed"
    assert set(status.values()) == {"written"}
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 5


def test_prompts_are_answered_too(small, unlabelled, tmp_path):
    writer = SegmentationWriter(str(tmp_path / "out"), prompts=["the rim"])
    trainer = small.trainer(tmp_path, max_epochs=1, callbacks=[writer], enable_checkpointing=False)
    data = small.data()
    data.root = unlabelled
    network = replace(small.network, prompt_head=True)
    trainer.predict(small.module(network=network, sequence_dropout=0.0), data)
    assert {result.status for result in writer.results} == {"written"}
    masks = sorted((tmp_path / "out" / "prompts").rglob("*.nii.gz"))
    assert [path.parent.name for path in masks] == [f"Phantom_{n:05d}" for n in range(6)]
    assert {path.name for path in masks} == {"the-rim.nii.gz"}
