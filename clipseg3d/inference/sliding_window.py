"""Sliding-window inference over one volume, with semantics that were computed once per case."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from torch import Tensor

from clipseg3d.blocks.semantic_fusion import Semantics
from clipseg3d.inference.tta import mirror_crop_box, mirror_volume
from clipseg3d.networks.clipseg3d import CLIPSeg3D, Prediction


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
    before = torch.div(extent - size, 2, rounding_mode="floor").clamp(min=0)  # MONAI's padding
    num_windows = 1
    for side, length in zip(image.shape[2:], roi_size, strict=True):
        step = max(1, int(length * (1 - overlap)))
        num_windows *= 1 if side <= length else -(-(side - length) // step) + 1

    def predict(crop: Tensor, slices: list[list[slice]]) -> Tensor:
        corner = size.new_tensor([axis.start for axis in slices[0][2:]])
        crop_box = torch.stack([(corner - before) / size, extent / size])
        prediction = network.segment(
            crop,
            semantics,
            crop_box=mirror_crop_box(crop_box, mirrored)[None],
            statistics=statistics,
        )
        if observe is not None:
            observe(prediction)
        if advance is not None:
            advance(1 / num_windows)
        return _with_maps(network, prediction) if with_maps else prediction.logits.float()

    blended: Tensor = sliding_window_inference(
        image,
        roi_size=tuple(roi_size),
        sw_batch_size=1,
        predictor=predict,
        overlap=overlap,
        mode="gaussian",
        sw_device=device,
        device=image.device,
        with_coord=True,
    )
    return mirror_volume(blended, mirrored)


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
