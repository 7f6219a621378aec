"""Mirrors clipseg3d/prepare/conversion.py. Sizes differ pairwise, so a swapped axis fails."""

import sys
from dataclasses import replace
from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEGLSLossless, RLELossless

from clipseg3d.prepare import choose_sequences, convert_series, find_series
from clipseg3d.testing import write_dicom_series
from clipseg3d.vocabulary import SEQUENCES

SHAPE = (6, 7, 9)
T1CE = {"SeriesDescription": "AX T1 POST GD", "EchoTime": 12, "RepetitionTime": 550}
PRIVATE = {
    "PatientName": "Doe^Jane",
    "PatientID": "4711",
    "PatientBirthDate": "19700102",
    "StudyDate": "20200304",
    "AcquisitionTime": "112233",
    "InstitutionName": "Clinic",
}


def oblique(order=(0, 1, 2), signs=(-1, 1, -1)):
    """Affine of voxels of three sizes, turned about two axes, with swapped and flipped axes."""
    a, b = 0.2, -0.3
    turn_x = [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]
    turn_z = [[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]]
    affine = np.eye(4)
    axes = np.array(turn_x) @ np.array(turn_z) @ np.diag(signs) @ np.eye(3)[:, list(order)]
    affine[:3, :3] = axes @ np.diag([0.9, 1.2, 3.0])
    affine[:3, 3] = 11, -17, 23
    return affine


def voxels(shape=SHAPE):
    return np.random.default_rng(0).integers(-300, 3000, shape).astype(np.int16)


def convert(folder, out):
    (series,) = find_series(folder)
    return convert_series(series, out)


def assert_same_in_space(image, volume, affine):
    """Each voxel of a volume is in the image, with its value, at its place in mm."""
    index = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), -1)
    there = np.linalg.inv(image.affine) @ affine
    place = nib.affines.apply_affine(there, index)
    np.testing.assert_allclose(place, np.rint(place), atol=1e-3)
    found = image.get_fdata()[tuple(np.moveaxis(np.rint(place).astype(int), -1, 0))]
    assert image.shape == volume.shape
    np.testing.assert_allclose(found, volume, atol=1e-4)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 1, 0)])
def test_voxels_keep_values_and_places(tmp_path, order):
    write_dicom_series(tmp_path / "in", voxels(), oblique(order), T1CE)
    path = convert(tmp_path / "in", tmp_path / "out")
    assert path == tmp_path / "out" / "t1ce.nii.gz"
    assert_same_in_space(nib.load(path), voxels(), oblique(order))
    assert list(path.parent.iterdir()) == [path]


def test_slices_of_either_direction_keep_their_places(tmp_path):
    for signs in ((1, 1, 1), (-1, -1, 1)):
        folder = tmp_path / str(signs)
        write_dicom_series(folder, voxels(), oblique(signs=signs), T1CE)
        path = convert(folder, tmp_path / "out")
        assert_same_in_space(nib.load(path), voxels(), oblique(signs=signs))


def test_rescaled_values_are_those_of_dicom(tmp_path):
    header = {**T1CE, "RescaleSlope": 2.5, "RescaleIntercept": -3}
    write_dicom_series(tmp_path / "in", voxels(), oblique(), header)
    image = nib.load(convert(tmp_path / "in", tmp_path / "out"))
    assert_same_in_space(image, voxels() * 2.5 - 3, oblique())
    assert image.get_data_dtype() == np.int16


def test_no_text_of_the_header_is_in_the_file(tmp_path):
    folder = tmp_path / "Doe_Jane"
    write_dicom_series(folder, voxels(), oblique(), {**T1CE, **PRIVATE, "SeriesNumber": 5})
    (series,) = find_series(folder)
    for named in (series, replace(series, sequence=None)):
        path = convert_series(named, tmp_path / "out")
        header = nib.load(path).header
        assert {
            header[key].item() for key in ("descrip", "aux_file", "intent_name", "db_name")
        } == {b""}
        assert len(header.extensions) == 0
        content = nib.load(path).to_bytes()
        words = [value.encode() for value in (*PRIVATE.values(), "Doe", "POST GD")]
        assert not any(word in content for word in words)
    assert path.name == "series_5.nii.gz"


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_series_are_converted(tmp_path, syntax):
    volume = abs(voxels())
    for file in write_dicom_series(tmp_path / "in", volume, oblique(), T1CE):
        dataset = pydicom.dcmread(file)
        dataset.PixelRepresentation = 0
        dataset.compress(syntax)
        dataset.save_as(file)
    assert_same_in_space(nib.load(convert(tmp_path / "in", tmp_path / "out")), volume, oblique())


