"""Sliding-window inference over one volume, semantics computed once."""

from collections.abc import Sequence

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor
from tqdm import tqdm

from clipseg3d.blocks.semantic_fusion import Semantics
from clipseg3d.networks.clipseg3d import CLIPSeg3D


@torch.no_grad()
def segment_volume(
    network: CLIPSeg3D,
    image: Tensor,
    semantics: Semantics | None,
    statistics: Tensor,
    *,
    window: Sequence[int] = (128, 128, 128),
    overlap: float = 0.5,
    progress: str | None = None,
) -> Tensor:
    """Return logits of a whole volume, blended from Gaussian-weighted windows.

    Args:
        network: in evaluation mode.
        image: brain box, (1, s, x, y, z).
        semantics: of this case, from :meth:`CLIPSeg3D.encode_semantics`, or None.
        statistics: (1, s, 4) of the whole brain.
        window: size (x, y, z) in voxels; axes shorter than it are padded.
        overlap: share of a window that the next one covers again, in [0, 1).
        progress: title of a progress bar, shown after 2 seconds; None shows none.

    Returns:
        (1, r, x, y, z) float32.
    """
    size = image.new_tensor(image.shape[2:])
    extent = image.new_tensor(window)
    before = torch.div(extent - size, 2, rounding_mode="floor").clamp(min=0)  # MONAI's padding
    total = 1
    for side, length in zip(image.shape[2:], window, strict=True):
        step = max(1, int(length * (1 - overlap)))
        total *= 1 if side <= length else -(-(side - length) // step) + 1

    with tqdm(total=total, desc=progress, unit="window", delay=2, disable=progress is None) as bar:

        def predict(crop: Tensor, slices: list[list[slice]]) -> Tensor:
            corner = image.new_tensor([axis.start for axis in slices[0][2:]])
            place = torch.stack([(corner - before) / size, extent / size])
            logits = network.segment(
                crop, semantics, window=place[None], statistics=statistics
            ).logits
            bar.update()
            return logits.float()

        blended: Tensor = sliding_window_inference(
            image,
            roi_size=tuple(window),
            sw_batch_size=1,
            predictor=predict,
            overlap=overlap,
            mode="gaussian",
            with_coord=True,
        )
    return blended
