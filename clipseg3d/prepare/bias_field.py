"""N4: scans without the shading that coils leave in them."""

import numpy as np
import numpy.typing as npt

from clipseg3d.data.resampling import carry
from clipseg3d.prepare.extra import import_extra
from clipseg3d.prepare.volume import Affine, Bool

_SHRINK = 4
"""Voxels of the grid on which the field is estimated, along each axis; it is smooth."""
_ITERATIONS = (50, 50, 30)


def correct_bias(
    volume: npt.NDArray[np.float32], brain: Bool, affine: Affine
) -> npt.NDArray[np.float32]:
    """Return a brain divided by its bias field, by N4 (Tustison et al., IEEE TMI, 2010).

    Args:
        volume: (x, y, z), values above 0 in the brain.
        brain: its mask.
        affine: 4 x 4, from voxels to mm.

    Raises:
        ImportError: SimpleITK is not installed.
    """
    sitk = import_extra("SimpleITK", needed_for="N4")
    x, y, z = (-(-side // _SHRINK) for side in volume.shape)
    steps = np.diag([float(_SHRINK)] * 3 + [1.0])
    steps[:3, 3] = (_SHRINK - 1) / 2
    coarse = affine @ steps
    share = carry(brain.astype(np.float32), affine, (x, y, z), coarse)
    inside = share > 0.5
    mean = np.divide(
        carry(volume, affine, (x, y, z), coarse), share, out=np.zeros_like(share), where=inside
    )
    image, mask = (
        sitk.GetImageFromArray(np.ascontiguousarray(array.T))
        for array in (mean, inside.astype(np.uint8))
    )
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(_ITERATIONS)
    n4.Execute(image, mask)
    field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).T.astype(np.float32)
    field -= field[inside].mean()
    field = carry(field, coarse, volume.shape, affine)
    corrected: npt.NDArray[np.float32] = np.where(brain, volume * np.exp(-field), 0)
    return corrected
