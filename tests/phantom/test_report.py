"""Mirrors clipseg3d/phantom/report.py."""

import re
from dataclasses import replace

import numpy as np
import pytest

from clipseg3d.phantom.report import describe
from clipseg3d.texts.facts import TumourFacts

FACTS = TumourFacts(
    side="left",
    lobe="frontal",
    foci=1,
    crosses_midline=False,
    enhancement="rim",
    necrosis=True,
    wt_ml=90.0,
    tc_ml=40.0,
    et_ml=15.0,
)
PLAIN = replace(FACTS, enhancement="none", necrosis=False, et_ml=0.0)
SOLID = replace(FACTS, enhancement="solid", necrosis=False, et_ml=40.0)
SPOTS = replace(FACTS, enhancement="spots", necrosis=False, et_ml=1.0)
PATCHES = replace(SPOTS, enhancement="patches", et_ml=12.0)
ALL = (FACTS, PLAIN, SOLID, SPOTS, PATCHES)
SIDES = {"left", "right"}
LOBES = {"frontal", "parietal", "temporal", "occipital"}
NEGATIONS = {"no", "not", "nor", "neither", "absent"}


def words(text):
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def sentences(text, pattern):
    return [s for s in re.split(r"(?<=\.) ", text) if re.search(pattern, s.lower())]


def wordings(facts):
    return {describe(facts, np.random.default_rng(seed)) for seed in range(80)}


def test_names_the_true_location_only():
    for side in SIDES:
        for lobe in LOBES:
            facts = replace(FACTS, side=side, lobe=lobe, ventricle_loss=0.3, midline_shift_mm=5.0)
            for text in wordings(facts):
                assert words(text) & SIDES == {side}
                assert words(text) & LOBES == {lobe}


def test_has_three_to_seven_sentences():
    for facts in ALL:
        full = replace(facts, crosses_midline=True, ventricle_loss=0.3, midline_shift_mm=5.0)
        for text in wordings(facts) | wordings(full):
            assert 3 <= len(sentences(text, "")) <= 7
            assert "\n" not in text


def test_wording_varies():
    assert len(wordings(FACTS)) > 20


@pytest.mark.parametrize(
    ("oedema_ml", "word"),
    [(19.9, "limited"), (20.0, "moderate"), (59.9, "moderate"), (60.0, "extensive")],
)
def test_oedema_is_named_by_volume(oedema_ml, word):
    extents = {"limited", "moderate", "extensive"}
    for text in wordings(replace(FACTS, tc_ml=40.0, wt_ml=40 + oedema_ml)):
        assert words(text) & extents == {word}


def test_no_oedema_is_not_called_limited():
    assert all("No edema" in text for text in wordings(replace(FACTS, wt_ml=FACTS.tc_ml)))


@pytest.mark.parametrize(("foci", "word"), [(2, "two"), (3, "three"), (4, "four"), (9, "several")])
def test_foci_are_named_by_number(foci, word):
    numbers = {"two", "three", "four", "several", "single"}
    for text in wordings(replace(FACTS, foci=foci)):
        assert words(text) & numbers == {word}
        assert words(text) & {"largest", "main"}
    assert not any(words(text) & (numbers - {"single"}) for text in wordings(FACTS))


def test_without_enhancement_none_is_claimed():
    for text in wordings(PLAIN):
        about = sentences(text, "enhanc|contrast")
        assert about
        assert all(words(s) & NEGATIONS for s in about)
        assert not words(text) & {"rim", "ring", "thick", "thin", "solid", "solidly", "spots"}


@pytest.mark.parametrize(("facts", "word"), [(SPOTS, "small"), (PATCHES, "patch")])
def test_parts_that_enhance_are_no_rim_and_say_nothing_of_necrosis(facts, word):
    for text in wordings(facts):
        assert word in text.lower()
        assert not words(text) & {"rim", "ring", "thick", "thin", "necrosis", "necrotic"}


def test_solid_tumour_has_no_rim_and_no_necrosis():
    for text in wordings(SOLID):
        assert words(text) & {"solid", "solidly"}
        assert not words(text) & {"rim", "ring", "thick", "thin"}
        about = sentences(text, "necrosis")
        assert about
        assert all(words(s) & NEGATIONS for s in about)


