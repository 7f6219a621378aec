"""Data of your own, from the index to the case page: other sequences, regions and file names."""

import csv
import json
import re
import runpy
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from clipseg3d import BraTSDataModule, CLIPSeg3DModule, Predictor
from clipseg3d.cli.main import main
from clipseg3d.data.releases import get_release

REPO = Path(__file__).parents[1]
RELEASE = REPO / "examples" / "stroke.yaml"
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])
stroke = runpy.run_path(str(REPO / "examples" / "stroke.py"))


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Four stroke patients, as files in folders and as tables."""
    root = tmp_path_factory.mktemp("stroke")
    stroke["write_patients"](root, 4, (36, 40, 32))
    rows = list(csv.DictReader((root / "cases.csv").open()))
    for number, row in enumerate(rows):
        row["patient"] = f"p{number // 2}"
    (root / "cases.json").write_text(json.dumps(rows))
    return root


@pytest.fixture(scope="module")
def trained(own, tmp_path_factory):
    out = tmp_path_factory.mktemp("fit")
    data = {"release": RELEASE, "root": own, "cache_dir": out / "cache", "num_folds": 2}
    data |= {"patch_size": [48, 32, 32], "num_workers": 0}
    options = [f"--data.{name}={value}" for name, value in data.items()]
    options += ["--model.network=tiny", "--model.roi_size=[48, 32, 32]", "--trainer.logger=false"]
    options += ["--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    options.append(f"--trainer.default_root_dir={out}")
    folder = out / "checkpoints"
    assert main(["fit", "--data=BraTSDataModule", *options, f"--checkpoint.dirpath={folder}"]) == 0
    return folder / "best.ckpt"


@pytest.mark.parametrize("root", ["", "cases.csv", "cases.json"])
def test_the_data_are_checked(own, root, capsys):
    command = ["check-data", str(own / root), "--release", str(RELEASE)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "lesion ml" in shown
    assert "core ml" in shown
    assert "4 cases of stroke: 0 faults" in shown


def test_patients_and_reports_come_from_the_table(own, tmp_path):
    release = str(RELEASE)
    data = BraTSDataModule(
        str(own / "cases.json"),
        release=release,
        cache_dir=str(tmp_path),
        num_folds=2,
        num_workers=0,
    )
    data.prepare_data()
    data.setup("fit")
    assert {case.case_id for case in data.val_set.cases} in (
        {"sub-01", "sub-02"},
        {"sub-03", "sub-04"},
    )
    assert data.texts() == ["A recent stroke."] * 4
    (image, label) = (data.train_set[0][name] for name in ("image", "label"))
    assert (image.shape[0], label.ndim) == (2, 3)  # packed


def test_it_is_learned_segmented_and_scored(own, trained, tmp_path, capsys):
    assert main(["segment", str(own), "-o", str(tmp_path), "--weights", str(trained),
                 "--html"]) == 0  # fmt: skip
    label = nib.load(tmp_path / "sub-01.nii.gz")
    assert set(np.unique(label.dataobj)) <= {0, 1, 2}
    page = (tmp_path / "sub-01.html").read_text()
    assert "show-lesion" in page
    assert "dwi, adc and adc as red, green and blue" in page
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path), str(own), "--release",
                 str(RELEASE), "-o", str(tmp_path / "scores.csv")]) == 0  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert {row["region"] for row in rows} >= {"lesion", "core"}


def test_a_single_case_by_its_files(own, trained, tmp_path):
    files = [f"{name}={own}/sub-01/sub-01_{name}.nii.gz" for name in ("dwi", "adc")]
    command = ["segment", "--name", "x", "-o", str(tmp_path), "--weights", str(trained)]
    assert main([*command, "--sequence", files[0], "--sequence", files[1]]) == 0
    assert (tmp_path / "x.nii.gz").is_file()


def test_a_predictor_takes_folders_files_and_arrays(own, trained):
    predict = Predictor.from_pretrained(trained)
    folder = predict(own / "sub-01").label
    files = {name: own / "sub-01" / f"sub-01_{name}.nii.gz" for name in ("dwi", "adc")}
    np.testing.assert_array_equal(predict(files).label, folder)
    arrays = stroke["stroke_patient"](0, (36, 40, 32))
    del arrays["mask"]
    np.testing.assert_array_equal(predict(arrays, AFFINE).label, folder)
    np.testing.assert_array_equal(predict(np.stack([*arrays.values()]), AFFINE).label, folder)
    with pytest.raises(ValueError, match="give their affine, a 4 x 4 matrix"):
        predict(arrays)
    with pytest.raises(ValueError, match=r"holds 4 cases; give the folder of one"):
        predict(own)


def test_what_is_learned_is_said_in_the_checkpoint(trained):
    module = CLIPSeg3DModule.load_from_checkpoint(trained)
    assert module.config.sequences == ("dwi", "adc")
    assert module.config.regions == ("lesion", "core")
    assert module.config.prompts == tuple(get_release(RELEASE).prompts.values())
    assert module.release == get_release(RELEASE)


def test_sequences_that_do_not_fit_are_refused_with_a_cure(own):
    with pytest.raises(ValueError, match="stroke has no sequence t1; choose from dwi, adc"):
        BraTSDataModule(str(own), release=str(RELEASE), sequences=("t1",))
    with pytest.raises(ValueError, match="has no region WT; choose from lesion, core"):
        CLIPSeg3DModule("tiny", release=str(RELEASE)).release.select(regions=["WT"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"dwi": ""}, "sub-01: has no dwi in .*cases.csv; fill it in"),
        ({"case": ""}, r"cases.csv: row 1 names no case; fill in its column case"),
        ({"flair": "x"}, r"cases.csv: has a column 'flair'; choose one of case, patient, dwi"),
        ({"dwi": "sub-01/gone.nii.gz"}, r"gone.nii.gz: no such file"),
    ],
)
def test_faults_of_a_table_are_named(own, tmp_path, row, message, capsys):
    with (own / "cases.csv").open() as file:
        first = next(csv.DictReader(file))
    first |= {name: str(own / first[name]) for name in ("dwi", "adc", "seg")}
    first |= {name: str(own / value) if "/" in value else value for name, value in row.items()}
    with (tmp_path / "cases.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, first)
        writer.writeheader()
        writer.writerow(first)
    command = ["check-data", str(tmp_path / "cases.csv"), "--release", str(RELEASE)]
    assert main(command) != 0
    streams = capsys.readouterr()
    assert re.search(message, streams.out + streams.err)
