"""Routes of text to the voxels, left out one at a time."""

import sys
from pathlib import Path

import pytest
import torch

from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.views import cut_views

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
try:
    import text_routes as routes
finally:
    sys.path.pop(0)

CONFIG = NetworkConfig(
    channels=(4, 6, 8),
    num_auxiliary=0,
    semantic_dim=12,
    num_heads=3,
    clip="tiny",
    guided=("WT", "TC", "ET"),
    sentences=True,
    presence=True,
    guided_skips=1,
)
REPORT = "A mass in the left temporal lobe. No enhancement."


@pytest.fixture
def network(randomise):
    """A network all of whose routes are alive."""
    torch.manual_seed(0)
    return randomise(build_clipseg3d(CONFIG)).eval()


@pytest.fixture
def ask(network):
    image = torch.rand(1, 4, 12, 16, 8, generator=torch.Generator().manual_seed(1))
    views = cut_views(image, selection="energy")

    def ask(report=REPORT):
        text, mask = network.embed_text([report])
        with torch.no_grad():
            return network(image, views=views, text=text, text_mask=mask)

    return ask


def test_all_routes_are_those_of_the_network(network):
    assert routes.routes_of(network) == list(routes.ROUTES)
    plain = build_clipseg3d(NetworkConfig(channels=(4, 6, 8), num_auxiliary=0, semantics=False))
    assert routes.routes_of(plain) == []


@pytest.mark.parametrize("route", routes.ROUTES)
@pytest.mark.parametrize("report", [True, False])
def test_a_route_is_left_out_for_a_while(network, ask, route, report):
    whole = ask()
    with routes.left_out(network, route, report=report):
        changed = ask()
    assert not torch.allclose(changed, whole, atol=1e-4)
    assert torch.equal(ask(), whole)


@pytest.mark.parametrize("route", routes.ROUTES)
def test_without_a_report_there_is_nothing_to_leave_out(network, ask, route):
    whole = ask("")
    with routes.left_out(network, route, report=True):
        torch.testing.assert_close(ask(""), whole)


def test_without_all_routes_nothing_but_the_plain_network_is_left(network, ask):
    with routes.left_out(network, "all", report=True):
        torch.testing.assert_close(ask(), ask(""), atol=1e-4, rtol=1e-4)
    with routes.left_out(network, "all", report=False):
        plain = ask()
    for route in routes.routes_of(network)[:-1]:
        assert not torch.allclose(plain, ask(), atol=1e-4), route
    network.semantic_strength.zero_()
    torch.testing.assert_close(ask(), plain)


def test_a_dead_route_costs_nothing(network, ask):
    with torch.no_grad():
        for weight in network.semantic_fusion.skips.parameters():
            weight.zero_()
    whole = ask()
    with routes.left_out(network, "skips", report=False):
        assert torch.equal(ask(), whole)
