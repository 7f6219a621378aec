"""``clipseg3d fit``."""

from collections.abc import Sequence

from clipseg3d.cli.lightning_options import add_lightning_command
from clipseg3d.cli.terminal import Commands


def add_command(commands: Commands) -> None:
    """Add the command to the list of commands; its options are those of LightningCLI."""
    add_lightning_command(
        commands,
        "fit",
        summary="train on a data set; --dry-run says what it needs",
        description="Train a network on a data set, keep the best and the last "
        "checkpoints, and say how to segment with the best.",
    )


def run(argv: Sequence[str]) -> int:
    """Run ``clipseg3d fit``; ``argv`` begins with the command."""
    from clipseg3d.cli.lightning_cli import run_lightning

    run_lightning(argv)
    return 0
