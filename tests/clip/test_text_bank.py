"""Mirrors clipseg3d/clip/text_bank.py."""

import hashlib

import pytest
import torch

from clipseg3d.clip.prompts import region_prompts
from clipseg3d.clip.text_bank import TextBank

REGIONS = ("WT", "TC", "ET")
E, WINDOW = 5, 6


def embedding(text):
    """Return a vector that stands for a text."""
    return torch.tensor(list(hashlib.sha256(text.encode()).digest()[:E])) / 255


class WordEncoder:
    """Reads up to four words, start and end included six tokens; notes what it was asked for."""

    embed_dim, max_tokens = E, WINDOW

    def __init__(self):
        self.asked = []

    def count_tokens(self, text):
        return len(text.split()) + 2

    def encode_text(self, texts):
        self.asked += texts
        assert all(self.count_tokens(text) <= WINDOW for text in texts if "lesion" in text)
        return torch.stack([embedding(text) for text in texts])


@pytest.fixture
def encoder():
    return WordEncoder()


@pytest.fixture
def bank(encoder):
    return TextBank(encoder, REGIONS)


def prompt(region):
    return torch.stack([embedding(text) for text in region_prompts(region)]).mean(dim=0)


def test_prompts_come_first_then_one_token_per_sentence(bank):
    text, mask = bank(["A lesion. Two lesions!"])
    expected = [*map(prompt, REGIONS), embedding("A lesion."), embedding("Two lesions!")]
    torch.testing.assert_close(text, torch.stack(expected)[None])
    assert mask.tolist() == [[True] * 5]


def test_regions_keep_the_order_they_were_given_in(encoder):
    text, _ = TextBank(encoder, ("ET", "WT"))([""])
    torch.testing.assert_close(text[0], torch.stack([prompt("ET"), prompt("WT")]))


def test_reports_of_mixed_length_are_padded_and_masked(bank):
    text, mask = bank(["One lesion.", "", "A. B. C."])
    assert text.shape == (3, 6, E)
    assert mask.dtype == torch.bool
    assert mask.tolist() == [
        [True, True, True, True, False, False],
        [True, True, True, False, False, False],
        [True] * 6,
    ]
    torch.testing.assert_close(text[0, 3], embedding("One lesion."))
    torch.testing.assert_close(text[2, 3:], torch.stack([embedding(t) for t in ("A.", "B.", "C.")]))
    torch.testing.assert_close(text[0, :3], text[2, :3])


def test_empty_reports_give_prompts_only(bank):
    text, mask = bank(["", "  \n"])
    assert text.shape == (2, len(REGIONS), E)
    assert mask.all()


def test_each_text_is_encoded_once(bank, encoder):
    bank(["A lesion. Two lesions.", "A lesion."])
    first = list(encoder.asked)
    assert sorted(first) == sorted(set(first))
    assert set(first) >= {"A lesion.", "Two lesions.", *region_prompts("TC")}
    again, _ = bank(["Two lesions. A lesion."])
    assert encoder.asked == first
    torch.testing.assert_close(again[0, 4], embedding("A lesion."))
    bank(["Two lesions. Three lesions."])
    assert encoder.asked == [*first, "Three lesions."]


@pytest.mark.parametrize("count", [4, 5, 8, 11])
def test_long_sentence_is_cut_and_no_word_is_lost(bank, encoder, count):
    sentence = " ".join(["lesion", *(f"word{i}" for i in range(count - 1))])
    text, mask = bank([sentence])
    pieces = [sentence.split()[i : i + WINDOW - 2] for i in range(0, count, WINDOW - 2)]
    expected = torch.stack([embedding(" ".join(piece)) for piece in pieces])
    torch.testing.assert_close(text[0, len(REGIONS) :], expected)
    assert mask.all()


def test_unknown_region_is_refused(encoder):
    with pytest.raises(ValueError, match="'NCR'"):
        TextBank(encoder, ("WT", "NCR"))


def test_with_a_real_tokenizer_every_piece_fits(tiny_clip):
    bank = TextBank(tiny_clip, REGIONS)
    words = [f"enhancement{i}" for i in range(60)]
    report = "Short one. " + " ".join(words)
    text, mask = bank([report, "Short one."])
    pieces = bank._pieces(report)
    assert " ".join(pieces) == report
    assert all(tiny_clip.count_tokens(piece) <= tiny_clip.max_tokens for piece in pieces)
    assert len(pieces) > 2
    assert mask.sum(dim=1).tolist() == [3 + len(pieces), 3 + 1]
    sentences = text[0, 3:]
    torch.testing.assert_close(sentences.norm(dim=-1), torch.ones(len(pieces)))
    torch.testing.assert_close(sentences, tiny_clip.encode_text(pieces), rtol=1e-4, atol=1e-5)
