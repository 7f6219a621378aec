"""Mirrors clipseg3d/metrics/protocols.py."""

import math

import pytest

from clipseg3d.data.releases import RELEASES
from clipseg3d.metrics import protocols
from clipseg3d.metrics.protocols import PROTOCOLS, SCORES, get_protocol


def test_names():
    assert list(PROTOCOLS) == ["brats2020", "brats2023", "nan"]
    assert all(name == protocol.name for name, protocol in PROTOCOLS.items())
    assert all(tuple(protocol.both_empty) == SCORES for protocol in PROTOCOLS.values())


def test_scores_of_empty_masks_and_penalties():
    for name in ("brats2020", "brats2023"):
        assert list(get_protocol(name).both_empty.values()) == [1, 0, 1, 1, 1, 1, 0]
        assert get_protocol(name).empty_reference_sensitivity == 0
    assert all(map(math.isnan, get_protocol("nan").both_empty.values()))
    penalties = {name: f"{protocol.penalty_mm:.4f}" for name, protocol in PROTOCOLS.items()}
    assert penalties == {"brats2020": "373.1287", "brats2023": "374.0000", "nan": "373.0000"}


def test_the_definition_of_hd95_is_that_of_the_challenge():
    methods = {name: protocol.hd95_method for name, protocol in PROTOCOLS.items()}
    assert methods == {"brats2020": "medpy", "brats2023": "surface", "nan": "medpy"}


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
def test_lesions_of_a_release(release, dilations, volume):
    protocol = get_protocol("brats2023", release=release)
    assert (protocol.dilations, protocol.min_lesion_mm3) == (dilations, volume)
    assert protocol.penalty_mm == 374


def test_releases_with_rules_of_their_own_exist():
    assert set(protocols._LESIONS) <= set(RELEASES)


def test_an_unknown_protocol_is_refused():
    with pytest.raises(ValueError, match="'brats2012': choose one of brats2020, brats2023, nan"):
        get_protocol("brats2012")
