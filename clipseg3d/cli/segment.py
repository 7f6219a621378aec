"""``clipseg3d segment``."""

import argparse
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from clipseg3d.cli.terminal import (
    Commands,
    raised_here,
    report_text,
    say,
)
from clipseg3d.vocabulary import SEQUENCES

if TYPE_CHECKING:
    from clipseg3d.data.cases import Case
    from clipseg3d.inference.predictor import Predictor

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def add_command(commands: Commands) -> None:
    """Add the command to the command line."""
    segment = commands.add_parser(
        "segment",
        help="segment patients into label files",
        description="Segment cases. Give case folders named as in BraTS, or the four files of one "
        "case. Labels are written as OUT/CASE.nii.gz in the grid and header of the scan. Cases "
        "whose files are all there are skipped; one that fails does not stop the others, and the "
        "command ends with 1.",
    )
    segment.add_argument(
        "cases", nargs="*", type=Path, metavar="CASE", help="folder of one case, or of many"
    )
    for sequence in SEQUENCES:
        segment.add_argument(
            f"--{sequence}", type=Path, metavar="FILE", help=f"{sequence} volume of a single case"
        )
    segment.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the labels"
    )
    segment.add_argument(
        "--weights",
        required=True,
        action="append",
        metavar="WEIGHTS",
        help="checkpoint written by 'clipseg3d fit' or 'clipseg3d demo', a folder written by "
        "'clipseg3d export', the name of weights that come with clipseg3d, or a Hugging Face hub "
        "id; repeat the option for an ensemble, such as one of all folds",
    )
    segment.add_argument(
        "--text",
        metavar="FILE|STR",
        help="report of the case: a .txt file, or the text itself (default: CASE_flair_text.txt "
        "beside the scan, if there is one)",
    )
    segment.add_argument(
        "--tta", action="store_true", help="average over 8 mirrorings, at 8 times the cost"
    )
    segment.add_argument(
        "--probabilities",
        action="store_true",
        help="write the probability of each region to OUT/probabilities too",
    )
    segment.add_argument(
        "--uncertainty",
        action="store_true",
        help="write the entropy, and the variance of an ensemble or of --tta, to OUT/uncertainty "
        "too",
    )
    segment.add_argument(
        "--html", action="store_true", help="write a page of each case to OUT/CASE.html too"
    )
    segment.add_argument(
        "--postprocessing",
        type=Path,
        metavar="FILE",
        help="apply the rules that 'clipseg3d tune-postprocessing' learned",
    )
    segment.add_argument(
        "--overwrite", action="store_true", help="segment cases again that are finished"
    )
    segment.add_argument(
        "--clip", metavar="NAME|DIR", help="where CLIP is, if not where it was in training"
    )
    segment.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    segment.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``clipseg3d segment``."""
    if bool(_files(arguments)) == bool(arguments.cases):
        raise ValueError(
            "give either case folders, or one case as --t1 FILE --t1ce FILE --t2 FILE --flair FILE"
        )
    for folder in arguments.cases:  # known before ten seconds of loading
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; give that of a case, or of many")

    from tqdm import tqdm

    from clipseg3d.inference.batch_prediction import segment_cases
    from clipseg3d.inference.postprocessing import PostProcessing
    from clipseg3d.inference.predictor import Predictor

    text = None if arguments.text is None else report_text(arguments.text)
    rules = arguments.postprocessing and PostProcessing.read(arguments.postprocessing)
    predictor = Predictor.from_checkpoints(
        arguments.weights,
        clip=arguments.clip,
        device=arguments.device,
        tta=arguments.tta,
        postprocessing=rules,
    )
    cases, faults = _find(arguments, predictor)
    names = [case.case_id for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{twice[0]} is given more than once; labels are named by case")
    if text is not None and len(cases) > 1:
        raise ValueError(f"--text is about one case, but {len(cases)} are given; run them apart")
    for fault in faults:
        say(f"clipseg3d: {fault}", stream=sys.stderr)
    failed, finished, done = bool(faults), 0, 0
    try:
        for result in segment_cases(
            predictor,
            cases,
            arguments.output,
            text=text,
            probabilities=arguments.probabilities,
            uncertainty=arguments.uncertainty,
            html=arguments.html,
            overwrite=arguments.overwrite,
        ):
            done += result.status == "written"
            finished += result.status == "finished"
            with tqdm.external_write_mode():  # the bar makes room
                if result.status == "written":
                    say(str(result.files[0]))
                elif result.error is not None:
                    failed = True
                    _tell(result.case.case_id, result.error)
    except KeyboardInterrupt:
        say(
            f"clipseg3d: interrupted after {done} cases, which are whole; the same command goes on "
            "with the others",
            stream=sys.stderr,
        )
        return INTERRUPTED
    if finished:
        say(
            f"Skipped {finished} finished cases, whatever they were made with; --overwrite redoes "
            "them",
            stream=sys.stderr,
        )
    return 1 if failed else 0


def _files(arguments: argparse.Namespace) -> dict[str, Path]:
    """Return the files of a single case that are given, by sequence."""
    return {name: getattr(arguments, name) for name in SEQUENCES if getattr(arguments, name)}


def _find(arguments: argparse.Namespace, predictor: "Predictor") -> tuple[list["Case"], list[str]]:
    """Return the cases to segment, and the faults of others and of files of no case."""
    from clipseg3d.data.cases import case_from_files, faults_by_case, index_cases

    files = _files(arguments)
    if files:
        return [case_from_files(files, allow_missing=predictor.allow_missing)], []
    usable, faults = [], []
    for folder in arguments.cases:
        # what is missing or of another voxel size is for the predictor to judge
        cases, found = index_cases(
            folder, predictor.release, require_label=False, allow_missing=True
        )
        if not cases:
            raise FileNotFoundError("\n".join(found))
        owned, _ = faults_by_case(cases, found)
        usable += [case for case, own in zip(cases, owned, strict=True) if not own]
        faults += found
    return usable, faults


def _tell(case_id: str, error: Exception) -> None:
    """Say why a case failed; a defect shows its traceback."""
    reason = str(error).removeprefix(f"{case_id}: ")
    say(f"clipseg3d: {case_id} failed: {reason}", stream=sys.stderr)
    if not raised_here(error):
        say("".join(traceback.format_exception(error)), stream=sys.stderr)
