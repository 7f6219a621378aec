"""How the tiny CLIP is scored: balanced accuracy, held-out texts, and answers read from views."""

import importlib
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def script():
    """The evaluating script as a module."""
    examples = str(Path(__file__).parents[2] / "examples")
    sys.path.insert(0, examples)
    try:
        return importlib.import_module("evaluate_tiny_clip")
    finally:
        sys.path.remove(examples)


def test_every_answer_counts_alike_however_rare(script):
    true = [{"side": side} for side in ("left", "left", "left", "right")] + [{"foci": "single"}]
    given = [{"side": side} for side in ("left", "left", "right", "right")] + [{"side": "left"}]
    (row,) = script.balanced("side", "cases", given, true, "side")
    assert row.value == pytest.approx((2 / 3 + 1) / 2)
    assert (row.chance, row.n) == (0.5, 4)
    assert script.balanced("kind", "cases", given, true, "kind") == []


@pytest.mark.parametrize("half", ["development", "test"])
def test_held_out_texts_have_answers_that_can_be_given(script, half):
    rows = [script._answers(row) for row in script._read(f"{half}_sentences.csv")]
    prompts = script._read(f"{half}_prompts.csv")
    assert (len(rows), len(prompts)) == (75, 20)
    for row in rows:
        assert all(answer in script.QUESTIONS[question] for question, answer in row.items())
    named = {site for row in rows for site in script.SITES if row[site] == "named"}
    assert named == set(script.SITES)
    assert all(row["target"] in script.QUESTIONS["target"] for row in prompts)


def test_held_out_halves_share_no_text(script):
    for name, column in (("sentences", "text"), ("prompts", "prompt")):
        halves = [
            {row[column] for row in script._read(f"{half}_{name}.csv")}
            for half in ("development", "test")
        ]
        assert halves[0].isdisjoint(halves[1])


def test_keywords_answer_the_same_questions(script):
    report = "Two lesions on the left. Edema is marked. No necrosis."
    assert script.parse(report) == {
        **{"enhancement": "unsaid", "necrosis": "no", "oedema": "extensive"},
        **{"foci": "multiple", "side": "left"},
    }


def test_views_leave_nothing_unsaid_and_name_one_lobe(script):
    readers = script.Readers(4)
    for layer in readers.layers.values():
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    with torch.no_grad():
        readers.layers["side"].bias.copy_(torch.tensor([5.0, 0, 2, 1]))
        readers.layers["temporal"].bias.copy_(torch.tensor([1.0, 0]))
        for lobe in ("frontal", "parietal", "occipital"):
            readers.layers[lobe].bias.copy_(torch.tensor([3.0, 0]))
    (answers,) = script.read_views(readers, torch.zeros(1, 4))
    assert (answers["side"], answers["lobe"]) == ("right", "temporal")


def test_lobes_of_a_case_are_one_question(script):
    from clipseg3d.texts import Statement

    said = Statement(enhancement="none", side="left", sites=("parietal",))
    sample = script.Sample(torch.empty(0), torch.empty(0), said, "")
    assert script.answers_of_case(sample) == {
        **{"enhancement": "no", "side": "left", "lobe": "parietal"}
    }
