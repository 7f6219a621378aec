"""Many cases in a row: what fails is reported, what is finished is skipped."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from clipseg3d.data.cases import Case
from clipseg3d.inference.predictor import BAR, Predictor
from clipseg3d.inference.segmentation import map_file
from clipseg3d.vocabulary import REGIONS

PROBABILITIES, UNCERTAINTY = "probabilities", "uncertainty"
"""Subfolders of maps: the folder itself can be handed in as it is."""


@dataclass(frozen=True)
class CaseResult:
    """What became of one case.

    Attributes:
        case: which.
        files: what was to be written, the labels first.
        status: ``finished`` stands for all files having been there before.
        error: why it failed.
    """

    case: Case
    files: tuple[Path, ...]
    status: Literal["written", "finished", "failed"]
    error: Exception | None = None


def segment_cases(
    predictor: Predictor,
    cases: Sequence[Case],
    out: Path,
    *,
    text: str | None = None,
    probabilities: bool = False,
    uncertainty: bool = False,
    html: bool = False,
    overwrite: bool = False,
) -> Iterator[CaseResult]:
    """Segment cases into a folder, with one progress bar over all of them.

    Labels go to ``out/{case}.nii.gz``, case pages to ``out/{case}.html``, maps into the subfolders
    ``probabilities`` and ``uncertainty``. Every file appears whole or not at all, also if the
    process is interrupted.

    Args:
        predictor: what to segment with.
        cases: of different names.
        out: folder to write to; made if missing.
        text: report to use for each case; None takes the case's own.
        probabilities: whether to write the probability of each region.
        uncertainty: whether to write maps of uncertainty.
        html: whether to write a page of each case, with its expert mask where there is one.
        overwrite: whether to do cases again whose files are all there, whatever made them.

    Yields:
        What became of each case, in order. An error of one case does not stop the others.
    """
    maps = {
        PROBABILITIES: REGIONS if probabilities else (),
        UNCERTAINTY: predictor.uncertainty_names if uncertainty else (),
    }
    files = {
        case.case_id: (
            out / f"{case.case_id}.nii.gz",
            *([out / f"{case.case_id}.html"] if html else []),
            *(out / folder / map_file(case.case_id, n) for folder in maps for n in maps[folder]),
        )
        for case in cases
    }
    finished = [
        case.case_id
        for case in cases
        if not overwrite and all(path.is_file() for path in files[case.case_id])
    ]
    todo = len(cases) - len(finished)
    with tqdm(total=todo, desc="Segmenting", bar_format=BAR, delay=2, disable=not todo) as bar:
        done = 0
        for case in cases:
            due = files[case.case_id]
            if case.case_id in finished:
                yield CaseResult(case, due, "finished")
                continue
            bar.set_description_str(f"Segmenting {done + 1}/{todo} {case.case_id}", refresh=False)
            error: Exception | None = None
            try:
                found = predictor(
                    case,
                    text=text,
                    probabilities=probabilities,
                    uncertainty=uncertainty,
                    explain=html,
                    progress=bar.update,
                )
                found.save(due[0])
                if html:
                    found.save_case_page(due[1], reference=case.label)
                if probabilities:
                    found.save_probabilities(out / PROBABILITIES)
                if uncertainty:
                    found.save_uncertainty(out / UNCERTAINTY)
            except Exception as caught:
                error = caught
            done += 1
            bar.update(done - bar.n)
            yield CaseResult(case, due, "failed" if error else "written", error)
