"""Mirrors clipseg3d/whole_file.py."""

import errno

import pytest

from clipseg3d.atomic_write import atomic_write


def test_a_file_appears_whole_in_a_new_folder(tmp_path):
    path = tmp_path / "a" / "b" / "case.txt"
    with atomic_write(path) as aside:
        aside.write_text("half")
        assert not path.exists()
        aside.write_text("whole")
    assert path.read_text() == "whole"
    assert [p.name for p in path.parent.iterdir()] == ["case.txt"]


@pytest.mark.parametrize("stop", [OSError("disk full"), KeyboardInterrupt()])
def test_what_goes_wrong_leaves_the_old_file(tmp_path, stop):
    path = tmp_path / "case.txt"
    path.write_text("old")

    def write():
        with atomic_write(path) as aside:
            aside.write_text("half")
            raise stop

    with pytest.raises(type(stop)):
        write()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["case.txt"]


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path):
    path = tmp_path / ("n" * 250 + ".html")
    with atomic_write(path) as aside:
        aside.write_text("whole")
    assert path.read_text() == "whole"


@pytest.mark.parametrize("place", ["case.txt", "file/case.txt"])
def test_the_message_names_the_file_and_the_cure(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    path = tmp_path / place
    with (
        pytest.raises(OSError, match="free some space, or choose another place") as caught,
        atomic_write(path),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(caught.value).startswith(f"{path}: cannot be written (")
    assert caught.value.errno in (errno.ENOSPC, errno.EEXIST, errno.ENOTDIR)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
