"""Mirrors clipseg3d/phantom/simulate.py."""

import re
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from clipseg3d.phantom.anatomy import Individual
from clipseg3d.phantom.counterfactual import Counterfactual
from clipseg3d.phantom.simulate import simulate_phantom, simulate_twins
from clipseg3d.phantom.tumour import GROWTH_GRID
from clipseg3d.texts.facts import measure_facts
from clipseg3d.vocabulary import SEQUENCES

SIDES = {"left", "right"}
LOBES = {"frontal", "parietal", "temporal", "occipital"}
GOLDEN = {
    1: ((153, 73, 0), (31932.4, 24611.5, 14643.4, 45832.8)),
    4: ((6, 59, 45), (4287.9, 2313.5, 2979.9, 4940.7)),
}
"""Seed -> voxels of labels 1, 2 and 4 at 8 mm, and thousandths of the sums of intensities."""
TWINS = {
    "plain": (0, Counterfactual(kind="plain")),
    "solid": (4, Counterfactual(kind="solid")),
    "spotted": (1, Counterfactual(kind="spotted")),
    "necrotic": (1, Counterfactual(kind="necrotic")),
    "with necrosis": (1, Counterfactual(necrosis=True)),
    "without necrosis": (4, Counterfactual(necrosis=False)),
    "limited": (1, Counterfactual(oedema="limited")),
    "extensive": (1, Counterfactual(oedema="extensive")),
    "second focus": (4, Counterfactual(second_focus=True)),
    "one focus": (0, Counterfactual(second_focus=False)),
    "side": (1, Counterfactual(side="left")),
    "cavity": (1, Counterfactual(cavity=True)),
}
"""Changes, each of a patient for whom it is one. Seed 0 is a solid tumour of two foci on the left,
1 a plain one on the right, 4 has an enhancing rim around necrosis on the left; all have moderate
oedema."""
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


def test_seeds_stay_the_patients_that_they_were(phantoms):
    for seed, (voxels, sums) in GOLDEN.items():
        counts = np.bincount(phantoms[seed].label.ravel(), minlength=5)
        assert tuple(counts[[1, 2, 4]]) == voxels
        totals = phantoms[seed].image.sum(axis=(1, 2, 3), dtype=np.float64) / 1000
        np.testing.assert_allclose(totals, sums, rtol=1e-4)


@pytest.fixture(scope="module")
def twins():
    """Change -> patient and twin; made when asked for."""
    made = {}

    def get(name):
        seed, change = TWINS[name]
        if name not in made:
            made[name] = simulate_twins(seed, change, spacing_mm=8.0)
        return made[name]

    return get


def near(mask):
    """Two voxels around a mask: as far as blur and partial volumes reach at 8 mm."""
    return ndimage.binary_dilation(mask, structure=np.ones((3, 3, 3)), iterations=2)


@pytest.mark.parametrize("name", TWINS)
def test_twins_begin_with_the_patient_of_the_seed(twins, phantoms, name):
    patient, usual = twins(name)[0], phantoms[TWINS[name][0]]
    np.testing.assert_array_equal(patient.image, usual.image)
    np.testing.assert_array_equal(patient.label, usual.label)
    assert (patient.report, patient.facts) == (usual.report, usual.facts)


@pytest.mark.parametrize("name", [name for name in TWINS if name != "side"])
def test_twins_are_equal_to_the_last_bit_apart_from_what_changes(twins, name):
    patient, twin = twins(name)
    what = patient.label != twin.label
    if "necrosis" in name or name in ("plain", "solid", "spotted", "necrotic"):
        what = core_of(patient.label)
    elif name == "one focus":
        what = patient.label > 0  # foci that remain as oedema show the seams of their core
    different = (patient.image != twin.image).any(axis=0)
    assert different.any()
    assert not (different & ~near(what)).any()
    assert different.sum() < 0.3 * patient.image.any(axis=0).sum()
    np.testing.assert_array_equal(patient.image == 0, twin.image == 0)


