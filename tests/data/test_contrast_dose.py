"""Mirrors clipseg3d/data/contrast_dose.py."""

from dataclasses import replace

import numpy as np
import pytest

from clipseg3d.data.contrast_dose import change_contrast_dose
from clipseg3d.data.releases import (
    BRATS_2018,
    BRATS_2024_GLI,
    BRATS_2024_MEN_RT,
    BRATS_2024_PED,
    PHANTOM,
)

SHAPE = (4, 5, 6)
T1, T1CE = 0, 1


@pytest.fixture
def case():
    """T1ce is 2 T1 + 5 outside a tumour; some background; T1, T1ce, T2, FLAIR."""
    image = np.random.default_rng(0).uniform(10, 20, (4, *SHAPE)).astype(np.float32)
    image[T1CE] = 2 * image[T1] + 5
    image[:, 0, 0] = 0
    label = np.zeros(SHAPE, np.uint8)
    label[1, :3, :3] = 2
    label[2, :3, :3] = 4
    label[3, :2, :3] = 1
    image[T1CE][label == 4] += 30
    return image, label


def faded(case, dose, release=BRATS_2018, **options):
    return change_contrast_dose(*case, release, dose=dose, **options)


def test_the_full_dose_changes_nothing(case):
    image, label = faded(case, 1.0)
    np.testing.assert_array_equal(image, case[0])
    np.testing.assert_array_equal(label, case[1])


def test_without_a_dose_t1ce_is_the_line_of_t1(case):
    image, _ = faded(case, 0.0)
    brain = case[0][T1] > 0
    np.testing.assert_allclose(image[T1CE][brain], 2 * case[0][T1][brain] + 5, rtol=1e-5)


@pytest.mark.parametrize("dose", [0.25, 0.5])
def test_enhancement_is_proportional_to_the_dose(case, dose):
    image, label = faded(case, dose)
    gain = (image[T1CE] - 2 * image[T1] - 5)[case[1] == 4]
    np.testing.assert_allclose(gain, 30 * dose, rtol=1e-4)
    np.testing.assert_array_equal(label, case[1])


def test_only_t1ce_changes_and_background_stays(case):
    before = [array.copy() for array in case]
    image, _ = faded(case, 0.0)
    np.testing.assert_array_equal(np.delete(image, T1CE, 0), np.delete(case[0], T1CE, 0))
    np.testing.assert_array_equal(image == 0, case[0] == 0)
    assert (image.dtype, image.shape) == (np.float32, case[0].shape)
    for array, copy in zip(case, before, strict=True):  # the arguments are left alone
        np.testing.assert_array_equal(array, copy)


def test_no_voxel_becomes_background_where_t1_is_dark(case):
    case[0][T1][3, 0, 0] = 0.01  # the line is far below 0 there
    case[0][T1CE] = np.where(case[0][T1CE] > 0, 8 * case[0][T1] - 70, 0).clip(0)
    case[0][T1CE][3, 0, 0] = 12
    image, _ = faded(case, 0.0)
    assert image[T1CE][case[0][T1CE] > 0].min() > 0


def test_contrast_elsewhere_can_be_kept(case):
    case[0][T1CE][3, 4, 5] += 40  # a vessel
    everywhere, _ = faded(case, 0.0)
    image, _ = faded(case, 0.0, within="WT")
    outside = case[1] == 0
    np.testing.assert_array_equal(image[:, outside], case[0][:, outside])
    np.testing.assert_array_equal(image[:, ~outside], everywhere[:, ~outside])
    assert everywhere[T1CE][3, 4, 5] < case[0][T1CE][3, 4, 5] - 30


@pytest.mark.parametrize(
    ("release", "enhancing", "core"),
    [(BRATS_2018, 4, 1), (PHANTOM, 4, 1), (BRATS_2024_GLI, 3, 1), (BRATS_2024_PED, 1, 2)],
)
def test_without_a_dose_enhancing_tumour_is_core(case, release, enhancing, core):
    image, label = case[0], np.zeros(SHAPE, np.uint8)
    label[1:] = np.random.default_rng(1).choice(release.labels, label[1:].shape)
    _, changed = change_contrast_dose(image, label, release, dose=0.0)
    np.testing.assert_array_equal(changed, np.where(label == enhancing, core, label))
    assert changed.dtype == label.dtype


def test_without_a_core_region_enhancing_tumour_becomes_background(case):
    _, changed = faded(case, 0.0, BRATS_2018.select(regions=["ET"]))
    np.testing.assert_array_equal(changed, np.where(case[1] == 4, 0, case[1]))


def test_sequences_go_by_name(case):
    order = ["flair", "t1ce", "t1"]
    picked = case[0][[3, 1, 0]]
    image, _ = change_contrast_dose(picked, case[1], BRATS_2018.select(sequences=order), dose=0.3)
    np.testing.assert_array_equal(image, faded(case, 0.3)[0][[3, 1, 0]])


def test_scale_and_offset_of_intensities_do_not_matter(case):
    brain = case[0][T1] > 0
    normalised = np.where(brain, case[0] / 7 - 2.3, 0)
    image, _ = change_contrast_dose(normalised, case[1], BRATS_2018, dose=0.4)
    np.testing.assert_allclose(
        image[:, brain], faded(case, 0.4)[0][:, brain] / 7 - 2.3, rtol=1e-4, atol=1e-5
    )


def test_a_simulated_tumour_fades_with_the_dose(phantoms):
    image, label = phantoms[0].image, phantoms[0].label
    healthy, enhancing = image.all(axis=0) & (label == 0), label == 4
    ratios = []
    for dose in (1.0, 0.6, 0.3, 0.0):
        t1ce = change_contrast_dose(image, label, PHANTOM, dose=dose)[0][T1CE]
        ratios.append(np.median(t1ce[enhancing]) / np.median(t1ce[healthy]))
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] > 1.5
    assert ratios[-1] < 1.05


@pytest.mark.parametrize("dose", [-0.1, 1.1, float("nan")])
def test_refuses_doses(case, dose):
    with pytest.raises(ValueError, match="dose="):
        faded(case, dose)


def test_names_what_does_not_fit(case):
    with pytest.raises(ValueError, match="has no t1ce"):
        faded(case, 0.5, BRATS_2018.select(sequences=["t1", "t2"]))
    with pytest.raises(ValueError, match="no region ET"):
        faded(case, 0.5, replace(BRATS_2024_MEN_RT, sequences=BRATS_2018.sequences))
    with pytest.raises(ValueError, match="no region NCR"):
        faded(case, 0.5, within="NCR")
    with pytest.raises(ValueError, match=r"image has shape \(3, 4, 5, 6\)"):
        change_contrast_dose(case[0][:3], case[1], BRATS_2018, dose=0.5)
    with pytest.raises(ValueError, match="missing or constant"):
        change_contrast_dose(case[0] * [[[[0]]], *[[[[1]]]] * 3], case[1], BRATS_2018, dose=0.5)
