"""The series in a folder of DICOM files."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from clipseg3d.formatting import join_numbers
from clipseg3d.prepare.image_header import ImageHeader, read_image_header
from clipseg3d.prepare.series import Series
from clipseg3d.prepare.series_naming import name_sequence

_UNEVEN = 0.1
"""How far gaps between slices may differ, as a share of the median."""
_MAX_SHIFT_MM = 1.0
"""How far the first and the last slice may be shifted in their plane."""
_SAME_PLACE_MM = 0.01
_SAME_DIRECTION = 0.01
_T = TypeVar("_T")


def find_series(folder: Path) -> list[Series]:
    """Find the series in a folder of DICOM files and tell which sequences they are.

    Files may have any name and lie at any depth; what is not DICOM is passed over. A series that
    holds several volumes, such as two echoes, is parted. Headers are read, pixels are not.

    Args:
        folder: of one study of one patient.

    Returns:
        Every series, also those that are none of the four sequences and those with a fault; in the
        order of their numbers.

    Raises:
        FileNotFoundError: there is no such folder, or no DICOM image in it.
        ImportError: pydicom is not installed.
        ValueError: a file is given, or a file is damaged, or the MR images are of several patients
            or several studies.
    """
    if folder.is_file():
        raise ValueError(
            f"{folder}: is one file; give the folder that holds all slices of all series"
        )
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; check the path")
    headers = [header for file in _files(folder) if (header := read_image_header(file)) is not None]
    if not headers:
        raise FileNotFoundError(
            f"{folder}: holds no DICOM image; give the folder of the series, unpacked"
        )
    _require_one_patient(folder, headers)
    volumes = [
        volume
        for same_series in _part(headers, lambda header: (header.series, header.modality))
        for volume in _volumes(same_series)
    ]
    volumes.sort(key=lambda volume: volume[0].number or 0)
    return [
        _series(volume, number) for volume, number in zip(volumes, _numbers(volumes), strict=True)
    ]


def _files(folder: Path) -> Iterable[Path]:
    """Yield all files at any depth, in the order of their names."""
    seen: set[str] = set()
    for path, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(path)) in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(names):
            file = Path(path, name)
            if file.is_file():  # no broken links, no pipes
                yield file


def _require_one_patient(folder: Path, headers: Sequence[ImageHeader]) -> None:
    """Raise a ValueError for MR images of several patients or studies; without their names."""
    scans = [header for header in headers if header.modality == "MR"]
    for what, count in (
        ("patients", len({header.patient for header in scans})),
        ("studies", len({header.study for header in scans})),
    ):
        if count > 1:
            raise ValueError(
                f"{folder}: holds MR images of {count} {what}; put each into a folder of its own, "
                "and give one of them"
            )


def _volumes(headers: list[ImageHeader]) -> list[list[ImageHeader]]:
    """Part the images of a series into volumes, as far as headers tell; slices in order."""
    unique = list({header.instance or header.file: header for header in headers[::-1]}.values())[
        ::-1
    ]
    volumes = []
    for part in _same_plane(unique):
        parts = [part]
        if _repeats(part):
            parts = _part(part, lambda header: (header.echo_time_ms or 0.0, header.image_type))
        volumes += [_in_order(part) for part in parts]
    return volumes


def _part(items: Iterable[_T], key: Callable[[_T], object]) -> list[list[_T]]:
    """Return lists of items that share a key, in the order in which they first come."""
    parts: dict[object, list[_T]] = {}
    for item in items:
        parts.setdefault(key(item), []).append(item)
    return list(parts.values())


def _same_plane(headers: list[ImageHeader]) -> list[list[ImageHeader]]:
    """Return lists of images of one size and one direction, but for rounding."""
    parts: list[list[ImageHeader]] = []
    for header in headers:
        for part in parts:
            first = part[0]
            directions = (header.orientation, first.orientation)
            if header.size == first.size and (
                directions[0] == directions[1]
                or (
                    None not in directions
                    and np.allclose(*directions, rtol=0, atol=_SAME_DIRECTION)  # type: ignore[arg-type]
                )
            ):
                part.append(header)
                break
        else:
            parts.append([header])
    return parts


def _in_order(headers: list[ImageHeader]) -> list[ImageHeader]:
    """Return images in the order of their slices, where headers tell it."""
    if any(header.positions is None or header.orientation is None for header in headers):
        return headers
    heights = [_heights([header])[0] for header in headers]
    return [headers[index] for index in np.argsort(heights, kind="stable")]


def _positions(headers: Sequence[ImageHeader]) -> npt.NDArray[np.float64]:
    """Return the positions of all slices, (n, 3)."""
    return np.array([place for header in headers for place in header.positions or ()])


def _heights(headers: Sequence[ImageHeader]) -> npt.NDArray[np.float64]:
    """Return how far the slices lie along their normal, in mm."""
    heights: npt.NDArray[np.float64] = _positions(headers) @ _normal(headers[0])
    return heights


def _normal(header: ImageHeader) -> npt.NDArray[np.float64]:
    """Return the normal of a slice, of length 1 although directions are rounded in headers."""
    normal = np.cross(*np.array(header.orientation).reshape(2, 3))
    length = float(np.linalg.norm(normal))
    return normal / length if length else normal


def _repeats(headers: Sequence[ImageHeader]) -> bool:
    """Return whether several images show one place."""
    if any(header.positions is None or header.orientation is None for header in headers):
        return False
    return bool((np.diff(np.sort(_heights(headers))) < _SAME_PLACE_MM).any())


def _numbers(volumes: Sequence[Sequence[ImageHeader]]) -> list[str]:
    """Return the number of each volume; where several share one, a part is added."""
    given = [volume[0].number for volume in volumes]
    seen: dict[int | None, int] = {}
    numbers = []
    for number in given:
        seen[number] = seen.get(number, 0) + 1
        name = "none" if number is None else str(number)
        numbers.append(name if given.count(number) == 1 else f"{name}.{seen[number]}")
    return numbers


def _series(headers: list[ImageHeader], number: str) -> Series:
    """Return the record of a volume."""
    first = headers[0]
    num_slices = sum(len(header.positions or (None,)) for header in headers)
    sequence, alternatives, reason = name_sequence(first, num_slices)
    if sequence is not None and _repeats(headers):
        sequence, alternatives = None, ()
        reason = "several images of one place, as dynamic and diffusion images have"
    fault = _fault(headers)
    return Series(
        files=tuple(header.file for header in headers),
        number=number,
        description=first.description,
        num_slices=num_slices,
        slice_thickness_mm=first.slice_thickness_mm,
        echo_time_ms=first.echo_time_ms,
        repetition_time_ms=first.repetition_time_ms,
        inversion_time_ms=first.inversion_time_ms,
        contrast_agent=first.contrast_agent,
        scanning_sequence=first.scanning_sequence,
        sequence=sequence,
        alternatives=alternatives,
        reason=reason,
        fault=fault and f"series {number} {first.description!r}: {fault}",
    )


def _fault(headers: Sequence[ImageHeader]) -> str:
    """Return why the files of a volume are no whole scan, and the cure; empty if they are."""
    first = headers[0]
    if first.modality != "MR" or first.secondary_capture or first.size[2] != 1:
        return "is no MR scan; give one of the MR series"
    if cut := next((header.file for header in headers if header.truncated), None):
        return f"{cut} ends before its pixels do; copy it again"
    for header in headers:
        if header.pixel_spacing_mm is None or min(header.pixel_spacing_mm) <= 0:
            return (
                f"{header.file} has no pixel spacing, so its size is unknown; export the series "
                "from the scanner or PACS again"
            )
        if header.positions is None or header.orientation is None:
            return (
                f"{header.file} does not say where it lies in the patient; export the series from "
                "the scanner or PACS again"
            )
    if _repeats(headers):
        return "holds several images of one place; export its volumes as series of their own"
    for what, values in (
        ("contrast agents", {header.contrast_agent for header in headers}),
        ("echo times", {round(header.echo_time_ms or 0.0, 1) for header in headers}),
        ("pixel spacings", {_rounded(header.pixel_spacing_mm) for header in headers}),
        ("kinds", {header.image_type for header in headers}),
    ):
        if len(values) > 1:
            return (
                f"its slices are of different {what}, so they are no one volume; export its "
                "volumes as series of their own"
            )
    if any(header.scalings > 1 for header in headers):
        return (
            "its slices are scaled to values in different ways, which dcm2niix does not heed; "
            "export it as classic MR images, a file for each slice"
        )
    return _slice_fault(headers)


def _rounded(sizes: Iterable[float] | None) -> tuple[float, ...]:
    """Return sizes in mm without what rounding in headers may change."""
    return tuple(round(size, 3) for size in sizes or ())


def _slice_fault(headers: Sequence[ImageHeader]) -> str:
    """Return what is wrong with the places of the slices, and the cure; empty if nothing is."""
    heights = _heights(headers)
    order = np.argsort(heights)
    gaps = np.diff(heights[order])
    if not gaps.size:
        return ""
    usual = float(np.median(gaps))
    odd = gaps[abs(gaps - usual) > _UNEVEN * usual]
    if odd.size:
        return (
            f"its {len(heights)} slices are {usual:.4g} mm apart, but {len(odd)} gaps are "
            f"{join_numbers(sorted(set(odd.round(2).tolist())), at_most=3)} mm, so slices are "
            "missing; copy or export the whole series again"
        )
    even = np.linspace(heights.min(), heights.max(), len(heights))
    off = float(abs(heights[order] - even).max())
    if off > _UNEVEN * usual:
        return (
            f"its {len(heights)} slices are not evenly apart, {off:.3g} mm at worst; resample it "
            "to even slices, with 3D Slicer, or export it again"
        )
    places = _positions(headers)[order]
    way, normal = places[-1] - places[0], _normal(headers[0])
    shift = float(np.linalg.norm(way - (way @ normal) * normal))
    if shift > _MAX_SHIFT_MM:
        return (
            f"its slices are shifted against one another by {shift:.3g} mm in all (gantry tilt); "
            "resample it to straight slices, with 3D Slicer"
        )
    return ""