@pytest.mark.parametrize("name", ["plain", "solid", "spotted", "necrotic"])
def test_kinds_differ_in_enhancement_alone(twins, name):
    patient, twin = twins(name)
    expected = {"plain": "none", "solid": "solid", "spotted": "spots", "necrotic": "rim"}
    assert twin.facts.enhancement == expected[name] != patient.facts.enhancement
    np.testing.assert_array_equal(core_of(twin.label), core_of(patient.label))
    np.testing.assert_array_equal(twin.label == 2, patient.label == 2)
    same = {"enhancement": "none", "necrosis": False, "et_ml": 0}
    assert replace(twin.facts, **same) == replace(patient.facts, **same)


@pytest.mark.parametrize("name", ["with necrosis", "without necrosis"])
def test_necrosis_is_no_matter_of_labels(twins, name):
    patient, twin = twins(name)
    np.testing.assert_array_equal(twin.label, patient.label)
    assert twin.facts == replace(patient.facts, necrosis=not patient.facts.necrosis)


def test_more_oedema_surrounds_less_oedema(twins):
    patient = twins("limited")[0]
    less, more = (twins(name)[1] for name in ("limited", "extensive"))
    extents = [phantom.facts.oedema_extent for phantom in (less, patient, more)]
    assert extents == ["limited", "moderate", "extensive"]
    core, oedema = core_of(patient.label), patient.label == 2
    for phantom in (less, more):
        np.testing.assert_array_equal(core_of(phantom.label), core)
        assert phantom.facts.ventricle_loss == patient.facts.ventricle_loss
    assert not ((less.label == 2) & ~oedema).any()
    assert not (oedema & ~(more.label == 2)).any()
    # what both have is equally bright, away from the edges of what only one has
    shared = near(oedema) & ~near(more.label != patient.label)
    np.testing.assert_array_equal(more.image[:, shared], patient.image[:, shared])


def test_a_second_focus_lies_apart_and_is_smaller(twins):
    patient, twin = twins("second focus")
    assert (patient.facts.foci, twin.facts.foci) == (1, 2)
    np.testing.assert_array_equal(twin.label[patient.label > 0], patient.label[patient.label > 0])
    new = twin.label != patient.label
    assert not (new & near(patient.label > 0)).any()
    assert 0.5 < (core_of(twin.label) & new).sum() * 8**3 / 1000 < patient.facts.tc_ml
    sizes = {"foci": 0, "wt_ml": 0, "tc_ml": 0, "et_ml": 0}
    assert replace(twin.facts, **sizes) == replace(patient.facts, **sizes)
    positions = np.nonzero(new)[0] * patient.spacing_mm - 120
    assert positions.max() < 0  # on the right, and yet the tumour on the left does not cross


def test_a_second_focus_lies_at_the_same_place_at_every_spacing(twins):
    centres = []
    for phantom in (
        twins("second focus")[1],
        simulate_phantom(4, spacing_mm=6.0, change=TWINS["second focus"][1]),
    ):
        parts, count = ndimage.label(core_of(phantom.label), structure=np.ones((3, 3, 3)))
        smaller = np.argsort(np.bincount(parts.ravel(), minlength=count + 1))[0]
        centres.append(world(ndimage.center_of_mass(parts == smaller), phantom.affine))
    assert np.linalg.norm(centres[0] - centres[1]) < 6


def test_one_focus_is_the_largest(twins):
    patient, twin = twins("one focus")
    assert (patient.facts.foci, twin.facts.foci) == (2, 1)
    parts, _ = ndimage.label(core_of(patient.label), structure=np.ones((3, 3, 3)))
    largest = parts == np.argmax(np.bincount(parts.ravel())[1:]) + 1
    np.testing.assert_array_equal(core_of(twin.label), largest)
    assert not ((twin.label > 0) & ~(patient.label > 0)).any()


def test_the_other_side_is_the_mirror_image(twins):
    patient, twin = twins("side")
    np.testing.assert_array_equal(twin.image, patient.image[:, ::-1])
    np.testing.assert_array_equal(twin.label, patient.label[::-1])
    assert twin.facts == replace(patient.facts, side="left")
    assert twin.report == patient.report.replace("right", "left")


