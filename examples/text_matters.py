"""Does the network read? Two tasks whose answer is only in the report.

- ``side``: simulated patients with two lesions that look alike, one the mirror image of the other.
  The report names the one to segment.
- ``enhancement``: T1ce is withheld. The same images come once with the report and the mask of an
  enhancing tumour, and once with those of a tumour that does not enhance.

The full network and the plain 3D U-Net are trained on the same samples. The full network is scored
with the true reports, and five times with the same reports shuffled among the patients. About every
second shuffled report happens to be right. Text is read by the frozen encoder of
``--text-encoder``, such as a folder with MiniLM. Views go through a CLIP with random weights, which
adds only noise. Finished runs are kept in ``--output`` and not repeated.
"""

import argparse
import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipseg3d.atomic_write import atomic_write
from clipseg3d.data.releases import PHANTOM
from clipseg3d.intensity import intensity_statistics
from clipseg3d.losses import RegionLoss
from clipseg3d.metrics.dice import dice_empty_is_one
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.clipseg3d import CLIPSeg3D
from clipseg3d.networks.presets import network_config
from clipseg3d.phantom.report import describe
from clipseg3d.phantom.simulate import simulate_phantom
from clipseg3d.texts.facts import measure_facts
from clipseg3d.training.plan import TrainingPlan
from clipseg3d.views import Views, cut_views

SPACING_MM = 6.0
NUM_TRAIN, NUM_TEST, TEST_SEED = 96, 24, 1000
BATCH = 4
SHUFFLES = 5
MIN_ET_ML = 10
T1CE = 1
CORE, ENHANCING = 1, 4


class Item(NamedTuple):
    """One sample: image (4, x, y, z), label (3, x, y, z), statistics (4, 4), views, report."""

    image: Tensor
    label: Tensor
    statistics: Tensor
    views: Views
    report: str


def twins(seed: int) -> Iterator[Item]:
    """Give a patient with two like lesions twice; the report names another lesion each time."""
    phantom = simulate_phantom(seed, spacing_mm=SPACING_MM)
    mirrored = phantom.label[::-1]
    if phantom.facts.foci > 1 or ((phantom.label > 0) & (mirrored > 0)).any():
        return
    image = np.where(mirrored > 0, phantom.image[:, ::-1], phantom.image)
    for label in (phantom.label, np.ascontiguousarray(mirrored)):
        yield make_item(image, label, seed)


def with_and_without(seed: int) -> Iterator[Item]:
    """Give an image without T1ce twice: as an enhancing tumour, and as one that does not."""
    phantom = simulate_phantom(seed, spacing_mm=SPACING_MM)
    if phantom.facts.et_ml < MIN_ET_ML:
        return
    image = phantom.image.copy()
    image[T1CE] = 0
    solid = np.where(phantom.label == ENHANCING, CORE, phantom.label).astype(np.uint8)
    for label in (phantom.label, solid):
        yield make_item(image, label, seed)


TASKS = {"side": twins, "enhancement": with_and_without}


def make_item(image: np.ndarray, label: np.ndarray, seed: int) -> Item:
    """Crop to the brain and write the report of the label."""
    brain = (image != 0).any(axis=0)
    facts = measure_facts(label, brain, spacing_mm=SPACING_MM)
    report = describe(facts, np.random.default_rng(seed))
    inside = np.argwhere(brain)
    box = tuple(
        slice(a, b + 1) for a, b in zip(inside.min(axis=0), inside.max(axis=0), strict=True)
    )
    cropped = torch.from_numpy(np.ascontiguousarray(image[(slice(None), *box)])).float()
    statistics = intensity_statistics(cropped[None])
    views = cut_views(cropped[None], statistics)
    regions = torch.from_numpy(PHANTOM.to_regions(label[box])).float()
    return Item(cropped, regions, statistics[0], Views(*(part[0] for part in views)), report)


def collect(task: str, first_seed: int, count: int) -> list[Item]:
    """Return the first ``count`` samples of a task from a seed on."""
    items: list[Item] = []
    while len(items) < count:
        items.extend(TASKS[task](first_seed))
        first_seed += 1
    return items[:count]


