"""``clipseg3d validate``."""

from collections.abc import Sequence

from clipseg3d.cli.lightning_options import add_lightning_command
from clipseg3d.cli.terminal import Commands


def add_command(commands: Commands) -> None:
    """Add the command to the list of commands; its options are those of LightningCLI."""
    add_lightning_command(
        commands,
        "validate",
        summary="score a checkpoint on the validation cases",
        description="Score a checkpoint on the cases of the validation fold.",
    )


def run(argv: Sequence[str]) -> int:
    """Run ``clipseg3d validate``; ``argv`` begins with the command."""
    from clipseg3d.cli.lightning_cli import run_lightning

    run_lightning(argv)
    return 0
