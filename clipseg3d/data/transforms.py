"""Augmentation of training crops in plain torch; the crop box keeps track of where voxels were.

Source of mirroring, rotation and gamma: arXiv 2507.09966, appendix (flips p .5 per axis, rotation
+-15 degrees p .3, gamma U(.8, 1.2) p .3). Scaling, bias field, contrast, brightness and noise are
our own additions.
"""

import math
import random
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from clipseg3d.batch import Sample, unpack, unpack_image

SHARES = {
    "affine": 0.3,
    "bias": 0.15,
    "gamma": 0.3,
    "contrast": 0.5,
    "brightness": 0.5,
    "noise": 0.15,
    "mirror": 0.5,
}
"""Share of samples that each step changes; for ``mirror``, the share per axis."""
MAX_ANGLE = math.radians(15)
SLAB_PLANES = 16
"""Number of planes that are rotated at once, to save memory."""
BIAS_WAVES = 3
"""Number of cosines of a bias field along each axis of a crop, including the constant one."""
BIAS_SD = 0.03
"""SD of the weight of each product of cosines; 27 products give fields of about 0.8 to 1.25."""


def describe(part: Any, *, depth: int = 4) -> Any:
    """Return a part, such as a transform, as plain values: its class and what it was built with.

    Two that do the same have equal descriptions, so that those of two fits can be compared.
    """
    if part is None or isinstance(part, bool | int | float | str):
        return part
    if isinstance(part, list | tuple):
        return [describe(item, depth=depth) for item in part]
    kind = part if hasattr(part, "__qualname__") else type(part)
    values = vars(part) if depth and kind is not part and hasattr(part, "__dict__") else {}
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        **{name: describe(value, depth=depth - 1) for name, value in values.items()},
    }


class OwnAugmentation:
    """An augmentation of somebody else, such as a dictionary transform of MONAI.

    It is given an unpacked sample, with ``image`` (s, x, y, z) float32 and ``label`` (r, x, y, z)
    float32, and returns one of the same keys. What it draws from torch, NumPy, Python's ``random``
    or MONAI's ``Randomizable`` follows from torch's default generator. If it mirrors, crops or
    rotates, it must change ``crop_box``, see :class:`clipseg3d.batch.Batch`; if it ever rotates,
    its crop boxes must all have four rows.

    Args:
        augmentation: called with a sample.
        num_regions: number of regions r.
    """

    def __init__(self, augmentation: Callable[[Any], Any], *, num_regions: int) -> None:
        self.augmentation = augmentation
        self.num_regions = num_regions

    def __call__(self, sample: Sample) -> Sample:
        """Return an augmented copy of one sample.

        Raises:
            ValueError: the image or the label is missing, or has another shape than before.
        """
        seed = int(torch.randint(2**31, ()))
        before = unpack(sample, num_regions=self.num_regions)
        with isolate_rng(include_cuda=False):
            random.seed(seed)
            np.random.seed(seed)
            if hasattr(self.augmentation, "set_random_state"):
                self.augmentation.set_random_state(seed)
            after = dict(self.augmentation(dict(before)))
        name = type(self.augmentation).__name__
        for key in ("image", "label"):
            shapes = [tuple(getattr(x.get(key), "shape", ())) for x in (before, after)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"{sample['case_id']}: {name} has changed the shape of its {key} from "
                    f"{shapes[0]} to {shapes[1]}; give an augmentation that keeps it"
                )
            after[key] = torch.as_tensor(after[key]).as_subclass(Tensor).float()
        return cast(Sample, {key: after[key] for key in before})


class Augmentation:
    """Random mirroring, rotation, scaling, bias field, gamma, contrast, brightness and noise.

    The intensities of each sequence change independently. Voxels of 0 stay 0: the background, and
    sequences that were not acquired. For gamma and bias field, 0 is the intensity of the darkest
    voxels of the whole brain, since intensities of a scanner are not negative.

    Mirroring, rotation and scaling also change ``crop_box``, which has four rows afterwards, see
    :class:`clipseg3d.batch.Batch`. So a network that reads it can still tell left from right.

    All random numbers come from torch's default generator.
    """

    def __call__(self, sample: Sample) -> Sample:
        """Return an augmented copy of one packed sample."""
        mirrored = np.flatnonzero(torch.rand(3).numpy() < SHARES["mirror"]).tolist()
        corner, size = sample["crop_box"].clone()
        corner[mirrored] += size[mirrored]
        size[mirrored] *= -1
        crop_box = torch.cat([corner[None], size.diag()])
        axes = [1 + axis for axis in mirrored]
        label = sample["label"].flip([axis - 1 for axis in axes])
        # a copy, so that later steps can work in place
        image = unpack_image(sample["image"].flip(axes), sample["statistics"])
        if _happens("affine"):
            image, label, crop_box = _rotate_and_scale(image, label, crop_box)
        _change_intensities(image, sample["statistics"])
        return {**sample, "image": image.half(), "label": label, "crop_box": crop_box}


