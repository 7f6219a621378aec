"""``clipseg3d validate``."""

from collections.abc import Sequence

from clipseg3d.cli.terminal import Commands


def add_command(commands: Commands) -> None:
    """Add the command to the list of commands; its options are those of LightningCLI."""
    commands.add_parser(
        "validate",
        add_help=False,
        help="score a checkpoint on the cases of the validation fold (Lightning)",
    )


def run(argv: Sequence[str]) -> int:
    """Run ``clipseg3d validate``; ``argv`` begins with the command."""
    from clipseg3d.cli.lightning_cli import run_lightning

    run_lightning(argv)
    return 0
