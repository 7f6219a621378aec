"""Mirrors clipseg3d/inference/postprocessing_tuning.py: the best thresholds are learned."""

import nibabel as nib
import numpy as np
import pytest

from clipseg3d.data.cases import DataError
from clipseg3d.data.label_pairs import LabelPair, find_references
from clipseg3d.data.releases import BRATS_2020
from clipseg3d.inference.postprocessing import PostProcessing
from clipseg3d.inference.postprocessing_tuning import (
    SHARES,
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


def tune(*pairs, spacing_mm=1.0, **options):
    masks = [[BRATS_2020.to_regions(label) for label in pair] for pair in pairs]
    return tune_postprocessing((LabelPair(*pair, (spacing_mm,) * 3) for pair in masks), **options)


def test_perfect_predictions_need_no_rule():
    tuned = tune((tumour(), tumour()), (tumour(3), tumour(3)))
    assert tuned.rules.describe() == "none"
    assert tuned.before == tuned.after == {"WT": 1, "TC": 1, "ET": 1}
    assert tuned.num_cases == 2


def test_false_parts_are_removed_by_the_smallest_share_that_does():
    result = tumour()
    result[46:56, 40:50, 30:33] = 2  # 300 voxels of 27000, 0.011
    result[50:53, 10:12, 30:32] = 2  # 12 voxels
    tuned = tune((result, tumour()))
    assert tuned.rules.values() == {"relative_components": {"WT": 0.02}}
    assert tuned.after == {"WT": 1, "TC": 1, "ET": 1}


def test_where_no_share_helps_false_parts_are_removed_by_the_smallest_volume_that_does():
    small = np.zeros(SHAPE, np.uint8)
    small[5:9, 5:9, 5:9] = 2  # 64 voxels, and a true part of 58, which every share keeps
    small[20:49, 10:12, 10] = 2
    result = tumour()
    result[50:55, 40:45, 30:32] = 2  # 50 voxels, 0.0019 of 27000
    expected = tumour()
    expected[50:54, 40:45, 0:11] = result[50:54, 40:45, 0:11] = 2  # a true part of 220, 0.008
    tuned = tune((result, expected), (small, small))
    # 50 voxels are gone below 0.1 ml, the next of 0, 0.01, 0.02, 0.05, 0.1, but so are 58 and 64
    assert tuned.rules.values() == {}
    tuned = tune((result, expected))
    assert tuned.rules.small_components == {"WT": 0.1, "TC": 0, "ET": 0}
    assert tuned.rules.relative_components == {"WT": 0, "TC": 0, "ET": 0}
    assert tuned.rules.enhancing_to_core == 0
    assert tuned.after == {"WT": 1, "TC": 1, "ET": 1}
    assert tuned.before["WT"] == pytest.approx(2 * 27220 / (2 * 27220 + 50))


def test_true_parts_are_kept_even_where_false_ones_are_smaller():
    expected = tumour()
    expected[50:55, 40:45, 30:32] = 2  # a true part of 50 voxels
    result = expected.copy()
    result[50:53, 10:12, 30:32] = 2  # a false positive of 12
    assert tune((result, expected)).rules.values() == {"small_components": {"WT": 0.02}}


def test_a_few_false_enhancing_voxels_become_core_by_the_rule_for_empty_masks():
    expected = tumour()
    expected[expected == 4] = 1  # does not enhance: Dice of ET is 1 only if none is found
    result = expected.copy()
    result[15:18, 15:17, 15:17] = 4  # 12 voxels in one piece
    result[20:22, 20:24, 20:22] = 4  # 16 in another
    tuned = tune((result, expected))
    assert tuned.before["ET"] == 0
    assert tuned.after["ET"] == 1
    # parts come first: both are below 20 voxels; a share never removes the largest
    assert tuned.rules.values() == {"small_components": {"ET": 0.02}}

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
    assert tuned.rules.enhancing_to_core == 0.01
    assert tuned.after == {"WT": 1, "TC": 1, "ET": 1}


def test_holes_are_filled():
    result = tumour()
    result[20:23, 20:23, 20:22] = 2  # a hole of 18 voxels in the core
    result[7, 7, 7] = 0  # one of 1 voxel in the whole tumour
    expected = tumour()
    expected[20:23, 20:23, 20:22] = 1
    tuned = tune((result, expected))
    assert tuned.rules.values() == {"holes": {"WT": 0.01, "TC": 0.02}}
    assert tuned.after == {"WT": 1, "TC": 1, "ET": 1}


def test_thresholds_are_volumes_whatever_the_voxels():
    expected = tumour()
    expected[50:55, 40:45, 30:32] = 2  # a true part of 50 voxels, 0.0019 of 27000
    result = expected.copy()
    result[50:53, 10:12, 30:32] = 2  # a false one of 12, 0.096 ml at 2 mm
    assert tune((result, expected), spacing_mm=2.0).rules.values() == {
        "small_components": {"WT": 0.1}
    }
    assert 0 in THRESHOLDS_ML
    assert 0 in SHARES


def test_lesion_wise_scores_choose_what_dice_cannot_see():
    expected = tumour()
    expected[44:59, 35:50, 20:40] = 2  # a second lesion of 4500 voxels, a sixth of the first
    result = expected.copy()
    result[50:55, 5:10, 10:35] = 2  # a false one of 625, which is a third of the lesions
    missing = tumour()
    missing[5:15, 5:35, 5:35] = 0  # of a second case, a third is missed
    fine = tune((result, expected), (missing, tumour()))
    by_lesion = tune((result, expected), (missing, tumour()), criterion="lesion_dice")
    for tuned in (fine, by_lesion):
        assert tuned.rules.values() == {"relative_components": {"WT": 0.05}}
    whole = 31500
    assert fine.before["WT"] == pytest.approx((2 * whole / (2 * whole + 625) + 36 / 45) / 2)
    assert by_lesion.before["WT"] == pytest.approx((2 / 3 + 36 / 45) / 2)
    assert by_lesion.after["WT"] == pytest.approx((1 + 36 / 45) / 2)
    # two fifths of a second lesion are found, beside a larger false one
    expected = tumour()
    expected[46:56, 40:50, 30:40] = 2
    result = tumour()
    result[46:56, 40:44, 30:40] = 2  # 400 of 1000 voxels
    result[44:59, 5:25, 10:12] = 2  # 600
    assert tune((result, expected)).rules.values() == {"relative_components": {"WT": 0.05}}
    tuned = tune((result, expected), criterion="lesion_dice")
    assert tuned.rules.values() == {}  # (1 + 0) / 2 would be less than this
    assert tuned.after["WT"] == pytest.approx((1 + 800 / 1400 + 0) / 3)
    with pytest.raises(ValueError, match="unknown criterion 'nsd': choose one of dice, lesion_d"):
        tune((result, expected), criterion="nsd")


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
        masks = tuned.rules(BRATS_2020.to_regions(result), spacing_mm=(1.0, 1.0, 1.0))
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
