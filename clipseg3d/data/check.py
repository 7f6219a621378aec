"""Check a folder of cases: facts about each case, and everything that is wrong with it."""

import hashlib
import itertools
import json
import math
import os
import struct
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.affines import voxel_sizes
from tqdm import tqdm

from clipseg3d.atomic_write import atomic_write
from clipseg3d.data.cases import (
    Case,
    DataError,
    check_geometry,
    faults_by_case,
    index_cases,
)
from clipseg3d.data.label_checks import label_faults, round_labels
from clipseg3d.data.layout import empty_folders
from clipseg3d.data.nifti import geometry_notes, open_nifti, read_voxels
from clipseg3d.data.release import BraTSRelease
from clipseg3d.formatting import align_columns, join_numbers
from clipseg3d.vocabulary import LABEL


@dataclass(frozen=True)
class FileFacts:
    """Facts about one sequence or expert mask; None if they were not read, or could not be.

    Attributes:
        path: file of the sequence or the expert mask.
        shape: (x, y, z).
        spacing_mm: voxel size along x, y and z.
        orientation: directions of the voxel axes, such as LPS: left, posterior, superior.
        affine: 4 x 4, from voxels to mm.
        dtype: number type in the file.
        low: smallest voxel.
        high: largest voxel.
        sha256: SHA-256 of the voxels as little-endian float32, first axis fastest; None if all
            voxels are equal.
    """

    path: str
    shape: tuple[int, ...] | None = None
    spacing_mm: tuple[float | None, ...] | None = None
    orientation: str | None = None
    affine: tuple[tuple[float | None, ...], ...] | None = None
    dtype: str | None = None
    low: float | None = None
    high: float | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class CaseFacts:
    """Facts about one case.

    Attributes:
        case_id: name of the case.
        patient: name of the patient.
        grade: 1 for a high-grade glioma, 0 for a low-grade one, -1 if unknown.
        missing: sequences, and ``LABEL``, without a file.
        files: sequence, or ``LABEL``, -> facts about its file.
        labels: label -> number of voxels; None without a readable expert mask.
        volumes_ml: region -> volume; None without a readable expert mask.
        report_words: number of words in the report; 0 without one.
        report_tokens: number of tokens in the report; None without a report or a tokenizer.
        faults: what is wrong; each line names a file and a cure.
        notes: what is unusual, but not a fault.
    """

    case_id: str
    patient: str
    grade: int
    missing: tuple[str, ...]
    files: dict[str, FileFacts]
    labels: dict[str, int] | None
    volumes_ml: dict[str, float] | None
    report_words: int
    report_tokens: int | None
    faults: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class DataCheck:
    """The result of checking a folder.

    Attributes:
        root: the folder.
        release: name of the release that its cases were compared with.
        regions: of that release.
        cases: facts about each case, sorted by name.
        other_faults: faults that belong to no single case: files of no case, copies, unreadable
            folders.
        notes: what is unusual about the folder as a whole, but not a fault.
    """

    root: str
    release: str
    regions: tuple[str, ...]
    cases: tuple[CaseFacts, ...]
    other_faults: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def faults(self) -> list[str]:
        """Every fault: case by case, then those that belong to no single case."""
        return [fault for case in self.cases for fault in case.faults] + [*self.other_faults]

    def save(self, path: Path) -> None:
        """Write everything as one JSON file, all or nothing.

        Raises:
            OSError: the file cannot be written.
        """
        content = json.dumps(asdict(self), indent=1, allow_nan=False)
        with atomic_write(path) as tmp:
            tmp.write_text(content, encoding="ascii")

    def table(self) -> str:
        """Return one line per case, then every fault and note, then a summary."""
        has_tokens = any(case.report_tokens is not None for case in self.cases)
        head = ["case", "grade", "shape", "mm", "axes", "range", "labels"]
        head += [f"{region} ml" for region in self.regions]
        head += ["tokens" if has_tokens else "words", "faults"]
        lines = []
        if self.cases:
            rows = [_row(case, self.regions) for case in self.cases]
            lines = align_columns([head, *rows], left=1).splitlines()
        notes = [note for case in self.cases for note in case.notes] + [*self.notes]
        for title, entries in (("Faults", self.faults), ("Notes", notes)):
            if entries:
                lines += ["", f"{title}:", *entries]
        total = f"{len(self.cases)} cases of {self.release}: {len(self.faults)} faults"
        return "\n".join([*lines, "", total] if lines else [total])


