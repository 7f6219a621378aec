r"""Is text obeyed? One table for any weights, with controls that text alone can beat.

    python examples/obedience.py --weights tiny --patients 6
    python examples/obedience.py --weights tiny runs/a/weights --patients 100 \
        --data BraTS2018 --output obedience

Simulated patients, and real ones below ``--data``, are segmented with different reports under one
image, and different images under one report. The reports are true (*own*), those of another patient
(*dealt*), about the opposite fact (*contradicting*), or missing (*none*). All are written by
``clipseg3d.phantom.describe`` from measured facts, so no fact of a control is left to chance. The
rival *parser* (``keyword_parser.py``) edits, by keywords of the same report, what the network finds
without one. *Chance* is what a network scores to which text is nothing.

1. No enhancing tumour, told so: is it empty? And told of a thick ring?
2. T1ce withheld, told of no enhancement or of a rim, each with its own mask.
3. Contrast dose 0 to 1, told of no enhancement: it must be gone where none is seen, and stay where
   it is plain.
4. All sequences: a wrong report, or none, must cost next to nothing.
5. Two lesions that mirror each other, and a report on one of them, or a prompt for it.
6. A faded second lesion, and a report on one or two.
7. Limited or extensive oedema, without FLAIR and with it.
8. Prompts for what is there, in words of training and of others: Dice beside that of the region.
9. Prompts for what is not there, or is no part of a tumour: are they answered by an empty mask?
10. What the text encoder knows, by linear probes (``probe_tower.py``).

Every (image, text) is predicted once and kept in ``--output``, where a run that was killed goes on;
images are known by name there, so that a change of how they are made needs another folder.
Results are a CSV with one row per measure, control and patient (``--means``: per measure and
control), and a figure. Intervals are 95 %, by bootstrap over patients.
"""

import argparse
import csv
import hashlib
import json
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import nibabel as nib
import numpy as np
import torch
from keyword_parser import edit
from numpy.typing import NDArray
from probe_tower import FACTS, probe_tower
from prompt_scores import score_prompts, score_sides
from scipy import ndimage
from torch import Tensor, nn
from tqdm import tqdm

from clipseg3d import Predictor
from clipseg3d.atomic_write import atomic_write
from clipseg3d.data.cases import Case, find_cases
from clipseg3d.data.nifti import open_nifti, read_voxels
from clipseg3d.data.releases import BRATS_2018, PHANTOM
from clipseg3d.inference.segmentation import ScanWarning, Segmentation
from clipseg3d.metrics.dice import dice_empty_is_one
from clipseg3d.phantom.grid import Bool, Float
from clipseg3d.phantom.report import describe
from clipseg3d.phantom.write import write_phantoms
from clipseg3d.texts.facts import CORE, ENHANCING, OEDEMA, Label, TumourFacts, measure_facts
from clipseg3d.vocabulary import REGIONS, SEQUENCES

FIRST_SEED = 3_000_000
"""Seed of the first simulated patient. Training uses seeds from 0 on, other examples test on seeds
from 1,000 and from 1,000,000 on."""
IMAGE_TESTS = ("1", "2", "3", "4", "5", "6", "7", "8", "9")
"""Tests that need patients; the last needs the weights alone."""
PROMPT_TESTS = {"8", "9"}
"""Tests that need weights with a prompt head."""
MIN_ET_ML = 2.0
"""Patients with less enhancing tumour are left out where it should come and go."""
DOSES = (0.0, 0.5, 1.0)
PLAIN_NOISE = 0.03
"""Noise of a T1ce without contrast agent, as a share of its SD in the brain."""
FADE = 0.4
"""Contrast of the second lesion of test 6, as a share of the first one's."""
SATELLITE_MM = 12.0
FOUND = 0.3
"""From this share of its voxels on, a lesion counts as found."""
GONE = 0.1
"""Up to this share of its true volume, enhancing tumour counts as gone."""
SMALL_ML = 0.1
"""Added to both volumes of a ratio, so that nothing over nothing is 1."""
RATIO_CAP = 10.0
"""Largest ratio that is counted; one patient must not rule a mean."""
RESAMPLES = 2000

Images: TypeAlias = Mapping[str, Float]
Answers: TypeAlias = Mapping[tuple[str, str], Label]
"""(image, text) -> labels, by name."""
Asked: TypeAlias = dict[str, tuple[Callable[[], Images], dict[str, str]]]
"""Image -> how to make it, and its texts; all by name."""


