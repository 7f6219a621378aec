"""Mirrors clipseg3d/data/phantom.py."""

import re
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from clipseg3d.phantom.simulate import simulate_phantom
from clipseg3d.phantom.write import write_phantom
from clipseg3d.phantom.report import measure_facts
from clipseg3d.vocabulary import SEQUENCES

SIDES = {"left", "right"}
LOBES = {"frontal", "parietal", "temporal", "occipital"}


@pytest.fixture(scope="module")
def phantoms():
    return [simulate_phantom(seed, spacing_mm=6.0) for seed in range(26)]


@pytest.fixture(scope="module")
def sharp():
    return [simulate_phantom(seed, spacing_mm=3.0) for seed in range(4)]


def core_of(label):
    return np.isin(label, (1, 4))


def world(index, affine):
    return affine[:3, :3] @ np.asarray(index) + affine[:3, 3]


def words(text):
    return set(re.findall(r"[a-z0-9]+", text.lower()))


@pytest.mark.parametrize(("spacing", "shape"), [(5.0, (48, 48, 31)), (7, (35, 35, 23))])
def test_grid_covers_the_brats_field_of_view(spacing, shape):
    phantom = simulate_phantom(1, spacing_mm=spacing)
    assert phantom.image.shape == (4, *shape)
    assert phantom.image.dtype == np.float32
    assert phantom.label.shape == shape
    assert phantom.label.dtype == np.uint8
    assert nib.aff2axcodes(phantom.affine) == ("L", "P", "S")
    np.testing.assert_allclose(np.diag(phantom.affine), [-spacing, -spacing, spacing, 1])
    # The outer corner of the first voxel is where the 1 mm BraTS grid, origin (0, 239, 0), has it.
    np.testing.assert_allclose(world([-0.5] * 3, phantom.affine), [0.5, 239.5, -0.5])


def test_equal_seeds_give_equal_patients():
    one, two = (simulate_phantom(3, spacing_mm=6.0) for _ in range(2))
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.label, two.label)
    assert (one.report, one.facts) == (two.report, two.facts)


def test_seeds_differ(phantoms):
    assert len({p.label.tobytes() for p in phantoms}) == len(phantoms)
    assert len({p.image.tobytes() for p in phantoms}) == len(phantoms)
    assert len({p.report for p in phantoms}) > len(phantoms) / 2


def test_a_seed_is_one_patient_at_every_spacing(sharp, phantoms):
    for fine, coarse in zip(sharp, phantoms, strict=False):
        assert (fine.facts.side, fine.facts.lobe) == (coarse.facts.side, coarse.facts.lobe)
        assert fine.facts.wt_ml == pytest.approx(coarse.facts.wt_ml, rel=0.05)
        centres = [
            world(ndimage.center_of_mass(core_of(p.label)), p.affine) for p in (fine, coarse)
        ]
        assert np.linalg.norm(centres[0] - centres[1]) < 3


def test_background_is_zero_and_brain_is_positive(phantoms):
    for phantom in phantoms:
        brain = phantom.image.any(axis=0)
        for scan in phantom.image:
            # A sequence may end below the top of the head; elsewhere it shows the whole brain.
            top = np.flatnonzero(scan.any(axis=(0, 1)))[-1]
            assert (scan[..., : top + 1] > 0).sum() == brain[..., : top + 1].sum()
            assert scan[scan > 0].min() >= 1
        assert 1000 < brain.sum() * 6**3 / 1000 < 1900
        assert ndimage.label(brain)[1] == 1


def test_some_fields_of_view_end_below_the_top_of_the_head(phantoms):
    cut = [len({scan.any(axis=(0, 1)).sum() for scan in p.image}) > 1 for p in phantoms]
    assert 0 < sum(cut) < 10


def test_brain_is_about_as_large_as_a_brain(phantoms):
    extents = [6.0 * np.ptp(np.argwhere(p.image[0] > 0), axis=0) for p in phantoms]
    np.testing.assert_allclose(np.mean(extents, axis=0), (135, 175, 138), atol=10)


def test_tumour_lies_inside_the_brain_around_its_core(phantoms):
    for phantom in phantoms:
        label = phantom.label
        assert set(np.unique(label)) <= {0, 1, 2, 4}
        assert phantom.image.any(axis=0)[label > 0].all()
        parts, _ = ndimage.label(label > 0, structure=np.ones((3, 3, 3)))
        with_core = np.unique(parts[core_of(label)])
        assert np.isin(parts[label > 0], with_core).mean() > 0.98
        assert core_of(label).any()
        assert (label == 2).any()
        assert 6 < (label > 0).sum() * 6**3 / 1000 < 300