def test_what_dcm2niix_cannot_decompress_is_named_with_a_cure(tmp_path):
    for file in write_dicom_series(tmp_path / "in", voxels(), oblique(), T1CE):
        dataset = pydicom.dcmread(file)
        dataset.compress(RLELossless)
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"  # HTJ2K
        dataset.save_as(file)
    (tmp_path / "out").mkdir()
    with pytest.raises(
        ValueError, match=r"compressed as High-Throughput .*; decompress it"
    ) as error:
        convert(tmp_path / "in", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_enhanced_mr_is_found_and_converted(tmp_path):
    header = {**T1CE, "StudyDate": "20200304", "SeriesDate": "20200304"}
    files = write_dicom_series(tmp_path / "in", voxels(), oblique(), header)
    enhanced = highdicom.legacy.LegacyConvertedEnhancedMRImage(
        [pydicom.dcmread(file) for file in files], highdicom.UID(), 7, highdicom.UID(), 1
    )
    (tmp_path / "enhanced").mkdir()
    enhanced.save_as(tmp_path / "enhanced" / "IM1")
    (series,) = find_series(tmp_path / "enhanced")
    assert (series.sequence, series.num_slices) == ("t1ce", 9)
    assert (series.echo_time_ms, series.repetition_time_ms, series.fault) == (12, 550, "")
    path = convert_series(series, tmp_path / "out")
    assert_same_in_space(nib.load(path), voxels(), oblique())


def test_slices_of_enhanced_mr_that_are_scaled_in_different_ways_are_a_fault(tmp_path):
    files = write_dicom_series(tmp_path / "in", voxels(), oblique(), T1CE)
    for number, file in enumerate(files, start=1):
        dataset = pydicom.dcmread(file)
        dataset.RescaleSlope, dataset.RescaleIntercept = number, 0
        dataset.save_as(file)
    enhanced = highdicom.legacy.LegacyConvertedEnhancedMRImage(
        [pydicom.dcmread(file) for file in files], highdicom.UID(), 7, highdicom.UID(), 1
    )
    (tmp_path / "enhanced").mkdir()
    enhanced.save_as(tmp_path / "enhanced" / "IM1")
    (series,) = find_series(tmp_path / "enhanced")
    assert "its slices are scaled to values in different ways" in series.fault
    with pytest.raises(ValueError, match="export it as classic MR images"):
        convert_series(series, tmp_path / "out")


def test_only_the_files_of_the_series_are_converted(tmp_path):
    write_dicom_series(tmp_path, voxels(), oblique(), {**T1CE, "SeriesNumber": 2})
    other = {"SeriesDescription": "AX T2", "EchoTime": 95, "RepetitionTime": 4000}
    for file in write_dicom_series(
        tmp_path / "b", voxels()[:5], oblique(), {**other, "SeriesNumber": 3}
    ):
        file.rename(tmp_path / f"b{file.name}")
    t1ce, t2 = find_series(tmp_path)
    assert nib.load(convert_series(t1ce, tmp_path / "out")).shape == SHAPE
    assert nib.load(convert_series(t2, tmp_path / "out")).shape == (5, 7, 9)


def test_a_series_with_a_fault_is_refused_and_an_older_file_kept(tmp_path):
    write_dicom_series(tmp_path / "in", voxels(), oblique(), T1CE)[4].unlink()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "t1ce.nii.gz").write_text("older")
    with pytest.raises(ValueError, match="slices are missing; copy or export the whole"):
        convert(tmp_path / "in", tmp_path / "out")
    assert [file.read_text() for file in (tmp_path / "out").iterdir()] == ["older"]


def test_a_series_of_which_dcm2niix_makes_other_volumes_is_refused(tmp_path):
    write_dicom_series(tmp_path / "in", voxels(), oblique(), T1CE)
    (series,) = find_series(tmp_path / "in")
    with pytest.raises(ValueError, match="made 1 volumes of it, and none with its 10 slices"):
        convert_series(replace(series, num_slices=10), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_the_libraries_the_extra_is_named(tmp_path, monkeypatch):
    write_dicom_series(tmp_path / "in", voxels(), oblique(), T1CE)
    (series,) = find_series(tmp_path / "in")
    monkeypatch.setitem(sys.modules, "dcm2niix", None)
    with pytest.raises(ImportError, match=r'needs dcm2niix: pip install "clipseg3d\[prepare\]"'):
        convert_series(series, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImportError, match=r'needs pydicom: pip install "clipseg3d\[prepare\]"'):
        find_series(tmp_path / "in")


def test_a_phantom_comes_back_as_it_was(tmp_path, phantoms):
    phantom = phantoms[0]
    headers = {
        "t1": {"SeriesDescription": "Ax T1", "EchoTime": 12, "RepetitionTime": 550},
        "t1ce": {"SeriesDescription": "Ax T1 +C", "EchoTime": 12, "RepetitionTime": 550},
        "t2": {"SeriesDescription": "Ax T2", "EchoTime": 95, "RepetitionTime": 4800},
        "flair": {"SeriesDescription": "Ax FLAIR", "EchoTime": 120, "InversionTime": 2400},
    }
    volumes = dict(zip(SEQUENCES, np.rint(phantom.image).astype(np.int16), strict=True))
    for number, (name, volume) in enumerate(volumes.items(), start=1):
        header = {**headers[name], "SeriesNumber": number}
        write_dicom_series(tmp_path / "dicom" / str(number), volume, phantom.affine, header)
    chosen = choose_sequences(find_series(tmp_path / "dicom"))
    assert list(chosen) == list(SEQUENCES)
    for name, series in chosen.items():
        path = convert_series(series, tmp_path / "nifti")
        assert path == Path(tmp_path / "nifti" / f"{name}.nii.gz")
        assert_same_in_space(nib.load(path), volumes[name], phantom.affine)
