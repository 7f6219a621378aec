"""The atlas: where a brain lies in the grid of BraTS.

It is the ICBM152 2009 average brain that comes with nilearn, so nothing is downloaded. BraTS itself
uses SRI24. The average brain is larger than people's brains are; it is shrunk to their mean size.
"""

from functools import lru_cache

import numpy as np
from nibabel.affines import apply_affine, from_matvec
from scipy import ndimage

from clipseg3d.prepare.volume import Affine, Bool, Volume

SHAPE = (240, 240, 155)
"""Voxels of the grid of BraTS."""
AFFINE: Affine = from_matvec(np.diag([-1.0, -1.0, 1.0]), (0, 239, 0))
"""From its voxels, in LPS order, to mm."""
CENTRE = (119.5, 130.5, 68.0)
"""Voxel in which the middle of the brain's box lies, on average."""
_SIZE = (0.945, 0.945, 0.91)
"""Factors from the size of the average brain to that of people in BraTS."""


def centre_mm() -> tuple[float, float, float]:
    """Return where the middle of the atlas is, in mm."""
    x, y, z = apply_affine(AFFINE, CENTRE).tolist()
    return x, y, z


@lru_cache(maxsize=1)
def load_atlas() -> tuple[Volume, Bool]:
    """Return the average brain and its mask, placed in the space of BraTS; kept in memory.

    Raises:
        ImportError: nilearn is not installed.
    """
    try:
        from nilearn.datasets import load_mni152_brain_mask, load_mni152_template
    except ImportError as error:
        raise ImportError('the atlas needs nilearn: pip install "clipseg3d[prepare]"') from error
    template, mask = load_mni152_template(resolution=1), load_mni152_brain_mask(resolution=1)
    brain = np.asarray(mask.dataobj) > 0
    (box,) = ndimage.find_objects(brain.astype(np.uint8))
    middle = apply_affine(mask.affine, [(side.start + side.stop - 1) / 2 for side in box])
    shrink = np.diag(_SIZE)
    placed = from_matvec(shrink, np.array(centre_mm()) - shrink @ middle) @ template.affine
    return Volume(np.asarray(template.dataobj, np.float32), placed), brain
