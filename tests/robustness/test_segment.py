"""What ``clipseg3d segment`` must never do in silence: touch inputs, trust files, assume."""

import json
import os
import re
import shutil

import nibabel as nib
import numpy as np
import pytest

from clipseg3d.checksums import sha256_of_file
from clipseg3d.cli.main import main
from clipseg3d.inference import batch_prediction, case_record
from clipseg3d.inference.segmentation import Segmentation
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.phantom.write import write_phantom

pytestmark = pytest.mark.filterwarnings("ignore")
PLAIN = NetworkConfig(channels=(4, 8), num_auxiliary=0, semantics=False)
SEQUENCES = ("t1", "t1ce", "t2", "flair")


@pytest.fixture
def weights(tmp_path, save_checkpoint):
    save_checkpoint(build_clipseg3d(PLAIN), PLAIN, tmp_path / "w.ckpt")
    return tmp_path / "w.ckpt"


@pytest.fixture
def patients(phantoms, tmp_path):
    """Two patients, to be changed at will."""
    for phantom, name in zip(phantoms, ("a", "b"), strict=False):
        write_phantom(phantom, tmp_path / "in", name)
    return tmp_path / "in"


@pytest.fixture
def segment(weights, capsys):
    """Run the command; returns exit code, standard output and errors."""

    def run(*arguments, device="cpu"):
        code = main(
            ["segment", *map(str, arguments), "--weights", str(weights), "--device", device]
        )
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run


def scan(patients, name, sequence):
    (path,) = patients.rglob(f"{name}_{sequence}.nii.gz")
    return path


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize("make", [None, os.link, os.symlink])
def test_no_input_is_ever_written_to(segment, patients, tmp_path, overwrite, make):
    out = patients / "a"
    files = {sequence: scan(patients, "a", sequence) for sequence in SEQUENCES}
    name = "a_t1"
    if make is not None:
        out, name = tmp_path / "out", "x"
        out.mkdir()
        make(files["t2"], out / "x.nii.gz")
    before = contents(patients)
    options = [part for key, path in files.items() for part in (f"--{key}", path)]
    code, _, error = segment(*options, "-o", out, "--name", name, *overwrite)
    assert code == 1
    assert f"{name}.nii.gz: would replace" in error
    assert "which is a file of a case" in error
    assert contents(patients) == before


def test_a_lone_case_is_named_by_its_folder_or_by_name(segment, patients, tmp_path):
    options = [p for s in SEQUENCES for p in (f"--{s}", scan(patients, "a", s))]
    folder = scan(patients, "a", "t1").parent.name
    assert segment(*options, "-o", tmp_path / "out")[0] == 0
    assert segment(*options, "-o", tmp_path / "out", "--name", "me")[0] == 0
    names = {path.name for path in (tmp_path / "out").glob("*.nii.gz")}
    assert names == {f"{folder}.nii.gz", "me.nii.gz"}
    code, _, error = segment(patients, "-o", tmp_path / "out", "--name", "me")
    assert (code, "--name is for one case given as files" in error) == (1, True)


def test_finished_is_what_was_made_of_the_same(segment, patients, tmp_path):
    out = tmp_path / "out"
    assert segment(patients, "-o", out)[0] == 0
    before = contents(out)
    record = json.loads((out / "records" / "a.json").read_text())
    assert record["files"].keys() == {"a.nii.gz"}
    assert record["made_with"]["inputs"].keys() == set(SEQUENCES)

    code, written, error = segment(patients, "-o", out)
    assert (code, written) == (0, "")
    assert "Skipped 2 finished cases, made of the same scans" in error
    assert contents(out) == before

    code, written, error = segment(patients, "-o", out, "--tta")
    assert (code, written) == (1, "")
    assert "a.nii.gz: is there already, made with other mirrorings; choose another" in error
    assert contents(out) == before

    image = nib.load(scan(patients, "b", "t2"))
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * 2, image.affine), image.get_filename())
    code, written, error = segment(patients, "-o", out)
    assert code == 1
    assert "b.nii.gz: is there already, made with other inputs" in error
    assert "a.nii.gz" not in error
    code, written, _ = segment(patients, "-o", out, "--overwrite")
    assert (code, len(written.split())) == (0, 2)


