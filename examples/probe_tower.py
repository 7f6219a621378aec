"""What a text encoder knows of a report, by linear probes.

Probes are fitted on reports of ``clipseg3d.phantom.describe`` with facts drawn at random, and
tested on further ones; on sentences in other words (``HELD_OUT``, ``NEGATIONS``), written without
looking at its grammar; and on reports that leave a fact out. The rival is ``keyword_parser.read``.

This is for any network that reads text. ``evaluate_tiny_clip.py`` reads more facts, in more texts,
with the readers that the tiny CLIP was trained with.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from keyword_parser import read
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from clipseg3d.clip.text_bank import TextBank
from clipseg3d.networks.clipseg3d import CLIPSeg3D
from clipseg3d.phantom.report import describe
from clipseg3d.texts.facts import OEDEMA_WORDS, Enhancement, TumourFacts

NUM_TRAIN, NUM_TEST = 600, 200
MIDDLE, NOT_SAID = "moderate", "not said"

HELD_OUT: dict[str, dict[str, tuple[str, ...]]] = {
    "side": {
        "left": (
            "The abnormality sits in the left hemisphere.",
            "Left-sided tumour of the brain.",
            "On the left, the parietal white matter is replaced by tumour.",
            "Space-occupying process, left cerebral hemisphere.",
        ),
        "right": (
            "The abnormality sits in the right hemisphere.",
            "Right-sided tumour of the brain.",
            "On the right, the parietal white matter is replaced by tumour.",
            "Space-occupying process, right cerebral hemisphere.",
        ),
    },
    "foci": {
        "one": (
            "This is a solitary tumour.",
            "There is just one lesion; no satellite is found.",
            "Unifocal disease.",
            "No second lesion is identified.",
        ),
        "more": (
            "The disease is multifocal.",
            "Besides the main mass there is a satellite nodule.",
            "Two distinct tumours are identified.",
            "A second, smaller lesion lies some centimetres away.",
        ),
    },
    "oedema": {
        "limited": (
            "Perifocal oedema is mild.",
            "Only a little swelling of the white matter surrounds it.",
            "Vasogenic edema is minimal.",
            "Slight oedema around the mass.",
        ),
        "extensive": (
            "Perifocal oedema is massive.",
            "Much of the hemisphere's white matter is swollen.",
            "Vasogenic edema is severe and widespread.",
            "Marked oedema around the mass.",
        ),
    },
    "necrosis": {
        "yes": (
            "The centre of the tumour is necrotic.",
            "There are necrotic areas inside.",
            "Central breakdown of tissue with necrosis.",
            "The middle of the mass has died off.",
        ),
        "no": (
            "The tumour is free of necrosis.",
            "Necrotic areas are absent.",
            "The mass is viable throughout, without necrotic change.",
            "Nothing suggests necrosis.",
        ),
    },
    "enhancement": {
        "yes": (
            "After gadolinium the lesion lights up at its border.",
            "Avid uptake of contrast medium along the margin.",
            "The mass is ring-enhancing.",
            "Post-contrast T1 shows a bright peripheral wall.",
            "Vivid enhancement of the tumour wall.",
        ),
        "no": (
            "After gadolinium nothing lights up.",
            "The mass is non-enhancing.",
            "Post-contrast T1 shows no bright tissue.",
            "The tumour stays dark after contrast medium.",
            "Enhancement could not be detected.",
        ),
    },
}
"""Fact -> value -> sentences in words that training has not."""

NEGATIONS = (
    "The tumour fails to enhance.",
    "There is no evidence of pathological enhancement.",
    "The lesion does not show any uptake of contrast medium.",
    "Enhancement: none.",
    "Neither nodular nor ring enhancement is present.",
    "The mass remains free of contrast enhancement.",
    "It lacks enhancement after gadolinium.",
    "Without contrast enhancement on T1.",
    "Contrast uptake cannot be demonstrated.",
    "Absence of enhancement after intravenous contrast.",
)
"""Ways to deny enhancement."""

FACTS = ("side", "foci", "oedema", "necrosis", "enhancement")
_SENTENCES = {
    "side": r"lobe",
    "foci": r"lobe",
    "oedema": r"edema",
    "necrosis": r"necro",
    "enhancement": r"enhanc|contrast",
}
"""Fact -> what a sentence that states it has in it."""


@dataclass(frozen=True)
class Sample:
    """A report, and fact -> value, :data:`NOT_SAID` if the report does not say."""

    report: str
    values: dict[str, str]


def probe_tower(network: CLIPSeg3D) -> list[tuple[str, str, str, float]]:
    """Probe the text encoder of a network, and the keyword parser beside it.

    Returns:
        Rows of measure, control (``own`` or ``parser``), fact, and balanced accuracy or cosine;
        none if the network reads no text.
    """
    bank = network.text_bank
    if bank is None:
        return []
    rng = np.random.default_rng(0)
    train = [draw_sample(rng) for _ in range(NUM_TRAIN)]
    train += [leave_out(draw_sample(rng), rng) for _ in range(NUM_TRAIN // 2)]
    known = [draw_sample(rng) for _ in range(NUM_TEST)]
    silent = [leave_out(draw_sample(rng), rng) for _ in range(NUM_TEST)]
    embedded = embed(bank, [sample.report for sample in train])
    rows: list[tuple[str, str, str, float]] = []
    for fact in FACTS:
        probe = make_pipeline(
            StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=5000)
        )
        probe.fit(embedded, [sample.values[fact] for sample in train])
        for control in ("own", "parser"):

            def answers(samples: Sequence[Sample], control: str = control) -> list[str]:
                reports = [sample.report for sample in samples]
                if control == "parser":
                    return [parse(report, fact) for report in reports]  # noqa: B023
                return list(probe.predict(embed(bank, reports)))  # noqa: B023

            asked = {
                fact: [sample for sample in known if sample.values[fact] not in (MIDDLE, NOT_SAID)],
                f"{fact} held out": [
                    replace_fact(known[i], fact, sentence, value)
                    for value, sentences in HELD_OUT[fact].items()
                    for i, sentence in enumerate(sentences * 5)
                ],
            }
            if fact == "enhancement":
                asked["negation"] = [
                    replace_fact(known[i], fact, sentence, "no")
                    for i, sentence in enumerate(NEGATIONS * 5)
                ]
            if fact in ("enhancement", "necrosis"):
                asked[f"{fact} not said"] = [s for s in silent if s.values[fact] == NOT_SAID]
            rows += [
                (measure, control, fact, balanced(answers(samples), samples, fact))
                for measure, samples in asked.items()
            ]
    kidney, rim = embed(bank, ["the kidney", "the enhancing rim"])
    cosine = kidney @ rim / np.linalg.norm(kidney) / np.linalg.norm(rim)
    return [*rows, ("kidney", "own", "cosine", float(cosine))]


def embed(bank: TextBank, reports: Sequence[str]) -> NDArray[np.float32]:
    """Return the mean of the tokens of each report, (n, e); prompts of regions are left out."""
    vectors = []
    for start in range(0, len(reports), 32):
        text, mask = bank(reports[start : start + 32])
        text, weight = text[:, len(bank.prompts) :], mask[:, len(bank.prompts) :, None].float()
        vectors.append(((text * weight).sum(dim=1) / weight.sum(dim=1)).cpu().numpy())
    return np.concatenate(vectors)


def balanced(answers: Sequence[str], samples: Sequence[Sample], fact: str) -> float:
    """Return the mean over values of the share of right answers."""
    right: dict[str, list[bool]] = {}
    for given, sample in zip(answers, samples, strict=True):
        right.setdefault(sample.values[fact], []).append(given == sample.values[fact])
    return float(np.mean([np.mean(part) for part in right.values()]))


def parse(report: str, fact: str) -> str:
    """Return what keywords say of a fact."""
    reading = read(report)
    flags = {None: NOT_SAID, True: "yes", False: "no"}
    if fact == "foci":
        return "one" if reading.foci in (None, 1) else "more"
    if fact in ("enhancement", "necrosis"):
        return flags[reading.enhancing if fact == "enhancement" else reading.necrosis]
    value = reading.side if fact == "side" else reading.oedema
    return NOT_SAID if value is None else value


def draw_sample(rng: np.random.Generator) -> Sample:
    """Write a report of facts drawn at random, each about as often as its opposite."""
    enhancement: Enhancement = rng.choice(
        ["none", "none", "none", "spots", "patches", "rim", "solid"]
    )
    tc_ml = float(rng.uniform(10, 60))
    share = {"none": 0.0, "spots": 0.1, "patches": 0.4, "rim": rng.uniform(0.3, 0.9), "solid": 1.0}
    facts = TumourFacts(
        side=rng.choice(["left", "right"]),
        lobe=rng.choice(["frontal", "parietal", "temporal", "occipital"]),
        foci=int(rng.choice([1, 1, 2, 3])),
        crosses_midline=bool(rng.random() < 0.2),
        enhancement=enhancement,
        necrosis=enhancement == "rim" and bool(rng.random() < 0.8),
        wt_ml=tc_ml + float(rng.choice([10, 40, 100])),
        tc_ml=tc_ml,
        et_ml=tc_ml * float(share[enhancement]),
        ventricle_loss=float(rng.uniform(0, 0.25)),
        midline_shift_mm=float(rng.uniform(0, 6)),
    )
    report = describe(facts, rng)
    extent = next(word for bound, word in OEDEMA_WORDS if facts.oedema_ml < bound)
    said = "necro" in report.lower()
    return Sample(
        report,
        {
            "side": facts.side,
            "foci": "one" if facts.foci == 1 else "more",
            "oedema": extent,
            "necrosis": ("yes" if facts.necrosis else "no") if said else NOT_SAID,
            "enhancement": "yes" if facts.enhancing else "no",
        },
    )


def leave_out(sample: Sample, rng: np.random.Generator) -> Sample:
    """Leave out what a report says of enhancement or of necrosis, or of both."""
    left_out = [("enhancement",), ("necrosis",), ("enhancement", "necrosis")][rng.integers(3)]
    for fact in left_out:
        kept, gone = _part(sample.report, fact)
        if gone:
            values = {**sample.values, fact: NOT_SAID}
            for other in ("enhancement", "necrosis"):  # one sentence may tell of both
                if not _part(kept, other)[1]:
                    values[other] = NOT_SAID
            sample = Sample(kept, values)
    return sample


def replace_fact(sample: Sample, fact: str, sentence: str, value: str) -> Sample:
    """Return a report whose sentences on a fact are replaced by one sentence."""
    kept, _ = _part(sample.report, fact)
    return Sample(f"{kept} {sentence}".strip(), {**sample.values, fact: value})


def _part(report: str, fact: str) -> tuple[str, str]:
    """Return a report without its sentences on a fact, and these sentences."""
    sentences = re.split(r"(?<=\.) ", report)
    told = [re.search(_SENTENCES[fact], sentence.lower()) is not None for sentence in sentences]
    if fact == "enhancement":  # necrosis is said to be what does not take up contrast
        told = [t and "an area that" not in s for t, s in zip(told, sentences, strict=True)]
    kept, gone = (
        " ".join(s for s, t in zip(sentences, told, strict=True) if t is wanted)
        for wanted in (False, True)
    )
    return kept, gone
