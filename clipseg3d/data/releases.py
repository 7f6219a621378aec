"""One frozen record for each BraTS release; releases of your own are read from YAML files."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from clipseg3d.data.release import BraTSRelease
from clipseg3d.ranges import UnknownNameError
from clipseg3d.text_files import read_yaml
from clipseg3d.vocabulary import SEQUENCES

if TYPE_CHECKING:
    GivenRelease: TypeAlias = BraTSRelease | str | dict[str, Any]
else:
    # Command lines take their options from types, and would offer every field of a release.
    GivenRelease = str | dict[str, Any]


def _until_2021(
    name: str, case_pattern: str, misnamed_labels: Mapping[str, str] | None = None
) -> BraTSRelease:
    """Return a release with the labels used from 2017 to 2021: 1 core, 2 oedema, 4 enhancing."""
    return BraTSRelease(
        name=name,
        sequences={sequence: f"{{case}}_{sequence}" for sequence in SEQUENCES},
        regions={"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)},
        labels_out={"WT": 2, "TC": 1, "ET": 4},
        case_pattern=case_pattern,
        misnamed_labels=misnamed_labels or {},
    )


def _since_2023(
    name: str, kind: str, *, cavity: bool = False, timepoints: str | None = None
) -> BraTSRelease:
    """Return a release with the labels used since 2023: 1 core, 2 oedema, 3 enhancing.

    Args:
        name: name of the release.
        kind: kind of tumour in case names such as ``BraTS-GLI-00000-000``, before the numbers of
            patient and time point.
        cavity: whether label 4 is the resection cavity.
        timepoints: regular expression of the time points that only this release has.
    """
    patient = rf"(?P<patient>BraTS-{kind}-\d+)"
    return BraTSRelease(
        name=name,
        sequences={
            "t1": "{case}-t1n",
            "t1ce": "{case}-t1c",
            "t2": "{case}-t2w",
            "flair": "{case}-t2f",
        },
        label="{case}-seg",
        regions={"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,), **({"RC": (4,)} if cavity else {})},
        labels_out={"WT": 2, "TC": 1, "ET": 3, **({"RC": 4} if cavity else {})},
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
BRATS_2024_GLI = _since_2023("brats2024_gli", "GLI", timepoints=r"1\d\d", cavity=True)
BRATS_2025_GLI = _since_2023("brats2025_gli", "GLI", cavity=True)  # before and after treatment
BRATS_2023_SSA = _since_2023("brats2023_ssa", "SSA")
BRATS_2023_MEN = _since_2023("brats2023_men", "MEN")
BRATS_2023_MET = _since_2023("brats2023_met", "MET")
# Label 4, the resection cavity, was added; the other labels and all names did not change.
BRATS_2025_MET = _since_2023("brats2025_met", "MET", cavity=True)
BRATS_2023_PED = _since_2023("brats2023_ped", "PED")
# Names as in 2023, other labels: 1 enhancing, 2 non-enhancing, 3 cyst, 4 oedema.
BRATS_2024_PED = replace(
    BRATS_2023_PED,
    name="brats2024_ped",
    regions={"WT": (1, 2, 3, 4), "TC": (1, 2, 3), "ET": (1,), "CC": (3,)},
    labels_out={"WT": 4, "TC": 2, "ET": 1, "CC": 3},
)
# Before radiotherapy: one sequence on its own grid, defaced, with skull; one label, the target.
BRATS_2024_MEN_RT = BraTSRelease(
    name="brats2024_men_rt",
    sequences={"t1ce": "{case}_t1c"},
    label="{case}_gtv",
    regions={"GTV": (1,)},
    case_pattern=r"(?P<patient>BraTS-MEN-RT-\d+)-\d+",
    skull_stripped=False,
)
# Cases of BraTS 2016 and 2017, renumbered, so that scans of one patient cannot be recognised.
MSD_TASK01 = BraTSRelease(
    name="msd_task01",
    sequences={"t1": "T1w", "t1ce": "t1gd", "t2": "T2w", "flair": "FLAIR"},
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
        BRATS_2025_GLI,
        BRATS_2023_PED,
        BRATS_2024_PED,
        BRATS_2023_SSA,
        BRATS_2023_MEN,
        BRATS_2024_MEN_RT,
        BRATS_2023_MET,
        BRATS_2025_MET,
        MSD_TASK01,
        PHANTOM,
    )
}


def get_release(source: str | Path | Mapping[str, Any] | BraTSRelease) -> BraTSRelease:
    """Return a release by its name, from a YAML file, or from its values.

    Args:
        source: one of ``RELEASES``; or a YAML file with the attributes of
            :class:`clipseg3d.data.release.BraTSRelease`; or these attributes; or a release.

    Raises:
        FileNotFoundError: there is no such file.
        UnknownNameError: there is no such release; the message lists all.
        ValueError: the file or the values are not those of a release.

    Example:
        >>> get_release("brats2021").labels
        (0, 1, 2, 4)
    """
    if isinstance(source, BraTSRelease):
        return source
    if isinstance(source, Mapping):
        return BraTSRelease.from_values(source, source="release")
    if str(source) in RELEASES:
        return RELEASES[str(source)]
    if Path(source).suffix in (".yaml", ".yml"):
        values = read_yaml(Path(source))
        if not isinstance(values, Mapping):
            raise ValueError(
                f"{source}: not a release (no names with values); BraTSRelease says what it needs"
            )
        if values.get("name") in RELEASES:
            raise ValueError(f"{source}: {values['name']} is taken; choose another name")
        return BraTSRelease.from_values(values, source=str(source))
    raise UnknownNameError(
        f"unknown release {str(source)!r}: choose one of {', '.join(RELEASES)}, or give the YAML "
        "file of your own"
    )


def release_values(release: BraTSRelease) -> str | dict[str, Any]:
    """Return the name of a published release, or the values of another, for :func:`get_release`."""
    return release.name if RELEASES.get(release.name) == release else release.to_values()