@dataclass(frozen=True, eq=False)
class Patient:
    """A case in memory: sequence -> volume, labels, affine, brain mask, and facts of the labels."""

    name: str
    images: Images
    label: Label
    affine: NDArray[np.float64]
    facts: TumourFacts

    @property
    def spacing_mm(self) -> float:
        """Edge of the voxels, which are cubes."""
        return float(np.linalg.norm(self.affine[:3, 0]))

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel."""
        return self.spacing_mm**3 / 1000

    @cached_property
    def brain(self) -> Bool:
        """Voxels that are not 0 in some sequence."""
        return brain_of(self.images)

    @cached_property
    def second_lesion(self) -> Label | None:
        """Labels of a mirrored lesion; None if it touches the tumour, or there are several foci."""
        mirrored = np.where(self.brain, mirror(self.label, self.brain), 0).astype(np.uint8)
        near = ndimage.binary_dilation(self.label > 0, iterations=3)
        if self.facts.foci > 1 or self.facts.crosses_midline or (near & (mirrored > 0)).any():
            return None
        return mirrored

    @property
    def with_rim(self) -> bool:
        """Whether there is enough enhancing tumour to take away."""
        return self.facts.et_ml >= MIN_ET_ML


class Measure(NamedTuple):
    """A line of the table."""

    test: str
    """Number in the list above."""
    text: str
    targets: Mapping[str, str]
    """Data -> what is asked for."""
    chance: str


class Row(NamedTuple):
    """A line of the CSV."""

    weights: str
    data: str
    test: str
    measure: str
    control: str
    patient: str
    value: float


def _both(simulated: str, real: str | None = None) -> dict[str, str]:
    """Return the targets on simulated and on real patients."""
    return {"S": simulated, "R": simulated if real is None else real}


MEASURES = {
    "empty": Measure("1", "no enhancement, told so: share empty", _both(">= .95"), "none"),
    "thick ring": Measure("1", "told of a thick ring: ET volume / none", _both("<= 1.2"), "1"),
    "withheld": Measure("2", "T1ce withheld: ET Dice", _both(">= .70", ">= none + .10"), "none"),
    "withheld volume": Measure("2", "ET volume, told none / rim", _both("-", "<= .15"), "1"),
    "gone at dose 0": Measure("3", "dose 0, told none: share gone", _both(">= .90"), "none"),
    "gone at dose 1": Measure("3", "dose 1, told none: share gone", _both("<= .10"), "none"),
    "monotone": Measure("3", "ET volume rises with dose", _both(">= .90"), "none"),
    "loss": Measure("4", "loss of mean Dice by a wrong report", _both("<= .01"), "0"),
    **{
        f"loss {region}": Measure("4", f"... of {region}", _both("<= .03"), "0")
        for region in REGIONS
    },
    "named": Measure("5", "two lesions: Dice of the named", _both(">= .75", ">= .65"), "none"),
    "other": Measure("5", "share of the other one found", _both("<= .10"), "none"),
    "side follows": Measure("5", "words swapped: side follows", _both(">= .95", ">= .90"), ".50"),
    "named by prompt": Measure(
        "5", "... asked for by a prompt: Dice of it", _both(">= .75", ">= .65"), "-"
    ),
    "other by prompt": Measure("5", "... share of the other one found", _both("<= .10"), "-"),
    "satellite": Measure("6", "faded second lesion: share right", _both(">= .85"), ".50"),
    "oedema, no FLAIR": Measure("7", "oedema, extensive / limited, no FLAIR", _both(">= 1.5"), "1"),
    "oedema": Measure("7", "... with FLAIR", _both("<= 1.1"), "1"),
    "prompts known": Measure("8", "prompts: Dice - that of the region", _both(">= -.02"), "-"),
    "prompts unseen": Measure("8", "... in words of others", _both(">= -.03"), "-"),
    "prompts absent": Measure("9", "not there: share empty", _both(">= .95", ">= .85"), "-"),
    "prompts present": Measure("9", "... there: share found", _both(">= .97"), "-"),
    **{
        f"encoder {fact}{kind}": Measure(
            "10",
            f"encoder: {fact}{kind}",
            {"text": target},
            ".50" if fact in ("side", "foci") else ".33",  # the others have a third answer
        )
        for fact in FACTS
        for kind, target in (("", ">= .98"), (" held out", ">= .92"))
    },
    "encoder negation": Measure("10", "encoder: held-out negations", {"text": ">= .90"}, ".33"),
    **{
        f"encoder {fact} not said": Measure(
            "10", f"encoder: {fact} not said", {"text": ">= .90"}, ".33"
        )
        for fact in ("enhancement", "necrosis")
    },
    "encoder kidney": Measure(
        "10", "encoder: cos(the kidney, the enhancing rim)", {"text": "< .30"}, "-"
    ),
}
CONTROLS = ("own", "dealt", "contradicting", "none", "parser")


# Facts and reports


def contradict(facts: TumourFacts, fact: str) -> TumourFacts:
    """Return facts in which one fact is the opposite.

    Args:
        facts: true ones.
        fact: ``enhancement``, ``side``, ``foci`` or ``oedema``.

    Raises:
        ValueError: the fact is unknown.
    """
    if fact == "enhancement":
        return without_enhancement(facts) if facts.enhancing else thick_ring(facts)
    if fact == "side":
        return replace(facts, side="left" if facts.side == "right" else "right")
    if fact == "foci":
        return replace(facts, foci=2 if facts.foci == 1 else 1)
    if fact == "oedema":
        return with_oedema(facts, "limited" if facts.oedema_ml >= 40 else "extensive")
    raise ValueError(f"fact {fact!r} is unknown; choose enhancement, side, foci or oedema")


def without_enhancement(facts: TumourFacts) -> TumourFacts:
    """Return the facts of a tumour that does not enhance."""
    return replace(facts, enhancement="none", necrosis=False, et_ml=0.0)


def thick_ring(facts: TumourFacts) -> TumourFacts:
    """Return the facts of a tumour with a thick enhancing rim."""
    return replace(facts, enhancement="rim", necrosis=True, et_ml=0.95 * facts.tc_ml)


def with_oedema(facts: TumourFacts, extent: str) -> TumourFacts:
    """Return facts with limited or extensive oedema."""
    return replace(facts, wt_ml=facts.tc_ml + {"limited": 10.0, "extensive": 100.0}[extent])


def write_report(facts: TumourFacts, seed: int, *, word: str = "") -> str:
    """Write a report; with ``word``, the first of many wordings that has this word.

    Raises:
        ValueError: no wording has it.
    """
    for attempt in range(200):
        report = describe(facts, np.random.default_rng([seed, attempt]))
        if word in report:
            return report
    raise ValueError(f"no wording of these facts has the word {word!r}; use another one")


def deal(known: Mapping[str, TumourFacts], name: str) -> str:
    """Return the report of another patient, who enhances or not by a coin; empty without another.

    Patients are paired in order, so that further ones leave the reports of the first as they are.
    """
    names = sorted(known)
    index = names.index(name)
    other = names[index - 1 if index % 2 or index + 1 == len(names) else index + 1]
    if other == name:
        return ""
    facts = known[other]
    if facts.enhancing and np.random.default_rng(seed_of(name)).random() < 0.5:
        facts = without_enhancement(facts)
    return write_report(facts, seed_of(other))


def seed_of(name: str) -> int:
    """Return a number that only depends on the name."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)


