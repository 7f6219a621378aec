"""Compute every number of results in README.md, in the card of the weights and in other pages.

    python examples/results_numbers.py --write

All come from files in ``examples/results/`` and beside the weights. Tables stand between comments
(``<!-- results: NAME -->``), and ``--write`` puts them there. Sentences are written by hand; their
numbers are computed here (``claims``), and each such sentence must be in the text. Without
``--write``, nothing is written: what differs is listed, and a number that no file of results shows.
``tests/test_results_numbers.py`` does the same.
"""

import argparse
import csv
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clipseg3d.atomic_write import atomic_write
from clipseg3d.metrics.comparison import (
    PairedDifference,
    difference_over_seeds,
    holm,
    paired_difference,
)
from clipseg3d.vocabulary import REGIONS

REPO = Path(__file__).resolve().parents[1]
RESULTS = REPO / "examples" / "results"
WEIGHTS = REPO / "clipseg3d" / "weights" / "tiny"
FILES = {
    "README": REPO / "README.md",
    "card": WEIGHTS / "README.md",
    "results": RESULTS / "README.md",
    "configs": REPO / "clipseg3d" / "configs" / "README.md",
    "examples": REPO / "examples" / "README.md",
    **{file.stem: file for file in sorted((REPO / "examples" / "guides").glob("*.md"))},
}
"""Name of a page -> its file; guides have theirs."""
START, END = "<!-- results: {} -->", "<!-- end of results -->"

SIX, FOLDS = "tiny_six_cases.csv", "tiny_folds.csv"
ABLATION, SIMULATED = RESULTS / "ablation.csv", RESULTS / "ablation_simulated.csv"
MIN_MAX = RESULTS / "ablation_min_max.csv"
MIN_MAX_SIMULATED = RESULTS / "ablation_min_max_simulated.csv"
READING, READING_SIMULATED = (
    RESULTS / "ablation_reading.csv",
    RESULTS / "ablation_reading_simulated.csv",
)
NETWORKS = "ablation_networks.csv"
"""Sizes and steps of the rows; it lies beside the scores of an ablation."""
SCORES = {"dice": (3, 2), "hd95_mm": (1, 1), "lesion_dice": (3, 2)}
"""Score -> its digits, and those of its interval."""
GIVEN = {
    "mirrored": "all sequences, 8 mirrorings",
    "all": "all sequences",
    "no rules": "all sequences, rules off",
    "no report": "no report",
    "report of another": "report of another case",
    "true report": "report written from the mask",
    "contradicting report": "report that says the opposite of enhancement",
    "without t1ce, no report": "without T1ce, no report",
    "without t1ce, true report": "without T1ce, report written from the mask",
    "without t1ce, contradicting report": "without T1ce, opposite of enhancement",
    "without t1": "without T1",
    "without t2": "without T2",
    "t1ce and flair": "T1ce and FLAIR",
    "flair": "FLAIR",
    "t1ce": "T1ce",
    "no contrast agent, no report": "no contrast agent in the tumour, no report",
    "no contrast agent, true report": "no contrast agent in the tumour, report of the new mask",
}
"""Variant -> what the network gets."""
COHORTS = {SIX: "6 others", FOLDS: "12, left out in turn"}
"""File of scores -> what its cases are called."""
CHECKERS = ("medpy", "surface-distance", "panoptica", "brats-evaluation")

PAPER = {
    "unet3d": (0.8887, 0.8099, 0.7277),
    "recommended": (0.8994, 0.8702, 0.8005),
    "no_pixel": (0.8812, 0.8534, 0.7960),
    "no_semantic": (0.8959, 0.8525, 0.7815),
    "no_guidance": (0.9064, 0.8598, 0.7935),
    "no_attention": (0.9090, 0.8562, 0.7821),
}
"""Row -> the paper's Dice of WT, TC and ET (BraTS 2020, 369 cases)."""
BASE = "recommended"
ROWS = (
    *("reading", "reading, no_text", "reading, shuffled_text"),
    BASE,
    *("no_attention", "no_guidance", "no_text", "shuffled_text", "no_semantic", "min_max"),
    *("no_pixel", "unet3d", "plain_backbone", "plain_bridge", "refinement", "full_resolution"),
    *("recommended, other text", "shuffled_text, other text"),
    *("differences", "sequential", "film", "gain", "mean_token", "dense"),
)
"""Order of the rows of an ablation."""

SHORT = ("no_attention", "no_guidance", "no_text", "shuffled_text", "no_semantic", "no_pixel")
SHORT += ("unet3d",)
"""Rows of the short table of README."""
READ = {
    "own": "true report",
    "dealt": "that of another",
    "contradicting": "the opposite",
    "none": "none",
    "parser": "keywords",
}
"""Control of ``obedience.py`` -> what was read, or who read."""
TEXT = {
    "empty": "contrast agent taken away: share without ET (best 1)",
    "withheld": "T1ce withheld, told of a rim or of no enhancement (empty scores 1): Dice of ET",
    "side follows": "two equal lesions, one named: share right (chance 0.5)",
    "named by prompt": "the same by a prompt: Dice of the named",
    "loss": "Dice lost to a wrong report (best 0)",
    "prompts known": "prompts: Dice less that of the region",
    "prompts unseen": "prompts in words of others: the same",
    "prompts absent": "prompts for absent parts: share empty (best 1)",
    "prompts present": "prompts for present parts: share found (best 1)",
}
"""Measure of ``obedience.py`` -> how it is called here."""

