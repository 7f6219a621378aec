"""What a data module would do with its folder, before it does it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DataSurvey:
    """A data module's cases as they are, and what preparing them would write.

    Attributes:
        faults: what is wrong, each line naming a file and a cure; training would refuse it.
        notes: what is unusual, but no fault.
        training: number of cases to train on; 0 where faults leave no folds.
        validation: number of cases to validate on.
        disk: folder -> bytes that preparing the data would write there, about.
    """

    faults: tuple[str, ...]
    notes: tuple[str, ...]
    training: int
    validation: int
    disk: dict[Path, int]
