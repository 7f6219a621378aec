"""Index a folder of BraTS cases and check it; tell which release it is."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes

from clipseg3d.data.layout import CaseFiles, group, walk
from clipseg3d.data.nifti import open_nifti, read_voxels, strip_extension
from clipseg3d.data.releases import RELEASES, BraTSRelease
from clipseg3d.data.reports import REPORT_SUFFIX, read_reports
from clipseg3d.data.text_files import read_table, read_text
from clipseg3d.formatting import join_numbers
from clipseg3d.vocabulary import LABEL, SEQUENCES

AFFINE_TOLERANCE_MM = 1e-2
GRADES = {"HGG": 1, "LGG": 0}
NAME_MAPPING = "name_mapping.csv"
"""Table of BraTS 2019 and 2020: a column Grade, and the case's name in every year's release."""
MASKS_READ = 10
"""Masks that are compared with a release that names tell already."""


class DataError(ValueError):
    """Input that cannot be used; lists every fault found, one line each.

    Attributes:
        faults: the lines, each naming a file and a cure.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        head = [f"{len(faults)} faults in the data:"] if len(faults) > 1 else []
        super().__init__("\n".join([*head, *faults]))


@dataclass(frozen=True)
class Case:
    """One patient at one time point.

    Attributes:
        case_id: name, shared by the case's files.
        patient: who it is; splits keep all cases of a patient together.
        sequences: sequence -> file, in ``SEQUENCES`` order; a sequence that was not acquired is
            left out.
        label: expert mask, where known.
        report: free text about this case; empty if there is none.
        grade: 1 for a high-grade, 0 for a low-grade glioma, -1 where it is not known.
        channels: sequence -> index along the fourth axis of its file, where one file holds all
            sequences; empty where each has its own.
    """

    case_id: str
    patient: str
    sequences: Mapping[str, Path]
    label: Path | None = None
    report: str = ""
    grade: int = -1
    channels: Mapping[str, int] = field(default_factory=dict)

    @property
    def axes(self) -> int:
        """Number of axes of an image file: 4 where one file holds all sequences, else 3."""
        return 4 if self.channels else 3


def find_cases(
    root: str | Path,
    release: BraTSRelease,
    *,
    reports: str | Path | None = None,
    require_label: bool = True,
    allow_missing: bool = False,
    spacing_mm: float | None = 1.0,
) -> list[Case]:
    """Find every case of a release below a folder, as :func:`index_cases`, or fail.

    Raises:
        FileNotFoundError: ``root`` or ``reports`` is missing, or there is no case below ``root``.
        DataError: files are missing, doubled, not understood, broken or of different geometry.
            All faults of all cases are listed.
    """
    cases, faults = index_cases(
        root,
        release,
        reports=reports,
        require_label=require_label,
        allow_missing=allow_missing,
        spacing_mm=spacing_mm,
    )
    if not cases:
        raise FileNotFoundError("\n".join(faults))
    if faults:
        raise DataError(faults)
    return cases


