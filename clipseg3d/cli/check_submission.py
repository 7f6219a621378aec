"""``clipseg3d check-submission``."""

import argparse
from pathlib import Path

from clipseg3d.cli.terminal import Commands, say


def add_command(commands: Commands) -> None:
    """Add the command to the command line."""
    check = commands.add_parser(
        "check-submission",
        help="check segmentations as a challenge's portal does",
        description="Compare every segmentation in DIR with its case below ROOT: name, labels, "
        "shape, spacing, origin, orientation. Prints every fault. The exit code is 1 if there is "
        "any.",
    )
    check.add_argument("folder", type=Path, metavar="DIR", help="folder of CASE.nii.gz")
    check.add_argument(
        "--reference",
        type=Path,
        required=True,
        metavar="ROOT",
        help="folder that holds the cases, with or without expert masks",
    )
    check.add_argument(
        "--release",
        default="auto",
        metavar="NAME",
        help="release, such as brats2020 (default: detect it from case names and labels)",
    )
    check.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``clipseg3d check-submission``."""
    from clipseg3d.data.cases import detect_release
    from clipseg3d.data.label_mixup import submission_note
    from clipseg3d.data.releases import get_release
    from clipseg3d.data.submission import check_submission

    auto = arguments.release == "auto"
    release = detect_release(arguments.reference) if auto else get_release(arguments.release)
    count, faults = check_submission(arguments.folder, arguments.reference, release)
    for fault in faults:
        say(fault)
    if note := submission_note(arguments.folder, arguments.reference, release):
        say(f"note: {note}")
    say(f"{count} cases of {release.name}: {len(faults)} faults")
    return 1 if faults else 0
