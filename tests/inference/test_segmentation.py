"""Mirrors clipseg3d/inference/segmentation.py: what is written lies where its scan lies."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from torch import nn

import clipseg3d.reporting.case_page
from clipseg3d.data.cases import DataError, find_cases
from clipseg3d.data.releases import MSD_TASK01, PHANTOM
from clipseg3d.inference.predictor import Predictor
from clipseg3d.networks.clipseg3d import Prediction
from clipseg3d.vocabulary import SEQUENCES

pytestmark = pytest.mark.filterwarnings("ignore")
SPACING_MM = 8.0
FIELDS = ("qform_code", "sform_code", "pixdim", "xyzt_units")


class Bands(nn.Module):
    """Each region is a band of the z-scored FLAIR."""

    config = settings = text_bank = semantic_fusion = None
    view_selection = "center"

    def embed_text(self, reports):
        return None, None

    def encode_semantics(self, views, text, mask, *, trust=1.0):
        return None

    def encoder_identities(self):
        return {}

    def segment(self, image, semantics, *, crop_box=None, statistics=None):
        flair = image[:, 3:].expand(-1, 3, -1, -1, -1)
        return Prediction(
            flair - flair.new_tensor([0.5, 1, 1.5])[:, None, None, None], [], None, None
        )


def predictor(release=PHANTOM, **options):
    return Predictor(
        Bands(),
        release=release,
        spacing_mm=SPACING_MM,
        roi_size=(32, 32, 32),
        device="cpu",
        **options,
    )


def turned(image, axes):
    """Return an image in another voxel order."""
    start = nib.io_orientation(image.affine)
    return image.as_reoriented(
        nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(axes))
    )


def oblique(image):
    """Return an image whose axes are turned by 17 degrees against the patient's."""
    a = 0.3
    turn = np.array([[np.cos(a), -np.sin(a), 0, 5], [np.sin(a), np.cos(a), 0, -3], [0, 0, 1, 2]])
    affine = np.vstack([turn, [0, 0, 0, 1]]) @ image.affine
    return nib.Nifti1Image(np.asanyarray(image.dataobj), affine, image.header)


GRIDS = {
    "LPS": lambda image: image,
    "RAS": lambda image: turned(image, "RAS"),
    "PIR": lambda image: turned(image, "PIR"),
    "oblique": oblique,
    "oblique ASL": lambda image: turned(oblique(image), "ASL"),
}


@pytest.fixture
def case_on(folder, tmp_path):
    """Make the patient's case on another grid; returns the case and the FLAIR of it."""

    def make(grid):
        copy = tmp_path / "turned" / folder.name
        copy.mkdir(parents=True)
        for name in (*SEQUENCES, "seg"):
            path = folder / f"{folder.name}_{name}.nii.gz"
            image = GRIDS[grid](nib.load(path))
            image.header["descrip"] = b"Doe^Jane"
            image.set_sform(image.affine, 2)
            image.set_qform(image.affine, 1)
            nib.save(image, copy / path.name)
        (case,) = find_cases(copy, PHANTOM, spacing_mm=SPACING_MM)
        return case

    return make


def same_place(written, scan):
    """Compare all that says where a file's voxels lie."""
    assert written.shape == scan.shape[:3]
    np.testing.assert_array_equal(written.affine, scan.affine)
    np.testing.assert_array_equal(written.get_qform(), scan.get_qform())
    np.testing.assert_array_equal(written.get_sform(), scan.get_sform())
    for field in FIELDS:
        np.testing.assert_array_equal(written.header[field], scan.header[field])
    assert scan.header["descrip"] == b"Doe^Jane"
    assert written.header["descrip"] == b""  # names stay behind


