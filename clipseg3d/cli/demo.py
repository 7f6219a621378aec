"""``clipseg3d demo``."""

import argparse
from pathlib import Path

from clipseg3d.cli.terminal import Commands, say


def add_command(commands: Commands) -> None:
    """Add the command to the command line."""
    demo = commands.add_parser(
        "demo",
        help="segment a simulated patient, offline, in a few minutes",
        description="Simulate patients, train a tiny network on them for a few minutes, "
        "segment one it has not seen, score it and draw it. Needs no data, no network and no GPU.",
    )
    demo.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("clipseg3d-demo"),
        metavar="DIR",
        help="folder for all files (default: %(default)s)",
    )
    demo.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``clipseg3d demo``."""
    from clipseg3d.demo import run_demo

    result = run_demo(arguments.output)
    say(f"\nReport: {result.report}\n")
    for region, score in result.dice.items():
        say(f"Dice {region}  {score:.3f}")
    say(
        f"\nPatient       {result.case}\nSegmentation  {result.segmentation}\n"
        f"Picture       {result.picture}\nWeights       {result.weights}\n\n"
        "The network was trained on simulated patients for a few minutes: this shows that "
        "everything runs,\nnot how well it segments real scans. For those, take the weights that "
        "come with the package:\nclipseg3d segment CASE -o labels --weights tiny"
    )
    return 0
