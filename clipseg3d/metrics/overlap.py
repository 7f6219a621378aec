"""True and false positives and negatives of two masks, and the scores computed from them."""

import math
from dataclasses import dataclass

import numpy as np

from clipseg3d.metrics.mask_pair import MaskPair


@dataclass(frozen=True)
class Overlap:
    """Number of voxels of a volume that are in both masks, in one of them, or in neither.

    Attributes:
        tp: true positives, in both masks.
        fp: false positives, only in the prediction.
        fn: false negatives, only in the reference.
        tn: true negatives, in neither mask.
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
        """2 TP / (2 TP + FP + FN); NaN where both masks are empty.

        For 1 in that case, see :func:`clipseg3d.metrics.dice.dice_empty_is_one`.
        """
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def sensitivity(self) -> float:
        """TP / (TP + FN); NaN where the reference is empty."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float:
        """TN / (TN + FP); NaN where the reference fills the volume."""
        return _ratio(self.tn, self.tn + self.fp)


def _ratio(part: int, total: int) -> float:
    return part / total if total else math.nan
