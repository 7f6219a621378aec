"""Sliding-window inference over one volume, with semantics that were computed once per case.

Windows, weights and sums are those of MONAI's ``sliding_window_inference``, to the bit. It is not
imported, because all of MONAI would come with it, which takes as long as to segment a case.
"""

from collections.abc import Callable, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from clipseg3d.blocks.semantic_fusion import Semantics
from clipseg3d.inference.tta import mirror_crop_box, mirror_volume
from clipseg3d.networks.clipseg3d import CLIPSeg3D, Prediction

_SIGMA = 0.125
"""Of the Gaussian, as a share of a window's edge."""
_MIN_WEIGHT = 1e-3


@torch.no_grad()
def segment_volume(
    network: CLIPSeg3D,
    image: Tensor,
    semantics: Semantics | None,
    statistics: Tensor,
    *,
    roi_size: Sequence[int] = (128, 128, 128),
    overlap: float = 0.5,
    mirrored: Sequence[int] = (),
    with_maps: bool = False,
    device: torch.device | str | None = None,
    advance: Callable[[float], object] | None = None,
    observe: Callable[[Prediction], object] | None = None,
) -> Tensor:
    """Return logits of a whole volume, blended from Gaussian-weighted windows.

    Memory: on the device of the image, the image, the result and one weight per voxel, all float32;
    on ``device``, one forward pass of one window.

    Args:
        network: in evaluation mode.
        image: brain box, (1, s, x, y, z).
        semantics: of this case, from :meth:`CLIPSeg3D.encode_semantics`, or None.
        statistics: (1, s, 4) of the whole brain.
        roi_size: size of a window (x, y, z), in voxels; shorter axes of the image are padded.
        overlap: share of a window that the next window covers too, in [0, 1).
        mirrored: spatial axes, 0 to 2, along which the network sees the volume mirrored; the result
            is mirrored back. See :mod:`clipseg3d.inference.tta`.
        with_maps: append the scores and then the cosines of the guided regions as further
            channels, as far as the network computes them.
        device: where the network, semantics and statistics are, and where windows are computed;
            None takes the device of the image. The result is always put together on the device of
            the image.
        advance: called after each window with the share of the work that this window was.
        observe: called with what the network gives for each window, such as its presence.

    Returns:
        (1, r, x, y, z) float32, with ``with_maps`` up to r + 2 n channels for n guided regions.
    """
    image = mirror_volume(image, mirrored)
    device = image.device if device is None else torch.device(device)
    size = torch.tensor(image.shape[2:], dtype=image.dtype, device=device)
    extent = torch.tensor(tuple(roi_size), dtype=image.dtype, device=device)
    sides = image.shape[2:]
    missing = [max(0, length - side) for side, length in zip(sides, roi_size, strict=True)]
    before = [n // 2 for n in missing]
    if any(missing):
        ends = [(half, n - half) for half, n in zip(before, missing, strict=True)]
        image = F.pad(image, [n for pair in reversed(ends) for n in pair])  # the last axis first
    starts = [_starts(*pair, overlap) for pair in zip(image.shape[2:], roi_size, strict=True)]
    corners = list(product(*starts))

    def predict(crop: Tensor, corner: Sequence[int]) -> Tensor:
        start = size.new_tensor(corner) - size.new_tensor(before)
        crop_box = torch.stack([start / size, extent / size])
        prediction = network.segment(
            crop,
            semantics,
            crop_box=mirror_crop_box(crop_box, mirrored)[None],
            statistics=statistics,
        )
        if observe is not None:
            observe(prediction)
        if advance is not None:
            advance(1 / len(corners))
        return _with_maps(network, prediction) if with_maps else prediction.logits.float()

    weight = _gaussian(roi_size).to(image)
    weights = image.new_zeros(1, 1, *image.shape[2:])
    blended = image.new_empty(0)
    for corner in corners:
        window = _box(corner, roi_size)
        part = predict(image[window].to(device), corner).to(image)
        if not blended.numel():  # now the number of channels is known
            blended = image.new_zeros(1, part.shape[1], *image.shape[2:])
        blended[window] += part * weight
        weights[window] += weight
    blended /= weights
    return mirror_volume(blended[_box(before, sides)], mirrored)


def _box(corner: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    """Return the index of a box in a volume (b, c, x, y, z)."""
    sides = (slice(start, start + length) for start, length in zip(corner, size, strict=True))
    return (slice(None), slice(None), *sides)


def _starts(side: int, length: int, overlap: float) -> list[int]:
    """Return where windows of a length start along an axis; the last ends with the axis.

    Args:
        side: of the volume, at least ``length``.
        length: of a window.
        overlap: share of a window that the next one covers too.
    """
    step = max(1, int(length * (1 - overlap)))
    last = side - length
    return [*range(0, last, step), last]


def _gaussian(roi_size: Sequence[int]) -> Tensor:
    """Return the weight (x, y, z) of each voxel of a window."""
    weight = torch.ones(1, 1, 1)
    for axis, length in enumerate(roi_size):
        distance = torch.arange(length, dtype=torch.float32) - (length - 1) / 2
        curve = torch.exp(distance**2 / (-2 * (length * _SIGMA) ** 2))
        weight = weight * curve.view([-1 if axis == other else 1 for other in range(3)])
    return weight.clamp(min=max(weight.min().item(), _MIN_WEIGHT))


def _with_maps(network: CLIPSeg3D, prediction: Prediction) -> Tensor:
    """Return logits, scores and cosines as channels on one grid."""
    logits = prediction.logits.float()
    if prediction.maps is None:
        return logits
    x, y, z = logits.shape[2:]
    padded = [side + -side % network.unet.multiple for side in (x, y, z)]
    maps = torch.cat([part.float() for part in prediction.maps if part is not None], dim=1)
    maps = F.interpolate(maps, size=padded, mode="trilinear")[..., :x, :y, :z]
    return torch.cat([logits, maps], dim=1)
