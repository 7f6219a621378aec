"""A table of cases: names, files and reports in one CSV or JSON file, for files of any names."""

from pathlib import Path

from clipseg3d.data.layout import CaseFiles
from clipseg3d.data.release import BraTSRelease
from clipseg3d.ranges import nearest
from clipseg3d.text_files import read_json, read_table
from clipseg3d.vocabulary import LABEL

CASE_COLUMN, PATIENT_COLUMN, REPORT_COLUMN, LABEL_COLUMN = "case", "patient", "report", "seg"


def is_case_table(path: Path) -> bool:
    """Return whether a path is a file that may be a table of cases."""
    return path.suffix.lower() in (".csv", ".json") and path.is_file()


def read_case_table(
    path: Path, release: BraTSRelease, required: tuple[str, ...]
) -> tuple[list[CaseFiles], list[str]]:
    """Read a table with a row for each case; files are relative to its folder.

    Args:
        path: CSV file, or JSON file with a list of objects. Columns are ``case``, ``patient``
            (optional), the sequences of the release, ``seg`` for the expert mask, and ``report``
            (the text itself). Empty cells stand for nothing.
        release: says which sequences there are.
        required: sequences, and ``LABEL``, that every case must have.

    Returns:
        Cases, and every fault, one line each.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no such table.
    """
    rows = _read_json_rows(path) if path.suffix.lower() == ".json" else read_table(path)
    kinds = {**{name: name for name in release.sequences}, LABEL_COLUMN: LABEL}
    allowed = [CASE_COLUMN, PATIENT_COLUMN, *kinds, REPORT_COLUMN]
    cases: list[CaseFiles] = []
    faults: list[str] = []
    for column in rows[0] if rows else ():
        if column not in allowed:
            raise ValueError(f"{path}: has a column {column!r}; {nearest(column, allowed)}")
    for number, row in enumerate(rows, start=1):
        case_id = row.get(CASE_COLUMN, "")
        if not case_id:
            faults.append(f"{path}: row {number} names no case; fill in its column {CASE_COLUMN}")
            continue
        files = {
            kind: path.parent / row[column] for column, kind in kinds.items() if row.get(column)
        }
        has_sequence = any(name in files for name in release.sequences)
        faults += [
            f"{case_id}: has no {kind} in {path}; fill it in, or remove the row"
            for kind in dict.fromkeys(required if has_sequence else (*release.sequences, *required))
            if kind not in files
        ]
        if not has_sequence:
            continue
        cases.append(
            CaseFiles(
                case_id,
                path.parent,
                files,
                patient=row.get(PATIENT_COLUMN) or None,
                report=row.get(REPORT_COLUMN, ""),
            )
        )
    return cases, faults


def _read_json_rows(path: Path) -> list[dict[str, str]]:
    """Read a JSON list of objects as rows of text; null stands for nothing."""
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: not a list of cases; give [{{'case': ..., 't1': ...}}, ...]")
    texts: list[dict[str, str]] = []
    for row in rows:
        texts.append({name: "" if value is None else value for name, value in row.items()})
        for name, value in texts[-1].items():
            if not isinstance(value, str):
                raise ValueError(f"{path}: {name}={value!r} is no text; put it in quotation marks")
    return texts
