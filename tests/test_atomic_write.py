"""Mirrors clipseg3d/atomic_write.py."""

import errno
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from clipseg3d.atomic_write import HIDDEN, atomic_files, atomic_folder, atomic_write, locked

STOPS = [OSError("disk full"), KeyboardInterrupt()]


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# files


def test_a_file_appears_complete_in_a_new_folder(tmp_path):
    path = tmp_path / "a" / "b" / "case.txt"
    with atomic_write(path) as tmp:
        tmp.write_text("half")
        assert not path.exists()
        tmp.write_text("complete")
    assert path.read_text() == "complete"
    assert names_in(path.parent) == ["case.txt"]


def test_an_old_file_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "case.txt"
    path.write_text("old")
    with atomic_write(path) as tmp:
        tmp.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    path, calls, replace = tmp_path / "case.txt", [], os.replace

    def spy_fsync(file):
        calls.append(("fsync", os.fstat(file).st_ino, os.fstat(file).st_size))

    def spy_replace(source, target):
        calls.append(("replace", os.stat(source).st_ino, target))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    with atomic_write(path) as tmp:
        tmp.write_text("complete")
    file = path.stat().st_ino
    assert calls == [("fsync", file, len("complete")), ("replace", file, path)]


def test_a_failed_fsync_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "case.txt"
    path.write_text("old")

    def fail(file):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with (
        pytest.raises(OSError, match=r"case\.txt: cannot be written \(Input/output error\)"),
        atomic_write(path) as tmp,
    ):
        tmp.write_text("new")
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["case.txt"]


@pytest.mark.parametrize("stop", STOPS)
def test_an_error_leaves_the_old_file(tmp_path, stop):
    path = tmp_path / "case.txt"
    path.write_text("old")

    def write():
        with atomic_write(path) as tmp:
            tmp.write_text("half")
            raise stop

    with pytest.raises(type(stop)):
        write()
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["case.txt"]


def test_two_writers_have_hidden_files_of_their_own_with_the_suffixes(tmp_path):
    path = tmp_path / "case.v1.nii.gz"
    with atomic_write(path) as first, atomic_write(path) as second:
        assert first != second
        for tmp in (first, second):
            assert tmp.parent == tmp_path
            assert tmp.name.startswith(".")
            assert tmp.name.endswith(".nii.gz")
            tmp.write_text("complete")
    assert names_in(tmp_path) == ["case.v1.nii.gz"]


def test_files_that_belong_together_are_all_written_before_one_is_renamed(tmp_path, monkeypatch):
    paths, renamed, replace = [tmp_path / "a.json", tmp_path / "b" / "b.bin"], [], os.replace

    def spy_replace(source, target):
        renamed.append((target, [path.read_text() for path in tmp_path.rglob(f"{HIDDEN}*")]))
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy_replace)
    with atomic_files(*paths) as files:
        for path, content in zip(files, "ab", strict=True):
            path.write_text(content)
    assert renamed[0][0] == paths[0]
    assert sorted(renamed[0][1]) == ["a", "b"]
    assert renamed[1] == (paths[1], ["b"])
    assert [path.read_text() for path in paths] == ["a", "b"]
    with (
        pytest.raises(OSError, match=rf"^{paths[0]} and {paths[1]}: cannot be written \(No space"),
        atomic_files(*paths),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert [path.read_text() for path in paths] == ["a", "b"]
    assert not list(tmp_path.rglob(f"{HIDDEN}*"))


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path):
    path = tmp_path / ("n" * 250 + ".html")
    with atomic_write(path) as tmp:
        tmp.write_text("complete")
    assert path.read_text() == "complete"


