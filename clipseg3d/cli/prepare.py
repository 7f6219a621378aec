"""``clipseg3d prepare``."""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from clipseg3d.cli.terminal import Commands, require_output, say
from clipseg3d.vocabulary import SEQUENCES

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
        help="with --back: also write the label map as DICOM-SEG of the T1ce series in this "
        "folder, or else of T1; it names the patient, as its series does",
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
        return _carry_back(arguments, told)

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
) -> Path:
    """Write the prepared case of one patient, ``root / name``; notes go to the error stream.

    Args:
        folder: NIfTI files, or DICOM; None for files that are all told.
        told: sequence -> file, or of DICOM, what names its series.
        root: folder for the case.
        name: of the case.
        brain_extraction: what finds the brain.
        n4: whether the shading of coils is removed.
    """
    from clipseg3d.prepare.pipeline import prepare_case, require_new

    require_new(root / name)  # before minutes of work
    with tempfile.TemporaryDirectory() as converted:
        case = prepare_case(
            _scans(folder, told, Path(converted)),
            name=name,
            brain_extraction=brain_extraction,
            n4=n4,
        )
    for note in case.notes:
        say(f"clipseg3d: note: {note}", stream=sys.stderr)
    return case.save(root)


def _scans(folder: Path | None, told: Mapping[str, str], converted: Path) -> dict[str, Path]:
    """Return the file of each sequence; those of DICOM series are converted."""
    from clipseg3d.data.nifti import strip_extension
    from clipseg3d.prepare.scan_search import find_scans

    files = {sequence: Path(file) for sequence, file in told.items()}
    if folder is None:
        return files
    if not folder.is_dir() or any(strip_extension(path.name) for path in folder.iterdir()):
        return find_scans(folder, told=files)
    from clipseg3d.prepare.conversion import convert_series

    try:
        chosen = _chosen_series(folder, told)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder}: holds neither NIfTI files nor DICOM images; give the folder of one patient"
        ) from error
    return {name: convert_series(series, converted) for name, series in chosen.items()}


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


def _carry_back(arguments: argparse.Namespace, told: Mapping[str, str]) -> int:
    """Write a label map on the grids of the scans, and as DICOM-SEG."""
    from clipseg3d.data.nifti import strip_extension
    from clipseg3d.data.releases import get_release
    from clipseg3d.prepare.labels_back import carry_back

    source, release = None, get_release(arguments.release)
    if arguments.dicom is not None:
        series = _chosen_series(arguments.dicom, told)
        source = series.get("t1ce", series.get("t1"))
        if source is None:
            raise ValueError(
                f"{arguments.dicom}: holds neither T1ce nor T1, of which a DICOM-SEG is made; give "
                "the folder of DICOM that was prepared"
            )
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
