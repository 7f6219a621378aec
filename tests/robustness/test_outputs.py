"""Outputs that cannot be written are found out before anything is read or computed (outputs.py)."""

import os

import pytest

from clipseg3d.cli.main import main

SOURCE = "nowhere"  # whatever is read first would end in another message


@pytest.mark.parametrize(
    "command",
    [
        ["phantom", "--spacing", "8", "-o", "file"],
        ["phantom", "--spacing", "8", "-o", "file/x"],
        ["demo", "-o", "file"],
        ["segment", ".", "--weights", SOURCE, "-o", "file"],
        ["segment", ".", "--weights", SOURCE, "-o", "file/x"],
        ["export", SOURCE, "-o", "file"],
        ["export", SOURCE, "-o", "file/x"],
        ["export", SOURCE, "--format", "bundle", "-o", "file/x"],
        ["export", SOURCE, "--format", "torch", "-o", "file/x.pt2"],
        ["embed-text", SOURCE, "-o", "file/x.safetensors"],
        ["tune-postprocessing", SOURCE, SOURCE, "-o", "file/x.json"],
        ["evaluate", SOURCE, SOURCE, "--protocol", "nan", "-o", "file/x.csv"],
        ["cross-validate", "c.yaml", "-o", "file/x"],
    ],
    ids=" ".join,
)
def test_an_output_at_or_below_a_file_is_refused(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "c.yaml").write_text("{}")
    assert main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("clipseg3d: file")
    assert "is a file; give a folder" in line or "cannot be written" in line
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize(
    "command",
    [
        ["export", SOURCE, "--format", "torch", "-o", "folder.pt2"],
        ["embed-text", SOURCE, "-o", "folder.safetensors"],
        ["tune-postprocessing", SOURCE, SOURCE, "-o", "folder.json"],
        ["evaluate", SOURCE, SOURCE, "--protocol", "nan", "-o", "folder.csv"],
    ],
    ids=" ".join,
)
def test_a_folder_in_place_of_a_file_is_refused(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / command[-1]).mkdir()
    assert main(command) == 1
    assert capsys.readouterr().err == f"clipseg3d: {command[-1]}: is a folder; give a file\n"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
@pytest.mark.parametrize(
    "command",
    [
        ["phantom", "--spacing", "8", "-o", "locked/x"],
        ["demo", "-o", "locked/x"],
        ["segment", ".", "--weights", SOURCE, "-o", "locked"],
        ["export", SOURCE, "-o", "locked/x"],
        ["embed-text", SOURCE, "-o", "locked/x.safetensors"],
        ["tune-postprocessing", SOURCE, SOURCE, "-o", "locked/x.json"],
        ["evaluate", SOURCE, SOURCE, "--protocol", "nan", "-o", "locked/x.csv"],
        ["cross-validate", "c.yaml", "-o", "locked/x"],
    ],
    ids=" ".join,
)
def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("{}")
    (tmp_path / "locked").mkdir(mode=0o555)
    assert main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("clipseg3d: locked: cannot be written (Permission denied); ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-n", "0"], "number=0 is not positive"),
        (["--seed", "-1"], "seed=-1 is negative"),
        (["--spacing", "nan"], "spacing_mm=nan is outside [0.5, 8]"),
    ],
)
def test_numbers_of_phantoms_are_checked(tmp_path, capsys, options, message):
    assert main(["phantom", "-o", str(tmp_path / "p"), *options]) == 1
    assert capsys.readouterr().err.startswith(f"clipseg3d: {message}")
