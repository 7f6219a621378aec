"""Mirrors clipseg3d/prepare/dicom_seg.py. The label is asymmetric, so a flip or a swap fails."""

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest

from clipseg3d.data import get_release
from clipseg3d.prepare import convert_series, find_series, write_dicom_seg
from clipseg3d.testing import write_dicom_series

SHAPE = (6, 7, 9)
T1CE = {
    "SeriesDescription": "AX T1 POST GD",
    "EchoTime": 12,
    "RepetitionTime": 550,
    "SeriesNumber": 4,
}
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
RELEASE = "brats2020"


def oblique(signs=(-1, 1, -1)):
    a = 0.25
    affine = np.eye(4)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    affine[:3, :3] = turn @ np.diag(signs) @ np.diag([0.9, 1.2, 3.0])
    affine[:3, 3] = 11, -17, 23
    return affine


def make_label():
    label = np.zeros(SHAPE, np.uint8)
    label[1:4, 2:6, 1:5] = 2
    label[1:3, 3:5, 1:3] = 1
    label[1, 3, 2] = 4
    return label


def make(tmp_path, *, affine=None, **changes):
    affine = oblique() if affine is None else affine
    voxels = np.random.default_rng(0).integers(0, 3000, SHAPE).astype(np.int16)
    write_dicom_series(tmp_path / "dicom", voxels, affine, {**T1CE, **changes})
    (series,) = find_series(tmp_path / "dicom")
    return series


def save(path, label, affine):
    nib.save(nib.Nifti1Image(label, affine), path)
    return path


def places(mask, affine):
    """The voxels of a mask as places in mm, sorted."""
    points = nib.affines.apply_affine(affine, np.argwhere(mask))
    return np.array(sorted(points.round(2).tolist()))


def read_places(path, number):
    """The voxels of a segment as places in mm, RAS, from the position of each frame."""
    segmentation = highdicom.seg.segread(path)
    found = []
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    row, column = np.array(
        shared.PlaneOrientationSequence[0].ImageOrientationPatient, float
    ).reshape(2, 3)
    spacing = shared.PixelMeasuresSequence[0].PixelSpacing
    for frame, pixels in zip(
        segmentation.PerFrameFunctionalGroupsSequence, segmentation.pixel_array, strict=True
    ):
        if frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number:
            position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
            for r, c in np.argwhere(pixels):
                found.append(position + row * spacing[1] * c + column * spacing[0] * r)
    return np.array(sorted((np.array(found) * [-1, -1, 1]).round(2).tolist()))


@pytest.mark.parametrize("signs", [(-1, 1, -1), (1, 1, 1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 1, 0)])
def test_segments_have_the_very_voxels_of_the_label_in_space(tmp_path, order, signs):
    series = make(tmp_path, affine=oblique(signs))
    swap = np.eye(4)[:, [*order, 3]]
    swapped = save(tmp_path / "label.nii.gz", make_label().transpose(order), oblique(signs) @ swap)
    write_dicom_seg(swapped, series, tmp_path / "seg.dcm", release=RELEASE)
    regions = get_release(RELEASE).to_regions(make_label())
    for number, region in enumerate(regions, start=1):
        expected = places(region, oblique(signs))
        found = read_places(tmp_path / "seg.dcm", number)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=0.02)


def test_highdicom_reads_the_same_volume(tmp_path):
    series = make(tmp_path)
    label = save(tmp_path / "label.nii.gz", make_label(), oblique())
    write_dicom_seg(label, series, tmp_path / "seg.dcm", release=RELEASE)
    volume = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=False)
    regions = get_release(RELEASE).to_regions(make_label())
    for number, region in enumerate(regions):
        found = places(volume.array[..., number] > 0, LPS @ volume.affine)
        np.testing.assert_allclose(found, places(region, oblique()), atol=0.02)


def test_a_label_on_the_converted_scan_comes_back_to_its_series(tmp_path):
    series = make(tmp_path)
    scan = nib.load(convert_series(series, tmp_path))
    bright = (scan.get_fdata() > 2000).astype(np.uint8)
    label = save(tmp_path / "label.nii.gz", bright, scan.affine)
    write_dicom_seg(label, series, tmp_path / "seg.dcm", release=RELEASE)
    np.testing.assert_allclose(
        read_places(tmp_path / "seg.dcm", 1), places(bright, scan.affine), atol=0.02
    )


def test_enhanced_mr_gets_the_same_segments(tmp_path):
    dates = {"StudyDate": "20200304", "SeriesDate": "20200304"}
    sources = [pydicom.dcmread(file) for file in make(tmp_path, **dates).files]
    enhanced = highdicom.legacy.LegacyConvertedEnhancedMRImage(
        sources, highdicom.UID(), 7, highdicom.UID(), 1
    )
    (tmp_path / "enhanced").mkdir()
    enhanced.save_as(tmp_path / "enhanced" / "IM1")
    (series,) = find_series(tmp_path / "enhanced")
    label = save(tmp_path / "label.nii.gz", make_label(), oblique())
    write_dicom_seg(label, series, tmp_path / "seg.dcm", release=RELEASE)
    for number, region in enumerate(get_release(RELEASE).to_regions(make_label()), start=1):
        found = read_places(tmp_path / "seg.dcm", number)
        np.testing.assert_allclose(found, places(region, oblique()), atol=0.02)


