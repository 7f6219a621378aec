"""A case that has been read, for a predictor to segment."""

from dataclasses import dataclass, field

from clipseg3d.data.cases import Case
from clipseg3d.data.preprocessing import Preprocessed
from clipseg3d.data.scan_grid import ScanGrid


@dataclass(frozen=True, eq=False)
class ReadCase:
    """What :meth:`clipseg3d.inference.Predictor.read` has read of a case.

    Attributes:
        case: as it was given.
        inputs: of the networks.
        scan_grid: the labels' grid, with the box of it that holds the brain.
        notes: what was changed, missing, unusual or in doubt, a line each.
        grid_of: sequence whose grid it is; None takes the first.
    """

    case: Case
    inputs: Preprocessed = field(repr=False)
    scan_grid: ScanGrid
    notes: tuple[str, ...]
    grid_of: str | None