# Images


def brain_of(images: Images) -> Bool:
    """Return the voxels that are not 0 in some sequence."""
    return np.asarray(np.any([volume != 0 for volume in images.values()], axis=0))


def dose(images: Images, enhancing: Bool, brain: Bool, amount: float) -> dict[str, Float]:
    """Return the scans as with another dose of contrast agent: 0 for none, 1 for what was given.

    T1ce without contrast agent is T1, linearly regressed to T1ce where nothing enhances, with a
    little noise of its own: no two scans are alike, and exact copies are refused.
    """
    t1, t1ce = (images[name].astype(np.float64) for name in ("t1", "t1ce"))
    outside = brain & (t1 > 0) & (t1ce > 0) & ~ndimage.binary_dilation(enhancing, iterations=2)
    slope, offset = np.polyfit(t1[outside], t1ce[outside], 1)
    plain = slope * t1 + offset
    noise = np.random.default_rng(0).standard_normal(t1.shape)
    plain += PLAIN_NOISE * plain[outside].std() * noise
    changed = plain + amount * (t1ce - plain)
    seen = images["t1ce"] != 0
    return {**images, "t1ce": np.where(seen, np.maximum(changed, 1), 0).astype(np.float32)}


def solid(label: Label) -> Label:
    """Return labels in which nothing enhances."""
    return np.where(label == ENHANCING, CORE, label).astype(np.uint8)


def mirror(volume: NDArray[Any], brain: Bool) -> NDArray[Any]:
    """Mirror a volume about the middle of the brain's box; left becomes right."""
    inside = np.flatnonzero(brain.any(axis=(1, 2)))
    source = inside[0] + inside[-1] - np.arange(volume.shape[0])
    possible = (source >= 0) & (source < volume.shape[0])
    mirrored = np.zeros_like(volume)
    mirrored[possible] = volume[source[possible]]
    return mirrored


def graft(patient: Patient, place: Bool, strength: float) -> dict[str, Float]:
    """Blend the mirrored scans into the scans at a place, with a soft edge."""
    weight = strength * ndimage.gaussian_filter(place.astype(np.float32), 1.5)
    changed = {}
    for name, volume in patient.images.items():
        other = mirror(volume, patient.brain)
        blended = np.where((volume != 0) & (other != 0), volume + weight * (other - volume), volume)
        changed[name] = blended.astype(np.float32)
    return changed


def satellite(second: Label, spacing_mm: float) -> Label:
    """Return the part of a second lesion that lies around the middle of its core."""
    core = (second == CORE) | (second == ENHANCING)
    centre = [float(c.mean()) for c in np.nonzero(core)]
    axes = np.ogrid[tuple(slice(n) for n in second.shape)]
    distance = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True))
    return np.where(distance * spacing_mm**2 <= SATELLITE_MM**2, second, 0).astype(np.uint8)


# What is asked


