"""What the text tower of the tiny CLIP learns: to read facts in texts.

Texts are written from statements and requests by ``clipseg3d.texts``, so their facts are known.
Linear readers read every fact in the embedding of a text, with *unsaid* among the answers. A text
is more similar to a paraphrase than to the same text with one fact turned into another. Words are
cut into tokens in more than one way, since words that training has not are cut into parts of others
(BPE dropout: Provilkov et al., ACL 2020, arXiv 1910.13267).

``train_tiny_clip.py`` trains, ``evaluate_tiny_clip.py`` reads.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTokenizer

from clipseg3d.atomic_write import atomic_write
from clipseg3d.clip.hugging_face_clip import HuggingFaceCLIP
from clipseg3d.clip.prompts import TEMPLATES, split_sentences
from clipseg3d.texts import Request, Statement, write_prompt, write_text
from clipseg3d.texts.prompt_wording import TARGETS
from clipseg3d.texts.wording import SITES

# what is asked of a text

UNSAID = "unsaid"
YES_NO = (UNSAID, "no", "yes")
QUESTIONS: dict[str, tuple[str, ...]] = {
    "enhancement": YES_NO,
    "kind": (UNSAID, "spots", "patches", "rim", "solid"),
    "necrosis": YES_NO,
    "oedema": (UNSAID, "none", "limited", "moderate", "extensive", "present"),
    "foci": (UNSAID, "single", "multiple"),
    "side": (UNSAID, "left", "right", "both"),
    "crosses_midline": YES_NO,
    "compressed": YES_NO,
    "shifted": YES_NO,
    "target": (UNSAID, *TARGETS),
    "pick": (UNSAID, "largest", "smallest"),
    **dict.fromkeys(SITES, (UNSAID, "named")),
}
"""Question -> its answers. ``kind`` is that of enhancement; ``target`` and ``pick`` are of prompts;
``compressed`` are ventricles, and ``shifted`` is the midline; each site is a question of its own.
"""
OF_PROMPTS = ("target", "pick")
"""Questions that no report answers."""

Answers = Mapping[str, str]
"""Question -> answer. A question that is not there cannot be answered."""


def answers_of(said: Statement | Request) -> dict[str, str]:
    """Return what a text answers to all questions, that says a statement or a request."""
    answers = dict.fromkeys(QUESTIONS, UNSAID)
    if isinstance(said, Request):
        answers["target"] = said.target
        answers["pick"] = said.pick or UNSAID
        statement = Statement(side=said.side, sites=(said.site,) if said.site else ())
    else:
        statement = said
    if statement.enhancement is not None:
        answers["enhancement"] = "no" if statement.enhancement == "none" else "yes"
        if statement.enhancement in QUESTIONS["kind"]:
            answers["kind"] = statement.enhancement
    for name in ("necrosis", "crosses_midline", "compressed", "shifted"):
        value = getattr(statement, name)
        if value is not None:
            answers[name] = "yes" if value else "no"
    for name in ("oedema", "foci", "side"):
        answers[name] = getattr(statement, name) or UNSAID
    return {**answers, **dict.fromkeys(statement.sites, "named")}


class Readers(nn.Module):
    """One linear layer for each question, which answers it from a unit vector of either tower.

    Args:
        embed_dim: channels of the vectors.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {name: nn.Linear(embed_dim, len(answers)) for name, answers in QUESTIONS.items()}
        )

    def forward(self, vectors: Tensor) -> dict[str, Tensor]:
        """Return question -> logits (n, answers) of vectors (n, e)."""
        return {name: layer(_SHARPNESS * vectors) for name, layer in self.layers.items()}

    def losses(self, vectors: Tensor, answers: Sequence[Answers]) -> dict[str, Tensor]:
        """Return question -> loss of vectors (n, e), over those whose answer is known."""
        losses = {}
        for name, logits in self(vectors).items():
            rows = [i for i, known in enumerate(answers) if name in known]
            if rows:
                true = torch.tensor([QUESTIONS[name].index(answers[i][name]) for i in rows])
                losses[name] = F.cross_entropy(logits[rows], true, label_smoothing=_SMOOTHING)
        return losses

    @torch.no_grad()
    def probabilities(self, vectors: Tensor) -> dict[str, Tensor]:
        """Return question -> probabilities (n, answers) of vectors (n, e)."""
        return {name: logits.softmax(dim=-1) for name, logits in self(vectors).items()}

    def read(self, vectors: Tensor) -> list[dict[str, str]]:
        """Return the most probable answers to all questions, for each of the vectors (n, e)."""
        best = {name: p.argmax(dim=-1).tolist() for name, p in self.probabilities(vectors).items()}
        return [
            {name: QUESTIONS[name][best[name][i]] for name in QUESTIONS}
            for i in range(len(vectors))
        ]

    def read_report(self, sentences: Tensor) -> dict[str, str]:
        """Return what a report answers, by the vectors of its sentences (n, e).

        To each question, the sentence speaks that is surest not to leave it unsaid.
        """
        read = {}
        for name, probabilities in self.probabilities(sentences).items():
            silent, said = probabilities[:, 0], probabilities[:, 1:]
            surest = int(silent.argmin())
            is_said = bool(silent[surest] < 0.5)
            read[name] = QUESTIONS[name][1 + int(said[surest].argmax())] if is_said else UNSAID
        return read

    def save(self, path: Path) -> None:
        """Write the weights to a safetensors file."""
        with atomic_write(path) as tmp:
            save_file(self.state_dict(), tmp)

    @classmethod
    def load(cls, path: Path) -> "Readers":
        """Read what :meth:`save` wrote."""
        weights = load_file(path)
        readers = cls(weights["layers.target.weight"].shape[1])
        readers.load_state_dict(weights)
        return readers.requires_grad_(False)


