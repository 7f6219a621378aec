"""Mirrors clipseg3d/inference/window.py. Sizes differ pairwise, so a swapped axis fails."""

import pytest
import torch

import clipseg3d.inference.window
from clipseg3d.blocks.attention import voxel_positions
from clipseg3d.inference.window import segment_volume
from clipseg3d.networks.clipseg3d import Prediction

S, X, Y, Z = 4, 21, 13, 30
WINDOWS = [(16, 8, 12), (16, 20, 12), (24, 18, 33), (21, 13, 30)]
"""Smaller than the volume, larger along y, larger along all axes, and just as large."""


class StubNetwork:
    """Applies a function of (crop, window) and notes what it was given."""

    def __init__(self, function):
        self.function = function
        self.calls = []

    def segment(self, image, semantics, *, window=None, statistics=None, deep=False):
        self.calls.append((tuple(image.shape), semantics, statistics))
        return Prediction(self.function(image, window), [], None, None)


@pytest.fixture
def image():
    return torch.randn(1, S, X, Y, Z, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def statistics():
    return torch.rand(1, S, 4)


def voxelwise(image, window):
    return torch.stack([image[:, 0] * 2, image[:, 1] - image[:, 2], image[:, 3].square()], dim=1)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_blending_keeps_a_voxelwise_function(image, statistics, window, overlap):
    network = StubNetwork(voxelwise)
    logits = segment_volume(network, image, None, statistics, window=window, overlap=overlap)
    assert logits.shape == (1, 3, X, Y, Z)
    torch.testing.assert_close(logits, voxelwise(image, None), rtol=1e-5, atol=1e-5)
    assert {shape for shape, _, _ in network.calls} == {(1, S, *window)}


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_network_is_told_where_its_window_lies(image, statistics, window, overlap):
    network = StubNetwork(lambda crop, place: voxel_positions(crop, place))
    logits = segment_volume(network, image, None, statistics, window=window, overlap=overlap)
    torch.testing.assert_close(logits, voxel_positions(image), rtol=0, atol=1e-5)


def test_padded_window_reaches_beyond_the_brain_box(image, statistics):
    places = []
    network = StubNetwork(lambda crop, place: places.append(place) or crop[:, :3])
    segment_volume(network, image, None, statistics, window=(24, 18, 33))
    (place,) = places
    # 24 over 21 pads 1 before and 2 behind; 18 over 13 pads 2 and 3; 33 over 30 pads 1 and 2.
    expected = torch.tensor([[-1 / X, -2 / Y, -1 / Z], [24 / X, 18 / Y, 33 / Z]])
    torch.testing.assert_close(place, expected[None])


def test_semantics_and_statistics_are_handed_on(image, statistics):
    network, semantics = StubNetwork(voxelwise), object()
    segment_volume(network, image, semantics, statistics, window=(16, 8, 12))
    assert len(network.calls) > 1
    assert all(call[1] is semantics and call[2] is statistics for call in network.calls)


def test_half_precision_logits_are_blended_in_float32(image, statistics):
    network = StubNetwork(lambda crop, place: crop[:, :3].round().bfloat16())
    logits = segment_volume(network, image, None, statistics, window=(16, 8, 12))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, image[:, :3].round(), rtol=1e-5, atol=1e-5)


def test_no_graph_is_kept(image, statistics):
    weight = torch.ones(1, requires_grad=True)
    network = StubNetwork(lambda crop, place: crop[:, :3] * weight)
    assert not segment_volume(network, image, None, statistics, window=(16, 8, 12)).requires_grad


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.7])
def test_progress_ends_at_its_total(image, statistics, window, overlap, monkeypatch):
    bars = []

    class Bar(clipseg3d.inference.window.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **{**kwargs, "disable": False, "delay": 1e6})
            bars.append(self)

    monkeypatch.setattr(clipseg3d.inference.window, "tqdm", Bar)
    network = StubNetwork(voxelwise)
    segment_volume(
        network, image, None, statistics, window=window, overlap=overlap, progress="case"
    )
    (bar,) = bars
    assert bar.n == bar.total == len(network.calls)
