"""What the commands share: how they are added, and how they speak to a person."""

import argparse
import sys
import traceback
from pathlib import Path
from typing import TextIO, TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What a command adds its parser to."""


def say(message: str, *, stream: TextIO | None = None) -> None:
    """Write a line for the person at the terminal, whatever letters it can show."""
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    shown = message.encode(encoding, errors="backslashreplace").decode(encoding)
    stream.write(f"{shown}\n")


def report_text(value: str) -> str:
    """Return the report that ``--text`` gives, from a file if it names one."""
    from clipseg3d.data.text_files import read_text

    return read_text(Path(value)) if value.endswith(".txt") else value


def raised_here(error: BaseException) -> bool:
    """Say whether this library raised the error itself, with a message made for its user."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).startswith("clipseg3d")