def test_all_kinds_of_tumour_occur(phantoms):
    facts = [p.facts for p in phantoms]
    assert {f.side for f in facts} == SIDES
    assert {f.lobe for f in facts} == LOBES
    assert {f.enhancement for f in facts} >= {"none", "spots", "rim", "solid"}
    assert {f.foci > 1 for f in facts} == {True, False}
    assert {f.crosses_midline for f in facts} == {True, False}
    assert min(f.ventricle_loss for f in facts) < 0.05 < 0.2 < max(f.ventricle_loss for f in facts)
    assert min(f.midline_shift_mm for f in facts) < 1 < 4 < max(f.midline_shift_mm for f in facts)


def test_facts_agree_with_the_label_map(phantoms):
    for phantom in phantoms:
        label, facts = phantom.label, phantom.facts
        counts = {value: int((label == value).sum()) * 0.216 for value in (1, 2, 4)}
        assert facts.wt_ml == pytest.approx(sum(counts.values()))
        assert facts.tc_ml == pytest.approx(counts[1] + counts[4])
        assert facts.et_ml == pytest.approx(counts[4])
        assert facts.oedema_ml == pytest.approx(counts[2])
        assert facts.enhancing == (counts[4] > 0)
        brain = phantom.image.any(axis=0)
        measured = measure_facts(label, brain, spacing_mm=6.0)
        own = {"necrosis": False, "ventricle_loss": None, "midline_shift_mm": None}
        assert replace(facts, **own) == replace(measured, **own)
        assert measured.necrosis or not facts.necrosis

        # In world axes, which grow to the right, front and top.
        parts, _ = ndimage.label(core_of(label), structure=np.ones((3, 3, 3)))
        largest = parts == np.argmax(np.bincount(parts.ravel())[1:]) + 1
        corners = [world(f(np.argwhere(brain), axis=0), phantom.affine) for f in (np.min, np.max)]
        low, high = np.minimum(*corners) - 3, np.maximum(*corners) + 3
        right, front, top = (world(ndimage.center_of_mass(largest), phantom.affine) - low) / (
            high - low
        )
        assert facts.side == ("right" if right > 0.5 else "left")
        if top < 0.42 and 0.28 < front <= 0.78:
            assert facts.lobe == "temporal"
        elif front <= 0.25:
            assert facts.lobe == "occipital"
        else:
            assert facts.lobe == ("frontal" if front > 0.52 else "parietal")


def test_report_names_the_true_place_only(phantoms):
    for phantom in phantoms:
        said = words(phantom.report)
        assert said & SIDES == {phantom.facts.side}
        assert said & LOBES == {phantom.facts.lobe}


def test_what_reports_say_of_signals_is_so(sharp):
    for phantom in sharp:
        label, facts = phantom.label, phantom.facts
        healthy = phantom.image.all(axis=0) & (label == 0)
        scans = dict(zip(SEQUENCES, phantom.image, strict=True))
        usual = {name: np.median(scan[healthy]) for name, scan in scans.items()}
        oedema = (label == 2) & phantom.image.all(axis=0)
        assert np.median(scans["flair"][oedema]) > 1.15 * usual["flair"]
        assert np.median(scans["t2"][oedema]) > 1.05 * usual["t2"]
        if facts.necrosis:
            behind = label == 1
            assert np.median(scans["t1"][behind]) < 1.02 * usual["t1"]
            assert np.median(scans["t2"][behind]) > 1.2 * usual["t2"]
        gain = np.median(
            (scans["t1ce"] / usual["t1ce"] - scans["t1"] / usual["t1"])[core_of(label)]
        )
        if facts.enhancement in ("rim", "solid"):
            around = label == 4
            assert np.median(scans["t1ce"][around]) > 1.1 * usual["t1ce"]
        elif not facts.enhancing:
            assert gain < 0.35


