"""What the tiny CLIP of the package has learned, beside what chance would give.

    python examples/evaluate_tiny_clip.py --data BraTS2018 --reports brats2018_reports.json \
        --clip tiny_clip/clip --readers tiny_clip/readers.safetensors

Of texts, as ``tower_texts.Readers`` read them: reports sentence by sentence, prompts as a whole.
Without ``--readers``, readers are fitted to the text tower first. ``probe_tower.py`` asks a similar
question of any network that reads text.

- facts in texts that training could have had (``clipseg3d.texts``), and in held-out ones, whose
  authors had not seen how those are written (``held_out/``). The ``development`` half was looked at
  when wordings were added; the ``test`` half is for the last run;
- of held-out texts, whether denied enhancement is read as denied, and unsaid facts as unsaid;
- the same by the keyword parser, ``keyword_parser.py``;
- by how much a text is more similar to its paraphrase than to a text with one fact changed, and the
  cosine of the kidney and the enhancing rim.

Of images: phantoms that were not in training, the real cases that were, and real cases that were
not:

- facts, by the same readers, in the embedding of three views. Each case of ``twins`` is there with
  and without contrast agent;
- retrieval: whether the report of a phantom is the most similar to its views of all reports, or
  among the five most similar. The row ``facts alone`` has the score of a reader who knows every
  fact, but not which of many wordings was chosen;
- maps: whether the patch most similar to the prompts of a region shows that region (the region
  covers a quarter of it or more); and the area under the ROC curve over all patches of the brain,
  averaged over cases. Chance is the share of the brain's patches that show the region, and 0.5.

Facts are scored by balanced accuracy; chance is 1 / number of answers that occur.
"""

import argparse
import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from keyword_parser import read
from torch import Tensor
from tower_texts import (
    FIRST_UNSEEN,
    OF_PROMPTS,
    QUESTIONS,
    UNSAID,
    Answers,
    Readers,
    draw_lesson,
    fit_readers,
    margins,
    read_report,
)
from train_tiny_clip import (
    ENERGY,
    LOBES,
    RGB,
    Sample,
    answers_shown,
    collect_cases,
    collect_phantoms,
    left_out,
)

from clipseg3d.atomic_write import atomic_write
from clipseg3d.clip import HuggingFaceCLIP, load_encoder
from clipseg3d.clip.prompts import region_prompts
from clipseg3d.data.releases import get_release
from clipseg3d.texts import write_text
from clipseg3d.texts.wording import SITES
from clipseg3d.vocabulary import REGIONS

COVERED = 0.25
FIRST_SEED = 1_000_000
"""Seed of the first phantom; training uses seeds from 0 on."""
HELD_OUT = Path(__file__).parent / "held_out"
HELD_OUT_FACTS = ("enhancement", "necrosis", "oedema", "foci", "side")
"""Questions that the texts of :data:`HELD_OUT` have answers to, beside their places."""
PLACES = "places named"
NUM_LESSONS = 4


class Row(NamedTuple):
    """One line of the table."""

    measure: str
    data: str
    value: float
    chance: float | None
    """None where there is no such thing."""
    n: int


def balanced(
    measure: str, data: str, given: Sequence[Answers], true: Sequence[Answers], question: str
) -> list[Row]:
    """Return a row with the mean over answers of the share that is right; none without cases."""
    right: dict[str, list[bool]] = {}
    for answers, truth in zip(given, true, strict=True):
        if question in truth:
            right.setdefault(truth[question], []).append(answers[question] == truth[question])
    if not right:
        return []
    value = float(np.mean([np.mean(part) for part in right.values()]))
    return [Row(measure, data, value, 1 / len(right), sum(map(len, right.values())))]


# texts


def texts(clip: HuggingFaceCLIP, readers: Readers, half: str) -> list[Row]:
    """Score texts of the kind that training has, and held-out ones."""
    kidney, rim = clip.encode_text(["the kidney", "the enhancing rim"])
    return [
        *known_texts(clip, readers),
        *held_out_reports(clip, readers, half),
        *held_out_prompts(clip, readers, half),
        Row("cosine of kidney and enhancing rim", "texts", float(kidney @ rim), None, 1),
    ]


