"""Mirrors clipseg3d/metrics/hausdorff.py; MONAI, and the other definitions spelt out, check it."""

import math
import warnings

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance
from monai.metrics.utils import get_edge_surface_distance
from scipy.ndimage import binary_erosion, distance_transform_edt

from clipseg3d.metrics.hausdorff import (
    HD95_DEFINITIONS,
    HD95_METHODS,
    _percentile,
    hd95,
    hd95_of_pair,
)
from clipseg3d.metrics.mask_pair import MaskPair
from clipseg3d.metrics.surfaces import border_voxels, distances, surface_elements

GOLDEN = {
    "surface": ["2.000", "44.011", "52.962"],
    "monai": ["2.000", "44.181", "53.442"],
    "medpy": ["2.000", "2.000", "52.481"],
}
EMPTY = np.zeros((5, 6, 7), bool)


def by_monai(prediction, reference, spacing_mm):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return compute_hausdorff_distance(
            torch.from_numpy(prediction)[None, None],
            torch.from_numpy(reference)[None, None],
            include_background=True,
            percentile=95,
            spacing=spacing_mm,
        ).item()


def by_distance_transforms(prediction, reference, spacing_mm):
    """The 95th percentile of all border distances of both directions, as medpy takes it."""
    borders = [mask & ~binary_erosion(mask) for mask in (prediction, reference)]
    if not prediction.any() or not reference.any():
        return math.nan if prediction.any() == reference.any() else math.inf
    maps = [distance_transform_edt(~border, sampling=spacing_mm) for border in borders]
    return np.percentile(np.concatenate([maps[1][borders[0]], maps[0][borders[1]]]), 95)


def by_surface_elements(prediction, reference, spacing_mm):
    """DeepMind's definition, on the surface elements and areas that MONAI finds."""
    if not prediction.any() or not reference.any():
        return math.nan if prediction.any() == reference.any() else math.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        edges, lengths, areas = get_edge_surface_distance(
            torch.from_numpy(np.pad(prediction, 1)),
            torch.from_numpy(np.pad(reference, 1)),
            spacing=spacing_mm,
            use_subvoxels=True,
            symmetric=True,
        )
    result = []
    for edge, length, area in zip(edges, lengths, areas, strict=True):
        pairs = sorted(zip(length.tolist(), area[edge].double().tolist(), strict=True))
        sums = np.cumsum([area for _, area in pairs])
        within = sums / sums[-1] >= 0.95 - 1e-9
        result.append(pairs[int(within.argmax())][0])
    return max(result)


@pytest.mark.parametrize("method", HD95_METHODS)
def test_the_golden_case(golden, method):
    prediction, reference = golden[False]
    result = [hd95(p, r, method=method) for p, r in zip(prediction, reference, strict=True)]
    assert [f"{distance:.3f}" for distance in result] == GOLDEN[method]


def test_random_pairs_are_equal_to_monai(some_pairs):
    result = np.array([hd95(p, r, spacing_mm=mm, method="monai") for p, r, mm in some_pairs])
    expected = np.array([by_monai(*pair) for pair in some_pairs])
    is_known = np.isfinite(result)
    np.testing.assert_allclose(result[is_known], expected[is_known], rtol=1e-6)
    assert is_known.sum() >= 66
    isotropic = is_known & [mm == (1.0, 1.0, 1.0) for _, _, mm in some_pairs]
    assert isotropic.sum() >= 22
    np.testing.assert_array_equal(result[isotropic], expected[isotropic])
    assert np.isnan(expected[~is_known]).all()  # where a mask is empty, MONAI knows of no distance


@pytest.mark.parametrize(
    ("method", "peer"), [("medpy", by_distance_transforms), ("surface", by_surface_elements)]
)
def test_random_pairs_are_equal_to_what_the_definition_says(some_pairs, method, peer):
    result = [hd95(p, r, spacing_mm=mm, method=method) for p, r, mm in some_pairs]
    np.testing.assert_allclose(result, [peer(*pair) for pair in some_pairs], rtol=1e-6)


@pytest.mark.parametrize("method", ["surface", "monai"])
def test_percentiles_are_those_of_all_distances(random_pairs, method):
    mm = (1.0, 1.0, 2.0)  # areas are cached for each voxel size
    for prediction, reference, _ in random_pairs:
        if not prediction.any() or not reference.any():
            continue
        pair = MaskPair.cut(prediction, reference, spacing_mm=mm)
        masks = (pair.prediction, pair.reference)
        if method == "surface":
            surfaces = [surface_elements(mask, mm) for mask in masks]
        else:
            surfaces = [border_voxels(mask) for mask in masks]
        directed = [
            _percentile(distances(one, two, mm), one.areas if method == "surface" else None)
            for one, two in (surfaces, surfaces[::-1])
        ]
        assert hd95_of_pair(pair, method) == pytest.approx(max(directed), rel=1e-6)


@pytest.mark.parametrize("method", HD95_METHODS)
def test_empty_masks_have_no_distance(method):
    voxel = EMPTY.copy()
    voxel[1, 2, 3] = True
    assert math.isnan(hd95(EMPTY, EMPTY, method=method))
    assert hd95(voxel, EMPTY, method=method) == math.inf
    assert hd95(EMPTY, voxel, method=method) == math.inf
    assert hd95(voxel, voxel, method=method) == 0


@pytest.mark.parametrize("method", HD95_METHODS)
def test_two_voxels_by_hand(method):
    one, two = EMPTY.copy(), EMPTY.copy()
    one[0, 1, 2], two[4, 4, 2] = True, True
    assert hd95(one, two, method=method) == 5
    assert hd95(one, two, spacing_mm=(3, 3, 1), method=method) == 15
    assert hd95(one, two, spacing_mm=(0.25, 8, 1), method=method) == pytest.approx(
        math.hypot(1, 24)
    )


@pytest.mark.parametrize("method", HD95_METHODS)
def test_it_is_symmetric_and_turns_with_the_volume(random_pairs, method):
    for prediction, reference, mm in random_pairs[:24]:
        one = hd95(prediction, reference, spacing_mm=mm, method=method)
        two = hd95(
            reference.transpose(2, 0, 1)[:, ::-1],
            prediction.transpose(2, 0, 1)[:, ::-1],
            spacing_mm=(mm[2], mm[0], mm[1]),
            method=method,
        )
        assert two == pytest.approx(one, rel=1e-6, nan_ok=True)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"'mean': choose one of surface, medpy, monai"):
        hd95(EMPTY, EMPTY, method="mean")


def test_every_method_is_described():
    assert set(HD95_DEFINITIONS) == set(HD95_METHODS)