NOT_RESULTS = {
    *("2507.09966", "2404.09556", "2205.10287", "2.0", "3.0"),  # papers, licences
    *("373.13", "0.5", "0.1"),  # rules of challenges
    *("3.10", "3.13", "2.10"),  # versions
}
"""Numbers with a decimal point that are no results."""


class Row(NamedTuple):
    """A row of an ablation.

    Attributes:
        dice: (seed, case) mean Dice over regions.
        regions: (region,) mean Dice over seeds and cases.
        hd95: mean HD95 over seeds, cases and regions.
        lesion_dice: mean lesion-wise Dice over the same; NaN where it was not kept.
        cases: names of the cases.
    """

    dice: np.ndarray
    regions: np.ndarray
    hd95: float
    lesion_dice: float
    cases: tuple[str, ...]


class Gain(NamedTuple):
    """What the first row has over another, in points of mean Dice; p also corrected (Holm)."""

    test: PairedDifference
    corrected: float


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@cache
def tiny_scores(name: str, variant: str, score: str) -> np.ndarray:
    """Return (region, case) scores of the weights in the package."""
    rows = sorted(read(RESULTS / name), key=lambda row: row["case"])
    rows = [row for row in rows if row["variant"] == variant]
    return np.array([[float(r[score]) for r in rows if r["region"] == one] for one in REGIONS])


@cache
def ablation(path: Path) -> dict[str, Row]:
    """Return the rows of an ablation, by ``ROWS``."""
    lines = read(path)
    cases = tuple(sorted({line["case"] for line in lines}))
    rows = {}
    for row in sorted({line["row"] for line in lines}, key=ROWS.index):
        own = [line for line in lines if line["row"] == row]
        seeds = sorted({line["seed"] for line in own})
        scores = {
            (line["seed"], line["case"], line["region"]): (
                *(line["dice"], line["hd95_mm"]),
                line.get("lesion_dice", "nan"),
            )
            for line in own
        }
        values = np.array(
            [[[scores[s, c, r] for r in REGIONS] for c in cases] for s in seeds], dtype=float
        )  # (seed, case, region, score)
        dice = values[..., 0]
        hd95, lesion_dice = values[..., 1].mean(), values[..., 2].mean()
        rows[row] = Row(dice.mean(-1), dice.mean((0, 1)), hd95, lesion_dice, cases)
    return rows


@cache
def gains(path: Path, *, base: str = BASE, unseen: bool = False) -> dict[str, Gain]:
    """Compare a row of an ablation with every other, over the seeds that both have.

    Args:
        path: file of the ablation.
        base: the row.
        unseen: use only the cases that the CLIP of the package has not seen.
    """
    rows = ablation(path)
    chosen = [not unseen or "TCIA" not in case for case in rows[base].cases]
    tests = {
        row: difference_over_seeds(
            100 * rows[base].dice[: len(values.dice), chosen], 100 * values.dice[:, chosen]
        )
        for row, values in rows.items()
        if row != base
    }
    corrected = holm(np.array([test.p_value for test in tests.values()]))
    return {
        row: Gain(test, float(p)) for (row, test), p in zip(tests.items(), corrected, strict=True)
    }


def interval(values: np.ndarray, digits: int, ends: int) -> str:
    """Format the mean over cases with its bootstrap interval."""
    test = paired_difference(values, np.zeros_like(values))
    return f"{test.mean:.{digits}f} [{test.low:.{ends}f}, {test.high:.{ends}f}]"


def p_text(value: float) -> str:
    """Format a p value."""
    return "" if np.isnan(value) else "< 0.001" if value < 0.0005 else f"{value:.3f}"


def gain_text(test: PairedDifference) -> str:
    """Format a gain in points, with its interval if there is one."""
    ends = "" if np.isnan(test.low) else f" [{test.low:+.1f}, {test.high:+.1f}]"
    return f"{test.mean:+.1f}{ends}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    lines = [f"| {' | '.join(line)} |" for line in (header, *rows)]
    lines.insert(1, "|" + "---|" * len(header))
    return "\n".join(re.sub(r"\|(?: +\|)+", lambda m: m[0].replace("  ", " "), x) for x in lines)


@cache
def tiny_rows(name: str, variant: str) -> dict[str, list[str]]:
    """Return the scores of each region and their mean, with intervals."""
    rows = {}
    for region in (*REGIONS, "mean"):
        rows[region] = [region]
        for score, (digits, ends) in SCORES.items():
            values = tiny_scores(name, variant, score)
            values = values.mean(axis=0) if region == "mean" else values[REGIONS.index(region)]
            rows[region].append(interval(values, digits, ends))
    return rows


def tiny_table(full: Sequence[str]) -> str:
    """Return the scores of the weights in the package.

    Args:
        full: variants that are listed by region; of the others, only the mean over regions is.
    """
    lines = [
        [cases, given, *row]
        for name, cases in COHORTS.items()
        for variant, given in GIVEN.items()
        if tiny_scores(name, variant, "dice").size
        for region, row in tiny_rows(name, variant).items()
        if region == "mean" or variant in full
    ]
    header = ["cases", "given", "region", "Dice", "HD95, mm", "lesion-wise Dice"]
    return markdown(header, lines)


