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
from clipseg3d.data.release import BraTSRelease
from clipseg3d.data.releases import BRATS_2020
from clipseg3d.text_files import read_json

Masks = npt.NDArray[np.bool_]

RULES = ("small_components", "enhancing_to_core", "holes")
"""Rules, in the order of application."""
ENHANCING = "ET"
_INFINITE = np.iinfo(np.int64).max
_ALL_NEIGHBOURS = np.ones((3, 3, 3), bool)  # voxels that share a corner are connected too


@dataclass(frozen=True)
class PostProcessing:
    """Rules on regions, each with a threshold in voxels; a threshold of 0 does nothing.

    Attributes:
        spacing_mm: voxel size that the thresholds are meant for.
        small_components: region -> connected components with fewer voxels are removed from the
            region and from the regions inside it; the region around it keeps them.
        enhancing_to_core: an enhancing tumour with fewer voxels in total becomes core.
        holes: region -> enclosed holes with fewer voxels are filled; not for ET, which is a rim by
            nature, and whose holes are necrosis.

    Raises:
        ValueError: a rule is not for that region, a threshold is not a whole number of 0 or more,
            or the voxel size is not positive.

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
            raise ValueError(
                f"spacing_mm={self.spacing_mm!r} is not a voxel size; give a positive number of mm"
            )
        if ENHANCING in self.holes:
            raise ValueError(f"holes: not for region {ENHANCING!r}, whose holes are necrosis")
        for rule in RULES:
            for region, threshold in self.thresholds(rule).items():
                if type(threshold) is not int or threshold < 0:
                    raise ValueError(
                        f"{rule} of {region}: {threshold!r} is not a number of voxels; give a "
                        "whole number of 0 or more"
                    )

    def thresholds(self, rule: str) -> Mapping[str, int]:
        """Return region -> threshold of a rule, given its name."""
        value = getattr(self, rule)
        return value if isinstance(value, Mapping) else {ENHANCING: value}

    def __call__(self, regions: Masks, release: BraTSRelease = BRATS_2020) -> Masks:
        """Return the regions (r, x, y, z) of a release after all rules.

        Raises:
            ValueError: a rule with a threshold is for a region that the release has not.
        """
        for rule in RULES:
            for region, threshold in self.thresholds(rule).items():
                if threshold and region not in release.regions:
                    raise ValueError(
                        f"{rule}: {release.name} has no region {region!r}, but "
                        f"{', '.join(release.regions)}; learn the rules from its cases"
                    )
                if threshold:
                    regions = apply_rule(regions, rule, region, (threshold,), release)[0]
        return regions

    def describe(self) -> str:
        """Return the rules with a threshold above 0, in words."""
        parts = [
            f"{rule.replace('_', ' ')} {region} < {threshold} voxels"
            for rule in RULES
            for region, threshold in self.thresholds(rule).items()
            if threshold
        ]
        return ", ".join(parts) or "none"

    def save(self, path: Path, *, learned: Mapping[str, Any] | None = None) -> None:
        """Write the rules as JSON; the file is complete or absent.

        Args:
            path: file to write, ending in .json.
            learned: further notes, such as the cases that the rules were learned from; not read
                back.

        Raises:
            ValueError: ``path`` has another ending.
            OSError: ``path`` cannot be written.
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
            ValueError: the file does not hold rules of post-processing.
        """
        content = read_json(path)
        try:
            content.pop("learned", None)
            return cls(**content)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: not rules of post-processing ({error}); give a file written by "
                "'clipseg3d tune-postprocessing'"
            ) from error


def rule_regions(rule: str, release: BraTSRelease) -> list[str]:
    """Return the regions of a release that a rule has a threshold for."""
    if rule == "enhancing_to_core":
        return [region for region in release.regions if region == ENHANCING]
    return [region for region in release.regions if rule != "holes" or region != ENHANCING]


def apply_rule(
    regions: Masks,
    rule: str,
    region: str,
    thresholds: tuple[int, ...],
    release: BraTSRelease = BRATS_2020,
) -> list[Masks]:
    """Apply one rule to one region with each of several thresholds.

    Args:
        regions: masks (r, x, y, z) of the regions of the release.
        rule: a name in :data:`RULES`.
        region: region to apply the rule to; regions inside others stay inside them.
        thresholds: in voxels.
        release: says which regions there are, and which lie inside others.

    Returns:
        Masks (r, x, y, z), one for each threshold.
    """
    names = list(release.regions)
    index = names.index(region)
    inner = [names.index(name) for name in release.inner(region)]
    outer = [names.index(name) for name in release.outer(region)]
    if not any(thresholds):
        return [regions] * len(thresholds)
    if rule == "enhancing_to_core":
        size = int(regions[index].sum())
        return [
            _remove(regions, inner, regions[index]) if size < t else regions for t in thresholds
        ]
    if rule == "small_components":
        parts, sizes = _components(regions[index], _ALL_NEIGHBOURS)
        return [_remove(regions, inner, (sizes < t)[parts]) if t else regions for t in thresholds]
    # The margin connects all background outside the region; what is not connected is enclosed.
    outside = np.pad(~regions[index], 1, constant_values=True)
    parts, sizes = _components(outside, None)
    sizes[parts[0, 0, 0]] = _INFINITE
    parts = parts[1:-1, 1:-1, 1:-1]
    return [_add(regions, outer, (sizes < t)[parts]) if t else regions for t in thresholds]


def _components(
    mask: Masks, structure: Masks | None
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]:
    """Number the connected components of a mask.

    Returns:
        The component of each voxel, (x, y, z), 0 outside the mask; and the size of each component.
        The size of number 0 is infinite, so that no threshold removes or fills it.
    """
    parts, _ = ndimage.label(mask, structure=structure)
    sizes = np.bincount(parts.ravel())
    sizes[0] = _INFINITE
    return parts, sizes


def _remove(regions: Masks, inner: list[int], removed: Masks) -> Masks:
    """Return the regions with voxels removed from one region and from those inside it."""
    changed: Masks = regions.copy()
    changed[inner] &= ~removed
    return changed


def _add(regions: Masks, outer: list[int], added: Masks) -> Masks:
    """Return the regions with voxels added to one region and to those around it."""
    changed: Masks = regions.copy()
    changed[outer] |= added
    return changed
