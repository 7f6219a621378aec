"""Code that the commands share: the type of their parsers, and messages for the user."""

import argparse
import sys
import traceback
from pathlib import Path
from typing import TextIO, TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""The list of commands, to which each adds its parser."""


def say(message: str, *, stream: TextIO | None = None) -> None:
    """Print a line; characters that the terminal cannot show are escaped."""
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    printable = message.encode(encoding, errors="backslashreplace").decode(encoding)
    stream.write(f"{printable}\n")


def report_text(value: str) -> str:
    """Return the report given as ``--text``: a text, or the content of a file.

    Raises:
        FileNotFoundError: it ends in .txt, and there is no such file.
        ValueError: the file is no plain text, or too large for a report.
    """
    from clipseg3d.text_files import read_report

    try:
        is_file = Path(value).is_file() or Path(value).is_fifo()
    except (OSError, ValueError):  # too long for a name, or holds characters that no name can have
        is_file = False
    return read_report(Path(value)) if is_file or value.endswith(".txt") else value


def raised_here(error: BaseException) -> bool:
    """Return whether this library raised the error itself, with a message for its user."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).startswith("clipseg3d")
