"""Mirrors clipseg3d/inference/postprocessing.py: each rule on masks made by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from clipseg3d.inference.postprocessing import PostProcessing, apply_rule

SHAPE = (12, 11, 13)
WT, TC, ET = range(3)


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
            1.0,
            small_components={"WT": 5, "TC": 5, "ET": 5},
            enhancing_to_core=5,
            holes={"WT": 5, "TC": 5},
        )
        np.testing.assert_array_equal(rules(masks), masks)


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
    rules = PostProcessing(1.0, small_components={"ET": 2}, enhancing_to_core=9)
    assert not rules(masks)[ET].any()
    assert rules(masks)[TC].sum() == 64
    assert PostProcessing(1.0, enhancing_to_core=9)(masks)[ET].sum() == 9


def test_rules_survive_a_file(tmp_path):
    rules = PostProcessing(
        2.0, small_components={"WT": 40, "ET": 0}, enhancing_to_core=25, holes={"TC": 7}
    )
    path = tmp_path / "new" / "rules.json"
    rules.save(path, learned={"cases": 3})
    assert PostProcessing.read(path) == rules
    assert json.loads(path.read_text())["learned"] == {"cases": 3}
    assert [p.name for p in path.parent.iterdir()] == ["rules.json"]
    assert rules.describe() == (
        "small components WT < 40 voxels, enhancing to core ET < 25 voxels, holes TC < 7 voxels"
    )
    assert PostProcessing(1.0).describe() == "none"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[1]", "not rules of post-processing"),
        ('{"spacing_mm": 1.0, "small_parts": {}}', "'small_parts'"),
        ('{"small_components": {}}', "spacing_mm"),
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
    PostProcessing(1.0).save(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"rules\.txt: does not end in \.json; rename it"):
        PostProcessing(1.0).save(tmp_path / "rules.txt")

    def fill_the_disk(self, *args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fill_the_disk)
    with pytest.raises(OSError, match=r"rules\.json: cannot be written \(No space left on dev"):
        PostProcessing(2.0).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["rules.json"]
