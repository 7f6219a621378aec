"""Mirrors clipseg3d/reporting/packing.py. Sizes differ pairwise, so a swapped axis fails."""

import base64
import io
import zlib

import numpy as np
import pytest
from matplotlib.image import imread

from clipseg3d.reporting.figures import shared_scale
from clipseg3d.reporting.packing import (
    grey_levels,
    map_levels,
    pack_volume,
    view_png,
)

X, Y, Z = 5, 7, 3


def unpack(text):
    """Undo what the module says of its format: x fastest, differences along x modulo 256."""
    stored = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(Z, Y, X)
    return np.cumsum(stored, axis=2, dtype=np.uint8).transpose(2, 1, 0)


def test_a_volume_comes_back_whole():
    volume = np.random.default_rng(0).integers(0, 256, (X, Y, Z)).astype(np.uint8)
    before = volume.copy()
    np.testing.assert_array_equal(unpack(pack_volume(volume)), volume)
    np.testing.assert_array_equal(volume, before)


def test_grey_runs_over_the_percentiles_of_the_brain():
    image = np.zeros((10, 11, 12))
    image[2:, 1:] = np.linspace(-3, 5, 8 * 10 * 12).reshape(8, 10, 12)
    low, high = np.percentile(image[image != 0], (0.5, 99.7))
    grey = grey_levels(image)
    assert (grey == 0).sum() == (image == 0).sum()
    np.testing.assert_array_equal(grey[2, 1, :3], 1)  # clipped
    assert grey[9, 10, 11] == 255
    assert grey[6, 5, 4] == 1 + round(254 * (image[6, 5, 4] - low) / (high - low))


def test_raw_intensities_start_at_zero():
    image = np.array([100.0, 150.0, 200.0] * 100).reshape(3, 10, 10)
    assert np.unique(grey_levels(image)).tolist() == [128, 191, 255]


def test_images_without_signal_or_contrast_are_drawn():
    assert not grey_levels(np.zeros((X, Y, Z))).any()
    assert np.unique(grey_levels(np.full((X, Y, Z), -7.0))).size == 1


def test_map_levels_run_over_the_scale_within_the_brain():
    values = np.array([-127.0, -60.0, 0.0, 60.0, 127.0, 127.0]).reshape(6, 1, 1)
    brain = np.array([1, 1, 1, 1, 1, 0], bool).reshape(6, 1, 1)
    levels = map_levels(values, shared_scale([values]), brain=brain)
    assert levels.ravel().tolist() == [1, 68, 128, 188, 255, 0]


@pytest.mark.parametrize(
    ("name", "row", "column"), [("axial", 4, 1), ("coronal 2", 1, 1), ("sagittal", 1, 1)]
)
def test_views_are_turned_upright(name, row, column):
    view = np.zeros((6, 6, 3), np.uint8)
    view[1, 4] = (250, 120, 10)  # first axis: x or y; second: y or z
    png = imread(io.BytesIO(base64.b64decode(view_png(name, view).partition(",")[2])))
    np.testing.assert_allclose(png[row, column, :3] * 255, (250, 120, 10), atol=0.5)
    assert np.count_nonzero(png[..., 0]) == 1
