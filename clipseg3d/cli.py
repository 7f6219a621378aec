"""The command line, and nothing else: arguments in, messages out."""

import argparse
import glob
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

TRAINING_COMMANDS = {
    "fit": "train on a data set, as a YAML configuration says (Lightning)",
    "validate": "score a checkpoint on the validation fold (Lightning)",
    "test": "score a checkpoint on the data module's test cases (Lightning)",
}
SEQUENCE_FLAGS = ("t1", "t1ce", "t2", "flair")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Errors that this library raises on purpose end in one message on stderr; any other error
    keeps its traceback, since it is a defect.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        if argv and argv[0] in TRAINING_COMMANDS:
            from clipseg3d.training.cli import run

            run(argv)
            return 0
        arguments = _parser().parse_args(argv)
        code: int = arguments.command(arguments)
    except (ValueError, OSError) as error:
        if not _raised_here(error):
            raise
        _say(f"clipseg3d: {error}", stream=sys.stderr)
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    """Return the parser of everything that is not Lightning's."""
    parser = argparse.ArgumentParser(
        prog="clipseg3d",
        description="Text-guided 3D segmentation of brain tumours in four MRI sequences.",
        epilog="'clipseg3d COMMAND --help' says more about a command.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo",
        help="segment a simulated patient, offline, in under 3 minutes",
        description="Simulate patients, train a tiny network on them for under two minutes, "
        "segment one it has not seen, score it and draw it. Needs no data, no network and no GPU.",
    )
    demo.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("clipseg3d-demo"),
        metavar="DIR",
        help="folder for all files (default: %(default)s)",
    )
    demo.set_defaults(command=_demo)

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
    segment.set_defaults(command=_segment)

    for name, text in TRAINING_COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)

    check = commands.add_parser(
        "check-data",
        help="list what a data set holds, and everything that is wrong with it",
        description="Check every case below ROOT: missing, broken and copied files, grids, labels. "
        "Prints a line per case and every fault; ends with 1 if there is any.",
    )
    check.add_argument("root", type=Path, metavar="ROOT", help="folder that holds the cases")
    check.add_argument(
        "--release",
        default="auto",
        metavar="NAME",
        help="such as brats2020 (default: tell it from case names and labels)",
    )
    check.add_argument(
        "--reports",
        type=Path,
        metavar="FILE",
        help="JSON or CSV file of reports (default: CASE_flair_text.txt beside the scans)",
    )
    check.add_argument(
        "--encoder",
        metavar="NAME",
        help="count the tokens of reports, not their words, as this text encoder does: folder, "
        "Hugging Face hub name, or tiny-random",
    )
    check.add_argument(
        "--spacing",
        type=float,
        default=1.0,
        metavar="MM",
        help="voxel size that every case must have (default: 1 mm)",
    )
    check.add_argument(
        "--unlabelled", action="store_true", help="let cases be without an expert mask"
    )
    check.add_argument(
        "--allow-missing", action="store_true", help="let cases be without some of the sequences"
    )
    check.add_argument(
        "--voxels",
        action="store_true",
        help="read all voxels, not only headers and masks: NaN, empty and constant sequences, "
        "masks beside the brain, all copies",
    )
    check.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="write all that was seen to a .json file"
    )
    check.set_defaults(command=_check_data)

    phantom = commands.add_parser(
        "phantom",
        help="write simulated patients in BraTS layout",
        description="Write simulated patients (four sequences, expert mask, true report) as "
        "OUT/Phantom_00000, ... Those already there stay.",
    )
    phantom.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the patients"
    )
    phantom.add_argument(
        "-n", "--number", type=int, default=1, metavar="N", help="patients (default: %(default)s)"
    )
    phantom.add_argument(
        "--spacing", type=float, default=1.0, metavar="MM", help="voxel size (default: 1 mm)"
    )
    phantom.add_argument(
        "--seed", type=int, default=0, metavar="K", help="of the first patient (default: 0)"
    )
    phantom.set_defaults(command=_phantom)

    embed = commands.add_parser(
        "embed-text",
        help="embed reports once and for all, into a file",
        description="Embed the prompts of all regions and the windows of all reports, and write "
        "them to a file that TextBank(cache=FILE) reads.",
    )
    embed.add_argument(
        "sources",
        nargs="+",
        type=Path,
        metavar="SOURCE",
        help="a .txt file with one report, a .json file (case -> report), or a folder to search "
        "for *_flair_text.txt",
    )
    embed.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="file to write, ending in .safetensors",
    )
    embed.add_argument(
        "--encoder",
        default="openai/clip-vit-base-patch32",
        metavar="NAME",
        help="folder, Hugging Face hub name, or tiny-random (default: %(default)s)",
    )
    embed.set_defaults(command=_embed_text)
    return parser