def case_table() -> str:
    """Return the scores of each of the six cases, mirrored."""
    rows = [row for row in read(RESULTS / SIX) if row["variant"] == "mirrored"]
    return markdown(
        ["case", "region", "Dice", "HD95, mm", "lesion-wise Dice"],
        [
            [row["case"], row["region"]]
            + [f"{float(row[score]):.{digits}f}" for score, (digits, _) in SCORES.items()]
            for row in rows
        ],
    )


def ablation_table(path: Path, *, base: str = BASE) -> str:
    """Return the rows of an ablation with sizes, gains, p values and the paper's gains."""
    tests = gains(path, base=base)
    networks = {network["row"]: network for network in read(path.parent / NETWORKS)}
    lines = []
    by_lesion = not any(np.isnan(values.lesion_dice) for values in ablation(path).values())
    for row, values in ablation(path).items():
        means = values.dice.mean(axis=1)
        spread = f" ± {means.std(ddof=1):.3f}" if len(means) > 1 else ""
        cells = [f"{dice:.3f}" for dice in values.regions]
        steps = sum(int(value) for name, value in networks[row].items() if "steps" in name)
        size = [f"{int(networks[row]['parameters']):,}", str(steps)]
        line = [title(row), *size, str(len(means)), *cells, f"{means.mean():.3f}{spread}"]
        line += [f"{values.hd95:.1f}", *([f"{values.lesion_dice:.3f}"] if by_lesion else [])]
        if row in tests:
            test, corrected = tests[row]
            line += [gain_text(test), p_text(test.p_value), p_text(corrected)]
        else:
            line += ["", "", ""]
        if base == BASE:
            line += [paper_gain(row) if row in PAPER and row != BASE else ""]
        lines.append(line)
    header = ["row", "parameters", "steps", "seeds", *REGIONS, "mean Dice", "HD95, mm"]
    header += [*(["lesion-wise Dice"] if by_lesion else []), "gain", "p", "p, Holm"]
    return markdown([*header, *(["paper's gain"] if base == BASE else [])], lines)


def paper_gain(row: str) -> str:
    """Return what the paper's method has over a row, in points of mean Dice."""
    return f"{100 * (np.mean(PAPER[BASE]) - np.mean(PAPER[row])):+.1f}"


def elsewhere_table(real: Path, simulated: Path, *, base: str = BASE) -> str:
    """Return gains on the real cases that CLIP has not seen, and on simulated patients."""
    unseen, others = gains(real, base=base, unseen=True), gains(simulated, base=base)
    lines = []
    for row, values in ablation(simulated).items():
        cells = [f"{values.dice.mean():.3f}"]
        if row in others:
            tests = unseen[row], others[row]
            a, b = ([gain_text(test), p_text(corrected)] for test, corrected in tests)
            cells = [*a, *cells, *b]
        else:
            cells = ["", "", *cells, "", ""]
        lines.append([title(row), *cells])
    header = ["row", "gain, 6 cases", "p, Holm", "mean Dice, simulated", "gain, simulated"]
    return markdown([*header, "p, Holm"], lines)


def title(row: str) -> str:
    """Return the name of a row in a table."""
    name, _, other = row.partition(", ")
    return f"`{name}`" + (
        ", read by MiniLM" if other == "other text" else f", `{other}`" if other else ""
    )


def tiny_means() -> str:
    """Return the scores of the weights in the package in short."""
    lines = []
    asked = [(SIX, variant) for variant in ("all", "mirrored", "t1ce and flair")]
    for name, variant in (*asked, (FOLDS, "all")):
        rows = tiny_rows(name, variant)
        dice = [rows[region][1].partition(" ")[0] for region in REGIONS]
        lines.append([COHORTS[name], GIVEN[variant], *dice, *rows["mean"][1:]])
    header = ["cases", "given", *REGIONS, "mean Dice", "HD95, mm", "lesion-wise Dice"]
    return markdown(header, lines)


def text_table(kinds: Mapping[str, str]) -> str:
    """Return whether reports and prompts are obeyed, for each measure that has been taken.

    Args:
        kinds: kind of patients in the file -> its name.
    """
    values: dict[tuple[str, str, str, str], list[float]] = {}
    for row in read(RESULTS / "obedience.csv"):
        key = row["weights"], row["measure"], row["data"], row["control"]
        if key[1::2] != ("loss", "own"):  # which is the mean of the others
            values.setdefault(key, []).append(float(row["value"]))
    lines = []
    names = list(dict.fromkeys(key[0] for key in values))
    for weights in names:
        for measure, asked in TEXT.items():
            for kind, patients in kinds.items():
                cells = [values.get((weights, measure, kind, control), []) for control in READ]
                if any(cells):
                    scores = [f"{round(np.mean(c), 2) + 0:.2f}" if c else "" for c in cells]
                    size = f"{max(map(len, cells))} {patients}"
                    lines.append([f"`{weights}`", asked, size, *scores][len(names) == 1 :])
    return markdown(["weights", "asked", "patients", *READ.values()][len(names) == 1 :], lines)


