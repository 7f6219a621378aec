"""Mirrors clipseg3d/cli/segment.py: what a person types and reads, also when it goes wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.processing import resample_to_output

from clipseg3d.cli.main import main
from clipseg3d.inference.postprocessing import PostProcessing
from clipseg3d.inference.predictor import Predictor
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.phantom.write import write_phantom
from clipseg3d.pretrained.formats import FORMAT

pytestmark = pytest.mark.filterwarnings("ignore")
SPACING_MM = 8.0
NAMES = ("BraTS20_Training_001", "BraTS20_Training_002", "BraTS20_Training_003")
CONFIG = NetworkConfig(
    channels=(4, 8), num_auxiliary=0, semantic_dim=16, num_heads=2, clip="tiny-random"
)


@pytest.fixture(scope="module")
def patients(phantoms, tmp_path_factory):
    root = tmp_path_factory.mktemp("patients")
    for phantom, name in zip(phantoms, NAMES, strict=False):
        write_phantom(phantom, root, name)
    return root


def write_weights(path, *, seed=0, config=CONFIG, change=lambda network: network, **settings):
    """Write a checkpoint as training does; half of all voxels are tumour."""
    torch.manual_seed(seed)
    network = build_clipseg3d(config)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.requires_grad:
                weight += 0.3 * torch.randn(weight.shape)
    network = change(network)
    torch.save(
        {
            "format": FORMAT,
            "hyper_parameters": {
                "network": asdict(config),
                "release": "brats2020",
                "spacing_mm": SPACING_MM,
                "roi_size": (32, 32, 32),
                "overlap": 0.5,
                **settings,
            },
            "state_dict": {f"network.{name}": w for name, w in network.state_dict().items()},
            "encoders": network.encoder_identities(),
        },
        path,
    )
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "w.ckpt")


def segment(*cases, out, weights, options=()):
    paths = [str(case) for case in cases]
    return main(["segment", *paths, "-o", str(out), "--weights", str(weights), *options])


def voxels(path):
    return np.asanyarray(nib.load(path).dataobj)


def files_in(folder):
    """Return the files in a folder, without the records of how they were made."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in files if path.parts[0] != "records")


def test_a_case_folder_and_four_files_give_the_same(weights, patients, tmp_path, capsys):
    case = patients / NAMES[1]
    before = {path: path.read_bytes() for path in case.iterdir()}
    out = tmp_path / "out"
    assert segment(case, out=out, weights=weights) == 0
    written = out / f"{NAMES[1]}.nii.gz"
    assert str(written) in capsys.readouterr().out
    assert files_in(out) == [written.name]
    assert {path: path.read_bytes() for path in case.iterdir()} == before
    scan = nib.load(case / f"{NAMES[1]}_t1.nii.gz")
    assert nib.load(written).shape == scan.shape
    assert voxels(written).any()

    odd = tmp_path / "Mr. X 2.3"
    odd.mkdir()
    names = {"t1": "T1.nii.gz", "t1ce": "Gd.nii.gz", "t2": "w2.nii.gz", "flair": "dark.nii.gz"}
    flags = []
    for sequence, name in names.items():
        shutil.copy(case / f"{NAMES[1]}_{sequence}.nii.gz", odd / name)
        flags += [f"--{sequence}", str(odd / name)]
    report = (case / f"{NAMES[1]}_flair_text.txt").read_text()
    assert segment(out=out, weights=weights, options=[*flags, "--text", report]) == 0
    np.testing.assert_array_equal(voxels(out / "Mr. X 2.3.nii.gz"), voxels(written))


def test_without_weights_those_of_the_package_segment(patients, tmp_path, monkeypatch):
    asked = []

    def stop(weights, **options):
        asked.append(weights)
        raise RuntimeError("far enough")

    monkeypatch.setattr(Predictor, "from_checkpoints", stop)
    with pytest.raises(RuntimeError, match="far enough"):
        main(["segment", str(patients / NAMES[0]), "-o", str(tmp_path / "out")])
    assert asked == [["tiny"]]


