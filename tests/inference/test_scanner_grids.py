"""Scans on grids of scanners: labels lie where the tumour lies, whatever the grid of each file."""

from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

import clipseg3d.inference.predictor
import clipseg3d.reporting.case_page
from clipseg3d.blocks.prompt_head import PromptReading
from clipseg3d.data.cases import DataError, find_cases, segmentable_cases
from clipseg3d.data.releases import MSD_TASK01, PHANTOM
from clipseg3d.inference.batch_prediction import segment_cases
from clipseg3d.inference.postprocessing import PostProcessing
from clipseg3d.inference.predictor import Predictor
from clipseg3d.networks.clipseg3d import Prediction
from clipseg3d.vocabulary import SEQUENCES

pytestmark = pytest.mark.filterwarnings("ignore")
SPACING_MM = 4.0
"""That the network below is for."""


class BrightFlair(nn.Module):
    """Finds what is much brighter than the brain in FLAIR, and the core in its middle."""

    config = settings = semantic_fusion = text_bank = None
    view_selection = "center"

    def encoder_identities(self):
        return {}

    def embed_text(self, reports):
        return None, None

    def encode_semantics(self, views, text, mask, *, trust=1.0):
        return None

    def segment(self, image, semantics, *, crop_box=None, statistics=None):
        self.image = image
        flair = image[:, 3:]
        return Prediction(torch.cat([flair - 1.8, flair - 1.9, flair - 9], dim=1), [], None, None)


class Prompted(BrightFlair):
    """Answers every prompt with the whole tumour."""

    text_encoder = SimpleNamespace(max_tokens=99, count_tokens=lambda text: 3)

    def prompt_head(self, reading, regions, crop_box):
        return regions[:, :1]

    def read_prompts(self, prompts):
        shape = (1, len(prompts))
        return PromptReading(*(torch.zeros(*shape, *n) for n in ((3,), (10,), (), (3,), ())))


def predictor(network=None, **options):
    return Predictor(
        network or BrightFlair(),
        release=options.pop("release", PHANTOM),
        spacing_mm=SPACING_MM,
        roi_size=(40, 40, 40),
        device="cpu",
        **options,
    )


def files_in(folder):
    return {name: next(folder.glob(f"*_{name}.nii.gz")) for name in SEQUENCES}


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


GRIDS = {
    "2 mm": {"sizes": (2, 2, 2)},
    "thick slices": {"sizes": (2, 2, 7)},
    "thick slices along x, from the front": {"sizes": (7, 2, 3), "axes": "PIR"},
    "7 mm": {"sizes": (7, 7, 7), "axes": "RAS"},
    "oblique": {"sizes": (3, 4, 5), "angle": 0.3},
    "oblique, swapped": {"sizes": (5, 3, 2), "axes": "ASL", "angle": -0.4},
}


def grid_of(grid_over, name):
    options = dict(GRIDS[name])
    return grid_over(*options.pop("sizes"), **options)


@pytest.mark.parametrize("name", GRIDS)
def test_the_tumour_is_found_where_it_is_on_any_grid(
    tmp_path, grid_over, head_on, write_head, name
):
    affine, shape = grid_of(grid_over, name)
    folder = write_head(tmp_path / "scan", dict.fromkeys(SEQUENCES, (affine, shape)))
    run = predictor()
    result = run(files_in(folder), probabilities=True, uncertainty=True)
    _, tumour = head_on(affine, shape)
    assert dice(result.label > 0, tumour) > (0.85 if max(GRIDS[name]["sizes"]) > 5 else 0.92)
    assert result.label.shape == result.probabilities.shape[1:] == shape
    assert result.uncertainty["entropy"].shape == shape
    np.testing.assert_array_equal(result.label > 0, result.probabilities[0] > 0.5)
    # the network saw a ball of 60 mm in voxels of 4 mm, in the order of training
    seen = np.argwhere(run.network.image[0, 3].numpy())
    extent = np.ptp(seen, axis=0) * SPACING_MM
    np.testing.assert_allclose(extent, 120, atol=12)
    (note,) = [note for note in result.notes if "resampled" in note]
    sizes = "x".join(f"{size:g}" for size in GRIDS[name]["sizes"])
    assert f"t1, t1ce, t2, flair from {sizes} mm" in note
    assert ("expect small parts to be missed" in note) == (max(GRIDS[name]["sizes"]) > 4.1)
    result.save(tmp_path / "label.nii.gz")
    written, scan = nib.load(tmp_path / "label.nii.gz"), nib.load(files_in(folder)["t1ce"])
    np.testing.assert_array_equal(written.affine, scan.affine)
    for field in ("pixdim", "qform_code", "sform_code", "xyzt_units", "srow_x", "quatern_b"):
        np.testing.assert_array_equal(written.header[field], scan.header[field])


