"""Prompts for training: drawn at random, with the mask that each asks for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor

from clipseg3d.blocks.positions import voxel_positions
from clipseg3d.blocks.prompt_head import PICKS, PromptReading
from clipseg3d.texts.facts import lobe_masks
from clipseg3d.texts.prompt_wording import Request, write_prompt

_PARTS: dict[str, dict[str, float]] = {
    "whole": {"WT": 1},
    "core": {"TC": 1},
    "enhancing": {"ET": 1},
    "necrosis": {"TC": 1, "ET": -1},
    "oedema": {"WT": 1, "TC": -1},
    "none": {},
}
"""Target of a prompt -> signs of the regions that make it up."""
_SIDES, _LOBES = ("left", "right"), ("frontal", "parietal", "temporal", "occipital")


@dataclass(frozen=True)
class PromptTask:
    """A prompt, and what it asks for.

    Attributes:
        text: the prompt.
        signs: of each region: 1, -1 to leave it out, or 0; all 0 if nothing is asked for.
        request: side, place and pick.
    """

    text: str
    signs: tuple[float, ...]
    request: Request


def draw_tasks(
    count: int,
    regions: Sequence[str],
    wordings: Sequence[Sequence[str]],
    rng: np.random.Generator,
) -> list[PromptTask]:
    """Draw prompts, of which a sixth ask for what is no part of a tumour.

    If there are WT, TC and ET, prompts ask in many wordings for these and what lies between them.
    Other regions are asked for by their own prompt.

    Args:
        count: how many.
        regions: names of the regions.
        wordings: of the prompt of each region.
        rng: draws everything.
    """
    parts = [name for name, part in _PARTS.items() if set(part) <= set(regions)]
    own = [index for index, region in enumerate(regions) if region not in ("WT", "TC", "ET")]
    tasks = []
    for _ in range(count):
        choice = int(rng.integers(len(parts) + len(own)))
        where = rng.random()
        side: Any = _SIDES[int(rng.integers(2))] if where < 0.3 else None
        site: Any = _LOBES[int(rng.integers(4))] if 0.2 < where < 0.4 else None
        if choice < len(parts):
            target: Any = parts[choice]
            pick: Any = None
            if target != "none" and rng.random() < 0.2:
                pick = PICKS[1 + int(rng.integers(2))]
            request = Request(target, side=side, site=site, pick=pick)
            signs = tuple(_PARTS[target].get(region, 0.0) for region in regions)
            tasks.append(PromptTask(write_prompt(request, rng), signs, request))
        else:
            region = own[choice - len(parts)]
            signs = tuple(float(index == region) for index in range(len(regions)))
            text = wordings[region][int(rng.integers(len(wordings[region])))]
            tasks.append(PromptTask(text, signs, Request("whole")))
    return tasks


def task_masks(
    tasks: Sequence[PromptTask], label: Tensor, crop_box: Tensor | None = None
) -> Tensor:
    """Return the mask of each prompt (b, n, x, y, z), of all separate parts, in {0, 1}.

    Args:
        tasks: n prompts.
        label: (b, r, x, y, z) regions in {0, 1}.
        crop_box: (b, 2, 3) position of the label in the brain box; None for the whole box.
    """
    positions = (voxel_positions(label, crop_box) + 1) / 2
    lobes = {str(lobe): mask for lobe, mask in lobe_masks(*positions[:, 1:].unbind(1)).items()}
    masks = []
    for task in tasks:
        mask = torch.zeros_like(label[:, 0])
        for sign, region in zip(task.signs, label.unbind(1), strict=True):
            mask = mask + region if sign > 0 else mask * (1 - region) if sign < 0 else mask
        if task.request.side is not None:
            is_left = positions[:, 0] > 0.5
            mask = mask * (is_left if task.request.side == "left" else ~is_left)
        if task.request.site is not None:
            mask = mask * lobes[task.request.site]
        masks.append(mask.clamp(max=1))
    return torch.stack(masks, dim=1)


def prompt_loss(
    reading: PromptReading, probabilities: Tensor, masks: Tensor, tasks: Sequence[PromptTask]
) -> Tensor:
    """Return the loss of prompts: Dice where there is a mask, and cross-entropies.

    Args:
        reading: of the n prompts, with a batch of 1.
        probabilities: (b, n, x, y, z), from the head.
        masks: (b, n, x, y, z), from :func:`task_masks`.
        tasks: the prompts.
    """
    with torch.autocast(masks.device.type, enabled=False):
        probabilities = 1e-6 + (1 - 2e-6) * probabilities.float()  # a clamp would stop gradients
        masks = masks.float()
        overlap = reduce(probabilities * masks, "b n x y z -> b n", "sum")
        total = reduce(probabilities + masks, "b n x y z -> b n", "sum")
        has_mask = reduce(masks, "b n x y z -> b n", "max")
        dice = ((1 - 2 * overlap / total) * has_mask).sum() / has_mask.sum().clamp(min=1)
        voxels = F.binary_cross_entropy(probabilities, masks)
        asked = [float(any(task.signs)) for task in tasks]
        presence = reading.presence[0].float()
        picks = [PICKS.index(task.request.pick or "all") for task in tasks]
        picked = torch.tensor(picks, device=presence.device)
        return (
            dice
            + 5 * voxels
            + F.binary_cross_entropy_with_logits(presence, presence.new_tensor(asked))
            + 0.3 * F.cross_entropy(reading.pick[0].float(), picked)
        )


def coarsen(label: Tensor, edge: int) -> Tensor:
    """Return a label map (b, r, x, y, z) whose axes are at most ``edge`` long, in {0, 1}."""
    stride = [max(1, -(-size // edge)) for size in label.shape[2:]]
    return (F.avg_pool3d(label, stride, ceil_mode=True, count_include_pad=False) > 0.5).to(label)
