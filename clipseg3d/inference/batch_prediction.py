"""Segment many cases: reading and writing go on beside, failures do not stop the run."""

import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from clipseg3d.atomic_write import locked, require_writable
from clipseg3d.checksums import sha256_of_file, sha256_of_values
from clipseg3d.data.array_volume import ArrayVolume, VolumeSource
from clipseg3d.data.cases import Case
from clipseg3d.data.nifti import strip_extension
from clipseg3d.inference.case_record import CaseRecord, record_path
from clipseg3d.inference.predictor import BAR, Predictor
from clipseg3d.inference.prompt_answer import PromptAnswer, prompt_file
from clipseg3d.inference.prompting import check_prompts
from clipseg3d.inference.read_ahead import read_ahead
from clipseg3d.inference.segmentation import Segmentation, map_file
from clipseg3d.ranges import require_trust

PROBABILITIES, UNCERTAINTY, PROMPTS = "probabilities", "uncertainty", "prompts"
"""Subfolders for maps and masks, as ``RECORDS`` is one for what files were made with, so that the
folder itself can be submitted to a challenge as it is."""


@dataclass(frozen=True)
class CaseResult:
    """Result of one case.

    Attributes:
        case: the case.
        files: its files, the labels first.
        status: ``finished`` means that all files were there before, made of the same scan with the
            same weights, text and settings.
        error: why the case failed; None if it did not.
        notes: what was changed, missing, unusual or in doubt about the scan, a line each.
        prompts: answer -> its file; empty if the case was finished before.
    """

    case: Case
    files: tuple[Path, ...]
    status: Literal["written", "finished", "failed"]
    error: Exception | None = None
    notes: tuple[str, ...] = ()
    prompts: Mapping[PromptAnswer, Path] = field(default_factory=dict)