@pytest.fixture
def own_grids(grid_over):
    """A grid for each sequence: a sagittal one, a fine one, thick oblique slices, a cut-off one."""
    flair, shape = grid_over(4, 4, 4)
    return {
        "t1": grid_over(2, 4, 4, axes="PIR"),
        "t1ce": grid_over(3, 3, 3, fov=(130, 138, 141)),
        "t2": grid_over(2.5, 2.5, 6, angle=0.35),
        "flair": (flair, (shape[0], shape[1], shape[2] - 6)),  # without the top of the head
    }


@pytest.mark.parametrize("asked", [None, *SEQUENCES])
def test_every_sequence_may_have_its_own_grid_and_labels_that_of_any(
    tmp_path, own_grids, head_on, write_head, asked
):
    files = files_in(write_head(tmp_path / "scan", own_grids))
    result = predictor(grid_of=asked)(files)
    affine, shape = own_grids[asked or "t1ce"]
    _, tumour = head_on(affine, shape)
    assert result.label.shape == shape
    assert dice(result.label > 0, tumour) > 0.9
    result.save(tmp_path / "label.nii.gz")
    np.testing.assert_array_equal(
        nib.load(tmp_path / "label.nii.gz").affine, nib.load(files[asked or "t1ce"]).affine
    )
    for part in ("t1 from 2x4x4 mm", "t2 from 2.5x2.5x6 mm", f"the grid of {asked or 't1ce'}"):
        assert part in result.notes[0]


def test_the_networks_see_all_sequences_in_one_place(tmp_path, own_grids, head_on, write_head):
    run = predictor()
    run(files_in(write_head(tmp_path / "scan", own_grids)))
    t1, t1ce, t2, flair = run.network.image[0].numpy() != 0
    assert min(dice(t1, t1ce), dice(t2, t1ce)) > 0.97
    highest = np.flatnonzero(t1ce.any(axis=(0, 1)))[-1]
    assert not flair[..., highest - 2 :].any()  # beyond its field of view
    assert dice(flair[..., : highest - 6], t1ce[..., : highest - 6]) > 0.97


def test_probabilities_are_resampled_and_not_labels(tmp_path, grid_over, head_on, write_head):
    fine, coarse = grid_over(1.5, 1.5, 1.5), grid_over(4, 4, 4, fov=(144, 144, 144))
    _, tumour = head_on(*fine)
    folders = [
        write_head(tmp_path / name, dict.fromkeys(SEQUENCES, grid))
        for name, grid in (("fine", fine), ("coarse", coarse))
    ]
    result = predictor()(files_in(folders[0]), probabilities=True)
    blocky = nib.processing.resample_from_to(
        nib.Nifti1Image(predictor()(files_in(folders[1])).label, coarse[0]),
        (fine[1], fine[0]),
        order=0,
    ).get_fdata()
    error, blocky_error = 1 - dice(result.label > 0, tumour), 1 - dice(blocky > 0, tumour)
    assert error < 0.6 * blocky_error
    between = (result.probabilities[0] > 0.3) & (result.probabilities[0] < 0.7)
    assert between.sum() > tumour.sum() / 20  # nearest neighbours would leave none


def test_scans_on_the_grid_of_training_are_not_touched(
    tmp_path, grid_over, write_head, monkeypatch
):
    folder = write_head(
        tmp_path / "scan", dict.fromkeys(SEQUENCES, grid_over(4, 4.05, 4, angle=0.2))
    )
    image = nib.load(files_in(folder)["t2"])
    image.set_sform(image.affine, 4)
    voxels = np.asarray(image.dataobj).copy()
    nib.save(nib.Nifti1Image(voxels, None, image.header), files_in(folder)["t2"])
    monkeypatch.setattr(clipseg3d.inference.predictor, "ResampledCase", None)
    run = predictor()
    result = run(files_in(folder), probabilities=True, explain=True)
    assert result.notes == ()
    assert result.evidence.scan_grid is result.evidence.grid
    flair = np.asarray(nib.load(files_in(folder)["flair"]).dataobj)
    np.testing.assert_array_equal(result.label > 0, flair == 600)
    for asked, code in ((None, 1), ("t2", 4)):
        again = predictor(grid_of=asked)(files_in(folder))
        again.save(tmp_path / "label.nii.gz")
        np.testing.assert_array_equal(again.label, result.label)
        assert nib.load(tmp_path / "label.nii.gz").header["sform_code"] == code


