"""Settings that prediction takes over from training, as plain values saved with the weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_ROI = 1024
"""Longest side of the sliding window; a window of more voxels fits into no memory."""


@dataclass(frozen=True)
class PredictionSettings:
    """Settings of training that prediction must share.

    Attributes:
        release: of the training data: its name, or the values of one that was not published.
        spacing_mm: voxel size of the training data.
        roi_size: size of the sliding window (x, y, z), in voxels.
        overlap: of neighbouring windows, in [0, 1).
        allow_missing: whether sequences were withheld in training, so that cases may lack some.
        postprocessing: rules that clean up the regions, as plain values: rule -> thresholds, see
            :class:`clipseg3d.inference.PostProcessing`; None for none.

    Raises:
        ValueError: a voxel size that is not above 0, a ``roi_size`` that is not three sizes from 1
            to 1024, or an overlap outside [0, 1).
    """

    release: str | dict[str, Any]
    spacing_mm: float
    roi_size: tuple[int, int, int] = (128, 128, 128)
    overlap: float = 0.5
    allow_missing: bool = False
    postprocessing: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse values that no prediction can use; they may come from a file."""
        if not 0 < self.spacing_mm < float("inf"):
            raise ValueError(f"spacing_mm={self.spacing_mm} is not above 0; give it in millimetres")
        if len(self.roi_size) != 3 or not all(1 <= size <= MAX_ROI for size in self.roi_size):
            raise ValueError(
                f"roi_size={self.roi_size}: give three sizes in voxels, each from 1 to {MAX_ROI}"
            )
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap={self.overlap} is not in [0, 1); give a share, such as 0.5")

    @property
    def release_name(self) -> str:
        """Name of the release."""
        return self.release if isinstance(self.release, str) else str(self.release.get("name"))

    @classmethod
    def from_hyperparameters(cls, values: Mapping[str, Any]) -> "PredictionSettings":
        """Return the settings in the hyperparameters of a CLIPSeg3DModule.

        Raises:
            KeyError: one is missing.
            ValueError: as for the class.
        """
        return cls(
            release=values["release"],
            spacing_mm=values["spacing_mm"],
            roi_size=tuple(values["roi_size"]),
            overlap=values["overlap"],
            allow_missing=values.get("sequence_dropout", 0) > 0,
            postprocessing=values.get("postprocessing"),
        )
