"""Mirrors clipseg3d/metrics/region_scores.py."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from clipseg3d.metrics.protocols import PROTOCOLS, SCORES, get_protocol
from clipseg3d.metrics.region_scores import score_case, score_region

SHAPE = (16, 15, 14)
BOX = np.zeros(SHAPE, bool)
BOX[3:8, 4:9, 5:10] = True
EMPTY = np.zeros(SHAPE, bool)
SMALL = np.zeros(SHAPE, bool)
SMALL[1, 1, 1:4] = True
EMPTY_40 = np.zeros((40, 12, 12), bool)


def test_the_golden_table(golden):
    expected = {
        False: [
            "0.92961 2.000 0.46667 188",
            "0.87273 44.011 0.44444 188",
            "0.72202 52.962 0.40000 188",
        ],
        True: ["0.31111 250", "0.29630 250", "0.26667 250"],
    }
    for extra, rows in expected.items():
        for prediction, reference, row in zip(*golden[extra], rows, strict=True):
            one = score_region(prediction, reference, protocol=get_protocol("brats2023"))
            lesion = f"{one['lesion_dice']:.5f} {one['lesion_hd95_mm']:g}"
            voxelwise = f"{one['dice']:.5f} {one['hd95_mm']:.3f} "
            assert (lesion if extra else voxelwise + lesion) == row


@pytest.mark.parametrize(
    ("protocol", "both", "penalty", "sensitivity"),
    [
        ("brats2020", [1, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1], 373.1287, 0),
        ("brats2023", [1, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1], 374, 0),
        ("nan", [*[math.nan] * 7, 0, 0, 0, math.nan], 373, math.nan),
    ],
)
def test_empty_masks(protocol, both, penalty, sensitivity):
    rules = get_protocol(protocol)
    result = score_region(EMPTY, EMPTY, protocol=rules)
    assert list(result) == list(SCORES)
    assert list(result.values()) == pytest.approx(both, nan_ok=True)
    specificity = 1 - BOX.sum() / BOX.size
    result = score_region(BOX, EMPTY, protocol=rules)
    expected = [0, penalty, sensitivity, specificity, 0, 0, penalty, 0, 1, 0, 0]
    assert list(result.values()) == pytest.approx(expected, abs=5e-5, nan_ok=True)
    result = score_region(EMPTY, BOX, protocol=rules)
    expected = [0, penalty, 0, 1, 0, 0, penalty, 0, 0, 1, 0]
    assert list(result.values()) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_perfect_prediction(protocol):
    result = score_region(BOX, BOX, protocol=get_protocol(protocol))
    expected = {name: float(not name.endswith(("_mm", "fp", "fn"))) for name in result}
    assert result == expected


@pytest.mark.parametrize(("protocol", "expected"), [("brats2023", [1, 0]), ("nan", [math.nan] * 2)])
def test_lesions_that_are_too_small_to_count(protocol, expected):
    result = score_region(SMALL, SMALL, protocol=get_protocol(protocol))
    assert [result["lesion_dice"], result["lesion_hd95_mm"]] == pytest.approx(expected, nan_ok=True)
    assert result["dice"] == 1


def test_the_method_and_the_voxel_size_reach_every_distance():
    moved = np.roll(BOX, 2, axis=0)
    moved[0, 0, 0] = BOX[-1, -1, -1] = False
    rules = get_protocol("brats2023")
    result = score_region(moved, BOX, protocol=rules, spacing_mm=(4, 1, 1))
    assert result["hd95_mm"] == result["lesion_hd95_mm"] == 8
    assert result["nsd"] < score_region(moved, BOX, protocol=rules)["nsd"] < 1
    stray = moved.copy()
    stray[-1, -1, -8:] = True
    by = {m: score_region(stray, BOX, protocol=rules, method=m) for m in ("medpy", "monai")}
    assert by["medpy"]["hd95_mm"] < by["monai"]["hd95_mm"]
    assert score_region(stray, BOX, protocol=get_protocol("nan")) == by["medpy"] | {
        "lesion_hd95_mm": pytest.approx((by["medpy"]["lesion_hd95_mm"] * 2 - 374 + 373) / 2)
    }


def boxes(shape, *slices):
    voxels = np.zeros(shape, bool)
    for one in slices:
        voxels[one] = True
    return voxels


@pytest.mark.parametrize("name", ["brats2023", "brats2024", "brats2026"])
def test_scores_that_need_no_distance_are_the_same_without(monkeypatch, name):
    rng = np.random.default_rng(0)
    prediction, reference = (
        ndimage.binary_dilation(rng.random((24, 24, 24)) > 0.998, iterations=2) for _ in range(2)
    )
    protocol = get_protocol(name)
    wanted = {
        score: value
        for score, value in score_region(prediction, reference, protocol=protocol).items()
        if "hd95" not in score and "nsd" not in score
    }

    def fail(*arguments):
        raise AssertionError("a distance is computed")

    for module in ("region_scores", "lesionwise"):
        monkeypatch.setattr(f"clipseg3d.metrics.{module}.hd95_of_pair", fail)
    fewer = replace(protocol, scores=tuple(wanted))
    assert score_region(prediction, reference, protocol=fewer) == wanted
    assert 0 < wanted["lesion_dice"] < 1


def test_two_empty_masks_in_2024_and_2026():
    result = score_region(EMPTY, EMPTY, protocol=get_protocol("brats2024"))
    assert result == {name: float(not name.endswith(("_mm", "tp", "fp", "fn"))) for name in result}
    result = score_region(EMPTY, EMPTY, protocol=get_protocol("brats2026"))
    assert {name for name, value in result.items() if not math.isnan(value)} == {
        "lesion_tp",
        "lesion_fp",
        "lesion_fn",
    }


def test_one_empty_mask_in_2024_and_2026():
    for release, penalty in (
        ("brats2024_gli", 337),
        ("brats2024_ped", 374),
        ("brats2023_met", math.sqrt(16**2 + 15**2 + 14**2)),
    ):
        result = score_region(
            EMPTY, BOX, protocol=get_protocol("brats2024", release=release), spacing_mm=(2, 1, 1)
        )
        assert result["hd95_mm"] == result["lesion_hd95_mm"] == pytest.approx(penalty)
        assert result["nsd"] == result["lesion_nsd_05"] == 0
    result = score_region(BOX, EMPTY, protocol=get_protocol("brats2026"))
    assert result["hd95_mm"] == result["lesion_hd95_mm"] == 373
    assert result["dice"] == result["lesion_dice"] == result["nsd_05"] == 0


def test_the_golden_case_in_2026(golden):
    """HD95 as medpy, from the table; of two lesions, the large one is found."""
    expected = ["0.92961 2.000", "0.87273 2.000", "0.72202 52.481"]
    dice = [28 / 30, 16 / 18, 8 / 10]  # cubes moved by 2 voxels
    for extra in (False, True):
        for prediction, reference, row, lesion in zip(*golden[extra], expected, dice, strict=True):
            result = score_region(prediction, reference, protocol=get_protocol("brats2026"))
            if not extra:
                assert f"{result['dice']:.5f} {result['hd95_mm']:.3f}" == row
            assert result["lesion_dice"] == pytest.approx(lesion)
            assert result["lesion_hd95_mm"] == 2
            counts = [result[f"lesion_{name}"] for name in ("tp", "fp", "fn", "f1")]
            assert counts == [1, extra, 1, 2 / (4 if extra else 3)]


def test_small_predicted_lesions_are_taken_out_in_2024():
    """21 voxels count, 20 do not, though two parts of 10 do if they are one when dilated."""
    shape = (40, 12, 12)
    true = boxes(shape, np.s_[2:9, 2:5, 2:3])
    rules = get_protocol("brats2024", release="brats2024_gli").for_region("WT")
    clean = score_region(true, true, protocol=rules)
    assert clean["lesion_f1"] == clean["dice"] == 1
    for wrong, count in (
        ((np.s_[20:25, 2:6, 5:6],), 0),  # 20 voxels
        ((np.s_[20:27, 2:5, 5:6],), 1),  # 21 voxels
        ((np.s_[20:25, 2:4, 5:6], np.s_[31:37, 2:4, 5:6]), 1),  # 10 and 12, 6 voxels apart
        ((np.s_[20:25, 2:4, 5:6], np.s_[32:38, 2:4, 5:6]), 0),  # 7 voxels apart
    ):
        result = score_region(true | boxes(shape, *wrong), true, protocol=rules)
        assert result["lesion_fp"] == count
        assert result["lesion_dice"] == 1 / (1 + count)
        assert result["lesion_hd95_mm"] == 337 * count / (1 + count)
        assert (result["dice"] == 1) == (count == 0)
        assert (result["specificity"] == 1) == (count == 0)
    gone = boxes(shape, np.s_[2:7, 2:6, 2:3])
    assert score_region(gone, EMPTY_40, protocol=rules)["dice"] == 1
    men = get_protocol("brats2024", release="brats2023_men").for_region("WT")
    assert score_region(gone, EMPTY_40, protocol=men)["lesion_fp"] == 1


def test_false_positives_are_counted_but_not_scored_in_men_rt():
    rules = get_protocol("brats2024", release="brats2024_men_rt")
    prediction = boxes((40, 12, 12), np.s_[2:7, 2:7, 2:7], np.s_[25:30, 2:7, 2:7])
    reference = boxes((40, 12, 12), np.s_[2:7, 2:7, 2:7])
    result = score_region(prediction, reference, protocol=rules)
    assert (result["lesion_dice"], result["lesion_hd95_mm"], result["lesion_fp"]) == (1, 0, 1)
    result = score_region(prediction, EMPTY_40, protocol=rules)
    assert (result["lesion_dice"], result["lesion_hd95_mm"], result["lesion_f1"]) == (1, 0, 0)


def rings(*, core_between):
    """Two enhancing lesions 11 voxels apart, at the two ends of a core or of none."""
    shape = (40, 12, 12)
    enhancing = boxes(shape, np.s_[5:10, 3:8, 3:8], np.s_[21:26, 3:8, 3:8])
    core = boxes(shape, np.s_[10:21, 4:7, 4:7]) if core_between else np.zeros(shape, bool)
    return np.stack([enhancing | core, enhancing | core, enhancing])


@pytest.mark.parametrize(
    ("release", "core_between", "lesions"),
    [
        ("brats2024_gli", True, 1),
        ("brats2024_gli", False, 2),
        ("brats2023_ssa", True, 1),
        ("brats2023_met", True, 1),
        ("brats2024_ped", True, 2),
    ],
)
def test_enhancing_lesions_at_one_core_are_one_in_2024(release, core_between, lesions):
    reference = rings(core_between=core_between)
    prediction = reference.copy()
    prediction[:, 15:] = False  # without the second enhancing lesion
    options = {"regions": ("WT", "TC", "ET"), "method": None}
    protocol = get_protocol("brats2024", release=release)
    result = score_case(prediction, reference, protocol=protocol, **options)[2]
    assert (result["lesion_tp"], result["lesion_fn"]) == (1, lesions - 1)
    assert result["lesion_dice"] == pytest.approx(2 / 3 if lesions == 1 else 1 / 2)
    alone = score_case(
        prediction[2:], reference[2:], protocol=protocol, regions=("ET",), method=None
    )[0]
    assert alone["lesion_tp"] + alone["lesion_fn"] == 2
    swapped = score_case(reference, prediction, protocol=protocol, **options)[2]
    assert swapped["lesion_fp"] == lesions - 1


def test_enhancing_lesions_at_one_cavity_are_one_in_2024():
    *_, enhancing = rings(core_between=False)
    cavity = boxes(enhancing.shape, np.s_[10:21, 4:7, 4:7])
    reference = np.stack([enhancing, enhancing, enhancing, cavity])
    protocol = get_protocol("brats2024", release="brats2024_gli")
    for count, lesions in ((4, 1), (3, 2)):
        regions = ("WT", "TC", "ET", "RC")[:count]
        masks = reference[:count]
        result = score_case(masks, masks, regions=regions, protocol=protocol)[2]
        assert result["lesion_tp"] == lesions


def test_masks_without_a_common_voxel_get_the_penalty_in_2026():
    reference, beside = boxes(SHAPE, np.s_[3:6, 4, 5]), boxes(SHAPE, np.s_[6:8, 4, 5])
    touching = boxes(SHAPE, np.s_[5:8, 4, 5])
    for prediction, distance in ((beside, 373), (touching, 2)):
        result = score_region(prediction, reference, protocol=get_protocol("brats2026"))
        assert result["hd95_mm"] == distance
        assert result["lesion_hd95_mm"] == distance
    assert score_region(beside, reference, protocol=get_protocol("nan"))["hd95_mm"] < 4


def grow(voxels, times=1):
    return ndimage.binary_dilation(
        voxels, ndimage.generate_binary_structure(3, 2), iterations=times
    )


def lesions_of(mask, rules, *, predicted):
    """The lesions of a region as a list of masks, over the whole volume."""
    grown, count = ndimage.label(grow(mask, rules.dilations), np.ones((3, 3, 3)))
    lesions = [mask & (grown == number) for number in range(1, count + 1)]
    limit = rules.min_lesion_mm3 if predicted else 0
    return [lesion for lesion in lesions if lesion.sum() > limit]


def joined(lesions, others):
    """Lesions that touch the same first lesion of another region become one."""
    groups = {}
    for index, lesion in enumerate(lesions):
        touched = [number for number, other in enumerate(others) if (grow(lesion) & other).any()]
        key = ("by", touched[0]) if touched else ("alone", index)
        groups.setdefault(key, []).append(lesion)
    return [np.any(group, axis=0) for group in groups.values()]


@pytest.mark.parametrize("release", ["brats2024_gli", "brats2023_met"])
def test_random_cases_are_equal_to_the_rules_of_2024_taken_literally(release):
    protocol = get_protocol("brats2024", release=release)
    names, parts = ("WT", "TC", "ET", "RC"), ((1, 2, 3), (1, 3), (3,), (4,))
    seen, joins = set(), 0
    for seed in range(16):
        rng = np.random.default_rng(seed)
        labels = np.zeros((2, 60, 16, 16), np.uint8)
        for _ in range(9):
            start, size = rng.integers((0, 0, 0), (56, 12, 12)), rng.integers(1, 5, 3)
            axis = rng.integers(0, 3)
            for label in rng.permutation([(3, 1, 3, 2), (4, 3, 1, 4), (2, 3, 4, 3)])[0]:
                for side in (0, 1):
                    at = start + rng.integers(0, 2, 3) * (side == 0)
                    if rng.random() < 0.8:
                        labels[side][tuple(map(slice, at, at + size))] = label
                start[axis] += 3
        masks = {n: [np.isin(one, p) for one in labels] for n, p in zip(names, parts, strict=True)}
        result = score_case(
            *(np.stack([masks[name][side] for name in names]) for side in (0, 1)),
            regions=names,
            protocol=protocol,
        )
        masks["NETC"] = [one == 1 for one in labels]
        for name, found in zip(names, result, strict=True):
            rules, sides = protocol.for_region(name), []
            for side in (0, 1):
                lesions = lesions_of(masks[name][side], rules, predicted=side == 0)
                apart = len(lesions)
                for other in rules.joined_by:
                    others = protocol.for_region(other)
                    lesions = joined(
                        lesions, lesions_of(masks[other][side], others, predicted=side == 0)
                    )
                joins += apart - len(lesions)
                sides.append(lesions)
            dice, matched, counts = [], set(), [0, 0]
            for true in sides[1]:
                around = grow(true, rules.dilations)
                own = [i for i, part in enumerate(sides[0]) if (part & around).any()]
                matched.update(own)
                if true.sum() <= rules.min_lesion_mm3:
                    continue
                part = np.any([sides[0][i] for i in own], axis=0) if own else np.zeros_like(true)
                dice.append(2 * (part & true).sum() / (part.sum() + true.sum()))
                counts[not own] += 1
            fp = len(sides[0]) - len(matched)
            total = len(dice) + fp
            assert [found[f"lesion_{n}"] for n in ("tp", "fn", "fp")] == [*counts, fp]
            assert found["lesion_dice"] == pytest.approx(sum(dice) / total if total else 1)
            seen.add((*counts, fp))
    assert len(seen) > 5
    assert joins > 2


def test_metastases_in_2026():
    rules = get_protocol("brats2026", release="brats2023_met")
    result = score_region(BOX | SMALL, BOX, protocol=rules)
    assert result["lesion_dice"] == 0.5
    assert result["lesion_hd95_mm"] == 373 / 2
    assert math.isnan(result["small_lesion_f1"])
    result = score_region(SMALL, SMALL, protocol=rules)
    assert result["small_lesion_tp"] == result["small_lesion_f1"] == result["dice"] == 1
    assert math.isnan(result["lesion_dice"])
    assert math.isnan(result["lesion_f1"])