def trained_text_table() -> str:
    """Return what small networks that were trained for text do with it: means over seeds."""
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in read(RESULTS / "obedience_phantoms.csv"):
        controls = values.setdefault((row["asked"], row["target"]), {})
        controls.setdefault(row["control"], []).append(float(row["mean"]))
    lines = []
    for asked, controls in values.items():
        cells = [controls.get(control, []) for control in READ]
        means = [f"{round(np.mean(c), 2) + 0:.2f}" if c else "" for c in cells]
        own = controls.get("own") or controls["none"]
        spread = f"{round(min(own), 2) + 0:.2f} to {round(max(own), 2) + 0:.2f}"
        lines.append([*asked, means[0], spread, *means[1:]])
    own, *others = READ.values()
    return markdown(["asked", "target", own, "seeds", *others], lines)


def routes_table() -> str:
    """Return the mean Dice lost without each route of text, and without the report on it."""
    rows = read(RESULTS / "text_routes.csv")
    routes = list(dict.fromkeys(row["route"] for row in rows))
    lost: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    for row in rows:
        if row["measure"] == "mean":
            cells = lost.setdefault((row["weights"], row["image"]), {})
            cells[row["route"], row["without"]] = f"{round(float(row['lost']), 2) + 0:.2f}"
    lines = [
        [f"`{weights}`", image]
        + [
            f"{cells[route, 'route']}, {cells[route, 'report']}"
            if (route, "route") in cells
            else ""
            for route in routes
        ]
        for (weights, image), cells in lost.items()
    ]
    return markdown(["weights", "given", *routes], lines)


def speed_table() -> str:
    """Return what was measured by ``benchmarks/record.py``, against what in the same run."""
    found = json.loads((RESULTS / "speed.json").read_text(encoding="utf-8"))
    lines = []
    if entry := found.get("commands"):
        kept, other = entry["medians"], "freed memory given back"
        for kind, what in (("batch", f"of a batch of {entry['cases']}"), ("one", "alone")):
            ours, theirs = (kept[f"segment, {kind}, {way}"] for way in ("kept", "given back"))
            ratio = entry["ratio" if kind == "batch" else "ratio_one"]
            lines.append(
                [f"a patient {what}", _seconds(ours), other, _seconds(theirs), f"{ratio:.2f}"]
            )
        lines += [
            [f"`{name}` of a tiny case", _seconds(kept[name]), "", "", ""]
            for name in ("evaluate", "check-data")
        ]
    if entry := found.get("peers"):
        ours = entry["medians"]["clipseg3d segment"]
        for peer, ratios in entry["ratios"].items():
            for key, unit in (("wall_s", "s"), ("peak_mb", "MB")):
                what = "a patient, file to file" if unit == "s" else "its memory"
                theirs = entry["medians"][peer][key]
                cells = [
                    f"{value:.1f} s" if unit == "s" else f"{value:.0f} MB"
                    for value in (ours[key], theirs)
                ]
                lines.append([what, cells[0], peer, cells[1], f"{1 / ratios[key]:.2f}"])
    keys = {"backbone": "ratio_backbone", "swinunetr": "ratio_recommended_to_swinunetr"}
    for name, key in keys.items():
        if entry := found.get(name):
            mine, peer = sorted(entry["networks"], key=lambda n: not n.startswith("recommended"))
            for size, ratio in entry[key].items():
                one, two = (_seconds(entry["seconds"][network][size]) for network in (mine, peer))
                lines.append([f"a step of `{mine}`, {size}^3", one, peer, two, f"{ratio:.2f}"])
    if entry := found.get("semantics"):
        for task, ratios in entry["ratios"].items():
            lines += [
                [f"{task}, {name}", "", "without semantics", "", f"{ratio:.3f}"]
                for name, ratio in ratios.items()
                if ratio != 1
            ]
    if entry := found.get("cbam"):
        for what, ratio in entry["ratios"].items():
            lines.append([f"CBAM, {what}", "", "plain", "", f"{ratio:.2f}"])
    if entry := found.get("loading"):
        for what, peer in (("ratio", "files"), ("ratio_persistent", "PersistentDataset")):
            crop = f"a crop of {entry['size']}^3, {entry['workers']} workers"
            times = (f"{1e3 / entry[key]:.0f} ms" for key in ("ours", "peer"))
            ours, theirs = times if what == "ratio" else ("", "")
            lines.append([crop, ours, f"MONAI, {peer}", theirs, f"{1 / entry[what]:.3f}"])
    return markdown(["what", "time", "beside", "its time", "ratio"], lines)


def growth_table() -> str:
    """Return how cost grows with work, as ``benchmarks/growth.py`` has measured it."""
    lines = []
    rows = read(RESULTS / "growth.csv")
    for part in dict.fromkeys(row["part"] for row in rows if row["part"] != "memory"):
        own = [row for row in rows if row["part"] == part]
        work = [f"{float(row['work']) / 1e6:.1f} M" for row in own]
        if own[0]["unit"] != "voxels":
            work = [row["work"] for row in own]
        lines.append(
            [
                part.removeprefix("volumes "),
                f"{', '.join(work)} {own[0]['unit']}",
                ", ".join(f"{float(row['seconds']):.3g}" for row in own),
                ", ".join(f"{float(row['exponent']):.2f}" for row in own if row["exponent"]),
            ]
        )
    return markdown(["what", "work", "CPU seconds", "exponents"], lines)


