"""Small networks as if trained, and a case for them to see."""

from dataclasses import replace

import pytest
import torch

from clipseg3d.intensity import intensity_statistics
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.prediction_settings import PredictionSettings
from clipseg3d.views import cut_views

REPORT = "Large oedema. Ring of enhancement on the left."
SIZE = (16, 24, 12)
SMALL = NetworkConfig(
    channels=(4, 6),
    space_to_depth=2,
    num_auxiliary=0,
    semantic_dim=12,
    num_heads=3,
    clip="tiny-random",
)


@pytest.fixture
def settings():
    return PredictionSettings(release="phantom", spacing_mm=8.0, roi_size=SIZE, overlap=0.25)


@pytest.fixture
def trained(tiny_clip, randomise):
    """Build a network as if trained, semantics included."""

    def build(**changes):
        torch.manual_seed(0)
        network = build_clipseg3d(replace(SMALL, **changes), encoder=tiny_clip).eval()
        randomise(network)
        network.semantic_strength.fill_(0.75)
        return network

    return build


@pytest.fixture
def case():
    """A crop of a volume: what ImagePath takes of it, and what the whole network takes."""

    @torch.no_grad()
    def see(network, report=REPORT):
        generator = torch.Generator().manual_seed(3)
        volume = 100 * torch.rand(1, 4, 40, 30, 36, generator=generator) + 5
        statistics = intensity_statistics(volume)
        crop_box = torch.tensor([[[5 / 40, 3 / 30, 10 / 36], [16 / 40, 24 / 30, 12 / 36]]])
        inputs = {"image": volume[..., 5:21, 3:27, 10:22], "statistics": statistics}
        complete = {**inputs, "crop_box": crop_box}
        if network.semantic_fusion is None:
            return inputs, complete
        views = cut_views(volume, statistics, selection=network.view_selection, size=48)
        embedded = network.semantic_fusion.bridge.embed(views)
        inputs |= {
            "crop_box": crop_box,
            "view_tokens": embedded.tokens,
            "views_valid": embedded.valid,
        }
        if embedded.patches is not None:
            inputs |= {"view_patches": embedded.patches, "view_planes": embedded.planes}
        text, mask = network.embed_text([report])
        return inputs, {**complete, "views": views, "text": text, "text_mask": mask}

    return see
