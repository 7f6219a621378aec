"""Mirrors clipseg3d/prepare/bias_field.py."""

import numpy as np
import pytest
from nibabel.affines import from_matvec
from scipy import ndimage

from clipseg3d.prepare.bias_field import correct_bias

pytest.importorskip("SimpleITK")


def test_most_of_a_known_shading_is_removed_and_tissues_keep_their_contrast():
    shape = (60, 72, 56)
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    brain = (place**2).sum(axis=0) < 0.8
    rng = np.random.default_rng(0)
    folds = ndimage.gaussian_filter(rng.standard_normal(shape), 3) > 0
    tissue = np.where(folds, 300.0, 200.0) * brain
    shading = np.exp(0.4 * place[0] - 0.3 * place[2] ** 2)
    shaded = (tissue * shading * rng.normal(1, 0.02, shape)).astype(np.float32)

    corrected = correct_bias(shaded, brain, from_matvec(np.diag([-2.5, -2.5, 2.5])))

    assert corrected.dtype == np.float32
    assert not corrected[~brain].any()

    def uneven(volume):
        return np.log(volume[brain] / tissue[brain]).std()

    assert uneven(corrected) < 0.25 * uneven(shaded)
    white, grey = (corrected[tissue == value].mean() for value in (300, 200))
    assert white / grey == pytest.approx(1.5, abs=0.08)
