"""Augmentation of training crops in plain torch, and mirroring that tells where it is.

Source of flips, rotation and gamma: arXiv 2507.09966, appendix (flips p .5 per axis, rotation +-15
degrees p .3, gamma U(.8, 1.2) p .3). Scaling, bias field, contrast, brightness and noise are ours.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from clipseg3d.batch import Sample, unpack_image

SHARES = {
    "affine": 0.3,
    "bias": 0.15,
    "gamma": 0.3,
    "contrast": 0.5,
    "brightness": 0.5,
    "noise": 0.15,
    "mirror": 0.5,
}
"""Share of samples that each step changes; of ``mirror``, for each axis."""
ANGLE = math.radians(15)
SLAB = 16
"""Planes that are rotated at once."""
BIAS_WAVES = 3
"""Cosines that a bias field is made of along each axis of a crop, the constant one included."""
BIAS_SD = 0.03
"""SD of the weight of each product of cosines; 27 of them give fields of 0.8 to 1.25, or so."""


class Augmentation:
    """Random mirroring, rotation, scaling, bias field, gamma, contrast, brightness and noise.

    Intensities of each sequence change on their own. What is 0 stays 0: the background, and a
    sequence that was not acquired. Gamma and bias field work on intensities that count from the
    darkest voxels of the whole brain, as those of a scanner do.

    Mirroring keeps ``crop_box`` true: the mirrored axis runs from its far corner with a negative
    size, so a network that reads the crop box still knows the patient's left from right.

    All randomness is drawn from torch's generator, which loaders seed per worker and epoch.
    """

    def __call__(self, sample: Sample) -> Sample:
        """Return a changed copy of one sample."""
        mirrored = np.flatnonzero(torch.rand(3).numpy() < SHARES["mirror"]).tolist()
        crop_box = sample["crop_box"].clone()
        crop_box[0, mirrored] += crop_box[1, mirrored]
        crop_box[1, mirrored] *= -1
        axes = [1 + axis for axis in mirrored]
        label = sample["label"].flip([axis - 1 for axis in axes])
        # a copy, so that the rest may work in place
        image = unpack_image(sample["image"].flip(axes), sample["statistics"])
        if _happens("affine"):
            image, label = _turn(image, label)
        _change_intensities(image, sample["statistics"])
        return {**sample, "image": image.half(), "label": label, "crop_box": crop_box}


def _turn(image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate about any axis by up to 15 degrees, and scale each by up to 10 percent."""
    x, y, z = _between(-ANGLE, ANGLE, 3).tolist()
    turn = torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]]))
    sides = torch.tensor(image.shape[1:])
    # torch counts each axis from -1 to 1, the last one first
    share = (turn * _between(0.9, 1.1, 3) * sides / sides[:, None]).flip(0, 1)
    turned, turned_label = torch.empty_like(image), torch.empty_like(label)
    whole, codes = image[None], label[None, None].float()
    for start in range(0, len(label), SLAB):  # little memory, little of it fresh
        part = turned_label[start : start + SLAB]
        middle = (2 * start + len(part)) / len(label) - 1
        theta = torch.cat([share, share[:, 2:] * middle], dim=1)
        theta[:, 2] *= len(part) / len(label)
        grid = F.affine_grid(theta[None], [1, 1, *part.shape], align_corners=False)
        turned[:, start : start + SLAB] = F.grid_sample(whole, grid, align_corners=False)[0]
        part[:] = F.grid_sample(codes, grid, mode="nearest", align_corners=False)[0, 0]
    return turned, turned_label


def _change_intensities(image: Tensor, statistics: Tensor) -> None:
    """Change an image (s, x, y, z) in place."""
    background = image == 0
    low, high, _, _ = rearrange(statistics, "s k -> k s 1 1 1")
    bias, gamma = _happens("bias"), _happens("gamma")
    if bias or gamma:
        span = torch.where(high > low, high - low, 1)
        image.sub_(low).div_(span).clamp_(min=0)  # rounding may leave it just below
        if bias:
            for sequence in image:
                sequence.mul_(_bias_field(sequence))
        if gamma:
            image.pow_(_between(0.8, 1.2, len(image), 1, 1, 1))
        image.mul_(span).add_(low)
    if _happens("contrast"):
        image.mul_(_between(0.9, 1.1, len(image), 1, 1, 1))
    if _happens("brightness"):
        image.add_(_between(-0.1, 0.1, len(image), 1, 1, 1))
    if _happens("noise"):
        strength = float(_between(0, 0.1))
        for sequence in image:
            sequence.add_(torch.randn(sequence.shape), alpha=strength)
    image.masked_fill_(background, 0)


def _bias_field(sequence: Tensor) -> Tensor:
    """Return a smooth field around 1 of the shape of a volume (x, y, z): exp of random cosines."""
    order = torch.arange(BIAS_WAVES)
    places = [math.pi * (torch.arange(side) + 0.5) / side for side in sequence.shape]
    waves = [torch.cos(torch.outer(order, place)) for place in places]
    weights = BIAS_SD * torch.randn((BIAS_WAVES,) * 3)
    return torch.einsum("ijk,ix,jy,kz->xyz", weights, *waves).exp_()


def _happens(step: str) -> bool:
    """Draw whether a step changes a sample."""
    return bool(torch.rand(()) < SHARES[step])


def _between(low: float, high: float, *shape: int) -> Tensor:
    """Draw uniform numbers."""
    return low + (high - low) * torch.rand(shape)