@pytest.mark.parametrize("grid", GRIDS)
def test_all_files_lie_on_the_scan_in_any_orientation(case_on, folder, tmp_path, grid):
    case = case_on(grid)
    result = predictor(tta=True)(case, probabilities=True, uncertainty=True)
    result.save(tmp_path / "label.nii.gz")
    result.save_probabilities(tmp_path / "p")
    result.save_uncertainty(tmp_path / "u")
    scan = nib.load(case.sequences["flair"])
    files = {
        "label.nii.gz": np.uint8,
        **{f"p/{case.case_id}_{region}.nii.gz": np.float32 for region in ("WT", "TC", "ET")},
        **{f"u/{case.case_id}_{n}.nii.gz": np.float32 for n in ("entropy", "ensemble_variance")},
    }
    assert {str(p.relative_to(tmp_path)) for d in "pu" for p in (tmp_path / d).iterdir()} == set(
        files
    ) - {"label.nii.gz"}
    for name, dtype in files.items():
        written = nib.load(tmp_path / name)
        same_place(written, scan)
        assert written.get_data_dtype() == dtype
    # the same anatomy: brighter than the brain's mean by 1.5 SD is ET, wherever the axes point
    flair = np.asanyarray(scan.dataobj).astype(float)
    inside = flair[flair != 0]
    low, high = np.percentile(inside, [0.5, 99.5], method="nearest")
    z = (flair.clip(low, high) - inside.clip(low, high).mean()) / inside.clip(low, high).std()
    label = np.asanyarray(nib.load(tmp_path / "label.nii.gz").dataobj)
    np.testing.assert_array_equal(label == 4, (z > 1.5) & (flair != 0))
    probability = nib.load(tmp_path / f"p/{case.case_id}_TC.nii.gz").get_fdata()
    np.testing.assert_allclose(
        probability[flair != 0], 1 / (1 + np.exp(1.0 - z[flair != 0])), atol=1e-3
    )
    assert not probability[flair == 0].min() < 0


