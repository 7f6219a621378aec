"""Mirrors clipseg3d/text_files.py."""

import errno
from pathlib import Path

import pytest

from clipseg3d.text_files import read_json, read_table, read_text


def write(folder, data, name="file.csv"):
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8"))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_text_is_utf8_with_or_without_a_mark(tmp_path, encoding):
    path = write(tmp_path, " Ödem, 3 cm³\r\nlinks\n".encode(encoding))
    assert read_text(path) == "Ödem, 3 cm³\nlinks"


def test_text_of_another_encoding(tmp_path):
    path = write(tmp_path, "Ödem".encode("latin-1"))
    with pytest.raises(ValueError, match=r"file\.csv: not UTF-8 text \(.+\); save it as UTF-8"):
        read_text(path)


@pytest.mark.parametrize("make", [lambda p: None, Path.mkdir, lambda p: p.symlink_to("gone")])
def test_text_that_is_not_there(tmp_path, make):
    make(tmp_path / "x.txt")
    with pytest.raises(FileNotFoundError, match=r"x\.txt: no such file; check the path"):
        read_text(tmp_path / "x.txt")


def test_text_below_a_file(tmp_path):
    write(tmp_path, "text", "a")
    with pytest.raises(FileNotFoundError, match=r"x\.txt: no such file; check the path"):
        read_text(tmp_path / "a" / "x.txt")


def test_text_that_may_not_be_read(tmp_path, monkeypatch):
    path = write(tmp_path, "text")

    def refuse(self, *args, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ValueError, match=r"opened \(Permission denied\); check its permissions"):
        read_text(path)


def test_a_link_to_itself(tmp_path):
    path = tmp_path / "circle.txt"
    path.symlink_to(path)
    with pytest.raises(ValueError, match=r"circle\.txt: cannot be opened \(Too many levels"):
        read_text(path)


def test_json(tmp_path):
    assert read_json(write(tmp_path, '{"a": [1, "ö"]}')) == {"a": [1, "ö"]}


@pytest.mark.parametrize("data", ["", "{", "[1,]", "nope", "[" * 100_000])
def test_what_is_not_json(tmp_path, data):
    with pytest.raises(ValueError, match=r"file\.csv: not valid JSON \(.+\); repair it") as error:
        read_json(write(tmp_path, data))
    assert "\n" not in str(error.value)


def test_tables_have_quoted_cells_and_spaces(tmp_path):
    path = write(tmp_path, ' case , report\r\na,"one, ""two""\nthree"\r\n\r\n b ,x\r\n')
    assert read_table(path) == [
        {"case": "a", "report": 'one, "two"\nthree'},
        {"case": "b", "report": "x"},
    ]


def test_other_line_breaks_stay_in_their_cell(tmp_path):
    assert read_table(write(tmp_path, "a,b\n1,x\u2028y\x0bz\n")) == [
        {"a": "1", "b": "x\u2028y\x0bz"}
    ]


def test_an_empty_table(tmp_path):
    assert read_table(write(tmp_path, "")) == read_table(write(tmp_path, "a,b\n")) == []


@pytest.mark.parametrize("row", ["x,left, and large", "x"])
def test_a_row_of_another_length_is_no_guess(tmp_path, row):
    path = write(tmp_path, f"case,report\na,fine\n{row}\n")
    with pytest.raises(
        ValueError, match=r"file\.csv: row 2 has more or fewer cells than the header"
    ):
        read_table(path)


def test_what_is_not_csv(tmp_path):
    path = write(tmp_path, 'case,report\na,"open\n')
    with pytest.raises(ValueError, match=r"file\.csv: not valid CSV \(.+\); repair it"):
        read_table(path)
