"""Prompts are checked and read once, and answered on the segmented regions of each case."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from clipseg3d.blocks.prompt_head import PICKS, PromptHead, PromptReading
from clipseg3d.clip.known_words import is_probably_unknown
from clipseg3d.data.scan_grid import ScanGrid
from clipseg3d.inference.prompt_answer import PromptAnswer
from clipseg3d.metrics.lesions import ALL_NEIGHBOURS
from clipseg3d.networks.clipseg3d import CLIPSeg3D

MAX_CHARACTERS = 1000
"""Longest prompt; it names one thing, which takes a line."""
Masks = npt.NDArray[np.bool_]


class PromptWarning(UserWarning):
    """A prompt is probably not understood; the words are the note of its answers."""


class ReadPrompt(NamedTuple):
    """A prompt, as each network reads it."""

    text: str
    readings: tuple[tuple[PromptHead, PromptReading], ...]
    """Of each network, its head and what that reads, for a batch of 1 and 1 prompt, on the CPU."""
    note: str
    """Why it is probably not understood; empty if it may be."""


def check_prompts(prompts: Sequence[str]) -> tuple[str, ...]:
    """Return prompts with single spaces, each once.

    Raises:
        ValueError: one is no text, empty, too long, or not valid Unicode.
    """
    if isinstance(prompts, str):  # which is a sequence of strings too, one per character
        raise ValueError(f"prompts={prompts[:60]!r} is one str; give a list of prompts")
    return tuple(dict.fromkeys(_check(prompt) for prompt in prompts))


def _check(prompt: Any) -> str:
    """Return a prompt with single spaces; refuse what cannot be one."""
    if not isinstance(prompt, str):
        raise ValueError(f"a prompt is a {type(prompt).__name__}, {prompt!r}; give a text")
    text = " ".join(prompt.split())
    if not text:
        raise ValueError(
            f"prompt {prompt[:60]!r} is empty; write what to segment, such as 'the enhancing rim'"
        )
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"prompt '{text[:40]}...' has {len(text)} characters, and {MAX_CHARACTERS} are the "
            "most; name one thing in a prompt, and give a report as text (--text)"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"prompt {text[:60]!a} holds half a surrogate pair; write it again"
        ) from error
    return text


def read_prompts(networks: Sequence[CLIPSeg3D], prompts: Sequence[str]) -> tuple[ReadPrompt, ...]:
    """Read prompts that :func:`check_prompts` returned.

    Raises:
        ValueError: a network answers no prompts.
    """
    if not prompts:
        return ()
    readings = [on_cpu(network.read_prompts(list(prompts))) for network in networks]
    heads = [network.prompt_head for network in networks if network.prompt_head is not None]
    encoders = [network.text_encoder for network in networks]
    return tuple(
        ReadPrompt(
            text,
            tuple(
                (head, PromptReading(*(part[:, n : n + 1] for part in reading)))
                for head, reading in zip(heads, readings, strict=True)
            ),
            _note(text) if any(is_probably_unknown(encoder, text) for encoder in encoders) else "",
        )
        for n, text in enumerate(prompts)
    )


def on_cpu(reading: PromptReading) -> PromptReading:
    """Return a reading in float32 on the CPU, without gradients."""
    return PromptReading(*(part.detach().float().cpu() for part in reading))


def _note(text: str) -> str:
    return (
        f"prompt {text!r}: its words are unknown to the text encoder, so it is probably not "
        "understood, and its mask may be anything; use plain English words"
    )


@torch.no_grad()
def answer_prompt(
    prompt: ReadPrompt,
    regions: Masks,
    grid: ScanGrid,
    *,
    crop_box: npt.NDArray[np.float64] | None = None,
) -> PromptAnswer:
    """Return what a prompt denotes in a case.

    Memory: some 15 values of float32 per voxel of the smallest box around all regions.

    Args:
        prompt: as the networks read it; their probabilities are averaged.
        regions: (r, x, y, z), the final masks on the brain box.
        grid: how the brain box lies in the scan.
        crop_box: corner and size (2, 3) of these masks as shares of the whole brain; None for all.
    """
    anything = regions.any(axis=0)
    if not anything.any():
        nothing = np.zeros((0, 0, 0), bool)
        return PromptAnswer(prompt.text, 0.0, nothing, (0, 0, 0), grid, prompt.note)
    box = ndimage.find_objects(anything.astype(np.uint8))[0]
    starts = torch.tensor([side.start for side in box])
    lengths = torch.tensor([side.stop - side.start for side in box])
    inner_box = torch.stack([starts, lengths]) / torch.tensor(anything.shape)
    if crop_box is not None:
        corner, size = torch.from_numpy(crop_box).float()
        inner_box = torch.stack([corner + size * inner_box[0], size * inner_box[1]])
    inside = torch.from_numpy(regions[:, box[0], box[1], box[2]].astype(np.float32))[None]
    answers = [head(reading, inside, inner_box[None])[0, 0] for head, reading in prompt.readings]
    probabilities = torch.stack(answers).mean(dim=0)
    picks = torch.stack([reading.pick[0, 0].softmax(dim=0) for _, reading in prompt.readings])
    part = _pick((probabilities > 0.5).numpy(), PICKS[int(picks.mean(dim=0).argmax())])
    x, y, z = starts.tolist()
    presence = float(probabilities.max())
    return PromptAnswer(prompt.text, presence, part, (x, y, z), grid, prompt.note)


def _pick(mask: Masks, pick: str) -> Masks:
    """Return all components of a mask, or the largest or smallest one; of equals, the first."""
    parts, count = ndimage.label(mask, structure=ALL_NEIGHBOURS)
    if pick == "all" or count < 2:
        return mask
    sizes = np.bincount(parts.ravel())[1:]
    chosen: Masks = parts == 1 + int(sizes.argmax() if pick == "largest" else sizes.argmin())
    return chosen