def _seconds(value: float) -> str:
    """Return a time with two or three digits."""
    return f"{value:.1f} s" if value >= 10 else f"{value:.2f} s"


def scanner_table() -> str:
    """Return Dice on grids of scanners, and what is lost against the original one."""
    rows = read(RESULTS / "scanner_grids.csv")

    def dice(grid: str, region: str) -> np.ndarray:
        own = sorted(
            (r["case"], float(r["dice"]))
            for r in rows
            if r["grid"] == grid and r["region"] == region
        )
        return np.array([value for _, value in own])

    lines = []
    for grid in dict.fromkeys(row["grid"] for row in rows):
        means = np.mean([dice(grid, region) for region in REGIONS], axis=0)
        lost = means - np.mean([dice("original", region) for region in REGIONS], axis=0)
        parts = [f"{dice(grid, region).mean():.3f}" for region in REGIONS]
        lines.append(
            [grid, *parts, f"{means.mean():.3f}", f"{lost.mean():+.3f}", f"{lost.min():+.3f}"]
        )
    lines[0][-2:] = ["", ""]
    return markdown(["voxels", *REGIONS, "mean", "change", "at worst"], lines)


def heads_table() -> str:
    """Return what was measured of preparing simulated heads."""
    rows = read(RESULTS / "prepare_heads.csv")
    lines = []
    for given in dict.fromkeys(row["given"] for row in rows):
        own = [row for row in rows if row["given"] == given]
        done = [row for row in own if not row["refused"]]

        def spread(column: str, digits: int, done: Sequence[dict[str, str]] = done) -> str:
            values = [float(row[column]) for row in done if row[column]]
            if not values:
                return ""
            middle, low, high = (f(values) for f in (np.median, min, max))
            return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

        lines.append(
            [
                given,
                f"{len(own)}, {len(own) - len(done)} refused",
                spread("brain_dice", 3),
                spread("error_median_mm", 2),
                spread("error_largest_mm", 2),
                spread("clean_tumour_dice", 3),
                spread("placed_tumour_dice", 3),
                spread("tumour_dice", 3),
                spread("cpu_seconds", 0),
            ]
        )
    header = ["given", "heads", "Dice of the brain", "error, median, mm", "error, largest, mm"]
    tumour = ["Dice of the tumour, clean brain", "scans in their true places", "prepared"]
    return markdown([*header, *tumour, "CPU seconds"], lines)


def short_ablation_table() -> str:
    """Return gains over the rows that the paper has too, and over those about text."""
    rows, tests = ablation(ABLATION), gains(ABLATION)
    lines = [[title(BASE), f"{rows[BASE].dice.mean():.3f}", "", "", ""]]
    for row in SHORT:
        test, corrected = tests[row]
        theirs = paper_gain(row) if row in PAPER else ""
        dice = f"{rows[row].dice.mean():.3f}"
        lines.append([title(row), dice, gain_text(test), p_text(corrected), theirs])
    return markdown(["row", "mean Dice", "gain", "p, Holm", "paper's gain"], lines)


def recipe_table() -> str:
    """Return the predicted costs of the recipes."""
    lines = [
        [
            f"`{row['recipe']}`",
            f"{row['crop']}, {row['crops per GPU']}",
            row["GPUs"],
            row["epochs"],
            row["learning rate"],
            row["GB per GPU"],
            row["hours on A100s"],
        ]
        for row in read(RESULTS / "recipe_costs.csv")
    ]
    header = ["recipe", "crop, and how many per GPU", "GPUs", "epochs", "learning rate"]
    return markdown([*header, "GB per GPU", "hours on A100s"], lines)


def short_recipe_table() -> str:
    """Return the predicted costs of the recipes for BraTS 2020."""
    lines = [
        [f"`{row['recipe']}`", row["GPUs"], row["GB per GPU"], row["hours on A100s"]]
        for row in sorted(read(RESULTS / "recipe_costs.csv"), key=lambda r: float(r["GB per GPU"]))
        if "brats2020" in row["recipe"]
    ]
    return markdown(["recipe", "GPUs", "GB per GPU", "hours on A100s"], lines)


@cache
def claims() -> dict[str, list[str]]:
    """Return, for each file, the sentences that hold numbers, without line breaks."""
    results = [
        *opening_claims(),
        *check_claims(),
        *training_claims(),
        *tiny_claims(),
        *clip_claims(),
        *ablation_claims(),
        *report_claims(),
    ]
    return dict.fromkeys(FILES, ()) | {
        "README": readme_claims(),
        "card": ["Brackets are 95 % bootstrap intervals", *card_claims()],
        "results": ["Brackets are 95 % intervals", *results],
        "examples": phantom_claims(),
    }


def readme_claims() -> list[str]:
    """Return what README says of the results."""
    shown = any(gain.corrected < 0.05 for gain in gains(ABLATION).values())
    verdict = "Parts differ." if shown else "On real cases, no part is shown to help or harm."
    return ["Brackets are 95 % intervals", "with a 95 % interval", verdict]