def check_data(
    root: str | Path,
    release: BraTSRelease,
    *,
    reports: str | Path | None = None,
    require_label: bool = True,
    allow_missing: bool = False,
    spacing_mm: float | None = 1.0,
    read_all: bool = False,
    count_tokens: Callable[[str], int] | None = None,
    num_threads: int = 2,
) -> DataCheck:
    """Check every case of a release below a folder, and collect all faults.

    Faults are those for which the DataModules refuse a case, with the same messages, and copies of
    the same voxels. Without ``read_all``, only headers, expert masks and the ends of files are
    read, which is enough to detect truncated files. If they indicate a fault, all files of the
    case are read.

    Args:
        root: folder to search; nothing in it is changed.
        release: says how files are named and what labels mean.
        reports: as in :func:`clipseg3d.data.cases.index_cases`.
        require_label: as in :func:`clipseg3d.data.cases.index_cases`.
        allow_missing: as in :func:`clipseg3d.data.cases.index_cases`.
        spacing_mm: as in :func:`clipseg3d.data.cases.index_cases`.
        read_all: whether to read the voxels of all sequences, too. This detects NaN, empty and
            constant sequences, expert masks outside the brain, and copies.
        count_tokens: returns the number of tokens of a report for some text encoder.
        num_threads: number of cases to read at the same time; at 240x240x155 with ``read_all``,
            each needs some 0.5 GB of memory.

    Raises:
        FileNotFoundError: ``root`` or ``reports`` is missing.
    """
    cases, faults = index_cases(
        root,
        release,
        reports=reports,
        require_label=require_label,
        allow_missing=allow_missing,
        spacing_mm=spacing_mm,
    )
    by_case, other_faults = faults_by_case(cases, faults)
    check = partial(_check_case, release=release, read_all=read_all, count_tokens=count_tokens)
    with ThreadPoolExecutor(max_workers=num_threads) as pool:
        results = pool.map(check, cases, by_case)
        facts = list(
            tqdm(
                results, total=len(cases), desc="Checking cases", unit="case", delay=2, disable=None
            )
        )
    without = sum(not case.report for case in cases)
    notes = [f"{without} of {len(cases)} cases have no report"] if 0 < without < len(cases) else []
    if empty := empty_folders(Path(root)):
        notes.append(
            f"{len(empty)} folders hold no file, such as {empty[0]}; download them again, or "
            "remove them"
        )
    notes += _label_notes(facts, release)
    return DataCheck(
        root=str(root),
        release=release.name,
        regions=tuple(release.regions),
        cases=tuple(facts),
        other_faults=(*other_faults, *_copies(facts)),
        notes=tuple(notes),
    )


def _check_case(
    case: Case,
    faults: Sequence[str],
    *,
    release: BraTSRelease,
    read_all: bool,
    count_tokens: Callable[[str], int] | None,
) -> CaseFacts:
    """Read one case, and add what is wrong with it to the faults of its headers."""
    faults = [*faults]
    notes: list[str] = []
    files: dict[str, FileFacts] = {}
    labels: dict[str, int] | None = None
    volumes: dict[str, float] | None = None
    read_sequences = read_all or _looks_wrong(case)
    sequences = {name: path for name, path in case.files.items() if name != LABEL}
    for path in dict.fromkeys(sequences.values()):
        voxels = _read(path, case.axes, faults) if read_sequences else None
        for name in (name for name, file in sequences.items() if file == path):
            volume = voxels
            if voxels is not None and case.channels:
                channel = case.channels[name]
                volume = voxels[..., channel] if channel < voxels.shape[3] else None
            files[name] = _facts(path, case.axes, volume)
    if read_sequences:
        faults += _preprocessing_faults(case, release, notes)
    else:
        notes += _geometry_notes(case)
    if case.label is not None:
        mask = _read(case.label, 3, faults)
        files[LABEL] = _facts(case.label, 3, mask)
        if mask is not None:
            wrong_values = label_faults(case.label, mask, release)
            faults += wrong_values
            mask = mask if wrong_values else round_labels(mask)
            # Sorting all voxels would take long.
            values, counts = np.unique(mask[mask != 0], return_counts=True)
            count_of = dict(zip(values.tolist(), counts.tolist(), strict=True))
            if not count_of:
                notes.append(f"{case.label}: marks no tumour")
            if background := mask.size - sum(count_of.values()):
                count_of[0] = background
            labels = {f"{value:g}": count for value, count in sorted(count_of.items())}
            axes = open_nifti(case.label).affine[:3, :3]
            if np.isfinite(axes).all():
                ml = abs(float(np.linalg.det(axes))) / 1000
                volumes = {
                    region: ml * sum(count_of.get(value, 0) for value in values)
                    for region, values in release.regions.items()
                }
    return CaseFacts(
        case_id=case.case_id,
        patient=case.patient,
        grade=case.grade,
        missing=tuple(kind for kind in (*release.sequences, LABEL) if kind not in files),
        files=files,
        labels=labels,
        volumes_ml=volumes,
        report_words=len(case.report.split()),
        report_tokens=count_tokens(case.report) if count_tokens and case.report else None,
        faults=tuple(dict.fromkeys(faults)),  # a broken file is read more than once
        notes=tuple(notes),
    )


