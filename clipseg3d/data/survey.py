"""What a data module finds in its folder, and what it would write, before it is run."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DataSurvey:
    """The cases of a data module, and what preparing them would write.

    Attributes:
        faults: what training would refuse; each line names a file and a cure.
        notes: what is unusual, but not a fault.
        training: number of cases to train on; 0 if faults prevent a split.
        validation: number of cases to validate on.
        disk: folder -> approximate number of bytes that preparing the data would write there.
    """

    faults: tuple[str, ...]
    notes: tuple[str, ...]
    training: int
    validation: int
    disk: dict[Path, int]