def index_cases(
    root: str | Path,
    release: BraTSRelease,
    *,
    reports: str | Path | None = None,
    require_label: bool = True,
    allow_missing: bool = False,
    spacing_mm: float | None = None,
) -> tuple[list[Case], list[str]]:
    """Find every case of a release below a folder, however deep, and check file headers.

    Files are told apart by name: ``{case}_{suffix}.nii.gz`` or ``.nii``, with the suffixes and the
    separator of the release, or as its manifest lists them. Hidden files are passed over. Nothing
    is guessed: a NIfTI file that is no part of a case is a fault. Grades are those of folders HGG
    and LGG, or of ``name_mapping.csv``, in or above ``root``.

    Args:
        root: folder to search; only read.
        release: how files are named.
        reports: JSON or CSV file of reports by case name, see
            :func:`clipseg3d.data.reports.read_reports`; None takes ``{case}_flair_text.txt``
            beside a case's images where there is one.
        require_label: whether a case without expert mask is a fault.
        allow_missing: whether a case may lack sequences, though not all.
        spacing_mm: voxel size that every volume must have; None takes any.

    Returns:
        Cases by name, also those with faults; and every fault of every case, one line each, by
        the name of the file.

    Raises:
        FileNotFoundError: ``root`` or ``reports`` is missing.
    """
    root = Path(root)
    files, faults = walk(root)
    texts = None
    try:
        texts = None if reports is None else read_reports(Path(reports))
    except ValueError as error:
        faults.append(str(error))
    required = (*(() if allow_missing else SEQUENCES), *((LABEL,) if require_label else ()))
    found = group(files, release, required)
    faults += found.faults
    if not found.cases:
        return [], [_no_case(root, release, found.strays), *faults]
    faults += [
        f"{path}: not a file of {release.name}; {_naming(release)}, or move it out of {root}"
        for path in found.strays
    ]
    grades, unusable = _read_grades(root, files)
    faults += unusable
    there = set(files)
    cases = []
    for entry in found.cases:
        report = "" if texts is None else texts.get(entry.case_id, "")
        beside = entry.folder / f"{entry.case_id}{REPORT_SUFFIX}"
        if texts is None and beside in there:
            try:
                report = read_text(beside)
            except (ValueError, FileNotFoundError) as error:
                faults.append(str(error))
        case = Case(
            case_id=entry.case_id,
            patient=release.patient(entry.case_id),
            sequences={s: entry.files[s] for s in SEQUENCES if s in entry.files},
            label=entry.files.get(LABEL),
            report=report,
            grade=_grade(entry, grades),
            channels=entry.channels,
        )
        faults += check_geometry(case, spacing_mm=spacing_mm)
        cases.append(case)
    places = defaultdict(list)
    for entry in found.cases:
        places[entry.case_id].append(str(entry.folder))
    faults += [
        f"{' and '.join(folders)}: both hold case {case_id}; keep one"
        for case_id, folders in places.items()
        if len(folders) > 1
    ]
    if texts is not None and not any(case.report for case in cases):
        faults.append(f"{reports}: names none of the cases in {root}; check the case names in it")
    return sorted(cases, key=lambda case: case.case_id), sorted(faults)  # files of a case together


def faults_by_case(
    cases: Sequence[Case], faults: Iterable[str]
) -> tuple[list[list[str]], list[str]]:
    """Deal the faults of :func:`index_cases` out to the cases whose files they start with.

    Returns:
        Faults of each case, in the order of ``cases``; and those of no single case.
    """
    marks: dict[str, int] = {}
    for index, case in enumerate(cases):
        for path in [*case.sequences.values(), *([case.label] if case.label else [])]:
            marks[f"{path}: "] = index
            for separator in "_-":  # before the suffix of a file that is missing
                marks[str(path.parent / f"{case.case_id}{separator}")] = index
    owned: list[list[str]] = [[] for _ in cases]
    others = []
    for fault in faults:
        fitting = [mark for mark in marks if fault.startswith(mark)]
        if fitting:
            owned[marks[max(fitting, key=len)]].append(fault)
        else:
            others.append(fault)
    return owned, others


