"""Completion of the command line in shells, by argcomplete."""

import argparse
import os
from collections.abc import Callable
from typing import Any

from clipseg3d.configs import config_names

SET_UP = 'eval "$(register-python-argcomplete clipseg3d)"'
"""What a shell runs to complete our commands."""
_NAMES_CONFIG = ("config", "copy")


def complete(build_parser: Callable[[], argparse.ArgumentParser]) -> None:
    """Answer a shell that asks for completions, and end the process; otherwise do nothing.

    Values are completed with files, and those that name a configuration also with its name.
    """
    if "_ARGCOMPLETE" not in os.environ:
        return
    import argcomplete
    from argcomplete.completers import FilesCompleter

    files = FilesCompleter()

    def values(prefix: str, action: argparse.Action, **_: Any) -> list[str]:
        names = config_names() if action.dest in _NAMES_CONFIG else []
        return [*names, *files(prefix)]

    completer: Any = values  # declared as a class, used as a function
    argcomplete.autocomplete(build_parser(), default_completer=completer)
