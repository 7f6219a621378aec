"""Mirrors clipseg3d/inference/sliding_window.py. Sizes differ pairwise, so a swapped axis fails."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference

from clipseg3d.blocks.semantic_attention import voxel_positions
from clipseg3d.blocks.semantic_fusion import RegionMaps
from clipseg3d.inference.sliding_window import segment_volume
from clipseg3d.inference.tta import MIRRORINGS
from clipseg3d.networks.clipseg3d import Prediction

S, X, Y, Z = 4, 21, 13, 30
ROI_SIZES = [(16, 8, 12), (16, 20, 12), (24, 18, 33), (21, 13, 30)]
"""Smaller than the volume, larger along y, larger along all axes, and just as large."""


class StubNetwork:
    """Applies a function of (crop, crop_box) and notes what it was given."""

    def __init__(self, function):
        self.function = function
        self.calls = []

    def segment(self, image, semantics, *, crop_box=None, statistics=None, deep=False):
        self.calls.append((tuple(image.shape), semantics, statistics))
        return Prediction(self.function(image, crop_box), [], None, None)


@pytest.fixture
def image():
    return torch.randn(1, S, X, Y, Z, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def statistics():
    return torch.rand(1, S, 4)


def voxelwise(image, crop_box):
    return torch.stack([image[:, 0] * 2, image[:, 1] - image[:, 2], image[:, 3].square()], dim=1)


@pytest.mark.parametrize("roi_size", ROI_SIZES)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_blending_keeps_a_voxelwise_function(image, statistics, roi_size, overlap):
    network = StubNetwork(voxelwise)
    logits = segment_volume(network, image, None, statistics, roi_size=roi_size, overlap=overlap)
    assert logits.shape == (1, 3, X, Y, Z)
    torch.testing.assert_close(logits, voxelwise(image, None), rtol=1e-5, atol=1e-5)
    assert {shape for shape, _, _ in network.calls} == {(1, S, *roi_size)}


@pytest.mark.parametrize("roi_size", ROI_SIZES)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_crop_boxes_say_where_windows_lie(image, statistics, roi_size, overlap):
    network = StubNetwork(voxel_positions)
    logits = segment_volume(network, image, None, statistics, roi_size=roi_size, overlap=overlap)
    torch.testing.assert_close(logits, voxel_positions(image), rtol=0, atol=1e-5)


def test_padded_window_reaches_beyond_the_brain_box(image, statistics):
    crop_boxes = []
    network = StubNetwork(lambda crop, crop_box: crop_boxes.append(crop_box) or crop[:, :3])
    segment_volume(network, image, None, statistics, roi_size=(24, 18, 33))
    (crop_box,) = crop_boxes
    # 24 over 21 pads 1 before and 2 behind; 18 over 13 pads 2 and 3; 33 over 30 pads 1 and 2.
    expected = torch.tensor([[-1 / X, -2 / Y, -1 / Z], [24 / X, 18 / Y, 33 / Z]])
    torch.testing.assert_close(crop_box, expected[None])


def test_semantics_and_statistics_are_handed_on(image, statistics):
    network, semantics = StubNetwork(voxelwise), object()
    segment_volume(network, image, semantics, statistics, roi_size=(16, 8, 12))
    assert len(network.calls) > 1
    assert all(call[1] is semantics and call[2] is statistics for call in network.calls)


def test_half_precision_logits_are_blended_in_float32(image, statistics):
    network = StubNetwork(lambda crop, crop_box: crop[:, :3].round().bfloat16())
    logits = segment_volume(network, image, None, statistics, roi_size=(16, 8, 12))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, image[:, :3].round(), rtol=1e-5, atol=1e-5)


def test_no_graph_is_kept(image, statistics):
    weight = torch.ones(1, requires_grad=True)
    network = StubNetwork(lambda crop, crop_box: crop[:, :3] * weight)
    assert not segment_volume(network, image, None, statistics, roi_size=(16, 8, 12)).requires_grad


@pytest.mark.parametrize("roi_size", ROI_SIZES)
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.7])
def test_shares_of_progress_add_up_to_one(image, statistics, roi_size, overlap):
    shares = []
    network = StubNetwork(voxelwise)
    segment_volume(
        network, image, None, statistics, roi_size=roi_size, overlap=overlap, advance=shares.append
    )
    assert len(shares) == len(network.calls)
    assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize("mirrored", MIRRORINGS)
@pytest.mark.parametrize("roi_size", ROI_SIZES)
def test_crop_boxes_of_mirrored_windows_say_where_they_lie(image, statistics, roi_size, mirrored):
    network = StubNetwork(voxel_positions)
    logits = segment_volume(network, image, None, statistics, roi_size=roi_size, mirrored=mirrored)
    torch.testing.assert_close(logits, voxel_positions(image), rtol=0, atol=1e-5)


def test_a_mirrored_axis_runs_from_its_far_corner(image, statistics):
    crop_boxes = []
    network = StubNetwork(lambda crop, crop_box: crop_boxes.append(crop_box) or crop[:, :3])
    segment_volume(network, image, None, statistics, roi_size=(16, 20, 30), mirrored=(0, 1))
    # y: 20 over 13 pads 3 before and 4 behind, now counted from the far end
    y, z = (1 + 3 / Y, -20 / Y), (0, 1)
    expected = [
        [[1, y[0], z[0]], [-16 / X, y[1], z[1]]],
        [[16 / X, y[0], z[0]], [-16 / X, y[1], z[1]]],
    ]
    torch.testing.assert_close(torch.cat(crop_boxes), torch.tensor(expected))


@pytest.mark.parametrize("mirrored", MIRRORINGS)
def test_the_network_sees_the_volume_mirrored(image, statistics, mirrored):
    crops = []
    network = StubNetwork(lambda crop, crop_box: crops.append(crop.clone()) or crop[:, :3] + 0)
    logits = segment_volume(network, image, None, statistics, roi_size=(X, Y, Z), mirrored=mirrored)
    (crop,) = crops
    assert torch.equal(crop, image.flip([2 + axis for axis in mirrored]))
    torch.testing.assert_close(logits, image[:, :3])


class MappedNetwork(StubNetwork):
    """Gives maps at half resolution of the padded crop, too: the crop's own values, averaged."""

    unet = SimpleNamespace(multiple=4)

    def segment(self, image, semantics, **options):
        prediction = super().segment(image, semantics, **options)
        padding = [n for side in reversed(image.shape[2:]) for n in (0, -side % 4)]
        half = F.avg_pool3d(F.pad(image, padding), 2)
        return prediction._replace(maps=RegionMaps(half[:, :2], half[:, 2:]))


