"""A small network as if trained, and its files, shared by the tests of clipseg3d/pretrained."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from clipseg3d.clip.hugging_face_clip import HuggingFaceCLIP
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.prediction_settings import PredictionSettings
from clipseg3d.views import cut_views

SMALL = NetworkConfig(
    channels=(4, 6, 8), num_auxiliary=1, semantic_dim=12, num_heads=3, clip="tiny-random"
)


@pytest.fixture(scope="session")
def settings():
    return PredictionSettings(
        release="brats2023_gli",
        spacing_mm=1.5,
        roi_size=(16, 24, 20),
        overlap=0.25,
        allow_missing=True,
    )


@pytest.fixture
def trained(tiny_clip, randomise, settings):
    """Build a network as if trained, semantics included."""

    def build(**changes):
        torch.manual_seed(0)
        network = randomise(build_clipseg3d(replace(SMALL, **changes), encoder=tiny_clip)).eval()
        network.semantic_strength.fill_(0.75)
        network.settings = settings
        return network

    return build


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Folder that the files of :func:`folder` are copied from."""
    return tmp_path_factory.mktemp("saved") / "net"


@pytest.fixture
def folder(trained, saved, tmp_path):
    """What save_pretrained writes, to be changed by tests."""
    if not saved.is_dir():
        trained().save_pretrained(saved)
    return shutil.copytree(saved, tmp_path / "net")


@pytest.fixture
def logits():
    """Run a network on one volume with views and a report."""

    @torch.no_grad()
    def run(network):
        generator = torch.Generator().manual_seed(3)
        volume = 100 * torch.rand(1, 4, 20, 24, 16, generator=generator) + 5
        text, mask = network.embed_text(["Large oedema. Ring of enhancement on the left."])
        views = cut_views(volume, selection=network.view_selection, size=48)
        return network(volume, views=views, text=text, text_mask=mask)

    return run


@pytest.fixture
def change_config():
    """Change config.json: ``network={"head": "nested"}`` sets a value, None removes a key."""

    def change(folder, **changes):
        path = folder / "config.json"
        content = json.loads(path.read_text())
        for key, value in changes.items():
            if isinstance(value, dict) and isinstance(content.get(key), dict):
                content[key].update(value)
            elif value is None:
                del content[key]
            else:
                content[key] = value
        path.write_text(json.dumps(content))

    return change


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Folders of two CLIPs of other weights; the first has those of tiny-random."""
    folders = []
    for seed in (0, 1):
        clip = HuggingFaceCLIP.tiny_random(seed=seed)
        folders.append(tmp_path_factory.mktemp(f"clip{seed}"))
        clip.frozen_model.save_pretrained(folders[-1])
        clip.tokenizer.save_pretrained(folders[-1])
    return folders
