"""Mirrors clipseg3d/cli/check_data.py."""

import io
import json
import sys

import nibabel as nib
import numpy as np
import pytest

from clipseg3d.cli.main import main
from clipseg3d.vocabulary import SEQUENCES

NAMES = ("BraTS20_Training_001", "BraTS20_Training_002")
COMMON = ("--spacing", "8")


@pytest.fixture
def root(tmp_path):
    """Folder of two small cases of BraTS 2020 with voxels of 8 mm."""
    for seed, name in enumerate(NAMES):
        rng = np.random.default_rng(seed)
        label = rng.choice(np.array([0, 1, 2, 4], np.uint8), (9, 10, 11))
        images = rng.integers(1, 900, (4, 9, 10, 11)).astype(np.int16)
        images[:, 0] = label[0] = 0  # background
        folder = tmp_path / "cases" / name
        folder.mkdir(parents=True)
        for kind, voxels in zip((*SEQUENCES, "seg"), (*images, label), strict=True):
            image = nib.Nifti1Image(voxels, np.diag([-8.0, -8, 8, 1]))
            nib.save(image, folder / f"{name}_{kind}.nii.gz")
    return tmp_path / "cases"


def check(*arguments):
    return main(["check-data", *map(str, arguments)])


def change(path, edit):
    image = nib.load(path)
    nib.save(nib.Nifti1Image(edit(np.asanyarray(image.dataobj)), image.affine), path)


def test_a_good_folder_ends_with_0(root, capsys):
    assert check(root, *COMMON) == 0
    page = capsys.readouterr().out
    assert "2 cases of brats2020: 0 faults" in page
    assert "Faults:" not in page
    assert [line.split()[0] for line in page.splitlines()[1:3]] == list(NAMES)
    assert "--voxels reads all of them" in page
    assert check(root, *COMMON, "--voxels") == 0
    assert "--voxels" not in capsys.readouterr().out


def test_faults_are_listed_and_written_and_end_with_1(root, tmp_path, capsys):
    gone = root / NAMES[0] / f"{NAMES[0]}_t2.nii.gz"
    gone.unlink()
    empty = root / NAMES[1] / f"{NAMES[1]}_flair.nii.gz"
    change(empty, np.zeros_like)
    out = tmp_path / "report.json"
    assert check(root, *COMMON, "-o", out) == 1
    assert [case["faults"] for case in json.loads(out.read_text())["cases"]][1] == []
    assert check(root, *COMMON, "-o", out, "--voxels") == 1
    page = capsys.readouterr().out
    stored = json.loads(out.read_text())
    assert [len(case["faults"]) for case in stored["cases"]] == [1, 1]
    for case, path in zip(stored["cases"], (gone, empty), strict=True):
        assert case["faults"][0].startswith(f"{path}: ")
        assert case["faults"][0] in page.splitlines()
    assert page.splitlines()[-1] == str(out)


def test_the_release_can_be_named(root, capsys):
    assert check(root, *COMMON, "--release", "brats2019") == 0
    assert "cases of brats2019" in capsys.readouterr().out
    assert check(root, *COMMON, "--release", "brats1999") == 2
    assert "unknown release 'brats1999'" in capsys.readouterr().err
    for path in root.rglob("*_seg.nii.gz"):
        change(path, lambda label: np.where(label == 4, 3, label))
    for options in ((), ("--release", "brats2020")):
        assert check(root, *COMMON, *options) == 1
        assert capsys.readouterr().out.count(": holds label 3, but brats2020 has 0, 1, 2, 4") == 2


def test_what_may_be_absent(root, capsys):
    (root / NAMES[0] / f"{NAMES[0]}_t1ce.nii.gz").unlink()
    (root / NAMES[1] / f"{NAMES[1]}_seg.nii.gz").unlink()
    assert check(root, *COMMON, "--unlabelled") == 1
    assert check(root, *COMMON, "--allow-missing") == 1
    assert check(root, *COMMON, "--unlabelled", "--allow-missing", "--voxels") == 0
    assert check(root, "--unlabelled", "--allow-missing") == 1
    assert "expected 1 mm" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:the weights of the tiny CLIP are random")
def test_tokens_are_those_of_the_encoder(root, tmp_path, tiny_clip, capsys):
    reports = {NAMES[0]: "A lesion of the left frontal lobe.", NAMES[1]: "One word"}
    table = tmp_path / "reports.json"
    table.write_text(json.dumps(reports))
    out = tmp_path / "report.json"
    assert check(root, *COMMON, "--reports", table, "--encoder", "tiny-random", "-o", out) == 0
    stored = json.loads(out.read_text())["cases"]
    expected = [tiny_clip.count_tokens(report) for report in reports.values()]
    assert [case["report_tokens"] for case in stored] == expected
    assert [case["report_words"] for case in stored] == [7, 2]
    rows = capsys.readouterr().out.splitlines()
    assert [int(row.split()[-2]) for row in rows[1:3]] == expected
    assert "tokens" in rows[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone"], "gone: no such folder"),
        ([".", "-o", "report.csv"], "report.csv: does not end in .json; rename it"),
        (["."], "of no known release"),
        ([".", "--release", "brats2020", "--reports", "gone.json"], "gone.json: no such file"),
    ],
)
def test_bad_arguments_end_in_one_message(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check(*arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("clipseg3d: ")
    assert message in error


def test_a_terminal_without_the_letters_of_a_path(root, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    foreign = root.rename(root.with_name("Größe"))
    (foreign / NAMES[0] / f"{NAMES[0]}_t1.nii.gz").write_bytes(b"")
    assert check(foreign, *COMMON) == 1
    terminal.flush()
    page = terminal.buffer.getvalue().decode("ascii")
    assert r"Gr\xf6\xdfe" in page
    assert "the file is empty" in page


def test_help_says_what_is_read(capsys):
    with pytest.raises(SystemExit) as stop:
        check("--help")
    assert stop.value.code == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "not only headers and masks" in page
    assert "The exit code is 1 if there is any" in page
