"""Mirrors clipseg3d/inference/postprocessing_tuning.py: the best thresholds are learned."""

import nibabel as nib
import numpy as np
import pytest

from clipseg3d.data.cases import DataError
from clipseg3d.data.label_pairs import LabelPair, find_references
from clipseg3d.data.releases import BRATS_2020
from clipseg3d.inference.postprocessing import PostProcessing
from clipseg3d.inference.postprocessing_tuning import (
    THRESHOLDS_ML,
    read_validation,
    tune_postprocessing,
)

SHAPE = (60, 50, 40)
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


def read(folder, root):
    references, release = find_references(root, "brats2020")
    return read_validation(folder, references, release)


def tumour(shift=0):
    label = np.zeros(SHAPE, np.uint8)
    label[5 + shift : 35 + shift, 5:35, 5:35] = 2
    label[10:30, 10:30, 10:30] = 1
    label[15:25, 15:25, 15:25] = 4
    return label


def tune(*pairs, spacing_mm=1.0):
    masks = [[BRATS_2020.to_regions(label) for label in pair] for pair in pairs]
    return tune_postprocessing(LabelPair(*pair, (spacing_mm,) * 3) for pair in masks)


def test_perfect_predictions_need_no_rule():
    tuned = tune((tumour(), tumour()), (tumour(3), tumour(3)))
    assert tuned.rules.describe() == "none"
    assert tuned.before == tuned.after == {"WT": 1, "TC": 1, "ET": 1}
    assert tuned.num_cases == 2


def test_false_parts_are_removed_by_the_smallest_threshold_that_does():
    result = tumour()
    result[50:55, 40:45, 30:32] = 2  # 50 voxels
    result[50:53, 10:12, 30:32] = 2  # 12 voxels
    tuned = tune((result, tumour()))
    # 50 voxels are gone below 100, the next of 0, 10, 20, 50, 100
    assert tuned.rules.small_components == {"WT": 100, "TC": 0, "ET": 0}
    assert tuned.rules.enhancing_to_core == 0
    assert tuned.after == {"WT": 1, "TC": 1, "ET": 1}
    assert tuned.before["WT"] == pytest.approx(2 * 27000 / (2 * 27000 + 62))


def test_true_parts_are_kept_even_where_false_ones_are_smaller():
    expected = tumour()
    expected[50:55, 40:45, 30:32] = 2  # a true part of 50 voxels
    result = expected.copy()
    result[50:53, 10:12, 30:32] = 2  # a false positive of 12
    assert tune((result, expected)).rules.small_components["WT"] == 20


def test_a_few_false_enhancing_voxels_become_core_by_the_rule_for_empty_masks():
    expected = tumour()
    expected[expected == 4] = 1  # does not enhance: Dice of ET is 1 only if none is found
    result = expected.copy()
    result[15:18, 15:17, 15:17] = 4  # 12 voxels in one piece
    result[20:22, 20:24, 20:22] = 4  # 16 in another
    tuned = tune((result, expected))
    assert tuned.before["ET"] == 0
    assert tuned.after["ET"] == 1
    # parts come first: both are below 20
    assert tuned.rules.small_components["ET"] == 20
    assert tuned.rules.enhancing_to_core == 0

    keeps = tumour()
    keeps[keeps == 4] = 1
    keeps[15:17, 15:17, 15:17] = keeps[20:22, 20:22, 20:22] = 4  # true parts of 8, 16 in all
    for z in range(15, 25, 3):
        keeps[28, 28, z] = 4  # and single ones, 20 in all
    scattered = expected.copy()
    for x in range(11, 29, 2):
        scattered[x, 11, 11] = 4  # 9 false positives, each on its own
    tuned = tune((keeps, keeps), (keeps, keeps), (keeps, keeps), (scattered, expected))
    assert tuned.rules.small_components["ET"] == 0  # true single voxels would be lost
    assert tuned.rules.enhancing_to_core == 10
    assert tuned.after == {"WT": 1, "TC": 1, "ET": 1}


def test_holes_are_filled():
    result = tumour()
    result[20:23, 20:23, 20:22] = 2  # a hole of 18 voxels in the core
    result[7, 7, 7] = 0  # one of 1 voxel in the whole tumour
    expected = tumour()
    expected[20:23, 20:23, 20:22] = 1
    tuned = tune((result, expected))
    assert tuned.rules.holes == {"WT": 10, "TC": 20}
    assert tuned.after == {"WT": 1, "TC": 1, "ET": 1}


