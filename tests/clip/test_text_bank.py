"""Mirrors clipseg3d/clip/text_bank.py."""

import hashlib
import random

import pytest
import torch

from clipseg3d.clip.prompts import region_prompts
from clipseg3d.clip.text_bank import TextBank
from clipseg3d.clip.text_cache import TextCache

REGIONS = ("WT", "TC", "ET")
E, LIMIT = 5, 6


def embedding(text):
    """Return a vector that stands for a text."""
    return torch.tensor(list(hashlib.sha256(text.encode()).digest()[:E])) / 255


class WordEncoder:
    """Reads up to four words, start and end included six tokens; notes what it was asked for."""

    name, embed_dim, max_tokens = "words", E, LIMIT

    def __init__(self):
        self.asked = []

    def count_tokens(self, text):
        return len(text.split()) + 2

    def encode_text(self, texts):
        self.asked += texts
        assert all(self.count_tokens(text) <= LIMIT for text in texts if "lesion" in text)
        return torch.stack([embedding(text) for text in texts])

    def fingerprint(self):
        return "0f" * 32


class LetterEncoder(WordEncoder):
    """Reads up to four characters."""

    def count_tokens(self, text):
        return len(text) + 2


class DeafEncoder(WordEncoder):
    """May not be asked to encode anything."""

    def encode_text(self, texts):
        raise AssertionError(f"asked for {texts}")


@pytest.fixture
def encoder():
    return WordEncoder()


@pytest.fixture
def bank(encoder):
    return TextBank(encoder, REGIONS)


def prompt(region):
    return torch.stack([embedding(text) for text in region_prompts(region)]).mean(dim=0)


def test_prompts_come_first_then_one_token_per_chunk(bank):
    text, mask = bank(["A large lesion. Two lesions!"])
    chunks = [embedding("A large lesion."), embedding("Two lesions!")]
    torch.testing.assert_close(text, torch.stack([*map(prompt, REGIONS), *chunks])[None])
    assert mask.tolist() == [[True] * 5]


def test_regions_keep_the_order_they_were_given_in(encoder):
    text, _ = TextBank(encoder, ("ET", "WT"))([""])
    torch.testing.assert_close(text[0], torch.stack([prompt("ET"), prompt("WT")]))


def test_reports_of_mixed_length_are_padded_and_masked(bank):
    text, mask = bank(["One lesion.", "", "A a a. B b b. C c c."])
    assert text.shape == (3, 6, E)
    assert mask.dtype == torch.bool
    assert mask.tolist() == [
        [True, True, True, True, False, False],
        [True, True, True, False, False, False],
        [True] * 6,
    ]
    torch.testing.assert_close(text[0, 3], embedding("One lesion."))
    last = torch.stack([embedding(t) for t in ("A a a.", "B b b.", "C c c.")])
    torch.testing.assert_close(text[2, 3:], last)
    torch.testing.assert_close(text[0, :3], text[2, :3])


@pytest.mark.parametrize("report", ["", "  \n", "\u00a0\u2003\t\r\n\u2028"])
def test_empty_reports_give_prompts_only(bank, report):
    text, mask = bank([report, report])
    assert text.shape == (2, len(REGIONS), E)
    assert mask.all()


def test_each_text_is_encoded_once(bank, encoder):
    bank(["A large lesion. Two lesions.", "A large lesion."])
    first = list(encoder.asked)
    assert sorted(first) == sorted(set(first))
    assert set(first) == {
        *("A large lesion.", "Two lesions."),
        *(text for region in REGIONS for text in region_prompts(region)),
    }
    bank(["Two lesions.\nA large\n lesion."])
    assert encoder.asked == [*first, "Two lesions. A large", "lesion."]
    del encoder.asked[:]
    again, _ = bank(["Two lesions.", "A large lesion."])
    torch.testing.assert_close(again[1, 3], embedding("A large lesion."))
    assert encoder.asked == []


def test_many_texts(bank, encoder):
    words = [f"{'x' * (1 + i % 9)}{i}" for i in range(600)]
    text, _ = bank([" ".join(words)])
    assert len(encoder.asked) == 3 * len(region_prompts("WT")) + 150
    expected = [embedding(" ".join(words[i : i + 4])) for i in range(0, 600, 4)]
    torch.testing.assert_close(text[0, 3:], torch.stack(expected))


def test_embeddings_do_not_depend_on_what_else_is_encoded(tiny_clip):
    """To the last bit: a run that goes on after a kill meets texts in another company."""
    reports = [f"Lesion {'with oedema ' * n}in the left frontal lobe." for n in range(8)]
    at_once, mask = TextBank(tiny_clip, REGIONS)(reports)
    bank = TextBank(tiny_clip, REGIONS)
    for index in reversed(range(len(reports))):
        alone, _ = bank([reports[index]])
        assert torch.equal(alone[0], at_once[index][mask[index]])


