"""``clipseg3d predict``."""

from collections.abc import Sequence

from clipseg3d.cli.terminal import Commands


def add_command(commands: Commands) -> None:
    """Add the command to the list of commands; its options are those of LightningCLI."""
    commands.add_parser(
        "predict",
        add_help=False,
        help="segment the cases of a data module on one or more devices (Lightning)",
    )


def run(argv: Sequence[str]) -> int:
    """Run ``clipseg3d predict``; ``argv`` begins with the command."""
    from clipseg3d.cli.lightning_cli import run_lightning

    run_lightning(argv)
    return 0
