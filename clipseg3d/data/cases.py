"""Find the BraTS cases of a folder, check their headers, and detect their release."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes

from clipseg3d.data.array_volume import VolumeSource
from clipseg3d.data.case_table import is_case_table, read_case_table
from clipseg3d.data.label_checks import ROUNDING, releases_with
from clipseg3d.data.layout import CaseFiles, group, walk
from clipseg3d.data.nifti import open_nifti, other_format, read_voxels, strip_extension
from clipseg3d.data.release import BraTSRelease
from clipseg3d.data.releases import RELEASES
from clipseg3d.data.reports import REPORT_SUFFIX, read_reports
from clipseg3d.formatting import join_numbers, join_sizes
from clipseg3d.text_files import read_report, read_table
from clipseg3d.vocabulary import LABEL, SEQUENCES

AFFINE_TOLERANCE_MM = 1e-2
GRADES = {"HGG": 1, "LGG": 0}
NAME_MAPPING = "name_mapping.csv"
"""Table of BraTS 2019 and 2020: a column Grade, and the name of each case in every release."""
MAX_NAME = 200
"""Bytes of the name of a case; a file name has 255, endings of maps included."""
FILES_SNIFFED = 20
"""Files whose first bytes are looked at where there is no NIfTI file."""
MASKS_READ = 10
"""Expert masks that are read where case names leave only one release."""


class DataError(ValueError):
    """Data that cannot be used; the message lists every fault, one line each.

    Attributes:
        faults: these lines; each names a file and a cure.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        head = [f"{len(faults)} faults in the data:"] if len(faults) > 1 else []
        super().__init__("\n".join([*head, *faults]))


@dataclass(frozen=True)
class Case:
    """One patient at one time point.

    Attributes:
        case_id: name of the case; its file names start with it.
        patient: name of the patient; splits keep all cases of a patient together.
        sequences: sequence -> file, or volume in memory, in the order of the release, without
            sequences that were not acquired.
        label: file of the expert mask; None without one.
        report: radiology report of this case; empty if there is none.
        grade: 1 for a high-grade glioma, 0 for a low-grade one, -1 if unknown.
        channels: sequence -> index along the fourth axis, where one file holds all sequences;
            empty where each sequence has its own file.
    """

    case_id: str
    patient: str
    sequences: Mapping[str, VolumeSource]
    label: Path | None = None
    report: str = ""
    grade: int = -1
    channels: Mapping[str, int] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, Path]:
        """Sequence, or ``LABEL``, -> file; without volumes in memory."""
        sources = {**self.sequences, **({LABEL: self.label} if self.label else {})}
        return {kind: path for kind, path in sources.items() if isinstance(path, Path)}

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
    one_grid: bool = True,
) -> list[Case]:
    """Find every case of a release below a folder, or fail; arguments as in :func:`index_cases`.

    Raises:
        FileNotFoundError: ``root`` or ``reports`` is missing, or there is no case below ``root``.
        DataError: files are missing, doubled, broken, on different grids, or belong to no case.
            All faults of all cases are listed.
    """
    cases, faults = index_cases(
        root,
        release,
        reports=reports,
        require_label=require_label,
        allow_missing=allow_missing,
        spacing_mm=spacing_mm,
        one_grid=one_grid,
    )
    if not cases:
        raise FileNotFoundError("\n".join(faults))
    if faults:
        raise DataError(faults)
    return cases


def segmentable_cases(
    folder: str | Path, release: BraTSRelease, *, reports: str | Path | None = None
) -> tuple[list[Case], list[str], list[str]]:
    """Find the cases below a folder that can be segmented, whatever their expert masks are.

    Grids, voxel sizes and missing sequences are left to the predictor.

    Returns:
        Usable cases, those with a faulty expert mask without it; faults of other cases and files;
        faults of expert masks.

    Raises:
        DataError: there is no case.
    """
    cases, faults = index_cases(
        folder, release, reports=reports, require_label=False, allow_missing=True, one_grid=False
    )
    if not cases:
        raise DataError(faults)
    usable: list[Case] = []
    notes: list[str] = []
    case_faults, _ = faults_by_case(cases, faults)
    for case, own in zip(cases, case_faults, strict=True):
        of_mask = [fault for fault in own if fault.startswith(f"{case.label}: ")]
        if len(of_mask) == len(own):
            usable.append(replace(case, label=None) if of_mask else case)
            notes += of_mask
    return usable, [fault for fault in faults if fault not in notes], notes