@pytest.mark.parametrize("roi_size", ROI_SIZES)
@pytest.mark.parametrize("mirrored", [(), (0, 2)])
def test_maps_come_on_the_grid_of_the_image(statistics, roi_size, mirrored):
    positions = voxel_positions(torch.empty(1, 1, X, Y, Z))
    image = torch.cat(
        [positions, positions[:, :1] + positions[:, 2:]], dim=1
    )  # linear: no loss by halving
    network = MappedNetwork(voxelwise)
    output = segment_volume(
        network, image, None, statistics, roi_size=roi_size, mirrored=mirrored, with_maps=True
    )
    assert output.shape == (1, 3 + 4, X, Y, Z)
    torch.testing.assert_close(output[:, :3], voxelwise(image, None), rtol=1e-4, atol=1e-4)
    if max(roi_size[0] - X, roi_size[1] - Y, roi_size[2] - Z) <= 0:
        inside = (..., slice(2, -2), slice(2, -2), slice(2, -2))
        error = (output[:, 3:] - image)[inside].abs()
        assert error.max() < 2 / min(X, Y, Z)


def test_maps_are_not_there_where_the_network_has_none(image, statistics):
    output = segment_volume(
        StubNetwork(voxelwise), image, None, statistics, roi_size=(16, 8, 12), with_maps=True
    )
    assert output.shape == (1, 3, X, Y, Z)


def test_windows_are_computed_where_the_network_lies(image, statistics):
    """The result is stitched where the image lies, also if the network is on another device."""
    devices_of_network = []

    def elsewhere(crop, crop_box):
        devices_of_network.append((crop.device.type, crop_box.device.type))
        return torch.ones(1, 3, *crop.shape[2:])

    logits = segment_volume(
        StubNetwork(elsewhere), image, None, statistics, roi_size=(16, 8, 12), device="meta"
    )
    assert set(devices_of_network) == {("meta", "meta")}
    torch.testing.assert_close(logits, torch.ones(1, 3, X, Y, Z))


@pytest.mark.parametrize("roi_size", [*ROI_SIZES, (5, 3, 7)])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.9])
def test_windows_are_blended_as_by_monai(image, statistics, roi_size, overlap):
    """To the bit: a function that differs from window to window shows weights and order."""

    def function(crop, *_):
        return crop[:, :3].cumsum(dim=2).sin()

    ours = segment_volume(
        StubNetwork(function), image, None, statistics, roi_size=roi_size, overlap=overlap
    )
    theirs = sliding_window_inference(image, roi_size, 1, function, overlap, mode="gaussian")
    assert torch.equal(ours, theirs)
