"""Prompts ask for what is requested."""

import re

import numpy as np
import pytest

from clipseg3d.texts import Request, write_prompt
from clipseg3d.texts.prompt_wording import TARGETS

TRIES = range(200)


def prompts(request, *, slips=0.0):
    return [write_prompt(request, np.random.default_rng(seed), slips=slips) for seed in TRIES]


@pytest.mark.parametrize("target", TARGETS)
def test_wordings_are_many_repeatable_and_not_empty(target):
    written = prompts(Request(target))
    assert written == prompts(Request(target))
    assert len(set(written)) > 0.6 * len(TRIES)
    assert all(text.strip() for text in written)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_side_is_named_and_no_other(side):
    other = {"left": "right", "right": "left"}[side]
    for text in prompts(Request("oedema", side=side)):
        assert re.search(rf"\b{side}\b", text.lower()), text
        assert not re.search(rf"\b{other}\b", text.lower()), text


def test_side_and_place_are_both_named():
    for text in prompts(Request("core", side="left", site="temporal")):
        assert "left" in text.lower()
        assert "temporal" in text.lower()


def test_no_restriction_names_no_side():
    for target in TARGETS:
        assert not any(re.search(r"\b(left|right)\b", t.lower()) for t in prompts(Request(target)))


def test_largest_and_smallest_are_told_apart():
    largest, smallest = (set(prompts(Request("core", pick=p))) for p in ("largest", "smallest"))
    assert not largest & smallest


@pytest.mark.parametrize("target", [t for t in TARGETS if t != "none"])
def test_what_is_asked_for_is_no_wording_of_another_part(target):
    own = set(prompts(Request(target)))
    for other in TARGETS:
        if other != target:
            assert not own & set(prompts(Request(other)))
