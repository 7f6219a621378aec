"""What the text tower learns: questions and answers, texts in threes, tokens, and steps of it."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipseg3d.texts import Request, Statement


def load_example(name):
    examples = str(Path(__file__).parents[2] / "examples")
    sys.path.insert(0, examples)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(examples)


towers = load_example("tower_texts")
training = load_example("train_tiny_clip")
UNSAID = towers.UNSAID
FACT_OF = {"kind": "enhancement", **dict.fromkeys(towers.SITES, "sites")}
"""Question -> the fact that it belongs to, where there are others of it."""
SETTINGS = {"steps": 2, "size": 3, "save_every": 1}


@pytest.fixture(scope="module")
def tokenizer():
    return towers.train_tokenizer(towers.texts_of_vocabulary(["Old corpus."], lessons=2), 800)


def untrained(tokenizer):
    torch.manual_seed(0)
    clip = training.build_clip(tokenizer)
    return clip, towers.Readers(clip.embed_dim)


# questions and answers


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (Statement(), {}),
        (Statement(enhancement="none", necrosis=False), {"enhancement": "no", "necrosis": "no"}),
        (Statement(enhancement="yes"), {"enhancement": "yes"}),
        (
            Statement(enhancement="rim", necrosis=True, oedema="none"),
            {"enhancement": "yes", "kind": "rim", "necrosis": "yes", "oedema": "none"},
        ),
        (
            Statement(foci="multiple", side="both", sites=("deep", "frontal"), oedema="present"),
            {
                "foci": "multiple",
                "side": "both",
                "deep": "named",
                "frontal": "named",
                "oedema": "present",
            },
        ),
        (
            Statement(crosses_midline=True, compressed=False, shifted=True),
            {"crosses_midline": "yes", "compressed": "no", "shifted": "yes"},
        ),
        (Request("none"), {"target": "none"}),
        (
            Request("enhancing", side="left", site="insular", pick="largest"),
            {"target": "enhancing", "side": "left", "insular": "named", "pick": "largest"},
        ),
    ],
)
def test_a_text_answers_what_it_says_and_leaves_the_rest_unsaid(said, expected):
    answers = towers.answers_of(said)
    assert {name: a for name, a in answers.items() if a != UNSAID} == expected
    assert list(answers) == list(towers.QUESTIONS)
    assert all(a in towers.QUESTIONS[name] for name, a in answers.items())


def test_a_lesson_has_paraphrases_and_contradictions():
    lesson = towers.draw_lesson(0, 40)
    assert towers.draw_lesson(0, 40) == lesson
    assert towers.draw_lesson(1, 40) != lesson
    assert len(lesson.texts) == len(lesson.answers) == 120
    prompts = 0
    for first in range(0, 120, 3):
        (a, b, c), (text, _, other) = lesson.answers[first : first + 3], lesson.texts[first:][:3]
        assert a == b
        assert text != other
        changed = {name for name in a if a[name] != c[name]}
        assert len({FACT_OF.get(name, name) for name in changed}) == 1
        prompts += a["target"] != UNSAID
    assert 5 <= prompts <= 20


@pytest.mark.parametrize("seed", range(30))
def test_what_contradicts_cannot_be_true_as_well(seed):
    """Oedema that is present may be extensive, and enhancement may be a rim."""
    rng = np.random.default_rng(seed)
    oedema = towers.contradict(Statement(oedema="present"), rng).oedema
    assert oedema == "none"
    assert towers.contradict(Statement(oedema="limited"), rng).oedema != "present"
    assert towers.contradict(Statement(enhancement="yes"), rng).enhancement == "none"
    assert towers.contradict(Statement(enhancement="none"), rng).enhancement not in (None, "none")


def test_margins_by_hand():
    vectors = F.normalize(torch.tensor([[1.0, 0], [3, 4], [0, 1], [0, 1], [1, 0], [0, 2]]), dim=1)
    torch.testing.assert_close(towers.margins(vectors), torch.tensor([0.6, -1.0]))


# readers


def readers_of(question, scores):
    """Readers of vectors as long as there are answers; one question gets logits, all others 0."""
    readers = towers.Readers(len(towers.QUESTIONS[question]))
    for layer in readers.layers.values():
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    with torch.no_grad():
        readers.layers[question].weight.copy_(scores / 15)
    return readers


def test_the_surest_sentence_speaks_for_a_report():
    readers = readers_of("necrosis", torch.eye(3))
    nothing, no, yes = torch.eye(3)
    assert readers.read_report(torch.stack([9 * nothing, 2 * no]))["necrosis"] == "no"
    assert readers.read_report(torch.stack([9 * nothing, 2 * no, 3 * yes]))["necrosis"] == "yes"
    assert readers.read_report(torch.stack([9 * nothing, 0.9 * nothing]))["necrosis"] == UNSAID


def test_readers_come_back_from_their_file(tmp_path):
    readers = towers.Readers(7)
    readers.save(tmp_path / "readers.safetensors")
    vectors = torch.randn(3, 7)
    back = towers.Readers.load(tmp_path / "readers.safetensors")
    assert back.read(vectors) == readers.read(vectors)
    assert not any(weight.requires_grad for weight in back.parameters())


def test_questions_that_cannot_be_answered_do_not_count():
    readers, vectors = towers.Readers(5), torch.randn(2, 5)
    losses = readers.losses(vectors, [{"side": "left"}, {"side": "right", "foci": "single"}])
    assert set(losses) == {"side", "foci"}
    alone = readers.losses(vectors[1:], [{"foci": "single"}])
    torch.testing.assert_close(losses["foci"], alone["foci"])


# tokens


def test_without_dropout_words_are_cut_as_the_tokenizer_does(tokenizer):
    cut, rng = towers.TokenDropout(tokenizer, 0.0), np.random.default_rng(0)
    for text in [*towers.draw_lesson(3, 5).texts, "Ödem,  3.5 CM; naïve", "word " * 300, ""]:
        assert cut(text, rng) == tokenizer(text, truncation=True, max_length=192)["input_ids"]


def test_dropout_cuts_the_same_letters_otherwise_and_follows_from_the_seed(tokenizer):
    text = "no contrast enhancement of the temporal lesion"
    cut = towers.TokenDropout(tokenizer, 0.3)
    ways = {tuple(cut(text, np.random.default_rng(seed))) for seed in range(5)}
    assert len(ways) > 1
    assert {tokenizer.decode(list(way), skip_special_tokens=True) for way in ways} == {text}
    assert cut(text, np.random.default_rng(0)) == cut(text, np.random.default_rng(0))


def test_texts_in_tokens_are_embedded_as_the_clip_does(tokenizer):
    clip, readers = untrained(tokenizer)
    texts = towers.draw_lesson(3, 3).texts
    cut, rng = towers.TokenDropout(tokenizer, 0.0), np.random.default_rng(0)
    learner = towers.TextLearner(clip, readers)
    vectors = learner.embed([cut(text, rng) for text in texts])
    torch.testing.assert_close(vectors, clip.encode_text(texts), rtol=0, atol=1e-5)


# steps


def test_an_interrupted_text_phase_is_the_same_run(tokenizer, tmp_path, monkeypatch):
    whole, readers = untrained(tokenizer)
    start = [weight.clone() for weight in readers.parameters()]
    images = [weight.clone() for weight in whole.frozen_model.vision_model.parameters()]
    towers.learn_texts(whole, readers, tmp_path / "whole.pt", **SETTINGS)
    assert all(
        not torch.equal(old, new) for old, new in zip(start, readers.parameters(), strict=True)
    )
    kept = whole.frozen_model.vision_model.parameters()
    assert all(torch.equal(old, new) for old, new in zip(images, kept, strict=True))
    assert not any(w.requires_grad for w in (*whole.parameters(), *readers.parameters()))

    save = towers.save

    def die(path, value):
        save(path, value)
        raise KeyboardInterrupt

    clip, others = untrained(tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr(towers, "save", die)
        with pytest.raises(KeyboardInterrupt):
            towers.learn_texts(clip, others, tmp_path / "cut.pt", **SETTINGS)
    assert torch.load(tmp_path / "cut.pt")["step"] == 1
    clip, others = untrained(tokenizer)
    torch.manual_seed(5)
    towers.learn_texts(clip, others, tmp_path / "cut.pt", **SETTINGS)
    assert clip.fingerprint() == whole.fingerprint()
    weights = zip(others.parameters(), readers.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


def test_readers_are_fitted_to_a_clip_that_stays_as_it_is(tokenizer):
    clip, _ = untrained(tokenizer)
    before = [weight.clone() for weight in clip.frozen_model.parameters()]
    few, many = (towers.fit_readers(clip, lessons=4, steps=steps) for steps in (1, 30))
    lesson = towers.draw_lesson(0, 8)
    vectors = clip.encode_text(lesson.texts)
    losses = [sum(r.losses(vectors, lesson.answers).values()).item() for r in (few, many)]
    assert losses[1] < 0.9 * losses[0]
    after = clip.frozen_model.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