def test_a_table_stands_in_the_place_of_a_folder(weights, patients, tmp_path):
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        for sequence in ("t1", "t1ce", "t2", "flair"):
            scan = patients / NAMES[0] / f"{NAMES[0]}_{sequence}.nii.gz"
            shutil.copy(scan, folder / f"{name} {sequence}.nii.gz")
    table = tmp_path / "cases.csv"
    sequences = ("t1", "t1ce", "t2", "flair")
    rows = [[name, *(f"{name}/{name} {s}.nii.gz" for s in sequences)] for name in ("one", "two")]
    table.write_text("\n".join(",".join(row) for row in [["case", *sequences], *rows]))
    assert segment(table, out=tmp_path / "out", weights=weights) == 0
    assert files_in(tmp_path / "out") == ["one.nii.gz", "two.nii.gz"]
    options = ["--text", ""]
    alone = patients / NAMES[0]
    assert segment(alone, out=tmp_path / "alone", weights=weights, options=options) == 0
    expected = voxels(tmp_path / "alone" / f"{NAMES[0]}.nii.gz")
    np.testing.assert_array_equal(voxels(tmp_path / "out" / "one.nii.gz"), expected)
    assert expected.any()


def test_each_sequence_may_have_its_own_grid(weights, patients, tmp_path, capsys):
    folder = tmp_path / NAMES[0]
    shutil.copytree(patients / NAMES[0], folder)
    scans = {name: folder / f"{NAMES[0]}_{name}.nii.gz" for name in ("t1", "t1ce", "t2", "flair")}
    for name, sizes in (("t1ce", (4, 4, 10)), ("flair", (9, 8, 8))):
        nib.save(resample_to_output(nib.load(scans[name]), sizes, order=0), scans[name])
    label = tmp_path / "out" / f"{NAMES[0]}.nii.gz"
    options = ["--probabilities", "--html"]
    assert segment(folder, out=label.parent, weights=weights, options=options) == 0
    error = capsys.readouterr().err
    assert f"note: {NAMES[0]}: resampled to the 8 mm of the weights: t1, t2 from 8x8x8 mm;" in error
    written, scan = nib.load(label), nib.load(scans["t1ce"])
    assert written.shape == scan.shape
    np.testing.assert_array_equal(written.affine, scan.affine)
    assert "resampled to the 8 mm" in label.with_name(f"{NAMES[0]}.html").read_text("utf-8")
    maps = [voxels(path) for path in (label.parent / "probabilities").iterdir()]
    np.testing.assert_array_equal(voxels(label) > 0, np.max(maps, axis=0) > 0.5)
    options = ["--grid-of", "flair"]
    assert segment(folder, out=label.parent, weights=weights, options=options) == 1
    assert "made with other grid of; choose another" in capsys.readouterr().err
    assert segment(folder, out=tmp_path / "other", weights=weights, options=options) == 0
    assert voxels(tmp_path / "other" / label.name).shape == nib.load(scans["flair"]).shape
    assert segment(folder, out=tmp_path, weights=weights, options=["--grid-of", "adc"]) == 1
    assert "grid_of='adc' is no sequence of these weights" in capsys.readouterr().err


