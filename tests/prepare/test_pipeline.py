"""Mirrors clipseg3d/prepare/pipeline.py: a simulated head, whose truth is known, and bad input."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec

from clipseg3d.data.cases import DataError, find_cases
from clipseg3d.data.releases import PHANTOM
from clipseg3d.data.resampling import carry
from clipseg3d.phantom import simulate_head, write_head
from clipseg3d.phantom.head import MAX_SHIFT_MM
from clipseg3d.prepare import atlas, pipeline
from clipseg3d.prepare.pipeline import prepare_case
from clipseg3d.prepare.registration import Fit
from clipseg3d.prepare.scan_search import find_scans
from clipseg3d.vocabulary import SEQUENCES

pytest.importorskip("SimpleITK")
pytest.importorskip("deepbet")


def save(path, voxels, affine=None):
    affine = np.diag([2.0, 2.0, 2.0, 1.0]) if affine is None else affine
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


@pytest.fixture
def block(tmp_path):
    """A file of the size of a head, of noise."""
    voxels = np.random.default_rng(0).integers(0, 50, (90, 100, 80)).astype(np.int16)
    return save(tmp_path / "t1ce.nii.gz", voxels)


def test_a_sequence_with_four_axes_is_refused(tmp_path, block):
    path = save(tmp_path / "t2.nii.gz", np.ones((90, 100, 80, 2), np.int16))
    with pytest.raises(DataError, match=r"t2\.nii\.gz: has 4 axes .*save one 3D volume"):
        prepare_case({"t1ce": block, "t2": path})


def test_every_faulty_file_is_named(tmp_path):
    small = save(tmp_path / "t1ce.nii.gz", np.ones((20, 20, 20), np.int16))
    empty = save(tmp_path / "t2.nii.gz", np.full((90, 100, 80), 7, np.int16))
    with pytest.raises(DataError) as error:
        prepare_case({"t1ce": small, "t2": empty})
    assert len(error.value.faults) == 2
    assert "40x40x40 mm, which no scan of a whole brain is" in str(error.value)
    assert "every voxel is 7" in str(error.value)


def test_without_t1_there_is_nothing_to_find_the_brain_in(block):
    with pytest.raises(ValueError, match="has t2 alone; the brain is found in a T1-weighted scan"):
        prepare_case({"t2": block})


@pytest.mark.slow
def test_noise_holds_no_brain(block):
    with pytest.raises(
        ValueError, match=r"t1ce\.nii\.gz: .*(no brain was found|a brain of|not look like a)"
    ):
        prepare_case({"t1ce": block})


def test_none_is_for_stripped_scans(block):
    with pytest.raises(ValueError, match=r"5[67]\d\d ml was found.*does not look skull-stripped"):
        prepare_case({"t1ce": block}, brain_extraction="none")


@pytest.mark.slow
def test_a_rod_is_no_brain(tmp_path):
    """Its volume is that of a brain, but the atlas does not fit."""
    place = (np.indices((110, 110, 110)) - 55) * 2
    rod = (np.hypot(place[0], place[1]) < 45) & (np.abs(place[2]) < 105)
    values = np.where(rod, 100 + place[2] // 4, 0).astype(np.int16)
    path = save(tmp_path / "t1ce.nii.gz", values)
    with pytest.raises(ValueError, match="does not look like a brain"):
        prepare_case({"t1ce": path}, brain_extraction="none")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"confirmed": False}, "what the two show does not fit where their brains do"),
        ({"overlap": 0.3}, "30% of the brain lie in its field of view"),
        ({"matrix": from_matvec(np.eye(3), (25, 0, 0))}, "its brain is 25 mm off"),
    ],
)
def test_a_registration_that_fails_is_refused(tmp_path, monkeypatch, change, message):
    ball = np.linalg.norm(np.indices((90, 90, 90)) - 44.5, axis=0) < 35
    values = np.where(ball, 100 + np.arange(90), 0).astype(np.int16)
    files = {name: save(tmp_path / f"{name}.nii.gz", values) for name in ("t1ce", "t2")}
    fits = Fit(np.eye(4), 1.0, overlap=1.0, confirmed=True)
    monkeypatch.setattr(pipeline, "register", lambda *_, **__: replace(fits, **change))
    monkeypatch.setattr(
        pipeline._Preparation, "_fit_to_atlas", lambda self, scan, mask: (fits, 1.0)
    )
    with pytest.raises(ValueError, match=rf"t2\.nii\.gz: registration to .*{message}; check"):
        prepare_case(files, brain_extraction="none")


@pytest.mark.parametrize("engine", ["none", "deepbet"])
def test_a_normalised_scan_is_refused(tmp_path, monkeypatch, engine):
    ball = np.linalg.norm(np.indices((90, 90, 90)) - 44.5, axis=0) < 35
    values = np.where(ball, np.arange(90) - 44.0, 0).astype(np.float32)
    path = save(tmp_path / "t1ce.nii.gz", values, atlas.AFFINE @ np.diag([2.0, 2.0, 1.5, 1.0]))
    fit = Fit(np.eye(4), 1.0, overlap=1.0, confirmed=True)
    monkeypatch.setattr(pipeline, "extract_brain", lambda *_: ball)
    monkeypatch.setattr(pipeline._Preparation, "_fit_to_atlas", lambda *_: (fit, 1.0))
    with pytest.raises(ValueError, match=r"t1ce\.nii\.gz: 4\d% of the brain are below 0"):
        prepare_case({"t1ce": path}, brain_extraction=engine)


def test_a_folder_that_exists_stays(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match=r"there exists; .*--name"):
        pipeline.require_new(tmp_path / "there")


@pytest.fixture(scope="module")
def head():
    """One with a T2 of 5 mm slices, which registration by slopes left 19 mm off."""
    return simulate_head(4_000_009)


@pytest.fixture(scope="module")
def prepared(head, tmp_path_factory):
    folder = tmp_path_factory.mktemp("head")
    case = prepare_case(find_scans(write_head(head, folder, "patient")))
    return case, case.save(folder / "prepared")


@pytest.mark.slow
def test_scans_of_a_head_differ_as_they_should(head):
    assert list(head.scans) == list(SEQUENCES)
    points = apply_affine(head.phantom.affine, np.argwhere(head.brain[::9, ::9, ::9]) * 9)
    for name, scan in head.scans.items():
        turn = scan.motion[:3, :3]
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-9)
        shift = np.linalg.norm(apply_affine(scan.motion, points).mean(0) - points.mean(0))
        assert 0 < shift <= MAX_SHIFT_MM + 3
        assert scan.voxels.min() >= 0
        brain = head.on_scan(head.brain, name) >= 0.5
        assert scan.voxels[brain].mean() > 10 * np.median(scan.voxels[:5, :5])
        outside = (scan.voxels > 0.3 * np.median(scan.voxels[brain])) & ~brain
        assert outside.sum() > 0.3 * brain.sum()  # scalp, face and neck


@pytest.mark.slow
def test_a_sequence_does_not_depend_on_the_others(head):
    alone = simulate_head(4_000_009, sequences=["flair"]).scans
    assert list(alone) == ["flair"]
    np.testing.assert_array_equal(alone["flair"].voxels, head.scans["flair"].voxels)


@pytest.mark.slow
def test_the_brain_is_found(head, prepared):
    case, _ = prepared
    to_case = np.linalg.inv(case.matrices["t1ce"]) @ head.scans["t1ce"].motion
    truth = carry(
        head.brain.astype(np.float32), to_case @ head.phantom.affine, atlas.SHAPE, atlas.AFFINE
    )
    found = case.sequences["t1ce"] != 0
    assert 2 * (found & (truth >= 0.5)).sum() / (found.sum() + (truth >= 0.5).sum()) > 0.95


@pytest.mark.slow
def test_sequences_lie_on_each_other(head, prepared):
    case, _ = prepared
    points = apply_affine(head.phantom.affine, np.argwhere(head.brain[::9, ::9, ::9]) * 9)
    to_case = np.linalg.inv(case.matrices["t1ce"]) @ head.scans["t1ce"].motion
    of_case = apply_affine(to_case, points)
    for name in ("t1", "t2", "flair"):
        there = apply_affine(case.matrices[name], of_case)
        miss = np.linalg.norm(there - apply_affine(head.scans[name].motion, points), axis=1)
        assert np.median(miss) < 0.5
        assert miss.max() < 1


@pytest.mark.slow
def test_what_is_written_is_a_case(head, prepared):
    case, folder = prepared
    (found,) = find_cases(folder.parent, PHANTOM, require_label=False)
    assert found.case_id == "patient"
    for name, path in found.sequences.items():
        image = nib.load(path)
        assert image.shape == (240, 240, 155)
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
        np.testing.assert_array_equal(np.asarray(image.dataobj), case.sequences[name])
    record = json.loads((folder / "patient_prepare.json").read_text())
    assert record["sequences"].keys() == {*SEQUENCES}
    assert 1000 < record["brain_ml"] < 1900
    assert record["n4"] is True
    assert "/" not in json.dumps(record["sequences"])
    assert (folder / "patient_prepare.png").read_bytes()[:4] == b"\x89PNG"
    assert len([*folder.glob("*.tfm")]) == 4
    # the rigid part alone: volumes stay as they are
    for matrix in case.matrices.values():
        assert np.linalg.det(matrix[:3, :3]) == pytest.approx(1)


def test_the_atlas_lies_in_the_middle_of_the_grid():
    average, mask = atlas.load_atlas()
    there = carry(mask.astype(np.float32), average.affine, atlas.SHAPE, atlas.AFFINE) >= 0.5
    index = np.argwhere(there)
    middle = (index.min(axis=0) + index.max(axis=0)) / 2
    np.testing.assert_allclose(middle, atlas.CENTRE, atol=1.5)
    assert 1400 < there.sum() / 1000 < 1650
    # brain stem and cerebellum are the lowest, and behind the middle; y grows backwards in LPS
    lowest = index[index[:, 2] < index[:, 2].min() + 12]
    assert lowest[:, 1].mean() > atlas.CENTRE[1] + 5
    np.testing.assert_allclose(atlas.AFFINE, from_matvec(np.diag([-1, -1, 1]), (0, 239, 0)))
