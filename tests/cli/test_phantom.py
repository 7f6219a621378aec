"""Mirrors clipseg3d/cli/phantom.py; the usual command is in test_main.py."""

import numpy as np

from clipseg3d.cli.main import main
from clipseg3d.data.nifti import read_voxels


def command(folder, *options):
    return main(["phantom", "-o", str(folder), "--spacing", "8", *options])


def test_writes_cavities_with_the_names_and_labels_of_a_release(tmp_path, capsys):
    options = ["--seed", "3", "--release", "brats2024_gli", "--cavity-share", "1"]
    assert command(tmp_path / "p", *options) == 0
    folder = tmp_path / "p" / "BraTS-GLI-00003-100"
    assert capsys.readouterr().out.strip() == str(folder)
    label = read_voxels(folder / "BraTS-GLI-00003-100-seg.nii.gz")
    assert (label == 4).any()
    assert "cavity" in (folder / "BraTS-GLI-00003-100_flair_text.txt").read_text()


def test_writes_tumours_that_do_not_enhance(tmp_path):
    assert command(tmp_path / "p", "--plain-share", "1") == 0
    label = read_voxels(tmp_path / "p/Phantom_00000/Phantom_00000_seg.nii.gz")
    assert set(np.unique(label)) == {0, 1, 2}


def test_names_what_does_not_fit_and_writes_nothing(tmp_path, capsys):
    for options, message in (
        (["--cavity-share", "1"], "phantom has no region RC"),
        (["--plain-share", "-1"], "plain_share=-1.0"),
        (["--release", "brats2030"], "unknown release"),
    ):
        assert command(tmp_path / "p", *options) == (2 if "--release" in options else 1)
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