def test_a_report_file_is_read(weights, patients, tmp_path, capsys):
    case = patients / NAMES[2]
    report = tmp_path / "report.txt"
    report.write_text("A tumour in the left temporal lobe.")
    assert segment(case, out=tmp_path / "a", weights=weights, options=["--text", str(report)]) == 0
    options = ["--text", report.read_text()]
    assert segment(case, out=tmp_path / "b", weights=weights, options=options) == 0
    assert segment(case, out=tmp_path / "c", weights=weights, options=["--text", ""]) == 0
    a, b, c = (voxels(tmp_path / name / f"{NAMES[2]}.nii.gz") for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
    capsys.readouterr()
    for value, said in (("gone.md", "no such file"), ("a/b", "no such file"), (".", "is a folder")):
        options = ["--text", value]
        assert segment(case, out=tmp_path / "c", weights=weights, options=options) in (1, 2)
        assert f"--text {value}: {said}" in capsys.readouterr().err
    gone = ["--text", str(tmp_path / "gone.txt")]
    assert segment(case, out=tmp_path / "d", weights=weights, options=gone) == 1
    assert "gone.txt: no such file" in capsys.readouterr().err
    report.write_bytes("Läsion links".encode("latin-1"))
    assert segment(case, out=tmp_path / "d", weights=weights, options=["--text", str(report)]) == 1
    error = capsys.readouterr().err
    assert f"{report}: not UTF-8 text (invalid continuation byte); save it as UTF-8" in error
    assert not (tmp_path / "d").exists()


def test_a_report_beside_the_scan_is_read_and_said_to_be(weights, patients, tmp_path, capsys):
    said = "note: 3 of 3 cases have a report beside the scan, which is read (without it: --trust 0)"
    assert segment(patients, out=tmp_path / "a", weights=weights) == 0
    assert said in capsys.readouterr().err
    for name, options in (("b", ["--trust", "0"]), ("c", ["--text", ""])):
        out = tmp_path / name
        assert segment(patients / NAMES[0], out=out, weights=weights, options=options) == 0
        assert "beside the scan" not in capsys.readouterr().err


def test_a_report_beside_the_scan_in_another_encoding_fails_its_case(
    weights, patients, tmp_path, capsys
):
    root = tmp_path / "cases"
    shutil.copytree(patients, root)
    report = root / NAMES[0] / f"{NAMES[0]}_flair_text.txt"
    report.write_bytes("Läsion links".encode("utf-16"))
    assert segment(root, out=tmp_path / "out", weights=weights) == 1
    assert f"clipseg3d: {report}: not UTF-8 text" in capsys.readouterr().err
    assert files_in(tmp_path / "out") == [f"{name}.nii.gz" for name in NAMES[1:]]


def test_bad_cases_do_not_stop_the_others(weights, patients, tmp_path, capsys):
    root = tmp_path / "cases"
    shutil.copytree(patients, root)
    dark = root / NAMES[0] / f"{NAMES[0]}_flair.nii.gz"
    image = nib.load(dark)
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.int16), image.affine), dark)
    far = root / NAMES[1] / f"{NAMES[1]}_t2.nii.gz"
    image = nib.load(far)
    moved = nib.affines.from_matvec(np.eye(3), [400, 0, 0]) @ image.affine
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), moved), far)
    (root / "stray.nii.gz").write_bytes(b"?")
    out = tmp_path / "out"
    assert segment(root, out=out, weights=weights) == 1
    captured = capsys.readouterr()
    assert f"{NAMES[0]} failed: {dark}: every voxel of flair is 0" in captured.err
    assert captured.err.count(f"{far}: shows another place than ") == 1
    assert f"{root / 'stray.nii.gz'}: not a file of brats2020" in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == f"{out / NAMES[2]}.nii.gz\n"
    assert files_in(out) == [f"{NAMES[2]}.nii.gz"]


def test_a_defect_is_shown_with_its_traceback_and_the_others_go_on(
    weights, patients, tmp_path, capsys, monkeypatch
):
    call = Predictor.__call__

    def trip(self, scan, **options):
        if scan.case.case_id == NAMES[0]:
            return {}["key"]
        return call(self, scan, **options)

    monkeypatch.setattr(Predictor, "__call__", trip)
    assert segment(patients, out=tmp_path, weights=weights) == 1
    error = capsys.readouterr().err
    assert f"{NAMES[0]} failed: 'key'" in error
    assert "Traceback" in error
    assert len(files_in(tmp_path)) == 2


