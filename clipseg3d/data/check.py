"""Check a folder of cases: what each holds, and everything that is wrong with it."""

import hashlib
import json
import math
import os
import struct
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from clipseg3d.data.nifti import open_nifti, read_voxels
from clipseg3d.data.preprocessing import label_faults, preprocess
from clipseg3d.data.releases import BraTSRelease
from clipseg3d.formatting import align_columns
from clipseg3d.vocabulary import LABEL, REGIONS, SEQUENCES


@dataclass(frozen=True)
class FileFacts:
    """One sequence or expert mask; None stands for what could not be read, or was not.

    Attributes:
        path: its file.
        shape: (x, y, z).
        spacing_mm: voxel size along x, y and z.
        orientation: where the voxel axes point to, such as LPS: left, posterior, superior.
        affine: 4 x 4, from voxels to mm.
        dtype: number type in the file.
        low: smallest voxel.
        high: largest voxel.
        sha256: of the voxels as little-endian float32, first axis fastest; None also where all
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
    """One case.

    Attributes:
        case_id: its name.
        patient: who it is.
        grade: 1 for a high-grade, 0 for a low-grade glioma, -1 where it is not known.
        missing: sequences, and ``LABEL``, without a file.
        files: sequence, or ``LABEL``, -> what its file holds.
        labels: label value -> voxels; None without a readable mask.
        volumes_ml: region -> volume; None without a readable mask.
        report_words: words of its report, 0 without one.
        report_tokens: the same in tokens, where a tokenizer was given.
        faults: what is wrong, each line naming a file and a cure.
        notes: what is unusual, but no fault.
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
    """A checked folder.

    Attributes:
        root: the folder.
        release: name of the release that it was checked against.
        cases: by name.
        other_faults: what is wrong with no single case: strays, copies, unreadable folders.
        notes: what is unusual about the whole, but no fault.
    """

    root: str
    release: str
    cases: tuple[CaseFacts, ...]
    other_faults: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def faults(self) -> list[str]:
        """Every fault, case by case, then those of no single case."""
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
        counted = any(case.report_tokens is not None for case in self.cases)
        head = ["case", "grade", "shape", "mm", "axes", "range", "labels"]
        head += [f"{region} ml" for region in REGIONS]
        head += ["tokens" if counted else "words", "faults"]
        lines = []
        if self.cases:
            lines = align_columns([head, *map(_row, self.cases)], left=1).splitlines()
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
    """Check every case of a release below a folder; nothing stops at the first fault.

    Faults are those that the DataModules refuse a case for, in the same words, and voxels that lie
    there under two names. Without ``read_all``, only headers, masks and the ends of files are read,
    which shows cut-off files; a case that looks wrong by them is read whole.

    Args:
        root: folder to search; only read.
        release: how files are named, and what labels mean.
        reports: as for :func:`clipseg3d.data.cases.index_cases`.
        require_label: as there.
        allow_missing: as there.
        spacing_mm: as there.
        read_all: read the voxels of all sequences too: NaN, empty and constant sequences, masks
            beside the brain, copies.
        count_tokens: length of a report in the tokens of some text encoder.
        num_threads: cases read at once; some 0.5 GB of memory each at 240x240x155 with
            ``read_all``.

    Raises:
        FileNotFoundError: ``root`` or ``reports`` is missing.
    """
    cases, found = index_cases(
        root,
        release,
        reports=reports,
        require_label=require_label,
        allow_missing=allow_missing,
        spacing_mm=spacing_mm,
    )
    owned, others = faults_by_case(cases, found)
    check = partial(_check_case, release=release, read_all=read_all, count_tokens=count_tokens)
    with ThreadPoolExecutor(max_workers=num_threads) as pool:
        results = pool.map(check, cases, owned)
        facts = list(tqdm(results, total=len(cases), desc="Checking cases", unit="case", delay=2))
    silent = sum(not case.report for case in cases)
    notes = (f"{silent} of {len(cases)} cases have no report",) if 0 < silent < len(cases) else ()
    return DataCheck(
        root=str(root),
        release=release.name,
        cases=tuple(facts),
        other_faults=(*others, *_copies(facts)),
        notes=notes,
    )


def _check_case(
    case: Case,
    faults: Sequence[str],
    *,
    release: BraTSRelease,
    read_all: bool,
    count_tokens: Callable[[str], int] | None,
) -> CaseFacts:
    """Read one case, and add to the faults that its headers show."""
    faults = [*faults]
    notes = []
    files: dict[str, FileFacts] = {}
    labels: dict[str, int] | None = None
    volumes: dict[str, float] | None = None
    whole = read_all or _looks_wrong(case)
    for path in dict.fromkeys(case.sequences.values()):
        voxels = _read(path, case.axes, faults) if whole else None
        for name in (name for name, file in case.sequences.items() if file == path):
            volume = voxels
            if voxels is not None and case.channels:
                channel = case.channels[name]
                volume = voxels[..., channel] if channel < voxels.shape[3] else None
            files[name] = _facts(path, case.axes, volume)
    if whole:
        faults += _refusals(case, release)
    if case.label is not None:
        mask = _read(case.label, 3, faults)
        files[LABEL] = _facts(case.label, 3, mask)
        if mask is not None:
            faults += label_faults(case.label, mask, release)
            values, counts = np.unique(mask[mask != 0], return_counts=True)  # few to be sorted
            count_of = dict(zip(values.tolist(), counts.tolist(), strict=True))
            if not count_of:
                notes.append(f"{case.label}: marks no tumour")
            if background := mask.size - sum(count_of.values()):
                count_of[0] = background
            labels = {f"{value:g}": count for value, count in sorted(count_of.items())}
            ml = abs(float(np.linalg.det(open_nifti(case.label).affine[:3, :3]))) / 1000
            if math.isfinite(ml):
                volumes = {
                    region: ml * sum(count_of.get(value, 0) for value in release.regions[region])
                    for region in REGIONS
                }
    return CaseFacts(
        case_id=case.case_id,
        patient=case.patient,
        grade=case.grade,
        missing=tuple(kind for kind in (*SEQUENCES, LABEL) if kind not in files),
        files=files,
        labels=labels,
        volumes_ml=volumes,
        report_words=len(case.report.split()),
        report_tokens=count_tokens(case.report) if count_tokens and case.report else None,
        faults=tuple(dict.fromkeys(faults)),  # one broken file is met more than once
        notes=tuple(notes),
    )


