"""What is read of the header of a DICOM image."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipseg3d.prepare.extra import import_extra

_TAGS = (
    *("SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "Modality"),
    *("PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber"),
    *("SeriesDescription", "ProtocolName", "SequenceName", "PulseSequenceName"),
    *("BodyPartExamined", "ContrastBolusAgent", "ContrastBolusAgentSequence"),
    *("ScanningSequence", "EchoPulseSequence", "InversionRecovery"),
    *("EchoTime", "RepetitionTime", "InversionTime", "SliceThickness"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "NumberOfFrames"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
_NO_AGENT = {"", "0", "n", "no", "none", "nil", "nein", "non", "no contrast", "without"}
"""What stands in the place of a contrast agent where there is none."""
_PREAMBLE = 128
_MAGIC = b"DICM"
_FIRST_ELEMENTS = (0x0000, 0x0001, 0x0005, 0x0008, 0x0012, 0x0016, 0x0018)
"""With which elements of group 8 old files begin, which lack a preamble."""
_DELIMITER = b"\xfe\xff\xdd\xe0"
"""What ends compressed pixels."""
_ELEMENT_BYTES = 8
"""Bytes of the head of an element, at least."""
_TAIL_BYTES = 2**16
"""Where the end of compressed pixels is looked for, counted from the end of a file."""
_DIRECTORY = "1.2.840.10008.1.3.10"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


@dataclass(frozen=True)
class ImageHeader:
    """The header of one file: of one slice, or of all slices in enhanced MR.

    Attributes:
        file: where it is from.
        patient: what tells patients apart; never to be shown.
        study: StudyInstanceUID.
        series: SeriesInstanceUID.
        instance: SOPInstanceUID.
        modality: such as MR.
        secondary_capture: whether it is a picture of a screen.
        number: SeriesNumber, or None.
        description: SeriesDescription.
        protocol: ProtocolName and the name of the pulse sequence.
        body_part: BodyPartExamined, in lower case.
        image_type: values of ImageType, in upper case.
        contrast_agent: whether an agent is named.
        scanning_sequence: DICOM's terms, such as SE, GR, IR.
        echo_time_ms: TE, or None, as in the next three.
        repetition_time_ms: TR.
        inversion_time_ms: TI.
        slice_thickness_mm: SliceThickness.
        size: rows, columns, samples of a pixel.
        pixel_spacing_mm: between rows, between columns; None if it is missing.
        orientation: direction of the rows, then of the columns; None if it is missing.
        positions: of the first pixel of each slice, in the order of the file; None if missing.
        scalings: number of ways in which stored numbers become values; more than 1 only where the
            slices of enhanced MR differ.
        truncated: whether the file ends before its pixels do.
    """

    file: Path
    patient: str
    study: str
    series: str
    instance: str
    modality: str
    secondary_capture: bool
    number: int | None
    description: str
    protocol: str
    body_part: str
    image_type: tuple[str, ...]
    contrast_agent: bool
    scanning_sequence: tuple[str, ...]
    echo_time_ms: float | None
    repetition_time_ms: float | None
    inversion_time_ms: float | None
    slice_thickness_mm: float | None
    size: tuple[int, int, int]
    pixel_spacing_mm: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    positions: tuple[tuple[float, ...], ...] | None
    scalings: int
    truncated: bool


def read_image_header(file: Path) -> ImageHeader | None:
    """Read the header of a DICOM file; its pixels stay on disk.

    Args:
        file: any file; its first bytes tell whether it is DICOM, its name does not.

    Returns:
        The header; None for other files, and for DICOM without an image, such as a report or an
        index of other files.

    Raises:
        ImportError: pydicom is not installed.
        ValueError: the file is damaged, or cannot be opened.
    """
    pydicom = import_extra("pydicom", needed_for="DICOM")
    try:
        with file.open("rb") as stream, warnings.catch_warnings():
            if not _is_dicom(stream.read(_PREAMBLE + len(_MAGIC))):
                return None
            stream.seek(0)
            warnings.simplefilter("ignore")  # scanners break rules of text and numbers
            dataset = pydicom.dcmread(
                stream, stop_before_pixels=True, specific_tags=list(_TAGS), force=True
            )
            if _is_index(dataset):
                return None
            if not _texts(dataset, "SOPClassUID"):
                raise EOFError("it ends before its header does")
            if _whole(dataset, "Rows") == 0:
                return None
            return _header(file, dataset, _truncated(dataset, stream.tell(), file))
    except OSError as error:
        raise ValueError(
            f"{file}: cannot be opened ({error.strerror or error}); check its path and permissions"
        ) from error
    except Exception as error:  # pydicom raises almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{file}: not a readable DICOM file ({reason}); copy or export it again, or remove it"
        ) from error


def _is_dicom(head: bytes) -> bool:
    """Return whether a file is DICOM by its first bytes."""
    first = head[:2] == b"\x08\x00" and int.from_bytes(head[2:4], "little") in _FIRST_ELEMENTS
    return first or head[_PREAMBLE:] == _MAGIC


def _header(file: Path, dataset: Any, truncated: bool) -> ImageHeader:
    """Take over what is needed."""
    contrast = _text(dataset, "ContrastBolusAgent")
    agents = dataset.get("ContrastBolusAgentSequence")
    samples = max(1, _whole(dataset, "SamplesPerPixel"))
    number = _text(dataset, "SeriesNumber")
    sequence = (_text(dataset, "SequenceName"), _text(dataset, "PulseSequenceName"))
    inversion = _found_text(dataset, "InversionRecovery") == "YES"
    echo = _found_text(dataset, "EchoPulseSequence")
    kinds = [*_texts(dataset, "ScanningSequence")]
    kinds += [{"SPIN": "SE", "GRADIENT": "GR"}.get(echo, echo)] if echo else []
    return ImageHeader(
        file=file,
        patient=_text(dataset, "PatientID") or _text(dataset, "PatientName"),
        study=_text(dataset, "StudyInstanceUID"),
        series=_text(dataset, "SeriesInstanceUID"),
        instance=_text(dataset, "SOPInstanceUID"),
        modality=_text(dataset, "Modality"),
        secondary_capture=_text(dataset, "SOPClassUID").startswith(_SECONDARY_CAPTURE),
        number=int(number) if number.isdigit() else None,
        description=_text(dataset, "SeriesDescription"),
        protocol=" ".join(filter(None, (_text(dataset, "ProtocolName"), *sequence))),
        body_part=_text(dataset, "BodyPartExamined").lower(),
        image_type=tuple(value.upper() for value in _texts(dataset, "ImageType")),
        contrast_agent=bool(agents) or contrast.lower() not in _NO_AGENT,
        scanning_sequence=tuple(kinds + ["IR"] * inversion),
        echo_time_ms=_time(dataset, "EffectiveEchoTime", "EchoTime"),
        repetition_time_ms=_time(dataset, "RepetitionTime"),
        inversion_time_ms=_time(dataset, "InversionTimes", "InversionTime"),
        slice_thickness_mm=_time(dataset, "SliceThickness"),
        size=(_whole(dataset, "Rows"), _whole(dataset, "Columns"), samples),
        pixel_spacing_mm=_numbers(_found(dataset, "PixelSpacing"), 2),
        orientation=_numbers(_found(dataset, "ImageOrientationPatient"), 6),
        positions=_positions(dataset),
        scalings=len(_scalings(dataset)),
        truncated=truncated,
    )


def _truncated(dataset: Any, start: int, file: Path) -> bool:
    """Return whether a file ends before its pixels do."""
    syntax = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID")
    size = file.stat().st_size
    if syntax is not None and syntax.is_deflated:
        return False
    if syntax is not None and syntax.is_encapsulated:
        with file.open("rb") as stream:
            stream.seek(max(start, size - _TAIL_BYTES))
            return _DELIMITER not in stream.read()
    rows, columns = _whole(dataset, "Rows"), _whole(dataset, "Columns")
    bits = _whole(dataset, "BitsAllocated") * max(1, _whole(dataset, "SamplesPerPixel"))
    frames = max(1, _whole(dataset, "NumberOfFrames"))
    return size < start + _ELEMENT_BYTES + rows * columns * frames * bits // 8


def _is_index(dataset: Any) -> bool:
    """Return whether a file is a DICOMDIR, which lists other files."""
    uid = getattr(dataset, "file_meta", {}).get("MediaStorageSOPClassUID")
    return str(uid) == _DIRECTORY


def _positions(dataset: Any) -> tuple[tuple[float, ...], ...] | None:
    """Return the positions of all slices; None if one is missing."""
    frames = dataset.get("PerFrameFunctionalGroupsSequence")
    if frames:
        values = [_in_groups(frame, "ImagePositionPatient") for frame in frames]
    else:
        values = [dataset.get("ImagePositionPatient")]
    found = tuple(place for value in values if (place := _numbers(value, 3)) is not None)
    return found if len(found) == len(values) else None


def _scalings(dataset: Any) -> set[tuple[str, str]]:
    """Return slope and intercept of all frames of enhanced MR, those that differ."""
    return {
        (str(_in_groups(frame, "RescaleSlope")), str(_in_groups(frame, "RescaleIntercept")))
        for frame in dataset.get("PerFrameFunctionalGroupsSequence") or ()
    }


def _found(dataset: Any, *keywords: str) -> Any:
    """Return a value of the header; in enhanced MR that of all slices, or of the first."""
    frames = []
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        frames += list(dataset.get(name) or [])[:1]
    for keyword in keywords:
        for value in (dataset.get(keyword), *(_in_groups(frame, keyword) for frame in frames)):
            if value is not None and value != "":
                return value
    return None


def _in_groups(frame: Any, keyword: str) -> Any:
    """Return a value that is in one of the groups of values of a slice, or of all slices."""
    for element in frame:
        if element.VR == "SQ" and element.value and keyword in element.value[0]:
            return element.value[0].get(keyword)
    return None


def _texts(dataset: Any, keyword: str) -> tuple[str, ...]:
    """Return all values as texts."""
    value = dataset.get(keyword)
    if value is None:
        return ()
    values = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else value
    return tuple(text for item in values if (text := " ".join(str(item).split())))


def _text(dataset: Any, keyword: str) -> str:
    """Return a value as text; empty if it is missing."""
    return " ".join(_texts(dataset, keyword))


def _found_text(dataset: Any, keyword: str) -> str:
    """Return a text, also of enhanced MR; empty if it is missing."""
    return str(_found(dataset, keyword) or "")


def _whole(dataset: Any, keyword: str) -> int:
    """Return a number; 0 if it is missing."""
    return int(dataset.get(keyword) or 0)


def _time(dataset: Any, *keywords: str) -> float | None:
    """Return a positive number, also of enhanced MR."""
    value = _found(dataset, *keywords)
    numbers = _numbers(value if hasattr(value, "__iter__") else [value], 1)
    return numbers[0] if numbers is not None and numbers[0] > 0 else None


def _numbers(values: Any, count: int) -> tuple[float, ...] | None:
    """Return that many numbers; None if there are others, or none."""
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count else None
