"""Mirrors clipseg3d/cli/prepare.py; what it does is tested in tests/prepare."""

import sys

import nibabel as nib
import numpy as np

from clipseg3d.cli.main import main


def run(capsys, *argv):
    code = main(["prepare", *map(str, argv)])
    return code, capsys.readouterr().err


def test_nothing_given_is_one_line(tmp_path, capsys):
    code, error = run(capsys, "-o", tmp_path / "out")
    assert code == 1
    assert error.count("\n") == 1
    assert "give the folder of one patient, or its files as --t1 FILE" in error


def test_a_case_that_exists_is_found_out_first(tmp_path, capsys):
    (tmp_path / "patient").mkdir()
    (tmp_path / "patient" / "t1ce.nii.gz").touch()  # not even read
    (tmp_path / "out" / "patient").mkdir(parents=True)
    code, error = run(capsys, tmp_path / "patient", "-o", tmp_path / "out")
    assert (code, error.count("\n")) == (1, 1)
    assert "patient exists; delete it, or choose another name (--name)" in error


def test_faults_leave_nothing_behind(tmp_path, capsys):
    path = tmp_path / "t1ce.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((9, 9, 9), np.int16), np.eye(4)), path)
    code, error = run(capsys, "--t1ce", path, "-o", tmp_path / "out")
    assert (code, error.count("\n")) == (1, 1)
    assert "which no scan of a whole brain is" in error
    assert not (tmp_path / "out").exists()


def test_without_the_extra_it_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepbet", None)
    from clipseg3d.prepare import brain_extraction

    brain_extraction._deepbet.cache_clear()
    path = tmp_path / "t1ce.nii.gz"
    voxels = np.random.default_rng(0).integers(1, 9, (60, 60, 60)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([3.0, 3.0, 3.0, 1.0])), path)
    code, error = run(capsys, "--t1ce", path, "-o", tmp_path / "out")
    assert (code, error.count("\n")) == (1, 1)
    assert 'brain extraction needs deepbet: pip install "clipseg3d[prepare]"' in error


def test_back_needs_the_case(tmp_path, capsys):
    code, error = run(capsys, "--back", tmp_path / "x.nii.gz", "-o", tmp_path / "out")
    assert (code, error.count("\n")) == (1, 1)
    assert "with --back, the case that prepare wrote" in error