def plan(
    patient: Patient, dealt: str, *, missing: bool, tests: Collection[str] = IMAGE_TESTS
) -> Asked:
    """Return what a network is asked about a patient.

    Args:
        patient: whose scans are changed.
        dealt: the report of another one.
        missing: whether sequences may be withheld.
        tests: numbers of the tests.
    """
    facts, seed = patient.facts, seed_of(patient.name)
    others = {"none": "", **({"dealt": dealt} if dealt else {})}
    own = write_report(facts, seed)
    denied, ring = (write_report(f(facts), seed) for f in (without_enhancement, thick_ring))
    oedema = {
        extent: own if _extent(facts) == extent else write_report(with_oedema(facts, extent), seed)
        for extent in ("limited", "extensive")
    }
    asked: Asked = {}

    def ask(image: str, make: Callable[[], Images], texts: Mapping[str, str]) -> None:
        asked.setdefault(image, (make, {}))[1].update(texts)

    def scans() -> Images:
        return patient.images

    def without(sequence: str) -> Images:
        return {name: volume for name, volume in patient.images.items() if name != sequence}

    def dosed(amount: float) -> Images:
        return dose(patient.images, patient.label == ENHANCING, patient.brain, amount)

    if "1" in tests and patient.with_rim:
        ask("dose 0", partial(dosed, 0.0), {"denied": denied, "ring": ring, **others})
    if "1" in tests and not facts.enhancing:
        ask("all", scans, {"own": own, "ring": ring, **others})
    if "2" in tests and patient.with_rim and missing:
        texts = {"own": own, "denied": denied, **others}
        ask("no t1ce", partial(without, "t1ce"), texts)
    if "3" in tests and patient.with_rim:
        for amount in DOSES[:-1]:
            ask(f"dose {amount:g}", partial(dosed, amount), {"denied": denied, "none": ""})
        ask("all", scans, {"denied": denied, "none": ""})
    if "4" in tests:
        opposite = {"denied": denied} if facts.enhancing else {"ring": ring}
        ask("all", scans, {"own": own, **opposite, **others})
    second = patient.second_lesion if {"5", "6"} & set(tests) else None
    if "5" in tests and second is not None:
        swapped = write_report(contradict(facts, "side"), seed)
        texts = {"own": own, "swapped": swapped, **others}
        ask("two lesions", partial(graft, patient, second > 0, 1.0), texts)
    if "6" in tests and second is not None:
        counts = {
            "single": write_report(replace(facts, foci=1), seed, word="single"),
            "two": write_report(replace(facts, foci=2), seed),
        }
        place = satellite(second, patient.spacing_mm) > 0
        ask("satellite", partial(graft, patient, place, FADE), {**counts, **others})
    if "7" in tests:
        ask("all", scans, {**oedema, "none": ""})
        if missing:
            ask("no flair", partial(without, "flair"), {**oedema, "none": ""})
    return asked


def _extent(facts: TumourFacts) -> str:
    """Return the word that reports use for the oedema."""
    return (
        "limited" if facts.oedema_ml < 20 else "moderate" if facts.oedema_ml < 60 else "extensive"
    )


