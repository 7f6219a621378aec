"""Mirrors clipseg3d/cli/completion.py: a shell asks, as argcomplete lets it."""

import os
import subprocess
import sys

import pytest

from clipseg3d.cli.completion import SET_UP
from clipseg3d.cli.main import main


def completions(line, folder):
    answer = folder / "answer"
    shell = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    code = "from clipseg3d.cli.main import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={**os.environ, **shell}, capture_output=True
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, b"", b"")
    return set(answer.read_text().split("\n"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("clipseg3d c", {"check-data", "check-submission", "configs", "cross-validate"}),
        ("clipseg3d segment --pro", {"--prompt", "--probabilities"}),
        ("clipseg3d segment sc", {"scans/"}),
        ("clipseg3d fit --config phantom_t", {"phantom_tiny"}),
        ("clipseg3d fit --config my", {"my.yaml"}),
        ("clipseg3d fit --trainer.max", {"--trainer.max_epochs"}),
    ],
)
def test_a_line_is_completed(line, expected, tmp_path):
    pytest.importorskip("argcomplete")
    (tmp_path / "scans").mkdir()
    (tmp_path / "my.yaml").touch()
    assert completions(line, tmp_path) == expected


def test_the_help_says_how_to_set_it_up(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    main([])
    assert SET_UP in capsys.readouterr().out
