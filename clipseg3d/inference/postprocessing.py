"""Named rules that clean up segmented regions."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from clipseg3d.atomic_write import atomic_write
from clipseg3d.data.release import BraTSRelease
from clipseg3d.data.releases import BRATS_2020
from clipseg3d.metrics.lesions import ALL_NEIGHBOURS
from clipseg3d.text_files import read_json

Masks = npt.NDArray[np.bool_]

RULES = ("relative_components", "small_components", "enhancing_to_core", "holes")
"""Rules, in the order of application."""
_IN_WORDS = {
    "relative_components": "components of {region} under {threshold} of its largest removed",
    "small_components": "components of {region} under {threshold} ml removed",
    "enhancing_to_core": "{region} under {threshold} ml in all counted as core",
    "holes": "holes of {region} under {threshold} ml filled",
}
ENHANCING = "ET"
MAX_ML = 1e6
"""Largest threshold; no head has as much."""
_TO_CORE = "enhancing_to_core"
_SHARE = "relative_components"
_SLACK = 1e-6
"""Relative error of voxel sizes and of sums, by which nothing is smaller than a threshold."""


@dataclass(frozen=True, kw_only=True)
class PostProcessing:
    """Rules on regions, with thresholds in ml or in shares; a threshold of 0 does nothing.

    Components are connected if they share a corner, holes only through a face.

    Attributes:
        relative_components: region -> connected components that are smaller than this share of the
            region's largest are removed from the region and from the regions inside it; the region
            around it keeps them. A share of 1 keeps the largest component only.
        small_components: region -> components with less ml are removed likewise.
        enhancing_to_core: an enhancing tumour with less ml in total becomes core.
        holes: region -> enclosed holes with less ml are filled; not for ET, which is a rim by
            nature, and whose holes are necrosis.

    Raises:
        ValueError: a rule is not for that region, or a threshold is not a number of 0 or more, a
            share not one from 0 to 1.

    Example:
        >>> regions = np.zeros((3, 8, 8, 8), bool)
        >>> regions[:, :2, :2, :2] = True  # eight voxels of enhancing tumour
        >>> rules = PostProcessing(enhancing_to_core=0.02)
        >>> rules(regions, spacing_mm=(1, 1, 1)).sum(axis=(1, 2, 3)).tolist()
        [8, 8, 0]
    """

    relative_components: Mapping[str, float] = field(default_factory=dict)
    small_components: Mapping[str, float] = field(default_factory=dict)
    enhancing_to_core: float = 0.0
    holes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for rule in RULES:
            if rule != _TO_CORE and not isinstance(getattr(self, rule), Mapping):
                raise ValueError(
                    f"{rule}: {getattr(self, rule)!r} does not say which region it is for; give "
                    "region -> threshold"
                )
            for region, threshold in self.thresholds(rule).items():
                _check_threshold(rule, region, threshold)
        if ENHANCING in self.holes:
            raise ValueError(f"holes: not for region {ENHANCING!r}, whose holes are necrosis")

    @classmethod
    def from_values(cls, values: Any) -> "PostProcessing":
        """Return rules of plain values: rule -> thresholds, as :meth:`values` gives them.

        Files were once written with thresholds in voxels, and ``spacing_mm``, the size of these;
        they are converted.

        Raises:
            ValueError: a rule is unknown, or as for the class.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"{values!r} is not an object; give rule -> thresholds")
        if unknown := [name for name in values if name not in (*RULES, "spacing_mm")]:
            raise ValueError(f"unknown rule {unknown[0]!r}; choose from {', '.join(RULES)}")
        return cls(**(_voxels_to_ml(values) if "spacing_mm" in values else values))

    def thresholds(self, rule: str) -> Mapping[str, float]:
        """Return region -> threshold of a rule, given its name."""
        value = getattr(self, rule)
        return {ENHANCING: value} if rule == _TO_CORE else value

    def values(self) -> dict[str, Any]:
        """Return the rules with a threshold above 0 as plain values; empty if there are none.

        Rules that do the same have the same values.
        """
        values: dict[str, Any] = {}
        for rule in RULES:
            kept = {region: float(t) for region, t in self.thresholds(rule).items() if t}
            if kept:
                values[rule] = kept[ENHANCING] if rule == _TO_CORE else kept
        return values

    def require_regions(self, release: BraTSRelease) -> None:
        """Raise a ValueError if a rule with a threshold is for a region that a release has not."""
        for rule in RULES:
            for region, threshold in self.thresholds(rule).items():
                if threshold and region not in release.regions:
                    raise ValueError(
                        f"rule of post-processing {rule}: {release.name} has no region "
                        f"{region!r}, but {', '.join(release.regions)}; learn the rules from its "
                        "cases"
                    )

    def __call__(
        self,
        regions: Masks,
        release: BraTSRelease = BRATS_2020,
        *,
        spacing_mm: Sequence[float],
    ) -> Masks:
        """Return the regions (r, x, y, z) of a release after all rules.

        Args:
            regions: masks (r, x, y, z).
            release: whose regions they are.
            spacing_mm: voxel size along x, y and z.

        Raises:
            ValueError: a rule with a threshold is for a region that the release has not.
        """
        self.require_regions(release)
        voxel_ml = math.prod(spacing_mm) / 1000
        for rule in RULES:
            thresholds = self.thresholds(rule)
            for region in release.regions:  # not in the order of a file
                if threshold := thresholds.get(region, 0):
                    (regions,) = apply_rule(
                        regions, rule, region, (threshold,), release, voxel_ml=voxel_ml
                    )
        return regions

    def describe(self) -> str:
        """Return the rules with a threshold above 0, in words."""
        parts = [
            _IN_WORDS[rule].format(region=region, threshold=f"{threshold:.6g}")
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
        """Read rules that :meth:`save` wrote; also those of before, with thresholds in voxels.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file does not hold rules of post-processing.
        """
        content = read_json(path)
        if isinstance(content, dict):
            content.pop("learned", None)
        try:
            return cls.from_values(content)
        except ValueError as error:
            raise ValueError(
                f"{path}: not rules of post-processing ({error}); give a file written by "
                "'clipseg3d tune-postprocessing'"
            ) from error


def rule_regions(rule: str, release: BraTSRelease) -> list[str]:
    """Return the regions of a release that a rule has a threshold for."""
    if rule == _TO_CORE:
        return [region for region in release.regions if region == ENHANCING]
    return [region for region in release.regions if rule != "holes" or region != ENHANCING]


def apply_rule(
    regions: Masks,
    rule: str,
    region: str,
    thresholds: Sequence[float],
    release: BraTSRelease = BRATS_2020,
    *,
    voxel_ml: float,
) -> list[Masks]:
    """Apply one rule to one region with each of several thresholds.

    Args:
        regions: masks (r, x, y, z) of the regions of the release.
        rule: a name in :data:`RULES`.
        region: region to apply the rule to; regions inside others stay inside them.
        thresholds: in ml, or shares of the largest component.
        release: says which regions there are, and which lie inside others.
        voxel_ml: volume of a voxel.

    Returns:
        Masks (r, x, y, z), one for each threshold.
    """
    names = list(release.regions)
    index = names.index(region)
    inner = [names.index(name) for name in release.inner(region)]
    outer = [names.index(name) for name in release.outer(region)]
    if not any(thresholds):
        return [regions] * len(thresholds)
    if rule == _TO_CORE:
        size = np.array([regions[index].sum() * voxel_ml])
        return [
            _remove(regions, inner, regions[index]) if _is_below(size, t).all() else regions
            for t in thresholds
        ]
    if rule != "holes":
        parts, sizes = _components(regions[index], ALL_NEIGHBOURS)
        sizes = sizes / sizes[1:].max(initial=1) if rule == _SHARE else sizes * voxel_ml
        return [
            _remove(regions, inner, _is_below(sizes, t)[parts]) if t else regions
            for t in thresholds
        ]
    # The margin connects all background outside the region; what is not connected is enclosed.
    outside = np.pad(~regions[index], 1, constant_values=True)
    parts, sizes = _components(outside, None)
    sizes[parts[0, 0, 0]] = np.inf
    sizes = sizes * voxel_ml
    parts = parts[1:-1, 1:-1, 1:-1]
    return [_add(regions, outer, _is_below(sizes, t)[parts]) if t else regions for t in thresholds]


def _check_threshold(rule: str, region: str, threshold: Any) -> None:
    """Raise a ValueError if a threshold is not one of the rule; it may come from a file."""
    kind, largest = ("a share", 1.0) if rule == _SHARE else ("a volume in ml", MAX_ML)
    is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if not is_number or not 0 <= threshold <= largest:
        raise ValueError(
            f"{rule} of {region}: {threshold!r} is not {kind}; give a number from 0 to {largest:g}"
        )


def _voxels_to_ml(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return rules whose volumes are voxels of ``spacing_mm`` with volumes in ml."""
    spacing_mm = values["spacing_mm"]
    if not isinstance(spacing_mm, int | float) or not 0 < spacing_mm < MAX_ML:
        raise ValueError(
            f"spacing_mm={spacing_mm!r} is not a voxel size; give a positive number of mm"
        )

    def in_ml(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {region: in_ml(voxels) for region, voxels in value.items()}
        if type(value) is not int or not 0 <= value <= MAX_ML**2:
            raise ValueError(
                f"{value!r} is not a number of voxels; give a whole number of 0 or more"
            )
        return value * spacing_mm**3 / 1000

    return {
        rule: value if rule == _SHARE else in_ml(value)
        for rule, value in values.items()
        if rule != "spacing_mm"
    }


def _components(
    mask: Masks, structure: Masks | None
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.float64]]:
    """Number the connected components of a mask.

    Returns:
        The component of each voxel, (x, y, z), 0 outside the mask; and the number of voxels of
        each component. That of number 0 is infinite, so that no threshold removes or fills it.
    """
    parts, _ = ndimage.label(mask, structure=structure)
    sizes = np.bincount(parts.ravel()).astype(np.float64)
    sizes[0] = np.inf
    return parts, sizes


def _is_below(sizes: npt.NDArray[np.float64], threshold: float) -> Masks:
    """Return which sizes are below a threshold, by more than rounding errors."""
    below: Masks = sizes < threshold * (1 - _SLACK)
    return below


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
