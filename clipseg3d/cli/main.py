"""The entry point: picks a command, and turns errors of this library into one message."""

import argparse
import sys
from collections.abc import Sequence

from clipseg3d.cli import (
    check_data,
    check_submission,
    cross_validate,
    demo,
    embed_text,
    evaluate,
    export,
    phantom,
    segment,
    tune_postprocessing,
)
from clipseg3d.cli.terminal import raised_here, say

TRAINING_COMMANDS = {
    "fit": "train on a data set, as a YAML configuration says (Lightning); with --dry-run, only "
    "say what that will need",
    "validate": "score a checkpoint on the validation fold (Lightning)",
    "test": "score a checkpoint on the data module's test cases (Lightning)",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Errors that this library raises on purpose end in one message on stderr; any other error
    keeps its traceback, since it is a defect.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        if argv and argv[0] in TRAINING_COMMANDS:
            from clipseg3d.training.cli import run

            run(argv)
            return 0
        arguments = _parser().parse_args(argv)
        code: int = arguments.command(arguments)
    except (ValueError, OSError, ImportError) as error:  # ImportError: of an extra
        if not raised_here(error):
            raise
        say(f"clipseg3d: {error}", stream=sys.stderr)
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    """Return the parser of everything that is not Lightning's."""
    parser = argparse.ArgumentParser(
        prog="clipseg3d",
        description="Text-guided 3D segmentation of brain tumours in four MRI sequences.",
        epilog="'clipseg3d COMMAND --help' says more about a command.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (demo, segment):
        command.add_command(commands)
    for name, text in TRAINING_COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    for command in (
        cross_validate,
        evaluate,
        tune_postprocessing,
        export,
        check_data,
        check_submission,
        phantom,
        embed_text,
    ):
        command.add_command(commands)
    return parser