@pytest.mark.parametrize("known", [True, False])
def test_files_of_others_and_corrected_labels_stay(segment, patients, tmp_path, known):
    out = tmp_path / "out"
    if known:
        assert segment(patients, "-o", out)[0] == 0
    out.mkdir(exist_ok=True)
    (out / "a.nii.gz").write_bytes(b"corrected by hand")
    code, written, error = segment(patients, "-o", out)
    assert code == 1
    why = "has been changed since it was written" if known else "not known what it was made with"
    assert f"a.nii.gz: {'' if known else 'is there already, and it is '}{why}" in error
    assert (out / "a.nii.gz").read_bytes() == b"corrected by hand"
    assert "b.nii.gz" in ("" if known else written) or known


class Killed(BaseException):
    """What ends the process at once."""


def test_a_case_killed_between_two_files_is_done_again(segment, patients, tmp_path, monkeypatch):
    def kill(*arguments):
        raise Killed

    out = patients / "out"  # where the label map that is left could be taken for a scan
    with monkeypatch.context() as patch:
        patch.setattr(Segmentation, "save_uncertainty", kill)
        with pytest.raises(Killed):
            segment(patients, "-o", out, "--uncertainty")
    assert (out / "a.nii.gz").is_file()
    code, written, _ = segment(patients, "-o", out, "--uncertainty")
    assert (code, written.split()) == (0, [str(out / "a.nii.gz"), str(out / "b.nii.gz")])
    assert (out / "uncertainty" / "a_entropy.nii.gz").is_file()
    assert segment(patients, "-o", out, "--uncertainty")[:2] == (0, "")


@pytest.mark.parametrize("place", [".", "out", "a"])
def test_results_among_the_scans_are_no_scans(segment, patients, capsys, place):
    out = patients / place
    assert segment(patients, "-o", out, "--probabilities", "--uncertainty", "--html")[0] == 0
    code, written, error = segment(patients, "-o", out)
    assert (code, written) == (0, "")
    assert "Skipped 2 finished cases" in error
    assert segment(patients, "-o", out, "--overwrite")[0] == 0  # the maps stay, and are no scans
    assert main(["check-data", str(patients), "--spacing", "8", "--release", "phantom"]) == 0
    assert "2 cases of phantom: 0 faults" in capsys.readouterr().out


def test_maps_of_an_earlier_run_are_made_again_if_asked_for(segment, patients, tmp_path):
    out = tmp_path / "out"
    assert segment(patients / "a", "-o", out, "--uncertainty")[0] == 0
    assert segment(patients / "a", "-o", out, "--overwrite")[0] == 0
    map_file = out / "uncertainty" / "a_entropy.nii.gz"
    map_file.write_bytes(b"of other weights, perhaps")
    assert segment(patients / "a", "-o", out, "--uncertainty")[0] == 0
    assert nib.load(map_file).shape == nib.load(scan(patients, "a", "t1")).shape


def test_a_page_of_others_is_not_replaced(segment, patients, tmp_path):
    out = tmp_path / "out"
    assert segment(patients / "a", "-o", out)[0] == 0
    (out / "a.html").write_text("mine")
    code, _, error = segment(patients / "a", "-o", out, "--html")
    assert code == 1
    assert "a.html: is there already, and it is not known what it was made with" in error
    assert (out / "a.html").read_text() == "mine"


def test_scans_and_results_are_hashed_once(segment, patients, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert segment(patients, "-o", out)[0] == 0
    hashed = []

    def count(path):
        hashed.append(path)
        return sha256_of_file(path)

    for module in (batch_prediction, case_record):
        monkeypatch.setattr(module, "sha256_of_file", count)
    (out / "b.nii.gz").unlink()
    (out / "records" / "b.json").unlink()
    (out / "b.nii.gz").write_bytes(b"")  # b is refused, a is finished
    assert segment(patients, "-o", out)[0] == 1
    assert len(hashed) == len(set(hashed)) == 4 + 1 + 4


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda v: np.where(v == 0, -0.45, v / 500), "note: .*t2"),
        (lambda v: np.where(v == 0, -9999, v), "note: .*t2"),
    ],
)
def test_a_background_that_is_not_0_gives_the_same_labels_and_a_note(
    segment, patients, tmp_path, change, note
):
    assert segment(patients / "a", "-o", tmp_path / "clean")[0] == 0
    path = scan(patients, "a", "t2")
    image = nib.load(path)
    values = change(np.asarray(image.dataobj).astype(np.float64)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, image.affine), path)
    code, _, error = segment(patients / "a", "-o", tmp_path / "odd", "--html")
    assert code == 0
    assert re.search(note, error)
    assert ">Notes</h2>" in (tmp_path / "odd" / "a.html").read_text()
    clean, odd = (
        np.asarray(nib.load(tmp_path / name / "a.nii.gz").dataobj) for name in ("clean", "odd")
    )
    assert (clean != odd).mean() < 1e-3


