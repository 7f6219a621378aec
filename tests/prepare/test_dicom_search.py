"""Mirrors clipseg3d/prepare/series_search.py and image_header.py."""

import shutil
import zipfile

import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless

from clipseg3d.prepare import find_series
from clipseg3d.testing import write_dicom_series

SHAPE = (6, 7, 9)
AFFINE = np.array([[-1.0, 0, 0, 50], [0, -1.5, 0, 60], [0, 0, 3.0, -40], [0, 0, 0, 1]])
T1CE = {"SeriesDescription": "AX T1 POST GD", "EchoTime": 12, "RepetitionTime": 550}
FLAIR = {
    "SeriesDescription": "AX FLAIR",
    "EchoTime": 120,
    "RepetitionTime": 9000,
    "InversionTime": 2400,
    "ScanningSequence": ["SE", "IR"],
}


def write(folder, header=T1CE, *, shape=SHAPE, affine=AFFINE, study="study", **changes):
    voxels = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    return write_dicom_series(folder, voxels, affine, {**header, **changes}, study=study)


def edit(file, **changes):
    """Change elements of a file; None removes one."""
    dataset = pydicom.dcmread(file)
    for keyword, value in changes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(file)


def only(folder):
    (series,) = find_series(folder)
    return series


def test_series_are_found_by_content_at_any_depth_under_any_name(tmp_path):
    first = write(tmp_path / "DICOM" / "0" / "7", SeriesNumber=12)
    second = write(tmp_path / "DICOM", FLAIR, SeriesNumber=3)
    names = ("x.dcm", "IM 1", "2.16.840.1", ".hidden", "5.nii", "6", "7.IMA", "8.jpg", "9")
    for file, name in zip(first, names, strict=True):
        file.rename(file.with_name(name))
    (tmp_path / "README.txt").write_text("about the disk")
    (tmp_path / "empty.dcm").touch()
    (tmp_path / "broken link").symlink_to(tmp_path / "nowhere")
    flair, t1ce = find_series(tmp_path)
    assert (flair.number, flair.sequence) == ("3", "flair")
    assert (t1ce.number, t1ce.sequence) == ("12", "t1ce")
    assert [file.name for file in t1ce.files] == list(names)
    assert flair.files == tuple(second)
    assert t1ce.folder == tmp_path / "DICOM" / "0" / "7"
    assert (flair.echo_time_ms, flair.repetition_time_ms, flair.inversion_time_ms) == (
        120,
        9000,
        2400,
    )
    assert (t1ce.num_slices, t1ce.slice_thickness_mm, t1ce.inversion_time_ms) == (9, 3, None)
    assert (t1ce.fault, flair.fault) == ("", "")


def test_nothing_of_the_patient_is_in_a_series_or_its_note(tmp_path):
    private = {"PatientName": "Doe^Jane", "PatientID": "4711", "PatientBirthDate": "19700102"}
    write(tmp_path, StudyDate="20200304", **private)
    text = f"{only(tmp_path)!r} {only(tmp_path).note}"
    assert not any(word in text for word in ("Doe", "4711", "1970", "2020"))


def test_slices_are_in_order_whatever_files_are_called(tmp_path):
    files = write(tmp_path)
    for index, file in enumerate(files):
        file.rename(tmp_path / f"{(index * 5) % 9}x")
    heights = [pydicom.dcmread(f).ImagePositionPatient[2] for f in only(tmp_path).files]
    assert heights == sorted(heights)


def test_files_without_preamble_are_read(tmp_path):
    for file in write(tmp_path):
        content = file.read_bytes()
        dataset = pydicom.dcmread(file)
        body = content[content.index(b"\x08\x00\x08\x00CS") :]
        assert dataset.ImageType == ["ORIGINAL", "PRIMARY"]
        file.write_bytes(body)
    assert (only(tmp_path).num_slices, only(tmp_path).fault) == (9, "")


def test_copies_of_files_count_once(tmp_path):
    for file in write(tmp_path / "a"):
        shutil.copy(file, tmp_path / f"copy{file.name}")
    assert (only(tmp_path).num_slices, only(tmp_path).fault) == (9, "")


