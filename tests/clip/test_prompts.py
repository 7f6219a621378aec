"""Mirrors clipseg3d/clip/prompts.py."""

import pytest

from clipseg3d.clip.prompts import (
    REGION_PROMPTS,
    TEMPLATES,
    region_prompts,
    split_sentences,
)

TWO_SPACES = ["two spaces and", "a line", "or", "three", "four"]


@pytest.mark.parametrize("region", REGION_PROMPTS)
def test_every_template_speaks_of_the_region(region):
    prompts = region_prompts(region)
    assert len(set(prompts)) == len(TEMPLATES)
    assert all(REGION_PROMPTS[region] in prompt for prompt in prompts)
    assert not any("{" in prompt for prompt in prompts)


def test_regions_have_different_prompts():
    prompts = [prompt for region in REGION_PROMPTS for prompt in region_prompts(region)]
    assert len(set(prompts)) == len(prompts)


def test_prompts_of_other_regions():
    assert region_prompts("lesion")[0] == "lesion"
    assert region_prompts("WT", "a bright spot")[1] == "a brain MRI with a bright spot"


@pytest.mark.parametrize(
    ("report", "sentences"),
    [
        ("", []),
        (" \n\t ", []),
        ("No tumour", ["No tumour"]),
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("It measures 3.5 cm. It enhances.", ["It measures 3.5 cm.", "It enhances."]),
        ("FINDINGS\n  oedema\r\n\nnecrosis.", ["FINDINGS", "oedema", "necrosis."]),
        ("Left.   Right.\t Both.", ["Left.", "Right.", "Both."]),
        (
            "Rim of ca. 4 mm, e.g. the uncus. No more.",
            ["Rim of ca. 4 mm, e.g. the uncus.", "No more."],
        ),
        ("Approx. 2 cm. MRI. Seen", ["Approx. 2 cm.", "MRI.", "Seen"]),
        ("two\u00a0 \u2003spaces\tand\u2028a line\x0bor\x85three\rfour", TWO_SPACES),
        ("左额叶肿瘤。周围水肿！是吗？", ["左额叶肿瘤。", "周围水肿！", "是吗？"]),  # noqa: RUF001
        ("बायाँ ट्यूमर। सूजन।", ["बायाँ ट्यूमर।", "सूजन।"]),
    ],
)
def test_reports_are_cut_into_sentences(report, sentences):
    assert split_sentences(report) == sentences
