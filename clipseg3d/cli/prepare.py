"""``clipseg3d prepare``."""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from clipseg3d.cli.terminal import Commands, require_output, say
from clipseg3d.vocabulary import SEQUENCE_TITLES, SEQUENCES

if TYPE_CHECKING:
    from clipseg3d.prepare.series import Series


def add_command(commands: Commands) -> None:
    """Add the command to the command line."""
    prepare = commands.add_parser(
        "prepare",
        help="bring scans of heads to the grid that weights expect",
        description="Strip the skull, register all sequences to T1ce and T1ce to an atlas, and "
        "write the brain at 1 mm as OUT/CASE, which 'clipseg3d segment' reads, with a picture of "
        "each step, the transforms, and a record of what was done. With --back, carry labels of "
        "such a case back to the scans that it was made of.",
    )
    prepare.add_argument(
        "folder",
        nargs="?",
        type=Path,
        metavar="IN",
        help="folder of one patient: NIfTI files, told apart by their names, or DICOM files, told "
        "apart by their headers; with --back, the case that prepare wrote",
    )
    for sequence in SEQUENCES:
        prepare.add_argument(
            f"--{sequence}",
            metavar="FILE",
            help=f"{sequence} scan of the patient; of a folder of DICOM, the number, description "
            "or folder of its series",
        )
    prepare.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the case"
    )
    prepare.add_argument(
        "--name", help="name of the case (default: that of the folder of its files)"
    )
    prepare.add_argument(
        "--brain-extraction",
        choices=("deepbet", "hd-bet", "none"),
        default="deepbet",
        help="what finds the brain: deepbet (default), HD-BET where it is installed, or none for "
        "scans that hold the brain alone",
    )
    prepare.add_argument(
        "--no-n4", action="store_true", help="leave the shading of coils, which N4 removes"
    )
    prepare.add_argument(
        "--back",
        type=Path,
        metavar="LABEL",
        help="carry this label map or map of probabilities of the case IN back to its scans, as "
        "OUT/LABEL_t1.nii.gz and so on",
    )
    prepare.add_argument(
        "--dicom",
        type=Path,
        metavar="FOLDER",
        help="with --back: also write the label map as DICOM-SEG of the series in this folder that "
        "T1ce was made of, or else T1; it names the patient, as its series does",
    )
    prepare.add_argument(
        "--release",
        default="brats2020",
        metavar="NAME",
        help="release whose labels a DICOM-SEG is made of, or a YAML file of your own (default: "
        "%(default)s, as of the bundled weights)",
    )
    prepare.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``clipseg3d prepare``."""
    told = {name: getattr(arguments, name) for name in SEQUENCES if getattr(arguments, name)}
    if arguments.folder is None and (arguments.back or not told):
        raise ValueError(
            "give the folder of one patient, or its files as --t1 FILE --t1ce FILE --t2 FILE "
            "--flair FILE; with --back, the case that prepare wrote"
        )
    if arguments.dicom is not None and arguments.back is None:
        raise ValueError("--dicom goes with --back LABEL; give a folder of DICOM as IN instead")
    require_output(arguments.output, folder=True)
    if arguments.back is not None:
        if told:
            raise ValueError(
                f"--{next(iter(told))} does not go with --back, which knows the scans of the case; "
                "leave it out"
            )
        return _carry_back(arguments)

    name = arguments.name or patient_name(arguments.folder, told)
    case = prepare_patient(
        arguments.folder,
        told,
        arguments.output,
        name=name,
        brain_extraction=arguments.brain_extraction,
        n4=not arguments.no_n4,
    )
    say(str(case))
    return 0


def patient_name(folder: Path | None, told: Mapping[str, str]) -> str:
    """Return the name of a patient: that of the folder, or of the folder of the files."""
    from clipseg3d.data.cases import case_from_files

    if folder is not None:
        return folder.resolve().name
    files = {sequence: Path(file) for sequence, file in told.items()}
    return case_from_files(files, allow_missing=True).case_id


def prepare_patient(
    folder: Path | None,
    told: Mapping[str, str],
    root: Path,
    *,
    name: str,
    brain_extraction: str = "deepbet",
    n4: bool = True,
    reuse: bool = False,
) -> Path:
    """Write the prepared case of one patient; notes go to the error stream.

    Args:
        folder: NIfTI files, or DICOM; None for files that are all told.
        told: sequence -> file, or of DICOM, what names its series.
        root: folder for the case.
        name: of the case.
        brain_extraction: what finds the brain.
        n4: whether the shading of coils is removed.
        reuse: take a case that is there, if it was made of the same scans.

    Returns:
        The case, ``root / name``.

    Raises:
        FileExistsError: it exists already, and ``reuse`` is False.
        ValueError: the scans cannot be told apart or prepared, or the case was made of others.
    """
    from clipseg3d.prepare.pipeline import prepare_case, require_new
    from clipseg3d.prepare.record import require_same_scans

    target = root / name
    if not reuse:
        require_new(target)  # before minutes of work
    with tempfile.TemporaryDirectory() as converted:
        files, titles = _scans(folder, told, Path(converted))

        def with_titles(text: str) -> str:
            for path, title in titles.items():
                text = text.replace(str(path), title)
            return text

        try:
            if target.exists():
                require_same_scans(target, files)
                return target
            case = prepare_case(files, name=name, brain_extraction=brain_extraction, n4=n4)
        except ValueError as error:
            raise ValueError(with_titles(str(error))) from error
    for note in case.notes:
        say(f"clipseg3d: note: {with_titles(note)}", stream=sys.stderr)
    return case.save(root)


def _scans(
    folder: Path | None, told: Mapping[str, str], converted: Path
) -> tuple[dict[str, Path], dict[Path, str]]:
    """Return the file of each sequence, and what to call files that were converted from DICOM."""
    from clipseg3d.data.nifti import strip_extension
    from clipseg3d.prepare.scan_search import find_scans

    files = {sequence: Path(file) for sequence, file in told.items()}
    if folder is None:
        return files, {}
    if not folder.is_dir() or any(strip_extension(path.name) for path in folder.iterdir()):
        found = find_scans(folder, told=files)
        for sequence, path in found.items():
            say(f"clipseg3d: note: {path}: {SEQUENCE_TITLES[sequence]}", stream=sys.stderr)
        return found, {}
    from clipseg3d.prepare.conversion import convert_series

    try:
        chosen = _chosen_series(folder, told)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder}: holds neither NIfTI files nor DICOM images; give the folder of one patient"
        ) from error
    files = {name: convert_series(series, converted) for name, series in chosen.items()}
    return files, {files[name]: f"series {series.title}" for name, series in chosen.items()}


def _chosen_series(folder: Path, told: Mapping[str, str]) -> "dict[str, Series]":
    """Return the series of each sequence in a folder of DICOM, and say what was found."""
    from clipseg3d.prepare.series_choice import choose_sequences
    from clipseg3d.prepare.series_search import find_series

    found = find_series(folder)
    chosen = choose_sequences(found, told=told)
    taken = {series.files: series for series in chosen.values()}
    for series in found:
        say(f"clipseg3d: note: {taken.get(series.files, series).note}", stream=sys.stderr)
    return chosen


def _carry_back(arguments: argparse.Namespace) -> int:
    """Write a label map on the grids of the scans, and as DICOM-SEG."""
    from clipseg3d.data.nifti import strip_extension
    from clipseg3d.data.releases import get_release
    from clipseg3d.prepare.labels_back import carry_back

    release = get_release(arguments.release)
    source = None
    if arguments.dicom is not None:
        source = _source_series(arguments.dicom, arguments.folder)
    files = carry_back(arguments.back, arguments.folder, arguments.output)
    if source is not None:
        from clipseg3d.prepare.dicom_seg import write_dicom_seg

        stem = arguments.output / f"{strip_extension(arguments.back.name)}_{source.sequence}"
        path = stem.with_name(f"{stem.name}.dcm")
        label = stem.with_name(f"{stem.name}.nii.gz")
        write_dicom_seg(label, source, path, release=release)
        files.append(path)
    for path in files:
        say(str(path))
    return 0


def _source_series(folder: Path, case_folder: Path) -> "Series":
    """Return the series that the T1ce of a prepared case was made of, or else its T1.

    It is known by its voxels and their place: headers do not tell whether it was this one.

    Raises:
        ValueError: there is none in the folder.
    """
    from clipseg3d.prepare.conversion import convert_series
    from clipseg3d.prepare.native_scan import NativeScan
    from clipseg3d.prepare.record import read_record
    from clipseg3d.prepare.series_search import find_series

    record = read_record(case_folder)
    sequence = next(name for name in ("t1ce", "t1", *SEQUENCES) if name in record["sequences"])
    about = record["sequences"][sequence]
    with tempfile.TemporaryDirectory() as converted:
        for series in find_series(folder):
            if series.fault or series.num_slices not in about["shape"]:
                continue
            try:
                scan = NativeScan.read(convert_series(series, Path(converted)))
            except ValueError:  # another series, which cannot be read
                continue
            if scan.sha256() == about["sha256"]:
                return replace(series, sequence=sequence)
    raise ValueError(
        f"{folder}: holds no series that the {SEQUENCE_TITLES[sequence]} of {record['case']} was "
        "made of; give the folder of DICOM that was prepared"
    )
