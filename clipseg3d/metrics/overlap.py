"""True and false positives and negatives of two masks, and the scores that follow from them."""

import math
from dataclasses import dataclass

import numpy as np

from clipseg3d.metrics.mask_pair import MaskPair


@dataclass(frozen=True)
class Overlap:
    """Voxels of a volume by what was predicted and what is true.

    Attributes:
        tp: true positives, in both masks.
        fp: false positives, in the prediction alone.
        fn: false negatives, in the reference alone.
        tn: true negatives, in neither.
    """

    tp: int
    fp: int
    fn: int
    tn: int

    @classmethod
    def of(cls, pair: MaskPair) -> "Overlap":
        """Count the voxels of a pair of masks."""
        tp = int(np.count_nonzero(pair.prediction & pair.reference))
        fp = int(np.count_nonzero(pair.prediction)) - tp
        fn = int(np.count_nonzero(pair.reference)) - tp
        return cls(tp, fp, fn, pair.num_voxels - tp - fp - fn)

    @property
    def dice_empty_is_nan(self) -> float:
        """Twice the shared voxels / those of both masks; NaN where both are empty."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def sensitivity(self) -> float:
        """Share of the reference that was predicted; NaN where the reference is empty."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float:
        """Share of what is no reference that was not predicted; NaN where nothing is left."""
        return _ratio(self.tn, self.tn + self.fp)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
