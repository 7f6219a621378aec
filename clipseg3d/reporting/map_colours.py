"""Colours of maps laid over a scan: dark where there is nothing to say, safe for the colour-blind.

Colours run from dark to light in both schemes, and blue stands against orange, so that no reading
rests on telling red from green.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from matplotlib.colors import Colormap, LinearSegmentedColormap
from numpy.typing import NDArray

SEQUENTIAL: Colormap = LinearSegmentedColormap.from_list(
    "clipseg3d_sequential", ["#14161c", "#4b2a63", "#a23b6b", "#ec7a4c", "#fde9a9"]
)
DIVERGING: Colormap = LinearSegmentedColormap.from_list(
    "clipseg3d_diverging", ["#a6dcff", "#2f86c9", "#14161c", "#c9622a", "#ffd3a6"]
)


class MapScale(NamedTuple):
    """From which value to which a map is coloured, and how."""

    low: float
    high: float
    colours: Colormap

    def share(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return how far up the scale values lie, 0 to 1."""
        span = self.high - self.low or 1.0
        return ((values.astype(np.float32) - self.low) / span).clip(0, 1)

    def strength(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return how much values say: 0 at value 0, 1 at the end of the scale."""
        reach = self.high or 1.0
        return (np.abs(values.astype(np.float32)) / reach).clip(0, 1)


def scale_of(maps: Iterable[NDArray[np.floating]]) -> MapScale:
    """Return one scale for maps that are to be compared: 0 is dark.

    Maps without negative values run from 0 to their highest value; others as far below 0 as above.
    """
    low = high = 0.0
    for values in maps:
        low, high = float(values.min(initial=low)), float(values.max(initial=high))
    if low == 0:
        return MapScale(0.0, high, SEQUENTIAL)
    reach = max(-low, high)
    return MapScale(-reach, reach, DIVERGING)
