"""``clipseg3d tune-postprocessing``."""

import argparse
from pathlib import Path

from clipseg3d.cli.terminal import Commands, say


def add_command(commands: Commands) -> None:
    """Add the command to the command line."""
    tune = commands.add_parser(
        "tune-postprocessing",
        help="learn from validation cases which small parts to remove, and which holes to fill",
        description="Choose the threshold of every rule of post-processing by mean Dice over "
        "segmented cases with expert masks, for 'clipseg3d segment --postprocessing FILE'. Use "
        "cases that the weights were not trained on.",
    )
    tune.add_argument(
        "predictions",
        type=Path,
        metavar="PREDICTIONS",
        help="folder of CASE.nii.gz, segmented without rules",
    )
    tune.add_argument(
        "references",
        type=Path,
        metavar="REFERENCES",
        help="folder that holds the cases with expert masks; those not segmented are passed over",
    )
    tune.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="a .json file for the rules",
    )
    tune.add_argument(
        "--release",
        default="auto",
        metavar="NAME",
        help="such as brats2020 (default: tell it from case names and labels)",
    )
    tune.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``clipseg3d tune-postprocessing``."""
    if arguments.output.suffix != ".json":
        raise ValueError(f"{arguments.output}: does not end in .json; rename it")

    from clipseg3d.data.cases import detect_release
    from clipseg3d.data.releases import get_release
    from clipseg3d.inference.tuning import read_labelled_predictions, tune_postprocessing

    auto = arguments.release == "auto"
    release = detect_release(arguments.references) if auto else get_release(arguments.release)
    cases, spacing_mm = read_labelled_predictions(
        arguments.predictions, arguments.references, release
    )
    tuned = tune_postprocessing(cases, release, spacing_mm=spacing_mm)
    learned = {"cases": tuned.num_cases, "dice_before": tuned.before, "dice_after": tuned.after}
    tuned.rules.save(arguments.output, learned=learned)
    for region, before in tuned.before.items():
        say(f"Dice {region}  {before:.4f} -> {tuned.after[region]:.4f}")
    say(f"Rules: {tuned.rules.describe()}, from {tuned.num_cases} cases\n{arguments.output}")
    return 0
