"""PNG figures of a segmented case, for a README or a paper.

Figures are drawn without pyplot: they need no display and do not change plots of the caller.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from scipy import ndimage

from clipseg3d.atomic_write import atomic_write
from clipseg3d.vocabulary import REGIONS, SEQUENCE_TITLES, SEQUENCES

REGION_COLOURS = {"WT": "#56B4E9", "TC": "#F0E442", "ET": "#D55E00"}
"""Of the usual regions, from the palette of Okabe and Ito: safe for colour-blind readers."""
_MORE_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#0072B2", "#F0F3F6")
"""The rest of that palette, for other regions; used again where there are more."""

_BACKGROUND, _TEXT, _FAINT_TEXT = "#0d1117", "#f0f3f6", "#9aa4af"
_MARGIN = 3  # voxels around the brain
_UPSAMPLING = 4  # outlines are drawn on a grid that is finer by this factor

Slice = NDArray[np.floating]
Box = tuple[float, float, float, float]


def region_colours(regions: Sequence[str]) -> dict[str, str]:
    """Return one colour for each region, as ``#rrggbb``."""
    others = [name for name in regions if name not in REGION_COLOURS]
    more = dict(zip(others, itertools.cycle(_MORE_COLOURS), strict=False))
    return {name: REGION_COLOURS.get(name) or more[name] for name in regions}


def save_overlay(
    path: Path,
    image: NDArray[np.floating],
    *,
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_] | None = None,
    sequences: Sequence[str] = SEQUENCES,
    regions: Sequence[str] = REGIONS,
    title: str = "",
) -> None:
    """Save one axial slice of a case as a PNG: every sequence, then the segmentation over it.

    The slice is the one with the largest tumour area in the reference; in the prediction, if there
    is no reference or it is empty; the middle slice, if both are empty. It is shown in radiological
    convention: anterior up, the patient's right on the left. With a reference, reference and
    prediction are drawn over FLAIR, side by side; without one, the prediction is drawn over T1ce
    and FLAIR. A sequence that is missing is replaced by the first one.

    Args:
        path: PNG file to write or replace; its folder is made if missing.
        image: sequences, (s, x, y, z), in LPS voxel order with equal in-plane spacing; 0 is
            background.
        prediction: predicted region masks, (r, x, y, z) bool.
        reference: reference region masks, (r, x, y, z) bool.
        sequences: s names, in the order of ``image``.
        regions: r names, in the order of ``prediction``; each region is
            drawn over those before it.
        title: headline; none if empty.

    Raises:
        ValueError: shapes or names do not fit together, or ``path`` does not end in ``.png``.
        OSError: ``path`` cannot be written.
    """
    _check_path(path)
    _check_volumes(image, prediction, reference, sequences, regions)
    k = _largest_slice(prediction if reference is None else reference, prediction)
    x, y = _brain_box(image[..., k])
    planes = dict(zip(sequences, image[:, x, y, k], strict=True))
    flair = planes.get("flair", planes[sequences[0]])

    panels = [(SEQUENCE_TITLES.get(name, name), plane, None) for name, plane in planes.items()]
    predicted = prediction[:, x, y, k]
    overlays: list[tuple[str, Slice, NDArray[np.bool_] | None]]
    if reference is None:
        overlays = [
            (f"Prediction on {SEQUENCE_TITLES.get(name, name)}", planes[name], predicted)
            for name in dict.fromkeys(n if n in planes else sequences[0] for n in ("t1ce", "flair"))
        ]
    else:
        overlays = [
            ("Reference", flair, reference[:, x, y, k]),
            ("Prediction", flair, predicted),
        ]
    _save(_draw([*panels, *overlays], regions, title), path)


