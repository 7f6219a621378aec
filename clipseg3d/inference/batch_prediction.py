"""Segment many cases: failures do not stop the run, finished cases are skipped."""

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
"""Subfolders for maps, so that the folder itself can be submitted to a challenge as it is."""


@dataclass(frozen=True)
class CaseResult:
    """Result of one case.

    Attributes:
        case: the case.
        files: its files, the labels first.
        status: ``finished`` means that all files were there before.
        error: why the case failed; None if it did not.
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
    ``probabilities`` and ``uncertainty``. Every file is complete or absent, even if the process is
    interrupted.

    Args:
        predictor: segments the cases.
        cases: cases with different names.
        out: folder to write to; made if missing.
        text: report to use for every case; None takes the case's own.
        probabilities: whether to write the probability of each region.
        uncertainty: whether to write uncertainty maps.
        html: whether to write a page of each case, with its expert mask if there is one.
        overwrite: whether to repeat cases whose files are all there. Without it they are skipped,
            even if another network wrote the files.

    Yields:
        The result of each case, in order. An error in one case does not stop the others.
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
    num_open = len(cases) - len(finished)
    with tqdm(
        total=num_open, desc="Segmenting", bar_format=BAR, delay=2, disable=not num_open
    ) as bar:
        done = 0
        for case in cases:
            paths = files[case.case_id]
            if case.case_id in finished:
                yield CaseResult(case, paths, "finished")
                continue
            bar.set_description_str(
                f"Segmenting {done + 1}/{num_open} {case.case_id}", refresh=False
            )
            error: Exception | None = None
            try:
                segmentation = predictor(
                    case,
                    text=text,
                    probabilities=probabilities,
                    uncertainty=uncertainty,
                    explain=html,
                    progress=bar.update,
                )
                segmentation.save(paths[0])
                if html:
                    segmentation.save_case_page(paths[1], reference=case.label)
                if probabilities:
                    segmentation.save_probabilities(out / PROBABILITIES)
                if uncertainty:
                    segmentation.save_uncertainty(out / UNCERTAINTY)
            except Exception as caught:
                error = caught
            done += 1
            bar.update(done - bar.n)
            yield CaseResult(case, paths, "failed" if error else "written", error)
