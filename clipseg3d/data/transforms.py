"""Augmentation of training crops: MONAI's random transforms, and mirroring that tells where it is.

Source of the ranges: arXiv 2507.09966, appendix (flips p .5 per axis, rotation +-15 degrees p .3,
gamma U(.8, 1.2) p .3). Scaling, brightness and noise are ours.
"""

import math

import numpy as np
import torch
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
)

from clipseg3d.batch import Sample


class Augmentation:
    """Random mirroring, rotation, scaling, gamma, brightness and noise.

    Mirroring keeps ``window`` true: the mirrored axis runs from its far corner with a negative
    size, so a network that reads the window still knows the patient's left from right.

    All randomness is drawn from torch's generator, which loaders seed per worker and epoch.
    """

    def __init__(self) -> None:
        angle = math.radians(15)
        self.spatial = RandAffined(
            keys=("image", "label"),
            prob=0.3,
            rotate_range=(angle,) * 3,
            scale_range=(0.1,) * 3,
            mode=("bilinear", "nearest"),
            padding_mode="zeros",
        )
        self.intensity = Compose(
            [
                RandAdjustContrastd(keys="image", prob=0.3, gamma=(0.8, 1.2), retain_stats=True),
                RandScaleIntensityd(keys="image", prob=0.5, factors=0.1, channel_wise=True),
                RandShiftIntensityd(keys="image", prob=0.5, offsets=0.1),
                RandGaussianNoised(keys="image", prob=0.15, std=0.05),
            ]
        )

    def __call__(self, sample: Sample) -> Sample:
        """Return a changed copy of one sample; the background stays 0."""
        seed = int(torch.randint(2**31, ()))
        self.spatial.set_random_state(seed=seed)
        self.intensity.set_random_state(seed=seed)
        pair = self.spatial({"image": sample["image"], "label": sample["label"]})
        brain = (pair["image"].as_tensor() != 0).any(dim=0, keepdim=True)
        image = self.intensity({"image": pair["image"]})["image"].as_tensor() * brain
        label = pair["label"].as_tensor()
        mirrored = np.flatnonzero(torch.rand(3).numpy() < 0.5).tolist()
        window = sample["window"].clone()
        window[0, mirrored] += window[1, mirrored]
        window[1, mirrored] *= -1
        axes = [1 + axis for axis in mirrored]
        return {
            **sample,
            "image": image.flip(axes),
            "label": label.flip(axes),
            "window": window,
        }