_SHARPNESS, _SMOOTHING = 15.0, 0.02


def read_report(clip: HuggingFaceCLIP, readers: Readers, report: str) -> dict[str, str]:
    """Return what a report answers, read sentence by sentence."""
    return readers.read_report(clip.encode_text(split_sentences(report)))


# texts to learn from

_VALUES: dict[str, tuple[Any, ...]] = {
    "enhancement": (*("none",) * 3, "spots", "patches", "rim", "solid", *("yes",) * 2),
    "necrosis": (True, False),
    "oedema": ("none", "limited", "moderate", "extensive", "present"),
    "foci": ("single", "multiple"),
    "side": (*("left", "right") * 2, "both"),
    "crosses_midline": (True, False),
    "compressed": (True, False),
    "shifted": (True, False),
}
"""Attribute of a statement -> values, each as often as it is drawn."""
_SUBJECTS = (
    *("enhancement",) * 2, "necrosis", "oedema", "foci", *("place",) * 2,
    "crosses_midline", "compressed", "shifted",
)  # fmt: skip
"""What texts are about, each as often as it is drawn."""
_NUM_SUBJECTS = (1, 1, 1, 2, 2, 3, 4, 6)
_CONTRARY: dict[str, dict[str, tuple[str, ...]]] = {
    "enhancement": {
        "none": ("rim", "yes", "solid"),
        **dict.fromkeys(("spots", "patches", "rim", "solid", "yes"), ("none",)),
    },
    "oedema": {
        "none": ("limited", "moderate", "extensive", "present"),
        "limited": ("none", "moderate", "extensive"),
        "moderate": ("none", "limited", "extensive"),
        "extensive": ("none", "limited", "moderate"),
        "present": ("none",),
    },
}
"""Attribute -> value -> values that contradict it, where not all others do."""
_TARGET_SHARES = {
    "whole": 0.15, "core": 0.15, "enhancing": 0.17, "necrosis": 0.17, "oedema": 0.16, "none": 0.2,
}  # fmt: skip
_REPORTS_SHARE = 0.7
_TEMPLATES_SHARE = 0.1
"""Share of prompts in one of the templates by which the prompts of regions are read."""


def _pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    """Draw one of some options; arrays would turn values into those of numpy."""
    return options[int(rng.integers(len(options)))]


def draw_statement(rng: np.random.Generator) -> Statement:
    """Draw a statement about one to six subjects."""
    order = rng.permutation(len(_SUBJECTS))[: _pick(rng, _NUM_SUBJECTS)]
    drawn: dict[str, Any] = {}
    for subject in sorted({_SUBJECTS[i] for i in order}):
        if subject != "place":
            drawn[subject] = _pick(rng, _VALUES[subject])
            continue
        share = rng.random()
        if share < 0.75:
            drawn["side"] = _pick(rng, _VALUES["side"])
        if share > 0.2:
            count = _pick(rng, (1, 1, 1, 2, 2, 3))
            drawn["sites"] = tuple(SITES[i] for i in rng.permutation(len(SITES))[:count])
    return Statement(**drawn)