def opening_claims() -> list[str]:
    """Return what is said of the weights in short."""
    folders = WEIGHTS, WEIGHTS / "clip"
    sizes = [sum(file.stat().st_size for file in d.glob("*.*")) / 1e6 for d in folders]
    return [
        f"({sizes[0]:.0f} MB, and {sizes[1]:.1f} MB of CLIP)",
        f"mean Dice of {mean(SIX, 'all'):.3f} on six other real cases "
        f"({mean(SIX, 'mirrored'):.3f} with `--tta`), lesion by lesion "
        f"{mean(SIX, 'all', 'lesion_dice'):.3f}. A shorter training reaches "
        f"{mean(FOLDS, 'all'):.3f} and {mean(FOLDS, 'all', 'lesion_dice'):.3f}",
        f'({sizes[1]:.1f} MB, `load_encoder("tiny")`)',
    ]


def check_claims() -> list[str]:
    """Return what is said of scores of other programs."""
    rows = read(RESULTS / "cross_check.csv")
    largest = max(float(row["largest difference"]) for row in rows)
    pairs = {peer: max(int(r["pairs"]) for r in rows if peer in r["peer"]) for peer in CHECKERS}
    agree = largest <= 1e-13 and not any(int(row["differ"]) for row in rows)
    return [
        f"on up to {max(pairs[peer] for peer in CHECKERS[:3])} pairs of masks to 1e-13 mm"
        if agree
        else f"differ by up to {largest}",
        f"in every number of {pairs[CHECKERS[3]] // len(REGIONS)} cases",
    ]


def training_claims() -> list[str]:
    """Return what is said of the training of the weights."""
    fits = list(json.loads((WEIGHTS / "training.json").read_text(encoding="utf-8")).values())
    hours = sum(fit["seconds"] for fit in fits) / 3600
    steps = [fit["step"] for fit in fits]
    return [
        f"on {fits[0]['phantoms']} simulated patients and the {len(fits[0]['cases'])} BraTS 2018",
        f"in eight fits of {hours:.1f} hours on two CPU cores: {steps[0]} and {steps[1]} steps on",
        f"{steps[2]} steps on whole brains with semantics, {steps[3]} with z-scores",
        f"{steps[4]} in which every third sample",
        f"and {steps[5]} and {steps[6]} in which every second has",
        f"In the last, of {steps[7]} steps ({fits[7]['phantoms']} simulated patients, "
        f"{fits[7]['seconds'] / 60:.0f} minutes on one core)",
    ]


def tiny_claims() -> list[str]:
    """Return what is said of the scores of the weights."""
    enhancing = tiny_scores(FOLDS, "all", "dice")[REGIONS.index("ET")]
    emptied, left_out = (
        tiny_scores(name, "no contrast agent, no report", "dice")[REGIONS.index("ET")]
        for name in COHORTS
    )
    told = tiny_scores(FOLDS, "no contrast agent, true report", "dice")[REGIONS.index("ET")]
    true, none, opposite = (
        f"{tiny_scores(SIX, f'without t1ce, {text}', 'dice')[REGIONS.index('ET')].mean():.2f}"
        for text in ("true report", "no report", "contradicting report")
    )
    return [
        f"lesion-wise Dice is {mean(SIX, 'no rules', 'lesion_dice'):.3f}, with rules "
        f"{mean(SIX, 'all', 'lesion_dice'):.3f}.",
        f"The report of a case brings {report_gain('all', 'no report')} points of mean Dice "
        f"against none, and {report_gain('all', 'report of another')} against that of another case",
        f"brings {report_gain('true report', 'no report')}, and one that says the opposite of "
        f"enhancement {report_gain('contradicting report', 'no report')}.",
        f"ET has a Dice of {true} with the true report, {none} without one, and {opposite} with "
        "the opposite.",
        f"With T1ce alone WT has a Dice of {tiny_scores(SIX, 't1ce', 'dice')[0].mean():.2f}.",
        "Enhancing tumour is where it fails: Dice is below 0.25 in "
        f"{(enhancing < 0.25).sum()} of the {len(enhancing)}.",
        f"ET is left empty in {(emptied == 1).sum()} of the {len(emptied)} others, and in "
        f"{(left_out == 1).sum()} of the {len(left_out)} left out. Told so, in "
        f"{(told == 1).sum()} of the {len(told)}.",
        f"Of the 12, a true report brings {report_gain('true report', 'no report', FOLDS)}, the "
        f"own one {report_gain('all', 'no report', FOLDS)}, and one that says the opposite "
        f"{report_gain('contradicting report', 'no report', FOLDS)}.",
    ]


