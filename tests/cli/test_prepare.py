"""Mirrors clipseg3d/cli/prepare.py; what it does is tested in tests/prepare."""

import shutil
import sys

import nibabel as nib
import numpy as np
import pytest

from clipseg3d.cli.main import main
from clipseg3d.phantom import simulate_phantom
from clipseg3d.prepare import pipeline
from clipseg3d.testing import write_dicom_series


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


def test_dicom_goes_with_labels_that_go_back(tmp_path, capsys):
    code, error = run(capsys, tmp_path, "--dicom", tmp_path, "-o", tmp_path / "out")
    assert (code, error.count("\n")) == (1, 1)
    assert "--dicom goes with --back LABEL; give a folder of DICOM as IN instead" in error


def test_a_folder_without_scans_is_one_line(tmp_path, capsys):
    pytest.importorskip("pydicom")
    (tmp_path / "patient").mkdir()
    (tmp_path / "patient" / "notes.txt").write_text("none")
    code, error = run(capsys, tmp_path / "patient", "-o", tmp_path / "out")
    assert (code, error.count("\n")) == (1, 1)
    assert "patient: holds neither NIfTI files nor DICOM images; give the folder of one" in error


def test_an_unknown_release_is_found_out_before_anything_is_written(tmp_path, capsys):
    line = (tmp_path, "--back", tmp_path / "x.nii.gz", "--dicom", tmp_path)
    code, error = run(capsys, *line, "--release", "brats2O20", "-o", tmp_path / "out")
    assert (code, error.count("\n")) == (2, 1)
    assert "unknown release 'brats2O20'" in error
    assert not (tmp_path / "out").exists()


DESCRIPTIONS = {"t1": "Ax T1", "t1ce": "Ax T1 +C", "t2": "Ax T2", "flair": "Ax T2 FLAIR"}


@pytest.fixture(scope="module")
def phantom():
    return simulate_phantom(1, spacing_mm=3.0)


@pytest.fixture
def disk(tmp_path, phantom):
    pytest.importorskip("pydicom")
    for number, (volume, name) in enumerate(
        zip(phantom.image, DESCRIPTIONS.values(), strict=True), start=1
    ):
        volume = np.round(1000 * volume / volume.max()).astype(np.int16)
        header = {"SeriesNumber": number, "SeriesDescription": name}
        write_dicom_series(tmp_path / "disk" / str(number), volume, phantom.affine, header)
    return tmp_path / "disk"


def test_doubtful_series_are_asked_about(tmp_path, capsys, disk, phantom):
    again = np.round(phantom.image[1]).astype(np.int16)
    write_dicom_series(
        disk / "5", again, phantom.affine, {"SeriesNumber": 5, "SeriesDescription": "Ax T1 post"}
    )
    code, error = run(capsys, disk, "-o", tmp_path / "out")
    assert (code, error.count("\n")) == (1, 1)
    assert "'Ax T1 +C'" in error
    assert "'Ax T1 post'" in error
    assert "--t1ce" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_from_dicom_to_labels_and_back(tmp_path, capsys, disk, phantom, monkeypatch):
    """These brains have no skull. One preparation, which takes most of the time, serves all."""
    highdicom = pytest.importorskip("highdicom")
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("SimpleITK")
    prepare_case, asked = pipeline.prepare_case, []

    def prepare(files, **options):
        asked.append(options["name"])
        return prepare_case(files, **{**options, "brain_extraction": "none", "n4": False})

    monkeypatch.setattr(pipeline, "prepare_case", prepare)
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    line = ["--prepare", "--device", "cpu", "-o", str(out)]
    case = out / "prepared" / "disk"
    assert main(["segment", str(disk), str(tmp_path / "empty"), *line]) == 1
    written, error = capsys.readouterr()
    assert error.count("empty: holds neither NIfTI files nor DICOM images") == 1
    assert all(f"'{name}'" in error for name in DESCRIPTIONS.values())
    for sequence in DESCRIPTIONS:
        label = out / "native" / f"disk_{sequence}.nii.gz"
        assert str(label) in written
        assert nib.load(label).shape == phantom.label.shape
    found = np.asanyarray(nib.load(out / "native" / "disk_t1.nii.gz").dataobj) > 0
    true_ml, found_ml = ((part > 0).sum() * 0.027 for part in (phantom.label, found))
    assert found_ml == pytest.approx(true_ml, rel=0.4)
    (out / "native" / "disk_t2.nii.gz").unlink()  # as if it had been interrupted
    assert main(["segment", str(disk), *line]) == 0
    assert asked == ["disk"]
    written, error = capsys.readouterr()
    assert "report" not in error
    assert "Skipped 1 finished cases" in error
    assert str(out / "native" / "disk_t2.nii.gz") in written
    assert main(["segment", str(disk), *line]) == 0
    assert "native" not in capsys.readouterr().out
    (disk / "disk_flair_text.txt").write_text("A mass on the left.")
    assert main(["segment", str(disk), *line, "--overwrite"]) == 0
    assert "1 of 1 cases have a report beside the scan" in capsys.readouterr().err
    assert asked == ["disk"]
    (disk / "disk_flair_text.txt").unlink()
    (case / "disk_flair_text.txt").unlink()

    # another patient, on the same grid, in a folder of the same name
    other = tmp_path / "other" / "disk"
    shutil.copytree(disk, other)
    for file in sorted(path for path in other.rglob("*") if path.is_file()):
        dataset = pydicom.dcmread(file)
        pixels = dataset.pixel_array.copy()
        pixels[:9] = 7
        dataset.PixelData = pixels.tobytes()
        dataset.save_as(file)
    assert main(["segment", str(other), *line]) == 1
    error = capsys.readouterr().err
    assert "prepared/disk: was prepared from other scans; delete it, or choose another" in error

    scan = nib.load(case / "disk_flair.nii.gz")
    label = (np.asanyarray(scan.dataobj) > np.quantile(scan.get_fdata(), 0.99)).astype(np.uint8)
    nib.save(nib.Nifti1Image(4 * label, scan.affine), tmp_path / "seg.nii.gz")
    back = (case, "--back", tmp_path / "seg.nii.gz", "-o", tmp_path / "native", "--dicom")
    code, error = run(capsys, *back, other)
    assert (code, error.count("\n")) == (1, 1)
    assert "holds no series that the T1ce of disk was made of" in error
    assert not (tmp_path / "native").exists()
    code, _ = run(capsys, *back, disk)
    assert code == 0
    carried = np.asanyarray(nib.load(tmp_path / "native" / "seg_t1ce.nii.gz").dataobj)
    brightest = phantom.image[3] > np.quantile(phantom.image[3], 0.985)
    assert carried[flips(phantom, tmp_path)][brightest].mean() > 2.5  # of 4
    segments = highdicom.seg.segread(tmp_path / "native" / "seg_t1ce.dcm")
    assert len(segments.segment_numbers) == 3
    np.testing.assert_allclose(segments.pixel_array.sum(), 3 * (carried == 4).sum())


def flips(phantom, folder):
    """Return the slices that bring a converted volume into the order of the phantom."""
    affine = nib.load(folder / "native" / "seg_t1ce.nii.gz").affine
    signs = np.sign(np.diag(affine)[:3]) * np.sign(np.diag(phantom.affine)[:3])
    return tuple(slice(None, None, int(sign)) for sign in signs)
