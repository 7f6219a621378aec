"""Which files below a folder belong to a case: by their names, or by a manifest."""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from clipseg3d.data.nifti import strip_extension
from clipseg3d.data.release import BraTSRelease
from clipseg3d.text_files import read_json
from clipseg3d.vocabulary import LABEL

RECORDS = "records"
"""Subfolder of segmentations, with a JSON file per case; see ``inference.case_record``."""
_OTHER_ENDINGS = (
    *(".mha", ".mhd", ".nrrd", ".nhdr", ".mgz", ".mgh", ".mnc", ".img", ".img.gz", ".dcm", ".npy"),
    *(".part", ".partial", ".crdownload", ".download", ".tmp"),
    *(".zip", ".7z", ".bz2", ".xz", ".zst", ".tar.gz"),
)
"""Endings of files that a sequence may have by mistake: other formats, unfinished downloads,
archives."""


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case, not opened yet.

    Attributes:
        case_id: name of the case.
        folder: folder of its images.
        files: sequence, or ``LABEL``, -> file.
        channels: sequence -> index along the fourth axis, where one file holds all sequences.
        patient: name of the patient; None takes it from the name of the case.
        report: report of the case; None looks for its file.
    """

    case_id: str
    folder: Path
    files: dict[str, Path]
    channels: dict[str, int] = field(default_factory=dict)
    patient: str | None = None
    report: str | None = None


class Grouping(NamedTuple):
    """How the volumes of a folder were grouped.

    Attributes:
        cases: in no particular order.
        strays: volumes that belong to no case.
        faults: one line each.
    """

    cases: list[CaseFiles]
    strays: list[Path]
    faults: list[str]


def walk(root: Path) -> tuple[list[Path], list[str]]:
    """List every file below a folder that is not hidden, nor a segmentation by this library.

    Links are followed; no folder is searched twice, so that circles of links end.

    Returns:
        Files, folder by folder; and faults, one line each: a folder that cannot be searched, a
        link without a target, a volume whose name is not UTF-8.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not os.path.isdir(root):
        raise FileNotFoundError(f"{root}: no such folder; give the folder that holds the cases")
    files: list[Path] = []
    faults: list[str] = []

    def add_fault(error: OSError) -> None:
        faults.append(
            f"{error.filename}: cannot be searched ({error.strerror}); check its permissions and "
            "its path"
        )

    searched = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=add_fault):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        real_folder = os.path.realpath(folder)
        if real_folder in searched:
            subfolders.clear()
            continue
        searched.add(real_folder)
        for path in (Path(folder, name) for name in sorted(names) if not name.startswith(".")):
            is_volume = strip_extension(path.name) is not None
            printable = str(path).encode(errors="backslashreplace").decode()
            if is_volume and printable != str(path):
                faults.append(f"{printable}: its name is not UTF-8; rename it")
            elif not is_volume and path.is_symlink() and not os.path.exists(path):
                faults.append(  # it may have been a folder of cases
                    f"{printable}: a link to {os.readlink(path)}, which does not exist; restore "
                    "it, or remove the link"
                )
            else:
                files.append(path)
    segmentations = _segmentations(files)
    return [path for path in files if path not in segmentations], faults


def _segmentations(files: Sequence[Path]) -> set[Path]:
    """Return the files that records among some files list: label maps and others, but no scans."""
    found: set[Path] = set()
    for path in files:
        if path.parent.name == RECORDS and path.suffix == ".json":
            try:
                found.update(path.parent.parent / name for name in read_json(path)["files"])
            except (ValueError, OSError, KeyError, TypeError):  # no such record
                continue
    return found


def empty_folders(root: Path) -> list[Path]:
    """Return the folders below a folder in which there is nothing, hidden files apart."""
    return [
        Path(folder)
        for folder, subfolders, names in os.walk(root)
        if not [name for name in (*subfolders, *names) if not name.startswith(".")]
    ]


def group(files: Sequence[Path], release: BraTSRelease, required: Sequence[str]) -> Grouping:
    """Group the volumes among some files into cases of a release.

    Args:
        files: as :func:`walk` lists them.
        release: says how its files are named, or which manifest lists them.
        required: sequences, and ``LABEL``, that every case must have; at least one sequence is
            always required.
    """
    if release.manifest is None:
        return _group_by_name(files, release, required)
    return _group_by_manifest(files, release, required)


