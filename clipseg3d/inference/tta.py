"""Test-time augmentation: mirrorings of the volume."""

from itertools import combinations

MIRRORINGS = tuple(axes for count in range(4) for axes in combinations(range(3), count))
"""Axes to mirror along: none first, then every one of the other seven choices."""