def test_fluid_is_bright_on_t2_and_dark_on_flair_and_t1(sharp):
    for phantom in sharp:
        healthy = phantom.image.all(axis=0) & (phantom.label == 0)
        inner = ndimage.binary_erosion(healthy, iterations=3)
        t1, _, t2, flair = (
            phantom.image / np.median(phantom.image[:, healthy], axis=1)[:, None, None, None]
        )
        fluid = inner & (t2 > np.percentile(t2[inner], 99))
        assert np.median(t1[fluid]) < 0.85
        assert np.median(flair[fluid]) < 0.85


def test_scanner_gain_varies(phantoms):
    peaks = np.array([p.image.max(axis=(1, 2, 3)) for p in phantoms])
    assert peaks.min() >= 254
    assert peaks.max() <= 32767
    assert peaks.max() > 10 * peaks.min()


def test_scanner_settings_vary(phantoms):
    contrasts = []
    for phantom in phantoms:
        t1 = phantom.image[0][phantom.image[0] > 0]
        contrasts.append(np.subtract(*np.percentile(t1, [80, 20])) / np.median(t1))
    assert max(contrasts) > 1.5 * min(contrasts)


@pytest.mark.parametrize("spacing", [0, -1.0, 8.1, float("nan")])
def test_rejects_spacing(spacing):
    with pytest.raises(ValueError, match=rf"spacing_mm={spacing} .*use 1.0"):
        simulate_phantom(0, spacing_mm=spacing)


def test_written_case_reads_back(tmp_path, phantoms):
    phantom = phantoms[0]
    folder = write_phantom(phantom, tmp_path / "new", "Phantom_007")
    assert folder == tmp_path / "new" / "Phantom_007"
    suffixes = [
        "flair.nii.gz",
        "flair_text.txt",
        *(f"{s}.nii.gz" for s in ("seg", "t1", "t1ce", "t2")),
    ]
    assert sorted(p.name for p in folder.iterdir()) == [f"Phantom_007_{s}" for s in suffixes]
    assert [p.name for p in folder.parent.iterdir()] == ["Phantom_007"]
    for name, volume in zip((*SEQUENCES, "seg"), (*phantom.image, phantom.label), strict=True):
        stored = nib.load(folder / f"Phantom_007_{name}.nii.gz")
        assert stored.get_data_dtype() == (np.uint8 if name == "seg" else np.int16)
        np.testing.assert_array_equal(np.asarray(stored.dataobj), volume)
        np.testing.assert_allclose(stored.affine, phantom.affine)
        assert nib.aff2axcodes(stored.affine) == ("L", "P", "S")
        assert (stored.header["qform_code"], stored.header["sform_code"]) == (1, 1)
        np.testing.assert_allclose(stored.header.get_zooms(), phantom.spacing_mm)
        np.testing.assert_allclose(stored.get_qform(), phantom.affine)
    text = (folder / "Phantom_007_flair_text.txt").read_text(encoding="utf-8")
    assert text.strip() == phantom.report


def test_faint_brain_is_not_written_as_background(tmp_path, phantoms):
    faint = replace(phantoms[0], image=phantoms[0].image * np.float32(0.001))
    folder = write_phantom(faint, tmp_path, "faint")
    stored = np.asarray(nib.load(folder / "faint_t1.nii.gz").dataobj)
    np.testing.assert_array_equal(stored > 0, faint.image[0] > 0)


def test_values_beyond_int16_are_written_as_float(tmp_path, phantoms):
    bright = replace(phantoms[0], image=phantoms[0].image * np.float32(1000))
    folder = write_phantom(bright, tmp_path, "bright")
    stored = nib.load(folder / "bright_flair.nii.gz")
    assert stored.get_data_dtype() == np.float32
    np.testing.assert_allclose(np.asarray(stored.dataobj), bright.image[3])


def test_existing_case_is_left_alone(tmp_path, phantoms):
    folder = write_phantom(phantoms[0], tmp_path, "case")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(FileExistsError, match="choose another case_id"):
        write_phantom(phantoms[1], tmp_path, "case")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["case"]


def test_a_failed_write_leaves_nothing(tmp_path, phantoms):
    unsavable = replace(phantoms[0], label=phantoms[0].label.astype(np.int64))
    with pytest.raises(ValueError, match="int64"):
        write_phantom(unsavable, tmp_path, "case")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case_id", ["", ".", "..", "a/b", ".hidden"])
def test_rejects_case_id(tmp_path, phantoms, case_id):
    with pytest.raises(ValueError, match="case_id="):
        write_phantom(phantoms[0], tmp_path / "root", case_id)
    assert list(tmp_path.iterdir()) == []
