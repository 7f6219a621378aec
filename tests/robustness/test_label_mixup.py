"""Predictions in the labels of another release are noticed (case label_4_means_cavity.py)."""

import nibabel as nib
import numpy as np
import pytest

from clipseg3d.cli.main import main
from clipseg3d.data.label_mixup import mixup_note
from clipseg3d.data.releases import BRATS_2020, BRATS_2024_GLI

NAMES = [f"BraTS-GLI-{number:05d}-100" for number in range(3)]
SHAPE = (16, 16, 16)


def label_map(enhancing, seed):
    label = np.zeros(SHAPE, np.uint8)
    for value, width in ((2, 5), (1, 4), (enhancing, 2)):
        label[8 - width : 8 + width, 8 - width : 8 + width, 8 - seed : 8 + width] = value
    return label


def write(path, voxels):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([-1.0, -1, 1, 1])), path)


@pytest.fixture
def folders(tmp_path):
    """References of 2024, in which label 4 is the cavity, and predictions as of 2020."""
    for seed, name in enumerate(NAMES):
        for sequence in ("t1n", "t1c", "t2w", "t2f"):
            write(tmp_path / "ref" / name / f"{name}-{sequence}.nii.gz", np.ones(SHAPE, np.int16))
        write(tmp_path / "ref" / name / f"{name}-seg.nii.gz", label_map(3, seed))
        write(tmp_path / "old" / f"{name}.nii.gz", label_map(4, seed))
        write(tmp_path / "good" / f"{name}.nii.gz", label_map(3, seed))
    return tmp_path


@pytest.mark.parametrize("release", [(), ("--release", "brats2024_gli")])
def test_evaluate_and_check_submission_ask_about_the_release(folders, capsys, release):
    ref = str(folders / "ref")
    for command in (
        ["evaluate", str(folders / "old"), ref, "--protocol", "brats2023", *release],
        ["check-submission", str(folders / "old"), "--reference", ref, *release],
    ):
        main(command)
        output = capsys.readouterr()
        shown = (output.out + output.err).replace("\n", " ")
        assert "label 4" in shown
        assert "brats2020" in shown


def test_good_predictions_have_no_note(folders, capsys):
    assert main(["evaluate", str(folders / "good"), str(folders / "ref"), "--protocol", "nan"]) == 0
    assert (
        main(["check-submission", str(folders / "good"), "--reference", str(folders / "ref")]) == 0
    )
    assert "no reference has" not in capsys.readouterr().out


def test_the_note_says_how_many_and_whose_labels_they_may_be():
    note = mixup_note([{1, 2, 4}, {1, 2}], [{1, 2, 3}, {2}], BRATS_2024_GLI)
    assert note.startswith("1 of 2 predictions hold label 4, which no reference has; no prediction")
    assert note.endswith("?")
    assert "brats2020" in note
    assert "brats2024_gli" not in note
    assert "no prediction has" not in mixup_note([{1, 2, 3}], [{1, 2}], BRATS_2024_GLI)


@pytest.mark.parametrize(
    ("predicted", "true"),
    [([{1, 2}], [{1, 2, 4}]), ([set()], [{1}]), ([{1, 2, 4}], [set()]), ([], [])],
)
def test_labels_that_are_merely_missing_are_no_mixup(predicted, true):
    assert mixup_note(predicted, true, BRATS_2020) is None
