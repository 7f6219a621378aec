"""Mirrors clipseg3d/cli/tune_postprocessing.py."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from clipseg3d.cli.main import main
from clipseg3d.inference.postprocessing import PostProcessing
from clipseg3d.inference.predictor import Predictor
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.prediction_settings import PredictionSettings

NAMES = ("Phantom_00001", "Phantom_00002")


@pytest.fixture
def folders(phantom_folder, tmp_path):
    """Two patients, and their expert masks with stray voxels as predictions."""
    for name in NAMES:
        folder = shutil.copytree(phantom_folder / name, tmp_path / "cases" / name)
        mask = nib.load(folder / f"{name}_seg.nii.gz")
        label = np.asanyarray(mask.dataobj).copy()
        label[0, 0, 0] = label[-1, -1, -1] = 2
        (tmp_path / "found").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(label, None, mask.header), tmp_path / "found" / f"{name}.nii.gz")
    return tmp_path


def tune(root, *options, out="rules.json"):
    paths = [str(root / "found"), str(root / "cases")]
    output = ["-o", str(root / out)] if out else []
    return main(["tune-postprocessing", *paths, *output, "--release", "phantom", *options])


def test_rules_are_learned_written_and_printed(folders, capsys):
    assert tune(folders) == 0
    rules = PostProcessing.read(folders / "rules.json")
    # a voxel of 0.512 ml is less than a hundredth of the largest component
    assert rules.values() == {"relative_components": {"WT": 0.01}}
    out = capsys.readouterr().out
    assert "Dice WT  0.9" in out
    assert "-> 1.0000" in out
    assert "Rules: components of WT under 0.01 of its largest removed, from 2 cases" in out
    learned = json.loads((folders / "rules.json").read_text())["learned"]
    assert learned["cases"] == 2
    assert learned["dice_after"] == {"WT": 1.0, "TC": 1.0, "ET": 1.0}
    assert learned["dice_before"]["WT"] < 1


@pytest.fixture
def weights(tmp_path):
    network = build_clipseg3d(NetworkConfig(channels=(4, 8), num_auxiliary=0, semantics=False))
    network.settings = PredictionSettings("phantom", 8.0)
    network.save_pretrained(tmp_path / "weights")
    return tmp_path / "weights"


def test_rules_are_stored_with_weights(folders, weights, capsys):
    before = (weights / "model.safetensors").read_bytes()
    assert Predictor.from_pretrained(weights).postprocessing is None
    options = ["--write-to", str(weights), "--criterion", "lesion_dice"]
    assert tune(folders, *options, out=None) == 0
    printed = capsys.readouterr().out
    assert "Lesion-wise Dice WT  0.3333 -> 1.0000" in printed  # two voxels as large as the tumour
    assert printed.endswith(f"{weights / 'config.json'}\n")
    assert (weights / "model.safetensors").read_bytes() == before
    rules = PostProcessing(relative_components={"WT": 0.01})
    assert Predictor.from_pretrained(weights).postprocessing == rules
    assert not (folders / "rules.json").exists()


def test_segmentations_that_were_cleaned_up_teach_nothing(folders, capsys):
    (folders / "found" / "records").mkdir()
    for name, rules in zip(NAMES, (None, {"enhancing_to_core": 0.5}), strict=True):
        content = {"made_with": {"postprocessing": rules}, "files": {}}
        (folders / "found" / "records" / f"{name}.json").write_text(json.dumps(content))
    assert tune(folders) == 1
    error = capsys.readouterr().err
    assert f"{NAMES[1]}.nii.gz: segmented with rules of post-processing; segment it again" in error
    assert f"{NAMES[0]}.nii.gz" not in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nowhere to write the rules; give a file (--output), a folder of weights"),
        (("--write-to", "gone"), "gone: holds no config.json; give a folder written by"),
        (("--write-to", "tiny"), "tiny: holds no config.json; give a folder written by"),
    ],
)
def test_a_place_for_the_rules_is_looked_for_first(folders, capsys, options, message):
    shutil.rmtree(folders / "found")
    assert tune(folders, *options, out=None) == 1
    assert message in capsys.readouterr().err


def test_bad_input_ends_in_one_message(folders, capsys):
    assert tune(folders, out="rules.txt") == 1
    assert "rules.txt: does not end in .json; rename it" in capsys.readouterr().err
    (folders / "found" / f"{NAMES[0]}.nii.gz").write_bytes(b"")
    assert tune(folders) == 1
    error = capsys.readouterr().err
    assert f"{NAMES[0]}.nii.gz: the file is empty; copy or download it again" in error
    assert "Traceback" not in error
    assert not (folders / "rules.json").exists()
