"""The golden case, and random pairs of masks, shared by the tests of clipseg3d/metrics."""

import numpy as np
import pytest

from clipseg3d.data.releases import BRATS_2023_GLI

KINDS = ("blobs", "shifted", "one voxel", "touching", "many lesions", "noise", "empty", "far")


def golden_labels(false_positive=False):
    """Return prediction and reference (96, 96, 80) in the labels of 2023."""
    reference = np.zeros((96, 96, 80), np.uint8)
    prediction = reference.copy()
    for (start, stop), label in (((20, 50), 2), ((26, 44), 1), ((30, 40), 3)):
        cube = slice(start, stop)
        reference[cube, cube, cube] = label
        prediction[start + 2 : stop + 2, cube, cube] = label
    reference[70:76, 70:76, 60:66] = 3
    if false_positive:
        prediction[5:10, 80:85, 5:10] = 3
    return prediction, reference


def draw_pair(seed):
    """Return prediction, reference and voxel size of a random pair; kinds take turns."""
    rng = np.random.default_rng(seed)
    kind = KINDS[seed % len(KINDS)]
    shape = tuple(rng.permutation([13, 17, 22]))
    spacing = (1.0, 1.0, 1.0) if rng.random() < 0.5 else tuple(rng.uniform(0.4, 3, 3).round(2))
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)

    def blob(low=2.0, high=7.0):
        centre, radii = rng.uniform(0, shape), rng.uniform(low, high, 3)
        return (((grid - centre) / radii) ** 2).sum(axis=-1) < 1

    reference = blob()
    if kind == "blobs":
        prediction = blob()
    elif kind == "shifted":
        prediction = np.roll(reference, tuple(rng.integers(-2, 3, 3)), axis=(0, 1, 2))
    elif kind == "one voxel":
        prediction = np.zeros(shape, bool)
        prediction[tuple(rng.integers(0, shape))] = True
    elif kind == "touching":
        reference[0], prediction = True, blob()
        prediction[-1], prediction[:, :, -1] = True, True
    elif kind == "many lesions":
        reference, prediction = (
            np.any([blob(0.6, 2.0) for _ in range(7)], axis=0) for _ in range(2)
        )
    elif kind == "noise":
        prediction = reference ^ (rng.random(shape) < 0.05)
    elif kind == "empty":
        prediction = np.zeros(shape, bool)
        if rng.random() < 0.3:
            reference = prediction.copy()
    else:
        reference, prediction = blob(1.0, 2.0), np.zeros(shape, bool)
        prediction[:2, :3, :2] = True
        prediction[-1, -1, -1] = True
    if rng.random() < 0.5:
        prediction, reference = reference, prediction
    return prediction, reference, spacing


@pytest.fixture(scope="session")
def golden():
    """Region masks of the golden case: (false_positive) -> prediction, reference, (3, x, y, z)."""
    return {
        extra: tuple(map(BRATS_2023_GLI.to_regions, golden_labels(extra)))
        for extra in (False, True)
    }


@pytest.fixture(scope="session")
def random_pairs():
    """264 pairs with their voxel sizes, over 200 of them with two masks that are not empty."""
    return [draw_pair(seed) for seed in range(264)]


@pytest.fixture(scope="session")
def some_pairs(random_pairs):
    """A third of them, of every kind, for comparisons that take long."""
    return random_pairs[::3]
