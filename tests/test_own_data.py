"""Data of your own, from the index to the case page: other sequences, regions and file names."""

import csv
import json
import re

import nibabel as nib
import numpy as np
import pytest
import yaml

from clipseg3d import BraTSDataModule, CLIPSeg3DModule, Predictor
from clipseg3d.cli.main import main
from clipseg3d.data.releases import get_release

SHAPE = (36, 40, 32)
CASES = [f"sub-{number}" for number in range(1, 5)]
STROKE = {
    "name": "stroke",
    "sequences": {"dwi": "{case}_dwi", "adc": "{case}_adc"},
    "regions": {"lesion": [1, 2], "core": [2]},
    "label": "{case}_mask",
    "prompts": {"lesion": "bright lesion on diffusion", "core": "dark core of the lesion"},
}


def write(path, voxels):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, np.diag([-1.0, -1.0, 1.0, 1.0]))
    image.set_sform(image.affine, code=1)
    nib.save(image, path)
    return path


def stroke_patient(seed):
    """DWI is bright and ADC dark in the lesion, more so in its core."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1)
    middle = np.array(SHAPE) / 2
    brain = (((grid - middle) / (0.45 * np.array(SHAPE))) ** 2).sum(axis=-1) < 1
    distance = np.linalg.norm(grid - middle - rng.uniform(-5, 5, 3), axis=-1)
    label = (np.uint8(distance < 7) + np.uint8(distance < 4)) * brain.astype(np.uint8)
    noise = rng.normal(0, 5, (2, *SHAPE))
    dwi, adc = 100 + 60 * label + noise[0], 100 - 30 * label + noise[1]
    return {"dwi": dwi * brain, "adc": adc * brain}, label


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Four stroke patients, as files in folders, and as a table of other names; their release."""
    root = tmp_path_factory.mktemp("stroke")
    (root / "stroke.yaml").write_text(yaml.safe_dump(STROKE, sort_keys=False))
    rows = []
    for seed, case_id in enumerate(CASES):
        images, label = stroke_patient(seed)
        for name, volume in [*images.items(), ("mask", label)]:
            dtype = np.uint8 if name == "mask" else np.float32
            write(root / "cases" / case_id / f"{case_id}_{name}.nii.gz", volume.astype(dtype))
            write(root / "pacs" / f"{name}{seed}.nii.gz", volume.astype(dtype))
        files = {"dwi": f"pacs/dwi{seed}.nii.gz", "adc": f"pacs/adc{seed}.nii.gz"}
        rows.append(
            {
                **{"case": case_id, "patient": f"p{seed // 2}"},
                **files,
                **{"seg": f"pacs/mask{seed}.nii.gz", "report": "A stroke on the left."},
            }
        )
    with (root / "cases.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (root / "cases.json").write_text(json.dumps(rows))
    return root


def fit(own, root, out):
    return main(
        [
            *("fit", "--data", "BraTSDataModule", "--data.root", str(own / root)),
            *("--data.release", str(own / "stroke.yaml"), "--data.cache_dir", str(out / "cache")),
            *("--data.num_folds", "2", "--data.patch_size", "[48, 32, 32]"),
            *("--data.num_workers", "0", "--model.network", "tiny", "--model.roi_size"),
            *("[48, 32, 32]", "--trainer.max_epochs", "1", "--trainer.logger", "false"),
            *("--trainer.accelerator", "cpu", "--checkpoint.dirpath", str(out / "checkpoints")),
        ]
    )


@pytest.fixture(scope="module")
def trained(own, tmp_path_factory):
    out = tmp_path_factory.mktemp("fit")
    assert fit(own, "cases", out) == 0
    return out / "checkpoints" / "best.ckpt"


@pytest.mark.parametrize("root", ["cases", "cases.csv", "cases.json"])
def test_the_data_are_checked(own, root, capsys):
    command = ["check-data", str(own / root), "--release", str(own / "stroke.yaml")]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "lesion ml" in shown
    assert "core ml" in shown
    assert "4 cases of stroke: 0 faults" in shown


def test_patients_and_reports_come_from_the_table(own, tmp_path):
    release = str(own / "stroke.yaml")
    data = BraTSDataModule(
        str(own / "cases.csv"), release=release, cache_dir=str(tmp_path), num_folds=2, num_workers=0
    )
    data.prepare_data()
    data.setup("fit")
    assert {case.case_id for case in data.val_set.cases} in ({*CASES[:2]}, {*CASES[2:]})
    assert data.texts() == ["A stroke on the left."] * 4
    (image, label) = (data.train_set[0][name] for name in ("image", "label"))
    assert (image.shape[0], label.ndim) == (2, 3)  # packed


def test_it_is_learned_segmented_and_scored(own, trained, tmp_path, capsys):
    assert main(["segment", str(own / "cases"), "-o", str(tmp_path), "--weights", str(trained),
                 "--html"]) == 0  # fmt: skip
    label = nib.load(tmp_path / "sub-1.nii.gz")
    assert set(np.unique(label.dataobj)) <= {0, 1, 2}
    page = (tmp_path / "sub-1.html").read_text()
    assert "show-lesion" in page
    assert "dwi, adc and adc as red, green and blue" in page
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path), str(own / "cases"), "--release",
                 str(own / "stroke.yaml"), "-o", str(tmp_path / "scores.csv")]) == 0  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert {row["region"] for row in rows} >= {"lesion", "core"}


