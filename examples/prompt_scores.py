"""Are prompts obeyed? Scores of masks that prompts get, beside those of keywords.

A prompt is compared with the truth. What the network finds without it is cut in the same way by the
true request, so a bad segmentation is not taken for a bad answer; keywords (``read_prompt``) cut it
by what they read. Prompts in words of others are those of ``held_out/``.
"""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from keyword_parser import read_prompt
from scipy import ndimage

from clipseg3d import Predictor
from clipseg3d.phantom.grid import Bool
from clipseg3d.texts.facts import CORE, ENHANCING, OEDEMA, Label, lobe_masks
from clipseg3d.texts.prompt_wording import Request, Target

KNOWN: dict[str, Request] = {
    "the whole tumour": Request("whole"),
    "the tumour core": Request("core"),
    "the enhancing rim": Request("enhancing"),
    "necrosis": Request("necrosis"),
    "oedema": Request("oedema"),
    "the oedema in the left hemisphere": Request("oedema", side="left"),
    "the tumour on the right": Request("whole", side="right"),
    "the kidney": Request("none"),
    "the weather is fine": Request("none"),
}
"""Prompts in the words of training."""
MIN_ML = 0.5
"""A part with less is left out: neither there nor absent."""
_HELD_OUT = Path(__file__).parent / "held_out"
_LABELS: dict[Target, tuple[int, ...]] = {
    "whole": (CORE, OEDEMA, ENHANCING),
    "core": (CORE, ENHANCING),
    "enhancing": (ENHANCING,),
    "necrosis": (CORE,),
    "oedema": (OEDEMA,),
    "none": (),
}


