"""``clipseg3d tune-postprocessing``."""

import argparse
from pathlib import Path

from clipseg3d.cli.terminal import Commands, require_output, say


def add_command(commands: Commands) -> None:
    """Add the command to the command line."""
    tune = commands.add_parser(
        "tune-postprocessing",
        help="learn from validation cases which small components to remove and which holes to fill",
        description="Choose the threshold of every rule of post-processing by mean Dice over "
        "segmented cases with expert masks. The rules are written to a file for 'clipseg3d segment "
        "--postprocessing FILE'. Use cases that the weights were not trained on.",
    )
    tune.add_argument(
        "predictions",
        type=Path,
        metavar="PREDICTIONS",
        help="folder of CASE.nii.gz, segmented without post-processing",
    )
    tune.add_argument(
        "references",
        type=Path,
        metavar="REFERENCES",
        help="folder of the cases with expert masks, or of masks CASE.nii.gz; cases without a "
        "segmentation are ignored",
    )
    tune.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help=".json file for the rules",
    )
    tune.add_argument(
        "--release",
        default="auto",
        metavar="NAME",
        help="release, such as brats2020 (default: detect it from case names and labels)",
    )
    tune.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``clipseg3d tune-postprocessing``."""
    if arguments.output.suffix != ".json":
        raise ValueError(f"{arguments.output}: does not end in .json; rename it")
    require_output(arguments.output)

    from clipseg3d.data.label_pairs import find_references
    from clipseg3d.inference.postprocessing_tuning import read_validation, tune_postprocessing

    wanted = None if arguments.release == "auto" else arguments.release
    references, release = find_references(arguments.references, wanted)
    tuned = tune_postprocessing(
        read_validation(arguments.predictions, references, release), release
    )
    learned = {"cases": tuned.num_cases, "dice_before": tuned.before, "dice_after": tuned.after}
    tuned.rules.save(arguments.output, learned=learned)
    for region, before in tuned.before.items():
        say(f"Dice {region}  {before:.4f} -> {tuned.after[region]:.4f}")
    say(f"Rules: {tuned.rules.describe()}, from {tuned.num_cases} cases\n{arguments.output}")
    return 0
