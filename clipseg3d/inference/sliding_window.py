"""Sliding-window inference over one volume, semantics computed once."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from torch import Tensor

from clipseg3d.blocks.semantic_fusion import Semantics
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
) -> Tensor:
    """Return logits of a whole volume, blended from Gaussian-weighted windows.

    Memory: beside the image, the result and one weight per voxel, as float32 where the image
    lies; and one forward pass of one window on ``device``.

    Args:
        network: in evaluation mode.
        image: brain box, (1, s, x, y, z).
        semantics: of this case, from :meth:`CLIPSeg3D.encode_semantics`, or None.
        statistics: (1, s, 4) of the whole brain.
        roi_size: size of a window (x, y, z), in voxels; axes shorter than it are padded.
        overlap: share of a window that the next one covers again, in [0, 1).
        mirrored: spatial axes, 0 to 2, along which the network sees the volume mirrored. It is
            told so by a negative size of its crop box, and the result is mirrored back.
        with_maps: append the scores and then the cosines of the guided regions as further
            channels, if the network computes any.
        device: where network, semantics and statistics lie and windows are computed; None takes
            the image's, where the result is stitched in any case.
        advance: told after each window which share of all windows it was.

    Returns:
        (1, r, x, y, z) float32, with ``with_maps`` up to r + 2 n channels for n guided regions.
    """
    axes = [2 + axis for axis in mirrored]
    image = image.flip(axes) if axes else image  # a flip along no axis would copy
    device = image.device if device is None else torch.device(device)
    size = torch.tensor(image.shape[2:], dtype=image.dtype, device=device)
    extent = torch.tensor(tuple(roi_size), dtype=image.dtype, device=device)
    before = torch.div(extent - size, 2, rounding_mode="floor").clamp(min=0)  # MONAI's padding
    total = 1
    for side, length in zip(image.shape[2:], roi_size, strict=True):
        step = max(1, int(length * (1 - overlap)))
        total *= 1 if side <= length else -(-(side - length) // step) + 1

    def predict(crop: Tensor, slices: list[list[slice]]) -> Tensor:
        corner = size.new_tensor([axis.start for axis in slices[0][2:]])
        crop_box = torch.stack([(corner - before) / size, extent / size])
        crop_box[0, list(mirrored)] = 1 - crop_box[0, list(mirrored)]
        crop_box[1, list(mirrored)] *= -1
        prediction = network.segment(
            crop, semantics, crop_box=crop_box[None], statistics=statistics
        )
        if advance is not None:
            advance(1 / total)
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
    return blended.flip(axes) if axes else blended


def _with_maps(network: CLIPSeg3D, prediction: Prediction) -> Tensor:
    """Return logits, scores and cosines as channels of one grid."""
    logits = prediction.logits.float()
    if prediction.maps is None:
        return logits
    x, y, z = logits.shape[2:]
    padded = [side + -side % network.unet.multiple for side in (x, y, z)]
    maps = torch.cat([part.float() for part in prediction.maps], dim=1)
    maps = F.interpolate(maps, size=padded, mode="trilinear")[..., :x, :y, :z]
    return torch.cat([logits, maps], dim=1)