def known_texts(clip: HuggingFaceCLIP, readers: Readers) -> list[Row]:
    """Score lessons that training did not have."""
    lessons = [draw_lesson(FIRST_UNSEEN + number, 64) for number in range(NUM_LESSONS)]
    vectors = [clip.encode_text(lesson.texts) for lesson in lessons]
    written = [text for lesson in lessons for text in lesson.texts]
    true = [answers for lesson in lessons for answers in lesson.answers]
    is_prompt = [answers["target"] != UNSAID for answers in true]
    prompts = [
        pair
        for pair, chosen in zip(
            zip(readers.read(torch.cat(vectors)), true, strict=True), is_prompt, strict=True
        )
        if chosen
    ]
    reports = [
        (text, answers)
        for text, answers, is_one in zip(written, true, is_prompt, strict=True)
        if not is_one
    ]
    rows = _report_rows(clip, readers, "texts", reports, tuple(QUESTIONS))
    for question in OF_PROMPTS:
        rows += balanced(question, "texts", *map(list, zip(*prompts, strict=True)), question)
    margin = torch.cat([margins(part) for part in vectors])
    return [*rows, Row("margin", "texts", float(margin.mean()), 0.0, len(margin))]


def held_out_reports(clip: HuggingFaceCLIP, readers: Readers, half: str) -> list[Row]:
    """Score the held-out sentences."""
    data = f"held-out texts, {half}"
    reports = [(row["text"], _answers(row)) for row in _read(f"{half}_sentences.csv")]
    return _report_rows(clip, readers, data, reports, HELD_OUT_FACTS)


def held_out_prompts(clip: HuggingFaceCLIP, readers: Readers, half: str) -> list[Row]:
    """Score the held-out prompts."""
    rows = _read(f"{half}_prompts.csv")
    given = readers.read(clip.encode_text([row["prompt"] for row in rows]))
    true = [{"target": row["target"]} for row in rows]
    return balanced("target", f"held-out prompts, {half}", given, true, "target")


def _report_rows(
    clip: HuggingFaceCLIP,
    readers: Readers,
    data: str,
    reports: Sequence[tuple[str, Answers]],
    questions: Sequence[str],
) -> list[Row]:
    """Score reports with known answers, by the readers and by the keyword parser."""
    true = [answers for _, answers in reports]
    by_reader: dict[str, list[Answers]] = {
        "": [read_report(clip, readers, text) for text, _ in reports],
        ", keyword parser": [parse(text) for text, _ in reports],
    }
    rows = []
    for suffix, given in by_reader.items():
        for question in questions:
            if question in given[0] and question not in (*SITES, *OF_PROMPTS):
                rows += balanced(f"{question}{suffix}", data, given, true, question)
        for question, answer in (("enhancement", "no"), *((q, UNSAID) for q in HELD_OUT_FACTS)):
            chosen = [
                g[question] for g, t in zip(given, true, strict=True) if t[question] == answer
            ]
            word = "denied" if answer == "no" else answer
            right = float(np.mean([found == answer for found in chosen]))
            rows.append(Row(f"{question} {word}{suffix}", data, right, None, len(chosen)))
    places = [
        [g[site] == t[site] for site in SITES] for g, t in zip(by_reader[""], true, strict=True)
    ]
    rows.append(Row(PLACES, data, float(np.all(places, axis=1).mean()), None, len(true)))
    return rows


def parse(report: str) -> dict[str, str]:
    """Return what keywords of a report answer."""
    reading = read(report)
    flags = {None: UNSAID, True: "yes", False: "no"}
    return {
        "enhancement": flags[reading.enhancing],
        "necrosis": flags[reading.necrosis],
        "oedema": reading.oedema or UNSAID,
        "foci": UNSAID if reading.foci is None else "single" if reading.foci == 1 else "multiple",
        "side": reading.side or UNSAID,
    }