@pytest.mark.parametrize(
    ("report", "chunks"),
    [
        ("A. B. C. D. E.", ["A. B. C. D.", "E."]),
        ("A. B. C.", ["A. B. C."]),
        ("A a. B b. C c.", ["A a. B b.", "C c."]),
        ("A a a. B. C c. D.", ["A a a. B.", "C c. D."]),
        ("A. Six words make this too long. B.", ["A.", "Six words make this", "too long. B."]),
        ("A a a a. B b b b.", ["A a a a.", "B b b b."]),
    ],
)
def test_whole_sentences_share_a_chunk_while_they_fit(bank, report, chunks):
    assert bank.chunks(report) == chunks


@pytest.mark.parametrize(
    ("report", "chunks"),
    [
        ("abcdefghij", ["abcd", "efgh", "ij"]),
        ("ab abcdefghij k l", ["ab", "abcd", "efgh", "ij k", "l"]),
        ("a b cde", ["a b", "cde"]),
        ("🧠🧠🧠🧠🧠", ["🧠🧠🧠🧠", "🧠"]),
        ("左额叶肿瘤。水肿", ["左额叶肿", "瘤。水肿"]),
    ],
)
def test_long_words_are_cut_between_characters(report, chunks):
    found = TextBank(LetterEncoder(), REGIONS).chunks(report)
    if "。" in report:  # a space parts sentences that share a chunk, and counts here
        chunks = ["左额叶肿", "瘤。", "水肿"]
    assert found == chunks


@pytest.mark.parametrize("count", [4, 5, 8, 11])
def test_long_sentence_is_cut_and_no_word_is_lost(bank, encoder, count):
    sentence = " ".join(["lesion", *(f"word{i}" for i in range(count - 1))])
    text, mask = bank([sentence])
    pieces = [sentence.split()[i : i + LIMIT - 2] for i in range(0, count, LIMIT - 2)]
    expected = torch.stack([embedding(" ".join(piece)) for piece in pieces])
    torch.testing.assert_close(text[0, len(REGIONS) :], expected)
    assert mask.all()


def test_unknown_region_is_refused(encoder):
    with pytest.raises(ValueError, match="'NCR'"):
        TextBank(encoder, ("WT", "NCR"))


def test_a_chunk_without_room_for_a_character_is_refused():
    encoder = LetterEncoder()
    encoder.max_tokens = 2
    with pytest.raises(ValueError, match="'a' alone exceeds max_tokens=2 of encoder 'words'"):
        TextBank(encoder, ("WT",)).chunks("abc")


@pytest.mark.parametrize(
    ("reports", "message"),
    [
        (["A lesion.", None], "report 1 is a NoneType, expected a str; an empty string stands for"),
        ([3.5], "report 0 is a float"),
        ([["A lesion."]], "report 0 is a list"),
        ("A lesion.", "reports is one str; give a list"),
    ],
)
def test_reports_that_are_no_strings_are_refused(bank, encoder, reports, message):
    with pytest.raises(ValueError, match=message):
        bank(reports)
    assert encoder.asked == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_embeddings_name_text_and_encoder(encoder, bank, monkeypatch, bad):
    def encode_text(texts):
        return torch.full((len(texts), E), bad if "Two lesions." in texts else 1.0)

    monkeypatch.setattr(encoder, "encode_text", encode_text)
    with pytest.raises(ValueError, match=r"'words' makes NaN or infinity of the text 'Two lesions"):
        bank(["Two lesions."])


# real tokenizers


def letters(texts):
    return "".join("".join(texts).split())


def long_report(*, words=3000):
    """Return a report of words that all differ, with a full stop after every tenth or so."""
    draw = random.Random(0)
    stops = [". " if draw.random() < 0.1 else " " for _ in range(words)]
    return "".join(f"Word{i}{stop}" for i, stop in enumerate(stops))


@pytest.mark.parametrize("stops", [True, False])
def test_every_word_of_a_long_report_is_in_one_chunk(tiny_clip, monkeypatch, stops):
    report = long_report() if stops else long_report().replace(".", "")
    bank = TextBank(tiny_clip, REGIONS)
    count, read = tiny_clip.count_tokens, []
    with monkeypatch.context() as patch:
        patch.setattr(tiny_clip, "count_tokens", lambda text: read.append(len(text)) or count(text))
        chunks = bank.chunks(report)
    assert 0 < sum(read) < 20 * len(report)  # not its square
    assert " ".join(chunks).split() == report.split()
    assert all(tiny_clip.count_tokens(chunk) <= tiny_clip.max_tokens for chunk in chunks)
    mean = sum(map(tiny_clip.count_tokens, chunks)) / len(chunks)
    assert mean > (0.7 if stops else 0.9) * tiny_clip.max_tokens