def index_cases(
    root: str | Path,
    release: BraTSRelease,
    *,
    reports: str | Path | None = None,
    require_label: bool = True,
    allow_missing: bool = False,
    spacing_mm: float | None = None,
    one_grid: bool = True,
) -> tuple[list[Case], list[str]]:
    """Find every case of a release below a folder, however deep, and check file headers.

    Files are recognised by name, with the extension ``.nii.gz`` or ``.nii``: as the patterns of the
    release say, or as its manifest lists them. Hidden files are ignored. Nothing is
    guessed: a NIfTI file that belongs to no case is a fault. Grades come from folders named HGG
    and LGG, or from ``name_mapping.csv``, in or above ``root``.

    Args:
        root: folder to search; nothing in it is changed. Or a table of cases, see
            :func:`clipseg3d.data.case_table.read_case_table`.
        release: says how files are named.
        reports: JSON or CSV file of reports by case name, see
            :func:`clipseg3d.data.reports.read_reports`; None reads ``{case}_flair_text.txt``
            in the folder of a case, if there is one.
        require_label: whether a case without expert mask is a fault.
        allow_missing: whether a case may lack sequences; it must have at least one.
        spacing_mm: voxel size that every volume must have; None allows any.
        one_grid: whether all sequences of a case must lie on one grid.

    Returns:
        Cases, sorted by name, also those with faults; and every fault of every case, one line
        each, sorted by file name.

    Raises:
        FileNotFoundError: ``root`` or ``reports`` is missing.
    """
    root = Path(root)
    required = (*(() if allow_missing else release.sequences), *((LABEL,) if require_label else ()))
    texts, report_faults = None, []
    try:
        texts = None if reports is None else read_reports(Path(reports))
    except ValueError as error:
        report_faults = [str(error)]
    files: list[Path] = []
    faults: list[str] = []
    if is_case_table(root):
        entries, faults = read_case_table(root, release, required)
    else:
        files, faults = walk(root)
        entries, strays, grouping_faults = group(files, release, required)
        faults += grouping_faults
        if not entries:
            return [], [_no_case(root, release, strays, files), *faults]
        faults += [
            f"{path}: not a file of {release.name}; {_naming(release)}, or move it out of {root}"
            for path in strays
        ]
    faults += report_faults
    grades, table_faults = _read_grades(root, files)
    faults += table_faults
    existing = set(files)
    cases = []
    for entry in entries:
        report = entry.report or ""
        report_file = entry.folder / f"{entry.case_id}{REPORT_SUFFIX}"
        if texts is not None:
            report = texts.get(entry.case_id, "")
        elif entry.report is None and report_file in existing:
            try:
                report = read_report(report_file)
            except (ValueError, FileNotFoundError) as error:
                faults.append(str(error))
        case = Case(
            case_id=entry.case_id,
            patient=entry.patient or release.patient(entry.case_id),
            sequences={s: entry.files[s] for s in release.sequences if s in entry.files},
            label=entry.files.get(LABEL),
            report=report,
            grade=_grade(entry, grades),
            channels=entry.channels,
        )
        faults += check_geometry(case, spacing_mm=spacing_mm, one_grid=one_grid)
        cases.append(case)
    folders_of = defaultdict(list)
    for entry in entries:
        folders_of[entry.case_id].append(str(entry.folder))
    faults += [
        f"{' and '.join(folders)}: each holds case {case_id}; keep one"
        for case_id, folders in folders_of.items()
        if len(folders) > 1
    ]
    if texts is not None and not any(case.report for case in cases):
        faults.append(f"{reports}: has no report of the cases in {root}; check its case names")
    # Sorted, the faults of one case follow each other.
    return sorted(cases, key=lambda case: case.case_id), sorted(faults)