def segment_cases(
    predictor: Predictor,
    cases: Sequence[Case],
    out: Path,
    *,
    text: str | None = None,
    trust: float = 1.0,
    prompts: Sequence[str] = (),
    probabilities: bool = False,
    uncertainty: bool = False,
    html: bool = False,
    overwrite: bool = False,
) -> Iterator[CaseResult]:
    """Segment cases into a folder, with one progress bar over all of them.

    Labels go to ``out/{case}.nii.gz``, case pages to ``out/{case}.html``, maps into the subfolders
    ``probabilities`` and ``uncertainty``, masks of prompts to ``prompts/{case}/{prompt}.nii.gz``,
    and what they were made with to ``records/{case}.json``, with the scores of presence. Every file
    is complete or absent, even if the process is interrupted.

    While a case is computed, the next one is read, and the files of the one before are written,
    each in a thread of its own. So the result of a case may come only when the next one has been
    computed; before an interrupt goes on, the result of a case that is being written is given.
    Beside what :class:`Predictor` needs, that takes memory for one scan more, in BraTS 240 MB while
    it is read and 60 MB from then on, and for the segmentation that is being written.

    A case is finished if its record says that its files were made of the same scan, with the same
    weights, text, trust, prompts and settings, and they are still as they were written. Files that
    were made otherwise, or by nobody knows what, are not touched: the case fails. Other prompts
    change no other file but the case page; with them, the case is segmented again, and masks of
    earlier ones stay.

    Args:
        predictor: segments the cases.
        cases: cases with different names.
        out: folder to write to; made if missing.
        text: report to use for every case; None takes the case's own.
        trust: how far reports are trusted, from 0 to 1.
        prompts: what else to segment; see :class:`Predictor`.
        probabilities: whether to write the probability of each region.
        uncertainty: whether to write uncertainty maps.
        html: whether to write a page of each case, with its expert mask if there is one.
        overwrite: whether to repeat finished cases, and to replace files that were made otherwise.

    Yields:
        The result of each case, in order. An error in one case does not stop the others.

    Raises:
        ValueError: a file to write is a file of a case, ``trust`` is not in [0, 1], or a prompt
            cannot be answered; nothing has been written.
        OSError: ``out`` cannot be written to.
    """
    require_trust(trust)
    prompts = check_prompts(prompts)
    if prompts:
        predictor.read_prompts(prompts)  # fails if it cannot
    maps = {
        PROBABILITIES: tuple(predictor.release.regions) if probabilities else (),
        UNCERTAINTY: predictor.uncertainty_names if uncertainty else (),
    }
    files = {
        case.case_id: (
            out / f"{case.case_id}.nii.gz",
            *([out / f"{case.case_id}.html"] if html else []),
            *(out / folder / map_file(case.case_id, n) for folder in maps for n in maps[folder]),
            *(out / PROMPTS / case.case_id / prompt_file(prompt) for prompt in prompts),
        )
        for case in cases
    }
    _check_outputs(cases, files)
    require_writable(out)  # before hours of computing
    settings = {**predictor.fingerprint(), "trust": float(trust), "prompts": list(prompts)}
    made_with: dict[str, dict[str, object]] = {}  # scans are hashed once

    def status_of(case: Case) -> tuple[bool, str | None]:
        """Return whether a case is finished, and why its files must not be replaced, if so."""
        paths = files[case.case_id]
        if overwrite or not any(path.exists() for path in paths):
            return False, None
        if case.case_id not in made_with:
            made_with[case.case_id] = _made_with(case, text, settings, html=html)
        return _status(record_path(out, case.case_id), out, paths, made_with[case.case_id])

    statuses = {case.case_id: status_of(case) for case in cases}
    finished = {name for name, (is_finished, _) in statuses.items() if is_finished}
    to_read = [case for case in cases if statuses[case.case_id] == (False, None)]
    num_open = len(cases) - len(finished)
    options: dict[str, Any] = {"text": text, "explain": html, "trust": trust, "prompts": prompts}
    options |= {"probabilities": probabilities, "uncertainty": uncertainty, "warn": False}

    def write(case: Case, segmentation: Segmentation, lock: ExitStack) -> CaseResult:
        """Write all files of a case."""
        paths, notes = files[case.case_id], segmentation.notes
        answers: dict[PromptAnswer, Path] = {}
        try:
            with lock:
                made = made_with.get(case.case_id) or _made_with(case, text, settings, html=html)
                path = record_path(out, case.case_id)
                before = CaseRecord.read(path, out)
                if before is not None and not before.fits(made):
                    notes += _note_on_others(case, before.others(paths))
                record = CaseRecord.begin(path, out, made, paths)
                segmentation.save(paths[0])
                if html:
                    notes += _save_case_page(segmentation, paths[1])
                if probabilities:
                    segmentation.save_probabilities(out / PROBABILITIES)
                if uncertainty:
                    segmentation.save_uncertainty(out / UNCERTAINTY)
                if prompts:
                    masks = out / PROMPTS / case.case_id
                    segmentation.save_prompts(masks)
                    answers = {a: masks / prompt_file(a.text) for a in segmentation.prompts}
                record.with_files(paths, _found(segmentation)).write()
        except Exception as caught:
            return CaseResult(case, paths, "failed", caught, notes, answers)
        return CaseResult(case, paths, "written", None, notes, answers)

    def compute() -> Generator[Future[CaseResult], None, None]:
        """Segment the cases, and yield their results, of which one may still be written."""
        with (
            closing(read_ahead(predictor.read, to_read)) as scans,
            ThreadPoolExecutor(1) as writer,
            tqdm(
                total=num_open, desc="Segmenting", bar_format=BAR, delay=2, disable=not num_open
            ) as bar,
        ):
            done = 0
            for case in cases:
                paths = files[case.case_id]
                if case.case_id in finished:
                    yield _known(CaseResult(case, paths, "finished"))
                    continue
                bar.set_description_str(
                    f"Segmenting {done + 1}/{num_open} {case.case_id}", refresh=False
                )
                scan = next(scans) if statuses[case.case_id] == (False, None) else None
                try:
                    with ExitStack() as lock:
                        lock.enter_context(_alone(paths[0]))
                        # again, since another process may have written meanwhile
                        is_finished, refusal = status_of(case)
                        if is_finished:
                            result = _known(CaseResult(case, paths, "finished"))
                        elif refusal:
                            raise ValueError(refusal)
                        else:
                            result = writer.submit(
                                write,
                                case,
                                predictor(
                                    case if scan is None else scan.result(),
                                    progress=bar.update,
                                    **options,
                                ),
                                lock.pop_all(),
                            )
                except Exception as caught:
                    result = _known(CaseResult(case, paths, "failed", caught))
                scan = None  # frees its volumes
                done += 1
                bar.update(done - bar.n)
                yield result

    pending: Future[CaseResult] | None = None
    with closing(compute()) as results:
        try:
            for result in results:
                if pending is not None:
                    written, pending = pending.result(), None
                    yield written
                if result.done():
                    yield result.result()
                else:
                    pending = result
        except KeyboardInterrupt:
            if pending is not None:
                yield pending.result()
            raise
    if pending is not None:
        yield pending.result()


def _known(result: CaseResult) -> "Future[CaseResult]":
    """Return a result that need not be waited for."""
    future: Future[CaseResult] = Future()
    future.set_result(result)
    return future


