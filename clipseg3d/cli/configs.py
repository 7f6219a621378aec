"""``clipseg3d configs``."""

import argparse
from pathlib import Path

from clipseg3d.atomic_write import atomic_write
from clipseg3d.cli.terminal import Commands, UsageError, say
from clipseg3d.configs import config_names, config_path, summary
from clipseg3d.ranges import nearest


def add_command(commands: Commands) -> None:
    """Add the command to the command line."""
    configs = commands.add_parser(
        "configs",
        help="list configurations, for 'fit --config NAME'",
        description="List the configurations that 'clipseg3d fit --config NAME' takes by name, or "
        "write a copy of one, to be changed.",
    )
    configs.add_argument(
        "--copy",
        nargs="+",
        metavar=("NAME", "PATH"),
        help="write a copy of a configuration to PATH (default: NAME.yaml here); a file that is "
        "there already is left as it is",
    )
    configs.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``clipseg3d configs``."""
    if arguments.copy is not None:
        copy = _copy(*arguments.copy)
        say(f"{copy}\nTrain with: clipseg3d fit --config {copy}")
        return 0
    names = config_names()
    width = max(map(len, names))
    for name in names:
        say(f"{name:{width}}  {summary(name)}")
    say(
        "\nThe network has full size where nothing else is said.\n"
        "clipseg3d fit --config NAME --data.root FOLDER  trains on the cases in FOLDER\n"
        "clipseg3d configs --copy NAME                   writes NAME.yaml, to be changed"
    )
    return 0


def _copy(name: str, path: str | None = None, *more: str) -> Path:
    """Write a copy of a configuration, and return where it is.

    Raises:
        UsageError: there is no such configuration, or more is given than NAME and PATH.
        FileExistsError: there is a file already.
    """
    if more:
        raise UsageError(f"--copy {name}: {1 + len(more)} paths are given; give one")
    if name not in config_names():
        raise UsageError(f"{name}: no such configuration; {nearest(name, config_names())}")
    copy = Path(path or f"{name}.yaml")
    if copy.is_dir():
        copy /= f"{name}.yaml"
    if copy.exists():
        raise FileExistsError(f"{copy}: is there already; remove it, or give another PATH")
    with atomic_write(copy) as tmp:
        tmp.write_bytes(config_path(name).read_bytes())
    return copy