def faults_by_case(
    cases: Sequence[Case], faults: Iterable[str]
) -> tuple[list[list[str]], list[str]]:
    """Assign the faults of :func:`index_cases` to the cases whose files they name first.

    Returns:
        Faults of each case, in the order of ``cases``; and faults that belong to no single case.
    """
    owners: dict[str, int] = {}  # start of a fault -> index of the case
    for index, case in enumerate(cases):
        owners[f"{case.case_id}: "] = index
        for path in case.files.values():
            owners[f"{path}: "] = index
            for separator in "_-":  # before the suffix of a file that is missing
                owners[str(path.parent / f"{case.case_id}{separator}")] = index
    by_case: list[list[str]] = [[] for _ in cases]
    others = []
    for fault in faults:
        starts = [start for start in owners if fault.startswith(start)]
        if starts:
            by_case[owners[max(starts, key=len)]].append(fault)
        else:
            others.append(fault)
    return by_case, others


def detect_release(root: str | Path) -> BraTSRelease:
    """Detect the release of the cases below a folder, from case names and label values.

    Expert masks are read if the case names leave several releases, until one of them is left. If
    those that are left differ only in further regions, the one with the fewest is taken.

    Raises:
        FileNotFoundError: ``root`` is missing.
        ValueError: the case names belong to no release or to several, or the labels fit none of
            the releases with such names, or several.
    """
    root = Path(root)
    cure = f"name the release, one of {', '.join(RELEASES)}, or the YAML file of your own"
    if is_case_table(root):
        raise ValueError(f"{root}: a table of cases does not say of which release they are; {cure}")
    files, _ = walk(root)
    owned: dict[str, dict[str, Path | None]] = {}
    for release in RELEASES.values():
        grouped = group(files, release, ()).cases
        cases = {c.case_id: c.files.get(LABEL) for c in grouped if release.owns(c.case_id)}
        if cases:
            owned[release.name] = cases
    if not owned:
        volumes = [path.name for path in files if strip_extension(path.name)]
        if not volumes:
            raise ValueError(
                f"{root}: holds no NIfTI file, and so is of no known release{_formats(files)}; "
                f"check the path, or {cure}"
            )
        raise ValueError(
            f"{root}: holds files such as {', '.join(volumes[:3])}, of no known release; {cure}"
        )
    names = " and ".join(
        f"{name} ({len(cases)}, such as {next(iter(cases))})" for name, cases in owned.items()
    )
    every_case = set().union(*owned.values())
    candidates = [name for name, cases in owned.items() if cases.keys() == every_case]
    # Names that only one release has say more than labels, which may be of another release.
    candidates = [name for name in candidates if RELEASES[name].own_pattern] or candidates
    if not candidates:
        raise ValueError(f"{root}: holds cases of {names}; give a folder of one release")
    if len(candidates) == 1:  # labels that do not fit are faults of their files
        return RELEASES[candidates[0]]
    masks = [mask for mask in owned[candidates[0]].values() if mask]
    labels, fitting = _match_labels(masks, candidates)
    if (narrowest := _narrowest(fitting)) is not None:
        return narrowest
    expected = " and ".join(f"{n} ({join_numbers(RELEASES[n].labels)})" for n in candidates)
    raise ValueError(
        f"{root}: holds case names of {names}, and expert masks with the labels "
        f"{join_numbers(labels)}, which {'fit each of' if fitting else 'do not fit'} {expected}; "
        f"{cure}"
    )