def unseen_prompts() -> dict[str, Request]:
    """Return the prompts that were written by others: text -> request.

    Raises:
        FileNotFoundError: the files of ``held_out/`` are missing.
    """
    prompts = {}
    for part in ("development", "test"):
        with (_HELD_OUT / f"{part}_prompts.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                prompts[row["prompt"]] = _request(row["target"], row["attribute"])
    return prompts


def _request(target: str, attribute: str) -> Request:
    """Return the request of a row."""
    options: dict[str, Any] = {}
    if attribute in ("left", "right"):
        options["side"] = attribute
    elif attribute in ("largest", "smallest"):
        options["pick"] = attribute
    elif attribute:
        options["site"] = attribute
    if target not in get_args(Target):
        raise ValueError(f"target {target!r} is unknown; choose from {', '.join(get_args(Target))}")
    return Request(target, **options)  # type: ignore[arg-type]


def part_of(label: Label, request: Request) -> Bool:
    """Return what a request denotes, (x, y, z).

    Args:
        label: BraTS 2018-2021 labels in the brain box, in LPS voxel order.
        request: a side is a half of the box, a place a lobe by its rough bounds.
    """
    part = np.isin(label, _LABELS[request.target])
    x, y, z = (
        (np.arange(n).reshape([-1 if axis == other else 1 for other in range(3)]) + 0.5) / n
        for axis, n in enumerate(label.shape)
    )
    if request.side is not None:
        part = part & ((x > 0.5) if request.side == "left" else (x <= 0.5))
    if request.site is not None:
        lobes: Mapping[str, Bool] = lobe_masks(y, z)
        part = part & lobes[request.site]
    parts, count = ndimage.label(part, structure=np.ones((3, 3, 3)))
    if request.pick is None or count < 2:
        return part
    sizes = np.bincount(parts.ravel())[1:]
    chosen = sizes.argmax() if request.pick == "largest" else sizes.argmin()
    return parts == 1 + int(chosen)


def score_prompts(
    predictor: Predictor,
    images: Mapping[str, Any],
    affine: Any,
    truth: Label,
    box: tuple[slice, ...],
    *,
    voxel_ml: float,
) -> list[tuple[str, str, float]]:
    """Return scores of one patient: measure, control and value.

    ``prompts known`` and ``prompts unseen`` are the mean over prompts for what is there of the Dice
    of the answer minus that of what the network finds; the control ``parser`` takes the answer of
    keywords. ``prompts present`` is the share of them that is found at all, ``prompts absent`` the
    share of the others that is answered by an empty mask.

    Args:
        predictor: with a prompt head.
        images: sequence -> volume.
        affine: of the volumes, in LPS voxel order.
        truth: labels, (x, y, z).
        box: the brain box.
        voxel_ml: volume of a voxel.
    """
    unseen = unseen_prompts()
    requests = {**unseen, **KNOWN}
    masks, label = _ask(predictor, images, affine, list(requests), box)
    truth = truth[box]
    values: dict[tuple[str, str], list[float]] = {}
    for text, request in requests.items():
        target = part_of(truth, request)
        kind = "unseen" if text in unseen else "known"
        answers = {
            "own": masks[text],
            "parser": part_of(label, read_prompt(text)),
        }
        if target.sum() * voxel_ml >= MIN_ML:
            reference = _dice(part_of(label, request), target)
            for control, answer in answers.items():
                score = _dice(answer, target) - reference
                values.setdefault((f"prompts {kind}", control), []).append(score)
                values.setdefault(("prompts present", control), []).append(float(answer.any()))
        elif not target.any():
            for control, answer in answers.items():
                values.setdefault(("prompts absent", control), []).append(float(not answer.any()))
    return [(measure, control, _mean(numbers)) for (measure, control), numbers in values.items()]


def score_sides(
    predictor: Predictor,
    images: Mapping[str, Any],
    affine: Any,
    box: tuple[slice, ...],
    lesions: Mapping[str, Label],
) -> list[tuple[str, str, float]]:
    """Return scores of prompts for one of two lesions, each on its side.

    ``named by prompt`` is the Dice of the answer and the lesion that is asked for, ``other by
    prompt`` the share of the other one that is in the answer; both are means over the two sides.

    Args:
        predictor: with a prompt head.
        images: sequence -> volume, with both lesions.
        affine: of the volumes, in LPS voxel order.
        box: the brain box.
        lesions: side -> labels of its lesion, (x, y, z).
    """
    texts = {side: f"the tumour with its oedema in the {side} hemisphere" for side in lesions}
    masks, label = _ask(predictor, images, affine, list(texts.values()), box)
    scores = []
    for control in ("own", "parser"):
        named, other = [], []
        for side, text in texts.items():
            answer = masks[text] if control == "own" else part_of(label, read_prompt(text))
            unwanted = next(lesion for name, lesion in lesions.items() if name != side)[box] > 0
            named.append(_dice(answer, lesions[side][box] > 0))
            other.append(float((answer & unwanted).sum() / unwanted.sum()))
        scores += [("named by prompt", control, _mean(named))]
        scores += [("other by prompt", control, _mean(other))]
    return scores


def _ask(
    predictor: Predictor,
    images: Mapping[str, Any],
    affine: Any,
    prompts: list[str],
    box: tuple[slice, ...],
) -> tuple[dict[str, Bool], Label]:
    """Return the mask of each prompt and the labels that are found without one, in the box."""
    with torch.no_grad():
        found = predictor(dict(images), affine, prompts=prompts)
    regions = found.release.to_regions(found.label)
    names = list(found.release.regions)
    label = np.zeros(found.label.shape, np.uint8)
    for name, value in (("WT", OEDEMA), ("TC", CORE), ("ET", ENHANCING)):
        label[regions[names.index(name)]] = value
    masks = {answer.text: answer.mask[box] > 0 for answer in found.prompts}
    return {text: masks[" ".join(text.split())] for text in prompts}, label[box]


def _mean(numbers: Iterable[float]) -> float:
    return float(np.mean(list(numbers)))


def _dice(answer: Bool, target: Bool) -> float:
    """Return the Dice of two masks, of which the second is not empty."""
    return float(2 * (answer & target).sum() / (answer.sum() + target.sum()))
