"""The entry point: runs a command, and prints errors of this library as one message."""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from clipseg3d import __version__
from clipseg3d.cli import (
    check_data,
    check_submission,
    configs,
    cross_validate,
    demo,
    embed_text,
    evaluate,
    export,
    fit,
    phantom,
    predict,
    prepare,
    segment,
    test,
    tune_postprocessing,
    validate,
)
from clipseg3d.cli.completion import SET_UP, complete
from clipseg3d.cli.config_reader import file_of, read_configs
from clipseg3d.cli.freed_memory import keep_freed_memory
from clipseg3d.cli.terminal import (
    INTERRUPTED,
    OneLineParser,
    UsageError,
    raised_here,
    say,
    unwrapped,
)
from clipseg3d.ranges import UnknownNameError

LIGHTNING_COMMANDS = {"fit": fit, "validate": validate, "test": test, "predict": predict}
"""Commands whose options LightningCLI parses."""
COMMANDS = (
    *(demo, prepare, segment, configs, fit, validate, test, predict, cross_validate, evaluate),
    *(tune_postprocessing, export),
    *(check_data, check_submission, phantom, embed_text),
)
"""All commands, in the order of the help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Errors that this library raises on purpose are printed on stderr as one message. The code is 2
    for a name that does not exist (of an option, preset, class or key of a configuration) and for a
    value of a wrong type, and 1 for all else, such as a value out of its range. Any other error
    keeps its traceback, since it is a defect.

    Args:
        argv: the command and its options; None takes those of this process, which is ours then and
            keeps freed memory (:mod:`clipseg3d.cli.freed_memory`).
    """
    if argv is None:
        complete(_parser)
        keep_freed_memory()
        argv = sys.argv[1:]
    configs: dict[str, dict[str, Any]] = {}
    try:
        if not argv:
            _parser().print_help()
            return 0
        lightning = LIGHTNING_COMMANDS.get(argv[0])
        if lightning is not None and not {"-h", "--help"} & {*argv}:
            configs = read_configs(argv)  # what is wrong with one is said before seconds of loading
            code: int = lightning.run(argv)
        else:
            arguments = _parser().parse_args([argv[0], "--help"] if lightning else argv)
            code = arguments.command(arguments)
    except (ValueError, OSError, ImportError) as error:  # ImportError: an extra is not installed
        cause = unwrapped(error)
        if not raised_here(cause):
            raise
        say(f"clipseg3d: {_with_file(str(cause), argv, configs)}", stream=sys.stderr)
        return 2 if isinstance(cause, UsageError | UnknownNameError) else 1
    except KeyboardInterrupt:
        say("clipseg3d: interrupted", stream=sys.stderr)
        return INTERRUPTED
    return code


def _with_file(message: str, argv: Sequence[str], configs: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a message; one on an option that comes from a configuration names the file."""
    option = re.match(r"--([\w.]+)", message)
    if option is None or any(word.partition("=")[0] == option[0] for word in argv):
        return message
    name = file_of(option[1], configs)
    return message if name is None else f"{name}: {message.removeprefix('--')}"


class _CommandsFormatter(argparse.RawDescriptionHelpFormatter):
    """Leave room for the longest command, so that each takes one line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=25)

    def add_argument(self, action: argparse.Action) -> None:
        """Count the indent of commands, which argparse forgets."""
        super().add_argument(action)
        self._action_max_length = max(self._action_max_length, 23)


def _parser() -> argparse.ArgumentParser:
    """Return the parser of all commands but Lightning's, and of the main help."""
    parser = OneLineParser(
        prog="clipseg3d",
        description="Text-guided 3D segmentation of brain tumours in four MRI sequences.",
        usage="clipseg3d COMMAND ...",
        epilog="'clipseg3d COMMAND --help' says more about a command. To begin: clipseg3d demo\n"
        f"To complete with Tab: pip install argcomplete; {SET_UP}",
        formatter_class=_CommandsFormatter,
    )
    parser.add_argument("--version", action="version", version=f"clipseg3d {__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", prog="clipseg3d", required=True
    )
    for command in COMMANDS:
        command.add_command(commands)
    return parser
