"""Properties of release records."""

from pathlib import Path

import numpy as np

from clipseg3d.data.release import BraTSRelease
from clipseg3d.testing.properties import require
from clipseg3d.vocabulary import LABEL


def check_release(release: BraTSRelease, case_id: str) -> None:
    """Check the record of a data set: names of files, labels, regions.

    - File names of a case are parsed to that case and each of its sequences; other names are not.
    - The case belongs to the release and to a patient.
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
        for kind, pattern in {**release.sequences, LABEL: release.label}.items():
            path = Path(pattern.replace("{case}", case_id))
            require(release.parse(path) == (case_id, kind), f"parse: {path} is not {kind}")
            other = path.with_name(f"{path.name}_other")
            require(release.parse(other) is None, "parse: takes any ending")
    require(release.owns(case_id), f"owns: {case_id} is no case of the release")
    require(bool(release.patient(case_id)), f"patient: {case_id} has none")
    require(not release.owns(f"other{case_id}"), "owns: takes any name")
    label = np.array(sorted(release.labels_out.values()), np.uint8)[:, None, None]
    regions = release.to_regions(label)
    again = release.to_regions(release.to_labels(regions))
    require(bool(np.array_equal(regions, again)), "labels do not give their regions back")
