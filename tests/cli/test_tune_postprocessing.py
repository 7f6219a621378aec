"""Mirrors clipseg3d/cli/tune_postprocessing.py."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from clipseg3d.cli.main import main
from clipseg3d.inference.postprocessing import PostProcessing

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


def tune(root, out="rules.json"):
    paths = [str(root / "found"), str(root / "cases"), "-o", str(root / out)]
    return main(["tune-postprocessing", *paths, "--release", "phantom"])


def test_rules_are_learned_written_and_printed(folders, capsys):
    assert tune(folders) == 0
    rules = PostProcessing.read(folders / "rules.json")
    assert rules.spacing_mm == 8.0
    assert rules.small_components["WT"] == 2  # voxels of 0.512 ml: 1 ml, as one goes below it
    out = capsys.readouterr().out
    assert "Dice WT  0.9" in out
    assert "-> 1.0000" in out
    assert "Rules: small components WT < 2 voxels, from 2 cases" in out
    learned = json.loads((folders / "rules.json").read_text())["learned"]
    assert learned["cases"] == 2
    assert learned["dice_after"] == {"WT": 1.0, "TC": 1.0, "ET": 1.0}
    assert learned["dice_before"]["WT"] < 1


def test_bad_input_ends_in_one_message(folders, capsys):
    assert tune(folders, out="rules.txt") == 1
    assert "rules.txt: does not end in .json; rename it" in capsys.readouterr().err
    (folders / "found" / f"{NAMES[0]}.nii.gz").write_bytes(b"")
    assert tune(folders) == 1
    error = capsys.readouterr().err
    assert f"{NAMES[0]}.nii.gz: the file is empty; copy or download it again" in error
    assert "Traceback" not in error
    assert not (folders / "rules.json").exists()