def test_the_network_sees_the_same_of_a_scan_that_needs_one_sequence_resampled(
    tmp_path, grid_over, write_head
):
    """Where the labels' grid is that of training, its sequence is taken as it is."""
    right = grid_over(4, 4, 4)
    run = predictor()
    run(files_in(write_head(tmp_path / "a", dict.fromkeys(SEQUENCES, right))))
    before = run.network.image[0, 1]
    grids = {**dict.fromkeys(SEQUENCES, right), "t2": grid_over(2, 2, 2)}
    result = run(files_in(write_head(tmp_path / "b", grids)))
    torch.testing.assert_close(run.network.image[0, 1], before, rtol=1e-6, atol=1e-6)
    assert result.label.shape == right[1]


def test_files_of_other_places_are_refused(tmp_path, grid_over, own_grids, write_head):
    affine, _ = own_grids["t2"]
    far = nib.affines.from_matvec(np.eye(3), [0, 0, 130]) @ affine
    files = files_in(write_head(tmp_path / "scan", own_grids))
    image = nib.load(files["t2"])
    voxels = np.asarray(image.dataobj).copy()
    nib.save(nib.Nifti1Image(voxels, far), files["t2"])
    with pytest.raises(DataError) as error:
        predictor()(files)
    (fault,) = error.value.faults
    assert fault.startswith(f"{files['t2']}: shows another place than {files['t1ce']}; register")