def save_maps(
    path: Path,
    image: NDArray[np.floating],
    *,
    maps: Mapping[str, Mapping[str, NDArray[np.floating]]],
    prediction: NDArray[np.bool_],
    regions: Sequence[str] = REGIONS,
    title: str = "",
) -> None:
    """Save maps of one axial slice as a PNG: a row for each kind, a column for each region.

    The slice is the one with the largest tumour area in the prediction, or the middle one; it is
    oriented as in :func:`save_overlay`. Maps of one kind share a scale, which is drawn beside them.
    The nearer a value is to 0, the more transparent is the map. The outline of each region is that
    of the prediction.

    Args:
        path: PNG file to write or replace; its folder is made if missing.
        image: scan to draw maps over, (x, y, z), in LPS voxel order with equal in-plane spacing; 0
            is background.
        maps: kind, such as "Semantic attention", -> region -> (x, y, z).
        prediction: predicted region masks, (r, x, y, z) bool.
        regions: r names, in the order of ``prediction``.
        title: headline; none if empty.

    Raises:
        ValueError: there is no map, shapes or names do not fit together, a map is not finite, or
            ``path`` does not end in ``.png``.
        OSError: ``path`` cannot be written.
    """
    _check_path(path)
    _check_volumes(image[None], prediction, None, ("image",), regions)
    _check_maps(image, maps, regions)
    k = _largest_slice(prediction)
    x, y = _brain_box(image[None, ..., k])
    plane = image[x, y, k]
    columns = [name for name in regions if any(name in row for row in maps.values())]
    colours = region_colours(regions)

    # In inches. Panels keep the shape of the slice, with names above; each row ends with a scale.
    width, gap, name_height, bar, head = 2.2, 0.12, 0.3, 1.1, 0.5 if title else 0.1
    height = width * plane.shape[1] / plane.shape[0]
    pitch = name_height + height + gap
    total = (gap + len(columns) * (width + gap) + bar, head + len(maps) * pitch)
    figure = Figure(figsize=total, dpi=160, facecolor=_BACKGROUND)
    FigureCanvasAgg(figure)

    def box(left: float, top: float, wide: float, high: float) -> Box:
        """Return the position of axes from their upper left corner and size, in inches."""
        return (left / total[0], 1 - (top + high) / total[1], wide / total[0], high / total[1])

    for row, (kind, by_region) in enumerate(maps.items()):
        scale = shared_scale(values[image != 0] for values in by_region.values())
        top = head + row * pitch + name_height
        for column, region in enumerate(columns):
            if region not in by_region:
                continue
            axes = figure.add_axes(box(gap + column * (width + gap), top, width, height))
            mask = prediction[[*regions].index(region), x, y, k]
            _draw_map(axes, plane, by_region[region][x, y, k], scale, mask, colours[region])
            axes.set_title(f"{kind}, {region}", color=_TEXT, fontsize=10, pad=4)
        axes = figure.add_axes(box(total[0] - bar + 0.1, top + 0.1 * height, 0.14, 0.8 * height))
        _draw_scale(axes, scale)
    if title:
        _draw_title(figure, title, total[1])
    _save(figure, path)


def shared_scale(maps: Iterable[NDArray[np.floating]]) -> ScalarMappable:
    """Return one colour scale for maps that are to be compared; the value 0 is dark.

    If no value is negative, the scale runs from 0 to the highest value, in matplotlib's "inferno".
    Otherwise it runs equally far below and above 0, in "berlin". Both are safe for colour-blind
    readers. With no voxels at all, or only zeros, it runs from 0 to 0.

    Args:
        maps: arrays of any shape.
    """
    low = high = 0.0
    for values in maps:
        low, high = float(values.min(initial=low)), float(values.max(initial=high))
    if low == 0:
        return ScalarMappable(Normalize(0.0, high, clip=True), "inferno")
    limit = max(-low, high)
    return ScalarMappable(Normalize(-limit, limit, clip=True), "berlin")


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as tmp:
        figure.savefig(tmp, format="png", facecolor=_BACKGROUND)


