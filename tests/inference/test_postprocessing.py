"""Mirrors clipseg3d/inference/postprocessing.py: each rule on masks made by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from clipseg3d.data.releases import BRATS_2020
from clipseg3d.inference import postprocessing
from clipseg3d.inference.postprocessing import PostProcessing

SHAPE = (12, 11, 13)
WT, TC, ET = range(3)
MM = (1.0, 1.0, 1.0)
"""Voxel size: 1000 voxels are 1 ml."""


def apply_rule(masks, rule, region, voxels):
    """Apply a rule with thresholds in voxels of 1 ml."""
    return postprocessing.apply_rule(masks, rule, region, voxels, voxel_ml=1.0)


def nested(whole=(), core=(), enhancing=()):
    """Return nested masks of boxes, each (x, y, z, side) or ((x, to_x), (y, to_y), (z, to_z))."""
    masks = np.zeros((3, *SHAPE), bool)
    for index, boxes in enumerate((whole, core, enhancing)):
        for x, y, z, side in boxes:
            masks[: index + 1, x : x + side, y : y + side, z : z + side] = True
    return masks


def test_small_components_go_and_large_ones_stay():
    masks = nested(whole=[(0, 0, 0, 4), (8, 8, 8, 2)])  # of 64 and 8 voxels
    for threshold, left in ((0, 72), (8, 72), (9, 64), (64, 64), (65, 0)):
        (result,) = apply_rule(masks, "small_components", "WT", (threshold,))
        assert result[WT].sum() == left
    assert masks[WT].sum() == 72  # the input is left alone


def test_components_below_a_share_of_the_largest_go():
    masks = nested(whole=[(0, 0, 0, 4), (0, 0, 6, 3), (8, 8, 8, 2)])  # of 64, 27 and 8 voxels
    for share, left in ((0, 99), (0.125, 99), (0.13, 91), (27 / 64, 91), (0.43, 64), (1, 64)):
        (result,) = apply_rule(masks, "relative_components", "WT", (share,))
        assert result[WT].sum() == left
    for masks in (np.zeros((3, *SHAPE), bool), nested(whole=[(0, 0, 0, 1)])):
        (result,) = apply_rule(masks, "relative_components", "WT", (1,))
        np.testing.assert_array_equal(result, masks)


def test_the_relative_rule_measures_each_region_by_its_own_largest_component():
    # WT of 125 and 64 voxels, TC of 8 in the first and 27 in the second, ET of 1 in each
    masks = nested(
        whole=[(0, 0, 0, 5), (7, 6, 7, 4)],
        core=[(1, 1, 1, 2), (7, 6, 7, 3)],
        enhancing=[(1, 1, 1, 1), (7, 6, 7, 1)],
    )

    def sums(**shares):
        rules = PostProcessing(relative_components=shares)
        return rules(masks, spacing_mm=MM).sum(axis=(1, 2, 3)).tolist()

    assert sums(WT=0.5) == [189, 35, 2]
    # 64 of 125 voxels: gone, with the core and the enhancing tumour inside
    assert sums(WT=0.6) == [125, 8, 1]
    # 8 of 27: the oedema around stays
    assert sums(TC=0.3) == [189, 27, 1]
    # once WT has taken the larger core away, the smaller one is the largest
    assert sums(TC=0.3, WT=0.6) == sums(WT=0.6, TC=0.3) == [125, 8, 1]
    assert sums(ET=1.0) == [189, 35, 2]


def test_a_rule_for_a_region_that_the_release_has_not_is_refused():
    with pytest.raises(ValueError, match="holes: brats2020 has no region 'RC', but WT, TC, ET"):
        PostProcessing(holes={"RC": 1})(nested(), BRATS_2020, spacing_mm=MM)
    assert not PostProcessing(holes={"RC": 0})(nested(), BRATS_2020, spacing_mm=MM).any()


def test_parts_that_touch_by_a_corner_are_one():
    masks = nested(whole=[(0, 0, 0, 2), (2, 2, 2, 2)])
    (result,) = apply_rule(masks, "small_components", "WT", (9,))
    assert result[WT].sum() == 16


def test_what_lies_within_a_removed_part_goes_too_and_what_is_around_stays():
    masks = nested(whole=[(0, 0, 0, 5)], core=[(1, 1, 1, 2)], enhancing=[(1, 1, 1, 1)])
    (result,) = apply_rule(masks, "small_components", "TC", (10,))
    assert [int(mask.sum()) for mask in result] == [125, 0, 0]
    (result,) = apply_rule(masks, "small_components", "WT", (126,))
    assert not result.any()
    (result,) = apply_rule(masks, "small_components", "ET", (2,))
    assert [int(mask.sum()) for mask in result] == [125, 8, 0]


def test_little_enhancing_tumour_in_all_becomes_core():
    masks = nested(core=[(0, 0, 0, 4)], enhancing=[(0, 0, 0, 1), (3, 3, 3, 1)])
    for threshold, left in ((2, 2), (3, 0)):
        (result,) = apply_rule(masks, "enhancing_to_core", "ET", (threshold,))
        assert [int(mask.sum()) for mask in result] == [64, 64, left]


def test_enclosed_holes_are_filled_up_to_their_size():
    masks = nested(whole=[(0, 0, 0, 9)], core=[(1, 1, 1, 7)])
    masks[TC, 3:5, 3:5, 3:5] = False  # 8 voxels of oedema in the core
    masks[:, 6, 6, 6] = False  # 1 voxel of nothing
    for threshold, filled in ((1, 0), (2, 1), (8, 1), (9, 9)):
        (result,) = apply_rule(masks, "holes", "TC", (threshold,))
        assert result[TC].sum() - masks[TC].sum() == filled
        assert result[WT].sum() - masks[WT].sum() == min(filled, 1)  # nested
        assert not result[ET].any()


def test_a_dent_and_a_tunnel_to_the_border_are_no_holes():
    masks = nested(whole=[(0, 0, 0, 9)])
    masks[:, 0, 4, 4] = False  # at the border of the volume
    masks[:, 5, 5, 6:9] = False  # open at the end
    masks[:, 3, 3, 3] = masks[:, 4, 4, 4] = False  # two holes, not one: faces count for holes
    (result,) = apply_rule(masks, "holes", "WT", (2,))
    assert result[WT].sum() - masks[WT].sum() == 2
    (result,) = apply_rule(masks, "holes", "WT", (10**9,))
    assert result[WT].sum() - masks[WT].sum() == 2


def test_a_full_and_an_empty_mask_are_fine():
    for masks in (np.ones((3, *SHAPE), bool), np.zeros((3, *SHAPE), bool)):
        rules = PostProcessing(
            relative_components={"WT": 0.5, "TC": 0.5, "ET": 0.5},
            small_components={"WT": 0.005, "TC": 0.005, "ET": 0.005},
            enhancing_to_core=0.005,
            holes={"WT": 0.005, "TC": 0.005},
        )
        np.testing.assert_array_equal(rules(masks, spacing_mm=MM), masks)


def test_thresholds_are_tried_at_once():
    masks = nested(whole=[(0, 0, 0, 4), (8, 8, 8, 2)], core=[(8, 8, 8, 1)])
    for rule, region in (("small_components", "WT"), ("holes", "WT"), ("enhancing_to_core", "ET")):
        together = apply_rule(masks, rule, region, (0, 1, 9, 100))
        for threshold, result in zip((0, 1, 9, 100), together, strict=True):
            (alone,) = apply_rule(masks, rule, region, (threshold,))
            np.testing.assert_array_equal(result, alone)


def test_rules_are_applied_in_order():
    # the stray enhancing voxel goes first; what is left is too little to enhance
    masks = nested(
        whole=[(0, 0, 0, 6)], core=[(1, 1, 1, 4)], enhancing=[(1, 1, 1, 2), (4, 4, 4, 1)]
    )
    rules = PostProcessing(small_components={"ET": 0.002}, enhancing_to_core=0.009)
    assert not rules(masks, spacing_mm=MM)[ET].any()
    assert rules(masks, spacing_mm=MM)[TC].sum() == 64
    assert PostProcessing(enhancing_to_core=0.009)(masks, spacing_mm=MM)[ET].sum() == 9


def test_rules_survive_a_file(tmp_path):
    rules = PostProcessing(
        relative_components={"WT": 0.1},
        small_components={"WT": 0.32, "ET": 0},
        enhancing_to_core=0.5,
        holes={"TC": 0.056},
    )
    path = tmp_path / "new" / "rules.json"
    rules.save(path, learned={"cases": 3})
    assert PostProcessing.read(path) == rules
    assert json.loads(path.read_text())["learned"] == {"cases": 3}
    assert [p.name for p in path.parent.iterdir()] == ["rules.json"]
    assert rules.describe() == (
        "components of WT under 0.1 of its largest removed, components of WT under 0.32 ml "
        "removed, ET under 0.5 ml in all counted as core, holes of TC under 0.056 ml filled"
    )
    assert PostProcessing().describe() == "none"
    assert PostProcessing.from_values(rules.values()).values() == {
        "relative_components": {"WT": 0.1},
        "small_components": {"WT": 0.32},
        "enhancing_to_core": 0.5,
        "holes": {"TC": 0.056},
    }
    assert PostProcessing(small_components={"WT": 0}).values() == {}


def test_a_file_that_counted_voxels_is_read_in_ml(tmp_path):
    path = tmp_path / "rules.json"
    content = {"spacing_mm": 2.0, "small_components": {"WT": 40, "ET": 0}, "enhancing_to_core": 25}
    path.write_text(json.dumps({**content, "holes": {"TC": 7}, "learned": {"cases": 3}}))
    assert PostProcessing.read(path) == PostProcessing(
        small_components={"WT": 0.32, "ET": 0}, enhancing_to_core=0.2, holes={"TC": 0.056}
    )
    masks = nested(whole=[(0, 0, 0, 4), (8, 8, 8, 2)])
    path.write_text(json.dumps({"spacing_mm": 1.0, "small_components": {"WT": 8}}))
    assert PostProcessing.read(path)(masks, spacing_mm=MM)[WT].sum() == 72  # as it was: < 8
    path.write_text(json.dumps({"spacing_mm": 1.0, "small_components": {"WT": 9}}))
    assert PostProcessing.read(path)(masks, spacing_mm=MM)[WT].sum() == 64


@pytest.mark.parametrize("rule", ["small_components", "enhancing_to_core", "holes"])
@pytest.mark.parametrize(
    ("threshold_ml", "changes"), [(0.063, False), (0.064, False), (0.065, True)]
)
def test_thresholds_in_ml_decide_alike_at_any_voxel_size(rule, threshold_ml, changes):
    for side_mm in (1, 2):
        width = 4 // side_mm  # a lesion or a hole of 0.064 ml
        masks = nested(enhancing=[(2, 2, 2, width)])
        if rule == "holes":
            masks = nested(whole=[(1, 1, 1, width + 2)])
            masks[:, 2 : width + 2, 2 : width + 2, 2 : width + 2] = False
        thresholds = threshold_ml if rule == "enhancing_to_core" else {"WT": threshold_ml}
        rules = PostProcessing(**{rule: thresholds})
        assert (rules(masks, spacing_mm=(side_mm,) * 3) != masks).any() == changes


def test_a_voxel_size_with_a_rounding_error_changes_no_decision():
    masks = nested(whole=[(0, 0, 0, 5)])
    rules = PostProcessing(small_components={"WT": 0.125})
    spacing_mm = (float(np.nextafter(np.float32(1), np.float32(0))),) * 3
    assert rules(masks, spacing_mm=spacing_mm)[WT].sum() == 125


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[1]", "not rules of post-processing"),
        ('{"spacing_mm": 1.0, "small_parts": {}}', "unknown rule 'small_parts'; choose from rel"),
        ('{"small_components": 3}', "3 does not say which region it is for; give region ->"),
        ('{"small_components": {"WT": "1"}}', "'1' is not a volume in ml; give a number from 0"),
        ('{"small_components": {"WT": true}}', "True is not a volume in ml"),
        ('{"holes": {"WT": NaN}}', "nan is not a volume in ml"),
        ('{"enhancing_to_core": -1}', "enhancing_to_core of ET: -1 is not a volume in ml"),
        ('{"enhancing_to_core": {"ET": 1}}', "is not a volume in ml"),
        ('{"relative_components": {"WT": 1.5}}', "1.5 is not a share; give a number from 0 to 1"),
        ('{"spacing_mm": 1e300, "holes": {"WT": 1}}', "spacing_mm=1e.300 is not a voxel size"),
        (f'{{"spacing_mm": 1, "holes": {{"WT": 1{"0" * 400}}}}}', "is not a number of voxels"),
        (f'{{"holes": {{"WT": 1{"0" * 400}}}}}', "is not a volume in ml"),
        ('{"spacing_mm": "1 mm"}', "spacing_mm='1 mm' is not a voxel size"),
        ('{"spacing_mm": 0}', "spacing_mm=0 is not a voxel size"),
        ('{"spacing_mm": 1, "holes": {"ET": 3}}', "not for region 'ET', whose holes are"),
        ('{"spacing_mm": 1, "small_components": {"WT": 2.5}}', "2.5 is not a number of voxels"),
        ('{"spacing_mm": 1, "enhancing_to_core": -1}', "-1 is not a number of voxels"),
        ("{", "not valid JSON"),
    ],
)
def test_a_file_that_holds_no_rules_is_refused(tmp_path, content, reason):
    path = tmp_path / "rules.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=reason) as error:
        PostProcessing.read(path)
    assert str(error.value).startswith(f"{path}: ")


def test_rules_are_saved_completely_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "rules.json"
    PostProcessing().save(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"rules\.txt: does not end in \.json; rename it"):
        PostProcessing().save(tmp_path / "rules.txt")

    def fill_the_disk(self, *args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fill_the_disk)
    with pytest.raises(OSError, match=r"rules\.json: cannot be written \(No space left on dev"):
        PostProcessing(enhancing_to_core=1).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["rules.json"]