def test_a_rerun_skips_what_is_finished_and_says_so(weights, patients, tmp_path, capsys):
    out = tmp_path / "out"
    assert segment(patients / NAMES[0], out=out, weights=weights) == 0
    first, last = (out / f"{name}.nii.gz" for name in (NAMES[0], NAMES[2]))
    before = first.stat().st_mtime_ns
    last.write_bytes(b"mine")
    capsys.readouterr()
    assert segment(patients, out=out, weights=weights) == 1
    captured = capsys.readouterr()
    assert captured.out.split() == [str(out / f"{NAMES[1]}.nii.gz")]
    assert "Skipped 1 finished cases, made of the same scans with the same weights" in captured.err
    assert f"{NAMES[2]} failed: {last}: " in captured.err
    assert first.stat().st_mtime_ns == before
    assert last.read_bytes() == b"mine"
    assert segment(patients, out=out, weights=weights, options=["--overwrite"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.split()) == 3
    assert "Skipped" not in captured.err
    assert nib.load(last).shape


def test_everything_at_once(weights, patients, tmp_path):
    other = write_weights(tmp_path / "other.ckpt", seed=1)
    rules = tmp_path / "rules.json"
    PostProcessing(enhancing_to_core=10**6).save(rules)
    options = ["--weights", str(other), "--tta", "--probabilities", "--uncertainty", "--html"]
    case, out = patients / NAMES[0], tmp_path / "out"
    assert (
        segment(case, out=out, weights=weights, options=[*options, "--postprocessing", str(rules)])
        == 0
    )
    assert files_in(out) == [
        f"{NAMES[0]}.html",
        f"{NAMES[0]}.nii.gz",
        *(f"probabilities/{NAMES[0]}_{region}.nii.gz" for region in ("ET", "TC", "WT")),
        f"uncertainty/{NAMES[0]}_ensemble_variance.nii.gz",
        f"uncertainty/{NAMES[0]}_entropy.nii.gz",
    ]
    assert set(np.unique(voxels(out / f"{NAMES[0]}.nii.gz"))) <= {0, 1, 2}
    enhancing = voxels(out / "probabilities" / f"{NAMES[0]}_ET.nii.gz")
    assert enhancing.max() > 0.5
    page = (out / f"{NAMES[0]}.html").read_text(encoding="utf-8")
    for part in ("w.ckpt", "other.ckpt", "ml in all counted as core", "brats2020"):
        assert part in page


def test_rules_of_the_weights_are_applied_and_told_of_unless_switched_off(
    patients, tmp_path, capsys
):
    strict = write_weights(tmp_path / "w.ckpt", postprocessing={"enhancing_to_core": 10**6})
    case, name = patients / NAMES[0], f"{NAMES[0]}.nii.gz"
    out = tmp_path / "out"
    assert segment(case, out=out, weights=strict) == 0
    assert "applied (without them: --no-postprocessing): ET under" in capsys.readouterr().err
    assert set(np.unique(voxels(out / name))) <= {0, 1, 2}
    record = json.loads((out / "records" / f"{NAMES[0]}.json").read_text())
    assert record["made_with"]["postprocessing"] == {"enhancing_to_core": 1e6}
    assert segment(case, out=tmp_path / "raw", weights=strict, options=["--no-postprocessing"]) == 0
    assert "post-processing" not in capsys.readouterr().err
    assert 4 in voxels(tmp_path / "raw" / name)
    # other rules are other work
    assert segment(case, out=out, weights=strict, options=["--no-postprocessing"]) == 1
    assert "is there already, made with other postprocessing" in capsys.readouterr().err
    assert segment(case, out=out, weights=strict) == 0
    assert "Skipped 1 finished" in capsys.readouterr().err
    rules = tmp_path / "rules.json"
    PostProcessing(small_components={"WT": 10**6}).save(rules)
    given = ["--postprocessing", str(rules)]
    assert segment(case, out=tmp_path / "given", weights=strict, options=given) == 0
    assert not voxels(tmp_path / "given" / name).any()
    with pytest.raises(SystemExit):
        segment(case, out=out, weights=strict, options=[*given, "--no-postprocessing"])


def test_sequences_may_be_missing_where_the_weights_allow_it(weights, patients, tmp_path, capsys):
    root = tmp_path / "cases"
    shutil.copytree(patients, root)
    (root / NAMES[0] / f"{NAMES[0]}_t1ce.nii.gz").unlink()
    assert segment(root, out=tmp_path / "out", weights=weights) == 1
    assert (
        f"{NAMES[0]} failed: has no t1ce, but these weights need all of t1, t1ce, t2, "
        "flair; add it, or use weights trained with sequence_dropout"
    ) in capsys.readouterr().err
    assert len(files_in(tmp_path / "out")) == 2
    tolerant = write_weights(tmp_path / "tolerant.ckpt", sequence_dropout=0.2)
    assert segment(root, out=tmp_path / "out", weights=tolerant) == 0
    flair = ["--flair", str(root / NAMES[1] / f"{NAMES[1]}_flair.nii.gz")]
    assert segment(out=tmp_path / "one", weights=tolerant, options=flair) == 0
    assert len(files_in(tmp_path / "one")) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([__file__], "test_segment.py: is one file; give the folder of its case, or all files"),
        (["nowhere"], "nowhere: no such folder or table; give the folder of a case"),
        ([], "give either case folders, or one case as --t1 FILE"),
        (["x", "--t1", "y"], "give either case folders, or one case"),
        (["--t1", "y"], "t1ce: no file given; name one for each of"),
        (["here"], "here: no case of brats2020 in it"),
        (["x", "--postprocessing", "gone.json"], "gone.json: no such file"),
        (["x", "--postprocessing", "other.json"], "holes: brats2020 has no region 'RC', but WT"),
        (["x", "--weights", "gone.ckpt"], "gone.ckpt: no such file; give a checkpoint"),
    ],
)
def test_bad_input_ends_in_one_message(arguments, message, weights, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    Path("x").mkdir()
    PostProcessing(holes={"RC": 1}).save(Path("other.json"))
    assert segment(out="o", weights=weights, options=arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not Path("o").exists()


def test_two_cases_of_one_name_are_refused(weights, patients, tmp_path, capsys):
    case = patients / NAMES[0]
    assert segment(case, case, out=tmp_path, weights=weights) == 1
    captured = capsys.readouterr()
    assert f"{case} and {case}: each holds case {NAMES[0]}; keep one" in captured.err
    assert captured.out == ""
    assert segment(patients, out=tmp_path, weights=weights, options=["--text", "x"]) == 1
    assert "--text is for one case, but 3 are given" in capsys.readouterr().err


def test_wrong_weights_end_in_one_message(tmp_path, capsys):
    path = tmp_path / "w.ckpt"
    assert segment(tmp_path, out="o", weights=path) == 1
    assert capsys.readouterr().err == (
        f"clipseg3d: {path}: no such file; give a checkpoint written by training\n"
    )


ANSWERS = {
    "the enhancing rim": ((0, 0, 1), 6, "all"),
    "oedema in the left hemisphere": ((1, -1, 0), 6, "all"),
    "haemorrhage": ((0.5, 0, 0), -4, "all"),
    "脑出血": ((1, 0, 0), 6, "largest"),
}
"""Prompt -> weights of regions, log-odds of presence, and pick."""


@pytest.fixture(scope="module")
def prompted(tmp_path_factory, teach_prompts):
    """Weights whose prompt head gives known answers."""

    def change(network):
        teach_prompts(network, ANSWERS)
        network.prompt_head.place.weight.data.zero_()
        network.prompt_head.place.bias.data[:] = torch.tensor([6.0, *[0.0] * 9])
        return network

    path = tmp_path_factory.mktemp("prompted") / "p.ckpt"
    return write_weights(path, config=replace(CONFIG, prompt_head=True), change=change)


def prompts(*texts):
    return [part for text in texts for part in ("--prompt", text)]


def test_each_prompt_gets_a_mask_a_score_and_a_volume(prompted, patients, tmp_path, capsys):
    case, out = patients / NAMES[1], tmp_path / "out"
    report = ["--text", "Ring enhancement on the left.", "--html"]
    asked = prompts(*ANSWERS, " the enhancing  rim ")
    assert segment(case, out=out, weights=prompted, options=[*report, *asked]) == 0
    masks = out / "prompts" / NAMES[1]
    said = capsys.readouterr()
    label = nib.load(out / f"{NAMES[1]}.nii.gz")
    rim = nib.load(masks / "the-enhancing-rim.nii.gz")
    assert rim.header == label.header
    enhancing = np.asarray(label.dataobj) == 4
    assert enhancing.any()
    np.testing.assert_array_equal(np.asarray(rim.dataobj), enhancing)
    assert sorted(path.name for path in masks.iterdir()) == [
        "haemorrhage.nii.gz",
        "oedema-in-the-left-hemisphere.nii.gz",
        *sorted(path.name for path in masks.glob("prompt_*")),
        "the-enhancing-rim.nii.gz",
    ]
    assert len(list(masks.glob("prompt_*"))) == 1  # the one in another script
    volume = enhancing.sum() * 0.512
    assert (
        f"{masks / 'the-enhancing-rim.nii.gz'}: found: the enhancing rim (presence 0.98, "
        f"{volume:.2f} ml)\n"
    ) in said.out
    blood = masks / "haemorrhage.nii.gz"
    assert f"{blood}: not found: haemorrhage (presence 0.01); the mask is empty\n" in said.out
    assert not voxels(blood).any()
    assert "note: prompt '脑出血': its words are unknown to the text encoder" in said.err
    assert said.err.count("not understood") == 1
    page = (out / f"{NAMES[1]}.html").read_text(encoding="utf-8")
    for text in (*ANSWERS, "not found", "Ring enhancement on the left.", "not understood"):
        assert text in page

    assert segment(case, out=out, weights=prompted, options=[*report, *asked]) == 0
    assert "Skipped 1 finished cases" in capsys.readouterr().err
    more = prompts("the enhancing rim")
    assert segment(case, out=out, weights=prompted, options=[*report, *more]) == 0
    assert "Skipped" not in capsys.readouterr().err


def test_weights_without_a_prompt_head_end_in_one_message(weights, patients, tmp_path, capsys):
    out = tmp_path / "out"
    options = prompts("the enhancing rim")
    assert segment(patients, out=out, weights=weights, options=options) == 1
    assert capsys.readouterr().err == (
        "clipseg3d: these weights answer no prompts; take some that were trained with a prompt "
        "head (--model.network.prompt_head true)\n"
    )
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (prompts(""), "prompt '' is empty; write what to segment, such as 'the enhancing rim'"),
        (prompts("rim", "  "), "prompt '  ' is empty"),
        (prompts("rim " * 10_000), "has 39999 characters, and 1000 are the most"),
        (["--trust", "1.5"], "trust=1.5 is not in [0, 1]; give a number from 0, as if"),
        (["--trust", "nan"], "trust=nan is not in [0, 1]"),
        (["--text", "x", "--reports", "r.json"], "--text is for one case, --reports for many"),
        (["--reports", "gone.json"], "gone.json: no such file"),
    ],
)
def test_bad_prompts_and_reports_end_in_one_line(options, message, prompted, tmp_path, capsys):
    assert segment(tmp_path, out=tmp_path / "o", weights=prompted, options=options) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert len(error) < 400
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("ending", ["json", "csv"])
def test_many_cases_get_their_reports_from_one_file(weights, patients, tmp_path, capsys, ending):
    texts = {NAMES[0]: "Left frontal lesion, no enhancement.", "Elsewhere_1": "Normal."}
    file = tmp_path / f"reports.{ending}"
    rows = "".join(f'{name},"{text}"\n' for name, text in texts.items())
    file.write_text(json.dumps(texts) if ending == "json" else f"case,report\n{rows}")
    options = ["--reports", str(file), "--trust", "0.5"]
    assert segment(patients, out=tmp_path / "all", weights=weights, options=options) == 0
    assert [line for line in capsys.readouterr().err.splitlines() if "note" in line] == [
        f"clipseg3d: note: {file}: reports of cases that are not here, which are not used: "
        "Elsewhere_1",
        f"clipseg3d: note: {file}: no report of these cases, which are segmented without: "
        f"{NAMES[1]}, {NAMES[2]}",
    ]
    for name in NAMES:
        alone = ["--text", texts.get(name, ""), "--trust", "0.5"]
        assert segment(patients / name, out=tmp_path / "1", weights=weights, options=alone) == 0
        one, of_all = (voxels(tmp_path / out / f"{name}.nii.gz") for out in ("1", "all"))
        np.testing.assert_array_equal(one, of_all)
    fully = ["--reports", str(file)]
    assert segment(patients, out=tmp_path / "all", weights=weights, options=fully) == 1
    assert "made with other trust" in capsys.readouterr().err


