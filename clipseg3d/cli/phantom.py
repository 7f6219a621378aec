"""``clipseg3d phantom``."""

import argparse
from pathlib import Path

from clipseg3d.cli.terminal import Commands, require_output, say


def add_command(commands: Commands) -> None:
    """Add the command to the command line."""
    phantom = commands.add_parser(
        "phantom",
        help="write simulated patients in BraTS layout",
        description="Write simulated patients (four sequences, expert mask, true report) as "
        "OUT/Phantom_00000 and so on. Patients that exist already are kept, whatever options they "
        "were made with.",
    )
    phantom.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the patients"
    )
    phantom.add_argument(
        "-n", "--number", type=int, default=1, metavar="N", help="how many (default: %(default)s)"
    )
    phantom.add_argument(
        "--spacing", type=float, default=1.0, metavar="MM", help="voxel size (default: 1 mm)"
    )
    phantom.add_argument(
        "--seed", type=int, default=0, metavar="K", help="seed of the first patient (default: 0)"
    )
    phantom.add_argument(
        "--release",
        default="phantom",
        metavar="NAME",
        help="BraTS release whose names and labels the files have, such as brats2024_gli, or a "
        "YAML file of your own (default: %(default)s)",
    )
    phantom.add_argument(
        "--plain-share",
        type=float,
        metavar="P",
        help="share of patients whose tumour does not enhance (default: about one in eight)",
    )
    phantom.add_argument(
        "--cavity-share",
        type=float,
        default=0.0,
        metavar="P",
        help="share of patients after a resection; needs a release with the region RC "
        "(default: none)",
    )
    phantom.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``clipseg3d phantom``."""
    from clipseg3d.data.releases import get_release
    from clipseg3d.phantom.write import MAX_CASES, require_writable, write_phantoms
    from clipseg3d.ranges import require_count, require_share

    require_count(number=arguments.number, at_most=MAX_CASES)
    require_count(seed=arguments.seed, at_least=0)
    require_share(plain_share=arguments.plain_share or 0.0, cavity_share=arguments.cavity_share)
    release = get_release(arguments.release)
    require_writable(release, cavity=arguments.cavity_share > 0)
    require_output(arguments.output, folder=True)
    names = write_phantoms(
        arguments.output,
        arguments.number,
        spacing_mm=arguments.spacing,
        seed=arguments.seed,
        release=release,
        plain_share=arguments.plain_share,
        cavity_share=arguments.cavity_share,
    )
    for name in names:
        say(str(arguments.output / name))
    return 0
