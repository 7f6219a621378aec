"""A simulated patient, shared by the tests of clipseg3d/inference."""

import shutil

import pytest


@pytest.fixture
def folder(phantom_folder, tmp_path):
    """Folder of one patient, which tests may change."""
    return shutil.copytree(phantom_folder / "Phantom_00003", tmp_path / "Phantom_00003")
