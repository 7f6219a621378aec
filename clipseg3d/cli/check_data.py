"""``clipseg3d check-data``."""

import argparse
import os
from pathlib import Path

from clipseg3d.cli.terminal import Commands, require_output, say
from clipseg3d.ranges import require_above_zero


def add_command(commands: Commands) -> None:
    """Add the command to the command line."""
    check = commands.add_parser(
        "check-data",
        help="list the cases of a data set, and all faults",
        description="Check every case below ROOT: missing, broken and copied files, grids, labels. "
        "Prints one line per case, and every fault. The exit code is 1 if there is any.",
    )
    check.add_argument("root", type=Path, metavar="ROOT", help="folder that holds the cases")
    check.add_argument(
        "--release",
        default="auto",
        metavar="NAME",
        help="release, such as brats2020 (default: detect it from case names and labels)",
    )
    check.add_argument(
        "--reports",
        type=Path,
        metavar="FILE",
        help="JSON or CSV file of reports (default: CASE_flair_text.txt in each case)",
    )
    check.add_argument(
        "--encoder",
        metavar="NAME",
        help="count tokens of this text encoder in the reports, instead of words: folder, Hugging "
        "Face hub name, tiny, or tiny-random",
    )
    check.add_argument(
        "--spacing",
        type=float,
        default=1.0,
        metavar="MM",
        help="voxel size that every case must have (default: 1 mm)",
    )
    check.add_argument(
        "--unlabelled", action="store_true", help="accept cases without an expert mask"
    )
    check.add_argument(
        "--allow-missing", action="store_true", help="accept cases that lack some of the sequences"
    )
    check.add_argument(
        "--voxels",
        action="store_true",
        help="read all voxels, not only headers and masks: NaN, empty and constant sequences, "
        "masks outside the brain, all copies",
    )
    check.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="write all results to this .json file"
    )
    check.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``clipseg3d check-data``."""
    if arguments.output is not None and arguments.output.suffix != ".json":
        raise ValueError(f"{arguments.output}: does not end in .json; rename it")
    require_above_zero(spacing=arguments.spacing)
    if arguments.output is not None:
        require_output(arguments.output)

    from clipseg3d.data.cases import detect_release
    from clipseg3d.data.check import check_data
    from clipseg3d.data.releases import get_release

    auto = arguments.release == "auto"
    release = detect_release(arguments.root) if auto else get_release(arguments.release)
    count_tokens = None
    if arguments.encoder is not None:
        from clipseg3d.clip.registry import load_text_encoder

        count_tokens = load_text_encoder(arguments.encoder).count_tokens
    check = check_data(
        arguments.root,
        release,
        reports=arguments.reports,
        require_label=not arguments.unlabelled,
        allow_missing=arguments.allow_missing,
        spacing_mm=arguments.spacing,
        read_all=arguments.voxels,
        count_tokens=count_tokens,
        num_threads=min(8, os.cpu_count() or 1),
    )
    say(check.table())
    if not arguments.voxels:
        say("Only headers of sequences were read; --voxels reads all of them.")
    if arguments.output is not None:
        check.save(arguments.output)
        say(str(arguments.output))
    return 1 if check.faults else 0
