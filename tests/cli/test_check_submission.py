"""Mirrors clipseg3d/cli/check_submission.py."""

import nibabel as nib
import numpy as np
import pytest

from clipseg3d.cli.main import main
from clipseg3d.phantom.write import write_phantom


@pytest.fixture(scope="module")
def folders(phantoms, tmp_path_factory):
    root = tmp_path_factory.mktemp("check")
    (root / "found").mkdir()
    for name in ("Brats18_2013_20_1", "Brats18_2013_23_1"):
        folder = write_phantom(phantoms[1], root / "cases", name)
        (folder / f"{name}_seg.nii.gz").replace(root / "found" / f"{name}.nii.gz")
    return root


def check(root, *options):
    return main(
        ["check-submission", str(root / "found"), "--reference", str(root / "cases"), *options]
    )


def test_a_good_submission(folders, capsys):
    assert check(folders, "--release", "brats2018") == 0
    assert capsys.readouterr().out == "2 cases of brats2018: 0 faults\n"


def test_all_faults_are_printed(folders, capsys):
    path = folders / "found" / "Brats18_2013_20_1.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.full(image.shape, 3, np.uint8), np.eye(4)), path)
    (folders / "found" / "Brats18_2013_23_1.nii.gz").unlink()
    assert check(folders, "--release", "brats2018") == 1
    *faults, total = capsys.readouterr().out.splitlines()
    assert total == f"2 cases of brats2018: {len(faults)} faults"
    shown = "\n".join(faults)
    for part in ("holds label 3", "spacing (1, 1, 1) mm", "origin", "23_1.nii.gz: missing"):
        assert part in shown


def test_the_release_is_detected_from_the_cases(folders, capsys):
    assert check(folders) == 1
    assert "cases of brats2018: " in capsys.readouterr().out
    assert check(folders, "--release", "brats1999") == 2
    assert "unknown release 'brats1999'" in capsys.readouterr().err
