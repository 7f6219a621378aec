"""Mirrors clipseg3d/inference/prompt_answer.py."""

import nibabel as nib
import numpy as np
import pytest

from clipseg3d.data.scan_grid import ScanGrid
from clipseg3d.inference.prompt_answer import PromptAnswer, prompt_file

AFFINE = np.array([[0, 2.0, 0, 5], [1.5, 0, 0, 6], [0, 0, 4.0, 7], [0, 0, 0, 1]])
"""From y, x, z of the scan to mm of a patient; neither LPS nor RAS."""


@pytest.fixture
def grid():
    return ScanGrid(shape=(10, 12, 8), affine=AFFINE, box=((2, 9), (1, 8), (3, 8)))


def answer(grid, part, corner=(3, 1, 2)):
    return PromptAnswer("the rim", 0.75, part, corner, grid)


def test_the_mask_lies_where_its_part_is(grid):
    rng = np.random.default_rng(0)
    part = rng.random((2, 4, 3)) > 0.5
    result = answer(grid, part)
    box = np.zeros((7, 7, 5), bool)
    box[3:5, 1:5, 2:5] = part
    np.testing.assert_array_equal(result.box_mask, box)
    mask = result.mask
    assert mask.shape == (10, 12, 8)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(grid.crop(mask), box)
    assert mask.sum() == part.sum()
    assert nib.aff2axcodes(AFFINE) != ("L", "P", "S")


def test_volume_is_counted_in_the_voxels_of_the_scan(grid):
    part = np.zeros((2, 4, 3), bool)
    part[0, :, 0] = True
    assert answer(grid, part).volume_ml == pytest.approx(4 * 1.5 * 2 * 4 / 1000)
    assert str(answer(grid, part)) == "found: the rim (presence 0.75, 0.05 ml)"


def test_what_is_not_found_has_an_empty_mask(grid):
    result = answer(grid, np.zeros((0, 0, 0), bool), (0, 0, 0))
    assert not result.found
    assert result.volume_ml == 0
    assert result.mask.shape == (10, 12, 8)
    assert not result.mask.any()
    assert str(result) == "not found: the rim (presence 0.75)"


def test_names_of_files_tell_texts_apart():
    texts = [
        *("the rim", "The rim", "the  rim", "the-rim", "the rim!", "the_rim", "the rim?"),
        *(
            "左侧额叶",
            "右侧额叶",
            "",
            "../..",
            "/",
            "con",
            "CON",
            "nul",
            "com1",
            "a" * 500,
            "a" * 501,
        ),
        *("x\ny", "x y", ".", "..", "-", "~", "%s", "é", "e", "\U0001f9e0", "the rim.nii.gz"),
    ]
    names = [prompt_file(text) for text in texts]
    assert len({name.lower() for name in names}) == len(texts)
    for name in names:
        stem = name.removesuffix(".nii.gz")
        assert set(stem) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_")
        assert stem[0] not in "-_"
        assert stem not in {"con", "nul", "com1"}
        assert len(name) < 100
    assert names[0] == "the-rim.nii.gz"
    assert prompt_file("Œdème, à gauche").startswith("deme-a-gauche_")
