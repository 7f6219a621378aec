"""What the tiny CLIP of the package has learned, beside what chance would give.

    python examples/evaluate_tiny_clip.py --data BraTS2018 --reports brats2018_reports.json

Measured on phantoms that were not in training, on the real cases that were, and on real cases that
were not:

- retrieval: whether the report of a phantom is the most similar to its three views of all reports,
  or among the five most similar. The row ``facts alone`` has the score of a reader who knows all
  facts of ``train_tiny_clip.FACTS``, but not which of several wordings was chosen;
- facts, zero-shot: the sentence most similar to the views. The truth is measured on the mask.
  Chance is to give always the commonest answer; for the balanced accuracy it is 1 / number of
  values;
- maps: whether the patch most similar to the prompts of a region shows that region (the region
  covers a quarter of it or more); and the area under the ROC curve over all patches of the brain,
  averaged over cases. Chance is the share of the brain's patches that show the region, and 0.5.
"""

import argparse
import csv
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from train_tiny_clip import (
    ENERGY,
    FACTS,
    LOBES,
    RGB,
    Sample,
    collect_cases,
    collect_phantoms,
    values_of,
)

from clipseg3d.atomic_write import atomic_write
from clipseg3d.clip import HuggingFaceCLIP, load_encoder
from clipseg3d.clip.prompts import region_prompts
from clipseg3d.data.releases import get_release
from clipseg3d.phantom.report import describe
from clipseg3d.vocabulary import REGIONS

COVERED = 0.25
FIRST_SEED = 1_000_000
"""Seed of the first phantom; training uses seeds from 0 on."""


class Row(NamedTuple):
    """One line of the table."""

    measure: str
    data: str
    value: float
    chance: float
    n: int