def detect_release(root: str | Path) -> BraTSRelease:
    """Tell which release the cases below a folder are from, by case names and label values.

    Masks are read: some where the names leave no choice, else as many as it takes.

    Raises:
        FileNotFoundError: ``root`` is missing.
        ValueError: the names are of no release or of several, or the labels leave none or
            several to choose from; the message shows what was seen.
    """
    root = Path(root)
    files, _ = walk(root)
    owned: dict[str, dict[str, Path | None]] = {}
    for release in RELEASES.values():
        found = group(files, release, ()).cases
        cases = {c.case_id: c.files.get(LABEL) for c in found if release.owns(c.case_id)}
        if cases:
            owned[release.name] = cases
    cure = f"name the release, one of {', '.join(RELEASES)}"
    if not owned:
        volumes = [path.name for path in files if strip_extension(path.name)]
        seen = f"files such as {', '.join(volumes[:3])}" if volumes else "no NIfTI file"
        raise ValueError(f"{root}: holds {seen}, which are of no known release; {cure}")
    names = " and ".join(
        f"{name} ({len(cases)}, such as {next(iter(cases))})" for name, cases in owned.items()
    )
    one, *others = owned.values()
    if any(cases.keys() != one.keys() for cases in others):
        raise ValueError(f"{root}: holds cases of {names}; give a folder with those of one")
    labels, fitting = _match_labels([mask for mask in one.values() if mask], list(owned))
    if len(fitting) == 1:
        return RELEASES[fitting[0]]
    due = " and ".join(f"{name} ({join_numbers(RELEASES[name].labels)})" for name in owned)
    raise ValueError(
        f"{root}: holds case names of {names}, and masks with the labels {join_numbers(labels)}, which "
        f"{'fit each of' if fitting else 'do not fit'} {due}; {cure}"
    )


def case_from_files(files: Mapping[str, str | Path], *, allow_missing: bool = False) -> Case:
    """Make an unlabelled case of files that follow no naming rule.

    Args:
        files: sequence -> file, every one of ``SEQUENCES``.
        allow_missing: whether the case may lack sequences, though not all.

    Returns:
        The case, named by what the file names start with alike, else by the folder of the first.

    Raises:
        DataError: a sequence is not given, or its file is missing, broken or of another grid.
    """
    missing = [sequence for sequence in SEQUENCES if sequence not in files]
    if missing and not (allow_missing and files):
        raise DataError(
            [
                f"{name}: no file given; name one for each of {', '.join(SEQUENCES)}"
                for name in missing
            ]
        )
    paths = {sequence: Path(files[sequence]) for sequence in SEQUENCES if sequence in files}
    stems = [strip_extension(path.name) or path.name for path in paths.values()]
    shared = os.path.commonprefix(stems)  # noqa: RUF071 - names, not paths: by characters
    name = shared.rstrip("_-. ")
    name = name or next(iter(paths.values())).absolute().parent.name
    case = Case(case_id=name, patient=name, sequences=paths)
    faults = [
        f"{path}: given for {' and '.join(same)}; name one file for each"
        for path in dict.fromkeys(paths.values())
        if len(same := [sequence for sequence, other in paths.items() if other == path]) > 1
    ]
    faults += check_geometry(case)
    if faults:
        raise DataError(faults)
    return case


def check_geometry(case: Case, *, spacing_mm: float | None = None) -> list[str]:
    """Compare the grids of a case's files; only headers are read.

    Args:
        case: what to check.
        spacing_mm: voxel size due; None takes any that all files share.

    Returns:
        Faults, one line each: unreadable files, another shape or affine than the first
        sequence's, another voxel size.
    """
    faults: list[str] = []
    first: tuple[Path, tuple[int, ...], np.ndarray] | None = None
    files = dict.fromkeys(case.sequences.values(), case.axes)
    if case.label:
        files[case.label] = 3
    for path, axes in files.items():
        try:
            image = open_nifti(path, axes=axes)
        except (ValueError, FileNotFoundError) as error:
            faults.append(str(error))
            continue
        if not np.isfinite(image.affine).all() or np.linalg.det(image.affine) == 0:
            faults.append(f"{path}: its affine is no place in space; export the file again")
            continue
        shape = image.shape[:3]
        if axes == 4 and image.shape[3] <= max(case.channels.values()):
            faults.append(
                f"{path}: holds {image.shape[3]} volumes, too few for channels "
                f"{join_numbers(case.channels.values())}; export the file again"
            )
        if first is None:
            first = path, shape, image.affine
            spacing = voxel_sizes(image.affine)
            if spacing_mm is not None and not np.allclose(spacing, spacing_mm, rtol=0.02):
                faults.append(
                    f"{path}: voxels of {_by(spacing.round(3))} mm, expected {spacing_mm:g} mm; "
                    "resample the case, or set spacing_mm to what all cases have"
                )
        elif shape != first[1]:
            faults.append(
                f"{path}: shape {_by(shape)} differs from {_by(first[1])} of "
                f"{first[0].name}; register both to one grid"
            )
        elif not np.allclose(image.affine, first[2], atol=AFFINE_TOLERANCE_MM):
            gap = float(np.abs(image.affine - first[2]).max())
            faults.append(
                f"{path}: affine differs from that of {first[0].name} by up to {gap:.3g} mm; "
                "register both to one grid"
            )
    return faults


