"""Of lesions that are alike, a report on one side of the brain means those of that side.

What a report says of the side is read twice: as a prompt is, by the place that the prompt head of
the weights reads from each sentence, and by words (:mod:`clipseg3d.inference.named_side`). Both
must say the same. A single lesion is never touched: there, the image is clear. Nor is any where the
report may speak of several, or of both sides.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage

from clipseg3d.blocks.prompt_head import PromptHead, PromptReading
from clipseg3d.inference.prompting import on_cpu
from clipseg3d.metrics.lesions import ALL_NEIGHBOURS
from clipseg3d.networks.clipseg3d import CLIPSeg3D

Masks = npt.NDArray[np.bool_]
WHOLE = np.array([[0.0] * 3, [1.0] * 3])
"""Corner and size of the whole brain box, as shares of it."""
_ALIKE = 3.0
"""Lesions are alike if the largest is at most so many times as large."""
_NAMED = 1.0
"""Log-odds of its side from which on a lesion is named, and below whose opposite it is not."""
_POINTS = 2000
"""Voxels of a lesion at which its place is asked."""


@torch.no_grad()
def read_report(networks: Sequence[CLIPSeg3D], report: str) -> list[PromptReading]:
    """Return what the sentences of a report say, as each network with a prompt head reads them."""
    readings = []
    for network in networks:
        if network.text_bank is None or network.prompt_head is None:
            continue
        text, _ = network.text_bank([report])
        sentences = F.normalize(text[:, len(network.text_bank.prompts) :], dim=-1)
        reading = network.prompt_head.read(sentences.to(network.semantic_strength.device))
        readings.append(on_cpu(reading))
    return readings


def find_unnamed(
    readings: Sequence[PromptReading],
    lesions: Masks,
    *,
    side: Literal["left", "right"] | None,
    crop_box: npt.NDArray[np.float64] = WHOLE,
    trust: float = 1.0,
) -> list[Masks]:
    """Return the lesions that a report does not mean, if it means others that are alike.

    The log-odds of a lesion are those of its place against its mirror image, summed over sentences.

    Args:
        readings: of the report, from :func:`read_report`; their log-odds are averaged.
        lesions: (x, y, z), all of them, on the brain box, x from right to left.
        side: on which the report places its lesion, by its words; None if they do not tell.
        crop_box: corner and size (2, 3) of the grid of lesions as shares of the whole brain box.
        trust: factor of the log-odds, 0 to 1.

    Returns:
        (x, y, z) of each lesion.
    """
    parts, count = ndimage.label(lesions, structure=ALL_NEIGHBOURS)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    readings = [reading for reading in readings if reading.several.numel()]
    if count < 2 or not readings or side is None:
        return []
    if np.mean([float(reading.several.max()) for reading in readings]) >= 0:
        return []
    alike = [1 + int(index) for index in np.flatnonzero(sizes * _ALIKE >= sizes.max())]
    if len(alike) < 2:
        return []
    odds = {part: trust * _side_log_odds(readings, parts == part, crop_box) for part in alike}
    if max(odds.values()) < _NAMED:
        return []
    unnamed = [parts == part for part in alike if odds[part] <= -_NAMED]
    return [lesion for lesion in unnamed if is_left(lesion, crop_box) == (side == "right")]


def is_left(lesion: Masks, crop_box: npt.NDArray[np.float64] = WHOLE) -> bool:
    """Return whether a lesion, x from right to left, lies on the left; see :func:`find_unnamed`."""
    return bool(_positions(lesion, crop_box)[:, 0].mean() > 0)


def _positions(lesion: Masks, crop_box: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return positions (p, 3) of some voxels in the brain box, from -1 to 1 along each axis."""
    voxels = np.argwhere(lesion)
    chosen = voxels[:: max(1, len(voxels) // _POINTS)]
    shares = crop_box[0] + crop_box[1] * (chosen + 0.5) / np.array(lesion.shape)
    centres: npt.NDArray[np.float64] = 2 * shares - 1
    return centres


def _side_log_odds(
    readings: Sequence[PromptReading], lesion: Masks, crop_box: npt.NDArray[np.float64]
) -> float:
    """Return the mean log-odds over networks that a report means a lesion, not its mirror image."""
    there = torch.from_numpy(_positions(lesion, crop_box)).float()[None]
    mirrored = there * torch.tensor([-1.0, 1.0, 1.0])
    odds = []
    for reading in readings:
        own, other = (
            F.logsigmoid(PromptHead.locate_points(reading, points)).mean(dim=2).sum()
            for points in (there, mirrored)
        )
        odds.append(float(own - other))
    return float(np.mean(odds))