def test_two_echoes_of_one_series_are_parted(tmp_path):
    write(tmp_path / "a", SeriesDescription="AX PD/T2", EchoTime=15, RepetitionTime=3000)
    for index, file in enumerate(
        write(tmp_path / "b", SeriesDescription="AX PD/T2", EchoTime=95, RepetitionTime=3000)
    ):
        edit(file, SOPInstanceUID=f"1.2.{index}")
    density, t2 = find_series(tmp_path)
    assert (density.number, density.sequence, density.num_slices) == ("1.1", None, 9)
    assert (t2.number, t2.sequence, t2.num_slices) == ("1.2", "t2", 9)
    assert density.fault == t2.fault == ""


def test_magnitude_and_phase_of_one_series_are_parted(tmp_path):
    write(tmp_path / "a", ImageType=["ORIGINAL", "PRIMARY", "M"])
    for index, file in enumerate(write(tmp_path / "b", ImageType=["ORIGINAL", "PRIMARY", "P"])):
        edit(file, SOPInstanceUID=f"1.2.{index}")
    assert [series.sequence for series in find_series(tmp_path)] == ["t1ce", None]


def test_three_planes_of_a_localizer_are_none(tmp_path):
    for index, axes in enumerate(([0, 1, 2], [1, 2, 0], [2, 0, 1])):
        affine = AFFINE[:, [*axes, 3]]
        for number, file in enumerate(write(tmp_path / str(index), shape=(6, 6, 3), affine=affine)):
            edit(file, SOPInstanceUID=f"1.2.{index}.{number}")
    found = find_series(tmp_path)
    assert [series.number for series in found] == ["1.1", "1.2", "1.3"]
    assert {series.sequence for series in found} == {None}
    assert "3 slices" in found[0].reason


def test_a_dynamic_series_is_none(tmp_path):
    for time in range(3):
        for index, file in enumerate(write(tmp_path / str(time))):
            edit(file, SOPInstanceUID=f"1.2.{time}.{index}")
    series = only(tmp_path)
    assert series.sequence is None
    assert "several images of one place" in series.reason


def test_a_missing_slice_is_a_fault_that_says_so(tmp_path):
    write(tmp_path)[4].unlink()
    series = only(tmp_path)
    assert series.sequence == "t1ce"
    assert "8 slices are 3 mm apart, but 1 gaps are 6 mm" in series.fault
    assert "copy or export the whole series again" in series.fault


def test_gantry_tilt_is_a_fault(tmp_path):
    for index, file in enumerate(write(tmp_path)):
        x, y, z = pydicom.dcmread(file).ImagePositionPatient
        edit(file, ImagePositionPatient=[x, y + index, z])
    assert "shifted against one another by 8 mm" in only(tmp_path).fault


def test_uneven_slices_are_a_fault(tmp_path):
    files = write(tmp_path, shape=(6, 7, 21))
    for index, file in enumerate(files):
        x, y, _ = pydicom.dcmread(file).ImagePositionPatient
        edit(file, ImagePositionPatient=[x, y, 3 * index + 0.25 * max(0, index - 10)])
    assert "21 slices are not evenly apart, 1.25 mm at worst" in only(tmp_path).fault


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("contrast agents", {"ContrastBolusAgent": "Gadovist"}),
        ("echo times", {"EchoTime": 30}),
        ("pixel spacings", {"PixelSpacing": [1.2, 1.0]}),
        ("kinds", {"ImageType": ["ORIGINAL", "PRIMARY", "ND"]}),
    ],
)
def test_slices_of_two_volumes_between_each_other_are_a_fault(tmp_path, what, changes):
    for file in write(tmp_path)[::2]:
        edit(file, **changes)
    assert f"its slices are of different {what}" in only(tmp_path).fault


def test_files_without_an_identifier_are_slices(tmp_path):
    for file in write(tmp_path):
        edit(file, SOPInstanceUID="")
    assert only(tmp_path).num_slices == SHAPE[2]


def test_links_are_followed_but_not_in_circles(tmp_path):
    write(tmp_path / "there")
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "link").symlink_to(tmp_path / "there")
    (tmp_path / "there" / "up").symlink_to(tmp_path / "disk")
    assert only(tmp_path / "disk").num_slices == SHAPE[2]


def test_oblique_slices_are_no_fault(tmp_path):
    cos, sin = np.cos(0.4), np.sin(0.4)
    turned = np.array([[1, 0, 0, 0], [0, cos, -sin, 0], [0, sin, cos, 0], [0, 0, 0, 1]]) @ AFFINE
    write(tmp_path, affine=turned)
    assert only(tmp_path).fault == ""