def _read(name: str) -> list[dict[str, str]]:
    with (HELD_OUT / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _answers(row: Mapping[str, str]) -> dict[str, str]:
    """Return what a held-out text answers."""
    lobes = row["lobe"].split("+")
    places = {site: "named" if site in lobes else UNSAID for site in SITES}
    return {**{question: row[question] for question in HELD_OUT_FACTS}, **places}


# images


@torch.no_grad()
def embed(clip: HuggingFaceCLIP, samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """Embed the slices of energy: cases (n, e) and patches (n, 3, g, g, e)."""
    cases, patches = [], []
    for sample in samples:
        views = sample.images[:, ENERGY, :, :, list(RGB)].permute(0, 3, 1, 2).float() / 255
        vectors, maps = clip.encode_patches(views)
        cases.append(F.normalize(vectors.mean(dim=0), dim=0))
        patches.append(maps)
    return torch.stack(cases), torch.stack(patches)


def retrieval(clip: HuggingFaceCLIP, samples: list[Sample], cases: Tensor) -> list[Row]:
    """Find the report of each phantom among those of all."""
    rng = np.random.default_rng(0)
    reports = clip.encode_text([write_text(sample.statement, rng) for sample in samples])
    similarity = cases @ reports.T
    rank = (similarity > similarity.diagonal()[:, None]).sum(dim=1)
    n = len(samples)
    groups = np.array(list(Counter(sample.statement for sample in samples).values()))
    rows = []
    for top in (1, 5):
        chance = top / n
        rows.append(
            Row(f"report, top {top}", "phantoms", float((rank < top).float().mean()), chance, n)
        )
        ideal = float(np.minimum(groups, top).sum() / n)
        rows.append(Row(f"report, top {top}, facts alone", "phantoms", ideal, chance, n))
    return rows


def facts(readers: Readers, samples: list[Sample], cases: Tensor, data: str) -> list[Row]:
    """Read the facts of cases in their views (n, e)."""
    given, true = read_views(readers, cases), [answers_of_case(sample) for sample in samples]
    rows = [
        row
        for question in (*QUESTIONS, "lobe")
        for row in balanced(question, data, given, true, question)
    ]
    named = [[lobe in sample.report.lower() for lobe in LOBES] for sample in samples]
    if all(any(lobes) for lobes in named):
        agreed = [
            lobes[LOBES.index(answers["lobe"])] for lobes, answers in zip(named, given, strict=True)
        ]
        chance = float(np.mean(named))
        measure = "lobe is one that the report names"
        rows.append(Row(measure, data, float(np.mean(agreed)), chance, len(samples)))
    return rows


def answers_of_case(sample: Sample) -> dict[str, str]:
    """Return question -> answer of a case; its lobe is one question here."""
    answers = answers_shown(sample.statement)
    lobe = next(name for name in LOBES if answers[name] != UNSAID)
    return {**{name: a for name, a in answers.items() if name not in LOBES}, "lobe": lobe}


def read_views(readers: Readers, cases: Tensor) -> list[dict[str, str]]:
    """Return the most probable answers of cases (n, e); an image leaves nothing unsaid."""
    chances = readers.probabilities(cases)
    best = {
        name: [QUESTIONS[name][1 + i] for i in part[:, 1:].argmax(dim=1).tolist()]
        for name, part in chances.items()
    }
    lobes = torch.stack([chances[name][:, 1] for name in LOBES], dim=1).argmax(dim=1)
    best["lobe"] = [LOBES[i] for i in lobes.tolist()]
    return [{name: part[i] for name, part in best.items()} for i in range(len(cases))]


def maps(clip: HuggingFaceCLIP, samples: list[Sample], patches: Tensor, data: str) -> list[Row]:
    """Compare the patches' similarity to a region's prompts with the region."""
    rows = []
    for index, region in enumerate(REGIONS):
        prompt = F.normalize(clip.encode_text(region_prompts(region)).mean(dim=0), dim=0)
        peaks, chances, areas = [], [], []
        for sample, grid in zip(samples, patches, strict=True):
            shares = sample.shares[:, ENERGY].float() / 255
            shares = F.adaptive_avg_pool2d(shares, list(grid.shape[1:3]))
            covered, brain = shares[:, index] >= COVERED, shares[:, 3] >= COVERED
            if not covered.any():
                continue
            similarity = grid @ prompt
            peaks.append(bool(covered.flatten()[similarity.argmax()]))
            chances.append(float(covered[brain].float().mean()))
            areas.append(_area(similarity[brain], covered[brain]))
        n = len(peaks)
        peak, chance = float(np.mean(peaks)), float(np.mean(chances))
        rows.append(Row(f"{region} map peaks in it", data, peak, chance, n))
        rows.append(Row(f"{region} map, area under curve", data, float(np.mean(areas)), 0.5, n))
    return rows


def _area(score: Tensor, truth: Tensor) -> float:
    """Return the area under the ROC curve of scores (m,) for a truth (m,) bool."""
    inside, outside = score[truth], rearrange(score[~truth], "m -> 1 m")
    above = rearrange(inside, "k -> k 1") - outside
    return float((above > 0).float().mean() + 0.5 * (above == 0).float().mean())


def images(
    clip: HuggingFaceCLIP, readers: Readers, groups: Mapping[str, list[list[Sample]]]
) -> list[Row]:
    """Score groups of cases, each with its twin if there is one."""
    rows: list[Row] = []
    for data, group in groups.items():
        if not group:
            continue
        samples = [case[0] for case in group]
        cases, patches = embed(clip, samples)
        if data == "phantoms":
            rows += retrieval(clip, samples, cases)
        rows += facts(readers, samples, cases, data)
        both = [sample for case in group for sample in case if len(case) > 1]
        if both:
            given = read_views(readers, embed(clip, both)[0])
            true = [answers_of_case(sample) for sample in both]
            rows += balanced("enhancement, twins", data, given, true, "enhancement")
        rows += maps(clip, samples, patches, data)
    return rows


def main() -> None:
    """Measure, print and write a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clip", default="tiny", help="name or folder")
    parser.add_argument("--readers", type=Path, help="file (default: readers are fitted anew)")
    parser.add_argument(
        "--held-out",
        choices=("development", "test"),
        default="development",
        help="half of the held-out texts; test is for the last run",
    )
    parser.add_argument("--data", type=Path, help="folder of real cases (default: none)")
    parser.add_argument("--reports", type=Path, help="their reports, a JSON or CSV file")
    parser.add_argument("--release", default="brats2018", help="BraTS release of --data")
    parser.add_argument("--trained", default="Brats18_TCIA*", help="pattern of training cases")
    parser.add_argument("--fold", type=int, help="part of these that training left out, from 0")
    parser.add_argument("--num-folds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("tiny_clip"), help="keeps slices")
    parser.add_argument("--phantoms", type=int, default=100)
    parser.add_argument("--spacing", type=float, default=2.0, help="of phantoms, in mm")
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results" / "tiny_clip.csv"
    )
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clip = load_encoder(arguments.clip)
    readers = Readers.load(arguments.readers) if arguments.readers else fit_readers(clip)
    groups = {
        "phantoms": collect_phantoms(
            arguments.output / f"unseen simulated {arguments.spacing:g} mm",
            range(FIRST_SEED, FIRST_SEED + arguments.phantoms),
            arguments.spacing,
        )
    }
    if arguments.data is not None:
        if arguments.reports is None:
            parser.error("--data needs --reports")
        release, folder = get_release(arguments.release), arguments.output / "real"
        every, trained = (
            collect_cases(folder, arguments.data, release, arguments.reports, pattern)
            for pattern in ("*", arguments.trained)
        )
        for name in left_out(list(trained), arguments.fold, arguments.num_folds):
            del trained[name]
        groups["real, in training"] = list(trained.values())
        groups["real, unseen"] = [case for name, case in every.items() if name not in trained]
    rows = [*texts(clip, readers, arguments.held_out), *images(clip, readers, groups)]
    with (
        atomic_write(arguments.results) as tmp,
        tmp.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        for row in rows:
            value, chance = f"{row.value:.3f}", "" if row.chance is None else f"{row.chance:.3f}"
            writer.writerow([row.measure, row.data, value, chance, row.n])
            print(f"{row.measure:36s} {row.data:27s} {value} chance {chance:5s} n {row.n}")


if __name__ == "__main__":
    main()