def clip_claims() -> list[str]:
    """Return what is said of the CLIP in the package."""
    rows = {(row["measure"], row["data"]): row for row in read(RESULTS / "tiny_clip.csv")}

    def share(measure: str, column: str = "value") -> str:
        return f"{100 * float(rows[measure, 'phantoms'][column]):.0f}"

    def count(measure: str, column: str = "value") -> str:
        row = rows[measure, "real, unseen"]
        return f"{float(row[column]) * int(row['n']):.0f}"

    def value(measure: str, data: str) -> str:
        return f"{float(rows[measure, data]['value']):.2f}"

    texts = "held-out texts, test"
    read_facts = [
        f"{fact} {value(fact, texts)} ({value(f'{fact}, keyword parser', texts)})"
        for fact in ("enhancement", "necrosis", "oedema", "foci", "side")
    ]
    peaks, chances = (
        [share(f"{region} map peaks in it", column) for region in REGIONS]
        for column in ("value", "chance")
    )
    real = [count(f"{region} map peaks in it") for region in REGIONS]
    twins = "enhancement, twins"
    return [
        ", ".join(read_facts),
        f"first in {share('report, top 1')} % and among the first five in "
        f"{share('report, top 5')} % (chance {share('report, top 1', 'chance')} and "
        f"{share('report, top 5', 'chance')} %; a reader who knew every stated fact, but not its "
        f"wording, {share('report, top 1, facts alone')} and "
        f"{share('report, top 5, facts alone')} %)",
        f"the side in {share('side')} % (chance {share('side', 'chance')} %), the lobe in "
        f"{share('lobe')} % ({share('lobe', 'chance')} %), necrosis in {share('necrosis')} % "
        f"({share('necrosis', 'chance')} %), and whether a tumour enhances in "
        f"{share('enhancement')} % ({share('enhancement', 'chance')} %; balanced accuracies)",
        f"in the region in {peaks[0]} % (WT), {peaks[1]} % (TC) and {peaks[2]} % (ET), where "
        f"chance is {chances[0]}, {chances[1]} and {chances[2]} %",
        f"in their region in {real[0]} (WT), {real[1]} (TC) and {real[2]} (ET)",
        f"balanced accuracy of {value(twins, 'real, unseen')} "
        f"(chance {rows[twins, 'real, unseen']['chance'][:4]}; one seed)",
    ]


def ablation_claims() -> list[str]:
    """Return what is said of the ablation."""
    simulated, by_range = gains(SIMULATED), gains(MIN_MAX_SIMULATED)
    ahead = simulated["full_resolution"].test
    views = by_range["no_semantic"]
    rows = ablation(SIMULATED)
    head = difference_over_seeds(100 * rows["full_resolution"].dice, 100 * rows["refinement"].dice)
    paper = {row: 100 * (np.mean(PAPER[BASE]) - np.mean(dice)) for row, dice in PAPER.items()}
    above = [
        f"`{row}`"
        for row, (test, _) in gains(ABLATION).items()
        if row in paper and paper[row] > test.high
    ]
    none = all(
        not gain.corrected < 0.05 for path in (ABLATION, MIN_MAX) for gain in gains(path).values()
    )
    kept = [row for row, gain in simulated.items() if gain.corrected < 0.05]
    plain = [seed_gains(path, "unet3d") for path in (MIN_MAX, ABLATION)]
    reading, real = (gains(path, base="reading") for path in (READING_SIMULATED, READING))
    plain_gain = reading["no_semantic"]
    held = [
        row
        for tests in (reading, real, gains(READING, base="reading", unseen=True))
        for row, gain in tests.items()
        if gain.corrected < 0.05
    ]
    (first, second, third), *other = {
        tuple(steps for name, steps in row.items() if "steps" in name)
        for row in read(RESULTS / NETWORKS)
    }
    return [
        "Steps differ:"
        if other
        else f"at equal budget: {first} steps on simulated patients without semantics, {second} "
        f"with them, and {third} on real cases",
        "No row of either table is shown to differ from its first one." if none else "Rows differ:",
        f"(gains of its seeds {' and '.join(plain)})",
        f"without pixel fusion are ({seed_gains(ABLATION, 'no_pixel')})",
        f"is ahead with each seed ({seed_gains(ABLATION, 'full_resolution')})",
        f"The paper's gain is above the interval of {', '.join(above[:-1])} and {above[-1]} in",
        f"`full_resolution` is ahead by {-ahead.mean:.1f} points [{-ahead.high:+.1f}, "
        f"{-ahead.low:+.1f}], by {head.mean:.1f} [{head.low:+.1f}, {head.high:+.1f}] of "
        "`refinement`",
        "Nothing else in this table holds." if kept == ["full_resolution"] else f"holds: {kept}",
        f"views and reports bring {plain_gain.test.mean:.1f} points [{plain_gain.test.low:+.1f}, "
        f"{plain_gain.test.high:+.1f}] (p, Holm {plain_gain.corrected:.3f}) over the same network",
        "One difference holds:" if held == ["no_semantic"] else f"these hold: {held}",
        f"The gain is {real['no_semantic'].test.mean:.1f} points on the real cases",
        f"(gains {reading['reading, shuffled_text'].test.mean:+.1f} and "
        f"{reading['reading, no_text'].test.mean:+.1f} points on simulated patients)",
        f"views and text bring {views.test.mean:.1f} points there [{views.test.low:+.1f}, "
        f"{views.test.high:+.1f}] (p, Holm {views.corrected:.3f})",
    ]