def _rotate_and_scale(
    image: Tensor, label: Tensor, crop_box: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotate by up to 15 degrees about each axis, and scale each axis by up to 10 percent.

    Args:
        image: (s, x, y, z).
        label: (x, y, z).
        crop_box: (4, 3).
    """
    x, y, z = _uniform(-MAX_ANGLE, MAX_ANGLE, 3).tolist()
    rotation = torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]]))
    sides = torch.tensor(image.shape[1:])
    # from the new crop to the old one, in coordinates from -1 to 1 along each axis
    mapping = rotation * _uniform(0.9, 1.1, 3) * sides / sides[:, None]
    edges = mapping.T @ crop_box[1:]
    centre = crop_box[0] + crop_box[1:].sum(dim=0) / 2
    new_box = torch.cat([(centre - edges.sum(dim=0) / 2)[None], edges])
    matrix = mapping.flip(0, 1)  # torch has the axes in reverse order
    new_image, new_label = torch.empty_like(image), torch.empty_like(label)
    source, codes = image[None], label[None, None].float()
    for start in range(0, len(label), SLAB_PLANES):
        slab = new_label[start : start + SLAB_PLANES]
        middle = (2 * start + len(slab)) / len(label) - 1
        theta = torch.cat([matrix, matrix[:, 2:] * middle], dim=1)
        theta[:, 2] *= len(slab) / len(label)
        grid = F.affine_grid(theta[None], [1, 1, *slab.shape], align_corners=False)
        new_image[:, start : start + SLAB_PLANES] = F.grid_sample(
            source, grid, align_corners=False
        )[0]
        slab[:] = F.grid_sample(codes, grid, mode="nearest", align_corners=False)[0, 0]
    return new_image, new_label, new_box


def _change_intensities(image: Tensor, statistics: Tensor) -> None:
    """Change the intensities of an image (s, x, y, z) in place."""
    background = image == 0
    low, high, _, _ = rearrange(statistics, "s k -> k s 1 1 1")
    bias, gamma = _happens("bias"), _happens("gamma")
    if bias or gamma:
        span = torch.where(high > low, high - low, 1)
        image.sub_(low).div_(span).clamp_(min=0)  # rounding may give values just below 0
        if bias:
            for sequence in image:
                sequence.mul_(_bias_field(sequence))
        if gamma:
            image.pow_(_uniform(0.8, 1.2, len(image), 1, 1, 1))
        image.mul_(span).add_(low)
    if _happens("contrast"):
        image.mul_(_uniform(0.9, 1.1, len(image), 1, 1, 1))
    if _happens("brightness"):
        image.add_(_uniform(-0.1, 0.1, len(image), 1, 1, 1))
    if _happens("noise"):
        strength = float(_uniform(0, 0.1))
        for sequence in image:
            sequence.add_(torch.randn(sequence.shape), alpha=strength)
    image.masked_fill_(background, 0)


def _bias_field(sequence: Tensor) -> Tensor:
    """Return a smooth field around 1, of the shape of a volume (x, y, z): exp of cosines."""
    order = torch.arange(BIAS_WAVES)
    phases = [math.pi * (torch.arange(side) + 0.5) / side for side in sequence.shape]
    waves = [torch.cos(torch.outer(order, phase)) for phase in phases]
    weights = BIAS_SD * torch.randn((BIAS_WAVES,) * 3)
    return torch.einsum("ijk,ix,jy,kz->xyz", weights, *waves).exp_()


def _happens(step: str) -> bool:
    """Draw whether a step changes this sample."""
    return bool(torch.rand(()) < SHARES[step])


def _uniform(low: float, high: float, *shape: int) -> Tensor:
    """Draw uniformly distributed numbers."""
    return low + (high - low) * torch.rand(shape)
