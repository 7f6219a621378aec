"""Mirrors clipseg3d/cli/terminal.py."""

import os

import pytest

from clipseg3d.cli.terminal import require_output, say


def test_a_terminal_is_shown_text_and_given_no_orders(capsys):
    say("a\x1b[31mb\x9b\tc")
    assert capsys.readouterr().out == "a\\x1b[31mb\\x9b\tc\n"


def test_a_long_value_is_cut_out_of_an_error(capsys):
    import sys

    say(f"one\nname={'x' * 5000}; give another", stream=sys.stderr)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "one"
    assert second.startswith("name=xxx")
    assert second.endswith("xxx; give another")
    assert len(second) < 1000


@pytest.mark.parametrize("name", ["n" * 300, "a\0b", "loop/x"])
def test_names_that_no_file_can_have_are_refused(tmp_path, name):
    os.symlink("loop", tmp_path / "loop")
    with pytest.raises(OSError, match=r"cannot be written \(.*\); choose another place"):
        require_output(tmp_path / name)
