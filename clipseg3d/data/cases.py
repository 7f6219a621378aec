"""Index a folder of BraTS cases, check it, and split it by patient."""

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes

from clipseg3d.data.nifti import open_nifti, strip_extension
from clipseg3d.data.releases import SEQUENCES, BraTSRelease

REPORT_SUFFIX = "_flair_text.txt"
"""A report beside its case, named as in TextBraTS: ``{case}_flair_text.txt``."""
AFFINE_TOLERANCE_MM = 1e-2
LABEL = "label"
GRADES = {"HGG": 1, "LGG": 0}


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
        sequences: sequence -> file, in ``SEQUENCES`` order.
        label: expert mask, where known.
        report: free text about this case; empty if there is none.
        grade: 1 for a high-grade, 0 for a low-grade glioma, -1 where it is not known.
    """

    case_id: str
    patient: str
    sequences: Mapping[str, Path]
    label: Path | None = None
    report: str = ""
    grade: int = -1


def find_cases(
    root: str | Path,
    release: BraTSRelease,
    *,
    reports: str | Path | None = None,
    require_label: bool = True,
    spacing_mm: float = 1.0,
) -> list[Case]:
    """Find every case of a release below a folder, however deep, and check file headers.

    Files are told apart by name: ``{case}_{suffix}.nii.gz`` or ``.nii``. Hidden files are passed
    over. Nothing is guessed: a NIfTI file that is no part of a case is a fault.

    Args:
        root: folder to search; only read.
        release: how files are named.
        reports: JSON file, case name -> report text (or an object with the key ``report``); None
            takes ``{case}_flair_text.txt`` beside a case's images where there is one.
        require_label: whether a case without expert mask is a fault.
        spacing_mm: voxel size that every volume must have.

    Returns:
        Cases by name.

    Raises:
        FileNotFoundError: ``root`` or ``reports`` is missing, or there is no case below ``root``.
        DataError: files are missing, doubled, not understood, broken or of different geometry.
            All faults of all cases are listed.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; give the folder that holds the cases")
    texts = None if reports is None else read_reports(Path(reports))
    found, faults = _index(root, release)
    if not found:
        suffixes = ", ".join(f"_{suffix}.nii.gz" for suffix in release.suffixes.values())
        seen = f"; files there are {faults[0].split(': ')[0]} and the like" if faults else ""
        raise FileNotFoundError(
            f"{root}: no case of {release.name} in it (files ending in {suffixes}){seen}; "
            "check the path, and that the data module fits the release"
        )
    cases = []
    for (folder, case_id), files in found.items():
        required = {sequence: release.suffixes[sequence] for sequence in SEQUENCES}
        if require_label:
            required[LABEL] = release.label_suffix
        missing = [suffix for kind, suffix in required.items() if kind not in files]
        faults.extend(
            f"{folder / f'{case_id}_{suffix}.nii.gz'}: missing; add it, or move the case out "
            f"of {root}"
            for suffix in missing
        )
        beside = folder / f"{case_id}{REPORT_SUFFIX}"
        report = "" if texts is None else texts.get(case_id, "")
        if texts is None and beside.is_file():
            try:
                report = read_text(beside)
            except ValueError as error:
                faults.append(str(error))
        case = Case(
            case_id=case_id,
            patient=release.patient(case_id),
            sequences={s: files[s] for s in SEQUENCES if s in files},  # all, unless a fault
            label=files.get(LABEL),
            report=report,
            grade=_grade(folder),
        )
        faults.extend(check_geometry(case, spacing_mm=spacing_mm))
        cases.append(case)
    places = defaultdict(list)
    for folder, case_id in found:
        places[case_id].append(str(folder))
    faults.extend(
        f"{' and '.join(folders)}: both hold case {case_id}; keep one"
        for case_id, folders in places.items()
        if len(folders) > 1
    )
    if texts is not None and not any(case.report for case in cases):
        faults.append(f"{reports}: names none of the cases in {root}; check the case names in it")
    if faults:
        raise DataError(faults)
    return sorted(cases, key=lambda case: case.case_id)


def case_from_files(files: Mapping[str, str | Path]) -> Case:
    """Make an unlabelled case of four files that follow no naming rule.

    Args:
        files: sequence -> file, every one of ``SEQUENCES``.

    Returns:
        The case, named by what the file names start with alike, else by the folder of the first.

    Raises:
        DataError: a sequence is not given, or its file is missing, broken or of another grid.
    """
    missing = [sequence for sequence in SEQUENCES if sequence not in files]
    if missing:
        raise DataError(
            [
                f"{name}: no file given; name one for each of {', '.join(SEQUENCES)}"
                for name in missing
            ]
        )
    paths = {sequence: Path(files[sequence]) for sequence in SEQUENCES}
    stems = [strip_extension(path.name) or path.name for path in paths.values()]
    shared = os.path.commonprefix(stems)  # noqa: RUF071 - names, not paths: by characters
    name = shared.rstrip("_-. ")
    name = name or paths[SEQUENCES[0]].absolute().parent.name
    case = Case(case_id=name, patient=name, sequences=paths)
    faults = [
        f"{path}: given for {' and '.join(same)}; name one file for each"
        for path in dict.fromkeys(paths.values())
        if len(same := [sequence for sequence in SEQUENCES if paths[sequence] == path]) > 1
    ]
    faults += check_geometry(case)
    if faults:
        raise DataError(faults)
    return case