def _match_labels(masks: Sequence[Path], names: list[str]) -> tuple[list[float], list[str]]:
    """Return labels seen in masks, and the releases that have all of them.

    Reads ``MASKS_READ`` masks from all over the folder, then the others while there is a choice.
    """
    spread = masks[:: max(1, len(masks) // MASKS_READ)]
    seen: set[float] = {0}
    fitting = names
    for count, mask in enumerate([*spread, *sorted(set(masks) - set(spread))]):
        if not fitting or (len(fitting) == 1 and count >= MASKS_READ):
            break
        try:
            voxels = read_voxels(mask)
        except (ValueError, FileNotFoundError):  # index_cases tells of it
            continue
        seen.update(np.unique(voxels[voxels != 0]).tolist())
        fitting = [name for name in names if seen <= set(RELEASES[name].labels)]
    return sorted(seen), fitting


def _no_case(root: Path, release: BraTSRelease, strays: Sequence[Path]) -> str:
    """Say that a folder holds no case, and what it holds."""
    endings = ", ".join(f"{release.separator}{s}.nii.gz" for s in release.suffixes.values())
    due = f"listed in {release.manifest}" if release.manifest else f"ending in {endings}"
    seen = f"; files there are {strays[0]} and the like" if strays else ""
    return (
        f"{root}: no case of {release.name} in it (files {due}){seen}; check the path, and that "
        "the data module fits the release"
    )


def _naming(release: BraTSRelease) -> str:
    """Say how to make a volume part of a case."""
    if release.manifest:
        return f"list it in {release.manifest}"
    suffixes = ", ".join([*release.suffixes.values(), release.label_suffix])
    return f"rename it to {{case}}{release.separator}SUFFIX.nii.gz with SUFFIX one of {suffixes}"


def _read_grades(root: Path, files: Sequence[Path]) -> tuple[dict[str, int], list[str]]:
    """Read the grades in name mappings below ``root``, or else in the nearest one above it."""
    above = (parent / NAME_MAPPING for parent in root.absolute().parents)
    tables = [path for path in files if path.name == NAME_MAPPING]
    tables = tables or [path for path in above if os.path.isfile(path)][:1]
    grades: dict[str, int] = {}
    faults = []
    for path in tables:
        try:
            rows = read_table(path)
        except (ValueError, FileNotFoundError) as error:
            faults.append(str(error))
            continue
        if rows and "Grade" not in rows[0]:
            faults.append(f"{path}: has no column Grade; restore the file as published")
            continue
        for row in rows:
            if row["Grade"] in GRADES:
                grades.update(dict.fromkeys(row.values(), GRADES[row["Grade"]]))
    return grades, faults


def _grade(entry: CaseFiles, grades: Mapping[str, int]) -> int:
    """Return a grade from the nearest folder HGG or LGG, else from a name mapping, else -1."""
    for part in reversed(entry.folder.absolute().parts):
        if part in GRADES:
            return GRADES[part]
    return grades.get(entry.case_id, -1)


def _by(sizes: Sequence[float]) -> str:
    """Format sizes as 240x240x155."""
    return "x".join(f"{size:g}" for size in sizes)