def report_claims() -> list[str]:
    """Return what is said of the reports."""
    rows = read(RESULTS / "report_facts.csv")
    count = {row["fact"]: row["reports that mention it"] for row in rows}
    return [
        f"of the {rows[0]['reports']} reports of TextBraTS {count['oedema']} speak of oedema, "
        f"{count['necrosis']} of necrosis, {count['pressed ventricles or midline']} of pressed "
        f"ventricles or midline, {count['side']} of the side, {count['lobe']} of a lobe, which the "
        f"scan shows as well, and {count['enhancement']} of enhancement"
    ]


def phantom_claims() -> list[str]:
    """Return what is said of simulated patients."""
    overlaps = [row["quartiles overlap"] for row in read(RESULTS / "phantom_statistics.csv")]
    return [f"{overlaps.count('True')} of {len(overlaps)} figures of contrast and volume"]


def card_claims() -> list[str]:
    """Return what the card says of the scores of the weights."""
    config = json.loads((WEIGHTS / "config.json").read_text(encoding="utf-8"))
    return [
        f"voxel size: {config['prediction']['spacing_mm']} mm",
        f"overlap {config['prediction']['overlap']}",
        f"`{json.dumps(config['prediction']['postprocessing'], sort_keys=True)}`",
    ]


def mean(name: str, variant: str, score: str = "dice") -> float:
    """Return a score of the weights in the package, over regions and cases."""
    return float(tiny_scores(name, variant, score).mean())


def report_gain(variant: str, other: str, name: str = SIX) -> str:
    """Return what one report brings against another, in points of mean Dice."""
    one, against = (100 * tiny_scores(name, v, "dice").mean(axis=0) for v in (variant, other))
    test = paired_difference(one, against)
    return f"{test.mean:+.1f} [{test.low:+.1f}, {test.high:+.1f}] (p {test.p_value:.2f})"


def seed_gains(path: Path, row: str) -> str:
    """Return the gain of each seed over a row, in points."""
    rows = ablation(path)
    each = zip(rows[BASE].dice, rows[row].dice, strict=True)
    return ", ".join(f"{100 * (first - second).mean():+.1f}" for first, second in each)


TABLES: dict[str, Callable[[], str]] = {
    "recipes": recipe_table,
    "recipes, in short": short_recipe_table,
    "tiny, means": tiny_means,
    "text": lambda: text_table({"R": "real"}),
    "text, trained for it": trained_text_table,
    "text, routes": routes_table,
    "speed": speed_table,
    "scanner": scanner_table,
    "heads": heads_table,
    "growth": growth_table,
    "text, simulated and real": lambda: text_table({"S": "simulated", "R": "real"}),
    "ablation, in short": short_ablation_table,
    "tiny": lambda: tiny_table(("mirrored", "all", "no contrast agent, no report")),
    "tiny, every variant": lambda: tiny_table(tuple(GIVEN)),
    "tiny, case by case": case_table,
    "ablation, min-max": lambda: ablation_table(MIN_MAX),
    "ablation": lambda: ablation_table(ABLATION),
    "ablation, reading": lambda: ablation_table(READING, base="reading"),
    "ablation, reading elsewhere": lambda: elsewhere_table(
        READING, READING_SIMULATED, base="reading"
    ),
    "ablation, elsewhere": lambda: elsewhere_table(ABLATION, SIMULATED),
}
"""Name of a table -> its text."""


def with_tables(text: str) -> str:
    """Return a text with the tables that its comments ask for."""

    def table(match: re.Match[str]) -> str:
        name = match[1]
        if name not in TABLES:
            raise ValueError(f"no table {name!r}: name one of {', '.join(TABLES)}")
        return f"{START.format(name)}\n{TABLES[name]()}\n{END}"

    return re.sub(r"<!-- results: ([^>]+) -->\n.*?<!-- end of results -->", table, text, flags=re.S)


def flat(text: str) -> str:
    """Return a text without line breaks."""
    return re.sub(r"\s+", " ", text)


def unclaimed(text: str, sentences: Sequence[str]) -> list[str]:
    """Return numbers with a decimal point or % that neither a table nor a sentence accounts for."""
    text = re.sub(r"<!-- results: .*?<!-- end of results -->", " ", text, flags=re.S)
    text = flat(re.sub(r"^---\n.*?\n---\n|```.*?```", " ", text, flags=re.S))
    for sentence in sorted(sentences, key=len, reverse=True):
        text = text.replace(sentence, " ")
    found = re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*\w)|\d+(?= ?%)", text)
    return [number for number in found if number not in NOT_RESULTS]


def problems(name: str, text: str) -> list[str]:
    """Return what in README or card differs from the results."""
    sentences = claims()[name]
    found = [f"{name}: not there: {s}" for s in sentences if s not in flat(text)]
    if with_tables(text) != text:
        found.append(f"{name}: a table is not that of the results; run it with --write")
    found += [f"{name}: no result shows {number}" for number in unclaimed(text, sentences)]
    return found


def main() -> None:
    """Write the tables, and say what differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the tables")
    write, found = parser.parse_args().write, []
    for name, path in FILES.items():
        text = path.read_text(encoding="utf-8")
        if write:
            text = with_tables(text)
            with atomic_write(path) as tmp:
                tmp.write_text(text, encoding="utf-8")
        found += problems(name, text)
    print("\n".join(found) or "README and card show the results")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