class _Remembered:
    """A function that keeps the result of its last call, if all tensors it gets are equal.

    What a network computes before text comes in is computed once per image, for any number of
    texts. Nothing is remembered between images, nor where an image has several windows.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._given: list[Any] = []
        self._result: Any = None

    def __call__(self, *args: Any, **options: Any) -> Any:
        given = [*args, *options.values()]
        if not self._given or not _equal(self._given, given):
            self._result = self._function(*args, **options)
            self._given = [value.clone() if isinstance(value, Tensor) else value for value in given]
        return list(self._result) if isinstance(self._result, list) else self._result


def _equal(first: Sequence[Any], second: Sequence[Any]) -> bool:
    """Compare arguments, tensors by value."""
    return len(first) == len(second) and all(
        a.shape == b.shape and torch.equal(a, b)
        if isinstance(a, Tensor) and isinstance(b, Tensor)
        else a is b
        for a, b in zip(first, second, strict=True)
    )


def remember_image(network: Any) -> None:
    """Let a network compute once per image what does not depend on text."""
    network.unet.encode = _Remembered(network.unet.encode)
    fusion: nn.Module | None = network.pixel_fusion
    if fusion is not None:
        fusion.forward = _Remembered(fusion.forward)


def answer(
    predictor: Predictor, patient: Patient, asked: Asked, folder: Path
) -> dict[tuple[str, str], Label]:
    """Predict what is asked and not yet in the folder; return all labels, BraTS 2018-2021."""
    answers: dict[tuple[str, str], Label] = {}
    for image, (make, texts) in asked.items():
        volumes: Images | None = None
        for name, text in texts.items():
            digest = hashlib.sha256(text.encode()).hexdigest()[:16]
            path = folder / patient.name / f"{image} {digest}.npz"
            if not path.is_file():
                volumes = make() if volumes is None else volumes
                found = predictor(dict(volumes), patient.affine, text=text)
                label = plain_labels(found)
                with atomic_write(path) as tmp, tmp.open("wb") as file:
                    np.savez_compressed(file, label=label)
            answers[image, name] = np.load(path)["label"]
    return answers


def plain_labels(found: Segmentation) -> Label:
    """Return what was found in the labels of BraTS 2018 to 2021."""
    regions = found.release.to_regions(found.label)
    label = np.zeros(found.label.shape, np.uint8)
    for region, value in zip(("WT", "TC", "ET"), (OEDEMA, CORE, ENHANCING), strict=True):
        label[regions[list(found.release.regions).index(region)]] = value
    return label


# Scores


class Scorer:
    """Scores of one patient's answers, each a measure, a control and a value.

    Args:
        patient: who was segmented.
        texts: (image, text) -> report, by name.
        answers: what was found.
    """

    def __init__(
        self, patient: Patient, texts: Mapping[tuple[str, str], str], answers: Answers
    ) -> None:
        (box,) = ndimage.find_objects(patient.brain.astype(np.uint8))
        images = {name: volume[box] for name, volume in patient.images.items()}
        self.patient = replace(patient, images=images, label=patient.label[box])
        self.brain = self.patient.brain
        self.texts = texts
        self.answers = {key: label[box] for key, label in answers.items()}

    def __call__(self) -> list[tuple[str, str, float]]:
        """Return all scores."""
        scores: list[tuple[str, str, float]] = []
        for score in (
            self._empty,
            self._withheld,
            self._dose,
            self._wrong,
            self._two_lesions,
            self._satellite,
            self._oedema,
        ):
            scores += score()
        return scores

    def _under(self, image: str, told: str, opposite: str) -> dict[str, Label]:
        """Return control -> what was found, where ``told`` is what is true."""
        names = {"own": told, "dealt": "dealt", "contradicting": opposite, "none": "none"}
        found = {
            control: self.answers[image, name]
            for control, name in names.items()
            if (image, name) in self.answers
        }
        return found | {"parser": self._parser(image, told)}

    def _parser(self, image: str, told: str) -> Label:
        """Return the edit of what was found without a report."""
        plain, report = self.answers[image, "none"], self.texts[image, told]
        return edit(plain, report, self.brain, spacing_mm=self.patient.spacing_mm)

    def _et_ml(self, label: Label) -> float:
        """Return the volume of enhancing tumour."""
        return float((label == ENHANCING).sum()) * self.patient.voxel_ml

    def _empty(self) -> list[tuple[str, str, float]]:
        """Score test 1."""
        if ("dose 0", "ring") in self.answers:
            image, told = "dose 0", "denied"
        elif ("all", "ring") in self.answers:
            image, told = "all", "own"
        else:
            return []
        scores = [
            ("empty", control, float(not (label == ENHANCING).any()))
            for control, label in self._under(image, told, "ring").items()
        ]
        plain = self._et_ml(self.answers[image, "none"])
        for control, label in (
            ("own", self.answers[image, "ring"]),
            ("parser", self._parser(image, "ring")),
        ):
            scores.append(("thick ring", control, ratio(self._et_ml(label), plain)))
        return scores

    def _withheld(self) -> list[tuple[str, str, float]]:
        """Score test 2: one image, two reports, each with its mask."""
        if ("no t1ce", "own") not in self.answers:
            return []
        rim = self.patient.label
        pairs = (
            (rim, self._under("no t1ce", "own", "denied")),
            (solid(rim), self._under("no t1ce", "denied", "own")),
        )
        scores = [
            (
                "withheld",
                control,
                float(np.mean([dice(f[control], truth)[2] for truth, f in pairs])),
            )
            for control in pairs[0][1]
        ]
        for control in ("own", "parser"):
            told_rim, told_none = (self._et_ml(found[control]) for _, found in pairs)
            scores.append(("withheld volume", control, ratio(told_none, told_rim)))
        return scores

    def _dose(self) -> list[tuple[str, str, float]]:
        """Score test 3."""
        if ("dose 0.5", "none") not in self.answers:
            return []
        true_ml = self.patient.facts.et_ml
        images = [*(f"dose {amount:g}" for amount in DOSES[:-1]), "all"]
        found = [self._under(i, "denied", "own" if i == "all" else "ring") for i in images]
        scores = [
            (measure, control, float(self._et_ml(label) <= GONE * true_ml))
            for measure, labels in (("gone at dose 0", found[0]), ("gone at dose 1", found[-1]))
            for control, label in labels.items()
        ]
        for control in ("own", "none", "parser"):
            shares = [self._et_ml(labels[control]) / true_ml for labels in found]
            scores.append(("monotone", control, float(rises(shares))))
        return scores

    def _wrong(self) -> list[tuple[str, str, float]]:
        """Score test 4; ours is the mean over the three controls."""
        if ("all", "own") not in self.answers:
            return []
        opposite = "denied" if ("all", "denied") in self.answers else "ring"
        found = self._under("all", opposite, opposite)
        own = dice(self.answers["all", "own"], self.patient.label)
        losses = {
            control: own - dice(label, self.patient.label)
            for control, label in found.items()
            if control != "own"
        }
        shown = [losses[c] for c in ("dealt", "contradicting", "none") if c in losses]
        losses["own"] = np.mean(shown, axis=0)
        return [
            score
            for control, loss in losses.items()
            for score in (
                ("loss", control, float(loss.mean())),
                *((f"loss {r}", control, float(v)) for r, v in zip(REGIONS, loss, strict=True)),
            )
        ]

    def _two_lesions(self) -> list[tuple[str, str, float]]:
        """Score test 5: one image, and a report on either lesion."""
        second = self.patient.second_lesion
        if second is None or ("two lesions", "none") not in self.answers:
            return []
        first = self.patient.label
        left = on_left(self.brain)
        half = left if self.patient.facts.side == "left" else ~left
        items = (
            (first, second, half, self._under("two lesions", "own", "swapped")),
            (second, first, ~half, self._under("two lesions", "swapped", "own")),
        )
        scores = []
        for control in items[0][3]:
            rows = []
            for named, other, place, found in items:
                label = found[control]
                seen, unwanted = (recall(label, lesion) for lesion in (named, other))
                kept = np.where(place, label, 0).astype(np.uint8)
                follows = 0.5 + 0.5 * np.sign(seen - unwanted)
                rows.append((float(dice(kept, named).mean()), unwanted, float(follows)))
            means = np.mean(rows, axis=0)
            scores += [
                (name, control, float(value))
                for name, value in zip(("named", "other", "side follows"), means, strict=True)
            ]
        return scores

    def _satellite(self) -> list[tuple[str, str, float]]:
        """Score test 6: one image, and a report on one or two lesions."""
        second = self.patient.second_lesion
        if second is None or ("satellite", "none") not in self.answers:
            return []
        small = satellite(second, self.patient.spacing_mm)
        single = self._under("satellite", "single", "two")
        two = self._under("satellite", "two", "single")
        return [
            (
                "satellite",
                control,
                0.5 * (recall(single[control], small) < FOUND)
                + 0.5 * (recall(two[control], small) >= FOUND),
            )
            for control in single
        ]

    def _oedema(self) -> list[tuple[str, str, float]]:
        """Score test 7."""
        scores = []
        for image, measure in (("no flair", "oedema, no FLAIR"), ("all", "oedema")):
            if (image, "limited") not in self.answers:
                continue
            for control, found in (
                ("own", {name: self.answers[image, name] for name in ("limited", "extensive")}),
                ("parser", {name: self._parser(image, name) for name in ("limited", "extensive")}),
            ):
                limited, extensive = (
                    float((found[name] == OEDEMA).sum()) * self.patient.voxel_ml
                    for name in ("limited", "extensive")
                )
                scores.append((measure, control, ratio(extensive, limited)))
        return scores


def ratio(volume: float, reference: float) -> float:
    """Return the ratio of two volumes in ml; 1 for nothing over nothing."""
    return min((volume + SMALL_ML) / (reference + SMALL_ML), RATIO_CAP)


def rises(volumes: Sequence[float]) -> bool:
    """Return whether shares of the true volume rise by half or more, and never fall by a tenth."""
    steps = np.diff(volumes)
    return bool(volumes[-1] - volumes[0] >= 0.5 and (steps > -0.1).all())


def recall(label: Label, lesion: Label) -> float:
    """Return the share of a lesion's voxels that are labelled as tumour."""
    return float((label[lesion > 0] > 0).mean())