@pytest.mark.parametrize("name", TWINS)
def test_reports_of_twins_share_what_is_true_of_both(twins, name):
    patient, twin = twins(name)
    own, other = (re.split(r"(?<=\.) ", phantom.report) for phantom in (patient, twin))
    new = [sentence for sentence in other if sentence not in own]
    about = {
        "plain": "necrosis|contrast",
        "solid": "necrosis|contrast",
        "spotted": "contrast|enhance",
        "necrotic": "necrosis|contrast",
        "with necrosis": "necrosis|contrast",
        "without necrosis": "necrosis",
        "limited": "limited edema",
        "extensive": "extensive edema",
        "second focus": "two",
        "one focus": "lesion|mass|edema",  # the edema of the other focus has gone
        "side": "left",
        "cavity": "cavity",
    }[name]
    assert 1 <= len(new) <= 2
    assert all(re.search(about, sentence.lower()) for sentence in new)


def test_a_fact_that_is_so_already_changes_nothing(phantoms):
    change = Counterfactual(kind="plain", side="right", second_focus=False, cavity=False)
    twin = simulate_phantom(1, spacing_mm=8.0, change=change)
    np.testing.assert_array_equal(twin.image, phantoms[1].image)
    np.testing.assert_array_equal(twin.label, phantoms[1].label)
    assert (twin.report, twin.facts) == (phantoms[1].report, phantoms[1].facts)


def test_several_facts_can_change_at_once():
    change = Counterfactual(kind="plain", necrosis=True, side="right")
    twin = simulate_phantom(4, spacing_mm=8.0, change=change)
    facts = twin.facts
    assert (facts.enhancement, facts.necrosis, facts.side) == ("none", True, "right")
    assert "no necrosis" not in twin.report.lower()


def test_a_cavity_is_filled_with_fluid(phantoms):
    patient, twin = simulate_twins(4, Counterfactual(cavity=True), spacing_mm=6.0)
    cavity = twin.label == 3
    assert core_of(patient.label)[cavity].all()
    assert 0.4 < cavity.sum() / core_of(patient.label).sum() < 0.95
    assert core_of(twin.label).any()
    np.testing.assert_array_equal(twin.label[~cavity], patient.label[~cavity])
    facts = twin.facts
    assert facts.cavity_ml == pytest.approx(cavity.sum() * 6**3 / 1000)
    assert facts.tc_ml + facts.cavity_ml == pytest.approx(patient.facts.tc_ml)
    assert facts.oedema_ml == pytest.approx(patient.facts.oedema_ml)
    healthy = twin.image.all(axis=0) & (twin.label == 0)
    usual = np.median(twin.image[:, healthy], axis=1)
    t1, t1ce, t2, flair = np.median(twin.image[:, cavity], axis=1) / usual
    assert t1 < 0.7
    assert t1ce < 0.7
    assert t2 > 1.5
    assert flair < 0.7
    # a sharp border: beside it, solid tissue is as it was
    rim = ndimage.binary_dilation(cavity) & (twin.label == 4)
    flair_change = twin.image[3][rim] / patient.image[3][rim]
    assert rim.any()
    assert np.median(np.abs(flair_change - 1)) < 0.1


def test_all_can_be_plain_or_resected_and_nothing_else_of_them_changes(phantoms):
    both = simulate_phantom(0, spacing_mm=8.0, plain_share=1.0, cavity_share=1.0)
    assert both.facts.enhancement == "none"
    assert both.facts.cavity_ml > 0
    assert "cavity" in both.report
    lesion = np.isin(both.label, (1, 3))
    np.testing.assert_array_equal(lesion, core_of(phantoms[0].label))
    np.testing.assert_array_equal(both.label == 2, phantoms[0].label == 2)
    far = ~near(both.label > 0)
    correlation = np.corrcoef(both.image[2][far], phantoms[0].image[2][far])[0, 1]
    assert correlation > 0.999  # the same brain, scaled


@pytest.mark.parametrize("share", ["plain_share", "cavity_share"])
def test_rejects_shares(share):
    with pytest.raises(ValueError, match=f"{share}=1.5 is not in"):
        simulate_phantom(0, spacing_mm=8.0, **{share: 1.5})


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
