"""Mirrors clipseg3d/metrics/dice.py. Sizes differ pairwise, so a swapped axis fails."""

import pytest
import torch

from clipseg3d.metrics.dice import CaseDice, dice_empty_is_one

B, R, X, Y, Z = 2, 3, 4, 5, 6
REGIONS = ("WT", "TC", "ET")


def mask(*voxels):
    """A mask (x, y, z) of so many voxels from a first to a last one, in memory order."""
    flat = torch.zeros(X * Y * Z, dtype=torch.bool)
    flat[slice(*voxels)] = True
    return flat.view(X, Y, Z)


EMPTY = mask(0)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        (mask(0, 10), mask(0, 10), 1.0),
        (mask(0, 10), mask(5, 15), 0.5),
        (mask(0, 30), mask(10, 20), 0.5),
        (mask(0, 4), mask(3, 5), 1 / 3),
        (mask(0, 10), mask(10, 20), 0.0),
        (EMPTY, EMPTY, 1.0),
        (mask(0, 1), EMPTY, 0.0),
        (EMPTY, mask(0, 1), 0.0),
    ],
)
def test_dice_by_hand(prediction, reference, expected):
    score = dice_empty_is_one(prediction, reference)
    assert score.shape == ()
    assert score.dtype == torch.float64
    assert score.item() == pytest.approx(expected)


def test_leading_axes_are_kept():
    prediction = torch.stack(
        [torch.stack([mask(0, 10), mask(0, 4), EMPTY]), torch.stack([mask(0, 2)] * 3)]
    )
    reference = torch.stack(
        [torch.stack([mask(5, 15), mask(0, 4), mask(7, 9)]), torch.stack([mask(1, 3)] * 3)]
    )
    scores = dice_empty_is_one(prediction, reference)
    assert scores.tolist() == [[0.5, 1.0, 0.0], [0.5, 0.5, 0.5]]


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(4, 5, 6\) != \(4, 5\)"):
        dice_empty_is_one(EMPTY, EMPTY[..., 0])


# over cases


def case(scores):
    """Masks (r, x, y, z) whose Dice are n / 10, for n from 0 to 10."""
    prediction = torch.stack([mask(0, 10)] * len(scores))
    reference = torch.stack([mask(10 - n, 20 - n) for n in scores])
    return prediction, reference


CASES = {"a": (10, 5, 0), "b": (4, 4, 1), "c": (1, 9, 8)}


def update(metric, names):
    pairs = [case(CASES[name]) for name in names]
    prediction, reference = (torch.stack(masks) for masks in zip(*pairs, strict=True))
    metric.update(prediction, reference, list(names))


def result(*batches):
    metric = CaseDice(REGIONS)
    for names in batches:
        update(metric, names)
    return {name: value.item() for name, value in metric.compute().items()}


def test_means_are_per_region_and_then_over_regions():
    expected = {"WT": 0.5, "TC": 0.6, "ET": 0.3, "mean": 1.4 / 3}
    assert result("abc") == pytest.approx(expected)


def test_repeated_case_counts_once():
    assert result("ab", "ba", "c", "a") == pytest.approx(result("abc"))
    assert result("aab") == pytest.approx({"WT": 0.7, "TC": 0.45, "ET": 0.05, "mean": 0.4})


def test_order_and_batches_do_not_matter():
    expected = result("abc")
    for batches in (["cab"], ["a", "b", "c"], ["c", "ba"]):
        assert result(*batches) == pytest.approx(expected)


def test_reset_forgets_all_cases():
    metric = CaseDice(REGIONS)
    update(metric, "ab")
    metric.compute()
    metric.reset()
    update(metric, "c")
    assert metric.compute()["WT"].item() == pytest.approx(0.1)


def test_scores_grow_while_cases_come_in():
    metric = CaseDice(REGIONS)
    update(metric, "a")
    assert metric.compute()["WT"].item() == pytest.approx(1.0)
    update(metric, "b")
    assert metric.compute()["WT"].item() == pytest.approx(0.7)