@torch.no_grad()
def embed(clip: HuggingFaceCLIP, samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """Embed the slices of energy: cases (n, e) and patches (n, 3, g, g, e)."""
    cases, patches = [], []
    for sample in samples:
        views = sample.images[:, ENERGY, :, :, list(RGB)].permute(0, 3, 1, 2).float() / 255
        vectors, maps = clip.encode_patches(views)
        cases.append(F.normalize(vectors.mean(dim=0), dim=0))
        patches.append(maps)
    return torch.stack(cases), torch.stack(patches)


def retrieval(clip: HuggingFaceCLIP, samples: list[Sample], cases: Tensor) -> list[Row]:
    """Find the report of each phantom among those of all."""
    rng = np.random.default_rng(0)
    reports = clip.encode_text([describe(sample.facts, rng) for sample in samples])
    similarity = cases @ reports.T
    rank = (similarity > similarity.diagonal()[:, None]).sum(dim=1)
    n = len(samples)
    same_facts = Counter(tuple(values_of(sample.facts).items()) for sample in samples)
    groups = np.array(list(same_facts.values()))
    rows = []
    for top in (1, 5):
        chance = top / n
        rows.append(
            Row(f"report, top {top}", "phantoms", float((rank < top).float().mean()), chance, n)
        )
        ideal = float(np.minimum(groups, top).sum() / n)
        rows.append(Row(f"report, top {top}, facts alone", "phantoms", ideal, chance, n))
    return rows


def facts(clip: HuggingFaceCLIP, samples: list[Sample], cases: Tensor, data: str) -> list[Row]:
    """Choose the sentence of each fact that is most similar to the views."""
    truths = [values_of(sample.facts) for sample in samples]
    n, rows = len(samples), []
    for name in ("side", "lobe", "enhancing", "enhancement", "necrosis", "oedema"):
        vectors = torch.stack(
            [F.normalize(clip.encode_text(words).mean(dim=0), dim=0) for words in FACTS[name]]
        )
        answers = (cases @ vectors.T).argmax(dim=1)
        true = torch.tensor([truth[name] for truth in truths])
        right = (answers == true).float()
        rows.append(Row(name, data, float(right.mean()), float(true.bincount().max() / n), n))
        if name == "enhancing" and len(true.unique()) == 2:
            balanced = np.mean([float(right[true == value].mean()) for value in (0, 1)])
            rows.append(Row("enhancing, balanced accuracy", data, float(balanced), 0.5, n))
        named = [[lobe in sample.report.lower() for lobe in LOBES] for sample in samples]
        if name == "lobe" and all(any(lobes) for lobes in named):
            agreed = [lobes[int(answer)] for lobes, answer in zip(named, answers, strict=True)]
            rows.append(
                Row(
                    "lobe is one that the report names",
                    data,
                    float(np.mean(agreed)),
                    float(np.mean(named)),
                    n,
                )
            )
    return rows


def maps(clip: HuggingFaceCLIP, samples: list[Sample], patches: Tensor, data: str) -> list[Row]:
    """Compare the patches' similarity to a region's prompts with the region."""
    rows = []
    for index, region in enumerate(REGIONS):
        prompt = F.normalize(clip.encode_text(region_prompts(region)).mean(dim=0), dim=0)
        peaks, chances, areas = [], [], []
        for sample, grid in zip(samples, patches, strict=True):
            shares = sample.shares[:, ENERGY].float() / 255
            shares = F.adaptive_avg_pool2d(shares, list(grid.shape[1:3]))
            covered, brain = shares[:, index] >= COVERED, shares[:, 3] >= COVERED
            if not covered.any():
                continue
            similarity = grid @ prompt
            peaks.append(bool(covered.flatten()[similarity.argmax()]))
            chances.append(float(covered[brain].float().mean()))
            areas.append(_area(similarity[brain], covered[brain]))
        n = len(peaks)
        peak, chance = float(np.mean(peaks)), float(np.mean(chances))
        rows.append(Row(f"{region} map peaks in it", data, peak, chance, n))
        rows.append(Row(f"{region} map, area under curve", data, float(np.mean(areas)), 0.5, n))
    return rows


def _area(score: Tensor, truth: Tensor) -> float:
    """Return the area under the ROC curve of scores (m,) for a truth (m,) bool."""
    inside, outside = score[truth], rearrange(score[~truth], "m -> 1 m")
    above = rearrange(inside, "k -> k 1") - outside
    return float((above > 0).float().mean() + 0.5 * (above == 0).float().mean())


def main() -> None:
    """Measure, print and write a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clip", default="tiny", help="name or folder")
    parser.add_argument("--data", type=Path, help="folder of real cases (default: none)")
    parser.add_argument("--reports", type=Path, help="their reports, a JSON or CSV file")
    parser.add_argument("--release", default="brats2018", help="BraTS release of --data")
    parser.add_argument("--trained", default="Brats18_TCIA*", help="pattern of training cases")
    parser.add_argument("--output", type=Path, default=Path("tiny_clip"), help="keeps slices")
    parser.add_argument("--phantoms", type=int, default=100)
    parser.add_argument("--spacing", type=float, default=2.0, help="of phantoms, in mm")
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results" / "tiny_clip.csv"
    )
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clip = load_encoder(arguments.clip)
    phantoms = collect_phantoms(
        arguments.output / f"unseen {arguments.spacing:g} mm",
        range(FIRST_SEED, FIRST_SEED + arguments.phantoms),
        arguments.spacing,
    )
    groups = {"phantoms": phantoms}
    if arguments.data is not None:
        if arguments.reports is None:
            parser.error("--data needs --reports")
        release, folder = get_release(arguments.release), arguments.output / "cases"
        every, trained = (
            collect_cases(folder, arguments.data, release, arguments.reports, pattern)
            for pattern in ("*", arguments.trained)
        )
        groups["real, in training"] = list(trained.values())
        groups["real, unseen"] = [case for name, case in every.items() if name not in trained]
    rows: list[Row] = []
    for data, samples in groups.items():
        if not samples:
            continue
        cases, patches = embed(clip, samples)
        if data == "phantoms":
            rows += retrieval(clip, samples, cases)
        rows += facts(clip, samples, cases, data)
        rows += maps(clip, samples, patches, data)
    with (
        atomic_write(arguments.results) as tmp,
        tmp.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        for row in rows:
            value, chance = f"{row.value:.3f}", f"{row.chance:.3f}"
            writer.writerow([row.measure, row.data, value, chance, row.n])
            print(f"{row.measure:34s} {row.data:18s} {value} chance {chance} n {row.n}")


if __name__ == "__main__":
    main()
