"""Properties of release records."""

import re

import numpy as np

from clipseg3d.data.releases import BraTSRelease
from clipseg3d.testing.properties import require
from clipseg3d.vocabulary import LABEL


def check_release(release: BraTSRelease, case_id: str) -> None:
    """Check the record of a data set: names of files, labels, regions.

    - File names of a case are parsed to that case and each of its sequences; other names are not.
    - The case belongs to the release and to a patient.
    - Every region has labels, no region holds the background, and labels to write are labels that a
      mask may hold.
    - Regions that are written as labels come back as the same regions.

    Args:
        release: the record.
        case_id: official name of one of its cases.

    Raises:
        AssertionError: a property does not hold; the message says which.

    Example:
        >>> from clipseg3d.data import get_release
        >>> check_release(get_release("brats2020"), "BraTS20_Training_001")
    """
    if release.manifest is None:
        suffixes = {**release.suffixes, LABEL: release.label_suffix}
        require(
            len(set(suffixes.values())) == len(suffixes), "suffixes: two files of a case share one"
        )
        for kind, suffix in suffixes.items():
            stem = f"{case_id}{release.separator}{suffix}"
            require(release.parse(stem) == (case_id, kind), f"parse: {stem} is not {kind}")
        require(
            release.parse(f"{case_id}{release.separator}other") is None, "parse: takes any suffix"
        )
    require(
        "patient" in re.compile(release.case_pattern).groupindex,
        "case_pattern: has no group called patient",
    )
    require(release.owns(case_id), f"owns: {case_id} is no case of the release")
    require(bool(release.patient(case_id)), f"patient: {case_id} has none")
    require(not release.owns(f"other{case_id}"), "owns: takes any name")
    for region, labels in release.regions.items():
        require(bool(labels) and 0 not in labels, f"regions: {region} has the labels {labels}")
    require(
        list(release.labels_out) == list(release.regions),
        "labels_out: other regions, or another order, than regions",
    )
    require(set(release.labels_out.values()) <= set(release.labels), "labels_out: unknown label")
    label = np.array(sorted(release.labels_out.values()), np.uint8)[:, None, None]
    regions = release.to_regions(label)
    again = release.to_regions(release.to_labels(regions))
    require(bool(np.array_equal(regions, again)), "labels do not give their regions back")
