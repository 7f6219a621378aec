"""Test-time augmentation: a network segments the volume mirrored, and the result is mirrored back.

Mirroring swaps the left and the right side of the brain. The crop box tells the network about it
(see :func:`mirror_crop_box`), so that "left" in a report still means the patient's left.
"""

from collections.abc import Sequence
from itertools import combinations

from torch import Tensor

MIRRORINGS = tuple(axes for count in range(4) for axes in combinations(range(3), count))
"""Spatial axes to mirror along: none, then each of the seven other combinations."""


def mirror_volume(volume: Tensor, mirrored: Sequence[int]) -> Tensor:
    """Return a volume mirrored along axes; the second time, this gives the volume back.

    Args:
        volume: (..., x, y, z).
        mirrored: spatial axes, 0 to 2; with none, the volume itself is returned.
    """
    axes = [volume.ndim - 3 + axis for axis in mirrored]
    return volume.flip(axes) if axes else volume  # a flip along no axis would copy


def mirror_crop_box(crop_box: Tensor, mirrored: Sequence[int]) -> Tensor:
    """Return where a crop of the mirrored volume lies in the volume itself.

    Along a mirrored axis, the corner is counted from the other end of the volume, and the size is
    negative: the crop runs from its far corner backwards.

    Args:
        crop_box: (2, 3), corner and size of the crop in the mirrored volume, as shares of the
            volume.
        mirrored: spatial axes, 0 to 2.
    """
    axes = list(mirrored)
    crop_box = crop_box.clone()
    crop_box[0, axes] = 1 - crop_box[0, axes]
    crop_box[1, axes] *= -1
    return crop_box
