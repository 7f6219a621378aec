"""Mirrors clipseg3d/cli/evaluate.py."""

import csv

import nibabel as nib
import numpy as np
import pytest

from clipseg3d.cli.main import main
from clipseg3d.metrics.protocols import get_protocol
from clipseg3d.metrics.region_scores import score_region
from clipseg3d.vocabulary import SEQUENCES

NAMES = ("BraTS20_Training_001", "BraTS20_Training_002", "BraTS20_Training_003")
SHAPE = (24, 22, 20)
AFFINE = np.diag([-1.0, -1, 2, 1])
COLUMNS = (
    "case,region,dice,hd95_mm,sensitivity,specificity,nsd,lesion_dice,lesion_hd95_mm,"
    "lesion_tp,lesion_fp,lesion_fn,lesion_f1"
)


def tumour(shift=0):
    label = np.zeros(SHAPE, np.uint8)
    for value, width in ((2, 7), (1, 5), (4, 2)):
        x = slice(11 - width + shift, 11 + width + shift)
        label[x, 9 - width : 9 + width, 10 - width : 17] = value
    return label


def write(path, voxels, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)


@pytest.fixture
def folders(tmp_path):
    """References as cases, and two folders of predictions; the last case has no tumour."""
    root, good, bad = (tmp_path / name for name in ("root", "good", "bad"))
    for index, name in enumerate(NAMES):
        label = np.zeros_like(tumour()) if index == 2 else tumour(index)
        write(root / name / f"{name}_seg.nii.gz", label)
        for sequence in SEQUENCES:
            write(root / name / f"{name}_{sequence}.nii.gz", np.ones(SHAPE, np.int16))
        write(good / f"{name}.nii.gz", np.roll(label, 1, axis=2))
        write(bad / f"{name}.nii.gz", tumour(index + 3))
    return root, good, bad


def evaluate(*arguments):
    return main(["evaluate", *map(str, arguments)])


def test_scores_by_case_and_region(folders, tmp_path, capsys):
    root, good, _ = folders
    out = tmp_path / "new" / "scores.csv"
    options = ("--protocol", "brats2023", "--hd95-method", "monai", "--output", out)
    assert evaluate(good, root, *options) == 0
    assert out.read_text().splitlines()[0] == COLUMNS
    rows = list(csv.DictReader(out.open()))
    assert [(row["case"], row["region"]) for row in rows] == [
        (name, region) for name in NAMES for region in ("WT", "TC", "ET")
    ]
    due = score_region(
        np.roll(tumour(1) == 4, 1, axis=2),
        tumour(1) == 4,
        protocol=get_protocol("brats2023"),
        method="monai",
        spacing_mm=(1, 1, 2),
    )
    found = {name: float(rows[5][name]) for name in due}
    assert found == pytest.approx(due)
    page = capsys.readouterr().out
    assert "3 cases of brats2020" in page
    assert "Protocol brats2023" in page
    assert "HD95 monai: larger of both directed 95th percentiles of border distances" in page
    assert f"{good}, mean ± SD over cases, HD95 as monai:" in page
    mean = np.mean([float(row["dice"]) for row in rows if row["region"] == "TC"])
    sd = np.std([float(row["dice"]) for row in rows if row["region"] == "TC"], ddof=1)
    assert f"{mean:.3f} ± {sd:.3f}" in page
    assert "WT 1 both, 0 reference alone, 0 prediction alone; TC 1 both" in page
    assert page.splitlines()[-1] == str(out)
    assert [path.name for path in out.parent.iterdir()] == ["scores.csv"]


def test_protocols_differ_where_masks_are_empty(folders, tmp_path, capsys):
    root, good, bad = folders
    out = tmp_path / "scores.csv"
    due = {
        ("brats2020", good): ["1.0", "0.0", *["1.0"] * 4, *["0.0"] * 4, "1.0"],
        ("nan", good): [*[""] * 7, "0.0", "0.0", "0.0", ""],
        ("brats2020", bad): ["0.0", "373.12866", "0.0"],
        ("brats2023", bad): ["0.0", "374.0", "0.0"],
        ("nan", bad): ["0.0", "373.0", ""],
    }
    for (protocol, folder), cells in due.items():
        assert evaluate(folder, root, "--protocol", protocol, "-o", out) == 0
        row = [cell[:9] for cell in out.read_text().splitlines()[7].split(",")[2:]]
        assert row[: len(cells)] == cells
    page = capsys.readouterr().out
    assert "WT 0 both, 1 reference alone, 0 prediction alone" in page
    assert "HD95 as medpy" in page
    assert "HD95 as surface" in page


def test_without_a_protocol_the_one_of_the_release_is_taken(folders, capsys):
    root, good, _ = folders
    assert evaluate(good, root) == 0
    page = capsys.readouterr().out
    assert "Protocol brats2020:" in page
    assert "(no --protocol given: brats2020 fits brats2020)" in page
    assert "Note" not in page


def test_a_protocol_that_does_not_fit_the_release_is_told(folders, tmp_path, capsys):
    root, good, _ = folders
    out = tmp_path / "scores.csv"
    assert evaluate(good, root, "--protocol", "brats2024", "-o", out) == 0
    page = capsys.readouterr().out
    assert "Note: no challenge scores brats2020 by brats2024" in page
    assert "brats2020 fits" in page
    columns = f"{COLUMNS},nsd_05,lesion_nsd,lesion_nsd_05"
    assert out.read_text().splitlines()[0] == columns
    assert evaluate(good, root, "--protocol", "nan") == 0
    assert "Note" not in capsys.readouterr().out


