"""Mirrors clipseg3d/inference/prompting.py."""

import numpy as np
import pytest
import torch

from clipseg3d.blocks.prompt_head import PICKS, PromptHead, PromptReading
from clipseg3d.data.scan_grid import ScanGrid
from clipseg3d.inference.prompting import (
    MAX_CHARACTERS,
    ReadPrompt,
    answer_prompt,
    check_prompts,
)

SHAPE = (14, 11, 9)
GRID = ScanGrid(SHAPE, np.diag([-1.0, -1, 1, 1]), tuple((0, side) for side in SHAPE))  # LPS
EVERYWHERE, LEFT = [4.0, *[0.0] * 9], [0.0, 20.0, *[0.0] * 8]
"""Functions of the position: no place, and the patient's left half."""


def reading(*, weights=(1, 0, 0), place=EVERYWHERE, presence=6.0, pick="all"):
    pick_logits = torch.tensor([[[4.0 * (name == pick) for name in PICKS]]])
    return PromptReading(
        torch.tensor([[list(map(float, weights))]]),
        torch.tensor([[place]]),
        torch.tensor([[presence]]),
        pick_logits,
        torch.zeros(1, 1),
    )


def ask(regions, *readings, text="it"):
    heads = tuple((PromptHead(4, 3), one) for one in readings)
    return answer_prompt(ReadPrompt(text, heads, ""), regions, GRID)


@pytest.fixture
def regions():
    """Two lesions, the larger one on the right; in each, core and enhancing tumour."""
    masks = np.zeros((3, *SHAPE), bool)
    masks[0, 1:6, 2:7, 3:8] = masks[0, 10:13, 4:8, 1:4] = True
    masks[1, 2:5, 3:6, 4:7] = masks[1, 10:12, 5:7, 1:3] = True
    masks[2, 2:4, 3:5, 4:6] = masks[2, 11, 5, 1] = True
    return masks


def test_the_mask_is_the_mixture_of_regions(regions):
    whole, core, enhancing = regions
    for weights, expected in (
        ((1, 0, 0), whole),
        ((0, 0, 1), enhancing),
        ((1, -1, 0), whole & ~core),
        ((0, 1, -1), core & ~enhancing),
        ((-1, 0, 0), np.zeros_like(whole)),
    ):
        result = ask(regions, reading(weights=weights))
        np.testing.assert_array_equal(result.mask, expected)
        assert result.found == expected.any()
        assert result.volume_ml == pytest.approx(expected.sum() / 1000)


def test_a_place_is_one_of_the_brain_box_not_of_the_tumour(regions):
    left = np.arange(SHAPE[0])[:, None, None] >= SHAPE[0] / 2
    result = ask(regions, reading(place=LEFT))
    np.testing.assert_array_equal(result.mask, regions[0] & left)
    regions[:, 10:13] = False  # what is left of the tumour lies on the right
    assert not ask(regions, reading(place=LEFT)).found


def test_presence_is_the_largest_probability(regions):
    score = ask(regions, reading(weights=(0.9, 0, 0), presence=1.0)).presence
    expected = torch.tensor(1.0).sigmoid() * 0.9 * torch.tensor(4.0).sigmoid()
    assert score == pytest.approx(float(expected), abs=1e-6)
    doubtful = ask(regions, reading(weights=(0.9, 0, 0), presence=0.0))
    assert 0.43 < doubtful.presence < 0.45
    assert not doubtful.found
    absent = ask(regions, reading(presence=-3.0))
    assert not absent.found
    assert absent.presence == pytest.approx(float(torch.tensor([-3.0, 4.0]).sigmoid().prod()))


@pytest.mark.parametrize(("pick", "inside"), [("largest", slice(0, 7)), ("smallest", slice(7, 14))])
def test_one_of_several_parts_is_picked_by_volume(regions, pick, inside):
    expected = np.zeros(SHAPE, bool)
    expected[inside] = regions[0, inside]
    np.testing.assert_array_equal(ask(regions, reading(pick=pick)).mask, expected)


def test_voxels_that_share_a_corner_are_one_part(regions):
    regions[:] = False
    regions[0, 3:5, 3:5, 3:5] = regions[0, 5, 5, 5] = True
    for pick in PICKS:
        np.testing.assert_array_equal(ask(regions, reading(pick=pick)).mask, regions[0])


def test_an_ensemble_averages_probabilities(regions):
    sure, doubting = reading(presence=10.0), reading(presence=-1.0)
    result = ask(regions, sure, doubting)
    each = [ask(regions, one).presence for one in (sure, doubting)]
    assert each[1] < 0.5 < np.mean(each)
    assert result.presence == pytest.approx(np.mean(each), abs=1e-6)
    np.testing.assert_array_equal(result.mask, regions[0])


def test_an_ensemble_picks_by_mean_probability(regions):
    torn = reading(pick="all")._replace(pick=torch.tensor([[[0.1, 0.0, 0.0]]]))
    result = ask(regions, torn, reading(pick="smallest"))
    assert result.mask[7:].any()
    assert not result.mask[:7].any()


def test_without_regions_nothing_is_found():
    result = ask(np.zeros((3, *SHAPE), bool), reading())
    assert (result.found, result.presence, result.volume_ml) == (False, 0.0, 0.0)
    assert result.mask.shape == SHAPE


def test_prompts_are_cleaned_and_asked_once():
    asked = check_prompts([" the  rim\n", "the rim", "The rim", "左侧额叶的水肿"])
    assert asked == ("the rim", "The rim", "左侧额叶的水肿")
    assert check_prompts([]) == ()
    assert check_prompts(["x" * MAX_CHARACTERS]) == ("x" * MAX_CHARACTERS,)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([""], "prompt '' is empty; write what to segment"),
        (["fine", " \t\n "], r"prompt ' \\t\\n ' is empty"),
        (
            ["rim " * 10_000],
            r"'rim rim .*\.\.\.' has 39999 characters, and 1000 are the most",
        ),
        ("the rim", "prompts='the rim' is one str; give a list of prompts"),
        ([7], "a prompt is a int, 7; give a text"),
        ([None], "a prompt is a NoneType"),
        (["rim \ud800"], r"prompt 'rim \\ud800' holds half a surrogate pair"),
    ],
)
def test_what_is_no_prompt_is_refused(prompts, message):
    with pytest.raises(ValueError, match=message) as error:
        check_prompts(prompts)
    assert len(str(error.value)) < 300
