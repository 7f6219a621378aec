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
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from clipseg3d.augmentation import AugmentationParameters
from clipseg3d.batch import AugmentedSample, Sample, unpack, unpack_image

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

    All random numbers come from torch's default generator, those of the noise by a seed.
    """

    def __call__(self, sample: Sample) -> Sample:
        """Return an augmented copy of one packed sample."""
        drawn = self.draw(sample)
        parameters, statistics = drawn["augmentation"], sample["statistics"]
        label = parameters.mirror(sample["label"])
        image = unpack_image(parameters.mirror(sample["image"]), statistics)
        parameters.change(image, label, statistics)
        return {**sample, "image": image.half(), "label": label, "crop_box": drawn["crop_box"]}

    def draw(self, sample: Sample) -> AugmentedSample:
        """Return one packed sample that :func:`clipseg3d.batch.unpack` augments, on the device.

        Its crop box is already that of the augmented crop.
        """
        mirrored = torch.rand(3) < SHARES["mirror"]
        corner, size = sample["crop_box"].clone()
        corner[mirrored] += size[mirrored]
        size[mirrored] *= -1
        crop_box, mapping = torch.cat([corner[None], size.diag()]), torch.eye(3)
        if _happens("affine"):
            crop_box, mapping = _rotate_and_scale(crop_box, torch.tensor(sample["label"].shape))
        count = len(sample["statistics"])
        fields = (count, BIAS_WAVES, BIAS_WAVES, BIAS_WAVES)
        bias, gamma = _happens("bias"), _happens("gamma")
        parameters = AugmentationParameters(
            mirrored=mirrored,
            mapping=mapping,
            bias=BIAS_SD * torch.randn(fields) if bias else torch.zeros(fields),
            power=_uniform(0.8, 1.2, count) if gamma else torch.ones(count),
            gain=_uniform(0.9, 1.1, count) if _happens("contrast") else torch.ones(count),
            shift=_uniform(-0.1, 0.1, count) if _happens("brightness") else torch.zeros(count),
            noise=_uniform(0, 0.1) if _happens("noise") else torch.zeros(()),
            noise_seed=torch.randint(2**31, ()),
        )
        return {**sample, "crop_box": crop_box, "augmentation": parameters}


def _rotate_and_scale(crop_box: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a rotation by up to 15 degrees about each axis, and scales of up to 10 percent.

    Args:
        crop_box: (4, 3).
        sides: (3,) of the crop, in voxels.

    Returns:
        The new crop box, and the mapping (3, 3) from the new crop to the old one, in coordinates
        from -1 to 1 along each axis.
    """
    x, y, z = _uniform(-MAX_ANGLE, MAX_ANGLE, 3).tolist()
    rotation = torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]]))
    mapping = rotation * _uniform(0.9, 1.1, 3) * sides / sides[:, None]
    edges = mapping.T @ crop_box[1:]
    centre = crop_box[0] + crop_box[1:].sum(dim=0) / 2
    return torch.cat([(centre - edges.sum(dim=0) / 2)[None], edges]), mapping


def _happens(step: str) -> bool:
    """Draw whether a step changes this sample."""
    return bool(torch.rand(()) < SHARES[step])


def _uniform(low: float, high: float, *shape: int) -> Tensor:
    """Draw uniformly distributed numbers."""
    return low + (high - low) * torch.rand(shape)