def _group_by_name(
    files: Sequence[Path], release: BraTSRelease, required: Sequence[str]
) -> Grouping:
    """Group volumes by folder and by the case in their names."""
    grouped: dict[tuple[Path, str], dict[str, Path]] = defaultdict(dict)
    strays = []
    faults = []
    for path in files:
        stem = strip_extension(path.name)
        if stem is None:
            continue
        parsed = release.parse(path.with_name(stem))
        if parsed is None:
            strays.append(path)
            continue
        case_id, kind = parsed
        case_files = grouped[path.parent, case_id]
        if kind in case_files:
            other = case_files[kind].name
            faults.append(f"{path}: {other} also holds {kind} of the case; keep one of the two")
        case_files.setdefault(kind, path)
    for path in files:
        if (parsed := _in_another_format(path, release)) is None:
            continue
        case_id, kind = parsed
        if kind not in grouped[path.parent, case_id]:
            faults.append(
                f"{path}: looks like {kind} of the case, but is not a NIfTI file; convert or "
                "unpack it to .nii.gz, or remove it"
            )
    cases = []
    for (folder, case_id), case_files in grouped.items():
        if not case_files:
            continue
        cases.append(CaseFiles(case_id, folder, case_files))
        has_sequence = any(sequence in case_files for sequence in release.sequences)
        for kind in dict.fromkeys(required if has_sequence else (*release.sequences, *required)):
            if kind not in case_files:
                missing = folder / f"{release.file_name(case_id, kind)}.nii.gz"
                faults.append(f"{missing}: missing; add it, or move the case away")
    return Grouping(cases, strays, faults)


def _in_another_format(path: Path, release: BraTSRelease) -> tuple[str, str] | None:
    """Return case and sequence of a file that is named like one, but is not NIfTI; else None."""
    for ending in _OTHER_ENDINGS:
        if path.name.lower().endswith(ending):
            stem = path.name[: -len(ending)]
            return release.parse(path.with_name(strip_extension(stem) or stem))
    return None


def _group_by_manifest(
    files: Sequence[Path], release: BraTSRelease, required: Sequence[str]
) -> Grouping:
    """Read every manifest: each lists the images and expert masks of its own folder."""
    cases: list[CaseFiles] = []
    faults: list[str] = []
    listed: set[Path] = set()
    for path in files:
        if path.name != release.manifest:
            continue
        try:
            channels, pairs, unlabelled = _read_manifest(path, release)
        except ValueError as error:
            faults.append(str(error))
            continue
        lacking = [
            name
            for sequence, name in release.sequences.items()
            if sequence not in channels and (sequence in required or not channels)
        ]
        if lacking:
            faults.append(
                f"{path}: has no {', '.join(lacking)} under modality; restore the published file"
            )
            continue
        listed.update(*pairs, unlabelled)
        images = [(image, {LABEL: label}) for image, label in pairs]
        if LABEL not in required:
            images += [(image, {}) for image in unlabelled]
        for image, label_file in images:
            case_id = strip_extension(image.name) or image.name
            case_files = {**dict.fromkeys(channels, image), **label_file}
            cases.append(CaseFiles(case_id, image.parent, case_files, channels))
    strays = [path for path in files if strip_extension(path.name) and path not in listed]
    return Grouping(cases, strays, faults)


def _read_manifest(
    path: Path, release: BraTSRelease
) -> tuple[dict[str, int], list[tuple[Path, Path]], list[Path]]:
    """Read a manifest.

    Returns:
        Sequence -> index along the fourth axis; pairs of image and expert mask; images without
        expert mask.

    Raises:
        ValueError: the file is not such a manifest.
    """
    content = read_json(path)
    try:
        index_of = {name.casefold(): int(number) for number, name in content["modality"].items()}
        pairs = [(path.parent / i["image"], path.parent / i["label"]) for i in content["training"]]
        unlabelled = [path.parent / image for image in content.get("test", [])]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: not a list of 4D images with modality, training and test ({error!r}); "
            "restore the published file"
        ) from error
    names = {sequence: name.casefold() for sequence, name in release.sequences.items()}
    channels = {s: index_of[name] for s, name in names.items() if name in index_of}
    return channels, pairs, unlabelled
