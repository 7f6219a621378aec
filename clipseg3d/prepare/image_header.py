"""What is read of the header of a DICOM image."""

import warnings
from collections.abc import Iterator
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
_FIRST_GROUPS = (b"\x02\x00\x00\x00", b"\x08\x00\x00\x00", b"\x08\x00\x05\x00", b"\x08\x00\x08\x00")
"""How old files begin, which lack a preamble: the first element, little endian."""
_ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
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
    truncated: bool


def is_dicom(file: Path) -> bool:
    """Return whether a file is DICOM by its first bytes; names say nothing."""
    with file.open("rb") as stream:
        head = stream.read(_PREAMBLE + len(_MAGIC))
    return head[_PREAMBLE:] == _MAGIC or head[:4] in _FIRST_GROUPS


def read_image_header(file: Path) -> ImageHeader | None:
    """Read the header of a DICOM file; its pixels stay on disk.

    Args:
        file: a DICOM file.

    Returns:
        The header; None if the file holds no image, as a report, or an index of other files.

    Raises:
        ImportError: pydicom is not installed.
        ValueError: the file is damaged.
    """
    pydicom = import_extra("pydicom", needed_for="DICOM")
    try:
        with file.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scanners break rules of text and numbers
            dataset = pydicom.dcmread(
                stream, stop_before_pixels=True, specific_tags=list(_TAGS), force=True
            )
            if not _texts(dataset, "SOPClassUID"):
                if "MediaStorageDirectoryStorage" in _media_class_name(dataset):
                    return None
                raise EOFError("it ends before its header does")
            if _whole(dataset, "Rows") == 0:
                return None
            return _header(file, dataset, _truncated(dataset, stream.tell(), file))
    except Exception as error:  # pydicom raises almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{file}: not a readable DICOM file ({reason}); copy or export it again, or remove it"
        ) from error


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
        truncated=truncated,
    )


def _truncated(dataset: Any, start: int, file: Path) -> bool:
    """Return whether a file ends before its pixels do; those of compressed ones are not read."""
    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    if syntax is not None and (syntax.is_compressed or syntax.is_deflated):
        return False
    rows, columns = _whole(dataset, "Rows"), _whole(dataset, "Columns")
    bits = _whole(dataset, "BitsAllocated") * max(1, _whole(dataset, "SamplesPerPixel"))
    frames = max(1, _whole(dataset, "NumberOfFrames"))
    return file.stat().st_size < start + rows * columns * frames * bits // 8


def _media_class_name(dataset: Any) -> str:
    """Return the keyword of what the file says that it stores; empty if it does not say it."""
    uid = getattr(dataset, "file_meta", {}).get("MediaStorageSOPClassUID")
    return "" if uid is None else str(uid.keyword)


def _positions(dataset: Any) -> tuple[tuple[float, ...], ...] | None:
    """Return the positions of all slices; None if one is missing."""
    frames = dataset.get("PerFrameFunctionalGroupsSequence")
    items = [dataset] if not frames else frames
    positions = [_numbers(_in_groups(item, "ImagePositionPatient"), 3) for item in items]
    found = tuple(position for position in positions if position is not None)
    return found if len(found) == len(positions) else None


def _found(dataset: Any, *keywords: str) -> Any:
    """Return a value of the header; in enhanced MR that of all slices, or of the first."""
    places = [dataset]
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        places += list(dataset.get(name) or [])[:1]
    for keyword in keywords:
        for place in places:
            value = _in_groups(place, keyword)
            if value is not None and value != "":
                return value
    return None


def _in_groups(item: Any, keyword: str) -> Any:
    """Return a value of a dataset, or of a group of values in it."""
    if keyword in item:
        return item.get(keyword)
    for group in _groups(item):
        if keyword in group:
            return group.get(keyword)
    return None


def _groups(item: Any) -> Iterator[Any]:
    """Yield the groups of values of a slice, or of all slices."""
    for element in item:
        if element.VR == "SQ" and element.value and not element.keyword.endswith("GroupsSequence"):
            yield element.value[0]


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