def test_thresholds_are_volumes_in_voxels_of_the_cases():
    result = tumour()
    result[50:55, 40:45, 30:32] = 2
    tuned = tune((result, tumour()), spacing_mm=2.0)
    assert tuned.rules.small_components["WT"] == round(0.5 * 1000 / 8)
    assert tuned.rules.spacing_mm == 2.0
    assert 0 in THRESHOLDS_ML


def test_rules_do_the_same_to_volumes_as_to_crops():
    rng = np.random.default_rng(0)
    pairs = []
    for shift in range(3):
        result = tumour(shift)
        result[rng.random(SHAPE) > 0.998] = 4
        result[rng.random(SHAPE) > 0.998] = 0
        pairs.append((result, tumour(shift)))
    tuned = tune(*pairs)
    assert tuned.rules.describe() != "none"
    scores = []
    for result, expected in pairs:
        masks = tuned.rules(BRATS_2020.to_regions(result))
        truth = BRATS_2020.to_regions(expected)
        scores.append(
            2
            * (masks & truth).sum(axis=(1, 2, 3))
            / (masks.sum(axis=(1, 2, 3)) + truth.sum(axis=(1, 2, 3)))
        )
    np.testing.assert_allclose(list(tuned.after.values()), np.mean(scores, axis=0))
    assert sum(tuned.after.values()) > sum(tuned.before.values())


def test_empty_masks_are_no_trouble():
    nothing = np.zeros(SHAPE, np.uint8)
    assert tune((nothing, nothing)).after == {"WT": 1, "TC": 1, "ET": 1}
    assert tune((nothing, tumour())).after == {"WT": 0, "TC": 0, "ET": 0}
    with pytest.raises(ValueError, match="no case to learn from"):
        tune()


def write(path, label, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(label, affine), path)


@pytest.fixture
def folders(tmp_path):
    """Predictions of two cases, and a data set of three."""
    for number in range(1, 4):
        name = f"BraTS20_Training_{number:03d}"
        for suffix in ("t1", "t1ce", "t2", "flair"):
            write(tmp_path / "root" / name / f"{name}_{suffix}.nii.gz", 7 + tumour())
        write(tmp_path / "root" / name / f"{name}_seg.nii.gz", tumour())
        if number < 3:
            write(tmp_path / "found" / f"{name}.nii.gz", tumour(number))
    return tmp_path / "found", tmp_path / "root"


def test_predictions_meet_their_references(folders):
    pairs = list(read(*folders))
    assert len(pairs) == 2
    for number, pair in enumerate(pairs, start=1):
        np.testing.assert_array_equal(pair.prediction, BRATS_2020.to_regions(tumour(number)))
        np.testing.assert_array_equal(pair.reference, BRATS_2020.to_regions(tumour()))
    assert isinstance(tune_postprocessing(pairs).rules, PostProcessing)


def test_faulty_predictions_are_all_named(folders):
    result, root = folders
    write(result / "BraTS20_Training_001.nii.gz", tumour()[:-1])
    write(result / "BraTS20_Training_002.nii.gz", np.full(SHAPE, 0.5, np.float32))
    write(result / "BraTS20_Training_003.nii.gz", np.full(SHAPE, 3, np.uint8))
    write(result / "BraTS20_Training_004.nii.gz", tumour())
    with pytest.raises(DataError) as error:
        tune_postprocessing(read(result, root))
    extra, first, second, third = error.value.faults
    assert "004.nii.gz: has no reference; name it" in extra
    assert "001.nii.gz: shape 59x50x40 differs from 60x50x40" in first
    assert "002.nii.gz: holds 0.5, no whole number" in second
    assert "003.nii.gz: holds label 3, but brats2020 has 0, 1, 2, 4" in third


@pytest.mark.parametrize(("sizes", "shown"), [((2, 2, 2), "2x2x2"), ((1, 1, 2), "1x1x2")])
def test_cases_of_two_voxel_sizes_are_refused(folders, sizes, shown):
    result, root = folders
    name = "BraTS20_Training_002"
    for path in [*(root / name).iterdir(), result / f"{name}.nii.gz"]:
        write(path, np.asanyarray(nib.load(path).dataobj), np.diag([*sizes, 1.0]))
    with pytest.raises(DataError, match=rf"002\.nii\.gz: voxels of {shown} mm, expected 1 mm"):
        tune_postprocessing(read(result, root))


def test_folders_without_a_pair_are_named(folders, tmp_path):
    result, root = folders
    with pytest.raises(FileNotFoundError, match="gone: no such folder"):
        list(read(tmp_path / "gone", root))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty: holds no segmentation"):
        list(read(tmp_path / "empty", root))
    with pytest.raises(FileNotFoundError, match=r"empty: "):
        list(read(result, tmp_path / "empty"))