def on_left(brain: Bool) -> Bool:
    """Return the left half of the brain's box, (x, 1, 1), in LPS voxel order."""
    inside = np.flatnonzero(brain.any(axis=(1, 2)))
    x = np.arange(brain.shape[0])[:, None, None]
    return np.asarray(x > (inside[0] + inside[-1]) / 2)


def dice(label: Label, truth: Label) -> NDArray[np.float64]:
    """Return Dice of WT, TC and ET; two empty masks score 1."""
    masks = (torch.from_numpy(BRATS_2018.to_regions(values)) for values in (label, truth))
    return np.asarray(dice_empty_is_one(*masks).numpy())


# Table and figure


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean, by bootstrap over patients."""
    rng = np.random.default_rng(0)
    drawn = rng.choice(np.asarray(values, float), (RESAMPLES, len(values)))
    low, high = np.percentile(drawn.mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def is_met(target: str, value: float, without: float | None) -> bool | None:
    """Return whether a value meets a target such as ``>= .95`` or ``>= none + .10``; None for "-".

    Args:
        target: an operator and a number, which may be relative to the control without a report.
        value: ours.
        without: mean of the control without a report.
    """
    operator, _, bound = target.partition(" ")
    relative = bound.startswith("none + ")
    try:
        number = float(bound.removeprefix("none + "))
    except ValueError:
        return None
    if relative:
        if without is None:
            return None
        number += without
    if operator == ">=":
        return value >= number
    return value <= number if operator == "<=" else value < number


def collect(rows: Iterable[Row]) -> dict[tuple[str, str, str], dict[str, list[float]]]:
    """Return (weights, data, measure) -> control -> values of the patients."""
    values: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for row in rows:
        controls = values.setdefault((row.weights, row.data, row.measure), {})
        controls.setdefault(row.control, []).append(row.value)
    return values


def table(rows: Iterable[Row]) -> list[list[str]]:
    """Return the cells of the table, a list per line, the head first."""
    head = ["#", "measure", "on", "n", "ours", "95 %", "target", "met", "chance"]
    lines = [[*head, *CONTROLS[1:]]]
    values = collect(rows)
    for weights, data in dict.fromkeys((w, d) for w, d, _ in values):
        lines.append(["", f"{weights}, {data}", *[""] * (len(lines[0]) - 2)])
        for name, measure in MEASURES.items():
            target = measure.targets.get(data)
            if target is None:
                continue
            controls = values.get((weights, data, name), {})
            own = controls.get("own", [])
            if not own:
                lines.append(
                    [
                        measure.test,
                        measure.text,
                        data,
                        "0",
                        "not run",
                        "",
                        target,
                        "",
                        "-",
                    ]
                    + ["-"] * (len(CONTROLS) - 1)
                )
                continue
            means = {control: float(np.mean(numbers)) for control, numbers in controls.items()}
            met = is_met(target, means["own"], means.get("none"))
            low, high = interval(own)
            chance = measure.chance
            if chance == "none":
                chance = _number(means.get("none"))
            lines.append(
                [
                    measure.test,
                    measure.text,
                    data,
                    str(len(own)),
                    _number(means["own"]),
                    f"{low:.2f} to {high:.2f}" if len(own) > 1 else "",
                    target,
                    {None: "", True: "yes", False: "no"}[met],
                    chance,
                    *(_number(means.get(control)) for control in CONTROLS[1:]),
                ]
            )
    return lines


def _number(value: float | None) -> str:
    """Return a number for the table."""
    return "-" if value is None else f"{value:.3f}"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw ours with its interval, the controls, and the target of every measure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    values = collect(rows)
    groups = list(dict.fromkeys((weights, data) for weights, data, _ in values))
    figure, axes = plt.subplots(
        1, len(groups), figsize=(1.5 + 4.2 * len(groups), 7), squeeze=False, layout="constrained"
    )
    styles = {"dealt": "v", "contradicting": "x", "none": "o", "parser": "s"}
    titles = {"S": "simulated patients", "R": "real patients", "text": "text encoder"}
    for axis, (weights, data) in zip(axes[0], groups, strict=True):
        names = [name for name in MEASURES if (weights, data, name) in values]
        for place, name in enumerate(names):
            controls = values[weights, data, name]
            for control, marker in styles.items():
                if control in controls:
                    axis.plot(
                        min(float(np.mean(controls[control])), 2.0),
                        place,
                        marker,
                        color="0.45",
                        fillstyle="none",
                        markersize=6,
                        label=control,
                    )
            mean = float(np.mean(controls["own"]))
            low, high = interval(controls["own"])
            axis.plot(np.clip([low, high], None, 2.0), [place] * 2, color="C0", linewidth=2)
            axis.plot(min(mean, 2.0), place, "o", color="C0", label="ours")
            bound = MEASURES[name].targets[data].partition(" ")[2]
            if bound.startswith("none + ") and "none" in controls:
                bound = str(float(bound.removeprefix("none + ")) + float(np.mean(controls["none"])))
            with suppress(ValueError):  # a target in words
                axis.plot(
                    float(bound),
                    place,
                    "|",
                    color="C3",
                    markersize=16,
                    markeredgewidth=2,
                    label="target",
                )
        axis.set_yticks(
            range(len(names)), [f"{MEASURES[n].test}  {MEASURES[n].text}" for n in names]
        )
        axis.tick_params(axis="y", labelsize=8)
        axis.invert_yaxis()
        axis.grid(axis="x", alpha=0.3)
        axis.set_title(f"{weights}, {titles[data]}", fontsize=9)
    known: dict[str, Any] = {}
    for axis in axes[0]:
        for handle, text in zip(*axis.get_legend_handles_labels(), strict=True):
            known.setdefault(text, handle)
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=6, fontsize=8)
    with atomic_write(path) as tmp:
        figure.savefig(tmp, dpi=110, format="png")
    plt.close(figure)


# The run


def load(case: Case, facts: TumourFacts | None = None) -> Patient:
    """Read a case.

    Raises:
        ValueError: it has no expert mask, or its voxels are not in LPS order.
    """
    affine = open_nifti(case.sequences["t1"]).affine
    if case.label is None or nib.aff2axcodes(affine) != ("L", "P", "S"):
        raise ValueError(f"{case.case_id}: needs an expert mask and LPS voxel order, as BraTS has")
    images = {name: read_voxels(case.sequences[name]).astype(np.float32) for name in SEQUENCES}
    label = read_voxels(case.label).astype(np.uint8)
    if facts is None:
        spacing_mm = float(np.linalg.norm(affine[:3, 0]))
        facts = measure_facts(label, brain_of(images), spacing_mm=spacing_mm)
    return Patient(case.case_id, images, label, affine, facts)


def read_facts(case: Case, folder: Path) -> TumourFacts:
    """Return the facts of a case; they are kept in the folder."""
    path = folder / f"{case.case_id}.json"
    if not path.is_file():
        facts = load(case).facts
        with atomic_write(path) as tmp:
            tmp.write_text(json.dumps(asdict(facts)), encoding="utf-8")
    return TumourFacts(**json.loads(path.read_text(encoding="utf-8")))


def run(
    predictors: Mapping[str, Predictor],
    data: str,
    cases: Sequence[Case],
    folder: Path,
    tests: Collection[str],
) -> list[Row]:
    """Ask and score every network about every case."""
    known = {case.case_id: read_facts(case, folder / "facts") for case in tqdm(cases, desc="Facts")}
    folders = {
        name: folder / "answers" / folder_name(name, predictor)
        for name, predictor in predictors.items()
    }
    rows = []
    for case in tqdm(cases, desc=f"Patients ({data})", unit="patient"):
        patient = load(case, known[case.case_id])
        dealt = deal(known, patient.name)
        for name, predictor in predictors.items():
            asked = plan(patient, dealt, missing=predictor.allow_missing, tests=tests)
            answers = answer(predictor, patient, asked, folders[name])
            texts = {(i, t): report for i, (_, ts) in asked.items() for t, report in ts.items()}
            rows += [
                Row(name, data, MEASURES[measure].test, measure, control, patient.name, value)
                for measure, control, value in Scorer(patient, texts, answers)()
            ]
            if predictor.network.prompt_head is not None:
                rows += [
                    Row(name, data, MEASURES[measure].test, measure, control, patient.name, value)
                    for measure, control, value in prompt_answers(
                        predictor, patient, folders[name], tests
                    )
                ]
    return rows


def prompt_answers(
    predictor: Predictor, patient: Patient, folder: Path, tests: Collection[str]
) -> list[tuple[str, str, float]]:
    """Return the scores of prompts about a patient; they are kept in the folder."""
    (box,) = ndimage.find_objects(patient.brain.astype(np.uint8))
    making: dict[str, Callable[[], list[tuple[str, str, float]]]] = {}
    if PROMPT_TESTS & set(tests):
        making["prompts"] = partial(
            score_prompts,
            *(predictor, patient.images, patient.affine, patient.label, box),
            voxel_ml=patient.voxel_ml,
        )
    second = patient.second_lesion if "5" in tests else None
    if second is not None:
        left = on_left(patient.brain)
        both = np.where(patient.label > 0, patient.label, second)
        making["two lesions"] = partial(
            score_sides,
            *(predictor, graft(patient, second > 0, 1.0), patient.affine, box),
            {"left": np.where(left, both, 0), "right": np.where(left, 0, both)},
        )
    scores = []
    for name, make in making.items():
        path = folder / patient.name / f"{name}.json"
        if not path.is_file():
            with atomic_write(path) as tmp:
                tmp.write_text(json.dumps(make()), encoding="utf-8")
        scores += [
            (measure, control, value) for measure, control, value in json.loads(path.read_text())
        ]
    return scores


def folder_name(weights: str, predictor: Predictor) -> str:
    """Return a name for the answers of these very weights and settings."""
    facts = json.dumps(predictor.fingerprint(), sort_keys=True)
    return f"{Path(weights).name} {hashlib.sha256(facts.encode()).hexdigest()[:12]}"


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write the CSV, all or nothing."""
    with atomic_write(path) as tmp, tmp.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows([*row[:-1], f"{row.value:.4f}"] for row in rows)


