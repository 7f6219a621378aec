"""``clipseg3d segment``."""

import argparse
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from clipseg3d.cli.terminal import (
    INTERRUPTED,
    Commands,
    raised_here,
    report_text,
    require_output,
    say,
)
from clipseg3d.vocabulary import SEQUENCES
from clipseg3d.weights import DEFAULT_WEIGHTS

if TYPE_CHECKING:
    from clipseg3d.data.cases import Case
    from clipseg3d.inference.predictor import Predictor

PREPARED, NATIVE = "prepared", "native"
_NAMED = 5
"""Cases that a note names; the others are counted."""


def add_command(commands: Commands) -> None:
    """Add the command to the command line."""
    segment = commands.add_parser(
        "segment",
        help="segment patients into label files",
        description="Segment cases. Give case folders named as in BraTS, or the four files of one "
        "case, with voxels of any size and each on a grid of its own. Labels are written as "
        "OUT/CASE.nii.gz, on the grid of t1ce (see --grid-of). Cases whose files "
        "were made of the same scan, with the same weights, text, prompts and settings, are "
        "skipped; other files are not touched. A case that fails does not stop the others, but "
        "then the exit code is 1.",
    )
    segment.add_argument(
        "cases",
        nargs="*",
        type=Path,
        metavar="CASE",
        help="folder of one case, or of many; or a table of cases (.csv or .json)",
    )
    for sequence in SEQUENCES:
        segment.add_argument(
            f"--{sequence}", type=Path, metavar="FILE", help=f"{sequence} volume of a single case"
        )
    segment.add_argument(
        "--sequence",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="volume of a single case, for a sequence of any name that the weights read",
    )
    segment.add_argument(
        "--name", help="name of a single case given as files (default: that of their folder)"
    )
    segment.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the labels"
    )
    segment.add_argument(
        "--weights",
        action="append",
        metavar="WEIGHTS",
        help="checkpoint that 'clipseg3d fit' wrote, a folder written by "
        "'clipseg3d export', the name of weights that come with clipseg3d, or a Hugging Face hub "
        "id; give the option several times for an ensemble, such as one of all folds (default: "
        f"{DEFAULT_WEIGHTS}, which comes with clipseg3d)",
    )
    segment.add_argument(
        "--text",
        metavar="FILE|STR",
        help="report of the case: a text file, or the text itself (default: CASE_flair_text.txt "
        "in its folder, if there is one)",
    )
    segment.add_argument(
        "--reports",
        type=Path,
        metavar="FILE",
        help="reports of many cases: .json, case name -> report, or .csv with the columns case and "
        "report; used instead of the files in their folders",
    )
    segment.add_argument(
        "--trust",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="how far reports are trusted: a number from 0, as if there were none, to 1 (default)",
    )
    segment.add_argument(
        "--prompt",
        action="append",
        default=[],
        dest="prompts",
        metavar="STR",
        help="also segment what these words name, such as 'the enhancing rim', into a mask of its "
        "own, OUT/prompts/CASE; give the option once for each. The weights must have a prompt head",
    )
    segment.add_argument(
        "--grid-of",
        metavar="SEQUENCE",
        help="sequence whose grid and header all results get, if those of a case differ (default: "
        "t1ce, or without it the first)",
    )
    segment.add_argument(
        "--tta", action="store_true", help="average over 8 mirrorings, which takes 8 times as long"
    )
    segment.add_argument(
        "--probabilities",
        action="store_true",
        help="also write the probability of each region to OUT/probabilities",
    )
    segment.add_argument(
        "--uncertainty",
        action="store_true",
        help="also write the entropy, and the variance of an ensemble or of --tta, to "
        "OUT/uncertainty",
    )
    segment.add_argument(
        "--html", action="store_true", help="also write a case page for each case to OUT/CASE.html"
    )
    rules = segment.add_mutually_exclusive_group()
    rules.add_argument(
        "--postprocessing",
        type=Path,
        metavar="FILE",
        help="apply the rules that 'clipseg3d tune-postprocessing' wrote (default: those that come "
        "with the weights, if any)",
    )
    rules.add_argument(
        "--no-postprocessing",
        action="store_true",
        help="apply no rules, not even those that come with the weights",
    )
    segment.add_argument(
        "--prepare",
        action="store_true",
        help="first bring scans of heads, NIfTI or a folder of DICOM for each patient, to the grid "
        "that weights expect, as 'clipseg3d prepare' does, into OUT/prepared; labels are also "
        "carried back to the scans, into OUT/native",
    )
    segment.add_argument(
        "--overwrite",
        action="store_true",
        help="segment finished cases again, and replace files that were made otherwise",
    )
    segment.add_argument(
        "--clip", metavar="NAME|DIR", help="where CLIP is, if not at the place it had in training"
    )
    segment.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    segment.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``clipseg3d segment``."""
    if bool(_files(arguments)) == bool(arguments.cases):
        raise ValueError(
            "give either case folders, or one case as --t1 FILE --t1ce FILE --t2 FILE --flair FILE"
        )
    if arguments.name is not None and not _files(arguments):
        raise ValueError("--name is for one case given as files; folders give their own names")
    if arguments.text is not None and arguments.reports is not None:
        raise ValueError("--text is for one case, --reports for many; give one of the two")
    from clipseg3d.data.case_table import is_case_table

    for path in arguments.cases:  # before seconds of loading
        if path.is_dir() or is_case_table(path):
            continue
        if path.is_file():
            raise ValueError(
                f"{path}: is one file; give the folder of its case, or all files of the case as "
                "--t1 FILE --t1ce FILE --t2 FILE --flair FILE"
            )
        raise FileNotFoundError(
            f"{path}: no such folder or table; give the folder of a case, or of many"
        )
    require_output(arguments.output, folder=True)

    from tqdm import tqdm

    from clipseg3d.data.reports import read_reports
    from clipseg3d.inference.batch_prediction import segment_cases
    from clipseg3d.inference.postprocessing import PostProcessing
    from clipseg3d.inference.predictor import Predictor, Rules
    from clipseg3d.inference.prompting import PromptWarning, check_prompts
    from clipseg3d.ranges import require_trust

    require_trust(arguments.trust)
    prompts = check_prompts(arguments.prompts)
    text = None if arguments.text is None else report_text(arguments.text)
    reports = arguments.reports and read_reports(arguments.reports)
    rules: Rules = None if arguments.no_postprocessing else "weights"
    if arguments.postprocessing is not None:
        rules = PostProcessing.read(arguments.postprocessing)
    predictor = Predictor.from_checkpoints(
        arguments.weights or [DEFAULT_WEIGHTS],
        clip=arguments.clip,
        device=arguments.device,
        tta=arguments.tta,
        postprocessing=rules,
        grid_of=arguments.grid_of,
    )
    if rules == "weights" and predictor.postprocessing is not None:
        say(
            "clipseg3d: note: the weights come with rules of post-processing, which are applied "
            f"(without them: --no-postprocessing): {predictor.postprocessing.describe()}",
            stream=sys.stderr,
        )
    unprepared = _prepare(arguments) if arguments.prepare else []
    cases, faults = _find_cases(arguments, predictor)
    faults = unprepared + faults
    if text is not None and len(cases) > 1:
        raise ValueError(f"--text is for one case, but {len(cases)} are given; run one at a time")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptWarning)  # the words are said here
        for prompt in predictor.read_prompts(prompts):
            if prompt.note:
                say(f"clipseg3d: note: {prompt.note}", stream=sys.stderr)
    if reports is not None:
        cases = _with_reports(cases, reports, arguments.reports)
    elif text is None:
        _say_reports(cases, predictor, trust=arguments.trust)
    for fault in faults:
        say(f"clipseg3d: {fault}", stream=sys.stderr)
    failed, num_skipped, num_written = bool(faults), 0, 0
    try:
        for result in segment_cases(
            predictor,
            cases,
            arguments.output,
            text=text,
            trust=arguments.trust,
            prompts=prompts,
            probabilities=arguments.probabilities,
            uncertainty=arguments.uncertainty,
            html=arguments.html,
            overwrite=arguments.overwrite,
        ):
            num_written += result.status == "written"
            num_skipped += result.status == "finished"
            with tqdm.external_write_mode():  # removes the progress bar meanwhile
                for note in result.notes:
                    say(f"clipseg3d: note: {note}", stream=sys.stderr)
                if result.status == "written":
                    for path in result.files[: 1 + arguments.html]:  # labels and case page
                        say(str(path))
                    for answer, path in result.prompts.items():
                        say(f"{path}: {answer}{'' if answer.found else '; the mask is empty'}")
                error = result.error
                if arguments.prepare and error is None:
                    error = _carry_back(arguments.output, result.case.case_id)
                if error is not None:
                    failed = True
                    _print_error(result.case.case_id, error)
    except KeyboardInterrupt:
        say(
            f"clipseg3d: interrupted after {num_written} cases, whose files are complete; run the "
            "same command again for the others",
            stream=sys.stderr,
        )
        return INTERRUPTED
    if num_skipped:
        say(
            f"Skipped {num_skipped} finished cases, made of the same scans with the same weights, "
            "text, prompts and settings; --overwrite segments them again",
            stream=sys.stderr,
        )
    return 1 if failed else 0


def _prepare(arguments: argparse.Namespace) -> list[str]:
    """Prepare the scans that are given, and put the cases in their place; return the faults.

    A patient whose scans were prepared before is not prepared again. A report beside the scans is
    copied to the case.
    """
    from clipseg3d.atomic_write import atomic_write
    from clipseg3d.cli.prepare import patient_name, prepare_patient
    from clipseg3d.data.reports import REPORT_SUFFIX

    told = {name: str(file) for name, file in _files(arguments).items()}
    root = arguments.output / PREPARED
    cases, faults = [], []
    for folder in arguments.cases or [None]:
        try:
            name = arguments.name or patient_name(folder, told)
            case = prepare_patient(folder, told, root, name=name, reuse=True)
            report = None if folder is None else folder / f"{folder.resolve().name}{REPORT_SUFFIX}"
            if report is not None and report.is_file():
                with atomic_write(case / f"{name}{REPORT_SUFFIX}") as tmp:
                    tmp.write_bytes(report.read_bytes())
            cases.append(case)
        except (OSError, ValueError) as error:
            faults.append(str(error))
    arguments.cases, arguments.name, arguments.sequence = cases, None, []
    for sequence in SEQUENCES:
        setattr(arguments, sequence, None)
    return faults


def _carry_back(output: Path, case_id: str) -> Exception | None:
    """Write the labels of a prepared case on the grids of its scans, unless they are there.

    Returns:
        Why they could not be written.
    """
    from clipseg3d.prepare.labels_back import carry_back
    from clipseg3d.prepare.record import read_record

    label, case = output / f"{case_id}.nii.gz", output / PREPARED / case_id
    native = output / NATIVE
    try:
        files = [native / f"{case_id}_{name}.nii.gz" for name in read_record(case)["sequences"]]
        made = label.stat().st_mtime_ns
        if not all(file.is_file() and file.stat().st_mtime_ns >= made for file in files):
            for path in carry_back(label, case, native):
                say(str(path))
    except (OSError, ValueError) as error:
        return error
    return None


def _with_reports(
    cases: Sequence["Case"], reports: Mapping[str, str], source: Path
) -> list["Case"]:
    """Return the cases with the reports of a file; say which names do not fit together."""
    names = {case.case_id for case in cases}
    strays = [name for name in reports if name not in names]
    without = [case.case_id for case in cases if not reports.get(case.case_id, "").strip()]
    for message, of in (
        ("reports of cases that are not here, which are not used", strays),
        ("no report of these cases, which are segmented without", without),
    ):
        if of:
            more = f" and {len(of) - _NAMED} more" if len(of) > _NAMED else ""
            some = f"{', '.join(of[:_NAMED])}{more}"
            say(f"clipseg3d: note: {source}: {message}: {some}", stream=sys.stderr)
    return [replace(case, report=reports.get(case.case_id, "")) for case in cases]


def _say_reports(cases: Sequence["Case"], predictor: "Predictor", *, trust: float) -> None:
    """Say how many cases have a report beside the scan, which nobody asked for."""
    num_reports = sum(bool(case.report.strip()) for case in cases)
    if num_reports and trust and any(network.text_bank for network in predictor.networks):
        say(
            f"clipseg3d: note: {num_reports} of {len(cases)} cases have a report beside the scan, "
            "which is read (without it: --trust 0)",
            stream=sys.stderr,
        )


def _files(arguments: argparse.Namespace) -> dict[str, Path]:
    """Return the files given for a single case, by sequence."""
    files = {name: getattr(arguments, name) for name in SEQUENCES if getattr(arguments, name)}
    for entry in arguments.sequence:
        name, equals, path = entry.partition("=")
        if not (name and equals and path):
            raise ValueError(f"--sequence {entry}: write it as NAME=FILE, such as adc=adc.nii.gz")
        if name in files:
            raise ValueError(f"--sequence {entry}: {name} is given already; give each one once")
        files[name] = Path(path)
    return files


def _find_cases(
    arguments: argparse.Namespace, predictor: "Predictor"
) -> tuple[list["Case"], list[str]]:
    """Return the cases to segment, and the faults of other cases and of other files."""
    from clipseg3d.data.cases import case_from_files, segmentable_cases

    files = _files(arguments)
    if files:
        case = case_from_files(
            files,
            name=arguments.name,
            sequences=list(predictor.release.sequences),
            allow_missing=predictor.allow_missing,
        )
        return [case], []
    usable: list[Case] = []
    faults: list[str] = []
    notes: list[str] = []
    for folder in arguments.cases:
        cases, folder_faults, folder_notes = segmentable_cases(folder, predictor.release)
        usable += cases
        faults += folder_faults
        notes += folder_notes
    names = Counter(case.case_id for case in usable)
    for name in sorted(name for name, count in names.items() if count > 1):
        folders = [
            next(iter(case.files.values())).parent for case in usable if case.case_id == name
        ]
        fault = f"{' and '.join(map(str, folders))}: each holds case {name}; keep one"
        faults += [] if fault in faults else [fault]
    for note in notes:
        say(f"clipseg3d: note: {note}", stream=sys.stderr)
    return [case for case in usable if names[case.case_id] == 1], faults


def _print_error(case_id: str, error: Exception) -> None:
    """Print why a case failed; of a defect, also the traceback."""
    reason = str(error).removeprefix(f"{case_id}: ")
    say(f"clipseg3d: {case_id} failed: {reason}", stream=sys.stderr)
    if not raised_here(error):
        say("".join(traceback.format_exception(error)), stream=sys.stderr)
