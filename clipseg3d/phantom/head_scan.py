"""One sequence of a simulated head."""

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Affine: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class HeadScan:
    """One sequence as the scanner gives it.

    Attributes:
        voxels: (x, y, z) int16, noise in the air around the head included.
        affine: 4 x 4, from voxels to mm.
        motion: 4 x 4 rigid, from mm of the phantom to mm of this scan: how the patient lay.
    """

    voxels: NDArray[np.int16] = field(repr=False)
    affine: Affine
    motion: Affine
