"""A simulated patient and checkpoints, shared by the tests of clipseg3d/inference."""

from dataclasses import asdict

import pytest
import torch

from clipseg3d.phantom.simulate import simulate_phantom
from clipseg3d.phantom.write import write_phantom

SPACING_MM = 8.0


@pytest.fixture(scope="session")
def phantom():
    return simulate_phantom(3, spacing_mm=SPACING_MM)


@pytest.fixture
def folder(phantom, tmp_path):
    """Folder of one patient."""
    write_phantom(phantom, tmp_path, "Phantom_00003")
    return tmp_path / "Phantom_00003"


@pytest.fixture
def save_checkpoint():
    """Write a checkpoint as training does."""

    def save(network, config, path, *, settings=None, **changes):
        settings = {
            "network": asdict(config),
            "release": "phantom",
            "spacing_mm": SPACING_MM,
            "roi_size": (16, 20, 12),
            "overlap": 0.25,
            **(settings or {}),
        }
        torch.save(
            {
                "hyper_parameters": settings,
                "state_dict": {f"network.{name}": w for name, w in network.state_dict().items()},
                "encoders": network.encoder_identities(),
                **changes,
            },
            path,
        )

    return save
