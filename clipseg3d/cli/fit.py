"""``clipseg3d fit``."""

from collections.abc import Sequence

from clipseg3d.cli.terminal import Commands


def add_command(commands: Commands) -> None:
    """Add the command to the list of commands; its options are those of LightningCLI."""
    commands.add_parser(
        "fit",
        add_help=False,
        help="train on a data set, as configured in a YAML file (Lightning); with --dry-run, only "
        "print what this will need",
    )


def run(argv: Sequence[str]) -> int:
    """Run ``clipseg3d fit``; ``argv`` begins with the command."""
    from clipseg3d.cli.lightning_cli import run_lightning

    run_lightning(argv)
    return 0