def _check_path(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise ValueError(f"path={path} does not end in .png; rename it")


def _check_maps(
    image: NDArray[np.floating],
    maps: Mapping[str, Mapping[str, NDArray[np.floating]]],
    regions: Sequence[str],
) -> None:
    if not any(maps.values()):
        raise ValueError("maps is empty; pass at least one map, as kind -> region -> (x, y, z)")
    for kind, by_region in maps.items():
        for region, values in by_region.items():
            if region not in regions:
                raise ValueError(f"maps[{kind!r}] has {region!r}; choose from {tuple(regions)}")
            if values.shape != image.shape:
                raise ValueError(
                    f"maps[{kind!r}][{region!r}] has shape {values.shape} but image has shape "
                    f"{image.shape}; bring it to the image's grid"
                )
            if not np.isfinite(values).all():
                raise ValueError(
                    f"maps[{kind!r}][{region!r}] holds NaN or infinite voxels; compute it again"
                )


def _check_volumes(
    image: NDArray[np.floating],
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_] | None,
    sequences: Sequence[str],
    regions: Sequence[str],
) -> None:
    if image.ndim != 4 or image.shape[0] != len(sequences) or not len(sequences):
        raise ValueError(
            f"image has shape {image.shape} but sequences={tuple(sequences)}; pass (s, x, y, z) "
            "with one name per channel"
        )
    for name, mask in (("prediction", prediction), ("reference", reference)):
        expected = (len(regions), *image.shape[1:])
        if mask is not None and mask.shape != expected:
            raise ValueError(
                f"{name} has shape {mask.shape} but image has shape {image.shape} and "
                f"regions={tuple(regions)}; pass {name} as {expected}"
            )


