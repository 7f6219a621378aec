"""The case page: one segmented case as a single HTML file that needs no internet access."""

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import cycle, groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from clipseg3d.atomic_write import atomic_write
from clipseg3d.metrics.dice import dice_empty_is_one
from clipseg3d.reporting.figures import region_colours, shared_scale
from clipseg3d.reporting.lesions import Lesion, find_lesions
from clipseg3d.reporting.packing import (
    grey_levels,
    map_levels,
    pack_volume,
    view_png,
)
from clipseg3d.vocabulary import PLANES, REGION_TITLES, REGIONS, SEQUENCE_TITLES

_ATTENTION, _SIMILARITY = "Semantic attention", "Text-voxel similarity"
_MAP_NOTES = {
    _ATTENTION: "Evidence of text and views for a region (above 0) or against it (below 0).",
    _SIMILARITY: "Cosine of a voxel's features and the text of the region.",
}
_SMALL_LESION_ML = 0.1
"""Lesions under this volume are only counted, except for the largest of all."""
_PROMPT_COLOURS = ("#CC79A7", "#009E73", "#B39DFF", "#F0F3F6", "#FF9E64", "#7FDBCA")
"""Of prompts, in turn; none is a colour of WT, TC or ET."""
_ROUNDING = 1e-3
"""How far a cosine may be above 1 or below -1."""

Volume = NDArray[np.floating]
Masks = NDArray[np.bool_]


class _RegionNumbers(NamedTuple):
    """A row of the table of numbers; the last three are None without a reference."""

    name: str
    volume_ml: float
    lesions: int
    reference_ml: float | None = None
    reference_lesions: int | None = None
    dice: float | None = None


class _PromptRow(NamedTuple):
    """A row of the list of prompts; without a volume, nothing was found."""

    text: str
    colour: str
    presence: float
    volume_ml: float


class _ShownMap(NamedTuple):
    """A map to draw over the scan; ``region`` is empty if the map belongs to no region."""

    number: int
    group: str
    region: str
    values: Volume
    scale: ScalarMappable

    @property
    def title(self) -> str:
        return f"{self.group} {self.region}".strip()

    def describe(self) -> dict[str, Any]:
        """Return the map's title, range and colours, for the script of the page."""
        low, high = self.scale.get_clim()
        return {
            "id": f"map-{self.number}",
            "title": self.title,
            "region": self.region,
            "low": low,
            "high": high,
            "colours": [to_hex(self.scale.cmap(level / 254)) for level in range(255)],
        }


