"""``clipseg3d prepare``."""

import argparse
import sys
from pathlib import Path

from clipseg3d.cli.terminal import Commands, require_output, say
from clipseg3d.vocabulary import SEQUENCES


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
        help="folder with the NIfTI files of one patient, told apart by their names; with --back, "
        "the case that prepare wrote",
    )
    for sequence in SEQUENCES:
        prepare.add_argument(
            f"--{sequence}", type=Path, metavar="FILE", help=f"{sequence} scan of the patient"
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
        "--n4", action="store_true", help="remove the shading that coils leave, by N4"
    )
    prepare.add_argument(
        "--back",
        type=Path,
        metavar="LABEL",
        help="carry this label map or map of probabilities of the case IN back to its scans, as "
        "OUT/LABEL_t1.nii.gz and so on",
    )
    prepare.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``clipseg3d prepare``."""
    files = {name: getattr(arguments, name) for name in SEQUENCES if getattr(arguments, name)}
    if arguments.folder is None and (arguments.back or not files):
        raise ValueError(
            "give the folder of one patient, or its files as --t1 FILE --t1ce FILE --t2 FILE "
            "--flair FILE; with --back, the case that prepare wrote"
        )
    require_output(arguments.output, folder=True)
    if arguments.back is not None:
        from clipseg3d.prepare.labels_back import carry_back

        for path in carry_back(arguments.back, arguments.folder, arguments.output):
            say(str(path))
        return 0

    from clipseg3d.data.cases import case_from_files
    from clipseg3d.prepare.pipeline import prepare_case, require_new
    from clipseg3d.prepare.scan_search import find_scans

    name = arguments.name
    if arguments.folder is not None:
        files = {**find_scans(arguments.folder), **files}
        name = name or arguments.folder.resolve().name
    if name is None:
        name = case_from_files(files, allow_missing=True).case_id
    require_new(arguments.output / name)  # before minutes of work
    case = prepare_case(
        files, name=name, brain_extraction=arguments.brain_extraction, n4=arguments.n4
    )
    for note in case.notes:
        say(f"clipseg3d: note: {note}", stream=sys.stderr)
    say(str(case.save(arguments.output)))
    return 0
