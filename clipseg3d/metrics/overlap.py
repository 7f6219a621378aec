"""How many voxels two masks share, and the scores that follow from it."""

import math
from dataclasses import dataclass

import numpy as np

from clipseg3d.metrics.mask_pair import MaskPair


@dataclass(frozen=True)
class Overlap:
    """Voxels of a volume by what was predicted and what is true.

    Attributes:
        hits: in both masks.
        false: in the prediction alone.
        missed: in the reference alone.
        background: in neither.
    """

    hits: int
    false: int
    missed: int
    background: int

    @classmethod
    def of(cls, pair: MaskPair) -> "Overlap":
        """Count the voxels of a pair of masks."""
        hits = int(np.count_nonzero(pair.prediction & pair.reference))
        false = int(np.count_nonzero(pair.prediction)) - hits
        missed = int(np.count_nonzero(pair.reference)) - hits
        return cls(hits, false, missed, pair.num_voxels - hits - false - missed)

    @property
    def dice(self) -> float:
        """Twice the shared voxels / those of both masks; NaN where both are empty."""
        return _ratio(2 * self.hits, 2 * self.hits + self.false + self.missed)

    @property
    def sensitivity(self) -> float:
        """Share of the reference that was predicted; NaN where the reference is empty."""
        return _ratio(self.hits, self.hits + self.missed)

    @property
    def specificity(self) -> float:
        """Share of what is no reference that was not predicted; NaN where nothing is left."""
        return _ratio(self.background, self.background + self.false)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
