"""Which files below a folder make up a case: by their names, or as a manifest lists them."""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from clipseg3d.data.nifti import strip_extension
from clipseg3d.data.releases import BraTSRelease
from clipseg3d.data.text_files import read_json
from clipseg3d.vocabulary import LABEL, SEQUENCES


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case; none has been opened.

    Attributes:
        case_id: name of the case.
        folder: where its images lie.
        files: sequence, or ``LABEL``, -> file.
        channels: sequence -> index along the fourth axis, where one file holds all sequences.
    """

    case_id: str
    folder: Path
    files: dict[str, Path]
    channels: dict[str, int] = field(default_factory=dict)


class Grouping(NamedTuple):
    """What the volumes of a folder are: cases, in no order; of no case; and faults, a line each."""

    cases: list[CaseFiles]
    strays: list[Path]
    faults: list[str]


def walk(root: Path) -> tuple[list[Path], list[str]]:
    """List every file below a folder that is not hidden; links are followed, circles end.

    Returns:
        Files, folder by folder; and faults, one line each: a folder that cannot be searched, a
        link that leads nowhere, a volume whose name is no text.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not os.path.isdir(root):
        raise FileNotFoundError(f"{root}: no such folder; give the folder that holds the cases")
    files: list[Path] = []
    faults: list[str] = []

    def refuse(error: OSError) -> None:
        faults.append(
            f"{error.filename}: cannot be searched ({error.strerror}); check its permissions and "
            "its path"
        )

    searched = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=refuse):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        place = os.path.realpath(folder)
        if place in searched:
            subfolders.clear()
            continue
        searched.add(place)
        for path in (Path(folder, name) for name in sorted(names) if not name.startswith(".")):
            is_volume = strip_extension(path.name) is not None
            shown = str(path).encode(errors="backslashreplace").decode()
            if is_volume and shown != str(path):
                faults.append(f"{shown}: its name is not UTF-8; rename it")
            elif not is_volume and path.is_symlink() and not os.path.exists(path):
                faults.append(  # it may have been a folder of cases
                    f"{shown}: a link to {os.readlink(path)}, which is not there; restore that, "
                    "or remove the link"
                )
            else:
                files.append(path)
    return files, faults


def group(files: Sequence[Path], release: BraTSRelease, required: Sequence[str]) -> Grouping:
    """Put the volumes among some files together to cases of a release.

    Args:
        files: as :func:`walk` lists them.
        release: how it names its files, or the name of its manifest.
        required: sequences, and ``LABEL``, that every case must have; at least one sequence is
            always due.
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
        parsed = release.parse(stem)
        if parsed is None:
            strays.append(path)
            continue
        case_id, kind = parsed
        known = grouped[path.parent, case_id]
        if kind in known:
            faults.append(f"{path}: the same as {known[kind].name}; keep one of the two")
        known.setdefault(kind, path)
    for (folder, case_id), known in grouped.items():
        due = required if set(SEQUENCES) & set(known) else (*SEQUENCES, *required)
        for kind in dict.fromkeys(due):
            if kind not in known:
                suffix = release.suffixes.get(kind, release.label_suffix)
                place = folder / f"{case_id}{release.separator}{suffix}.nii.gz"
                faults.append(f"{place}: missing; add it, or move the case away")
    cases = [CaseFiles(case_id, folder, known) for (folder, case_id), known in grouped.items()]
    return Grouping(cases, strays, faults)


def _group_by_manifest(
    files: Sequence[Path], release: BraTSRelease, required: Sequence[str]
) -> Grouping:
    """Read every manifest: each lists the images and masks of the folder that it lies in."""
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
            release.suffixes[sequence]
            for sequence in SEQUENCES
            if sequence not in channels and (sequence in required or not channels)
        ]
        if lacking:
            faults.append(
                f"{path}: its modalities lack {', '.join(lacking)}; restore the file as published"
            )
            continue
        listed.update(*pairs, unlabelled)
        found = [(image, {LABEL: label}) for image, label in pairs]
        if LABEL not in required:
            found += [(image, {}) for image in unlabelled]
        for image, mask in found:
            case_id = strip_extension(image.name) or image.name
            known = {**dict.fromkeys(channels, image), **mask}
            cases.append(CaseFiles(case_id, image.parent, known, channels))
    strays = [path for path in files if strip_extension(path.name) and path not in listed]
    return Grouping(cases, strays, faults)


def _read_manifest(
    path: Path, release: BraTSRelease
) -> tuple[dict[str, int], list[tuple[Path, Path]], list[Path]]:
    """Read sequence -> channel, the pairs of image and mask, and the images without mask.

    Raises:
        ValueError: the file is no such list.
    """
    content = read_json(path)
    try:
        index = {name.casefold(): int(number) for number, name in content["modality"].items()}
        pairs = [(path.parent / i["image"], path.parent / i["label"]) for i in content["training"]]
        unlabelled = [path.parent / image for image in content.get("test", [])]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: not a list of 4D images with modality, training and test ({error!r}); "
            "restore the file as published"
        ) from error
    names = {sequence: release.suffixes[sequence].casefold() for sequence in SEQUENCES}
    channels = {sequence: index[name] for sequence, name in names.items() if name in index}
    return channels, pairs, unlabelled
