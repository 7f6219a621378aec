"""Mirrors clipseg3d/clip/known_words.py."""

import numpy as np
import pytest

from clipseg3d.clip import CachedTexts, TextBank, load_encoder
from clipseg3d.clip.known_words import is_probably_unknown
from clipseg3d.texts import Statement, write_text
from clipseg3d.texts.prompt_wording import TARGETS, Request, write_prompt

GERMAN = (
    *("der anreichernde Randsaum", "das Ödem in der linken Hemisphäre", "die Nekrose"),
    *("größte Läsion", "perifokales Ödem", "zeige mir den nekrotischen Kern", "Hirnschwellung"),
    *("Der Tumor liegt im linken Frontallappen.", "keine Anreicherung", "weiße Substanz"),
)
FRENCH = (
    *("l'œdème dans l'hémisphère gauche", "la nécrose", "le rehaussement périphérique"),
    *("œdème périlésionnel", "montre-moi la tumeur entière", "la lésion la plus petite"),
    *("nécrose centrale à gauche", "le tissu qui prend le contraste", "une hémorragie"),
)
OTHER_SCRIPTS = ("左侧额叶的水肿", "肿瘤", "الوذمة في نصف الكرة الأيسر", "отек", "浮腫")


@pytest.fixture(scope="module")
def tiny():
    return load_encoder("tiny")


def share(encoder, texts):
    return np.mean([is_probably_unknown(encoder, text) for text in texts])


def test_english_prompts_are_known(tiny):
    rng = np.random.default_rng(0)
    requests = [Request(target, side=side) for target in TARGETS[:5] for side in (None, "left")]
    prompts = [write_prompt(request, rng) for request in requests for _ in range(30)]
    assert share(tiny, prompts) < 0.05
    for prompt in ("the enhancing rim", "oedema in the left hemisphere", "tumor", "NCR", "T1ce"):
        assert not is_probably_unknown(tiny, prompt)


def test_english_reports_are_known(tiny):
    statement = Statement(
        enhancement="rim",
        necrosis=True,
        oedema="extensive",
        foci="multiple",
        side="right",
        sites=("temporal",),
        crosses_midline=False,
        compressed=True,
        shifted=True,
    )
    reports = [write_text(statement, np.random.default_rng(seed), slips=0.0) for seed in range(50)]
    assert share(tiny, reports) == 0


@pytest.mark.parametrize(("texts", "least"), [(GERMAN, 0.7), (FRENCH, 0.6), (OTHER_SCRIPTS, 1)])
def test_other_languages_are_noticed(tiny, texts, least):
    assert share(tiny, texts) >= least


def test_a_tokenizer_of_single_bytes_is_not_blamed_for_english(tiny_clip):
    assert not is_probably_unknown(tiny_clip, "the enhancing rim of the tumour")
    assert is_probably_unknown(tiny_clip, "左侧额叶的水肿")  # three bytes for each


@pytest.mark.parametrize("text", ["", "   ", "?!", "12 345", "🧠"])
def test_a_text_without_words_is_taken_as_known(tiny, text):
    assert not is_probably_unknown(tiny, text)


def test_texts_that_were_embedded_in_advance_are_taken_as_known(tiny, tmp_path):
    TextBank(tiny, ["WT"]).save(tmp_path / "texts.safetensors", ["左侧额叶的水肿"])
    cached = CachedTexts(tmp_path / "texts.safetensors")
    assert not is_probably_unknown(cached, "左侧额叶的水肿")


class Words:
    """Knows every word of ASCII as one token, as a general tokenizer does nearly."""

    max_tokens = 77

    def count_tokens(self, text):
        return 2 + sum(1 if word.isascii() else 3 * len(word) for word in text.split())


def test_what_a_tokenizer_knows_is_known_to_it_in_any_language():
    assert not is_probably_unknown(Words(), "der Tumor im linken Lappen")
    assert is_probably_unknown(Words(), "отек в левом полушарии")
