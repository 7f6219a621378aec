"""A volume and where it lies."""

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Affine: TypeAlias = npt.NDArray[np.float64]
Bool: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume and where it lies.

    Attributes:
        voxels: (x, y, z) float32.
        affine: 4 x 4, from voxels to mm.
    """

    voxels: npt.NDArray[np.float32] = field(repr=False)
    affine: Affine
