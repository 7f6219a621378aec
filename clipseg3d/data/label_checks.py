"""Checks of the values in a label map: whole numbers that are labels of a release.

The way from labels to region masks and back are two methods of a release:
:meth:`~clipseg3d.data.releases.BraTSRelease.to_regions` and
:meth:`~clipseg3d.data.releases.BraTSRelease.to_labels`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from clipseg3d.data.release import BraTSRelease
from clipseg3d.data.releases import RELEASES
from clipseg3d.formatting import join_numbers

ROUNDING = 1e-3
"""How far a label that is stored as a float may be from a whole number."""


class LabelValues(NamedTuple):
    """The values of a label map, compared with the labels of a release.

    Attributes:
        fractions: values that are not whole numbers.
        unknown: whole numbers that are not labels of the release; empty if there are fractions.
        other_releases: names of the releases that have all values as labels; empty if there are
            fractions.
    """

    fractions: npt.NDArray[np.floating]
    unknown: npt.NDArray[np.floating]
    other_releases: list[str]


def compare_values(
    label: npt.NDArray[Any], release: BraTSRelease, *, rounding: float = ROUNDING
) -> LabelValues:
    """Compare the values of a label map with the labels of a release.

    Args:
        label: (x, y, z), of any real number type.
        release: whose labels are expected.
        rounding: how far a value may be from a whole number.
    """
    flat = label.ravel(order="K")
    values = np.unique(flat[flat != 0])  # sorting all voxels would take long
    fractions = values[np.abs(values - np.rint(values)) > rounding]
    if len(fractions):
        return LabelValues(fractions, fractions[:0], [])
    values = np.unique(np.rint(values))
    unknown = values[~np.isin(values, release.labels)]
    return LabelValues(fractions, unknown, releases_with(values.tolist()))


def releases_with(values: Iterable[float]) -> list[str]:
    """Return the names of the releases that have all of these values as labels.

    Example:
        >>> "brats2024_gli" in releases_with([1, 2, 3, 4]), "brats2020" in releases_with([3])
        (True, False)
    """
    expected = set(values)
    return [name for name, release in RELEASES.items() if expected <= set(release.labels)]


def label_faults(path: Path, label: npt.NDArray[Any], release: BraTSRelease) -> list[str]:
    """Return what is wrong with the values of a label map, one line each.

    Args:
        path: its file, which each fault names.
        label: (x, y, z), of any real number type.
        release: whose labels are expected.
    """
    fractions, unknown, other_releases = compare_values(label, release)
    if len(fractions):
        return [
            f"{path}: holds {join_numbers(fractions, at_most=5)}, no whole number; threshold "
            "probabilities, and resample label maps by nearest neighbour"
        ]
    if not len(unknown):
        return []
    hint = f"; these are labels of {' or '.join(other_releases)}" if other_releases else ""
    return [
        f"{path}: holds label {join_numbers(unknown, at_most=5)}, but {release.name} has "
        f"{join_numbers(release.labels)}; name the release that the case is from{hint}"
    ]


def round_labels(label: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return a label map without faults as whole numbers."""
    whole = label if label.dtype.kind in "iu" else np.rint(label)
    rounded: npt.NDArray[np.uint8] = whole.astype(np.uint8)
    return rounded
