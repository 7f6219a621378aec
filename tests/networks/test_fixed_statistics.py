"""Mirrors clipseg3d/networks/fixed_statistics.py."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from clipseg3d.networks.clipseg3d import build_clipseg3d
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.fixed_statistics import fix_statistics
from clipseg3d.volume import intensity_statistics

CONFIG = NetworkConfig(
    channels=(4, 6, 8), fold=2, num_auxiliary=1, semantic_dim=12, num_heads=3, conditional_norm=True
)


@pytest.fixture
def trained(tiny_clip, randomise):
    """A network whose weights, CBAM's included, are as if trained."""
    return randomise(build_clipseg3d(CONFIG, encoder=tiny_clip), size=0.2)


@pytest.fixture
def fixed(tiny_clip):
    def build(state):
        network = build_clipseg3d(replace(CONFIG, fixed_statistics=True), encoder=tiny_clip)
        network.load_state_dict(state)  # every weight, and no other
        return network.eval()

    return build


def batch(*size, seed=0, cases=1):
    generator = torch.Generator().manual_seed(seed)
    image = 1 + torch.randn(cases, 4, *size, generator=generator)
    return {"image": image, "statistics": intensity_statistics(image)}


def logits(network, given):
    with torch.no_grad():
        return network(given["image"], statistics=given["statistics"])


def test_on_the_crop_that_it_was_made_of_nothing_changes(trained, fixed):
    given = batch(24, 32, 16)
    before = logits(trained.eval(), given)
    after = logits(fixed(fix_statistics(trained, [given])), given)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
    assert before.std() > 0.1


def test_statistics_are_means_over_cases_however_they_are_batched(trained):
    one, two, three = (batch(16, 24, 16, seed=seed) for seed in range(3))
    pair = {name: torch.cat([one[name], two[name]]) for name in one}
    alone, together = (
        fix_statistics(trained, batches) for batches in ([one, two, three], [pair, three])
    )
    for name, value in alone.items():
        torch.testing.assert_close(value, together[name], rtol=1e-4, atol=1e-4)
    found = []
    convolution = trained.unet.encoder[0].residual[0]
    convolution.register_forward_hook(lambda module, given, result: found.append(result))
    for given in (one, two, three):
        logits(trained, given)
    mean = torch.stack([f.mean(dim=(0, 2, 3, 4)) for f in found]).mean(dim=0)
    square = torch.stack([f.square().mean(dim=(0, 2, 3, 4)) for f in found]).mean(dim=0)
    name = "unet.encoder.0.residual.1"
    torch.testing.assert_close(alone[f"{name}.mean"], mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(alone[f"{name}.var"], square - mean**2, rtol=1e-4, atol=1e-4)


def test_a_prediction_does_not_depend_on_the_background_around(randomise):
    config = replace(CONFIG, channels=(4, 6), num_auxiliary=0, conditional_norm=False)
    config = replace(config, semantics=False)
    trained = randomise(build_clipseg3d(config), size=0.2).eval()
    network = build_clipseg3d(replace(config, fixed_statistics=True)).eval()
    network.load_state_dict(fix_statistics(trained, [batch(24, 32, 16)]))
    given = batch(64, 64, 64)
    wide = {**given, "image": F.pad(given["image"], [32] * 6)}

    def difference(of):
        middle, same = logits(of, wide)[..., 60:68, 60:68, 60:68], logits(of, given)
        return (middle - same[..., 28:36, 28:36, 28:36]).abs().max()

    assert difference(network) < 1e-4
    assert difference(trained) > 1e-2


def test_what_cannot_be_fixed_is_refused(trained, fixed):
    with pytest.raises(ValueError, match="no batches to take statistics from; give some dozen"):
        fix_statistics(trained, [])
    again = fixed(fix_statistics(trained, [batch(16, 24, 16)]))
    with pytest.raises(ValueError, match="its statistics are fixed"):
        fix_statistics(again, [batch(16, 24, 16)])


def test_parts_that_are_not_built_are_not_missed(randomise):
    config = replace(CONFIG, semantics=False, conditional_norm=False, cbam=False)
    trained = randomise(build_clipseg3d(config), size=0.2)
    given = batch(16, 24, 16)
    network = build_clipseg3d(replace(config, fixed_statistics=True))
    network.load_state_dict(fix_statistics(trained, [given]))
    torch.testing.assert_close(
        logits(network.eval(), given), logits(trained.eval(), given), rtol=1e-3, atol=1e-3
    )