def test_a_single_case_by_its_files(own, trained, tmp_path):
    files = [f"{name}={own / 'pacs' / name}0.nii.gz" for name in ("dwi", "adc")]
    command = ["segment", "--name", "x", "-o", str(tmp_path), "--weights", str(trained)]
    assert main([*command, "--sequence", files[0], "--sequence", files[1]]) == 0
    assert (tmp_path / "x.nii.gz").is_file()


def test_a_predictor_takes_folders_files_and_arrays(own, trained):
    predict = Predictor.from_pretrained(trained)
    folder = predict(own / "cases" / "sub-1").label
    files = {name: own / "pacs" / f"{name}0.nii.gz" for name in ("dwi", "adc")}
    np.testing.assert_array_equal(predict(files).label, folder)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    images, _ = stroke_patient(0)
    arrays = {name: volume.astype(np.float32) for name, volume in images.items()}
    np.testing.assert_array_equal(predict(arrays, affine).label, folder)
    np.testing.assert_array_equal(predict(np.stack([*arrays.values()]), affine).label, folder)


def test_what_is_learned_is_said_in_the_checkpoint(trained):
    module = CLIPSeg3DModule.load_from_checkpoint(trained)
    assert module.config.sequences == ("dwi", "adc")
    assert module.config.regions == ("lesion", "core")
    assert module.config.prompts == ("bright lesion on diffusion", "dark core of the lesion")
    assert module.release == get_release(STROKE)


def test_sequences_that_do_not_fit_are_refused_with_a_cure(own):
    with pytest.raises(ValueError, match="stroke has no sequence t1; choose from dwi, adc"):
        BraTSDataModule(str(own), release=str(own / "stroke.yaml"), sequences=("t1",))
    with pytest.raises(ValueError, match="has no region WT; choose from lesion, core"):
        CLIPSeg3DModule("tiny", release=STROKE).release.select(regions=["WT"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"dwi": ""}, "sub-1: has no dwi in .*cases.csv; fill it in"),
        ({"case": ""}, r"cases.csv: row 1 names no case; fill in its column case"),
        ({"flair": "x"}, r"cases.csv: has a column 'flair'; choose one of case, patient, dwi"),
        ({"dwi": "pacs/gone.nii.gz"}, r"gone.nii.gz: no such file"),
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
    command = ["check-data", str(tmp_path / "cases.csv"), "--release", str(own / "stroke.yaml")]
    assert main(command) != 0
    streams = capsys.readouterr()
    assert re.search(message, streams.out + streams.err)
