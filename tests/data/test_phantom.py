"""Mirrors clipseg3d/data/phantom.py."""

import re
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from clipseg3d.data.phantom import (
    SEQUENCES,
    PhantomFacts,
    describe,
    measure_facts,
    simulate_phantom,
    write_phantom,
)

SIDES = {"left", "right"}
LOBES = {"frontal", "parietal", "temporal", "occipital"}
FACTS = PhantomFacts("left", "frontal", True, True, wt_ml=90.0, tc_ml=40.0, et_ml=15.0)
LOW_GRADE = replace(FACTS, enhancing=False, necrosis=False, et_ml=0.0)
SOLID = replace(FACTS, necrosis=False, et_ml=40.0)


@pytest.fixture(scope="module")
def phantoms():
    return [simulate_phantom(seed, spacing_mm=5.0) for seed in range(24)]


@pytest.fixture(scope="module")
def sharp():
    return [simulate_phantom(seed, spacing_mm=3.0) for seed in range(6)]


def core_of(label):
    return np.isin(label, (1, 4))


def world(index, affine):
    return affine[:3, :3] @ np.asarray(index) + affine[:3, 3]


def words(text):
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def wordings(facts):
    return {describe(facts, np.random.default_rng(seed)) for seed in range(60)}


@pytest.mark.parametrize(
    ("spacing", "shape"), [(4.0, (60, 60, 39)), (5.0, (48, 48, 31)), (7, (35, 35, 23))]
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


def test_equal_seeds_give_equal_patients():
    one, two = (simulate_phantom(3, spacing_mm=5.0) for _ in range(2))
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
        brain = phantom.image > 0
        assert (brain == brain[0]).all()
        assert not phantom.image[~brain].any()
        assert phantom.image[brain].min() >= 1
        assert 1100 < brain[0].sum() * 5**3 / 1000 < 2300
        assert ndimage.label(brain[0])[1] == 1


def test_brain_is_about_as_large_as_a_brain(phantoms):
    extents = [5.0 * np.ptp(np.argwhere(p.image[0] > 0), axis=0) for p in phantoms]
    np.testing.assert_allclose(np.mean(extents, axis=0), (135, 175, 138), atol=10)


def test_tumour_lies_inside_the_brain_in_one_piece(phantoms):
    for phantom in phantoms:
        label = phantom.label
        assert set(np.unique(label)) <= {0, 1, 2, 4}
        assert (phantom.image[0][label > 0] > 0).all()
        assert ndimage.label(label > 0)[1] == 1
        assert core_of(label).any()
        assert (label == 2).any()
        assert 18 < (label > 0).sum() * 5**3 / 1000 < 185


def test_necrosis_lies_behind_the_rim(sharp):
    for phantom in (p for p in sharp if p.facts.necrosis):
        outside = ~core_of(phantom.label)
        assert not (ndimage.binary_dilation(outside) & (phantom.label == 1)).any()


def test_all_kinds_of_tumour_occur(phantoms):
    facts = [p.facts for p in phantoms]
    assert {f.side for f in facts} == SIDES
    assert {f.lobe for f in facts} == LOBES
    kinds = {(f.enhancing, f.necrosis) for f in facts}
    assert kinds == {(True, True), (True, False), (False, False)}


def test_facts_agree_with_the_label_map(phantoms):
    for phantom in phantoms:
        label, facts = phantom.label, phantom.facts
        counts = {value: int((label == value).sum()) * 0.125 for value in (1, 2, 4)}
        assert facts.wt_ml == pytest.approx(sum(counts.values()))
        assert facts.tc_ml == pytest.approx(counts[1] + counts[4])
        assert facts.et_ml == pytest.approx(counts[4])
        assert facts.oedema_ml == pytest.approx(counts[2])
        assert facts.enhancing == (counts[4] > 0)
        assert facts.necrosis == (counts[4] > 0 and counts[1] > 0)

        # In world axes, which grow to the right, front and top.
        brain = phantom.image[0] > 0
        corners = [world(f(np.argwhere(brain), axis=0), phantom.affine) for f in (np.min, np.max)]
        low, high = np.minimum(*corners) - 2.5, np.maximum(*corners) + 2.5
        right, front, top = (
            world(ndimage.center_of_mass(core_of(label)), phantom.affine) - low
        ) / (high - low)
        assert facts.side == ("right" if right > 0.5 else "left")
        if top < 0.42 and 0.28 < front <= 0.78:
            assert facts.lobe == "temporal"
        elif front <= 0.25:
            assert facts.lobe == "occipital"
        else:
            assert facts.lobe == ("frontal" if front > 0.52 else "parietal")


@pytest.mark.parametrize(
    ("place", "side", "lobe"),
    [
        ((45, 15, 35), "left", "frontal"),
        ((10, 15, 35), "right", "frontal"),
        ((45, 45, 35), "left", "parietal"),
        ((10, 72, 25), "right", "occipital"),
        ((8, 35, 10), "right", "temporal"),
        ((50, 10, 10), "left", "frontal"),
    ],
)
def test_measures_a_label_map_made_by_hand(place, side, lobe):
    label = np.zeros((80, 100, 60), np.uint8)
    brain = np.zeros(label.shape, bool)
    brain[10:70, 5:85, 4:54] = True
    x, y, z = np.add(place, (10, 5, 4))
    label[x - 2 : x + 3, y - 2 : y + 3, z - 2 : z + 3] = 2
    label[x - 1 : x + 2, y - 1 : y + 2, z - 1 : z + 2] = 4
    label[x, y, z] = 1
    facts = measure_facts(label, brain, spacing_mm=2.0)
    assert (facts.side, facts.lobe) == (side, lobe)
    assert (facts.wt_ml, facts.tc_ml, facts.et_ml) == pytest.approx((1.0, 0.216, 0.208))
    assert facts.enhancing
    assert facts.necrosis


def test_measuring_names_what_is_wrong():
    label, brain = np.zeros((3, 4, 5), np.uint8), np.ones((3, 4, 5), bool)
    with pytest.raises(ValueError, match="core"):
        measure_facts(label, brain, spacing_mm=1.0)
    with pytest.raises(ValueError, match=r"\(3, 4, 5\).*\(3, 4\)"):
        measure_facts(label, brain[..., 0], spacing_mm=1.0)


def test_rim_is_measured_between_spheres():
    ml = 4 / 3 * np.pi / 1000
    facts = replace(FACTS, tc_ml=20**3 * ml, et_ml=(20**3 - 14**3) * ml)
    assert facts.rim_mm == pytest.approx(6)
    assert all("thick" in words(text) - words("thin") for text in wordings(facts))
    assert all("thin" in words(text) for text in wordings(replace(facts, et_ml=facts.tc_ml / 3)))


def test_report_names_the_true_place_only(phantoms):
    for phantom in phantoms:
        said = words(phantom.report)
        assert said & SIDES == {phantom.facts.side}
        assert said & LOBES == {phantom.facts.lobe}


def test_report_has_three_to_five_sentences():
    for facts in (FACTS, LOW_GRADE, SOLID):
        for text in wordings(facts):
            assert 3 <= len(re.findall(r"\.(?= |$)", text)) <= 5
            assert "\n" not in text


def test_wording_varies():
    assert len(wordings(FACTS)) > 20


@pytest.mark.parametrize(
    ("oedema_ml", "word"),
    [(19.9, "limited"), (20.0, "moderate"), (59.9, "moderate"), (60.0, "extensive")],
)
def test_oedema_is_named_by_volume(oedema_ml, word):
    extents = {"limited", "moderate", "extensive"}
    for text in wordings(replace(FACTS, tc_ml=40.0, wt_ml=40 + oedema_ml)):
        assert words(text) & extents == {word}


def test_no_oedema_is_not_called_limited():
    assert all("No edema" in text for text in wordings(replace(FACTS, wt_ml=FACTS.tc_ml)))


def test_low_grade_report_claims_no_enhancement():
    for text in wordings(LOW_GRADE):
        sentences = [s for s in text.split(". ") if re.search("enhanc|contrast", s.lower())]
        assert sentences
        assert all(words(s) & {"no", "not", "nor", "absent"} for s in sentences)
        assert not words(text) & {"rim", "ring", "thick", "thin", "solid", "solidly", "enhances"}
        assert words(text) & {"no", "not", "neither"}


def test_solid_tumour_has_no_rim_and_no_necrosis():
    for text in wordings(SOLID):
        assert words(text) & {"solid", "solidly"}
        assert not words(text) & {"rim", "ring", "thick", "thin"}
        about = [s for s in text.split(". ") if "necrosis" in s.lower()]
        assert about
        assert all(words(s) & {"no", "not"} for s in about)


def test_contrast_is_that_of_mri(sharp, phantoms):
    for phantom in [*sharp, *phantoms]:
        label = phantom.label
        healthy = (phantom.image[0] > 0) & (label == 0)
        scans = dict(zip(SEQUENCES, phantom.image, strict=True))
        scans = {name: scan / np.median(scan[healthy]) for name, scan in scans.items()}

        assert np.median(scans["t1"][label > 0]) < 0.9
        assert np.median(scans["t2"][label == 2]) > 1.3
        assert np.median(scans["flair"][label == 2]) > 1.3
        if phantom.facts.enhancing:
            assert np.median(scans["t1ce"][label == 4]) > 1.3
        else:
            assert np.median(scans["t1ce"][core_of(label)]) < 0.9

        fluid = healthy & (scans["t2"] > np.percentile(scans["t2"][healthy], 98))
        assert np.median(scans["t1"][fluid]) < 0.85
        assert np.median(scans["flair"][fluid]) < 0.85
        # White matter is brighter than grey on T1 and darker on T2.
        assert np.corrcoef(scans["t1"][healthy], scans["t2"][healthy])[0, 1] < -0.4


def test_vessels_are_bright_after_contrast_and_are_not_tumour(sharp):
    for phantom in sharp:
        healthy = (phantom.image[0] > 0) & (phantom.label == 0)
        before, after = (scan / np.median(scan[healthy]) for scan in phantom.image[:2])
        away = ~ndimage.binary_dilation(phantom.label > 0, iterations=2)
        bright = healthy & away & (after > before + 0.35)
        assert 10 < bright.sum() < 0.02 * healthy.sum()


def test_scanner_gain_varies(phantoms):
    peaks = np.array([p.image.max(axis=(1, 2, 3)) for p in phantoms])
    assert peaks.min() >= 254
    assert peaks.max() <= 32767
    assert peaks.max() > 10 * peaks.min()


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
