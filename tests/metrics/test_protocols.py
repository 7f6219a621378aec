"""Mirrors clipseg3d/metrics/protocols.py."""

import math

import pytest

from clipseg3d.data.releases import RELEASES
from clipseg3d.metrics.protocols import (
    COUNTS,
    HIGHER_IS_BETTER,
    PROTOCOLS,
    SCORES,
    fitting_protocol,
    get_protocol,
)


def test_names():
    assert list(PROTOCOLS) == ["brats2020", "brats2023", "brats2024", "brats2026", "nan"]
    assert all(name == protocol.name for name, protocol in PROTOCOLS.items())
    tasks = [get_protocol(name, release="brats_met") for name in PROTOCOLS]
    for protocol in [*PROTOCOLS.values(), *tasks]:
        assert set(protocol.scores) <= set(HIGHER_IS_BETTER) == set(protocol.both_empty)
        assert set(protocol.ranked) <= set(protocol.scores)


def test_scores_of_empty_masks_and_penalties():
    for name in ("brats2020", "brats2023", "brats2024"):
        both_empty = get_protocol(name).both_empty
        assert [both_empty[score] for score in SCORES] == [1, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1]
        assert get_protocol(name).empty_reference_sensitivity == 0
    for name in ("brats2026", "nan"):
        both_empty = get_protocol(name).both_empty
        assert {score for score, value in both_empty.items() if value == 0} == set(COUNTS)
        assert sum(map(math.isnan, both_empty.values())) == len(both_empty) - len(COUNTS)
    penalties = {name: f"{protocol.penalty_mm:.4f}" for name, protocol in PROTOCOLS.items()}
    assert penalties == {
        "brats2020": "373.1287",
        "brats2023": "374.0000",
        "brats2024": "337.0000",
        "brats2026": "373.0000",
        "nan": "373.0000",
    }


def test_the_definitions_are_those_of_the_challenges():
    methods = {name: (p.hd95_method, p.nsd_method) for name, p in PROTOCOLS.items()}
    assert methods == {
        "brats2020": ("medpy", "surface"),
        "brats2023": ("surface", "surface"),
        "brats2024": ("surface", "border"),
        "brats2026": ("medpy", "border"),
        "nan": ("medpy", "surface"),
    }


@pytest.mark.parametrize(
    ("release", "dilations", "volume"),
    [
        ("", 3, 50),
        ("brats2023_gli", 3, 50),
        ("brats2023_ssa", 3, 50),
        ("brats2023_ped", 3, 50),
        ("brats2023_men", 1, 50),
        ("brats2023_met", 1, 2),
    ],
)
def test_lesions_in_2023(release, dilations, volume):
    protocol = get_protocol("brats2023", release=release)
    assert (protocol.dilations, protocol.min_lesion_mm3) == (dilations, volume)
    assert protocol.penalty_mm == 374
    assert protocol.for_region("ET") == protocol
    assert not protocol.merge_predictions


@pytest.mark.parametrize(
    ("release", "penalty", "whole", "enhancing"),
    [
        ("", 337, (3, 20, ()), (3, 10, ("NETC", "RC"))),
        ("brats2024_gli", 337, (3, 20, ()), (3, 10, ("NETC", "RC"))),
        ("brats2023_ssa", 374, (3, 50, ()), (3, 50, ("NETC",))),
        ("brats2024_ped", 374, (5, 10, ()), (5, 10, ())),
        ("brats2023_men", 374, (1, 50, ()), (1, 50, ())),
        ("brats2024_men_rt", None, (1, 50, ()), (1, 50, ())),
        ("brats2023_met", None, (1, 2, ()), (1, 2, ("NETC",))),
    ],
)
def test_lesions_in_2024(release, penalty, whole, enhancing):
    protocol = get_protocol("brats2024", release=release)
    for region, expected in (("WT", whole), ("ET", enhancing)):
        rules = protocol.for_region(region)
        assert (rules.dilations, rules.min_lesion_mm3, rules.joined_by) == expected
        assert rules.penalty_mm == penalty
    assert protocol.merge_predictions == (release != "brats2023_men")
    assert protocol.score_false_positives == (release != "brats2024_men_rt")


def test_necrosis_and_cavities_in_2024():
    protocol = get_protocol("brats2024", release="brats2024_gli")
    dilations = {name: protocol.for_region(name).dilations for name in ("NETC", "RC", "SNFH")}
    assert dilations == {"NETC": 5, "RC": 5, "SNFH": 3}
    assert protocol.for_region("RC").min_lesion_mm3 == 20


def test_lesions_in_2026():
    protocol = get_protocol("brats2026", release="brats2026_gli")
    assert (protocol.one_to_one, protocol.min_lesion_dice) == (True, None)
    mets = get_protocol("brats2026", release="brats2023_met")
    assert (mets.one_to_one, mets.min_lesion_mm3, mets.min_lesion_dice) == (True, 20, 0.1)
    assert set(mets.scores) - set(protocol.scores) == {
        "small_lesion_tp",
        "small_lesion_fn",
        "small_lesion_f1",
    }


def test_lesion_rules_are_told():
    protocol = get_protocol("brats2024", release="brats2024_gli")
    assert protocol.for_region("ET").lesion_rules() == (
        "dilated 3 times, larger than 10 mm3, predicted ones too, joined by NETC and RC"
    )
    assert get_protocol("brats2020").lesion_rules() == "dilated 3 times, larger than 50 mm3"
    assert get_protocol("brats2026").lesion_rules() == "matched one to one by Dice"
    mets = get_protocol("brats2026", release="brats2023_met")
    assert mets.lesion_rules() == "matched one to one by Dice, from 20 mm3 and a Dice of 0.1"


def test_every_release_has_a_protocol_that_fits():
    assert {fitting_protocol(name) for name in RELEASES} <= PROTOCOLS.keys()
    expected = {
        "brats2018": "brats2020",
        "brats2019": "brats2020",
        "brats2020": "brats2020",
        "brats2021": "brats2020",
        "brats2023_gli": "brats2023",
        "brats2024_gli": "brats2024",
        "brats2023_ped": "brats2023",
        "brats2024_ped": "brats2024",
        "brats2023_ssa": "brats2023",
        "brats2023_men": "brats2023",
        "brats2023_met": "brats2023",
        "msd_task01": "brats2020",
        "phantom": "brats2020",
    }
    assert {name: fitting_protocol(name) for name in expected} == expected
    assert fitting_protocol("brats2025_met") == "brats2024"
    assert fitting_protocol("brats2026_gli") == "brats2026"
    assert fitting_protocol("ours") == "nan"


def test_releases_that_a_challenge_did_not_score_do_not_fit():
    assert not get_protocol("brats2020").fits("brats2024_gli")
    assert not get_protocol("brats2024").fits("brats2020")
    assert not get_protocol("brats2024").fits("brats2023_gli")
    assert get_protocol("brats2024").fits("brats2023_met")
    assert get_protocol("brats2026").fits("brats2024_gli")
    assert get_protocol("nan").fits("brats2020")


@pytest.mark.parametrize("name", ["brats2012", "brats2025"])
def test_an_unknown_protocol_is_refused(name):
    message = f"'{name}': choose one of brats2020, brats2023, brats2024, .* and 2025 as 2024"
    with pytest.raises(ValueError, match=message):
        get_protocol(name)
