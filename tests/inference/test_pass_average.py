"""Mirrors clipseg3d/inference/pass_average.py: sums worked out by hand."""

import math

import numpy as np
import pytest
import torch

from clipseg3d.inference.pass_average import PassAverage

P = torch.tensor([[0.2, 0.5], [0.9, 0.1], [0.25, 0.5]])
Q = torch.tensor([[0.4, 0.5], [0.5, 0.3], [0.75, 0.5]])


def logits(probabilities):
    return torch.logit(probabilities)[..., None, None]  # (3, 2, 1, 1)


def two_passes():
    average = PassAverage(with_variance=True)
    average.add(logits(P), {"a": torch.ones(2, 1, 1)})
    average.add(logits(Q), {"a": torch.full((2, 1, 1), 4.0), "b": torch.full((2, 1, 1), 7.0)})
    return average


def test_probabilities_are_averaged():
    expected = [[0.3, 0.5], [0.7, 0.2], [0.5, 0.5]]
    np.testing.assert_allclose(two_passes().probabilities()[..., 0, 0], expected, atol=1e-6)


def test_variance_is_the_highest_of_the_regions():
    # deviations from the mean: 0.1, 0.2, 0.25 in the first voxel, 0, 0.1, 0 in the second
    np.testing.assert_allclose(two_passes().variance().ravel(), [0.0625, 0.01], atol=1e-6)


def test_entropy_is_in_bits_and_the_highest_of_the_regions():
    average = PassAverage()
    average.add(logits(torch.tensor([[0.25, 0.0], [0.9, 1.0], [0.01, 0.0]])))
    expected = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    np.testing.assert_allclose(average.entropy().ravel(), [expected, 0], atol=1e-6)
    assert expected == pytest.approx(0.8112781)


def test_a_map_is_averaged_over_the_passes_that_have_it():
    average = two_passes()
    np.testing.assert_array_equal(average.map("a").ravel(), [2.5, 2.5])
    np.testing.assert_array_equal(average.map("b").ravel(), [7, 7])
    assert average.map("c") is None


def test_equal_passes_have_no_variance():
    average = PassAverage(with_variance=True)
    for _ in range(3):
        average.add(logits(P))
    assert average.variance().min() >= 0
    np.testing.assert_allclose(average.variance(), 0, atol=1e-6)