def _looks_wrong(case: Case) -> bool:
    """Return whether the ends of files suggest a truncated or a doubled sequence.

    A gzip file ends with the check sum and the length of its content. Files of several gzip
    members look wrong, too, since their ends hold the length of the last member only.
    """
    ends = []
    for path in dict.fromkeys(replace(case, label=None).files.values()):
        try:
            image = open_nifti(path, axes=case.axes)
            size = path.stat().st_size
            end: tuple[object, int] = path, size
            if path.name.endswith(".gz"):
                with path.open("rb") as file:
                    file.seek(-8, os.SEEK_END)
                    checksum, size = struct.unpack("<II", file.read(8))
                    end = checksum, size
        except (ValueError, OSError):  # a fault: look at the other files of the case too
            return True
        expected = image.dataobj.offset + math.prod(image.shape) * image.get_data_dtype().itemsize
        if size != expected % 2**32:
            return True
        ends.append(end)
    return len(set(ends)) < len(ends)


def _read(path: Path, axes: int, faults: list[str]) -> npt.NDArray[Any] | None:
    """Return the voxels of a file, or None and add a fault."""
    try:
        return read_voxels(path, axes=axes)
    except (ValueError, FileNotFoundError) as error:
        faults.append(str(error))
        return None


def _facts(path: Path, axes: int, volume: npt.NDArray[Any] | None) -> FileFacts:
    """Return facts about a file from its header, and from its voxels if they were read."""
    try:
        image = open_nifti(path, axes=axes)
    except (ValueError, FileNotFoundError):
        return FileFacts(str(path))
    affine = image.affine
    is_finite = bool(np.isfinite(affine).all())
    low, high = (None, None) if volume is None else (float(volume.min()), float(volume.max()))
    return FileFacts(
        path=str(path),
        shape=tuple(int(size) for size in image.shape[:3]),
        spacing_mm=_finite(voxel_sizes(affine)),
        orientation="".join(c or "?" for c in nib.aff2axcodes(affine)) if is_finite else None,
        affine=tuple(_finite(row) for row in affine),
        dtype=str(image.get_data_dtype()),
        low=low,
        high=high,
        sha256=None if volume is None or low == high else _sha256_of_voxels(volume),
    )


def _finite(values: npt.NDArray[Any]) -> tuple[float | None, ...]:
    """Return numbers for JSON, with None for NaN and infinity."""
    return tuple(value if math.isfinite(value) else None for value in values.tolist())


def _sha256_of_voxels(volume: npt.NDArray[Any]) -> str:
    """Return the SHA-256 of voxels; it does not depend on the number type in the file."""
    with np.errstate(over="ignore"):  # preprocessing refuses what float32 cannot hold
        content = np.ascontiguousarray(volume.T, dtype="<f4")
    return hashlib.sha256(content.data).hexdigest()


def _geometry_notes(case: Case) -> list[str]:
    """Return what is in doubt about where the files of a case lie; unreadable ones are faults."""
    notes = []
    for path in dict.fromkeys(case.sequences.values()):
        with suppress(ValueError, FileNotFoundError):
            notes += geometry_notes(path, axes=case.axes)
    return notes