def test_a_case_of_the_decathlon_is_read_and_written(folder, tmp_path):
    root = tmp_path / "Task01_BrainTumour"
    (root / "imagesTr").mkdir(parents=True)
    (root / "labelsTr").mkdir()
    order = ("flair", "t1", "t1ce", "t2")
    scans = [nib.load(folder / f"{folder.name}_{name}.nii.gz") for name in order]
    voxels = np.stack([np.asanyarray(scan.dataobj) for scan in scans], axis=-1)
    volume = nib.Nifti1Image(voxels.astype(np.float32), np.diag([8.0, 8.0, 8.0, 1.0]))
    nib.save(volume, root / "imagesTr" / "BRATS_001.nii.gz")
    manifest = {
        "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
        "training": [],
        "test": ["./imagesTr/BRATS_001.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(manifest))
    (case,) = find_cases(root, MSD_TASK01, require_label=False, spacing_mm=SPACING_MM)
    result = predictor(MSD_TASK01)(case, probabilities=True)
    result.save(tmp_path / "label.nii.gz")
    result.save_probabilities(tmp_path)
    source = nib.load(root / "imagesTr" / "BRATS_001.nii.gz")
    for name in ("label.nii.gz", "BRATS_001_WT.nii.gz"):
        written = nib.load(tmp_path / name)
        assert written.shape == voxels.shape[:3]
        np.testing.assert_array_equal(written.affine, source.affine)
        np.testing.assert_array_equal(written.header.get_zooms(), source.header.get_zooms()[:3])
    label = np.asanyarray(nib.load(tmp_path / "label.nii.gz").dataobj)
    assert set(np.unique(label)) == {0, 1, 2, 3}
    brightest = voxels[..., 0] >= np.percentile(voxels[..., 0][voxels[..., 0] > 0], 99)
    assert (label[brightest] == 3).all()  # ET, in the Decathlon's numbers


def test_what_was_not_kept_cannot_be_written(folder, tmp_path):
    (case,) = find_cases(folder, PHANTOM, spacing_mm=SPACING_MM)
    result = predictor()(case)
    with pytest.raises(ValueError, match=r"Phantom_00003: its prob.*with probabilities=True"):
        result.save_probabilities(tmp_path)
    with pytest.raises(ValueError, match=r"Phantom_00003: its unc.*with uncertainty=True"):
        result.save_uncertainty(tmp_path)
    with pytest.raises(ValueError, match=r"Phantom_00003: what a case page .*with explain=True"):
        result.save_case_page(tmp_path / "r.html")
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize("grid", ["LPS", "PIR"])
@pytest.mark.parametrize("has_mask", [True, False])
def test_a_case_page_shows_the_case_and_the_reference(
    case_on, tmp_path, monkeypatch, grid, has_mask
):
    case = case_on(grid)
    result = predictor()(case, explain=True, text="A lesion.")
    calls = []

    def note(**parts):
        calls.append(parts)
        return SimpleNamespace(save=lambda path: calls.append(path))

    monkeypatch.setattr(clipseg3d.reporting.case_page, "CasePage", note)
    result.save_case_page(tmp_path / "r.html", reference=case.label if has_mask else None)
    parts, path = calls
    assert path == tmp_path / "r.html"
    shape = result.evidence.images["t1"].shape
    assert parts["prediction"].shape == (3, *shape)
    assert parts["spacing_mm"] == (SPACING_MM,) * 3
    np.testing.assert_array_equal(
        result.evidence.grid.restore(PHANTOM.to_labels(parts["prediction"])), result.label
    )
    assert parts["uncertainty"]["entropy"].shape == shape
    assert (parts["reference"] is not None) == has_mask
    if has_mask:
        mask = np.asanyarray(nib.load(case.label).dataobj)
        assert parts["reference"].sum(axis=(1, 2, 3)).tolist() == [
            int(region.sum()) for region in PHANTOM.to_regions(mask)
        ]
        both = (parts["prediction"][0] & parts["reference"][0]).sum()
        assert both == ((result.label > 0) & (mask > 0)).sum()  # one lies on the other


def test_a_case_page_is_one_html_file(folder, tmp_path):
    (case,) = find_cases(folder, PHANTOM, spacing_mm=SPACING_MM)
    predictor(tta=True)(case, explain=True).save_case_page(
        tmp_path / "r.html", reference=case.label
    )
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Phantom_00003" in page
    assert "ensemble variance" in page.lower()


def test_a_case_page_names_no_folder_of_the_machine(case_on, tmp_path):
    case = case_on("LPS")
    run = predictor()
    encoder = {"name": f"texts:{tmp_path}/texts.npz", "sha256": "ab" * 32}
    run.networks[0].encoder_identities = lambda: {"text": encoder}
    run.weights = {"best.ckpt": "cd" * 32}
    result = run(case, explain=True)
    notes = tuple(f"{path}: is odd; check it" for path in case.files.values())
    replace(result, notes=notes).save_case_page(tmp_path / "r.html", reference=case.label)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert str(tmp_path) not in page
    words = re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>", "", page, flags=re.DOTALL)
    assert not re.search(r"(?<![\w.])(/\w|~/|[A-Za-z]:\\)", words)
    for name in (*(path.name for path in case.files.values()), "texts:texts.npz", "best.ckpt"):
        assert name in words
    for digest in ("ab" * 32, "cd" * 32):
        assert f"SHA-256 {digest}" in words


def test_a_reference_that_does_not_fit_is_named(folder, tmp_path):
    (case,) = find_cases(folder, PHANTOM, spacing_mm=SPACING_MM)
    result = predictor()(case, explain=True)
    scan = nib.load(case.label)
    path = tmp_path / "mask.nii.gz"
    for voxels, reason in (
        (np.zeros((5, 6, 7), np.uint8), r"shape \(5, 6, 7\) differs from that of the scan"),
        (np.full(scan.shape, 3, np.uint8), r"holds label 3, but phantom has 0, 1, 2, 4"),
        (np.full(scan.shape, 0.25, np.float32), r"holds 0\.25, no whole number"),
    ):
        nib.save(nib.Nifti1Image(voxels, scan.affine), path)
        with pytest.raises(DataError, match=rf"mask\.nii\.gz: {reason}"):
            result.save_case_page(tmp_path / "r.html", reference=path)
    assert not (tmp_path / "r.html").exists()


def test_what_was_not_asked_for_cannot_be_saved(folder, tmp_path):
    segmentation = predictor()(folder)
    for save, cure in (
        (segmentation.save_prompts, r"prompts=\[\.\.\.\]"),
        (segmentation.save_probabilities, "probabilities=True"),
        (segmentation.save_uncertainty, "uncertainty=True"),
    ):
        with pytest.raises(ValueError, match=rf"^Phantom_00003: .*; segment it with {cure}$"):
            save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