def test_rounded_directions_are_no_fault(tmp_path):
    cos, sin = np.cos(0.4), np.sin(0.4)
    turned = np.array([[1, 0, 0, 0], [0, cos, -sin, 0], [0, sin, cos, 0], [0, 0, 0, 1]]) @ AFFINE
    turned[:, 2] *= 10  # far apart, so that the way is as long as that of many slices
    rounded = [1, 0, 0, 0, round(cos, 3), round(-sin, 3)]
    write(tmp_path, affine=turned, ImageOrientationPatient=rounded)
    assert only(tmp_path).fault == ""


@pytest.mark.parametrize(
    ("keyword", "message"),
    [
        ("PixelSpacing", "no pixel spacing"),
        ("ImagePositionPatient", "where it lies"),
        ("ImageOrientationPatient", "where it lies"),
    ],
)
def test_missing_geometry_is_a_fault_that_names_the_file(tmp_path, keyword, message):
    file = write(tmp_path, **{keyword: None})[0]
    series = only(tmp_path)
    assert message in series.fault
    assert f"{file}" in series.fault
    assert "again" in series.fault


def test_a_truncated_file_is_a_fault_that_names_it(tmp_path):
    file = write(tmp_path)[3]
    file.write_bytes(file.read_bytes()[:-10])
    assert f"{file} ends before its pixels do" in only(tmp_path).fault


def test_a_truncated_compressed_file_is_a_fault_that_names_it(tmp_path):
    files = write(tmp_path)
    for file in files:
        dataset = pydicom.dcmread(file)
        dataset.compress(RLELossless)
        dataset.save_as(file)
    assert only(tmp_path).fault == ""
    files[3].write_bytes(files[3].read_bytes()[:-20])
    assert f"{files[3]} ends before its pixels do" in only(tmp_path).fault


def test_a_file_that_cannot_be_opened_is_named(tmp_path, monkeypatch):
    file = write(tmp_path)[3]
    opened = type(file).open

    def refuse(path, *args):
        if path == file:
            raise PermissionError(13, "Permission denied")
        return opened(path, *args)

    monkeypatch.setattr(type(file), "open", refuse)
    with pytest.raises(ValueError, match=r"0004: cannot be opened \(Permission denied\); check"):
        find_series(tmp_path)


def test_a_file_cut_in_its_header_is_named(tmp_path):
    file = write(tmp_path)[3]
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"0004: not a readable DICOM file .*again"):
        find_series(tmp_path)


@pytest.mark.parametrize(
    ("study", "changes", "message"),
    [
        ("study", {"PatientID": "0815", "PatientName": "Roe^Rick"}, "2 patients"),
        ("other", {}, "2 studies"),
    ],
)
def test_mixed_patients_are_refused_without_names(tmp_path, study, changes, message):
    write(tmp_path / "a")
    write(tmp_path / "b", FLAIR, SeriesNumber=2, study=study, **changes)
    with pytest.raises(ValueError, match=f"holds MR images of {message}; put each") as error:
        find_series(tmp_path)
    assert "\n" not in str(error.value)
    assert not any(word in str(error.value) for word in ("simulated", "0815", "Roe"))


def test_other_modalities_and_reports_are_no_fault(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", Modality="CT", SeriesNumber=2, PatientID="other")
    for file in write(tmp_path / "c", Modality="SR", SeriesNumber=3):
        edit(file, Rows=None, PixelData=None)
    t1ce, ct = find_series(tmp_path)
    assert (t1ce.sequence, ct.sequence, ct.reason) == ("t1ce", None, "CT, not MR")
    assert "is no MR scan; give one of the MR series" in ct.fault  # also if told to be one


def test_a_file_is_refused(tmp_path):
    file = write(tmp_path)[0]
    with pytest.raises(ValueError, match="is one file; give the folder"):
        find_series(file)


def test_folders_without_dicom_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_series(tmp_path / "nowhere")
    with zipfile.ZipFile(tmp_path / "disk.zip", "w") as archive:
        archive.writestr("0001", "x")
    with pytest.raises(FileNotFoundError, match=r"holds no DICOM image; .* unpacked"):
        find_series(tmp_path)
