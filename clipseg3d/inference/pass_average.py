"""The mean over several passes of one case: each network sees each mirroring."""

from collections.abc import Mapping
from math import log

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class PassAverage:
    """Mean and variance of passes; holds sums, not the passes.

    Args:
        with_variance: whether to sum up squared probabilities too, for :meth:`variance`.
    """

    def __init__(self, *, with_variance: bool = False) -> None:
        self.with_variance = with_variance
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, logits: Tensor, maps: Mapping[str, Tensor] | None = None) -> None:
        """Add a pass.

        Args:
            logits: (r, x, y, z); overwritten with probabilities.
            maps: name -> (x, y, z); each is averaged over the passes that have it.
        """
        probabilities = logits.sigmoid_()
        parts = {"probabilities": probabilities, **(maps or {})}
        if self.with_variance:
            parts["squares"] = probabilities.square()
        for name, part in parts.items():
            if name in self._sums:  # a full device makes later passes run on the CPU
                self._sums[name] = self._sums[name].to(part.device).add_(part)
            else:
                self._sums[name] = part
            self._counts[name] = self._counts.get(name, 0) + 1

    def probabilities(self) -> Tensor:
        """Return mean probabilities, (r, x, y, z)."""
        return self._mean("probabilities")

    def map(self, name: str) -> npt.NDArray[np.float32] | None:
        """Return the mean of a map, (x, y, z); None if no pass has it."""
        return self._mean(name).cpu().numpy() if name in self._sums else None

    def entropy(self) -> npt.NDArray[np.float32]:
        """Return the entropy of the mean probabilities in bits, (x, y, z): maximum over regions."""
        mean = self.probabilities()
        nats = torch.special.entr(mean) + torch.special.entr(1 - mean)
        bits: npt.NDArray[np.float32] = (nats.amax(dim=0) / log(2)).cpu().numpy()
        return bits

    def variance(self) -> npt.NDArray[np.float32]:
        """Return the variance of the probabilities, (x, y, z): maximum over regions."""
        by_region = self._mean("squares") - self.probabilities().square()
        variance: npt.NDArray[np.float32] = by_region.amax(dim=0).clamp(min=0).cpu().numpy()
        return variance

    def _mean(self, name: str) -> Tensor:
        total, count = self._sums[name], self._counts[name]
        return total if count == 1 else total / count
