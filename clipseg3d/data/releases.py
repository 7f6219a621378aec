"""One frozen record for each BraTS release: file names, labels, regions."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from clipseg3d.vocabulary import LABEL, REGIONS, SEQUENCES


@dataclass(frozen=True)
class BraTSRelease:
    """How one BraTS data set names its files and numbers its labels.

    Attributes:
        name: short name, as stored in checkpoints.
        suffixes: sequence -> end of its file names, after case name and separator; with a
            ``manifest``, the name of the sequence in it.
        regions: region -> labels that belong to it, in ``REGIONS`` order.
        labels_out: region -> label to write; regions are written in this order, later ones over
            earlier ones.
        case_pattern: regular expression of an official case name; its group ``patient`` is the
            name of the patient, whose cases a split keeps together. A case whose name does not
            match is treated as a patient of its own.
        label_suffix: as ``suffixes``, for the expert mask.
        separator: between case name and suffix.
        outside: labels that an expert mask may hold and that belong to no region.
        own_pattern: regular expression of the case names that only this release has, where other
            releases name their files alike; None takes ``case_pattern``.
        misnamed_labels: file name, without extension, of an expert mask that was published under
            a wrong name -> the case that it belongs to.
        manifest: name of the file that lists 4D images and expert masks, as in the Medical
            Segmentation Decathlon; None where each sequence has its own file.
    """

    name: str
    suffixes: Mapping[str, str]
    regions: Mapping[str, tuple[int, ...]]
    labels_out: Mapping[str, int]
    case_pattern: str
    label_suffix: str = "seg"
    separator: str = "_"
    outside: tuple[int, ...] = ()
    own_pattern: str | None = None
    misnamed_labels: Mapping[str, str] = field(default_factory=dict)
    manifest: str | None = None

    @property
    def labels(self) -> tuple[int, ...]:
        """Every label that an expert mask may hold, with the background."""
        return tuple(sorted({0, *self.outside}.union(*self.regions.values())))

    def parse(self, stem: str) -> tuple[str, str] | None:
        """Split a file name without extension into the case and the sequence, or ``LABEL``.

        Returns None for a name of another form.
        """
        if stem in self.misnamed_labels:
            return self.misnamed_labels[stem], LABEL
        kinds = {suffix: sequence for sequence, suffix in self.suffixes.items()}
        kinds[self.label_suffix] = LABEL
        case_id, _, suffix = stem.rpartition(self.separator)
        return (case_id, kinds[suffix]) if case_id and suffix in kinds else None

    def owns(self, case_id: str) -> bool:
        """Return whether this is an official case name of this release."""
        return re.fullmatch(self.own_pattern or self.case_pattern, case_id) is not None

    def patient(self, case_id: str) -> str:
        """Return the name of the patient of a case."""
        match = re.fullmatch(self.case_pattern, case_id)
        return match["patient"] if match else case_id

    def to_regions(self, label: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
        """Turn a label map (x, y, z) into region masks (3, x, y, z), which overlap."""
        return np.stack([np.isin(label, self.regions[region]) for region in REGIONS])

    def to_labels(self, regions: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
        """Turn region masks (3, x, y, z) into a label map (x, y, z) of this release.

        For nested masks, :meth:`to_regions` returns the same masks again; where masks are not
        nested, the inner region wins. Three nested regions do not distinguish all labels of all
        releases: a resection cavity (``outside``) becomes background, and every non-enhancing
        part of the core gets the single label in ``labels_out``. So cysts of BraTS-PEDs 2024
        (label 3) become non-enhancing tumour (label 2).
        """
        label = np.zeros(regions.shape[1:], dtype=np.uint8)
        for region, value in self.labels_out.items():
            label[regions[REGIONS.index(region)]] = value
        return label


def _until_2021(
    name: str, case_pattern: str, misnamed_labels: Mapping[str, str] | None = None
) -> BraTSRelease:
    """Return a release with the labels used from 2017 to 2021: 1 core, 2 oedema, 4 enhancing."""
    return BraTSRelease(
        name=name,
        suffixes={sequence: sequence for sequence in SEQUENCES},
        regions={"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)},
        labels_out={"WT": 2, "TC": 1, "ET": 4},
        case_pattern=case_pattern,
        misnamed_labels=misnamed_labels or {},
    )


def _since_2023(
    name: str, kind: str, *, outside: tuple[int, ...] = (), timepoints: str | None = None
) -> BraTSRelease:
    """Return a release with the labels used since 2023: 1 core, 2 oedema, 3 enhancing.

    Args:
        name: name of the release.
        kind: kind of tumour in case names such as ``BraTS-GLI-00000-000``, before the numbers of
            patient and time point.
        outside: labels that belong to no region.
        timepoints: regular expression of the time points that only this release has.
    """
    patient = rf"(?P<patient>BraTS-{kind}-\d+)"
    return BraTSRelease(
        name=name,
        suffixes={"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f"},
        separator="-",
        regions={"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)},
        labels_out={"WT": 2, "TC": 1, "ET": 3},
        outside=outside,
        case_pattern=rf"{patient}-\d+",
        own_pattern=None if timepoints is None else rf"{patient}-{timepoints}",
    )


# In 2018 and 2019 the last number counts the scans of a patient; since 2020 each case has a number.
BRATS_2018 = _until_2021("brats2018", r"(?P<patient>Brats18_.+)_\d+")
BRATS_2019 = _until_2021("brats2019", r"(?P<patient>BraTS19_.+)_\d+")
BRATS_2020 = _until_2021(
    "brats2020",
    r"(?P<patient>BraTS20_(Training|Validation)_\d+)",
    {"W39_1998.09.19_Segm": "BraTS20_Training_355"},
)
BRATS_2021 = _until_2021("brats2021", r"(?P<patient>BraTS2021_\d+)")
# Scans after treatment count their time points from 100; label 4 is the resection cavity.
BRATS_2023_GLI = _since_2023("brats2023_gli", "GLI", timepoints=r"0\d\d")
BRATS_2024_GLI = _since_2023("brats2024_gli", "GLI", timepoints=r"1\d\d", outside=(4,))
BRATS_2023_SSA = _since_2023("brats2023_ssa", "SSA")
BRATS_2023_MEN = _since_2023("brats2023_men", "MEN")
# Label 4, the resection cavity, was added in 2025; the other labels and all names did not change.
BRATS_2023_MET = _since_2023("brats2023_met", "MET", outside=(4,))
BRATS_2023_PED = _since_2023("brats2023_ped", "PED")
# Names as in 2023, other labels: 1 enhancing, 2 non-enhancing, 3 cyst, 4 oedema.
BRATS_2024_PED = replace(
    BRATS_2023_PED,
    name="brats2024_ped",
    regions={"WT": (1, 2, 3, 4), "TC": (1, 2, 3), "ET": (1,)},
    labels_out={"WT": 4, "TC": 2, "ET": 1},
)
# Cases of BraTS 2016 and 2017, renumbered, so that scans of one patient cannot be recognised.
MSD_TASK01 = BraTSRelease(
    name="msd_task01",
    suffixes={"t1": "T1w", "t1ce": "t1gd", "t2": "T2w", "flair": "FLAIR"},
    regions={"WT": (1, 2, 3), "TC": (2, 3), "ET": (3,)},
    labels_out={"WT": 1, "TC": 2, "ET": 3},
    case_pattern=r"(?P<patient>BRATS_\d+)",
    manifest="dataset.json",
)
PHANTOM = _until_2021("phantom", r"(?P<patient>Phantom_\d+)")

RELEASES: Mapping[str, BraTSRelease] = {
    release.name: release
    for release in (
        BRATS_2018,
        BRATS_2019,
        BRATS_2020,
        BRATS_2021,
        BRATS_2023_GLI,
        BRATS_2024_GLI,
        BRATS_2023_PED,
        BRATS_2024_PED,
        BRATS_2023_SSA,
        BRATS_2023_MEN,
        BRATS_2023_MET,
        MSD_TASK01,
        PHANTOM,
    )
}


def get_release(name: str) -> BraTSRelease:
    """Return the release of that name.

    Raises:
        ValueError: there is no such release; the message lists all releases.

    Example:
        >>> get_release("brats2021").labels
        (0, 1, 2, 4)
    """
    if name not in RELEASES:
        raise ValueError(f"unknown release {name!r}: choose one of {', '.join(RELEASES)}")
    return RELEASES[name]