def case_from_files(
    files: Mapping[str, str | Path],
    *,
    name: str | None = None,
    sequences: Sequence[str] = SEQUENCES,
    allow_missing: bool = False,
) -> Case:
    """Make a case without expert mask from files of any names.

    Args:
        files: sequence -> file, for all of ``sequences``.
        name: of the case; None takes the name of the folder that holds the files.
        sequences: that a case has.
        allow_missing: whether the case may lack sequences; it must have at least one.

    Raises:
        DataError: a sequence is not given, or its file is missing or broken.
        ValueError: a file is given for another sequence; the name cannot be that of a file; or none
            is given, and the files lie in several folders.
    """
    if unknown := [sequence for sequence in files if sequence not in sequences]:
        raise ValueError(
            f"{unknown[0]}: no sequence that these weights read; choose from {', '.join(sequences)}"
        )
    missing = [sequence for sequence in sequences if sequence not in files]
    if missing and not (allow_missing and files):
        raise DataError(
            [
                f"{name}: no file given; name one for each of {', '.join(sequences)}"
                for name in missing
            ]
        )
    paths = {sequence: Path(files[sequence]) for sequence in sequences if sequence in files}
    folders = sorted({path.absolute().parent for path in paths.values()})
    if name is None:
        if len(folders) > 1:
            raise ValueError(
                f"the files lie in {len(folders)} folders, such as {folders[0]} and {folders[1]}; "
                "give the case a name (name, --name)"
            )
        name = folders[0].resolve().name
    if not name.strip(". ") or any(character in name for character in "/\\\0"):
        raise ValueError(f"name={name!r} cannot be that of a file; give the case another (--name)")
    if len(os.fsencode(name)) > MAX_NAME:
        raise ValueError(
            f"name={name[:20]!r}... of {len(os.fsencode(name))} bytes is too long for a file; give "
            "the case another (--name)"
        )
    case = Case(case_id=name, patient=name, sequences=paths)
    faults = [
        f"{path}: given for {' and '.join(sharing)}; name one file for each"
        for path in dict.fromkeys(paths.values())
        if len(sharing := [sequence for sequence, other in paths.items() if other == path]) > 1
    ]
    faults += check_geometry(case, one_grid=False)
    if faults:
        raise DataError(faults)
    return case


def check_geometry(
    case: Case, *, spacing_mm: float | None = None, one_grid: bool = True
) -> list[str]:
    """Compare the grids of the files of a case; only headers are read.

    Args:
        case: case to check.
        spacing_mm: expected voxel size; None allows any that all files share.
        one_grid: whether all sequences must lie on one grid; an expert mask must lie on that of a
            sequence in any case.

    Returns:
        Faults, one line each: an unreadable file, a shape or affine that differs from those of
        the first sequence, a voxel size that is not the expected one.
    """
    faults: list[str] = []
    first: tuple[VolumeSource, Any] | None = None
    grids: list[Any] = []
    files: dict[VolumeSource, int] = dict.fromkeys(case.sequences.values(), case.axes)
    if case.label:
        files[case.label] = 3
    for path, axes in files.items():
        try:
            image = open_nifti(path, axes=axes)
        except (ValueError, FileNotFoundError) as error:
            faults.append(str(error))
            continue
        if not np.isfinite(image.affine).all() or np.linalg.det(image.affine) == 0:
            faults.append(
                f"{path}: its affine has no inverse, or is not finite; export the file again"
            )
            continue
        shape = image.shape[:3]
        if axes == 4 and image.shape[3] <= max(case.channels.values()):
            faults.append(
                f"{path}: holds {image.shape[3]} volumes, too few for channels "
                f"{join_numbers(case.channels.values())}; export the file again"
            )
        if first is None:
            first = path, image
            spacing = voxel_sizes(image.affine)
            if spacing_mm is not None and not np.allclose(spacing, spacing_mm, rtol=0.02):
                faults.append(
                    f"{path}: voxels of {join_sizes(spacing)} mm, expected "
                    f"{spacing_mm:g} mm; resample the case, or train with the voxel size of all "
                    "cases (spacing_mm)"
                )
        elif not one_grid and (path != case.label or any(same_grid(image, g) for g in grids)):
            pass
        elif shape != first[1].shape[:3]:
            faults.append(
                f"{path}: shape {join_sizes(shape)} differs from "
                f"{join_sizes(first[1].shape[:3])} of {first[0].name}; register both to one grid"
            )
        elif not same_grid(image, first[1]):
            gap = float(np.abs(image.affine - first[1].affine).max())
            faults.append(
                f"{path}: affine differs from that of {first[0].name} by up to {gap:.3g} mm; "
                "register both to one grid"
            )
        grids.append(image)
    return faults


