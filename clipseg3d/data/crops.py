"""Where random crops for training lie in the brain box."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Indices = npt.NDArray[np.integer]

TUMOUR_SHARE = 2 / 3
"""Share of crops that have a random tumour voxel near their centre."""


def draw_corner(tumour: Tensor, size: Indices, crop: Indices) -> Indices:
    """Draw the first corner of a crop; a crop larger than the brain is centred on it.

    Args:
        tumour: (n, 3) voxels of the tumour; may be empty.
        size: (3,) of the brain box, in voxels.
        crop: (3,) of the crop.

    Returns:
        (3,), below 0 along axes where the crop is larger than the brain box.
    """
    margin = size - crop
    if len(tumour) and torch.rand(()) < TUMOUR_SHARE:
        centre = tumour[int(torch.randint(len(tumour), ()))].numpy()
        jitter = (torch.rand(3).numpy() - 0.5) * crop / 2
        corner = np.round(centre - crop / 2 + jitter).astype(int)
    else:
        corner = np.floor(torch.rand(3).numpy() * (np.maximum(margin, 0) + 1)).astype(int)
    inside = np.clip(corner, 0, np.maximum(margin, 0))
    return np.where(margin > 0, inside, margin // 2)
