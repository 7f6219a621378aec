"""Named rules that clean up segmented regions."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from clipseg3d.atomic_write import atomic_write
from clipseg3d.data.text_files import read_json
from clipseg3d.vocabulary import REGIONS

Masks = npt.NDArray[np.bool_]

RULES = {
    "small_components": REGIONS,
    "enhancing_to_core": ("ET",),
    "holes": ("WT", "TC"),
}
"""Rule -> regions it has a threshold for, in the order of application. Enhancing tumour is a rim
by nature: its holes are necrosis."""
_ENDLESS = np.iinfo(np.int64).max
_TOUCHING = np.ones((3, 3, 3), bool)  # components also hang together by corners


@dataclass(frozen=True)
class PostProcessing:
    """Rules on nested regions, each with a threshold in voxels; a threshold of 0 does nothing.

    Attributes:
        spacing_mm: voxel size that the thresholds are meant for.
        small_components: region -> connected parts of fewer voxels are removed from the region,
            and from those within it; what is left of the region around stays.
        enhancing_to_core: an enhancing tumour of fewer voxels in all is none: it becomes core.
        holes: region -> enclosed holes of fewer voxels are filled; WT or TC.

    Raises:
        ValueError: a region that the rule does not know, a threshold that is no whole number from
            0 on, or a voxel size that is none.

    Example:
        >>> regions = np.zeros((3, 8, 8, 8), bool)
        >>> regions[:, :2, :2, :2] = True  # eight voxels of enhancing tumour
        >>> rules = PostProcessing(spacing_mm=1.0, enhancing_to_core=20)
        >>> rules(regions).sum(axis=(1, 2, 3)).tolist()
        [8, 8, 0]
    """

    spacing_mm: float
    small_components: Mapping[str, int] = field(default_factory=dict)
    enhancing_to_core: int = 0
    holes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.spacing_mm, int | float) or not self.spacing_mm > 0:
            raise ValueError(f"spacing_mm={self.spacing_mm!r} is no voxel size; give one in mm")
        for rule, known in RULES.items():
            for region, threshold in self.thresholds(rule).items():
                if region not in known:
                    raise ValueError(
                        f"{rule}: no region {region!r}; choose from {', '.join(known)}"
                    )
                if type(threshold) is not int or threshold < 0:
                    raise ValueError(
                        f"{rule} of {region}: {threshold!r} is no number of voxels; give a whole "
                        "number from 0 on"
                    )

    def thresholds(self, rule: str) -> Mapping[str, int]:
        """Return region -> threshold of a rule by its name."""
        value = getattr(self, rule)
        return value if isinstance(value, Mapping) else {"ET": value}

    def __call__(self, regions: Masks) -> Masks:
        """Return the regions (3, x, y, z) WT, TC and ET after all rules; nested, as given."""
        for rule in RULES:
            for region, threshold in self.thresholds(rule).items():
                regions = apply_rule(regions, rule, region, (threshold,))[0]
        return regions

    def describe(self) -> str:
        """Return the rules that do something, in words."""
        parts = [
            f"{rule.replace('_', ' ')} {region} < {threshold} voxels"
            for rule in RULES
            for region, threshold in self.thresholds(rule).items()
            if threshold
        ]
        return ", ".join(parts) or "none"

    def save(self, path: Path, *, learned: Mapping[str, Any] | None = None) -> None:
        """Write the rules as JSON, all or nothing.

        Args:
            path: file to write, ending in .json.
            learned: what else to note, such as the cases they were learned from; not read back.

        Raises:
            ValueError: ``path`` has another ending.
            OSError: it cannot be written.
        """
        if path.suffix != ".json":
            raise ValueError(f"{path}: does not end in .json; rename it")
        content = json.dumps({**asdict(self), "learned": learned or {}}, indent=1)
        with atomic_write(path) as tmp:
            tmp.write_text(f"{content}\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "PostProcessing":
        """Read rules that :meth:`save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds no such rules.
        """
        content = read_json(path)
        try:
            content.pop("learned", None)
            return cls(**content)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: no rules of post-processing ({error}); give a file written by "
                "'clipseg3d tune-postprocessing'"
            ) from error


def apply_rule(regions: Masks, rule: str, region: str, thresholds: tuple[int, ...]) -> list[Masks]:
    """Apply one rule to one region with each of several thresholds.

    Args:
        regions: nested masks (3, x, y, z) of WT, TC and ET.
        rule: a name in :data:`RULES`.
        region: that the rule is for.
        thresholds: in voxels.

    Returns:
        Nested masks for each threshold.
    """
    index = REGIONS.index(region)
    if not any(thresholds):
        return [regions] * len(thresholds)
    if rule == "enhancing_to_core":
        size = int(regions[index].sum())
        return [
            _without(regions, index, regions[index]) if size < t else regions for t in thresholds
        ]
    if rule == "small_components":
        parts, sizes = _parts(regions[index], _TOUCHING)
        return [_without(regions, index, (sizes < t)[parts]) if t else regions for t in thresholds]
    # the margin joins everything outside; what does not touch it is enclosed
    outside = np.pad(~regions[index], 1, constant_values=True)
    parts, sizes = _parts(outside, None)
    sizes[parts[0, 0, 0]] = _ENDLESS
    parts = parts[1:-1, 1:-1, 1:-1]
    return [_with(regions, index, (sizes < t)[parts]) if t else regions for t in thresholds]


def _parts(
    mask: Masks, structure: Masks | None
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]:
    """Return the number of each voxel's part and the size of each part; 0, no part, is endless."""
    parts, _ = ndimage.label(mask, structure=structure)
    sizes = np.bincount(parts.ravel())
    sizes[0] = _ENDLESS
    return parts, sizes


def _without(regions: Masks, index: int, removed: Masks) -> Masks:
    """Take voxels out of a region and of those within it."""
    changed: Masks = regions.copy()
    changed[index:] &= ~removed
    return changed


def _with(regions: Masks, index: int, added: Masks) -> Masks:
    """Put voxels into a region and those around it."""
    changed: Masks = regions.copy()
    changed[: index + 1] |= added
    return changed