def _demo(arguments: argparse.Namespace) -> int:
    """Run ``clipseg3d demo``."""
    from clipseg3d.demo import run_demo

    result = run_demo(arguments.output)
    _say(f"\nReport: {result.report}\n")
    for region, score in result.dice.items():
        _say(f"Dice {region}  {score:.3f}")
    _say(
        f"\nPatient       {result.case}\nSegmentation  {result.segmentation}\n"
        f"Picture       {result.picture}\nWeights       {result.weights}\n\n"
        "The network was trained on simulated patients for under two minutes and its CLIP has "
        "random weights:\nthis shows that everything runs, not how well it segments real scans."
    )
    return 0


def _segment(arguments: argparse.Namespace) -> int:
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
            _say(f"clipseg3d: {error}", stream=sys.stderr)
        else:
            _say(str(path))
    return 1 if failed else 0


def _check_data(arguments: argparse.Namespace) -> int:
    """Run ``clipseg3d check-data``."""
    if arguments.output is not None and arguments.output.suffix != ".json":
        raise ValueError(f"{arguments.output}: does not end in .json; rename it")

    from clipseg3d.data.cases import detect_release
    from clipseg3d.data.check import check_data
    from clipseg3d.data.releases import get_release

    auto = arguments.release == "auto"
    release = detect_release(arguments.root) if auto else get_release(arguments.release)
    count_tokens = None
    if arguments.encoder is not None:
        from clipseg3d.clip.text_encoder import load_text_encoder

        count_tokens = load_text_encoder(arguments.encoder).count_tokens
    report = check_data(
        arguments.root,
        release,
        reports=arguments.reports,
        require_label=not arguments.unlabelled,
        allow_missing=arguments.allow_missing,
        spacing_mm=arguments.spacing,
        read_all=arguments.voxels,
        count_tokens=count_tokens,
        num_threads=min(8, os.cpu_count() or 1),
    )
    _say(report.table())
    if not arguments.voxels:
        _say("Of sequences only headers were read; --voxels reads all.")
    if arguments.output is not None:
        report.save(arguments.output)
        _say(str(arguments.output))
    return 1 if report.faults else 0


def _phantom(arguments: argparse.Namespace) -> int:
    """Run ``clipseg3d phantom``."""
    from clipseg3d.data.phantom_datamodule import write_phantoms

    names = write_phantoms(
        arguments.output, arguments.number, spacing_mm=arguments.spacing, seed=arguments.seed
    )
    for name in names:
        _say(str(arguments.output / name))
    return 0


def _embed_text(arguments: argparse.Namespace) -> int:
    """Run ``clipseg3d embed-text``."""
    if arguments.output.suffix != ".safetensors":
        raise ValueError(f"{arguments.output}: does not end in .safetensors; rename it")
    reports = [report for source in arguments.sources for report in _reports(source)]

    from clipseg3d.clip.prompts import REGION_PROMPTS
    from clipseg3d.clip.text_bank import TextBank
    from clipseg3d.clip.text_encoder import load_text_encoder

    encoder = load_text_encoder(arguments.encoder)
    count = TextBank(encoder, tuple(REGION_PROMPTS)).save(arguments.output, reports)
    _say(
        f"{arguments.output}: {count} texts (prompts and {len(reports)} reports) embedded by "
        f"{encoder.name}"
    )
    return 0


def _reports(source: Path) -> list[str]:
    """Return the reports in a file or folder, at least one."""
    from clipseg3d.data.reports import REPORT_SUFFIX, read_reports
    from clipseg3d.data.text_files import read_text

    if source.is_dir():
        names = glob.glob(f"**/*{REPORT_SUFFIX}", root_dir=source, recursive=True)
        texts = [read_text(source / name) for name in sorted(names)]
    elif source.suffix == ".json":
        texts = list(read_reports(source).values())
    elif source.suffix == ".txt":
        texts = [read_text(source)]
    else:
        raise ValueError(f"{source}: no folder, .txt or .json file; give one that holds reports")
    found = [text for text in texts if text.strip()]
    if not found:
        raise ValueError(
            f"{source}: holds no report; give a .txt file, a .json file (case -> report), or a "
            f"folder with *{REPORT_SUFFIX} files"
        )
    return found


def _text(value: str) -> str:
    """Return the report that ``--text`` gives, from a file if it names one."""
    from clipseg3d.data.text_files import read_text

    return read_text(Path(value)) if value.endswith(".txt") else value


def _raised_here(error: BaseException) -> bool:
    """Say whether this library raised the error itself, with a message made for its user."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).startswith("clipseg3d")


def _say(message: str, *, stream: TextIO | None = None) -> None:
    """Write a line for the person at the terminal, whatever letters it can show."""
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    shown = message.encode(encoding, errors="backslashreplace").decode(encoding)
    stream.write(f"{shown}\n")
