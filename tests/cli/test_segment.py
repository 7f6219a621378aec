"""Mirrors clipseg3d/cli/segment.py: what a person types and reads, also when it goes wrong."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

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


def write_weights(path, *, seed=0, **settings):
    """Write a checkpoint as training does; half of all voxels are tumour."""
    torch.manual_seed(seed)
    network = build_clipseg3d(CONFIG)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.requires_grad:
                weight += 0.3 * torch.randn(weight.shape)
    torch.save(
        {
            "format": FORMAT,
            "hyper_parameters": {
                "network": asdict(CONFIG),
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
    gone = ["--text", str(tmp_path / "gone.txt")]
    assert segment(case, out=tmp_path / "d", weights=weights, options=gone) == 1
    assert "gone.txt: no such file" in capsys.readouterr().err
    report.write_bytes("Läsion links".encode("latin-1"))
    assert segment(case, out=tmp_path / "d", weights=weights, options=["--text", str(report)]) == 1
    error = capsys.readouterr().err
    assert f"{report}: not UTF-8 text (invalid continuation byte); save it as UTF-8" in error
    assert not (tmp_path / "d").exists()


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
    cut = root / NAMES[1] / f"{NAMES[1]}_t2.nii.gz"
    nib.save(nib.load(cut).slicer[1:], cut)
    (root / "stray.nii.gz").write_bytes(b"?")
    out = tmp_path / "out"
    assert segment(root, out=out, weights=weights) == 1
    captured = capsys.readouterr()
    assert f"{NAMES[0]} failed: {dark}: every voxel of flair is 0" in captured.err
    assert captured.err.count(f"{cut}: shape ") == 1
    assert f"{root / 'stray.nii.gz'}: not a file of brats2020" in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == f"{out / NAMES[2]}.nii.gz\n"
    assert files_in(out) == [f"{NAMES[2]}.nii.gz"]


def test_a_defect_is_shown_with_its_traceback_and_the_others_go_on(
    weights, patients, tmp_path, capsys, monkeypatch
):
    call = Predictor.__call__

    def trip(self, case, **options):
        if case.case_id == NAMES[0]:
            return {}["key"]
        return call(self, case, **options)

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
    PostProcessing(SPACING_MM, enhancing_to_core=10**6).save(rules)
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
    for part in ("w.ckpt", "other.ckpt", "enhancing to core ET", "brats2020"):
        assert part in page


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
        (["nowhere"], "nowhere: no such folder; give that of a case"),
        ([], "give either case folders, or one case as --t1 FILE"),
        (["x", "--t1", "y"], "give either case folders, or one case"),
        (["--t1", "y"], "t1ce: no file given; name one for each of"),
        (["here"], "here: no case of brats2020 in it"),
        (["x", "--postprocessing", "gone.json"], "gone.json: no such file"),
        (["x", "--postprocessing", "fine.json"], "meant for voxels of 1 mm, not 8 mm"),
        (["x", "--weights", "gone.ckpt"], "gone.ckpt: no such file; give a checkpoint"),
    ],
)
def test_bad_input_ends_in_one_message(arguments, message, weights, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    Path("x").mkdir()
    PostProcessing(1.0).save(Path("fine.json"))
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
        time.sleep(60)

nib.save = save_slowly
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_ctrl_c_leaves_no_half_file(weights, patients, tmp_path):
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
        "interrupted after 1 cases, whose files are complete; run the same command again" in error
    )
    assert "Traceback" not in error
    assert files_in(out) == [f"{NAMES[0]}.nii.gz"]
    assert voxels(out / f"{NAMES[0]}.nii.gz").any()