SLOW_WRITES = """
import signal, sys, time
import nibabel as nib
from clipseg3d.cli.main import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background jobs ignore it

save = nib.save
written = []

def save_slowly(image, path):
    save(image, path)
    written.append(path)
    if len(written) == 2:
        print("writing", flush=True)
        time.sleep(3)

nib.save = save_slowly
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_ctrl_c_leaves_no_half_file(weights, patients, tmp_path):
    """What is being written is written to the end."""
    out = tmp_path / "out"
    command = [sys.executable, "-W", "ignore", "-c", SLOW_WRITES, "segment", str(patients)]
    process = subprocess.Popen(
        [*command, "-o", str(out), "--weights", str(weights), "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        for line in process.stdout:
            if line.startswith("writing"):
                break
        files = [name for name in files_in(out) if not name.endswith(".lock")]
        assert len(files) == 2  # one complete, one being written
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        _, error = process.communicate(timeout=50)
    finally:
        process.kill()
    assert time.monotonic() - start < 50
    assert process.returncode == 130
    assert (
        "interrupted after 2 cases, whose files are complete; run the same command again" in error
    )
    assert "Traceback" not in error
    assert files_in(out) == [f"{name}.nii.gz" for name in NAMES[:2]]
    assert all(voxels(out / f"{name}.nii.gz").any() for name in NAMES[:2])
