"""Mirrors clipseg3d/prepare/labels_back.py."""

import json

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from scipy.spatial.transform import Rotation

from clipseg3d.prepare.labels_back import carry_back
from clipseg3d.prepare.native_scan import NativeScan
from clipseg3d.prepare.record import describe_scan

GRID, AFFINE = (30, 36, 24), from_matvec(np.diag([-1.0, -1.0, 1.0]), (0, 35, 0))
TURN = from_matvec(Rotation.from_euler("z", 90, degrees=True).as_matrix(), (40, 5, -7))
"""From mm of the case to mm of the scan."""


@pytest.fixture
def folder(tmp_path):
    """A prepared case, as its record tells: a scan of 2 mm that lies on its side."""
    case = tmp_path / "case"
    case.mkdir()
    scan = {
        "shape": [20, 17, 14],
        "affine": from_matvec(np.diag([2.0, 2.0, 2.0]), (2, -32, -9)).tolist(),
        "case_to_scan_mm": TURN.tolist(),
        "sha256": "0",
        "qform": (0, None),
        "sform": (1, from_matvec(np.diag([2.0, 2.0, 2.0]), (2, -32, -9)).tolist()),
    }
    record = {
        "case": "case",
        "atlas": {"grid": GRID, "affine": AFFINE.tolist()},
        "sequences": {"t2": scan},
    }
    (case / "case_prepare.json").write_text(json.dumps(record))
    return case


def save(path, voxels, affine=AFFINE):
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def test_labels_arrive_where_the_scan_has_them(folder, tmp_path):
    label = np.zeros(GRID, np.uint8)
    label[6:18, 10:22, 8:16] = 2
    label[8:16, 12:20, 10:14] = 4
    (path,) = carry_back(save(tmp_path / "found.nii.gz", label), folder, tmp_path / "out")
    assert path == tmp_path / "out" / "found_t2.nii.gz"
    image = nib.load(path)
    back = np.asarray(image.dataobj)
    assert back.shape == (20, 17, 14)
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_allclose(image.affine, from_matvec(np.diag([2.0, 2, 2]), (2, -32, -9)))
    assert {*np.unique(back)} == {0, 2, 4}
    for values in ((2, 4), (4,)):
        there = apply_affine(TURN @ AFFINE, np.argwhere(np.isin(label, values))).mean(axis=0)
        here = apply_affine(image.affine, np.argwhere(np.isin(back, values))).mean(axis=0)
        np.testing.assert_allclose(here, there, atol=0.6)
        volume = np.isin(back, values).sum() * 8 / np.isin(label, values).sum()
        assert volume == pytest.approx(1, abs=0.15)


def test_a_label_that_fills_the_case_ends_with_it(folder, tmp_path):
    label = save(tmp_path / "full.nii.gz", np.ones(GRID, np.uint8))
    (path,) = carry_back(label, folder, tmp_path / "out")
    back = np.asarray(nib.load(path).dataobj)
    assert 0 < back.sum() < back.size


def test_probabilities_are_interpolated(folder, tmp_path):
    ramp = np.broadcast_to(np.linspace(0, 0.9, GRID[0], dtype=np.float32)[:, None, None], GRID)
    (path,) = carry_back(save(tmp_path / "p.nii.gz", ramp), folder, tmp_path / "out")
    image = nib.load(path)
    assert image.get_data_dtype() == np.float32
    index = np.argwhere(np.asarray(image.dataobj) > 0)
    voxels = apply_affine(np.linalg.inv(TURN @ AFFINE) @ image.affine, index)
    inner = ((voxels > 2) & (voxels < np.array(GRID) - 3)).all(axis=1)
    assert inner.sum() > 100
    np.testing.assert_allclose(
        np.asarray(image.dataobj)[tuple(index[inner].T)],
        voxels[inner, 0] / (GRID[0] - 1) * 0.9,
        atol=0.01,
    )


@pytest.mark.parametrize(
    "codes", [{}, {"qform": 1}, {"sform": 2}, {"qform": 1, "sform": 1}, {"qform": 2, "sform": 4}]
)
def test_labels_lie_on_the_scan_whichever_form_a_program_reads(folder, tmp_path, codes):
    scan = nib.Nifti1Image(np.random.default_rng(0).random((60, 70, 65), np.float32), None)
    scan.header.set_zooms((2.0, 2.5, 3.0))
    turned = from_matvec(Rotation.from_euler("x", 30, degrees=True).as_matrix(), (9, 5, -7))
    for number, (name, code) in enumerate(codes.items()):
        affine = from_matvec(np.eye(3), (number, 0, 0)) @ turned @ np.diag([2.0, 2.5, 3.0, 1.0])
        getattr(scan.header, f"set_{name}")(affine, code)
    nib.save(nib.Nifti1Image(scan.dataobj, None, scan.header), tmp_path / "scan.nii.gz")
    scan, given = NativeScan.read(tmp_path / "scan.nii.gz"), nib.load(tmp_path / "scan.nii.gz")
    file = folder / "case_prepare.json"
    record = json.loads(file.read_text())
    record["sequences"] = {"t1": {**record["sequences"]["t2"], **describe_scan(scan, TURN)}}
    file.write_text(json.dumps(record))
    label = save(tmp_path / "x.nii.gz", np.ones(GRID, np.uint8))
    (path,) = carry_back(label, folder, tmp_path / "out")
    back = nib.load(path)
    np.testing.assert_allclose(back.affine, given.affine, atol=1e-4)
    np.testing.assert_array_equal(back.header.get_zooms(), given.header.get_zooms())
    for name in ("get_qform", "get_sform"):
        forms = [getattr(image, name)(coded=True) for image in (back, given)]
        assert forms[0][1] == forms[1][1]
        if forms[1][0] is not None:
            np.testing.assert_allclose(forms[0][0], forms[1][0], atol=1e-4)


def test_nothing_of_a_header_is_copied(folder, tmp_path):
    image = nib.Nifti1Image(np.zeros(GRID, np.uint8), AFFINE)
    image.header["descrip"] = b"Jane Doe"
    image.header["db_name"] = b"Jane Doe"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    nib.save(image, tmp_path / "x.nii")
    (path,) = carry_back(tmp_path / "x.nii", folder, tmp_path / "out")
    back = nib.load(path)
    assert back.header["descrip"].item() == b""
    assert back.header["db_name"].item() == b""
    assert list(back.header.extensions) == []


def test_a_label_of_another_grid_is_refused(folder, tmp_path):
    label = save(tmp_path / "other.nii.gz", np.zeros((30, 36, 25), np.uint8))
    with pytest.raises(ValueError, match=r"30x36x25 voxels do not lie on the grid of case"):
        carry_back(label, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_folder_is_refused(tmp_path):
    label = save(tmp_path / "x.nii.gz", np.zeros(GRID, np.uint8))
    with pytest.raises(FileNotFoundError, match="clipseg3d prepare"):
        carry_back(label, tmp_path, tmp_path / "out")
    (tmp_path / "x_prepare.json").write_text("{}")
    with pytest.raises(ValueError, match=r"x_prepare\.json: was not written by"):
        carry_back(label, tmp_path, tmp_path / "out")
