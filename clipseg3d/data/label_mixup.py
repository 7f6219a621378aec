"""Predictions that seem to be in the labels of another release than their references."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from clipseg3d.data.cases import DataError, index_cases
from clipseg3d.data.label_checks import releases_with
from clipseg3d.data.label_pairs import read_pair
from clipseg3d.data.release import BraTSRelease
from clipseg3d.data.releases import RELEASES
from clipseg3d.formatting import join_numbers


def mixup_note(
    predicted: Sequence[Iterable[int]], true: Sequence[Iterable[int]], release: BraTSRelease
) -> str | None:
    """Return a note if predictions hold labels that no reference has; None if all is well.

    Args:
        predicted: labels of each prediction, without the background.
        true: labels of each reference, without the background.
        release: release that the references are of.

    Example:
        >>> from clipseg3d.data.releases import BRATS_2023_MET
        >>> print(mixup_note([{1, 2, 4}], [{1, 2, 3}], BRATS_2023_MET)[:59])
        1 of 1 predictions hold label 4, which no reference has; no
    """
    in_predictions, in_references = set().union(*predicted), set().union(*true)
    extra, absent = in_predictions - in_references, in_references - in_predictions
    if not extra or not in_references:
        return None
    count = sum(not extra.isdisjoint(labels) for labels in predicted)
    note = (
        f"{count} of {len(predicted)} predictions hold label {join_numbers(sorted(extra))}, which "
        "no reference has"
    )
    if not absent:
        return note
    note += f"; no prediction has label {join_numbers(sorted(absent))}"
    others = [
        name for name in releases_with(in_predictions) if RELEASES[name].regions != release.regions
    ]
    return f"{note}: are these the labels of {' or '.join(others)}?" if others else note


def submission_note(folder: Path, root: Path, release: BraTSRelease) -> str | None:
    """Return the note of :func:`mixup_note` on a folder of segmentations.

    Args:
        folder: folder of ``{case}.nii.gz``; files with faults are left out.
        root: folder of the cases; those without an expert mask are left out.
        release: release of the cases.
    """
    pairs = []
    for case in index_cases(root, release, require_label=False, allow_missing=True)[0]:
        path = folder / f"{case.case_id}.nii.gz"
        if case.label is None or not path.is_file():
            continue
        try:
            pairs.append(read_pair(path, case.label, release))
        except DataError:
            continue
    return mixup_note(
        [pair.predicted_labels for pair in pairs],
        [pair.reference_labels for pair in pairs],
        release,
    )
