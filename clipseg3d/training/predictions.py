"""What a step of prediction returns."""

from collections.abc import Iterator, Sequence
from typing import Any


class Predictions:
    """The segmentations of a batch, one of each case.

    Lightning takes lists and dataclasses apart, to move their tensors, and cannot put frozen ones
    together again. It leaves an object of a class that it does not know as it is.

    Args:
        cases: a :class:`clipseg3d.inference.Segmentation` or a
            :class:`clipseg3d.inference.CaseResult` of each case.
    """

    def __init__(self, cases: Sequence[Any]) -> None:
        self.cases = tuple(cases)

    def __iter__(self) -> Iterator[Any]:
        """Yield them in order."""
        return iter(self.cases)

    def __len__(self) -> int:
        """Return their number."""
        return len(self.cases)