def same_grid(one: Any, other: Any) -> bool:
    """Return whether two images of nibabel have the same shape and affine."""
    return one.shape[:3] == other.shape[:3] and np.allclose(
        one.affine, other.affine, atol=AFFINE_TOLERANCE_MM
    )


def _match_labels(masks: Sequence[Path], names: list[str]) -> tuple[list[float], list[str]]:
    """Read expert masks until their labels leave one release or none.

    The first ``MASKS_READ`` of them are spread over the folder, and read in any case. A mask with
    labels that none of the releases has is passed over: it is a fault of its file.

    Args:
        masks: files.
        names: names of the releases to choose from.

    Returns:
        The labels in the masks that were read, and the releases that have all of them.
    """
    spread = masks[:: max(1, len(masks) // MASKS_READ)]
    labels: set[float] = {0}
    fitting = names
    for count, mask in enumerate([*spread, *sorted(set(masks) - set(spread))]):
        if not fitting or (len(fitting) == 1 and count >= MASKS_READ):
            break
        try:
            voxels = read_voxels(mask)
        except (ValueError, FileNotFoundError):  # index_cases reports it
            continue
        values = np.unique(voxels[voxels != 0])
        whole = np.rint(values)
        if np.abs(values - whole).max(initial=0) > ROUNDING:
            continue
        if not any(name in names for name in releases_with(whole.tolist())):
            continue
        labels.update(whole.tolist())
        fitting = [name for name in releases_with(labels) if name in names]
    return sorted(labels), fitting


def _narrowest(names: list[str]) -> BraTSRelease | None:
    """Return the release whose regions all others have too, with the same labels and files."""
    for release in (RELEASES[name] for name in names):
        if all(
            release.sequences == other.sequences
            and release.label == other.label
            and release.regions.items() <= other.regions.items()
            for other in (RELEASES[name] for name in names)
        ):
            return release
    return None


def _formats(files: Sequence[Path]) -> str:
    """Say what the first file of another format is, and how to convert it."""
    for path in files[:FILES_SNIFFED]:
        if path.is_file() and (found := other_format(path)) is not None:
            return f" ({path} {found})"
    return ""


def _no_case(
    root: Path, release: BraTSRelease, strays: Sequence[Path], files: Sequence[Path]
) -> str:
    """Say that a folder holds no case, and what it holds instead."""
    names = ", ".join(f"{pattern}.nii.gz" for pattern in release.sequences.values())
    expected = f"listed in {release.manifest}" if release.manifest else f"named {names}"
    example = f"; it holds files such as {strays[0]}" if strays else _formats(files)
    return (
        f"{root}: no case of {release.name} in it (files {expected}){example}; check the path, and "
        "that the data module is for this release"
    )


def _naming(release: BraTSRelease) -> str:
    """Say how a file must be named or listed to belong to a case."""
    if release.manifest:
        return f"list it in {release.manifest}"
    names = ", ".join(f"{name}.nii.gz" for name in (*release.sequences.values(), release.label))
    return f"rename it to one of {names}"


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
            faults.append(f"{path}: has no column Grade; restore the published file")
            continue
        for row in rows:
            if row["Grade"] in GRADES:
                grades.update(dict.fromkeys(row.values(), GRADES[row["Grade"]]))
    return grades, faults


def _grade(entry: CaseFiles, grades: Mapping[str, int]) -> int:
    """Return the grade of the nearest folder HGG or LGG, or of the name mapping, or -1."""
    for part in reversed(entry.folder.absolute().parts):
        if part in GRADES:
            return GRADES[part]
    return grades.get(entry.case_id, -1)
