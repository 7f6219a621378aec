"""Code that the commands share: the type of their parsers, and messages for the user."""

import argparse
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""The list of commands, to which each adds its parser."""


INTERRUPTED, TERMINATED = 130, 143
"""Exit codes after Ctrl-C, and after a request to end, as in shells."""


class UsageError(ValueError):
    """A name that was typed does not exist, or a value has a wrong type."""


_CONTROL = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"
}
_LONGEST_LINE = 1000


def say(message: str, *, stream: TextIO | None = None) -> None:
    """Print a line; characters that the terminal cannot show, or would obey, are escaped.

    Long lines of errors are cut in the middle.
    """
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    known = message.translate(_CONTROL).encode(encoding, errors="backslashreplace")
    printable = known.decode(encoding)
    if stream is sys.stderr:
        printable = "\n".join(map(_shortened, printable.split("\n")))
    stream.write(f"{printable}\n")


def _shortened(line: str) -> str:
    """Return a line without its middle if it is too long to be read, such as for a long value."""
    if len(line) <= _LONGEST_LINE:
        return line
    return f"{line[:400]} [{len(line) - 800} characters] {line[-400:]}"


_PATH = re.compile(r"\S*(?:[/\\]\S*|\w\.\w{1,5})")
"""One word that looks like a path: with a separator, or with the ending of a file."""


def report_text(value: str) -> str:
    """Return the report given as ``--text``: a text, or the content of a file.

    Raises:
        FileNotFoundError: it looks like a path, and there is no such file.
        ValueError: it is a folder, or the file is no plain text, or too large for a report.
    """
    from clipseg3d.text_files import read_report

    try:
        is_file = Path(value).is_file() or Path(value).is_fifo()
        is_folder = bool(value.strip()) and Path(value).is_dir()
    except (OSError, ValueError):  # too long for a name, or holds characters that no name can have
        is_file = is_folder = False
    if is_file or value.endswith(".txt"):
        return read_report(Path(value))
    if is_folder:
        raise ValueError(f"--text {value}: is a folder; give a text, or the file of one")
    if _PATH.fullmatch(value):
        raise FileNotFoundError(
            f"--text {value}: no such file; check the path, or give a text of several words"
        )
    return value


def require_output(path: Path, *, folder: bool = False) -> None:
    """Find out that a file or folder cannot be written before anything is computed.

    Raises:
        OSError: it cannot; the message names it and the cure.
    """
    from clipseg3d.atomic_write import require_writable

    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # a name that is too long, a circle of links, a NUL
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"{path}: cannot be written ({reason}); choose another place") from error
    if folder and path.exists() and not path.is_dir():
        raise FileExistsError(f"{path}: is a file; give a folder")
    if not folder and path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; give a file")
    existing = path if path.is_dir() else path.parent
    while not existing.exists():  # no folder is made for a command that may fail
        existing = existing.parent
    if not existing.is_dir():
        raise NotADirectoryError(
            f"{path}: cannot be written ({existing} is a file); choose another place"
        )
    require_writable(existing)


def raised_here(error: BaseException) -> bool:
    """Return whether this library raised the error itself, with a message for its user."""
    return raised_in(error, ("clipseg3d",))


def raised_in(error: BaseException, packages: tuple[str, ...]) -> bool:
    """Return whether an error was raised by code of one of some packages."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__", "")).startswith(packages)


def unwrapped(error: BaseException) -> BaseException:
    """Return an error without those that jsonargparse has wrapped around it.

    It wraps errors of the classes that it builds, and of links between options.
    """
    while raised_in(error, ("jsonargparse",)) and error.__cause__ is not None:
        error = error.__cause__
    return error


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line, which names the nearest option.

    Options are written in full: a slip that happens to be the beginning of one is no option.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Refuse what is left, which only the parser of all commands would do, late."""
        known, left = super().parse_known_args(args, namespace)
        if left:
            self.error(f"unrecognized arguments: {' '.join(left)}")
        return known, left

    def error(self, message: str) -> NoReturn:
        """Print the message without the usage, and end with 2."""
        from clipseg3d.ranges import nearest

        if unknown := re.fullmatch(r"unrecognized arguments: (--\S+).*", message):
            option = unknown[1].partition("=")[0]
            words = sorted(self._option_string_actions)
            message = f"{option}: no such option; {nearest(option, words)}"
        elif unknown := re.match(r"argument COMMAND: invalid choice: '(.*?)'", message):
            names = [n for a in self._actions if isinstance(a.choices, dict) for n in a.choices]
            message = f"{unknown[1]}: no such command; {nearest(unknown[1], names)}"
        say(f"{self.prog}: {message}", stream=sys.stderr)
        self.exit(2)