def test_a_copied_sequence_is_refused(segment, patients, tmp_path):
    shutil.copy(scan(patients, "a", "t1"), scan(patients, "a", "t1ce"))
    code, written, error = segment(patients, "-o", tmp_path / "out")
    assert code == 1
    assert "the same voxels" in error
    assert written.split() == [str(tmp_path / "out" / "b.nii.gz")]


@pytest.mark.parametrize("name", ["report.TXT", "report.md", "report"])
def test_a_file_given_as_text_is_read(segment, patients, tmp_path, name):
    (tmp_path / name).write_bytes("\ufeffA lesion on the left.".encode())
    assert segment(patients / "a", "-o", tmp_path / "x", "--text", tmp_path / name)[0] == 0
    text = "A lesion on the left."
    assert segment(patients / "a", "-o", tmp_path / "x", "--text", text)[2].startswith("Skipped 1")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"PK\x03\x04\x00docx", "control character"), (b"a" * 1_000_001, "too much for a report")],
)
def test_a_file_that_is_no_report_is_refused(segment, patients, tmp_path, content, message):
    (tmp_path / "report.docx").write_bytes(content)
    code, _, error = segment(
        patients / "a", "-o", tmp_path / "x", "--text", tmp_path / "report.docx"
    )
    assert (code, message in error) == (1, True)
    assert not (tmp_path / "x").exists()


def test_one_case_in_two_folders_stops_only_itself(segment, patients, tmp_path):
    shutil.copytree(patients / "a", patients / "again" / "a")
    code, written, error = segment(patients, "-o", tmp_path / "out")
    assert code == 1
    assert f"{patients / 'a'} and {patients / 'again' / 'a'}: each holds case a; keep one" in error
    assert written.split() == [str(tmp_path / "out" / "b.nii.gz")]
    again = tmp_path / "more"
    shutil.copytree(patients / "b", again / "b")
    code, written, error = segment(patients / "b", again, "-o", tmp_path / "out2")
    assert code == 1
    assert f"{patients / 'b'} and {again / 'b'}: each holds case b; keep one" in error


@pytest.mark.parametrize("broken", ["cut", "labels"])
def test_a_mask_beside_the_scan_never_stops_a_case(segment, patients, tmp_path, broken):
    mask = scan(patients, "a", "seg")
    if broken == "cut":
        mask.write_bytes(mask.read_bytes()[:200])
    else:
        image = nib.load(mask)
        nib.save(nib.Nifti1Image(np.full(image.shape, 7, np.uint8), image.affine), mask)
    code, written, error = segment(patients, "-o", tmp_path / "out", "--html")
    assert code == 0, error
    assert len(written.split()) == 4  # a label map and a page of each
    assert f"note: {mask}" in error


@pytest.mark.parametrize("device", ["cuda:7", "nonsense", "mps"])
def test_a_device_that_is_not_there_is_found_before_weights_are_read(
    segment, patients, tmp_path, device, monkeypatch
):
    monkeypatch.setattr("clipseg3d.inference.predictor.read_networks", None)
    code, _, error = segment(patients, "-o", tmp_path / "out", device=device)
    assert code == 1
    assert f"device {device!r} cannot be used here" in error
    assert error.count("\n") == 1


def test_an_output_folder_that_cannot_be_is_found_before_computing(segment, patients, tmp_path):
    (tmp_path / "out").write_text("a file")
    code, _, error = segment(patients, "-o", tmp_path / "out")
    assert code == 1
    assert "out: is a file; give a folder" in error
    assert error.count("\n") == 1
