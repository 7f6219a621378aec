"""Mirrors clipseg3d/phantom/simulate.py."""

import re
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from clipseg3d.phantom.anatomy import Individual
from clipseg3d.phantom.report import measure_facts
from clipseg3d.phantom.simulate import simulate_phantom
from clipseg3d.phantom.tumour import GROWTH_GRID
from clipseg3d.vocabulary import SEQUENCES

SIDES = {"left", "right"}
LOBES = {"frontal", "parietal", "temporal", "occipital"}
SHARP_SEEDS = (1, 4)
"""Of a tumour that does not enhance, and of one with an enhancing rim around necrosis."""


@pytest.fixture(scope="module")
def population():
    """Enough patients that rare things occur; slow."""
    return [simulate_phantom(seed, spacing_mm=6.0) for seed in range(26)]


@pytest.fixture(scope="module", params=["shared", pytest.param("many", marks=pytest.mark.slow)])
def patients(request):
    return request.getfixturevalue("phantoms" if request.param == "shared" else "population")


@pytest.fixture(scope="module")
def sharp():
    return {seed: simulate_phantom(seed, spacing_mm=3.0) for seed in SHARP_SEEDS}


@pytest.fixture(scope="module")
def more_sharp(sharp):
    return {**sharp, **{seed: simulate_phantom(seed, spacing_mm=3.0) for seed in (0, 2, 3)}}


@pytest.fixture(scope="module", params=["two", pytest.param("five", marks=pytest.mark.slow)])
def sharp_patients(request):
    return request.getfixturevalue("sharp" if request.param == "two" else "more_sharp")


def core_of(label):
    return np.isin(label, (1, 4))


def world(index, affine):
    return affine[:3, :3] @ np.asarray(index) + affine[:3, 3]


def words(text):
    return set(re.findall(r"[a-z0-9]+", text.lower()))


@pytest.mark.parametrize(
    ("spacing", "shape"),
    [(7, (35, 35, 23)), pytest.param(5.0, (48, 48, 31), marks=pytest.mark.slow)],
)
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


def test_equal_seeds_give_equal_patients(phantoms):
    one, other = simulate_phantom(3, spacing_mm=8.0), phantoms[3]
    np.testing.assert_array_equal(one.image, other.image)
    np.testing.assert_array_equal(one.label, other.label)
    assert (one.report, one.facts) == (other.report, other.facts)


def test_images_and_facts_show_the_displaced_brain(monkeypatch):
    drawn, draw_anatomy = [], Individual.anatomy

    def record(individual, grid, pushes=()):
        drawn.append((grid.spacing_mm, len(pushes)))
        return draw_anatomy(individual, grid, pushes)

    monkeypatch.setattr(Individual, "anatomy", record)
    simulate_phantom(0, spacing_mm=8.0)
    assert drawn == [(GROWTH_GRID.spacing_mm, 0), (GROWTH_GRID.spacing_mm, 1), (8.0, 1)]


def test_seeds_differ(patients):
    assert len({p.label.tobytes() for p in patients}) == len(patients)
    assert len({p.image.tobytes() for p in patients}) == len(patients)
    assert len({p.report for p in patients}) > len(patients) / 2


def check_same_patient(fine, coarse):
    assert (fine.facts.side, fine.facts.lobe) == (coarse.facts.side, coarse.facts.lobe)
    assert fine.facts.wt_ml == pytest.approx(coarse.facts.wt_ml, rel=0.05)
    centres = [world(ndimage.center_of_mass(core_of(p.label)), p.affine) for p in (fine, coarse)]
    assert np.linalg.norm(centres[0] - centres[1]) < 3
    peaks = [p.image.max(axis=(1, 2, 3)) for p in (fine, coarse)]  # set by the drawn scanner gain
    np.testing.assert_allclose(*peaks, rtol=0.01)


def test_a_seed_is_one_patient_at_every_spacing(sharp, phantoms):
    for seed, fine in sharp.items():
        check_same_patient(fine, phantoms[seed])


@pytest.mark.slow
def test_more_seeds_are_one_patient_at_every_spacing(more_sharp, population):
    for seed, fine in more_sharp.items():
        check_same_patient(fine, population[seed])


def test_background_is_zero_and_brain_is_positive(patients):
    for phantom in patients:
        brain = phantom.image.any(axis=0)
        for scan in phantom.image:
            # A sequence may end below the top of the head; elsewhere it shows the whole brain.
            top = np.flatnonzero(scan.any(axis=(0, 1)))[-1]
            assert (scan[..., : top + 1] > 0).sum() == brain[..., : top + 1].sum()
            assert scan[scan > 0].min() >= 1
        assert 1000 < brain.sum() * phantom.spacing_mm**3 / 1000 < 1900
        assert ndimage.label(brain)[1] == 1


@pytest.mark.slow
def test_some_fields_of_view_end_below_the_top_of_the_head(population):
    cut = [len({scan.any(axis=(0, 1)).sum() for scan in p.image}) > 1 for p in population]
    assert 0 < sum(cut) < 10


def extents_mm(patients):
    return [p.spacing_mm * np.ptp(np.argwhere(p.image[0] > 0), axis=0) for p in patients]


