"""One frozen record per BraTS release: file names, label values, regions."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

SEQUENCES = ("t1", "t1ce", "t2", "flair")
REGIONS = ("WT", "TC", "ET")


@dataclass(frozen=True)
class BraTSRelease:
    """How one BraTS data set names its files and numbers its labels.

    Attributes:
        name: short name, as stored in checkpoints.
        suffixes: sequence -> what follows the case name and an underscore in its file name.
        label_suffix: the same for the expert mask.
        regions: region -> label values that belong to it, in ``REGIONS`` order.
        labels_out: region -> label value to write, painted in this order, later over earlier.
        case_pattern: regular expression of an official case name; its group ``patient`` is what a
            split must not separate. A name that does not match is a patient of its own.
        misnamed_labels: file names (without extension) of masks published under a wrong name ->
            the case they belong to.
    """

    name: str
    suffixes: Mapping[str, str]
    label_suffix: str
    regions: Mapping[str, tuple[int, ...]]
    labels_out: Mapping[str, int]
    case_pattern: str
    misnamed_labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[int, ...]:
        """Every label value a mask may hold, background included."""
        return tuple(sorted({0}.union(*self.regions.values())))

    def patient(self, case_id: str) -> str:
        """Return the patient that a case belongs to."""
        match = re.fullmatch(self.case_pattern, case_id)
        return match["patient"] if match else case_id

    def to_regions(self, label: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
        """Turn a label map (x, y, z) into overlapping region masks (3, x, y, z)."""
        return np.stack([np.isin(label, self.regions[region]) for region in REGIONS])

    def to_labels(self, regions: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
        """Turn region masks (3, x, y, z) into a label map (x, y, z) of this release.

        The inverse of :meth:`to_regions` for nested masks. Where masks are not nested, the inner
        region wins.
        """
        label = np.zeros(regions.shape[1:], dtype=np.uint8)
        for region, value in self.labels_out.items():
            label[regions[REGIONS.index(region)]] = value
        return label


def _glioma_until_2021(
    name: str, case_pattern: str, misnamed_labels: Mapping[str, str] | None = None
) -> BraTSRelease:
    """Return a release with the labels used from 2017 to 2021: 1 core, 2 oedema, 4 enhancing."""
    return BraTSRelease(
        name=name,
        suffixes={sequence: sequence for sequence in SEQUENCES},
        label_suffix="seg",
        regions={"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)},
        labels_out={"WT": 2, "TC": 1, "ET": 4},
        case_pattern=case_pattern,
        misnamed_labels=misnamed_labels or {},
    )


# In 2018 and 2019 the trailing number counts the scans of a patient; from 2020 names are numbers.
BRATS_2018 = _glioma_until_2021("brats2018", r"(?P<patient>Brats18_.+)_\d+")
BRATS_2019 = _glioma_until_2021("brats2019", r"(?P<patient>BraTS19_.+)_\d+")
BRATS_2020 = _glioma_until_2021(
    "brats2020",
    r"(?P<patient>BraTS20_(Training|Validation)_\d+)",
    {"W39_1998.09.19_Segm": "BraTS20_Training_355"},
)
BRATS_2021 = _glioma_until_2021("brats2021", r"(?P<patient>BraTS2021_\d+)")
PHANTOM = _glioma_until_2021("phantom", r"(?P<patient>Phantom_\d+)")

RELEASES: Mapping[str, BraTSRelease] = {
    release.name: release for release in (BRATS_2018, BRATS_2019, BRATS_2020, BRATS_2021, PHANTOM)
}


def get_release(name: str) -> BraTSRelease:
    """Return the release of that name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in RELEASES:
        raise ValueError(f"unknown release {name!r}: choose one of {', '.join(RELEASES)}")
    return RELEASES[name]
