"""Mirrors clipseg3d/blocks/zero_init.py."""

from torch import nn

from clipseg3d.blocks.zero_init import zero_init


def test_only_the_given_layers_become_zero():
    layers = [nn.Linear(2, 3), nn.Conv3d(2, 3, 1), nn.Sequential(nn.Linear(3, 4))]
    other = nn.Linear(2, 3)
    zero_init(*layers)
    assert not any(weight.any() for layer in layers for weight in layer.parameters())
    assert all(weight.requires_grad for layer in layers for weight in layer.parameters())
    assert other.weight.any()