def _looks_wrong(case: Case) -> bool:
    """Say whether ends of files hint at a cut-off sequence, or at one file for two sequences.

    A gzip file ends with the check sum and the length of what it holds. Files of several gzip
    members look wrong too, since only the last one's length is found there.
    """
    ends = []
    for path in dict.fromkeys(case.sequences.values()):
        try:
            image = open_nifti(path, axes=case.axes)
            size = path.stat().st_size
            end: tuple[object, int] = path, size
            if path.name.endswith(".gz"):
                with path.open("rb") as file:
                    file.seek(-8, os.SEEK_END)
                    checksum, size = struct.unpack("<II", file.read(8))
                    end = checksum, size
        except (ValueError, OSError):  # a fault that is known already
            continue
        due = image.dataobj.offset + math.prod(image.shape) * image.get_data_dtype().itemsize
        if size != due % 2**32:
            return True
        ends.append(end)
    return len(set(ends)) < len(ends)


def _read(path: Path, axes: int, faults: list[str]) -> npt.NDArray[Any] | None:
    """Return the voxels of a file, or add why there are none."""
    try:
        return read_voxels(path, axes=axes)
    except (ValueError, FileNotFoundError) as error:
        faults.append(str(error))
        return None


def _facts(path: Path, axes: int, volume: npt.NDArray[Any] | None) -> FileFacts:
    """Return what the header of a file says, and what its voxels do where they were read."""
    try:
        image = open_nifti(path, axes=axes)
    except (ValueError, FileNotFoundError):
        return FileFacts(str(path))
    affine = image.affine
    known = bool(np.isfinite(affine).all())
    low, high = (None, None) if volume is None else (float(volume.min()), float(volume.max()))
    return FileFacts(
        path=str(path),
        shape=tuple(int(size) for size in image.shape[:3]),
        spacing_mm=_finite(voxel_sizes(affine)),
        orientation="".join(c or "?" for c in nib.aff2axcodes(affine)) if known else None,
        affine=tuple(_finite(row) for row in affine),
        dtype=str(image.get_data_dtype()),
        low=low,
        high=high,
        sha256=None if volume is None or low == high else _sha256_of_voxels(volume),
    )


def _finite(values: npt.NDArray[Any]) -> tuple[float | None, ...]:
    """Return numbers as JSON can hold them."""
    return tuple(value if math.isfinite(value) else None for value in values.tolist())


def _sha256_of_voxels(volume: npt.NDArray[Any]) -> str:
    """Return the SHA-256 of voxels, whatever number type they are stored in."""
    with np.errstate(over="ignore"):  # preprocessing refuses what float32 cannot hold
        content = np.ascontiguousarray(volume.T, dtype="<f4")
    return hashlib.sha256(content.data).hexdigest()


def _refusals(case: Case, release: BraTSRelease) -> list[str]:
    """Return why preprocessing refuses a case, whose headers have been checked.

    It stops at faults that keep it from looking further. Then sequences are tried one by one, and
    those that pass with the mask.
    """
    found = _refused(case, release)
    if found == []:
        return []
    faults = found or []
    usable = {}
    for name, path in case.sequences.items():
        alone = _refused(replace(case, sequences={name: path}, label=None), release)
        faults += alone or []
        if alone == []:
            usable[name] = path
    return faults + (_refused(replace(case, sequences=usable), release) or [])


def _refused(case: Case, release: BraTSRelease) -> list[str] | None:
    """Return why preprocessing refuses a case; None if its headers forbid to try."""
    if not case.sequences or check_geometry(case):
        return None
    try:
        preprocess(case, release)
    except DataError as error:
        return [*error.faults]
    return []


def _copies(cases: Sequence[CaseFacts]) -> list[str]:
    """Name files that hold the same voxels; cases that share several of them are named once."""
    same: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
    for index, case in enumerate(cases):
        for kind, file in case.files.items():
            if file.sha256 is not None:
                same[file.sha256].append((index, kind, file.path))
    groups: dict[tuple[int, ...], list[list[tuple[int, str, str]]]] = defaultdict(list)
    for files in same.values():
        if len(files) > 1:
            groups[tuple(dict.fromkeys(index for index, _, _ in files))].append(files)
    faults = []
    for members, copies in groups.items():
        if len(members) > 1:
            paths = " and ".join(dict.fromkeys(path for _, _, path in copies[0]))
            more = f", as in {len(copies) - 1} more files of each case" if len(copies) > 1 else ""
            faults.append(f"{paths}: the same voxels{more}; keep one of the cases")
            continue
        for files in copies:
            paths = " and ".join(dict.fromkeys(path for _, _, path in files))
            kinds = " and ".join(kind for _, kind, _ in files)
            faults.append(f"{paths}: the same voxels for {kinds}; restore the right file of each")
    return faults


def _row(case: CaseFacts) -> list[str]:
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
        *(f"{volumes[region]:.1f}" if region in volumes else "-" for region in REGIONS),
        str(length) if length else "-",
        str(len(case.faults)) if case.faults else "-",
    ]
