"""Prompts and sentences for training: drawn at random, with what each asks for or says."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import einsum
from torch import Tensor

from clipseg3d.blocks.positions import voxel_positions
from clipseg3d.blocks.prompt_head import PICKS, PromptHead, PromptReading
from clipseg3d.texts.facts import lobe_masks
from clipseg3d.texts.prompt_wording import Request, write_prompt
from clipseg3d.texts.wording import SITES, Statement, write_text

_PARTS: dict[str, dict[str, float]] = {
    "whole": {"WT": 1},
    "core": {"TC": 1},
    "enhancing": {"ET": 1},
    "necrosis": {"TC": 1, "ET": -1},
    "oedema": {"WT": 1, "TC": -1},
    "none": {},
}
"""Target of a prompt -> signs of the regions that make it up."""
_SAID: tuple[tuple[str, tuple[Any, ...], float], ...] = (
    ("side", (*("left", "right") * 4, "both"), 0.6),
    ("sites", tuple((site,) for site in SITES), 0.4),
    ("crosses_midline", (False, True), 0.25),
    ("enhancement", ("none", "rim", "solid", "yes"), 0.25),
    ("necrosis", (False, True), 0.2),
    ("oedema", ("none", "limited", "moderate", "extensive", "present"), 0.3),
)
"""Fact of a sentence beside the number of lesions, its values, and how often it is told."""
_SENTENCE_END = re.compile(r"[.!?]\s")
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


def draw_sentences(count: int, rng: np.random.Generator) -> tuple[list[str], list[bool]]:
    """Draw sentences of reports, and whether each speaks of several lesions or of both sides.

    Args:
        count: how many.
        rng: draws everything.
    """
    sentences: list[str] = []
    several: list[bool] = []
    while len(sentences) < count:
        said: dict[str, Any] = {"foci": (None, "single", "multiple")[int(rng.integers(3))]}
        for name, values, share in _SAID:
            if rng.random() < share:
                said[name] = values[int(rng.integers(len(values)))]
        statement = Statement(**said)
        text = " ".join(write_text(statement, rng).split())
        if text and not _SENTENCE_END.search(text):  # of two, it is not known which one says what
            sentences.append(text)
            is_wide = statement.side == "both" or statement.crosses_midline is True
            several.append(statement.foci == "multiple" or is_wide)
    return sentences, several


def task_masks(
    tasks: Sequence[PromptTask], label: Tensor, crop_box: Tensor | None = None
) -> Tensor:
    """Return the mask of each prompt (b, n, x, y, z), of all separate parts, in {0, 1}.

    Args:
        tasks: n prompts.
        label: (b, r, x, y, z) regions in {0, 1}.
        crop_box: (b, 2, 3) position of the label in the brain box; None for the whole box.
    """
    parts = torch.stack([_part(task.signs, label) for task in tasks], dim=1)
    return parts * _places(tasks, label, crop_box)


def _part(signs: Sequence[float], regions: Tensor) -> Tensor:
    """Return what signs make of regions (b, r, ...), in {0, 1}."""
    part = torch.zeros_like(regions[:, 0])
    for sign, region in zip(signs, regions.unbind(1), strict=True):
        part = part + region if sign > 0 else part * (1 - region) if sign < 0 else part
    return part.clamp(max=1)


def _places(tasks: Sequence[PromptTask], grid: Tensor, crop_box: Tensor | None) -> Tensor:
    """Return the side and lobe that each prompt names (b, n, x, y, z), in {0, 1}."""
    positions = (voxel_positions(grid, crop_box) + 1) / 2
    is_left = positions[:, 0] > 0.5
    lobes = {str(lobe): mask for lobe, mask in lobe_masks(*positions[:, 1:].unbind(1)).items()}
    places = []
    for task in tasks:
        place = torch.ones_like(is_left)
        if task.request.side is not None:
            place = place & (is_left if task.request.side == "left" else ~is_left)
        if task.request.site is not None:
            place = place & lobes[task.request.site]
        places.append(place)
    return torch.stack(places, dim=1).to(grid.dtype)


def prompt_loss(
    head: PromptHead,
    reading: PromptReading,
    label: Tensor,
    tasks: Sequence[PromptTask],
    crop_box: Tensor | None = None,
) -> Tensor:
    """Return the loss of prompts: one term for each of the four parts of what is read.

    A product of probabilities teaches its factors badly: when one is small, all others get no
    gradient, and a weight goes on to move where the clip is right already. Here the sum of regions
    is taught for every combination of regions that a voxel of the label has: it has no loss, and no
    gradient, from 1 on where the part is asked for, and down from 0 where it is not.

    Args:
        head: of the network.
        reading: of the n prompts, with a batch of 1.
        label: (b, r, x, y, z) true regions in {0, 1}.
        tasks: the prompts.
        crop_box: (b, 2, 3) position of the label in the brain box; None for the whole box.
    """
    with torch.autocast(label.device.type, enabled=False):
        reading = PromptReading(*(part.float() for part in reading))
        combinations = _combinations(label)
        asked = torch.stack([_part(task.signs, combinations) for task in tasks])
        mixture = einsum(reading.weights[0], combinations, "n r, c r -> n c")
        wrong = asked * F.relu(1 - mixture) + (1 - asked) * F.relu(mixture)
        log_odds = head.locate(reading, label.float(), crop_box)
        places = _places(tasks, label.float(), crop_box)
        present = reading.presence.new_tensor([float(any(task.signs)) for task in tasks])
        picks = [PICKS.index(task.request.pick or "all") for task in tasks]
        return (
            4 * wrong.square().mean()
            + F.binary_cross_entropy_with_logits(log_odds, places.expand_as(log_odds))
            + F.binary_cross_entropy_with_logits(reading.presence[0], present)
            + 0.3 * F.cross_entropy(reading.pick[0], torch.tensor(picks, device=label.device))
        )


def sentence_loss(reading: PromptReading, several: Sequence[bool]) -> Tensor:
    """Return the loss of how sentences are read.

    Args:
        reading: of the n sentences, with a batch of 1.
        several: whether each speaks of several lesions.
    """
    target = torch.tensor(several, device=reading.several.device)
    return F.binary_cross_entropy_with_logits(reading.several[0].float(), target.float())


def _combinations(label: Tensor) -> Tensor:
    """Return the different sets of regions (c, r) that voxels of (b, r, x, y, z) belong to."""
    bits = 2 ** torch.arange(label.shape[1], device=label.device)
    codes: Tensor = torch.unique(einsum(label.long(), bits, "b r x y z, r -> b x y z"))
    combinations: Tensor = (codes[:, None] // bits % 2).float()
    return combinations


def coarsen(label: Tensor, edge: int) -> Tensor:
    """Return a label map (b, r, x, y, z) whose axes are at most ``edge`` long, in {0, 1}."""
    stride = [max(1, -(-size // edge)) for size in label.shape[2:]]
    return (F.avg_pool3d(label, stride, ceil_mode=True, count_include_pad=False) > 0.5).to(label)
