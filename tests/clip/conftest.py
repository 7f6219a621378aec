"""A saved CLIP and images for it, shared by the tests of clipseg3d/clip."""

import pytest
import torch


@pytest.fixture(scope="session")
def clip_folder(tiny_clip, tmp_path_factory):
    """A folder as save_pretrained writes it; only to be read."""
    folder = tmp_path_factory.mktemp("saved") / "clip"
    tiny_clip.frozen_model.save_pretrained(folder)
    tiny_clip.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def images():
    return torch.rand(2, 3, 50, 70, generator=torch.Generator().manual_seed(0))