def test_references_may_be_label_maps(folders, tmp_path, capsys):
    root, good, _ = folders
    flat = tmp_path / "flat"
    for name in NAMES:
        write(flat / f"{name}.nii.gz", nib.load(root / name / f"{name}_seg.nii.gz").get_fdata())
    tables = []
    for reference in (root, flat):
        out = tmp_path / f"{reference.name}.csv"
        assert evaluate(good, reference, "--protocol", "nan", "-o", out) == 0
        tables.append(out.read_text())
    assert tables[0] == tables[1]
    assert evaluate(good, flat, "--protocol", "nan", "--release", "brats2021") == 0
    assert "3 cases of brats2021" in capsys.readouterr().out


def test_the_release_says_which_lesions_count(tmp_path):
    reference, out = np.zeros(SHAPE, np.uint8), tmp_path / "scores.csv"
    reference[3:9, 3:9, 3:9] = 2
    write(tmp_path / "found" / "a.nii.gz", reference.copy())
    reference[20:22, 18:20, 17:19] = 2  # 16 mm3, missed
    write(tmp_path / "true" / "a.nii.gz", reference)
    options = (tmp_path / "found", tmp_path / "true", "--protocol", "brats2023", "-o", out)
    for release, dice in (("brats2023_gli", 1.0), ("brats2023_met", 0.5)):
        assert evaluate(*options, "--release", release) == 0
        assert next(csv.DictReader(out.open()))["lesion_dice"] == str(dice)


def test_folders_are_compared_and_ranked(folders, tmp_path, capsys):
    root, good, bad = folders
    third = tmp_path / "third"
    for name in NAMES:
        write(third / f"{name}.nii.gz", tumour(0))
    assert evaluate(good, root, "--protocol", "brats2020", "--compare", bad, third) == 0
    page = capsys.readouterr().out
    for other in (bad, third):
        assert f"{good} - {other}: mean, 95 % bootstrap interval, Wilcoxon's p" in page
    lines = page.splitlines()
    start = lines.index(next(line for line in lines if f"{good} - {bad}" in line))
    cells = lines[start + 2].split()
    assert cells[:2] == ["WT", "dice"]
    assert float(cells[2]) > 0
    assert float(cells[3]) <= float(cells[2]) <= float(cells[4])
    assert cells[6] == "3"
    assert lines[start + 3].split()[2].startswith("-")
    ranking = lines.index("Mean rank over cases, regions and dice, hd95_mm, 1 is best:")
    order = [line.split()[1] for line in lines[ranking + 1 :]]
    assert set(order) == {str(good), str(bad), str(third)}
    assert order[-1] == str(bad)
    numbers = [float(line.split()[0]) for line in lines[ranking + 1 :]]
    assert sum(numbers) == pytest.approx(6, abs=2e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol", "brats2021"], "unknown protocol 'brats2021': choose one of"),
        (["--protocol", "nan", "--hd95-method", "mean"], "unknown HD95 method 'mean'"),
        (["--protocol", "nan", "-o", "scores.txt"], "scores.txt: does not end in .csv; rename it"),
        (["--protocol", "nan", "--release", "brats1999"], "unknown release 'brats1999'"),
        (["--protocol", "nan", "--compare", "good"], "good: given twice"),
        (["--protocol", "nan", "--compare", "gone"], "gone: no such folder"),
        (["--protocol", "nan", "--compare", "empty"], "empty: holds no segmentation"),
    ],
)
def test_bad_arguments_end_in_one_message(folders, options, message, capsys, monkeypatch):
    monkeypatch.chdir(folders[0].parent)
    (folders[0].parent / "empty").mkdir()
    assert evaluate("good", "root", *options) == (2 if "brats1999" in options else 1)
    error = capsys.readouterr().err
    assert error.startswith("clipseg3d: ")
    assert message in error


def test_faults_of_all_cases_are_listed_and_nothing_is_written(folders, tmp_path, capsys):
    root, good, _ = folders
    write(good / f"{NAMES[0]}.nii.gz", np.full(SHAPE, 0.4, np.float32))
    write(good / f"{NAMES[2]}.nii.gz", np.full(SHAPE, 3, np.uint8))
    out = tmp_path / "scores.csv"
    out.write_text("of yesterday")
    assert evaluate(good, root, "--protocol", "nan", "-o", out) == 1
    error = capsys.readouterr().err
    assert f"{good / NAMES[0]}.nii.gz: holds 0.4, no whole number; threshold probab" in error
    assert f"{good / NAMES[2]}.nii.gz: holds label 3, but brats2020 has 0, 1, 2, 4" in error
    assert out.read_text() == "of yesterday"


def test_a_place_that_cannot_be_written(folders, tmp_path, capsys):
    root, good, _ = folders
    (tmp_path / "file").write_text("")
    assert evaluate(good, root, "--protocol", "nan", "-o", tmp_path / "file" / "scores.csv") == 1
    assert "scores.csv: cannot be written" in capsys.readouterr().err


def test_a_full_disk_leaves_the_old_file(folders, tmp_path, capsys, monkeypatch):
    root, good, _ = folders
    out = tmp_path / "out" / "scores.csv"
    out.parent.mkdir()
    out.write_text("of yesterday")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clipseg3d.atomic_write.os.replace", fail)
    assert evaluate(good, root, "--protocol", "nan", "-o", out) == 1
    assert "cannot be written (No space left on device)" in capsys.readouterr().err
    assert [path.name for path in out.parent.iterdir()] == ["scores.csv"]
    assert out.read_text() == "of yesterday"
