"""Mirrors clipseg3d/data/reports.py."""

import re

import pytest

from clipseg3d.data.reports import read_reports


def write(folder, data, name="reports.json"):
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8"))
    return path


def test_json_of_texts_and_of_objects(tmp_path):
    path = write(tmp_path, '{"a": "Größe 3 cm³", "b": {"report": "", "grade": "HGG"}}')
    assert read_reports(path) == {"a": "Größe 3 cm³", "b": ""}


@pytest.mark.parametrize(
    "header", ["case,report", "report_id,case_id,text,report", "ID , Report", "grade,Case,TEXT"]
)
def test_tables(tmp_path, header):
    columns = [column.strip().lower() for column in header.split(",")]
    case = next(c for c in ("case", "case_id", "id") if c in columns)
    report = next(c for c in ("report", "text") if c in columns)
    row = {case: "a", report: '"Left, ""large""."'}
    cells = ",".join(row.get(column, "other") for column in columns)
    path = write(tmp_path, f"{header}\n{cells}\n", "reports.CSV")
    assert read_reports(path) == {"a": 'Left, "large".'}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"a": "text"', "not valid JSON"),
        (b"", "not valid JSON"),
        (b'["a", "b"]', "holds a list, expected case name -> report"),
        (b'"text"', "holds a str, expected case name -> report"),
        (b'{"a": 3}', "the report of a is a int, expected text"),
        (b'{"a": null}', "the report of a is a NoneType, expected text"),
        (b'{"a": {"text": "b"}}', "the report of a is a NoneType, expected text"),
        (
            b'{"fine": "", "a": "x\\ud83d y"}',
            "the report of a holds half a surrogate pair ('\\ud83d')",
        ),
        (b'{"a\\udc00": ""}', "the report of a\\udc00 holds half a surrogate pair ('\\udc00')"),
        ('{"a": "Ödem"}'.encode("latin-1"), "not UTF-8 text"),
    ],
)
def test_json_that_cannot_be_used(tmp_path, data, reason):
    path = write(tmp_path, data)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {reason}")) as error:
        read_reports(path)
    str(error.value).encode()  # it can be shown


def test_a_whole_character_of_two_halves_is_fine(tmp_path):
    assert read_reports(write(tmp_path, '{"a": "\\ud83d\\ude00"}')) == {"a": "😀"}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("case;report\na;x\n", "has the columns case;report; name one case or case_id or id"),
        ("case,finding\na,x\n", "has the columns case, finding; name one"),
        ("name,report\na,x\n", "has the columns name, report; name one"),
        ("case,report\na,x\na,y\n", "holds two reports of a; keep one"),
        ("case,report\na,x, y\n", "row 1 has more or fewer cells"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, data, reason):
    path = write(tmp_path, data, "reports.csv")
    with pytest.raises(ValueError, match=re.escape(f"{path}: {reason}")):
        read_reports(path)


@pytest.mark.parametrize("name", ["absent.json", "absent.csv"])
def test_reports_that_are_not_there(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"{name}: no such file; check the path"):
        read_reports(tmp_path / name)