@pytest.mark.parametrize(
    ("loss", "expected"), [(0.12, True), (0.11, None), (0.04, None), (0.03, False), (None, None)]
)
def test_ventricles_are_called_compressed_by_their_loss(loss, expected):
    for text in wordings(replace(FACTS, ventricle_loss=loss)):
        about = sentences(text, "ventric")
        assert len(about) == (expected is not None)
        assert all(bool(words(s) & NEGATIONS) != expected for s in about)


@pytest.mark.parametrize(
    ("shift", "expected"), [(3.0, True), (2.9, None), (1.0, None), (0.9, False), (None, None)]
)
def test_the_midline_is_called_shifted_by_its_shift(shift, expected):
    for text in wordings(replace(FACTS, midline_shift_mm=shift)):
        about = sentences(text, "midline")
        assert len(about) == (expected is not None)
        assert all(bool(words(s) & {"shifted", "displaced"}) == expected for s in about)


def test_says_that_a_tumour_crosses_the_midline():
    for text in wordings(replace(FACTS, crosses_midline=True)):
        assert len(sentences(text, "midline")) == 1
    assert not any("midline" in text for text in wordings(FACTS))


CAVITY = replace(FACTS, cavity_ml=20.0, tc_ml=20.0, wt_ml=70.0)


def test_a_cavity_is_named_and_enhancement_is_that_of_what_remains():
    for text in wordings(CAVITY):
        assert len(sentences(text, "cavity")) >= 1
        assert "surrounds the core" not in text
        assert "rim of contrast enhancement surrounds the cavity" in text
    for enhancement in ("spots", "patches", "solid"):
        for text in wordings(replace(CAVITY, enhancement=enhancement, necrosis=False)):
            assert "remaining tumor" in text
    plain = replace(CAVITY, enhancement="none", necrosis=False, et_ml=0.0)
    assert not any("remaining" in text for text in wordings(plain))
    assert not any("cavity" in text for facts in ALL for text in wordings(facts))


def test_necrosis_without_enhancement_is_not_denied():
    for text in wordings(replace(PLAIN, necrosis=True)):
        about = sentences(text, "necrosis")
        assert len(about) == 1
        assert not words(about[0]) & {"neither", "no", "observed"}
        assert words(" ".join(sentences(text, "contrast"))) & NEGATIONS


FULL = replace(FACTS, crosses_midline=True, ventricle_loss=0.3, midline_shift_mm=5.0)


@pytest.mark.parametrize(
    ("changes", "about"),
    [
        ({}, None),
        ({"side": "right"}, "frontal"),
        ({"foci": 2}, "frontal"),
        ({"wt_ml": 45.0}, "edema"),
        ({"necrosis": False}, "necrosis"),
        ({"enhancement": "none", "necrosis": False, "et_ml": 0.0}, "necrosis|contrast"),
        ({"enhancement": "solid", "necrosis": False, "et_ml": 40.0}, "necrosis|contrast"),
        ({"crosses_midline": False}, None),
        ({"ventricle_loss": 0.01}, "ventric"),
        ({"midline_shift_mm": 0.1}, "midline"),
        ({"cavity_ml": 9.0}, "cavity"),
    ],
)
def test_a_twin_is_described_in_the_same_words_where_it_is_the_same(changes, about):
    for seed in range(30):
        first = describe(FULL, np.random.default_rng(seed))
        second = describe(replace(FULL, **changes), np.random.default_rng(seed), like=FULL)
        new = [s for s in sentences(second, "") if s not in sentences(first, "")]
        assert bool(new) == (about is not None)
        assert all(re.search(about, sentence.lower()) for sentence in new)


def test_rim_is_measured_between_spheres():
    ml = 4 / 3 * np.pi / 1000
    facts = replace(FACTS, tc_ml=20**3 * ml, et_ml=(20**3 - 14**3) * ml)
    assert facts.rim_mm == pytest.approx(6)
    assert all("thick" in words(text) - words("thin") for text in wordings(facts))
    assert all("thin" in words(text) for text in wordings(replace(facts, et_ml=facts.tc_ml / 3)))
