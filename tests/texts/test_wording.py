"""Texts say what their statement says, and nothing else of it."""

import re
from dataclasses import replace

import numpy as np
import pytest

from clipseg3d.texts import Statement, TumourFacts, statement_of, write_text
from clipseg3d.texts.wording import SITES, WORDS, expand, with_slips

FACTS = TumourFacts(
    side="left",
    lobe="frontal",
    foci=2,
    crosses_midline=False,
    enhancement="rim",
    necrosis=True,
    wt_ml=90.0,
    tc_ml=80.0,
    et_ml=15.0,
    ventricle_loss=0.2,
    midline_shift_mm=0.5,
)
WHOLE = Statement(
    enhancement="rim",
    necrosis=True,
    oedema="limited",
    foci="multiple",
    side="left",
    sites=("frontal",),
    crosses_midline=False,
    compressed=True,
    shifted=False,
)
TRIES = range(300)


def texts(statement, *, slips=0.0):
    """Texts without other findings, which may name any side, or deny anything."""
    generators = [np.random.default_rng(seed) for seed in TRIES]
    return [write_text(statement, rng, asides=False, slips=slips) for rng in generators]


def test_what_can_be_said_of_a_patient():
    assert statement_of(FACTS) == WHOLE
    spots = statement_of(replace(FACTS, enhancement="spots", necrosis=False, tc_ml=90.0))
    assert spots.necrosis is None  # of the rest of the core, nobody knows
    assert spots.oedema == "none"
    unclear = statement_of(replace(FACTS, ventricle_loss=0.05, midline_shift_mm=None))
    assert unclear.compressed is None
    assert unclear.shifted is None


def test_equal_generators_write_equal_texts_and_others_other_ones():
    assert texts(WHOLE) == texts(WHOLE)
    assert len(set(texts(WHOLE))) > 0.98 * len(TRIES)
    assert len(set(texts(Statement(enhancement="none")))) > 0.7 * len(TRIES)


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_only_the_side_that_is_meant_is_named(side):
    for text in texts(replace(WHOLE, side=side)):
        named = set(re.findall(r"\b(left|right)\b", text.lower()))
        assert named == {"left": {"left"}, "right": {"right"}}.get(side, named) or (
            side != "both" and not named and re.search(rf"\b{side[0]}\b", text.lower())
        )
        if side == "both":
            assert named in (set(), {"left", "right"})


@pytest.mark.parametrize("fact", ["enhancement", "necrosis", "oedema"])
def test_what_is_not_stated_is_not_said(fact):
    words = {
        "enhancement": r"enhanc|contrast|gadolin|\bGd\b",
        "necrosis": r"necro|liquef|breakdown",
        "oedema": r"o?edema|swell|swollen",
    }[fact]
    silent = replace(WHOLE, **dict.fromkeys(["enhancement", "necrosis", fact]))
    for text in texts(silent):
        # that contrast was given says nothing of the tumour
        rest = re.sub(r"(?i)(mri|imaging|examination)[^.;,]*with contrast", "", text)
        assert not re.search(words, rest, re.IGNORECASE), text


def test_denied_enhancement_is_denied_and_stated_enhancement_is_not():
    denial = (
        r"\bno\b|not\b|n't|\bnon|un(?:changed|enhan)|without|absen|lack|devoid|free of|\bnil\b"
        r"|\bneg|as it was|\bbare|none|neither|fails?|failed|hardly|cannot|ruled out|excluded"
        r"|nothing|never|zero|dark|hypointense|low signal|isointense|unchanged|missing|vanish"
        r"|disappear|resolved|gone|regress|nowhere|no part|intact|\b0\b"
    )
    for text in texts(Statement(enhancement="none")):
        assert re.search(denial, text, re.IGNORECASE), text
    for kind in ("rim", "solid", "patches", "yes"):
        plain = [text for text in texts(Statement(enhancement=kind)) if not re.search(denial, text)]
        assert len(plain) > 0.5 * len(TRIES)  # other findings may be denied beside it


def test_a_flipped_fact_changes_its_own_clause_alone():
    changed = replace(WHOLE, oedema="extensive")
    shared = []
    for own, other in zip(texts(WHOLE), texts(changed), strict=True):
        own_words, other_words = (set(re.findall(r"[a-z]+", text.lower())) for text in (own, other))
        shared.append(len(own_words & other_words) / len(own_words | other_words))
    assert np.median(shared) > 0.6
    generators = [np.random.default_rng(10_000 + seed) for seed in TRIES]
    others = [write_text(WHOLE, rng, asides=False, slips=0) for rng in generators]
    assert np.median(shared) > 0.15 + np.median(
        [
            len(set(a.lower().split()) & set(b.lower().split()))
            / len(set(a.lower().split()) | set(b.lower().split()))
            for a, b in zip(texts(WHOLE), others, strict=True)
        ]
    )


@pytest.mark.parametrize("site", SITES)
def test_sites_are_named_in_words_of_their_own(site):
    forms = re.split(r"[{|}]", WORDS[site])
    for text in texts(Statement(sites=(site,))):
        assert any(form and form in text.lower().replace("gray", "grey") for form in forms), text


def test_both_spellings_occur():
    written = " ".join(texts(replace(WHOLE, oedema="extensive")))
    assert "oedema" in written
    assert re.search(r"(?<!o)edema", written)
    assert "tumour" in written
    assert "tumor " in written


def test_templates_are_expanded_by_hand():
    words = {"x": "{a|b} <y>", "y": "c"}
    rng = np.random.default_rng(0)
    seen = {expand("{ <x> |d}, e", rng, words) for _ in range(50)}
    assert seen == {"a c, e", "b c, e", "d, e"}


def test_slips_change_letters_within_a_few_words_only():
    text = "The tumour in the frontal lobe shows no enhancement after gadolinium."
    for seed in TRIES:
        slipped = with_slips(text, np.random.default_rng(seed)).split()
        changed = [pair for pair in zip(text.split(), slipped, strict=True) if pair[0] != pair[1]]
        assert len(changed) <= 2
        for before, after in changed:
            assert abs(len(before) - len(after)) <= 1
            assert before[0] == after[0]
