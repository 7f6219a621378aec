"""Radiology reports: a text file in the folder of each case, or one JSON or CSV file of all."""

from pathlib import Path

from clipseg3d.text_files import read_json, read_table

REPORT_SUFFIX = "_flair_text.txt"
"""Report file in the folder of its case, named as in TextBraTS: ``{case}_flair_text.txt``.

The ``.npy`` file of that name, which holds the text as TextBraTS' own encoder embedded it, is
ignored: networks embed the text with their own encoder.
"""
CASE_COLUMNS = ("case", "case_id", "id")
REPORT_COLUMNS = ("report", "text")


def read_reports(path: Path) -> dict[str, str]:
    """Read one file of reports by case name.

    Args:
        path: JSON, case name -> text, or -> an object with the key ``report``; or, ending in
            .csv, a table with one of ``CASE_COLUMNS`` and one of ``REPORT_COLUMNS``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another form, or holds text that is not valid Unicode.
    """
    texts = _from_table(path) if path.suffix.lower() == ".csv" else _from_json(path)
    for name, text in texts.items():
        try:
            (name + text).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{path}: the report of {ascii(name)[1:-1]} holds half a surrogate pair "
                f"({error.object[error.start]!a}); save the file as UTF-8"
            ) from error
    return texts


def _from_json(path: Path) -> dict[str, str]:
    """Read case name -> text, or -> an object with the key ``report``."""
    entries = read_json(path)
    if not isinstance(entries, dict):
        raise ValueError(
            f"{path}: holds a {type(entries).__name__}, expected case name -> report; repair it"
        )
    texts: dict[str, str] = {}
    for name, entry in entries.items():
        text = entry.get("report") if isinstance(entry, dict) else entry
        if not isinstance(text, str):
            raise ValueError(
                f"{path}: the report of {name} is a {type(text).__name__}, expected text; repair it"
            )
        texts[name] = text
    return texts


def _from_table(path: Path) -> dict[str, str]:
    """Read a table with a case and a report in each row."""
    texts: dict[str, str] = {}
    for row in read_table(path):
        cells = {column.lower(): cell for column, cell in row.items()}
        case, report = (
            next((cells[column] for column in columns if column in cells), None)
            for columns in (CASE_COLUMNS, REPORT_COLUMNS)
        )
        if case is None or report is None:
            raise ValueError(
                f"{path}: has the columns {', '.join(row)}; name one {' or '.join(CASE_COLUMNS)}, "
                f"and one {' or '.join(REPORT_COLUMNS)}"
            )
        if case in texts:
            raise ValueError(f"{path}: holds two reports of {case}; keep one")
        texts[case] = report
    return texts
