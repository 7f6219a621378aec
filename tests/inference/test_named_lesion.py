"""Mirrors clipseg3d/inference/named_lesion.py: which of two lesions a report means."""

import numpy as np
import pytest
import torch

from clipseg3d.blocks.prompt_head import PromptReading
from clipseg3d.inference import named_lesion
from clipseg3d.inference.named_lesion import is_left, read_report
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.config import NetworkConfig

SHAPE = (40, 30, 20)
RIGHT, LEFT = (
    (slice(4, 14), slice(10, 20), slice(5, 15)),
    (slice(26, 36), slice(10, 20), slice(5, 15)),
)


def reading(*steepness, several=-3.0):
    """A sentence per number: the log-odds of its place at the left edge of the brain."""
    place = torch.zeros(1, len(steepness), 10)
    place[0, :, 1] = torch.tensor(steepness)
    count = len(steepness)
    return PromptReading(
        torch.ones(1, count, 3),
        place,
        torch.ones(1, count),
        torch.zeros(1, count, 3),
        torch.full((1, count), several),
    )


def find_unnamed(readings, mask, *, side=None, **options):
    """By default, the words say what the readings do."""
    if side is None:
        steepness = np.mean([float(r.place[..., 1].sum()) for r in readings]) if readings else 0
        side = "left" if steepness > 0 else "right"
    return named_lesion.find_unnamed(readings, mask, side=side, **options)


def lesions(*places):
    mask = np.zeros(SHAPE, bool)
    for place in places:
        mask[place] = True
    return mask


@pytest.mark.parametrize(("said", "other"), [(9.0, RIGHT), (-9.0, LEFT)])
def test_of_two_lesions_alike_the_other_is_not_meant(said, other):
    (found,) = find_unnamed([reading(said)], lesions(RIGHT, LEFT))
    np.testing.assert_array_equal(found, lesions(other))
    assert is_left(found) == (other == LEFT)


@pytest.mark.parametrize("side", ["right", "unknown"])
def test_words_and_reading_must_say_the_same(side):
    words = None if side == "unknown" else side
    found = named_lesion.find_unnamed([reading(9.0)], lesions(RIGHT, LEFT), side=words)
    assert found == []


def test_of_a_brain_that_is_cut_off_sides_are_those_of_the_whole():
    """What is right and left of the middle of the scan is left of that of the brain."""
    left_half = np.array([[0.5, 0.0, 0.0], [0.5, 1.0, 1.0]])
    both = lesions(RIGHT, LEFT)
    assert is_left(lesions(RIGHT), left_half)
    assert find_unnamed([reading(9.0)], both, side="left", crop_box=left_half) == []
    assert len(find_unnamed([reading(9.0)], both, side="left")) == 1


def test_sentences_add_up_and_contradictions_cancel():
    both = lesions(RIGHT, LEFT)
    assert find_unnamed([reading(0.0, 0.0)], both) == []
    assert find_unnamed([reading(9.0, -9.0)], both) == []
    assert find_unnamed([reading(1.5)], both) == []  # a weak hint
    assert len(find_unnamed([reading(1.5, 1.5, 0.0)], both)) == 1


def test_all_are_kept_where_the_report_may_speak_of_several():
    both = lesions(RIGHT, LEFT)
    assert len(find_unnamed([reading(9.0, several=-1.0)], both)) == 1
    for several in (0.0, 0.3, 4.0):  # 0: the weights cannot tell
        assert find_unnamed([reading(9.0, several=several)], both) == []
    one_says_so = reading(9.0, 0.0)
    one_says_so.several[0, 1] = 4.0
    assert find_unnamed([one_says_so], both) == []
    assert len(find_unnamed([reading(9.0), reading(9.0, several=0.0)], both)) == 1  # their mean


def test_networks_are_averaged():
    both = lesions(RIGHT, LEFT)
    assert find_unnamed([reading(9.0), reading(-9.0)], both) == []
    assert len(find_unnamed([reading(9.0), reading(0.0)], both)) == 1


def test_trust_scales_the_evidence():
    both = lesions(RIGHT, LEFT)
    assert find_unnamed([reading(9.0)], both, trust=0.0) == []
    assert find_unnamed([reading(9.0)], both, trust=0.1) == []
    assert len(find_unnamed([reading(9.0)], both, trust=0.5)) == 1


def test_a_single_lesion_is_kept_wherever_the_report_is():
    assert find_unnamed([reading(9.0)], lesions(RIGHT)) == []
    assert find_unnamed([reading(9.0)], lesions()) == []
    assert find_unnamed([], lesions(RIGHT, LEFT)) == []


def test_lesions_of_other_sizes_are_kept():
    """Most second foci are small, and a report may speak of the largest alone."""
    small = tuple(slice(side.start, side.start + 6) for side in RIGHT)  # about a fifth
    assert find_unnamed([reading(9.0)], lesions(small, LEFT)) == []
    assert find_unnamed([reading(-9.0)], lesions(small, LEFT)) == []
    smaller = tuple(slice(side.start, side.start + 8) for side in RIGHT)  # about a half
    (found,) = find_unnamed([reading(9.0)], lesions(smaller, LEFT))
    np.testing.assert_array_equal(found, lesions(smaller))


def test_a_lesion_across_the_midline_is_kept():
    across = (slice(10, 30), slice(10, 20), slice(5, 15))
    behind = (slice(26, 38), slice(22, 29), slice(3, 17))
    assert find_unnamed([reading(9.0)], lesions(across, behind)) == []


@pytest.mark.parametrize("sentences", [True, False])
def test_reports_are_read_as_prompts_are(sentences):
    network = build_clipseg3d(
        NetworkConfig(
            channels=(4, 6, 8),
            num_auxiliary=0,
            semantic_dim=12,
            num_heads=3,
            clip="tiny",
            sentences=sentences,
            prompt_head=True,
        )
    )
    torch.nn.init.normal_(network.prompt_head.place.weight)
    report = "A mass in the left temporal lobe."
    (found,) = read_report([network], report)
    torch.testing.assert_close(found.place, network.read_prompts([report]).place)
    (two,) = read_report([network], f"{report} No oedema.")
    assert two.place.shape[1] == (2 if sentences else 1)
    (nothing,) = read_report([network], "")
    assert nothing.place.shape[1] == 0
    assert find_unnamed([nothing], lesions(RIGHT, LEFT)) == []


def test_networks_without_a_prompt_head_read_no_place():
    config = NetworkConfig(
        channels=(4, 6, 8), num_auxiliary=0, semantic_dim=12, num_heads=3, clip="tiny"
    )
    assert read_report([build_clipseg3d(config)], "A mass on the left.") == []
