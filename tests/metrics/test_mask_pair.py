"""Mirrors clipseg3d/metrics/mask_pair.py."""

import numpy as np
import pytest

from clipseg3d.metrics.mask_pair import MARGIN, MaskPair

SHAPE = (11, 13, 9)


def mask(*boxes):
    voxels = np.zeros(SHAPE, bool)
    for box in boxes:
        voxels[box] = True
    return voxels


def test_the_box_holds_both_masks_and_a_margin():
    prediction, reference = mask(np.s_[2:4, 5, 8]), mask(np.s_[3, 1:3, 6:8])
    pair = MaskPair.cut(prediction, reference, spacing_mm=(1, 2, 3))
    shape = (2 + 2 * MARGIN, 5 + 2 * MARGIN, 3 + 2 * MARGIN)
    assert pair.prediction.shape == pair.reference.shape == shape
    inside = (slice(MARGIN, -MARGIN),) * 3
    np.testing.assert_array_equal(pair.prediction[inside], prediction[2:4, 1:6, 6:9])
    np.testing.assert_array_equal(pair.reference[inside], reference[2:4, 1:6, 6:9])
    assert pair.prediction.sum() == prediction.sum()
    assert pair.reference.sum() == reference.sum()
    assert pair.prediction.flags.c_contiguous
    assert pair.spacing_mm == (1.0, 2.0, 3.0)
    assert pair.shape == SHAPE
    assert pair.num_voxels == prediction.size


def test_masks_beside_are_in_the_box_as_well():
    beside = [mask(np.s_[9, 4, 4]), mask()]
    pair = MaskPair.cut(mask(np.s_[2, 4, 4]), mask(np.s_[3, 4, 4]), beside=beside)
    assert pair.prediction.shape == (8 + 2 * MARGIN, 1 + 2 * MARGIN, 1 + 2 * MARGIN)
    assert pair.prediction.sum() == pair.reference.sum() == 1


@pytest.mark.parametrize("order", ["C", "F"])
def test_any_memory_order(order):
    rng = np.random.default_rng(0)
    voxels = [rng.random(SHAPE) < 0.02 for _ in range(2)]
    one = MaskPair.cut(*voxels)
    two = MaskPair.cut(*(np.asarray(np.repeat(v, 2, axis=1)[:, ::2], order=order) for v in voxels))
    np.testing.assert_array_equal(one.prediction, two.prediction)
    np.testing.assert_array_equal(one.reference, two.reference)


def test_masks_at_the_ends_of_the_volume():
    pair = MaskPair.cut(mask(np.s_[0, 0, 0]), mask(np.s_[-1, -1, -1]))
    assert pair.prediction.shape == tuple(n + 2 * MARGIN for n in SHAPE)


def test_one_or_both_masks_may_be_empty():
    pair = MaskPair.cut(mask(), mask(np.s_[4, 5, 6]))
    assert pair.prediction.shape == (1 + 2 * MARGIN,) * 3
    assert not pair.prediction.any()
    assert pair.reference.sum() == 1
    assert not MaskPair.cut(mask(), mask()).prediction.any()


@pytest.mark.parametrize(
    ("prediction", "reference", "spacing_mm", "message"),
    [
        (mask()[..., 0], mask(), (1, 1, 1), r"prediction is bool of shape \(11, 13\)"),
        (
            mask(),
            mask().astype(np.uint8),
            (1, 1, 1),
            r"reference is uint8 .* one region of a label",
        ),
        (mask().astype(float), mask(), (1, 1, 1), r"prediction is float64 .*threshold probab"),
        (mask(), mask()[:-1], (1, 1, 1), r"prediction \(11, 13, 9\) != reference \(10, 13, 9\)"),
        (mask(), mask(), (1, 1), r"spacing_mm=\(1\.0, 1\.0\) is not three"),
        (mask(), mask(), (1, 0, 1), "is not three positive sizes"),
        (mask(), mask(), (1, float("nan"), 1), "is not three positive sizes"),
    ],
)
def test_what_does_not_fit_together_is_refused(prediction, reference, spacing_mm, message):
    with pytest.raises(ValueError, match=message):
        MaskPair.cut(prediction, reference, spacing_mm=spacing_mm)
