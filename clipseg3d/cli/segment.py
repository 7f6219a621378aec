"""``clipseg3d segment``."""

import argparse
import sys
from pathlib import Path

from clipseg3d.cli.terminal import Commands, say

SEQUENCE_FLAGS = ("t1", "t1ce", "t2", "flair")


def add_command(commands: Commands) -> None:
    """Add the command to the command line."""
    segment = commands.add_parser(
        "segment",
        help="segment patients into label files",
        description="Segment cases. Give case folders named as in BraTS, or the four files of one "
        "case. Labels are written as OUT/CASE.nii.gz in the grid and header of the scan.",
    )
    segment.add_argument(
        "cases", nargs="*", type=Path, metavar="CASE", help="folder of one case, or of many"
    )
    for sequence in SEQUENCE_FLAGS:
        segment.add_argument(
            f"--{sequence}", type=Path, metavar="FILE", help=f"{sequence} volume of a single case"
        )
    segment.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the labels"
    )
    segment.add_argument(
        "--weights",
        type=Path,
        required=True,
        metavar="CKPT",
        help="checkpoint written by 'clipseg3d fit' or 'clipseg3d demo'",
    )
    segment.add_argument(
        "--text",
        metavar="FILE|STR",
        help="report of the case: a .txt file, or the text itself (default: CASE_flair_text.txt "
        "beside the scan, if there is one)",
    )
    segment.add_argument(
        "--clip", metavar="NAME|DIR", help="where CLIP is, if not where it was in training"
    )
    segment.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    segment.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``clipseg3d segment``."""
    from clipseg3d.data.cases import DataError, case_from_files, find_cases
    from clipseg3d.inference.predictor import Predictor

    files = {name: getattr(arguments, name) for name in SEQUENCE_FLAGS if getattr(arguments, name)}
    if bool(files) == bool(arguments.cases):
        raise ValueError(
            "give either case folders, or one case as --t1 FILE --t1ce FILE --t2 FILE --flair FILE"
        )
    text = None if arguments.text is None else _text(arguments.text)
    predictor = Predictor.from_checkpoint(
        arguments.weights, clip=arguments.clip, device=arguments.device
    )
    if files:
        cases = [case_from_files(files)]
    else:
        cases = [
            case
            for folder in arguments.cases
            for case in find_cases(
                folder,
                predictor.release,
                require_label=False,
                spacing_mm=predictor.spacing_mm,
            )
        ]
    names = [case.case_id for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{twice[0]} is given more than once; labels are named by case")
    if text is not None and len(cases) > 1:
        raise ValueError(f"--text is about one case, but {len(cases)} are given; run them apart")
    failed = 0
    for case in cases:
        path = arguments.output / f"{case.case_id}.nii.gz"
        try:
            predictor(case, text=text, progress=True).save(path)
        except DataError as error:
            failed += 1
            say(f"clipseg3d: {error}", stream=sys.stderr)
        else:
            say(str(path))
    return 1 if failed else 0


def _text(value: str) -> str:
    """Return the report that ``--text`` gives, from a file if it names one."""
    from clipseg3d.data.text_files import read_text

    return read_text(Path(value)) if value.endswith(".txt") else value