def _grade(folder: Path) -> int:
    """Return the grade that BraTS 2018 and 2019 tell by a folder HGG or LGG, -1 without one."""
    for part in reversed(folder.absolute().parts):
        if part in GRADES:
            return GRADES[part]
    return -1


def _index(
    root: Path, release: BraTSRelease
) -> tuple[dict[tuple[Path, str], dict[str, Path]], list[str]]:
    """Group NIfTI files by folder and case; return them and the faults met."""
    kinds = {suffix: sequence for sequence, suffix in release.suffixes.items()}
    kinds[release.label_suffix] = LABEL
    found: dict[tuple[Path, str], dict[str, Path]] = defaultdict(dict)
    faults = []
    searched = set()
    for folder_name, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        place = os.path.realpath(folder_name)
        if place in searched:  # a link in a circle
            subfolders.clear()
            continue
        searched.add(place)
        for name in sorted(names):
            stem = strip_extension(name)
            if stem is None or name.startswith("."):
                continue
            path = Path(folder_name, name)
            if stem in release.misnamed_labels:
                case_id, kind = release.misnamed_labels[stem], LABEL
            else:
                case_id, _, suffix = stem.rpartition("_")
                kind = kinds.get(suffix, "")
            if not case_id or not kind:
                faults.append(
                    f"{path}: not a file of {release.name}; rename it to {{case}}_SUFFIX.nii.gz "
                    f"with SUFFIX one of {', '.join(kinds)}, or move it out of {root}"
                )
                continue
            files = found[Path(folder_name), case_id]
            if kind in files:
                faults.append(f"{path}: the same as {files[kind].name}; keep one of the two")
            files.setdefault(kind, path)
    return dict(found), faults


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
    for path in [*case.sequences.values(), *([case.label] if case.label else [])]:
        try:
            image = open_nifti(path)
        except (ValueError, FileNotFoundError) as error:
            faults.append(str(error))
            continue
        if not np.isfinite(image.affine).all() or np.linalg.det(image.affine) == 0:
            faults.append(f"{path}: its affine is no place in space; export the file again")
            continue
        if first is None:
            first = path, image.shape, image.affine
            spacing = voxel_sizes(image.affine)
            if spacing_mm is not None and not np.allclose(spacing, spacing_mm, rtol=0.02):
                faults.append(
                    f"{path}: voxels of {_by(spacing.round(3))} mm, expected {spacing_mm:g} mm; "
                    "resample the case, or set spacing_mm to what all cases have"
                )
        elif image.shape != first[1]:
            faults.append(
                f"{path}: shape {_by(image.shape)} differs from {_by(first[1])} of "
                f"{first[0].name}; register both to one grid"
            )
        elif not np.allclose(image.affine, first[2], atol=AFFINE_TOLERANCE_MM):
            gap = float(np.abs(image.affine - first[2]).max())
            faults.append(
                f"{path}: affine differs from that of {first[0].name} by up to {gap:.3g} mm; "
                "register both to one grid"
            )
    return faults


def split_by_patient(
    cases: Sequence[Case], *, fold: int = 0, num_folds: int = 5, seed: int = 0
) -> tuple[list[Case], list[Case]]:
    """Split cases for cross-validation; a patient is never on both sides.

    Patients are shuffled by ``seed`` and dealt out to the folds in turn, so that fold sizes
    differ by one patient at most and every patient is validated in exactly one fold.

    Args:
        cases: what to split, in any order.
        fold: the part to validate on, 0 to ``num_folds`` - 1.
        num_folds: number of parts, 2 or more.
        seed: equal seeds give equal splits.

    Returns:
        Training and validation cases, both by name.

    Raises:
        ValueError: ``fold`` is out of range, or there are fewer patients than folds.
    """
    if num_folds < 2 or not 0 <= fold < num_folds:
        raise ValueError(f"fold={fold} is not in 0..num_folds-1 with num_folds={num_folds} >= 2")
    patients = sorted({case.patient for case in cases})
    if len(patients) < num_folds:
        raise ValueError(
            f"{len(patients)} patients cannot fill num_folds={num_folds} folds; "
            "add cases or lower num_folds"
        )
    order = np.random.default_rng(seed).permutation(len(patients))
    held_out = {patients[i] for i in order[fold::num_folds]}
    by_name = sorted(cases, key=lambda case: case.case_id)
    return (
        [case for case in by_name if case.patient not in held_out],
        [case for case in by_name if case.patient in held_out],
    )


def read_reports(path: Path) -> dict[str, str]:
    """Read a JSON file of reports: case name -> text, or -> an object with the key ``report``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not such a JSON file.
    """
    try:
        entries = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); repair it") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{path}: holds a {type(entries).__name__}, expected case name -> report")
    texts: dict[str, str] = {}
    for name, entry in entries.items():
        text = entry.get("report") if isinstance(entry, dict) else entry
        if not isinstance(text, str):
            raise ValueError(
                f"{path}: the report of {name} is a {type(text).__name__}, expected text"
            )
        texts[name] = text
    return texts


def read_text(path: Path) -> str:
    """Read a UTF-8 text file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not UTF-8.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; check the path")
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from error


def _by(sizes: Sequence[float]) -> str:
    """Format sizes as 240x240x155."""
    return "x".join(f"{size:g}" for size in sizes)