def write_means(path: Path, rows: Iterable[Row]) -> None:
    """Write the mean of every measure and control over patients, with its interval."""
    with atomic_write(path) as tmp, tmp.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        head = ["weights", "data", "test", "measure", "asked", "target", "control", "patients"]
        writer.writerow([*head, "mean", "low", "high"])
        order = list(MEASURES)
        groups = sorted(collect(rows).items(), key=lambda group: order.index(group[0][2]))
        for (weights, data, name), controls in groups:
            measure = MEASURES[name]
            where = weights, data, measure.test, name, measure.text, measure.targets[data]
            for control, numbers in controls.items():
                figures = (float(np.mean(numbers)), *interval(numbers))
                writer.writerow([*where, control, len(numbers), *(f"{f:.4f}" for f in figures)])


def main() -> None:
    """Ask, score, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", nargs="+", default=["tiny"], help="names or folders")
    parser.add_argument("--patients", type=int, default=6, help="simulated patients")
    parser.add_argument("--data", type=Path, help="folder of BraTS 2018; read only")
    parser.add_argument(
        "--cases", nargs="+", default=["*_2013_*", "*_CBICA_*"], help="patterns of cases of --data"
    )
    parser.add_argument(
        "--tests", nargs="+", choices=[*IMAGE_TESTS, "10"], default=[*IMAGE_TESTS, "10"]
    )
    parser.add_argument("--output", type=Path, default=Path("obedience"), help="keeps predictions")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--name", default="obedience", help="of the CSV and of the figure")
    parser.add_argument(
        "--means", action="store_true", help="write means over patients, not a row for each"
    )
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore", ScanWarning)
    predictors = {}
    for weights in arguments.weights:
        predictors[weights] = Predictor.from_pretrained(weights, device=arguments.device)
        if sorted(predictors[weights].release.regions) != sorted(REGIONS):
            parser.error(f"{weights} segments other regions than {', '.join(REGIONS)}")
        for network in predictors[weights].networks:
            remember_image(network)
    spacings = {predictor.spacing_mm for predictor in predictors.values()}
    if len(spacings) > 1:
        parser.error(f"the weights are for voxels of {sorted(spacings)} mm; run them one by one")
    (spacing_mm,) = spacings
    rows: list[Row] = []
    for weights, predictor in predictors.items():
        probed = probe_tower(predictor.network) if "10" in arguments.tests else []
        rows += [Row(weights, "text", "10", f"encoder {m}", *rest) for m, *rest in probed]
    if arguments.patients:
        folder = arguments.output / f"patients {spacing_mm:g} mm"
        names = write_phantoms(folder, arguments.patients, spacing_mm=spacing_mm, seed=FIRST_SEED)
        found = find_cases(folder, PHANTOM, spacing_mm=spacing_mm)
        cases = [case for case in found if case.case_id in names]
        rows += run(predictors, "S", cases, arguments.output, arguments.tests)
    if arguments.data is not None:
        cases = [
            case
            for case in find_cases(arguments.data, BRATS_2018)
            if any(fnmatch(case.case_id, pattern) for pattern in arguments.cases)
        ]
        rows += run(predictors, "R", cases, arguments.output, arguments.tests)
    for line in table(rows):
        print(" | ".join(line))
    write = write_means if arguments.means else write_rows
    write(arguments.results / f"{arguments.name}.csv", rows)
    draw(rows, arguments.results / f"{arguments.name}.png")


if __name__ == "__main__":
    main()
