"""Reading text, JSON, YAML and CSV files, with errors that name the file and the cure."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import yaml

MAX_REPORT_BYTES = 1_000_000
"""Largest report; those of BraTS cases have about 1,000 bytes."""


def read_text(path: Path) -> str:
    """Read a UTF-8 text file, and strip white space at both ends.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not UTF-8, or cannot be opened.
    """
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise FileNotFoundError(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be opened ({error.strerror}); check its permissions and its path"
        ) from error


def read_report(path: Path) -> str:
    """Read a report: as :func:`read_text`, but only what can be one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as :func:`read_text`; or the file is too large, or holds control characters, as
            files of word processors do.
    """
    if path.is_file() and path.stat().st_size > MAX_REPORT_BYTES:
        raise ValueError(
            f"{path}: has {path.stat().st_size / 1e6:.1f} MB, too much for a report; give the text "
            "of one case"
        )
    text = read_text(path)
    if strange := next((c for c in text if ord(c) < 32 and c not in "\t\n\r\f\v"), None):
        raise ValueError(
            f"{path}: holds the control character {strange!r}, so it is no plain text; save it as "
            "plain UTF-8 text"
        )
    return text


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); repair it") from error


def read_yaml(path: Path) -> Any:
    """Read a YAML file; tags that would make anything but plain values are refused.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not YAML of plain values.
    """
    text = read_text(path)
    try:
        content = yaml.safe_load(text)
        json.dumps(content, default=str, skipkeys=True)  # fails if something holds itself
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: also of a date
        reason = " ".join(str(error).split())
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            mark = error.problem_mark
            reason = f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
        raise ValueError(f"{path}: not valid YAML ({reason}); repair it") from error
    return content


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a CSV file with a header as column -> cell, for each row.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not valid CSV, or a row has more or fewer cells than the header.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise ValueError(f"{path}: not valid CSV ({error}); repair it") from error
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise ValueError(
                f"{path}: row {number} has more or fewer cells than the header; put quotation "
                "marks around cells that hold a comma"
            )
    return [{column.strip(): cell.strip() for column, cell in row.items()} for row in rows]
