"""``clipseg3d tune-postprocessing``."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from clipseg3d.cli.terminal import Commands, require_output, say

if TYPE_CHECKING:
    from clipseg3d.data.release import BraTSRelease

TITLES = {"dice": "Dice", "lesion_dice": "Lesion-wise Dice"}


def add_command(commands: Commands) -> None:
    """Add the command to the command line."""
    tune = commands.add_parser(
        "tune-postprocessing",
        help="learn which components to drop and holes to fill",
        description="Choose the threshold of every rule of post-processing by a mean score over "
        "segmented cases with expert masks. The rules are stored with the weights, so that "
        "'clipseg3d segment' applies them (--write-to), or in a file for 'clipseg3d segment "
        "--postprocessing FILE' (--output). Use cases that the weights were not trained on, "
        "segmented with --no-postprocessing.",
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
        metavar="FILE",
        help=".json file for the rules",
    )
    tune.add_argument(
        "--write-to",
        type=Path,
        metavar="WEIGHTS",
        help="folder of weights, written by 'clipseg3d export', whose config.json gets the rules "
        "in the place of those it has; the weights stay as they are",
    )
    tune.add_argument(
        "--criterion",
        choices=tuple(TITLES),
        default="dice",
        help="the score: Dice of whole masks, or lesion-wise Dice as BraTS ranks since 2023 "
        "(default: %(default)s)",
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
    output, weights = arguments.output, arguments.write_to
    if output is None and weights is None:
        raise ValueError(
            "nowhere to write the rules; give a file (--output), a folder of weights (--write-to)"
        )
    if output is not None:
        if output.suffix != ".json":
            raise ValueError(f"{output}: does not end in .json; rename it")
        require_output(output)

    from clipseg3d.data.label_pairs import find_references
    from clipseg3d.inference.postprocessing_tuning import read_validation, tune_postprocessing
    from clipseg3d.pretrained.writer import write_postprocessing

    if weights is not None:
        own_release = _release_of(weights)  # fails now if the rules could not be written
        require_output(weights, folder=True)
    wanted = None if arguments.release == "auto" else arguments.release
    references, release = find_references(arguments.references, wanted)
    tuned = tune_postprocessing(
        read_validation(arguments.predictions, references, release),
        release,
        criterion=arguments.criterion,
    )
    score = arguments.criterion
    learned = {
        "cases": tuned.num_cases,
        f"{score}_before": tuned.before,
        f"{score}_after": tuned.after,
    }
    for region, before in tuned.before.items():
        say(f"{TITLES[score]} {region}  {before:.4f} -> {tuned.after[region]:.4f}")
    say(f"Rules: {tuned.rules.describe()}, from {tuned.num_cases} cases")
    if output is not None:
        tuned.rules.save(output, learned=learned)
        say(str(output))
    if weights is not None:
        tuned.rules.require_regions(own_release)
        say(str(write_postprocessing(weights, tuned.rules.values())))
    return 0


def _release_of(weights: Path) -> "BraTSRelease":
    """Return the release of a folder of weights, with the regions of the network."""
    from clipseg3d.data.releases import get_release
    from clipseg3d.pretrained.folder import read_settings

    network, settings = read_settings(weights)
    release = get_release(settings.release)
    return release.select(sequences=network.sequences, regions=network.regions)
