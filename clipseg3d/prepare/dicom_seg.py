"""A label map as a DICOM segmentation of the series that it lies on."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipseg3d import __version__
from clipseg3d.atomic_write import atomic_write
from clipseg3d.data.label_checks import compare_values
from clipseg3d.data.nifti import open_nifti, read_voxels
from clipseg3d.data.release import BraTSRelease
from clipseg3d.data.releases import get_release
from clipseg3d.formatting import join_numbers
from clipseg3d.prepare.extra import import_extra
from clipseg3d.prepare.image_header import ImageHeader, read_image_header
from clipseg3d.prepare.series import Series
from clipseg3d.vocabulary import REGION_TITLES

_CODES = {
    "WT": ("52988006", "SCT", "Lesion"),
    "TC": ("108369006", "SCT", "Neoplasm"),
    "ET": ("C113842", "NCIt", "Enhancing Lesion"),
    "CC": ("367643001", "SCT", "Cyst"),
    "GTV": ("108369006", "SCT", "Neoplasm"),
}
"""Region -> its term in DICOM's context group 7159 (types of lesions); most are SNOMED's."""
_ANY_REGION = ("52988006", "SCT", "Lesion")
_ABNORMAL = ("49755003", "SCT", "Morphologically Abnormal Structure")
_BRAIN = ("12738006", "SCT", "Brain")
_ARTIFICIAL_INTELLIGENCE = ("123110", "DCM", "Artificial Intelligence")
_OFF_GRID = 0.1
"""How far the voxels of the label map may be from those of the series, in voxels."""
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_COPIED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"),
    *("ReferringPhysicianName", "SpecificCharacterSet", "Manufacturer"),
    *("FrameOfReferenceUID", "PositionReferenceIndicator", "ImageType", "Modality"),
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Rows", "Columns", "NumberOfFrames"),
    *("PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "LossyImageCompression"),
    *("ImagePositionPatient", "ImageOrientationPatient", "DimensionOrganizationSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("DimensionIndexSequence", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
"""Elements of the source that may come into the segmentation; all others are not even read."""
_EMPTY_IF_MISSING = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"),
    *("StudyID", "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator"),
)
"""Elements that the standard asks for and that may be empty; anonymised files often lack them."""
_SERIES_NUMBER = 1000
"""What is added to the number of the source."""


def write_dicom_seg(
    label: Path, series: Series, path: Path, *, release: str | BraTSRelease
) -> None:
    """Write a label map as DICOM-SEG, one segment for each region, all or nothing.

    Regions of a release may overlap, and so do the segments. The file belongs to the patient and
    the study of its source. The standard asks that it says so: **name, ID, birth date and sex of
    the patient and the identifiers of the study are copied from the headers of the series**. It is
    as confidential as the series itself. Nothing else of the headers is copied but the geometry
    and the maker of the scanner.

    Args:
        label: NIfTI file on the grid of the series, in any order of its axes.
        series: the source, whose files must still be there.
        path: file to write, such as ``t1ce_seg.dcm``; its folder is made if missing.
        release: says which labels are which regions; a release, or its name or file.

    Raises:
        ImportError: highdicom or pydicom is not installed.
        OSError: ``path`` cannot be written; an older file stays as it was.
        ValueError: the label map is on another grid, or holds labels that the release has not, or
            the series lacks what a segmentation needs.
    """
    release = get_release(release)
    highdicom = import_extra("highdicom", needed_for="DICOM-SEG")
    headers = [header for file in series.files if (header := read_image_header(file))]
    regions = np.moveaxis(release.to_regions(_read_label(label, release)), 0, -1)
    frames = _on_frames(label, regions, series, headers)
    version = str(__version__)
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="clipseg3d", version=version, family=_concept(_ARTIFICIAL_INTELLIGENCE)
    )
    descriptions = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=_segment_label(region),
            segmented_property_category=_concept(_ABNORMAL),
            segmented_property_type=_concept(_CODES.get(region, _ANY_REGION)),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            anatomic_regions=[_concept(_BRAIN)],
        )
        for number, region in enumerate(release.regions, start=1)
    ]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of rules that the scanner's own header breaks
            segmentation = highdicom.seg.Segmentation(
                source_images=[_read_source(file) for file in series.files],
                pixel_array=frames.astype(np.uint8),
                segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=descriptions,
                series_instance_uid=highdicom.UID(),
                series_number=_SERIES_NUMBER + (headers[0].number or 0),
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                manufacturer="clipseg3d",
                manufacturer_model_name="clipseg3d",
                software_versions=version,
                device_serial_number="none",
                content_label="TUMOUR",
                content_description="Brain tumour regions, not for diagnosis",
                series_description="clipseg3d segmentation",
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"series {series.title}: its headers lack what a DICOM-SEG needs ({reason}); export "
            "the series again with whole headers, or use the NIfTI label map"
        ) from error
    with atomic_write(path) as tmp:
        segmentation.save_as(tmp)


def _read_label(path: Path, release: BraTSRelease) -> npt.NDArray[np.uint8]:
    """Read a label map and check its values."""
    voxels = read_voxels(path)
    values = compare_values(voxels, release)
    if len(odd := [*values.fractions, *values.unknown]):
        raise ValueError(
            f"{path}: holds {join_numbers(odd, at_most=5)}, no labels of {release.name} "
            f"({join_numbers(release.labels)}); give its label map, or the release that it is of"
        )
    label: npt.NDArray[np.uint8] = np.rint(voxels).astype(np.uint8)
    return label


def _read_source(file: Path) -> Any:
    """Read what a segmentation needs of an image."""
    pydicom = import_extra("pydicom", needed_for="DICOM")
    dataset = pydicom.dcmread(
        file, stop_before_pixels=True, force=True, specific_tags=list(_COPIED)
    )
    for keyword in _EMPTY_IF_MISSING:
        if keyword not in dataset:
            setattr(dataset, keyword, "")
    return dataset


def _on_frames(
    path: Path, regions: npt.NDArray[np.bool_], series: Series, headers: Sequence[ImageHeader]
) -> npt.NDArray[np.bool_]:
    """Return regions (x, y, z, r) as the frames of a series, (frame, row, column, r).

    Raises:
        ValueError: the label map lies on another grid.
    """
    to_voxel = np.linalg.inv(_LPS @ open_nifti(path).affine)
    shape = regions.shape[:3]
    frames = []
    for header in headers:
        rows, columns, _ = header.size
        for position in header.positions or ():
            plane = to_voxel @ _plane_affine(header, position)
            corner, per_column, per_row = plane[:3, 3], plane[:3, 0], plane[:3, 1]
            index = (
                corner
                + np.arange(rows)[:, None, None] * per_row
                + np.arange(columns)[:, None] * per_column
            )
            whole = np.rint(index).astype(int)
            if abs(index - whole).max() > _OFF_GRID or not (
                (whole >= 0).all() and (whole < shape).all()
            ):
                raise _off_grid(path, series)
            frames.append(regions[tuple(np.moveaxis(whole, -1, 0))])
    if sum(frame[..., 0].size for frame in frames) != np.prod(shape):
        raise _off_grid(path, series)
    return np.stack(frames)


def _plane_affine(header: ImageHeader, position: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """Return the 4 x 4 matrix from column and row of a slice to LPS coordinates in mm."""
    affine = np.eye(4)
    directions = np.array(header.orientation).reshape(2, 3)
    per_row, per_column = header.pixel_spacing_mm or (0.0, 0.0)
    affine[:3, 0] = directions[0] * per_column
    affine[:3, 1] = directions[1] * per_row
    affine[:3, 3] = position
    return affine


def _off_grid(path: Path, series: Series) -> ValueError:
    """Return the error for a label map that does not lie on its series."""
    return ValueError(
        f"{path}: does not lie on the grid of series {series.title}; give the label map that was "
        "carried back to this series"
    )


def _segment_label(region: str) -> str:
    """Return the name of a segment."""
    return f"{region} ({REGION_TITLES[region]})" if region in REGION_TITLES else region


def _concept(code: tuple[str, str, str]) -> Any:
    """Return a coded term of its value, its scheme and its meaning."""
    return import_extra("highdicom.sr", needed_for="DICOM-SEG").CodedConcept(*code)