@pytest.mark.parametrize("write", [atomic_write, atomic_folder])
@pytest.mark.parametrize("name", ["case", "file/case"])
def test_the_message_names_the_path_and_the_cure(tmp_path, write, name):
    (tmp_path / "file").write_text("mine")
    path = tmp_path / name
    with (
        pytest.raises(OSError, match="free some space, or choose another place") as caught,
        write(path),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(caught.value).startswith(f"{path}: cannot be written (")
    codes = (errno.ENOSPC,) if name == "case" else (errno.EEXIST, errno.ENOTDIR)
    assert caught.value.errno in codes
    assert names_in(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


# folders


def test_a_folder_appears_complete_in_a_new_folder(tmp_path):
    path = tmp_path / "a" / "b" / "case"
    with atomic_folder(path) as tmp:
        assert tmp.parent == path.parent
        assert tmp.name.startswith(".")
        (tmp / "one.txt").write_text("1")
        assert not path.exists()
        (tmp / "inner").mkdir()
        (tmp / "inner" / "two.txt").write_text("2")
    assert names_in(path.parent) == ["case"]
    assert (path / "one.txt").read_text() == "1"
    assert (path / "inner" / "two.txt").read_text() == "2"


def test_an_empty_folder_is_filled(tmp_path):
    path = tmp_path / "case"
    path.mkdir()
    with atomic_folder(path) as tmp:
        (tmp / "one.txt").write_text("1")
        assert names_in(path) == []
    assert names_in(tmp_path) == ["case"]
    assert names_in(path) == ["one.txt"]


def test_a_folder_with_content_is_not_replaced(tmp_path):
    path = tmp_path / "case"
    path.mkdir()
    (path / "old.txt").write_text("old")
    with (
        pytest.raises(OSError, match=r"case: cannot be written \(") as caught,
        atomic_folder(path) as tmp,
    ):
        (tmp / "new.txt").write_text("new")
    assert caught.value.errno == errno.ENOTEMPTY
    assert str(caught.value).endswith("it holds something already; choose another place")
    assert names_in(tmp_path) == ["case"]
    assert names_in(path) == ["old.txt"]


@pytest.mark.parametrize("stop", STOPS)
def test_an_error_leaves_no_folder(tmp_path, stop):
    def write():
        with atomic_folder(tmp_path / "case") as tmp:
            (tmp / "inner").mkdir()
            (tmp / "inner" / "one.txt").write_text("1")
            raise stop

    with pytest.raises(type(stop)):
        write()
    assert names_in(tmp_path) == []


def test_the_name_of_a_folder_may_be_as_long_as_the_system_allows(tmp_path):
    path = tmp_path / ("n" * 255)
    with atomic_folder(path) as tmp:
        (tmp / "one.txt").write_text("1")
    assert names_in(path) == ["one.txt"]


# processes


class Child:
    """Run a function in a fork; it says when it has come to a point, and stays there."""

    def __init__(self, function, *arguments):
        context = multiprocessing.get_context("fork")
        self.arrived = context.Event()
        self.process = context.Process(target=function, args=(*arguments, self.arrived))
        self.process.start()
        assert self.arrived.wait(timeout=60)

    def kill(self):
        self.process.kill()
        self.process.join()


def write_half(path, arrived):
    with atomic_write(path) as tmp:
        tmp.write_text("half")
        arrived.set()
        signal.pause()


def fill_half(path, arrived):
    with atomic_folder(path) as tmp:
        (tmp / "one.txt").write_text("half")
        arrived.set()
        signal.pause()


def hold(path, arrived):
    with locked(path):
        arrived.set()
        signal.pause()


@pytest.mark.parametrize("begin", [write_half, fill_half, hold])
def test_only_what_killed_processes_have_left_is_removed(tmp_path, begin):
    child = Child(begin, tmp_path / "theirs")
    try:
        (left,) = tmp_path.iterdir()
        with atomic_write(tmp_path / "mine") as tmp:
            tmp.write_text("complete")
        assert names_in(tmp_path) == [left.name, "mine"]
    finally:
        child.kill()
    assert names_in(tmp_path) == [left.name, "mine"]
    (tmp_path / ".clipseg3d").touch()
    with atomic_folder(tmp_path / "folder"):
        pass
    assert names_in(tmp_path) == [".clipseg3d", "folder", "mine"]


def test_a_lock_keeps_others_out_until_its_process_ends(tmp_path):
    child, waits, order = Child(hold, tmp_path / "new" / "case"), [], []

    def wait():
        with locked(tmp_path / "new" / "case", on_wait=lambda: waits.append(1)):
            order.append("mine")

    with locked(tmp_path / "new" / "other", on_wait=lambda: waits.append(0)):
        pass
    assert waits == []
    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(timeout=0.2)
    order.append("killed")
    child.kill()
    thread.join(timeout=60)
    assert order == ["killed", "mine"]
    assert waits == [1]
    assert names_in(tmp_path / "new") == []


def test_a_lock_has_one_holder_at_a_time(tmp_path):
    inside, most = [], []

    def enter(_):
        for _ in range(20):
            with locked(tmp_path / "case"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enter, range(4)))
    assert set(most) == {1}
    assert names_in(tmp_path) == []


def test_without_locks_nothing_of_others_is_removed(tmp_path, monkeypatch):
    (tmp_path / f"{HIDDEN}theirs").touch()

    def fail(file, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", fail)
    with locked(tmp_path / "case"), atomic_write(tmp_path / "case") as tmp:
        tmp.write_text("complete")
    with atomic_folder(tmp_path / "folder"):
        pass
    assert names_in(tmp_path) == [f"{HIDDEN}theirs", "case", "folder"]
