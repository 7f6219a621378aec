"""Swaps of reports tell the deaf from the blind."""

import re

import numpy as np
import pytest
import torch

from clipseg3d.intensity import intensity_statistics
from clipseg3d.training.report_swap import swap_reports
from clipseg3d.views import cut_reduced_views, cut_views

SEQUENCES, REGIONS = ("t1", "t1ce", "t2", "flair"), ("WT", "TC", "ET")
SIZE = (20, 24, 16)


def case(*, enhancing=True):
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.normal(10, 1, (1, 4, *SIZE))).float()
    label = torch.zeros(1, 3, *SIZE)
    label[:, 0, 11:19, 2:12, 8:15] = 1
    label[:, 1, 12:18, 4:10, 9:14] = 1
    if enhancing:
        label[:, 2] = label[:, 1]
    statistics = intensity_statistics(image)
    return {
        "image": image,
        "label": label,
        "statistics": statistics,
        "views": cut_views(image, statistics, selection="center"),
        "reduced_views": cut_reduced_views(image, statistics, selection="center"),
        "report": ["what a person wrote"],
    }


def says_none(report):
    """Reports of these cases have no kind but solid, a rim, or none."""
    return not re.search(r"solid|whole|homogen|uniform|entire|complete|diffus|even|compact|through"
                         r"|all of|rim|ring|border|margin|wall|edge|periph|annul|shell|circum"
                         r"|band|capsule|garland", report.lower())  # fmt: skip


def segment_like(kind, batch):
    """Find the true regions, and ET as the kind of network does."""
    found = batch["label"] > 0
    core = found[:, 1]
    sees = bool(batch["image"][:, 1].any())
    if kind == "deaf":
        et = found[:, 2] if sees else torch.zeros_like(core)
    elif kind == "blind":
        et = core & (not says_none(batch["report"][0]))
    else:
        et = found[:, 2] if sees else core & (not says_none(batch["report"][0]))
    return torch.stack([found[:, 0], core, et], dim=1)


@pytest.mark.parametrize("enhancing", [True, False])
def test_only_who_reads_and_looks_is_perfect(enhancing):
    scores = {}
    for kind in ("deaf", "blind", "obedient"):
        scores[kind] = np.mean(
            [
                swap_reports(
                    case(enhancing=enhancing),
                    lambda batch, kind=kind: segment_like(kind, batch),
                    sequences=SEQUENCES,
                    regions=REGIONS,
                    spacing_mm=8.0,
                    seed=seed,
                )
                for seed in range(30)
            ],
            axis=0,
        )
    assert scores["deaf"].tolist() == [0, 0]
    assert scores["obedient"][0] > 0.7
    assert scores["obedient"][1] == 0
    assert scores["blind"][0] > 0.7
    assert scores["blind"][1] < -0.25


def test_the_given_case_stays_and_a_case_without_core_has_no_score():
    batch = case()
    before = {key: batch[key].clone() for key in ("image", "label", "statistics")}
    options = {"sequences": SEQUENCES, "regions": REGIONS, "spacing_mm": 8.0, "seed": 0}
    swap_reports(batch, lambda batch: segment_like("deaf", batch), **options)
    assert all(torch.equal(batch[key], before[key]) for key in before)
    assert batch["report"] == ["what a person wrote"]
    batch["label"] = torch.zeros_like(batch["label"])
    assert swap_reports(batch, lambda batch: segment_like("deaf", batch), **options) is None
