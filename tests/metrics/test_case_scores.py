"""Mirrors clipseg3d/metrics/case_scores.py."""

import numpy as np
import pytest
import torch

from clipseg3d.metrics.case_scores import CaseScores
from clipseg3d.metrics.protocols import SCORES, get_protocol
from clipseg3d.metrics.region_scores import score_region
from clipseg3d.vocabulary import REGIONS

SHAPE = (2, 3, 12, 13, 14)


def masks(seed):
    rng = np.random.default_rng(seed)
    return tuple(torch.from_numpy(rng.random(SHAPE) < 0.1) for _ in range(2))


def test_scores_are_those_of_each_region():
    metric = CaseScores(REGIONS, protocol="brats2023", hd95_method="monai")
    prediction, reference = masks(0)
    metric.update(prediction, reference, ["a", "b"], spacing_mm=(1, 2, 3))
    metric.update(prediction[1:], reference[:1], ["b"])
    table = metric.compute()
    assert (table.case_ids, table.regions, table.scores) == (("a", "b"), REGIONS, SCORES)
    for case in range(2):
        for region in range(3):
            expected = score_region(
                prediction[case, region].numpy(),
                reference[case, region].numpy(),
                protocol=get_protocol("brats2023"),
                method="monai",
                spacing_mm=(1, 2, 3),
            )
            assert table.values[case, region].tolist() == list(expected.values())


def test_the_rules_are_described():
    rules = CaseScores(REGIONS, protocol="brats2020").rules()
    assert "Protocol brats2020" in rules
    assert "HD95 medpy: 95th percentile" in rules
    assert "HD95 monai" in CaseScores(REGIONS, protocol="nan", hd95_method="monai").rules()


def test_the_rules_of_lesions_are_described():
    rules = CaseScores(REGIONS, protocol="brats2024", release="brats2024_gli").rules()
    assert "NSD border: mean of the two shares" in rules
    assert "Lesions: WT dilated 3 times, larger than 20 mm3, predicted ones too; TC" in rules
    assert rules.endswith("Note: RC is not scored, and so joins no lesions")
    rules = CaseScores((*REGIONS, "RC"), protocol="brats2024", release="brats2024_gli").rules()
    assert "RC dilated 5 times" in rules
    assert "Note" not in rules
    assert (
        CaseScores(REGIONS, protocol="nan")
        .rules()
        .endswith("Lesions: dilated 3 times, larger than 50 mm3")
    )


def test_regions_join_each_other_within_a_case():
    reference = torch.zeros(1, 3, 40, 12, 12, dtype=torch.bool)
    reference[:, :, 5:25, 3:8, 3:8] = True
    reference[:, 2, 10:20] = False
    metric = CaseScores(REGIONS, protocol="brats2024", release="brats2024_gli")
    metric.update(reference, reference, ["a"])
    table = metric.compute()
    assert table.scores == metric.protocol.scores
    assert table.values[0, 2, table.scores.index("lesion_tp")] == 1


def test_the_release_says_which_lesions_count():
    metric = CaseScores(REGIONS, protocol="brats2023", release="brats2023_met")
    assert metric.protocol.min_lesion_mm3 == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "brats"}, "unknown protocol 'brats'"),
        ({"protocol": "nan", "hd95_method": "scipy"}, "unknown HD95 method 'scipy'"),
    ],
)
def test_unknown_names_are_refused_before_anything_is_scored(options, message):
    with pytest.raises(ValueError, match=message):
        CaseScores(REGIONS, **options)


def test_masks_must_fit_names_and_regions():
    metric = CaseScores(REGIONS, protocol="nan")
    prediction, reference = masks(1)
    with pytest.raises(ValueError, match=r"do not begin with \(1, 3\)"):
        metric.update(prediction, reference, ["a"])
    with pytest.raises(ValueError, match=r"do not begin with \(2, 3\)"):
        metric.update(prediction, reference[:, :2], ["a", "b"])
    assert metric.compute().case_ids == ()


def test_one_value_keeps_its_axes():
    metric = CaseScores(["WT"], protocol="nan")
    metric.update(torch.ones(1, 1, 3, 3, 3) > 0, torch.ones(1, 1, 3, 3, 3) > 0, ["a"])
    assert metric.compute().values.shape == (1, 1, len(SCORES))