def contradict(statement: Statement, rng: np.random.Generator) -> Statement:
    """Return a statement of which one fact is another."""
    said = [name for name in _VALUES if getattr(statement, name) is not None]
    name = _pick(rng, [*said, "sites"] if statement.sites else said)
    if name == "sites":
        others = [site for site in SITES if site not in statement.sites]
        return replace(statement, sites=(_pick(rng, others),))
    value = getattr(statement, name)
    if name in _CONTRARY:
        options: Sequence[Any] = _CONTRARY[name][value]
    else:
        options = [other for other in dict.fromkeys(_VALUES[name]) if other != value]
    change: dict[str, Any] = {name: _pick(rng, options)}
    return replace(statement, **change)


def draw_request(rng: np.random.Generator) -> Request:
    """Draw a request for a part of a tumour, or for what is none."""
    target = TARGETS[int(rng.choice(len(TARGETS), p=[_TARGET_SHARES[name] for name in TARGETS]))]
    share = rng.random()
    is_picked = target != "none" and rng.random() < 0.15
    return Request(
        target,
        side=_pick(rng, ("left", "right")) if share < 0.2 or 0.3 <= share < 0.37 else None,
        site=_pick(rng, SITES) if 0.2 <= share < 0.37 else None,
        pick=_pick(rng, ("largest", "smallest")) if is_picked else None,
    )


def change_request(request: Request, rng: np.random.Generator) -> Request:
    """Return a request for another part, or for the same on the other side."""
    if request.side is not None and rng.random() < 0.5:
        return replace(request, side="right" if request.side == "left" else "left")
    return replace(request, target=_pick(rng, [t for t in TARGETS if t != request.target]))


def _write_request(request: Request, rng: np.random.Generator) -> str:
    prompt = write_prompt(request, rng)
    is_framed = rng.random() < _TEMPLATES_SHARE
    return str(_pick(rng, TEMPLATES)).format(prompt) if is_framed else prompt


@dataclass(frozen=True)
class Lesson:
    """Texts in threes: a text, a paraphrase of it, and one that says another fact.

    Attributes:
        texts: 3 n of them.
        answers: of each text, to all questions.
    """

    texts: list[str]
    answers: list[dict[str, str]]


def draw_lesson(number: int, size: int) -> Lesson:
    """Write the texts of a lesson; all random numbers follow from its number.

    Args:
        number: of the lesson.
        size: number of threes.
    """
    rng = np.random.default_rng([7, number])
    texts: list[str] = []
    answers: list[dict[str, str]] = []
    for _ in range(size):
        said: Statement | Request
        other: Statement | Request
        if rng.random() < _REPORTS_SHARE:
            said = draw_statement(rng)
            other = contradict(said, rng)
            # equal generators: the same words, but for the fact
            seed = int(rng.integers(2**62))
            texts.append(write_text(said, np.random.default_rng(seed)))
            texts.append(write_text(said, rng))
            texts.append(write_text(other, np.random.default_rng(seed)))
        else:
            said = draw_request(rng)
            other = change_request(said, rng)
            texts += [_write_request(request, rng) for request in (said, said, other)]
        answers += [answers_of(said), answers_of(said), answers_of(other)]
    return Lesson(texts, answers)


FIRST_OF_VOCABULARY, FIRST_UNSEEN = 10**6, 10**9
"""Numbers of lessons: training has those from 0 on, the tokenizer learns words in others."""


def margins(vectors: Tensor) -> Tensor:
    """Return how much more similar texts are to paraphrases than to contradictions, (n,).

    Args:
        vectors: of the texts of a lesson, (3 n, e).
    """
    text, paraphrase, other = vectors.unflatten(0, (-1, 3)).unbind(dim=1)
    return (text * (paraphrase - other)).sum(dim=1)


# words and tokens


def texts_of_vocabulary(corpus: Sequence[str], lessons: int = 300) -> list[str]:
    """Return the texts from which the tokenizer learns its vocabulary."""
    numbers = range(FIRST_OF_VOCABULARY, FIRST_OF_VOCABULARY + lessons)
    return [*(text for number in numbers for text in draw_lesson(number, 64).texts), *corpus]