def test_the_shared_patients_have_brains_of_usual_size(phantoms):
    extents = np.mean(extents_mm(phantoms), axis=0) + 8  # from edge to edge
    np.testing.assert_allclose(extents, (140, 170, 139), atol=6)


@pytest.mark.slow
def test_brain_is_about_as_large_as_a_brain(population):
    np.testing.assert_allclose(np.mean(extents_mm(population), axis=0), (135, 175, 138), atol=10)


def test_tumour_lies_inside_the_brain_around_its_core(patients):
    for phantom in patients:
        label = phantom.label
        assert set(np.unique(label)) <= {0, 1, 2, 4}
        assert phantom.image.any(axis=0)[label > 0].all()
        parts, _ = ndimage.label(label > 0, structure=np.ones((3, 3, 3)))
        with_core = np.unique(parts[core_of(label)])
        assert np.isin(parts[label > 0], with_core).mean() > 0.98
        assert core_of(label).any()
        assert (label == 2).any()
        assert 6 < (label > 0).sum() * phantom.spacing_mm**3 / 1000 < 300


@pytest.mark.slow
def test_all_kinds_of_tumour_occur(population):
    facts = [p.facts for p in population]
    assert {f.side for f in facts} == SIDES
    assert {f.lobe for f in facts} == LOBES
    assert {f.enhancement for f in facts} >= {"none", "spots", "rim", "solid"}
    assert {f.foci > 1 for f in facts} == {True, False}
    assert {f.crosses_midline for f in facts} == {True, False}
    assert min(f.ventricle_loss for f in facts) < 0.05 < 0.2 < max(f.ventricle_loss for f in facts)
    assert min(f.midline_shift_mm for f in facts) < 1 < 4 < max(f.midline_shift_mm for f in facts)


def test_facts_agree_with_the_label_map(patients):
    for phantom in patients:
        label, facts, spacing = phantom.label, phantom.facts, phantom.spacing_mm
        ml = {value: int((label == value).sum()) * spacing**3 / 1000 for value in (1, 2, 4)}
        assert facts.wt_ml == pytest.approx(sum(ml.values()))
        assert facts.tc_ml == pytest.approx(ml[1] + ml[4])
        assert facts.et_ml == pytest.approx(ml[4])
        assert facts.oedema_ml == pytest.approx(ml[2])
        assert facts.enhancing == (ml[4] > 0)
        brain = phantom.image.any(axis=0)
        measured = measure_facts(label, brain, spacing_mm=spacing)
        own = {"necrosis": False, "ventricle_loss": None, "midline_shift_mm": None}
        assert replace(facts, **own) == replace(measured, **own)
        assert measured.necrosis or not facts.necrosis

        # In world axes, which grow to the right, front and top.
        parts, _ = ndimage.label(core_of(label), structure=np.ones((3, 3, 3)))
        largest = parts == np.argmax(np.bincount(parts.ravel())[1:]) + 1
        corners = [world(f(np.argwhere(brain), axis=0), phantom.affine) for f in (np.min, np.max)]
        low, high = np.minimum(*corners) - spacing / 2, np.maximum(*corners) + spacing / 2
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


def test_report_names_the_true_location_only(patients):
    for phantom in patients:
        named = words(phantom.report)
        assert named & SIDES == {phantom.facts.side}
        assert named & LOBES == {phantom.facts.lobe}


def test_what_reports_say_of_signals_is_so(sharp_patients):
    for phantom in sharp_patients.values():
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


def test_fluid_is_bright_on_t2_and_dark_on_flair_and_t1(sharp_patients):
    for phantom in sharp_patients.values():
        healthy = phantom.image.all(axis=0) & (phantom.label == 0)
        inner = ndimage.binary_erosion(healthy, iterations=3)
        t1, _, t2, flair = (
            phantom.image / np.median(phantom.image[:, healthy], axis=1)[:, None, None, None]
        )
        fluid = inner & (t2 > np.percentile(t2[inner], 99))
        assert np.median(t1[fluid]) < 0.85
        assert np.median(flair[fluid]) < 0.85


def test_intensities_stay_in_their_range(patients):
    peaks = np.array([p.image.max(axis=(1, 2, 3)) for p in patients])
    assert peaks.min() >= 254
    assert peaks.max() <= 32767


@pytest.mark.slow
def test_scanner_gain_varies(population):
    peaks = np.array([p.image.max(axis=(1, 2, 3)) for p in population])
    assert peaks.max() > 10 * peaks.min()


@pytest.mark.slow
def test_scanner_settings_vary(population):
    contrasts = []
    for phantom in population:
        t1 = phantom.image[0][phantom.image[0] > 0]
        contrasts.append(np.subtract(*np.percentile(t1, [80, 20])) / np.median(t1))
    assert max(contrasts) > 1.5 * min(contrasts)


@pytest.mark.parametrize("spacing", [0, -1.0, 8.1, float("nan")])
def test_rejects_spacing(spacing):
    with pytest.raises(ValueError, match=rf"spacing_mm={spacing} .*use 1.0"):
        simulate_phantom(0, spacing_mm=spacing)
