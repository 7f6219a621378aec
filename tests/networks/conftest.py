"""Small networks, and a batch to run them on, shared by the tests of clipseg3d/networks."""

import pytest
import torch

from clipseg3d.intensity import intensity_statistics
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.views import cut_views

SMALL = NetworkConfig(channels=(4, 6, 8), num_auxiliary=1, semantic_dim=12, num_heads=3)


@pytest.fixture
def make(tiny_clip):
    """Build a network with the small random CLIP, in evaluation mode."""

    def build(config=SMALL, *, seed=0):
        torch.manual_seed(seed)
        return build_clipseg3d(config, encoder=tiny_clip).eval()

    return build


@pytest.fixture(scope="session")
def reports():
    return ["Large oedema. Ring of enhancement on the left.", "Small lesion on the right.", ""]


@pytest.fixture(scope="session")
def raw_volume():
    """Build scans (b, 4, x, y, z) before any norm, with some voxels outside the brain."""

    def volume(*size, batch=3):
        generator = torch.Generator().manual_seed(0)
        scans = 100 * torch.rand(batch, 4, *size, generator=generator) + 10
        scans[..., :2, :1, :1] = 0
        return scans

    return volume


@pytest.fixture
def image(raw_volume):
    """Scans of three cases; the sizes differ, so that a swapped axis fails."""
    return raw_volume(12, 16, 8)


@pytest.fixture
def views(image):
    return cut_views(image, size=48)


@pytest.fixture
def case_of(reports):
    """Build all that a forward pass takes besides the image."""

    def arguments(network, image):
        batch = len(image)
        text, mask = network.embed_text(reports[:batch])
        return {
            "views": cut_views(image, selection=network.view_selection, size=48),
            "text": text,
            "text_mask": mask,
            "crop_box": torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.6, -0.3]]).expand(batch, 2, 3),
            "statistics": intensity_statistics(image) * 0.9,
        }

    return arguments


@pytest.fixture
def plain():
    """Run the U-Net of a network, without its semantic path."""

    def logits(network, image, statistics=None):
        if network.pixel_fusion is None:
            return network.unet(image)
        return network.unet(network.pixel_fusion(image, statistics))

    return logits


@pytest.fixture
def changed_regions():
    """Say for each case and region whether any logit changed."""

    def changed(after, before):
        return (after != before).flatten(2).any(dim=2).tolist()

    return changed


@pytest.fixture
def trainable():
    """Return the shapes of a network's trainable weights, by name."""

    def shapes(network):
        return {name: w.shape for name, w in network.named_parameters() if w.requires_grad}

    return shapes