WRONG = {
    "metres": (lambda a: np.diag([1e-3, 1e-3, 1e-3, 1]) @ a, (1, 1), "correct the voxel size"),
    "a factor": (lambda a: np.diag([50, 50, 50, 1]) @ a, (1, 1), "correct the voxel size"),
    "flat": (lambda a: a @ np.diag([1, 1, 0, 1]), (0, 1), "has no inverse"),
    "skewed": (
        lambda a: a @ [[1, 1.9, 0, 0], [0, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
        (0, 1),
        "far from right angles",
    ),
    "nowhere": (lambda a: a, (0, 0), "does not say how it lies in space"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_nonsense_is_refused_before_voxels_are_read(tmp_path, own_grids, write_head, kind):
    change, codes, reason = WRONG[kind]
    files = files_in(write_head(tmp_path / "scan", own_grids))
    image = nib.load(files["t1"])
    voxels = np.zeros(image.shape, np.int16)  # which would be a fault of its own
    wrong = nib.Nifti1Image(voxels, None, image.header)
    wrong.set_qform(None, code=0)
    wrong.header["qform_code"] = codes[0]
    wrong.set_sform(change(image.affine), codes[1])
    nib.save(wrong, files["t1"])
    with pytest.raises(DataError) as error:
        predictor()(files)
    (fault,) = error.value.faults
    assert fault.startswith(f"{files['t1']}: ")
    assert reason in fault


def test_a_scan_on_one_grid_may_not_say_where_it_lies(tmp_path, grid_over, write_head):
    grids = dict.fromkeys(SEQUENCES, grid_over(2, 2, 2))
    result = predictor()(files_in(write_head(tmp_path / "scan", grids, codes=(0, 0))))
    assert sum("does not say how it lies in space" in note for note in result.notes) == 4
    assert result.label.any()


def test_faults_of_all_files_are_listed(tmp_path, own_grids, write_head):
    files = files_in(write_head(tmp_path / "scan", own_grids))
    for name in ("t1", "flair"):
        image = nib.load(files[name])
        nib.save(nib.Nifti1Image(np.zeros(image.shape, np.int16), image.affine), files[name])
    files["t2"].write_bytes(files["t2"].read_bytes()[:-200])
    with pytest.raises(DataError) as error:
        predictor()(files)
    assert [fault.split(": ")[0] for fault in error.value.faults] == [
        str(files[name]) for name in ("t1", "t2", "flair")
    ]


def test_the_sequence_asked_for_must_be_there(tmp_path, own_grids, write_head):
    with pytest.raises(ValueError, match="grid_of='adc' is no sequence of these weights; choose"):
        predictor(grid_of="adc")
    files = files_in(write_head(tmp_path / "scan", own_grids))
    del files["t2"]
    with pytest.raises(DataError, match=r"has no t2, whose grid .* name one of t1, t1ce, flair"):
        predictor(grid_of="t2", allow_missing=True)(files)
    del files["t1ce"]
    result = predictor(allow_missing=True)(files)
    assert result.label.shape == own_grids["t1"][1]


def test_arrays_and_files_of_four_axes_are_resampled_too(tmp_path, grid_over, head_on):
    affine, shape = grid_over(3, 3, 5)
    volumes, tumour = head_on(affine, shape)
    result = predictor()(np.stack([volumes[name] for name in SEQUENCES]), affine)
    assert dice(result.label > 0, tumour) > 0.9
    root = tmp_path / "Task01_BrainTumour"
    (root / "imagesTr").mkdir(parents=True)
    order = ("flair", "t1", "t1ce", "t2")
    stack = np.stack([volumes[name] for name in order], axis=-1)
    nib.save(nib.Nifti1Image(stack, affine), root / "imagesTr" / "BRATS_001.nii.gz")
    (root / "dataset.json").write_text(
        '{"modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}, "training": [], '
        '"test": ["./imagesTr/BRATS_001.nii.gz"]}'
    )
    (case,) = find_cases(root, MSD_TASK01, require_label=False, spacing_mm=None)
    of_files = predictor(release=MSD_TASK01)(case)
    np.testing.assert_array_equal(of_files.label > 0, result.label > 0)
    of_files.save(tmp_path / "label.nii.gz")
    np.testing.assert_array_equal(nib.load(tmp_path / "label.nii.gz").affine, affine)


@pytest.mark.parametrize("least_ml", [30, 60])
def test_rules_are_in_ml_on_the_grid_of_the_labels(tmp_path, grid_over, write_head, least_ml):
    """The tumour has 44.6 ml."""
    folder = write_head(tmp_path / "scan", dict.fromkeys(SEQUENCES, grid_over(2, 2, 5)))
    rules = PostProcessing(small_components={"WT": least_ml})
    assert predictor(postprocessing=rules)(files_in(folder)).label.any() == (least_ml == 30)


def test_prompts_and_the_case_page_follow(tmp_path, own_grids, head_on, write_head, monkeypatch):
    files = files_in(write_head(tmp_path / "scan", own_grids))
    result = predictor(Prompted(), grid_of="t2")(files, prompts=["tumour"], explain=True)
    (answer,) = result.prompts
    np.testing.assert_array_equal(answer.mask, result.label > 0)
    assert answer.volume_ml == pytest.approx((result.label > 0).sum() * 2.5 * 2.5 * 6 / 1000)
    result.save_prompts(tmp_path / "masks")
    affine, shape = own_grids["t2"]
    np.testing.assert_array_equal(
        nib.load(tmp_path / "masks" / "tumour.nii.gz").affine, nib.load(files["t2"]).affine
    )
    _, tumour = head_on(affine, shape)
    reference = tmp_path / "seg.nii.gz"
    nib.save(nib.Nifti1Image(tumour.astype(np.uint8), affine), reference)
    shown = {}
    monkeypatch.setattr(
        clipseg3d.reporting.case_page,
        "CasePage",
        lambda **parts: shown.update(parts) or SimpleNamespace(save=lambda path: None),
    )
    result.save_case_page(tmp_path / "page.html", reference=reference)
    flair = shown["images"]["flair"]
    bright = flair > 1.8
    assert shown["spacing_mm"] == pytest.approx((SPACING_MM,) * 3)
    assert dice(shown["prediction"][0], bright) > 0.85
    assert dice(shown["reference"][0], bright) > 0.85
    np.testing.assert_array_equal(shown["prompts"][0][1], shown["prediction"][0])
    assert shown["uncertainty"]["entropy"].shape == flair.shape


def test_a_folder_of_cases_is_segmented_and_resumed(tmp_path, own_grids, grid_over, write_head):
    for name, grids in (
        ("Phantom_00001", own_grids),
        ("Phantom_00002", dict.fromkeys(SEQUENCES, grid_over(4, 4, 4))),
    ):
        write_head(tmp_path / "scans" / name, grids, name=name)
    cases, faults, _ = segmentable_cases(tmp_path / "scans", PHANTOM)
    assert faults == []

    def run(**options):
        return list(
            segment_cases(
                predictor(**options), cases, tmp_path / "out", html=True, probabilities=True
            )
        )

    first, second = run()
    assert (first.status, second.status) == ("written", "written")
    assert "resampled" in first.notes[0]
    assert second.notes == ()
    for path in first.files[2:]:
        np.testing.assert_array_equal(nib.load(path).affine, own_grids["t1ce"][0])
    assert [result.status for result in run()] == ["finished", "finished"]
    again = run(grid_of="t1")
    assert all("made with other grid of" in str(result.error) for result in again)


def test_an_expert_mask_may_lie_on_the_grid_of_any_sequence(
    tmp_path, own_grids, head_on, write_head
):
    name = "Phantom_00001"
    folder = write_head(tmp_path / name, own_grids, name=name)
    mask = Path(folder / f"{name}_seg.nii.gz")
    for grid, fits in ((own_grids["t2"], True), ((np.diag([4.0, 4, 4, 1]), (9, 8, 7)), False)):
        _, tumour = head_on(*grid)
        nib.save(nib.Nifti1Image(tumour.astype(np.uint8), grid[0]), mask)
        (case,), faults, notes = segmentable_cases(tmp_path, PHANTOM)
        assert faults == []
        assert (case.label == mask) == fits
        assert [note.split(": ")[0] for note in notes] == ([] if fits else [str(mask)])