def _largest_slice(*masks: NDArray[np.bool_]) -> int:
    """Return the axial slice with the largest area in the first mask that is not empty.

    If all are empty, return the middle slice.
    """
    for mask in masks:
        area = mask.any(axis=0).sum(axis=(0, 1))
        if area.any():
            return int(area.argmax())
    return int(masks[0].shape[-1] // 2)


def _brain_box(planes: Slice) -> tuple[slice, slice]:
    """Return the bounding box of the brain in a slice (s, x, y), with a margin.

    If the slice is empty, return all of it.
    """
    boxes = ndimage.find_objects((planes != 0).any(axis=0).astype(np.uint8))
    if not boxes:
        return slice(None), slice(None)
    x, y = (slice(max(side.start - _MARGIN, 0), side.stop + _MARGIN) for side in boxes[0])
    return x, y


def _draw(
    panels: Sequence[tuple[str, Slice, NDArray[np.bool_] | None]],
    regions: Sequence[str],
    title: str,
) -> Figure:
    """Draw panels, each a name, a slice and masks over it, in rows of three above a legend."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    across, down = panels[0][1].shape
    # In inches. Every panel keeps the shape of the slice, with room for its name above.
    width, gap, name_height, foot, head = 2.6, 0.12, 0.3, 0.5, 0.5 if title else 0.1
    height = width * down / across
    total = (columns * (width + gap) + gap, head + rows * (name_height + height) + foot)
    figure = Figure(figsize=total, dpi=160, facecolor=_BACKGROUND)
    FigureCanvasAgg(figure)
    for i, (label, plane, masks) in enumerate(panels):
        row, column = divmod(i, columns)
        left = gap + column * (width + gap)
        top = head + row * (name_height + height) + name_height
        box = (left / total[0], 1 - (top + height) / total[1], width / total[0], height / total[1])
        axes = figure.add_axes(box)
        _draw_panel(axes, plane, masks, regions)
        axes.set_title(label, color=_TEXT, fontsize=11, pad=4)
    if title:
        _draw_title(figure, title, total[1])
    figure.legend(
        handles=[
            Patch(color=colour, label=name) for name, colour in region_colours(regions).items()
        ],
        loc="center",
        bbox_to_anchor=(0.5, 0.5 * foot / total[1]),
        ncols=len(regions),
        frameon=False,
        labelcolor=_TEXT,
        fontsize=11,
    )
    return figure


def _draw_panel(
    axes: Axes,
    plane: Slice,
    masks: NDArray[np.bool_] | None,
    regions: Sequence[str],
) -> None:
    """Draw one slice, (x, y), and the regions, (r, x, y), over it."""
    # Colours are easier to see on a darker brain.
    extent = _draw_scan(axes, plane, darker=0.0 if masks is None else 0.3)
    if masks is not None:
        colours = region_colours(regions)
        fine_masks = [_smooth(mask) for mask in masks]
        fill = np.zeros((*fine_masks[0].shape, 4), np.float32)
        for mask, name in zip(fine_masks, regions, strict=True):
            fill[mask > 0.5] = (*to_rgb(colours[name]), 0.45)
        axes.imshow(fill.transpose(1, 0, 2), interpolation="nearest", extent=extent, aspect="auto")
        for mask, name in zip(fine_masks, regions, strict=True):
            _draw_outline(axes, mask, colours[name], extent)


def _draw_map(
    axes: Axes,
    plane: Slice,
    values: Slice,
    scale: ScalarMappable,
    mask: NDArray[np.bool_],
    colour: str,
) -> None:
    """Draw one slice, (x, y), with a map and the outline of its region over it, both (x, y)."""
    extent = _draw_scan(axes, plane, darker=0.6)
    colours = np.asarray(scale.to_rgba(values))
    strength = np.abs(values) / (scale.norm.vmax or 1.0)
    colours[..., 3] = np.where(plane == 0, 0, 0.75 * np.minimum(1, 2 * strength))
    axes.imshow(colours.transpose(1, 0, 2), interpolation="bilinear", extent=extent, aspect="auto")
    _draw_outline(axes, _smooth(mask), colour, extent)


def _draw_scan(axes: Axes, plane: Slice, *, darker: float) -> Box:
    """Draw one slice, (x, y), in grey, with R and L at the sides; return its extent in the axes."""
    axes.set_axis_off()
    brain = plane[plane != 0]
    low, high = (float(p) for p in np.percentile(brain, (0.5, 99.7))) if brain.size else (0.0, 1.0)
    low = min(low, 0.0)
    across, down = plane.shape
    extent = (-0.5, across - 0.5, down - 0.5, -0.5)
    # LPS order: x grows to the patient's left, which is on the right of the picture; y downwards.
    axes.imshow(
        np.where(plane == 0, low, plane).T,
        cmap="gray",
        vmin=low,
        vmax=high + darker * (high - low),
        interpolation="bicubic",
        extent=extent,
        aspect="auto",
    )
    for x, side in ((0.02, "R"), (0.98, "L")):
        axes.text(
            x,
            0.5,
            side,
            color=_FAINT_TEXT,
            fontsize=8,
            transform=axes.transAxes,
            va="center",
            ha="left" if x < 0.5 else "right",
        )
    return extent


def _draw_outline(axes: Axes, mask: NDArray[np.float32], colour: str, extent: Box) -> None:
    """Draw the outline of a region from its smooth mask, as returned by :func:`_smooth`."""
    if (mask > 0.5).any():
        axes.contour(
            mask.T,
            levels=[0.5],
            linewidths=1.4,
            colors=[colour],
            extent=extent,
            origin="upper",
        )


def _draw_scale(axes: Axes, scale: ScalarMappable) -> None:
    """Draw the colours of a scale, with the highest value on top."""
    shades = np.linspace(0, 1, 256)[:, None]
    axes.imshow(shades, cmap=scale.cmap, origin="lower", aspect="auto", extent=(0, 1, 0, 1))
    axes.set_xticks([])
    low, high = scale.get_clim()
    axes.set_yticks([0, 0.5, 1], [f"{v:.2g}" for v in (low, 0.5 * (low + high), high)])
    axes.yaxis.tick_right()
    axes.tick_params(colors=_FAINT_TEXT, labelsize=8, length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _draw_title(figure: Figure, title: str, height: float) -> None:
    """Draw the headline; ``height`` is the height of the figure, in inches."""
    figure.text(
        0.5,
        1 - 0.28 / height,
        title,
        color=_TEXT,
        fontsize=13,
        weight="bold",
        ha="center",
        va="center",
    )


def _smooth(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return a finer mask with rounded edges, 0 to 1; parts one voxel wide stay above 0.5."""
    fine = np.kron(mask, np.ones((_UPSAMPLING, _UPSAMPLING), np.float32))
    return np.asarray(ndimage.gaussian_filter(fine, 0.45 * _UPSAMPLING), np.float32)