def predict(network: CLIPSeg3D, items: list[Item], reports: list[str], *, deep: bool) -> tuple:
    """Return the network's prediction and the labels, both padded to the largest brain."""
    sizes = torch.tensor([item.image.shape[1:] for item in items])
    full = sizes.amax(dim=0)
    padding = [[n for gap in (full - size).flip(0).tolist() for n in (0, gap)] for size in sizes]
    images, labels = (
        torch.stack([F.pad(item[k], p) for item, p in zip(items, padding, strict=True)])
        for k in (0, 1)
    )
    crop_box = torch.stack([torch.zeros(len(items), 3), full / sizes], dim=1)
    views = Views(*(torch.stack(parts) for parts in zip(*(i.views for i in items), strict=True)))
    text, mask = network.embed_text(reports)
    prediction = network.segment(
        images,
        network.encode_semantics(views, text, mask),
        crop_box=crop_box,
        statistics=torch.stack([item.statistics for item in items]),
        deep=deep,
    )
    return prediction, labels


@torch.no_grad()
def score(network: CLIPSeg3D, items: list[Item], reports: list[str], regions: list[int]) -> float:
    """Return the mean Dice over cases and regions; two empty masks agree, Dice 1."""
    network.eval()
    scores = []
    for start in range(0, len(items), BATCH):
        part = slice(start, start + BATCH)
        prediction, labels = predict(network, items[part], reports[part], deep=False)
        for mask, label in zip(prediction.logits > 0, labels > 0, strict=True):
            scores += dice_empty_is_one(mask[regions], label[regions]).tolist()
    return float(np.mean(scores))


def run(task: str, ablation: str | None, seed: int, steps: int, encoder: str) -> dict[str, float]:
    """Train one network and score it."""
    train, test = collect(task, 0, NUM_TRAIN), collect(task, TEST_SEED, NUM_TEST)
    torch.manual_seed(seed)
    config = replace(
        network_config("tiny"),
        channels=(8, 16, 32),
        space_to_depth=1,
        refinement=0,
        num_auxiliary=1,
        text_encoder=encoder,
        view_selection="center",
        guided=("WT", "TC", "ET"),
    )
    network = build_clipseg3d(network_config(config, ablation=ablation))
    plan = TrainingPlan(lr=3e-3, semantic_lr=3.0)
    optimizer = plan.optimizer_for(network)
    schedule = plan.schedule_for(optimizer, steps)
    loss = RegionLoss()
    order: list[int] = []
    for _ in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(len(train)).tolist()
        items = [train[order.pop()] for _ in range(BATCH)]
        network.train()
        prediction, labels = predict(network, items, [item.report for item in items], deep=True)
        optimizer.zero_grad()
        loss([prediction.logits, *prediction.auxiliary], labels).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12.0)
        optimizer.step()
        schedule.step()
    regions = [2] if task == "enhancement" else [0, 1, 2]
    own = [item.report for item in test]
    scores = {"own reports": score(network, test, own, regions)}
    if network.text_bank is not None:
        rng = np.random.default_rng(seed)
        shuffles = [[own[i] for i in rng.permutation(len(own))] for _ in range(SHUFFLES)]
        scores["reports of others"] = float(
            np.mean([score(network, test, reports, regions) for reports in shuffles])
        )
    return scores


def main() -> None:
    """Run what is not done yet, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text-encoder", required=True, help="folder or hub name")
    parser.add_argument("--output", type=Path, default=Path("text_matters.json"))
    parser.add_argument("--task", choices=TASKS, default="side")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="the weights of the tiny CLIP are random")
    done = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    for ablation in (None, "unet3d"):
        for seed in range(arguments.seeds):
            key = f"{arguments.task} {ablation or 'full'} seed {seed} steps {arguments.steps}"
            if key not in done:
                done[key] = run(
                    arguments.task, ablation, seed, arguments.steps, arguments.text_encoder
                )
                with atomic_write(arguments.output) as tmp:
                    tmp.write_text(json.dumps(done, indent=1))
            print(key, {name: round(value, 3) for name, value in done[key].items()}, flush=True)


if __name__ == "__main__":
    main()