def test_directions_rounded_by_the_scanner_will_do(tmp_path):
    series = make(tmp_path)
    for file in series.files:
        dataset = pydicom.dcmread(file)
        dataset.ImageOrientationPatient = [
            round(float(value), 4) for value in dataset.ImageOrientationPatient
        ]
        dataset.save_as(file)
    label = save(tmp_path / "label.nii.gz", make_label(), oblique())
    write_dicom_seg(label, series, tmp_path / "seg.dcm", release=RELEASE)
    assert len(read_places(tmp_path / "seg.dcm", 1)) == (make_label() > 0).sum()


def test_segments_are_named_coded_and_refer_to_the_series(tmp_path):
    series = make(tmp_path)
    label = save(tmp_path / "label.nii.gz", make_label(), oblique())
    write_dicom_seg(label, series, tmp_path / "new" / "seg.dcm", release=RELEASE)
    written = pydicom.dcmread(tmp_path / "new" / "seg.dcm")
    assert [item.SegmentLabel for item in written.SegmentSequence] == [
        "WT (whole tumour)",
        "TC (tumour core)",
        "ET (enhancing tumour)",
    ]
    codes = [item.SegmentedPropertyTypeCodeSequence[0] for item in written.SegmentSequence]
    assert [(code.CodingSchemeDesignator, code.CodeValue) for code in codes] == [
        ("SCT", "52988006"),
        ("SCT", "108369006"),
        ("NCIt", "C113842"),
    ]
    sources = [pydicom.dcmread(file) for file in series.files]
    (referenced,) = written.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == sources[0].SeriesInstanceUID
    assert written.StudyInstanceUID == sources[0].StudyInstanceUID
    assert written.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
    assert written.SeriesInstanceUID != sources[0].SeriesInstanceUID
    assert {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence} == {
        source.SOPInstanceUID for source in sources
    }


def test_each_frame_refers_to_the_slice_at_its_place(tmp_path):
    series = make(tmp_path)
    label = save(tmp_path / "label.nii.gz", make_label(), oblique())
    write_dicom_seg(label, series, tmp_path / "seg.dcm", release=RELEASE)
    place = {
        source.SOPInstanceUID: source.ImagePositionPatient
        for source in map(pydicom.dcmread, series.files)
    }
    for frame in pydicom.dcmread(tmp_path / "seg.dcm").PerFrameFunctionalGroupsSequence:
        source = frame.DerivationImageSequence[0].SourceImageSequence[0]
        np.testing.assert_allclose(
            frame.PlanePositionSequence[0].ImagePositionPatient,
            place[source.ReferencedSOPInstanceUID],
            atol=1e-4,
        )


def test_only_what_the_standard_asks_for_is_copied_of_the_headers(tmp_path):
    series = make(
        tmp_path,
        PatientName="Doe^Jane",
        PatientID="4711",
        PatientAddress="Street 1",
        PatientComments="fell",
        OtherPatientIDs="4712",
        InstitutionName="Clinic",
        StationName="MR17",
        OperatorsName="Roe^Rick",
        ProtocolName="tumour",
    )
    label = save(tmp_path / "label.nii.gz", make_label(), oblique())
    write_dicom_seg(label, series, tmp_path / "seg.dcm", release=RELEASE)
    written = pydicom.dcmread(tmp_path / "seg.dcm")
    assert (written.PatientName, written.PatientID) == ("Doe^Jane", "4711")
    content = (tmp_path / "seg.dcm").read_bytes()
    words = (b"Street", b"fell", b"4712", b"Clinic", b"MR17", b"Roe", b"POST GD")
    assert [word for word in words if word in content] == []


def test_headers_without_optional_texts_will_do(tmp_path):
    missing = ("PatientName", "StudyDate", "StudyTime", "AccessionNumber", "StudyID", "PatientSex")
    series = make(tmp_path, **dict.fromkeys(missing))
    label = save(tmp_path / "label.nii.gz", make_label(), oblique())
    write_dicom_seg(label, series, tmp_path / "seg.dcm", release=RELEASE)
    assert pydicom.dcmread(tmp_path / "seg.dcm").PatientName == ""


def test_an_empty_label_gives_empty_segments(tmp_path):
    label = save(tmp_path / "label.nii.gz", make_label() * 0, oblique())
    write_dicom_seg(label, make(tmp_path), tmp_path / "seg.dcm", release=RELEASE)
    segmentation = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert segmentation.number_of_segments == 3
    assert not segmentation.pixel_array.any()


def shifted():
    affine = oblique()
    affine[:3, 3] += 0.5 * affine[:3, 0]
    return affine


@pytest.mark.parametrize(
    ("label", "affine", "message"),
    [
        (make_label(), shifted(), "does not lie on the grid of series 4 'AX T1 POST GD'"),
        (make_label()[1:], oblique(), "does not lie on the grid"),
        (np.pad(make_label(), ((0, 0), (0, 0), (0, 1))), oblique(), "does not lie on the grid"),
        (make_label() * 3, oblique(), "holds 3, 6, 12, no labels of brats2020"),
    ],
)
def test_other_labels_are_refused_and_nothing_is_written(tmp_path, label, affine, message):
    series = make(tmp_path)
    path = save(tmp_path / "label.nii.gz", label, affine)
    with pytest.raises(ValueError, match=message) as error:
        write_dicom_seg(path, series, tmp_path / "out" / "seg.dcm", release=RELEASE)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_series_without_a_frame_of_reference_is_refused(tmp_path):
    series = make(tmp_path, FrameOfReferenceUID=None)
    label = save(tmp_path / "label.nii.gz", make_label(), oblique())
    with pytest.raises(ValueError, match=r"lack what a DICOM-SEG needs .*Frame Of Reference UID"):
        write_dicom_seg(label, series, tmp_path / "seg.dcm", release=RELEASE)
    assert not (tmp_path / "seg.dcm").exists()