def _found(segmentation: Segmentation) -> dict[str, object]:
    """Return the scores of a case, as plain values."""
    prompts = [
        {
            "text": answer.text,
            "file": f"{PROMPTS}/{segmentation.case.case_id}/{prompt_file(answer.text)}",
            "found": answer.found,
            "presence": answer.presence,
            "volume_ml": answer.volume_ml,
        }
        for answer in segmentation.prompts
    ]
    return {"presence": dict(segmentation.presence), "prompts": prompts}


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes out that segment the same case into the same folder."""

    def say_so() -> None:
        tqdm.write(f"{path}: waiting for another process that writes it", sys.stderr)

    with locked(path, on_wait=say_so):
        yield


def _check_outputs(cases: Sequence[Case], files: Mapping[str, Sequence[Path]]) -> None:
    """Raise a ValueError if a file to write is a file of a case, or would lie in its place."""
    taken: dict[object, Path] = {}
    for case in cases:
        for path in case.files.values():
            taken |= dict.fromkeys(_places(path), path)
    for path in (path for paths in files.values() for path in paths):
        for place in _places(path):
            if place in taken:
                raise ValueError(
                    f"{path}: would replace {taken[place]}, which is a file of a case; choose "
                    "another output folder, or another name for the case (--name)"
                )


def _places(path: Path) -> list[object]:
    """Return what tells a file: its name without extension, and the disk's number of the file."""
    places: list[object] = [(path.parent.resolve(), strip_extension(path.name) or path.name)]
    if path.exists():
        status = path.stat()  # the same for all links to a file
        places.append((status.st_dev, status.st_ino))
    return places


def _made_with(
    case: Case, text: str | None, settings: Mapping[str, object], *, html: bool
) -> dict[str, object]:
    """Return what decides the files of a case: inputs, text and settings; of a page, the mask."""
    inputs = {name: _sha256(source) for name, source in case.sequences.items()}
    text = case.report if text is None else text
    mask = {"mask": None if case.label is None else _sha256(case.label)} if html else {}
    return {"inputs": inputs, "text": sha256_of_values(text), **settings, **mask}


def _note_on_others(case: Case, files: Sequence[Path]) -> tuple[str, ...]:
    """Return a note on files of a case that are there from a segmentation made otherwise."""
    if not files:
        return ()
    return (
        f"{case.case_id}: {', '.join(map(str, files))}: of an earlier segmentation that was made "
        "otherwise; delete what does not fit any more, or have it written again",
    )


def _sha256(source: VolumeSource) -> str | None:
    """Return the SHA-256 of a scan; None for a file that is not there."""
    if isinstance(source, ArrayVolume):
        return source.sha256()
    return sha256_of_file(source) if source.is_file() else None


_ASKED = ("prompts", "mask")
"""What a segmentation does not depend on: files are written again, without being asked."""


def _status(
    record_path: Path, out: Path, paths: Sequence[Path], made_with: Mapping[str, object]
) -> tuple[bool, str | None]:
    """Return whether a case is finished, and why its files must not be replaced, if so."""
    record = CaseRecord.read(record_path, out)
    refusal = _why_not_ours(paths, record, made_with)
    finished = (
        record is not None and refusal is None and record.fits(made_with) and record.holds(paths)
    )
    return finished, refusal


def _why_not_ours(
    paths: Sequence[Path], record: CaseRecord | None, made_with: Mapping[str, object]
) -> str | None:
    """Return why the files that are there must not be replaced; None if they may be."""
    cure = "choose another folder, or replace it with --overwrite (overwrite=True)"
    there = [path for path in paths if path.exists()]
    unknown = [path for path in there if record is None or not record.lists(path)]
    if record is None or unknown:
        return f"{unknown[0]}: is there already, and it is not known what it was made with; {cure}"
    differences = [
        name
        for name in made_with
        if name not in _ASKED and record.made_with.get(name) != made_with[name]
    ]
    if differences:
        others = ", ".join(name.replace("_", " ") for name in differences)
        return f"{there[0]}: is there already, made with other {others}; {cure}"
    if changed := record.changed(there):
        return f"{changed[0]}: has been changed since it was written; {cure}"
    return None


def _save_case_page(segmentation: Segmentation, path: Path) -> tuple[str, ...]:
    """Write the case page; without the expert mask, and with a note, if that cannot be shown."""
    try:
        segmentation.save_case_page(path, reference=segmentation.case.label)
    except (ValueError, FileNotFoundError) as error:
        segmentation.save_case_page(path)  # fails again if it was not for the mask
        return (f"{error}; the case page does not show the expert mask",)
    return ()
