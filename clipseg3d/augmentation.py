"""Augmentation of whole batches on the device, by parameters that loader processes drew."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

SLAB_PLANES = 16
"""Number of planes that are rotated at once, to save memory."""


class AugmentationParameters(NamedTuple):
    """What an augmentation changes in the voxels of a batch, or of a sample, which has no ``b``.

    Drawing is cheap, and is done where a sample is read: equal seeds give equal batches on any
    number of ranks and loader processes. Changing voxels is not, and is done on the device.

    Axes: b batch, s sequences, x y z voxels, k cosines of a bias field along each axis.
    """

    mirrored: Tensor
    """(b, 3) bool: axes to mirror, before anything else."""
    mapping: Tensor
    """(b, 3, 3) from the new crop to the old one, in coordinates from -1 to 1 along each axis."""
    bias: Tensor
    """(b, s, k, k, k) weight of each product of cosines of a bias field; 0 throughout for none."""
    power: Tensor
    """(b, s) gamma; 1 for none."""
    gain: Tensor
    """(b, s) contrast; 1 for none."""
    shift: Tensor
    """(b, s) brightness; 0 for none."""
    noise: Tensor
    """(b,) SD of the noise; 0 for none."""
    noise_seed: Tensor
    """(b,) int64 seed of the noise."""

    def mirror(self, volumes: Tensor) -> Tensor:
        """Return a copy of volumes (b, ..., x, y, z), packed or not, each mirrored or not."""
        if self.mirrored.ndim == 1:
            return self._batch_of_one().mirror(volumes[None])[0]
        pairs = zip(volumes, self.mirrored.tolist(), strict=True)
        return torch.stack(
            [volume.flip([axis - 3 for axis in range(3) if axes[axis]]) for volume, axes in pairs]
        )

    def change(self, image: Tensor, label: Tensor, statistics: Tensor) -> None:
        """Rotate and scale, then change the intensities; in place.

        Args:
            image: (b, s, x, y, z) float32, mirrored.
            label: (b, x, y, z) codes of regions, mirrored.
            statistics: (b, s, 4) low, high, mean and SD of each sequence.
        """
        if self.mirrored.ndim == 1:
            self._batch_of_one().change(image[None], label[None], statistics[None])
            return
        # on the CPU, where it costs nothing to ask whether a step changes a sample
        on_cpu = AugmentationParameters(*(part.cpu() for part in self))
        for index, parts in enumerate(zip(*on_cpu, strict=True)):
            parameters = AugmentationParameters(*parts)
            if not torch.equal(parameters.mapping, torch.eye(3)):
                _rotate_and_scale(image[index], label[index], parameters.mapping)
            _change_intensities(image[index], statistics[index], parameters)

    def _batch_of_one(self) -> "AugmentationParameters":
        """Return those of a sample as those of a batch."""
        return AugmentationParameters(*(part[None] for part in self))


def _rotate_and_scale(image: Tensor, label: Tensor, mapping: Tensor) -> None:
    """Rotate and scale an image (s, x, y, z) and its codes of regions (x, y, z) in place."""
    matrix = mapping.flip(0, 1)  # torch has the axes in reverse order
    source, codes = image[None].clone(), label[None, None].float()
    for start in range(0, len(label), SLAB_PLANES):
        slab = label[start : start + SLAB_PLANES]
        middle = (2 * start + len(slab)) / len(label) - 1
        theta = torch.cat([matrix, matrix[:, 2:] * middle], dim=1)
        theta[:, 2] *= len(slab) / len(label)
        theta = theta.to(image.device)
        grid = F.affine_grid(theta[None], [1, 1, *slab.shape], align_corners=False)
        image[:, start : start + SLAB_PLANES] = F.grid_sample(source, grid, align_corners=False)[0]
        slab[:] = F.grid_sample(codes, grid, mode="nearest", align_corners=False)[0, 0]


def _change_intensities(
    image: Tensor, statistics: Tensor, parameters: AugmentationParameters
) -> None:
    """Change the intensities of an image (s, x, y, z) in place; 0 stays 0."""
    background = image == 0
    low, high, _, _ = rearrange(statistics, "s k -> k s 1 1 1")
    bias, gamma = parameters.bias.any(), (parameters.power != 1).any()
    if bias or gamma:
        span = torch.where(high > low, high - low, 1)
        image.sub_(low).div_(span).clamp_(min=0)  # rounding may give values just below 0
        if bias:
            for sequence, weights in zip(image, parameters.bias.to(image.device), strict=True):
                sequence.mul_(_bias_field(sequence, weights))
        if gamma:
            image.pow_(_per_sequence(parameters.power, image))
        image.mul_(span).add_(low)
    if (parameters.gain != 1).any():
        image.mul_(_per_sequence(parameters.gain, image))
    if parameters.shift.any():
        image.add_(_per_sequence(parameters.shift, image))
    if parameters.noise > 0:
        generator = torch.Generator(image.device).manual_seed(int(parameters.noise_seed))
        noise = torch.empty_like(image[0])
        for sequence in image:
            sequence.add_(noise.normal_(generator=generator), alpha=float(parameters.noise))
    image.masked_fill_(background, 0)


def _bias_field(sequence: Tensor, weights: Tensor) -> Tensor:
    """Return a smooth field around 1, of the shape of a volume (x, y, z): exp of cosines."""
    order = torch.arange(len(weights))
    phases = [math.pi * (torch.arange(side) + 0.5) / side for side in sequence.shape]
    waves = [torch.cos(torch.outer(order, phase)).to(sequence.device) for phase in phases]
    return torch.einsum("ijk,ix,jy,kz->xyz", weights, *waves).exp_()


def _per_sequence(values: Tensor, image: Tensor) -> Tensor:
    """Return one value (s,) for each sequence in a form that an image (s, x, y, z) takes."""
    return rearrange(values, "s -> s 1 1 1").to(image.device)
