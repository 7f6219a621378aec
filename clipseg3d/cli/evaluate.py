"""``clipseg3d evaluate``."""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipseg3d.atomic_write import atomic_write
from clipseg3d.cli.terminal import Commands, require_output, say

if TYPE_CHECKING:
    from clipseg3d.data.release import BraTSRelease
    from clipseg3d.metrics.case_scorer import CaseScorer
    from clipseg3d.metrics.score_table import ScoreTable

EMPTY = {
    (False, False): "both",
    (True, False): "reference alone",
    (False, True): "prediction alone",
    (True, True): "",
}
"""Whether prediction and reference of a region hold a voxel -> which of them are empty."""


def add_command(commands: Commands) -> None:
    """Add the command to the command line."""
    evaluate = commands.add_parser(
        "evaluate",
        help="score segmentations as the BraTS challenges do",
        description="Score the label maps CASE.nii.gz in PRED against expert masks, region by "
        "region, and print mean and SD over cases. Every reference must have its prediction.",
    )
    evaluate.add_argument("prediction", type=Path, metavar="PRED", help="folder of CASE.nii.gz")
    evaluate.add_argument(
        "reference",
        type=Path,
        metavar="REF",
        help="folder of BraTS cases with their masks, or of label maps named as in PRED",
    )
    evaluate.add_argument(
        "--protocol",
        metavar="NAME",
        help="rules of a challenge: brats2020 (2021 too), brats2023, brats2024 (2025 too), "
        "brats2026, or nan, which leaves out regions that are empty in both masks (default: the "
        "first that fits the release)",
    )
    evaluate.add_argument(
        "--hd95-method",
        metavar="NAME",
        help="implementation that defines the HD95: surface (DeepMind), medpy or monai; they "
        "differ by up to tens of mm (default: the protocol's)",
    )
    evaluate.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="write the scores of PRED to this .csv file",
    )
    evaluate.add_argument(
        "--compare",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="folders of other segmentations of the same cases; PRED is compared with each of "
        "them, and all are ranked",
    )
    evaluate.add_argument(
        "--release",
        metavar="NAME",
        help="release whose labels all files have, such as brats2020 (default: detect it from "
        "names and labels)",
    )
    evaluate.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``clipseg3d evaluate``."""
    output = arguments.output
    if output is not None and output.suffix != ".csv":
        raise ValueError(f"{output}: does not end in .csv; rename it")
    if output is not None:
        require_output(output)
    folders = [arguments.prediction, *arguments.compare]
    repeated = [str(folder) for folder in folders if folders.count(folder) > 1]
    if repeated:
        raise ValueError(f"{repeated[0]}: given twice; give every folder of segmentations once")

    from clipseg3d.data.label_pairs import find_predictions, find_references
    from clipseg3d.metrics.case_scorer import CaseScorer
    from clipseg3d.metrics.protocols import fitting_protocol

    references, release = find_references(arguments.reference, arguments.release)
    predictions = [find_predictions(folder, references) for folder in folders]
    fitting = fitting_protocol(release.name)
    scorer = CaseScorer(
        tuple(release.regions),
        protocol=arguments.protocol or fitting,
        hd95_method=arguments.hd95_method,
        release=release.name,
    )
    counted = "1 case" if len(references) == 1 else f"{len(references)} cases"
    say(f"{counted} of {release.name}\n{scorer.rules()}")
    if arguments.protocol is None:
        say(f"(no --protocol given: {fitting} fits {release.name})")
    elif not scorer.protocol.fits(release.name):
        say(
            f"Note: no challenge scores {release.name} by {scorer.protocol.name}, so compare these "
            f"scores with no leaderboard; {fitting} fits"
        )
    tables = []
    for folder, paths in zip(folders, predictions, strict=True):
        table, empty = _score(paths, references, release, scorer)
        tables.append(table)
        say(
            f"\n{folder}, mean ± SD over cases, HD95 as {scorer.hd95_method}:\n{table.summary()}\n"
            f"{empty}"
        )
    if output is not None:
        with atomic_write(output) as tmp:
            tmp.write_text(tables[0].csv(), encoding="utf-8")
        say(f"\n{output}")
    if len(tables) > 1:
        _say_comparison(folders, tables, scorer.protocol.ranked)
    return 0


def _score(
    predictions: Mapping[str, Path],
    references: Mapping[str, Path],
    release: "BraTSRelease",
    scorer: "CaseScorer",
) -> tuple["ScoreTable", str]:
    """Return the scores of one folder, and a line that counts empty masks, with notes.

    Raises:
        DataError: files cannot be scored. All faults of all cases are listed.
    """
    import numpy as np
    from tqdm import tqdm

    from clipseg3d.data.cases import DataError
    from clipseg3d.data.label_mixup import mixup_note
    from clipseg3d.data.label_pairs import read_pair
    from clipseg3d.metrics.score_table import ScoreTable

    faults: list[str] = []
    empty = Counter[tuple[str, str]]()
    labels: list[tuple[frozenset[int], frozenset[int]]] = []
    values: dict[str, list[list[float]]] = {}
    for case_id, path in tqdm(predictions.items(), desc="Scoring", unit="case", delay=2):
        try:
            pair = read_pair(path, references[case_id], release)
        except DataError as error:
            faults += error.faults
            continue
        if faults:  # scores are of no use any more, but the other cases may have faults too
            continue
        values[case_id] = scorer(pair.prediction, pair.reference, spacing_mm=pair.spacing_mm)
        labels.append((pair.predicted_labels, pair.reference_labels))
        for region, predicted, true in zip(
            release.regions, pair.prediction, pair.reference, strict=True
        ):
            empty[region, EMPTY[bool(predicted.any()), bool(true.any())]] += 1
    if faults:
        raise DataError(faults)
    counts = (
        f"{region} {', '.join(f'{empty[region, kind]} {kind}' for kind in EMPTY.values() if kind)}"
        for region in release.regions
    )
    text = f"Empty masks: {'; '.join(counts)}"
    if note := mixup_note([pair[0] for pair in labels], [pair[1] for pair in labels], release):
        text += f"\nNote: {note}"
    table = ScoreTable(
        tuple(values), scorer.regions, scorer.protocol.scores, np.array(list(values.values()))
    )
    return table, text


def _say_comparison(
    folders: Sequence[Path], tables: Sequence["ScoreTable"], ranked: Sequence[str]
) -> None:
    """Print how the first folder differs from each of the others, and the ranking of all."""
    from clipseg3d.metrics.comparison import difference_table  # loads scipy.stats

    for folder, table in zip(folders[1:], tables[1:], strict=True):
        say(
            f"\n{folders[0]} - {folder}: mean, 95 % bootstrap interval, Wilcoxon's p (signed "
            f"ranks, not corrected for the number of tests)\n{difference_table(tables[0], table)}"
        )
    say(f"\n{_ranking(folders, tables, ranked)}")


def _ranking(folders: Sequence[Path], tables: Sequence["ScoreTable"], ranked: Sequence[str]) -> str:
    """Return the folders with their mean ranks, the best one first."""
    import numpy as np

    from clipseg3d.metrics.comparison import mean_ranks
    from clipseg3d.metrics.protocols import HIGHER_IS_BETTER

    columns = [tables[0].scores.index(score) for score in ranked]
    ranks = mean_ranks(
        np.stack([table.values[:, :, columns] for table in tables]),
        np.array([HIGHER_IS_BETTER[score] for score in ranked]),
    )
    lines = sorted(zip(ranks.tolist(), map(str, folders), strict=True))
    head = f"Mean rank over cases, regions and {', '.join(ranked)}, 1 is best:"
    return "\n".join([head, *(f"{rank:.3f}  {folder}" for rank, folder in lines)])