def train_tokenizer(texts: Sequence[str], size: int) -> CLIPTokenizer:
    """Return a CLIP tokenizer with a vocabulary learned from the texts."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    ends = ["<|startoftext|>", "<|endoftext|>"]
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=ends[1]))
    learner.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    both = len(symbols)  # each symbol also ends words
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size - both - len(ends),
            initial_alphabet=symbols,
            end_of_word_suffix="</w>",
            min_frequency=3,
            show_progress=False,
        ),
    )
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    joined = ["".join(pair) for pair in merges]
    tokens = dict.fromkeys([*symbols, *(f"{s}</w>" for s in symbols), *joined, *ends])
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = {token: index for index, token in enumerate(tokens)}
        Path(folder, "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        Path(folder, "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder)


class TokenDropout:
    """Cut words into tokens as a CLIP tokenizer does, but with merges left out at random.

    The tokenizers library has this too, with random numbers that no seed reaches.

    Args:
        tokenizer: with a vocabulary of byte pairs.
        dropout: probability that a merge is left out, each time that it could be made.
    """

    def __init__(self, tokenizer: CLIPTokenizer, dropout: float) -> None:
        self.dropout = dropout
        self.normalizer = tokenizer.backend_tokenizer.normalizer
        self.pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
        model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        self.ids: dict[str, int] = model["vocab"]
        self.ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
        self.ends = (int(tokenizer.bos_token_id), int(tokenizer.eos_token_id))
        self.max_tokens = 192

    def __call__(self, text: str, rng: np.random.Generator) -> list[int]:
        """Return the tokens of a text, start and end included; those beyond 192 are cut off."""
        start, end = self.ends
        words = self.pre_tokenizer.pre_tokenize_str(self.normalizer.normalize_str(text))
        chances = _chances(rng)
        tokens = [self.ids[part] for word, _ in words for part in self._cut(word, chances)]
        return [start, *tokens[: self.max_tokens - 2], end]

    def _cut(self, word: str, chances: Iterator[float]) -> list[str]:
        """Merge letters, the commonest pair first."""
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            best = min(
                (
                    (rank, i)
                    for i in range(len(parts) - 1)
                    if (rank := self.ranks.get((parts[i], parts[i + 1]))) is not None
                    and next(chances) >= self.dropout
                ),
                default=None,
            )
            if best is None:
                break
            at = best[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return parts


def _chances(rng: np.random.Generator) -> Iterator[float]:
    """Yield numbers in [0, 1), drawn many at once."""
    while True:
        yield from rng.random(256).tolist()


# training


def save(path: Path, value: Any) -> None:
    """Write a file, all or nothing."""
    with atomic_write(path) as tmp:
        torch.save(value, tmp)


def fit(
    learner: nn.Module,
    losses_of: Callable[[int], dict[str, Tensor]],
    checkpoint: Path,
    *,
    weights: Mapping[str, float],
    steps: int,
    lr: float,
    warm_up: int,
    decay: float,
    save_every: int,
    after: str = "",
) -> None:
    """Train a module to the last step, from the step of the checkpoint.

    Args:
        learner: its parameters that require a gradient are trained, its state dict is kept.
        losses_of: step -> losses by name; all random numbers follow from the step.
        checkpoint: file.
        weights: of the losses.
        steps: of the whole run.
        lr: highest learning rate.
        warm_up: steps in which the rate rises.
        decay: share of the steps, at the end, in which it falls to 0. Before that, runs of any
            length are equal, so a run can be prolonged.
        save_every: steps.
        after: says what was trained before.

    Raises:
        ValueError: the checkpoint is of a run after another one.
    """
    trained = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=lr,
        betas=(0.9, 0.98),
    )
    first = 0
    if checkpoint.is_file():
        state = torch.load(checkpoint)
        if state["after"] != after:
            raise ValueError(f"{checkpoint} continues other texts than those here; remove it")
        first = state["step"]
        learner.load_state_dict(state["learner"])
        optimizer.load_state_dict(state["optimizer"])
    falling = max(1, round(decay * steps))
    recent: dict[str, list[float]] = {}
    with tqdm(total=steps, initial=first, desc=checkpoint.stem, unit="step", mininterval=10) as bar:
        for step in range(first, steps):
            factor = min((step + 1) / warm_up, 1.0, (steps - step) / falling)
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
            losses = losses_of(step)
            optimizer.zero_grad()
            sum(weights[name] * loss for name, loss in losses.items()).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            for name, loss in losses.items():
                recent[name] = [*recent.get(name, [])[-99:], loss.item()]
            bar.set_postfix({n: f"{np.mean(v):.3f}" for n, v in recent.items()}, refresh=False)
            bar.update()
            if (step + 1) % save_every == 0 or step + 1 == steps:
                save(
                    checkpoint,
                    {
                        "step": step + 1,
                        "after": after,
                        "learner": learner.state_dict(),
                        "optimizer": optimizer.state_dict(),
                    },
                )


_WEIGHTS = {"facts": 4.0, "sites": 2.0, "margin": 1.0}
_MARGIN = 0.6
_DROPOUT, _DROPOUT_SHARE = 0.1, 0.7
"""Probability that a merge of tokens is left out, and share of the steps in which it may be."""
_NUM_CHUNKS = 3
"""Texts are embedded in chunks of similar length, so that little is computed on padding."""


class TextLearner(nn.Module):
    """The text tower of a CLIP, and the readers, in training.

    Args:
        clip: its text tower and text projection are trained.
        readers: of its embeddings.
    """

    def __init__(self, clip: HuggingFaceCLIP, readers: Readers) -> None:
        super().__init__()
        self.tower = clip.frozen_model.text_model
        self.projection = clip.frozen_model.text_projection
        self.readers = readers
        self.tokenizer = clip.tokenizer
        self.requires_grad_(True)

    def losses(self, step: int, size: int) -> dict[str, Tensor]:
        """Return the losses of a lesson."""
        lesson = draw_lesson(step, size)
        rng = np.random.default_rng([3, step])
        cut = TokenDropout(self.tokenizer, _DROPOUT if rng.random() < _DROPOUT_SHARE else 0.0)
        vectors = self.embed([cut(text, rng) for text in lesson.texts])
        read = self.readers.losses(vectors, lesson.answers)
        sites = [loss for name, loss in read.items() if name in SITES]
        facts = [loss for name, loss in read.items() if name not in SITES]
        return {
            "facts": torch.stack(facts).mean(),
            "sites": torch.stack(sites).mean(),
            "margin": F.relu(_MARGIN - margins(vectors)).mean(),
        }

    def embed(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Return unit vectors (n, e) of n texts in tokens."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        chunks = []
        for chunk in np.array_split(np.array(order), min(_NUM_CHUNKS, len(order))):
            lengths = torch.tensor([len(texts[i]) for i in chunk])
            tokens = torch.full((len(chunk), int(lengths.max())), self.tokenizer.eos_token_id)
            for row, i in enumerate(chunk):
                tokens[row, : len(texts[i])] = torch.tensor(texts[i])
            is_text = torch.arange(tokens.shape[1]) < lengths[:, None]
            output = self.tower(input_ids=tokens, attention_mask=is_text.long())
            chunks.append(self.projection(output.pooler_output))
        return F.normalize(torch.cat(chunks)[np.argsort(order)], dim=-1)


def learn_texts(
    clip: HuggingFaceCLIP,
    readers: Readers,
    checkpoint: Path,
    *,
    steps: int,
    size: int = 64,
    lr: float = 1e-3,
    save_every: int = 100,
) -> None:
    """Train the text tower and the readers, and freeze both.

    Args:
        clip: its text tower and text projection are trained.
        readers: of its embeddings.
        checkpoint: file; a run goes on from there.
        steps: of the whole run.
        size: threes of texts in a lesson.
        lr: highest learning rate.
        save_every: steps.
    """
    learner = TextLearner(clip, readers)
    fit(
        learner,
        lambda step: learner.losses(step, size),
        checkpoint,
        weights=_WEIGHTS,
        steps=steps,
        lr=lr,
        warm_up=100,
        decay=0.4,
        save_every=save_every,
    )
    learner.requires_grad_(False)


def fit_readers(clip: HuggingFaceCLIP, *, lessons: int = 320, steps: int = 400) -> Readers:
    """Return readers fitted to a CLIP that stays as it is, such as one trained without any."""
    drawn = [draw_lesson(number, 8) for number in range(lessons)]
    with torch.no_grad():
        vectors = torch.cat([clip.encode_text(lesson.texts) for lesson in drawn])
    answers = [known for lesson in drawn for known in lesson.answers]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        readers = Readers(vectors.shape[1])
    optimizer = torch.optim.Adam(readers.parameters(), lr=1e-2)
    for _ in tqdm(range(steps), desc="Fitting readers", unit="step", mininterval=10):
        loss = sum(readers.losses(vectors, answers).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return readers.requires_grad_(False)