@dataclass(frozen=True, eq=False)
class CasePage:
    """Everything that the case page shows.

    Attributes:
        case_id: name of the case.
        images: sequence -> (x, y, z), the brain box in LPS voxel order, 0 is background; acquired
            sequences only.
        spacing_mm: voxel size along x, y and z.
        prediction: predicted regions, (r, x, y, z) bool.
        reference: regions of the expert mask, (r, x, y, z) bool; None if there is none.
        regions: their names; the first is the one whose lesions are listed.
        text: report that the network read; empty if none.
        attention: region -> (x, y, z), scores of semantic attention.
        similarity: region -> (x, y, z), cosine of voxel and text, -1 to 1.
        views: views that CLIP was given, each a name that begins with axial, coronal or sagittal,
            and (h, w, s) uint8 with rows and columns along array axes, as in
            :class:`clipseg3d.views.Views`; s is 3 for red, green and blue, 1 for grey.
        view_colours: sequences that the views show in red, green and blue.
        uncertainty: name, such as "entropy", -> (x, y, z).
        provenance: name -> value: weights, hashes, versions, settings.
        notes: what was changed, missing, unusual or in doubt about the scan, a line each.
        prompts: of each prompt, its text, its mask (x, y, z) bool, and its score of presence in
            [0, 1]; an empty mask says that it was not found.
        presence: region -> probability that there is any of it; empty if no network tells it.

    Raises:
        ValueError: shapes, names or values do not fit together, or a value is not finite.
    """

    case_id: str
    images: Mapping[str, Volume] = field(repr=False)
    spacing_mm: tuple[float, float, float]
    prediction: Masks = field(repr=False)
    reference: Masks | None = field(default=None, repr=False)
    regions: Sequence[str] = REGIONS
    text: str = ""
    attention: Mapping[str, Volume] = field(default_factory=dict, repr=False)
    similarity: Mapping[str, Volume] = field(default_factory=dict, repr=False)
    views: Sequence[tuple[str, NDArray[np.uint8]]] = field(default=(), repr=False)
    view_colours: Sequence[str] = ()
    uncertainty: Mapping[str, Volume] = field(default_factory=dict, repr=False)
    provenance: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    prompts: Sequence[tuple[str, Masks, float]] = field(default=(), repr=False)
    presence: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.spacing_mm) != 3 or not all(0 < mm < np.inf for mm in self.spacing_mm):
            raise ValueError(
                f"{self.case_id}: spacing_mm={self.spacing_mm}; pass three positive numbers"
            )
        self._check_images()
        self._check_masks()
        self._check_maps()
        self._check_views()
        self._check_presence()

    def save(self, path: Path) -> None:
        """Write the page; the file is complete or absent.

        Args:
            path: HTML file to write or replace; its folder is made if missing.

        Raises:
            ValueError: ``path`` does not end in ``.html``.
            OSError: ``path`` cannot be written.
        """
        if path.suffix.lower() != ".html":
            raise ValueError(f"path={path} does not end in .html; rename it")
        # File names may hold bytes that are not valid text; they are shown as escapes.
        page = self._render().encode("utf-8", errors="backslashreplace")
        with atomic_write(path) as tmp:
            tmp.write_bytes(page)

    @property
    def _shape(self) -> tuple[int, ...]:
        return next(iter(self.images.values())).shape

    def _check_images(self) -> None:
        if not self.images:
            raise ValueError(f"{self.case_id}: images is empty; pass at least one sequence")
        if len(self._shape) != 3 or 0 in self._shape:
            raise ValueError(
                f"{self.case_id}: an image has shape {self._shape}; pass (x, y, z), not empty"
            )
        self._check_volumes("images", self.images)

    def _check_masks(self) -> None:
        expected = (len(self.regions), *self._shape)
        for name, masks in (("prediction", self.prediction), ("reference", self.reference)):
            if masks is not None and (masks.shape != expected or masks.dtype != np.bool_):
                raise ValueError(
                    f"{self.case_id}: {name} is {masks.dtype} of shape {masks.shape}; pass bool "
                    f"masks of {', '.join(self.regions)} as {expected}"
                )

        for text, mask, _ in self.prompts:
            if mask.shape != self._shape or mask.dtype != np.bool_:
                raise ValueError(
                    f"{self.case_id}: the mask of prompt {text!r} is {mask.dtype} of shape "
                    f"{mask.shape}; pass a bool mask {self._shape}"
                )

    def _check_presence(self) -> None:
        if unknown := [region for region in self.presence if region not in self.regions]:
            raise ValueError(
                f"{self.case_id}: presence has {unknown}; choose from {tuple(self.regions)}"
            )
        scores = {**self.presence, **{text: score for text, _, score in self.prompts}}
        for name, score in scores.items():
            if not 0 <= score <= 1:
                raise ValueError(
                    f"{self.case_id}: presence of {name!r} is {score}; pass a share, from 0 to 1"
                )

    def _check_maps(self) -> None:
        for name, maps in (("attention", self.attention), ("similarity", self.similarity)):
            if unknown := [region for region in maps if region not in self.regions]:
                raise ValueError(
                    f"{self.case_id}: {name} has {unknown}; choose from {tuple(self.regions)}"
                )
            self._check_volumes(name, maps)
        self._check_volumes("uncertainty", self.uncertainty)
        for region, cosines in self.similarity.items():
            if (largest := float(np.abs(cosines).max())) > 1 + _ROUNDING:
                raise ValueError(
                    f"{self.case_id}: similarity[{region!r}] reaches {largest:.4g}; pass cosines, "
                    "from -1 to 1"
                )

    def _check_volumes(self, name: str, volumes: Mapping[str, Volume]) -> None:
        for key, volume in volumes.items():
            if volume.shape != self._shape:
                raise ValueError(
                    f"{self.case_id}: {name}[{key!r}] has shape {volume.shape}, the first image "
                    f"{self._shape}; bring it to the image's grid"
                )
            if count := int((~np.isfinite(volume)).sum()):
                raise ValueError(
                    f"{self.case_id}: {name}[{key!r}] holds {count} NaN or infinite voxels; "
                    "compute it again"
                )

    def _check_views(self) -> None:
        for name, view in self.views:
            if not name.startswith(PLANES):
                raise ValueError(
                    f"{self.case_id}: views has {name!r}; begin its name with one of {PLANES}"
                )
            if view.ndim != 3 or view.shape[-1] not in (1, 3) or view.dtype != np.uint8:
                raise ValueError(
                    f"{self.case_id}: view {name!r} is {view.dtype} of shape {view.shape}; pass "
                    "uint8 (h, w, s) with s 1 or 3"
                )

    def _render(self) -> str:
        """Return the page as HTML; all text from the case is escaped."""
        # The security policy of the page allows this style and this script, and no others.
        style, script = (
            resources.files(__package__).joinpath(f"templates/{name}").read_text("utf-8")
            for name in ("case_page.css", "case_page.js")
        )
        lesions = [self._find_lesions(mask) for mask in self.prediction]
        reference_lesions = (
            None if self.reference is None else [*map(self._find_lesions, self.reference)]
        )
        others = [lesion for lesion in lesions[0][1:] if lesion.volume_ml >= _SMALL_LESION_ML]
        sequences = {name: SEQUENCE_TITLES.get(name, name) for name in self.images}
        background = "t1ce" if "t1ce" in sequences else next(iter(sequences))
        colours = region_colours(self.regions)
        brain = np.any([image != 0 for image in self.images.values()], axis=0)
        maps = self._maps_in_order(brain)
        volumes = {f"image-{name}": grey_levels(self.images[name]) for name in sequences}
        for entry in maps:
            volumes[f"map-{entry.number}"] = map_levels(entry.values, entry.scale, brain=brain)
        masks = [*self.prediction, *(() if self.reference is None else self.reference)]
        asked = [mask for _, mask, _ in self.prompts]
        for kind, group in (("regions", masks), ("prompts", asked)):
            volumes |= {f"{kind}-{n}": bits for n, bits in enumerate(self._bits(group))}
        prompts = self._prompt_rows()
        template = Environment(
            loader=PackageLoader("clipseg3d.reporting"), autoescape=True, undefined=StrictUndefined
        ).get_template("case_page.html.j2")
        return template.render(
            page=self,
            style=style,
            style_hash=_policy_hash(style),
            script=script,
            script_hash=_policy_hash(script),
            numbers=self._numbers(lesions, reference_lesions),
            lesions=[*lesions[0][:1], *others],
            small_lesions=len(lesions[0][1:]) - len(others),
            small_ml=_SMALL_LESION_ML,
            prompts=prompts,
            meanings={name: REGION_TITLES.get(name, name) for name in self.regions},
            colours=colours,
            sequences=sequences,
            map_background=background,
            planes=PLANES,
            groups=[(title, [*group]) for title, group in groupby(maps, lambda m: m.group)],
            maps=maps,
            notes=_MAP_NOTES,
            views=[(name, view_png(name, view)) for name, view in self.views],
            view_colours=[SEQUENCE_TITLES.get(name, name) for name in self.view_colours],
            volumes={name: pack_volume(volume) for name, volume in volumes.items()},
            data={
                "shape": self._shape,
                "spacing": self.spacing_mm,
                "start": _start(lesions[0] or (reference_lesions or lesions)[0], self._shape),
                "sequences": [*sequences.items()],
                "background": background,
                "regions": [*colours.items()],
                "prompts": [row.colour for row in prompts],
                "maps": [entry.describe() for entry in maps],
            },
        )

    def _find_lesions(self, mask: Masks) -> list[Lesion]:
        return find_lesions(mask, spacing_mm=self.spacing_mm)

    def _numbers(
        self, lesions: Sequence[list[Lesion]], reference_lesions: Sequence[list[Lesion]] | None
    ) -> list[_RegionNumbers]:
        """Return the rows of the table of numbers; Dice is 1 where both masks are empty."""
        rows = [
            _RegionNumbers(name, _total_ml(predicted), len(predicted))
            for name, predicted in zip(self.regions, lesions, strict=True)
        ]
        if self.reference is None or reference_lesions is None:
            return rows
        masks = (torch.from_numpy(m.copy()) for m in (self.prediction, self.reference))
        dices = dice_empty_is_one(*masks).tolist()
        return [
            row._replace(reference_ml=_total_ml(drawn), reference_lesions=len(drawn), dice=dice)
            for row, drawn, dice in zip(rows, reference_lesions, dices, strict=True)
        ]

    def _maps_in_order(self, brain: Masks) -> list[_ShownMap]:
        """Return all maps in the order of the page; maps of one group share a colour scale."""
        groups = {
            title: {name: by_region[name] for name in self.regions if name in by_region}
            for title, by_region in ((_ATTENTION, self.attention), (_SIMILARITY, self.similarity))
        }
        groups |= {f"Uncertainty: {name}": {"": m} for name, m in self.uncertainty.items()}
        entries: list[_ShownMap] = []
        for title, maps in groups.items():
            scale = shared_scale(values[brain] for values in maps.values())
            for region, values in maps.items():
                entries.append(_ShownMap(len(entries), title, region, values, scale))
        return entries

    def _prompt_rows(self) -> list[_PromptRow]:
        voxel_ml = math.prod(self.spacing_mm) / 1000
        colours = cycle(_PROMPT_COLOURS)
        return [
            _PromptRow(text, colour, score, float(mask.sum()) * voxel_ml)
            for (text, mask, score), colour in zip(self.prompts, colours, strict=False)
        ]

    def _bits(self, masks: Sequence[Masks]) -> Iterator[NDArray[np.uint8]]:
        """Yield volumes (x, y, z) of eight masks each, a bit of every voxel for each of them."""
        for first in range(0, len(masks), 8):
            volume = np.zeros(self._shape, np.uint8)
            for bit, mask in enumerate(masks[first : first + 8]):
                volume |= mask.astype(np.uint8) << bit
            yield volume


def _total_ml(lesions: Sequence[Lesion]) -> float:
    return sum(lesion.volume_ml for lesion in lesions)


def _start(lesions: Sequence[Lesion], shape: Sequence[int]) -> list[int]:
    """Return the slices that the page shows first: through the largest lesion, or the middle."""
    return [*lesions[0].slices] if lesions else [size // 2 for size in shape]


def _policy_hash(text: str) -> str:
    """Return the hash by which a content security policy allows an inline script or style."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
