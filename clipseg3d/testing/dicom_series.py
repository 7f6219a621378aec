"""DICOM series made of volumes, to try and test with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_HEADER = {
    "PatientName": "Simulated^Patient",
    "PatientID": "simulated",
    "PatientBirthDate": "",
    "PatientSex": "",
    "StudyDate": "",
    "StudyTime": "",
    "StudyID": "",
    "AccessionNumber": "",
    "ReferringPhysicianName": "",
    "Modality": "MR",
    "Manufacturer": "clipseg3d",
    "ImageType": ["ORIGINAL", "PRIMARY"],
    "ScanningSequence": "SE",
    "SequenceVariant": "NONE",
    "ScanOptions": "",
    "MRAcquisitionType": "2D",
    "EchoTrainLength": "",
    "AcquisitionNumber": 1,
    "PositionReferenceIndicator": "",
}


def write_dicom_series(
    folder: Path,
    volume: npt.NDArray[np.integer],
    affine: npt.NDArray[np.float64],
    header: Mapping[str, Any] | None = None,
    *,
    study: str = "study",
) -> list[Path]:
    """Write a volume as a DICOM series, one file for each slice along z.

    Made for data that belong to nobody, such as phantoms.

    Args:
        folder: of the files ``0001``, ``0002`` and so on; made if missing.
        volume: (x, y, z), whole numbers from -32768 to 32767; x are columns and y are rows of the
            slices.
        affine: 4 x 4, from voxels to mm, as in NIfTI.
        header: keyword of DICOM -> value, such as ``SeriesDescription`` and ``EchoTime``; None as a
            value leaves an element out. Series of one folder need other values of
            ``SeriesNumber``.
        study: series with equal ones belong to one study.

    Returns:
        The files, in the order of z.

    Raises:
        ImportError: pydicom is not installed.
    """
    try:
        import pydicom
        from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
    except ImportError as error:
        raise ImportError('DICOM needs pydicom: pip install "clipseg3d[prepare]"') from error
    values = {"SeriesNumber": 1, **_HEADER, **(header or {})}
    lps = _LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    directions = lps[:3, :3] / spacing
    folder.mkdir(parents=True, exist_ok=True)
    uids = {
        "StudyInstanceUID": generate_uid(entropy_srcs=[study]),
        "SeriesInstanceUID": generate_uid(entropy_srcs=[study, str(values["SeriesNumber"])]),
        "FrameOfReferenceUID": generate_uid(entropy_srcs=[study, "frame"]),
    }
    files = []
    for index in range(volume.shape[2]):
        position = lps @ [0, 0, index, 1]
        pixels = np.ascontiguousarray(volume[:, :, index].T, "<i2")
        dataset = pydicom.Dataset()
        for keyword, value in {
            "SOPClassUID": MRImageStorage,
            "SOPInstanceUID": generate_uid(
                entropy_srcs=[study, str(values["SeriesNumber"]), str(index)]
            ),
            **uids,
            "InstanceNumber": index + 1,
            "Rows": pixels.shape[0],
            "Columns": pixels.shape[1],
            "PixelSpacing": [_decimal(spacing[1]), _decimal(spacing[0])],
            "SliceThickness": _decimal(spacing[2]),
            "SpacingBetweenSlices": _decimal(spacing[2]),
            "ImageOrientationPatient": [_decimal(v) for v in directions[:, :2].T.ravel()],
            "ImagePositionPatient": [_decimal(v) for v in position[:3]],
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 1,
            **values,
        }.items():
            if value is not None:
                setattr(dataset, keyword, value)
        dataset.PixelData = pixels.tobytes()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        files.append(folder / f"{index + 1:04d}")
        dataset.save_as(files[-1], enforce_file_format=True)
    return files


def _decimal(value: float) -> str:
    """Return a number in the at most 16 characters that DICOM allows."""
    return f"{value:.10g}"[:16]