@pytest.mark.parametrize(
    "report",
    [
        "x" * 3000,
        "🧠" * 500 + " 👩🏽‍⚕️" * 100,
        "左额叶肿瘤周围水肿" * 80,
        "Опухоль в левой лобной доле. " * 40,
        "ورم في الفص الجبهي الأيسر؟ " * 40,
        "cafe\u0301 \u200b\u00ad" * 100,
        "1.5 x 2.25 cm; T1/T2 <= 3 & >4! " * 30,
    ],
    ids=["letters", "emoji", "chinese", "russian", "arabic", "combining", "numbers"],
)
def test_nothing_is_lost_in_any_script(tiny_clip, report):
    bank = TextBank(tiny_clip, REGIONS)
    chunks = bank.chunks(report)
    assert letters(chunks) == letters([report])
    assert all(tiny_clip.count_tokens(chunk) <= tiny_clip.max_tokens for chunk in chunks)
    text, mask = bank([report])
    assert torch.isfinite(text).all()
    assert mask.shape == (1, len(REGIONS) + len(chunks))


def test_tokens_are_the_embeddings_of_the_chunks(tiny_clip):
    bank = TextBank(tiny_clip, REGIONS)
    report = "Short one. " + " ".join(f"enhancement{i}" for i in range(60))
    text, mask = bank([report, "Short one."])
    chunks = bank.chunks(report)
    assert len(chunks) > 2
    assert mask.sum(dim=1).tolist() == [3 + len(chunks), 3 + 1]
    torch.testing.assert_close(text[0, 3:], tiny_clip.encode_text(chunks), rtol=1e-4, atol=1e-5)


# cache


def test_cached_texts_are_not_encoded_again(bank, tmp_path):
    reports = ["A large lesion. Two lesions.", "", "A large lesion."]
    path = tmp_path / "new" / "texts.safetensors"
    count = bank.save(path, reports)
    assert count == 3 * len(region_prompts("WT")) + 2
    cached = TextBank(DeafEncoder(), REGIONS, cache=path)
    torch.testing.assert_close(cached(reports), bank(reports), rtol=0, atol=0)
    torch.testing.assert_close(cached(["Two lesions."]), bank(["Two lesions."]))


def test_other_texts_are_encoded_in_memory(bank, tmp_path):
    path = tmp_path / "texts.safetensors"
    bank.save(path, ["A large lesion."])
    content = path.read_bytes()
    encoder = WordEncoder()
    cached = TextBank(encoder, REGIONS, cache=path)
    cached(["A large lesion. Two lesions."])
    assert encoder.asked == ["Two lesions."]
    assert path.read_bytes() == content


def test_a_file_holds_only_what_it_was_written_for(bank, tmp_path):
    bank(["Another lesion."])
    bank.save(tmp_path / "t.safetensors", ["A lesion."])
    embeddings = TextCache.load(tmp_path / "t.safetensors").embeddings
    assert "Another lesion." not in embeddings
    torch.testing.assert_close(embeddings["A lesion."], embedding("A lesion."))


def test_cache_of_another_encoder_is_refused(bank, tmp_path):
    path = tmp_path / "texts.safetensors"
    bank.save(path, [])
    other = WordEncoder()
    other.name, other.fingerprint = "others", lambda: "a1" * 32
    with pytest.raises(ValueError, match=r"made by encoder 'words'.*not by 'others'") as caught:
        TextBank(other, REGIONS, cache=path)
    for part in (str(path), "0f0f", "a1a1", "clipseg3d embed-text --encoder others"):
        assert part in str(caught.value)


def test_an_encoder_is_known_by_its_weights_and_not_its_name(bank, tmp_path):
    path = tmp_path / "texts.safetensors"
    bank.save(path, [])
    other = WordEncoder()
    other.name = "elsewhere"
    TextBank(other, REGIONS, cache=path)
    other.name, other.fingerprint = bank.encoder.name, lambda: "a1" * 32
    with pytest.raises(ValueError, match="made by encoder 'words'"):
        TextBank(other, REGIONS, cache=path)


def test_missing_cache_is_named(encoder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone.safetensors: no such file"):
        TextBank(encoder, REGIONS, cache=tmp_path / "gone.safetensors")
