"""Mirrors clipseg3d/reporting/map_colours.py."""

import numpy as np
import pytest

from clipseg3d.reporting.map_colours import DIVERGING, SEQUENTIAL, scale_of

LUMINANCE = np.array([0.2126, 0.7152, 0.0722])


def light(colours, shares):
    """Relative luminance, which every kind of colour vision sees."""
    return (colours(shares)[:, :3] ** 2.2) @ LUMINANCE


def test_maps_of_one_kind_share_a_scale():
    assert scale_of([np.array([0.2, 0.7]), np.array([0.0, 1.5])])[:2] == (0.0, 1.5)
    assert scale_of([np.array([0.2, 0.7]), np.array([-2.0, 1.5])])[:2] == (-2.0, 2.0)
    assert scale_of([np.array([-0.5, -0.1])])[:2] == (-0.5, 0.5)
    assert scale_of([np.array([1.0])]).colours is SEQUENTIAL
    assert scale_of([np.array([-1.0])]).colours is DIVERGING


def test_a_map_without_voxels_or_of_zeros_has_a_scale():
    for values in (np.zeros(3), np.zeros(0)):
        scale = scale_of([values])
        assert scale[:2] == (0.0, 0.0)
        np.testing.assert_array_equal(scale.share(values), 0)
        np.testing.assert_array_equal(scale.strength(values), 0)


def test_share_and_strength():
    scale = scale_of([np.array([-2.0, 1.0])])
    np.testing.assert_allclose(scale.share(np.array([-2.0, -1.0, 0.0, 2.0])), [0, 0.25, 0.5, 1])
    np.testing.assert_allclose(scale.strength(np.array([-2.0, -1.0, 0.0, 1.0])), [1, 0.5, 0, 0.5])
    scale = scale_of([np.array([4.0])])
    np.testing.assert_allclose(scale.share(np.array([0.0, 1.0, 4.0])), [0, 0.25, 1])
    np.testing.assert_allclose(scale.strength(np.array([0.0, 1.0, 4.0])), [0, 0.25, 1])


def test_more_is_lighter_in_any_colour_vision():
    up = np.linspace(0, 1, 50)
    assert (np.diff(light(SEQUENTIAL, up)) > 0).all()
    assert (np.diff(light(DIVERGING, 0.5 + up / 2)) > 0).all()
    assert (np.diff(light(DIVERGING, 0.5 - up / 2)) > 0).all()


def test_the_two_ends_differ_in_blue_against_orange():
    below, above = DIVERGING(0.2), DIVERGING(0.8)
    assert below[2] - below[0] > 0.4
    assert above[0] - above[2] > 0.4
    assert DIVERGING(0.5)[:3] == pytest.approx(SEQUENTIAL(0.0)[:3], abs=0.02)