def _preprocessing_faults(case: Case, release: BraTSRelease, notes: list[str]) -> list[str]:
    """Return all faults for which preprocessing refuses a case; add what it notes to ``notes``.

    Some faults end preprocessing before others are detected. So each sequence is then preprocessed
    alone, and those without faults once more with the expert mask.
    """
    result = _try_preprocessing(case, release, notes)
    if result == []:
        return []
    faults = result or []
    usable = {}
    for name, path in case.sequences.items():
        alone = _try_preprocessing(replace(case, sequences={name: path}, label=None), release)
        faults += alone or []
        if alone == []:
            usable[name] = path
    return faults + (_try_preprocessing(replace(case, sequences=usable), release) or [])


def _try_preprocessing(
    case: Case, release: BraTSRelease, notes: list[str] | None = None
) -> list[str] | None:
    """Return the faults that preprocessing reports; None if its headers already have faults."""
    if not case.sequences or check_geometry(case):
        return None
    from clipseg3d.data.preprocessing import preprocess  # loads torch, which headers do not need

    try:
        ready = preprocess(case, release)
    except DataError as error:
        return [*error.faults]
    if notes is not None:
        notes += ready.notes
    return []


def _label_notes(cases: Sequence[CaseFacts], release: BraTSRelease) -> list[str]:
    """Return what is unusual about the labels of all masks together."""
    labelled = [case for case in cases if case.labels and case.volumes_ml]
    if not labelled:
        return []
    present = {float(value) for case in labelled for value in case.labels or ()}
    expected = [value for value in release.labels if value and value not in release.outside]
    absent = [value for value in expected if value not in present]
    notes = []
    if absent:
        notes.append(f"no expert mask has label {join_numbers(absent)} of {release.name}")
    volumes = [case.volumes_ml for case in labelled if case.volumes_ml]
    for outer, inner in itertools.pairwise(release.regions):
        nested = inner in release.inner(outer)
        if nested and all(volume[inner] == volume[outer] > 0 for volume in volumes):
            notes.append(
                f"{inner} equals {outer} in every case; are these masks of {release.name}?"
            )
    notes += [
        f"{region} is empty in every case"
        for region in release.regions
        if not any(volume[region] for volume in volumes)
    ]
    return notes


def _copies(cases: Sequence[CaseFacts]) -> list[str]:
    """Return one fault for files with the same voxels, or for all such files of the same cases."""
    by_sha256: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
    for index, case in enumerate(cases):
        for kind, file in case.files.items():
            if file.sha256 is not None:
                by_sha256[file.sha256].append((index, kind, file.path))
    groups: dict[tuple[int, ...], list[list[tuple[int, str, str]]]] = defaultdict(list)
    for files in by_sha256.values():
        if len(files) > 1:
            groups[tuple(dict.fromkeys(index for index, _, _ in files))].append(files)
    faults = []
    for owners, copies in groups.items():
        if len(owners) > 1:
            paths = " and ".join(dict.fromkeys(path for _, _, path in copies[0]))
            more = f", as in {len(copies) - 1} more files of each case" if len(copies) > 1 else ""
            faults.append(f"{paths}: the same voxels{more}; keep one of the cases")
            continue
        for files in copies:
            kinds = " and ".join(kind for _, kind, _ in files)
            if all(kind != LABEL for _, kind, _ in files):
                continue  # which reading the case has reported
            paths = " and ".join(dict.fromkeys(path for _, _, path in files))
            faults.append(f"{paths}: the same voxels for {kinds}; restore the right file of each")
    return faults


def _row(case: CaseFacts, regions: Sequence[str]) -> list[str]:
    """Return the cells of one line of the table."""
    files = [file for file in case.files.values() if file.shape is not None]
    first = files[0] if files else FileFacts("")
    sequences = [file for kind, file in case.files.items() if kind != LABEL]
    lows = [file.low for file in sequences if file.low is not None]
    highs = [file.high for file in sequences if file.high is not None]
    volumes = case.volumes_ml or {}
    length = case.report_words if case.report_tokens is None else case.report_tokens
    return [
        case.case_id,
        {1: "HGG", 0: "LGG"}.get(case.grade, "-"),
        "x".join(map(str, first.shape or "-")),
        "x".join("?" if mm is None else f"{mm:.3g}" for mm in first.spacing_mm or ()) or "-",
        first.orientation or "-",
        f"{min(lows):g}..{max(highs):g}" if lows else "-",
        " ".join([*(case.labels or "-")][:6]),
        *(f"{volumes[region]:.1f}" if region in volumes else "-" for region in regions),
        str(length) if length else "-",
        str(len(case.faults)) if case.faults else "-",
    ]
