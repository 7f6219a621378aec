"""Still pictures of a segmented case, ready for a README or a paper.

Figures are drawn without pyplot, so nothing here touches a caller's plots or needs a display.
"""

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
"""One colour per region, from the palette of Okabe and Ito: safe for colour-blind readers."""

_PAPER, _INK, _FAINT = "#0d1117", "#f0f3f6", "#9aa4af"
_MARGIN = 3  # voxels around the brain
_FINER = 4  # outlines are drawn on a grid this much finer

Slice = NDArray[np.floating]
Box = tuple[float, float, float, float]


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
    """Save one axial slice of a case as a PNG: every sequence, then what was segmented on it.

    The slice is the one with the largest tumour in the reference, or in the prediction where
    there is no reference or it is empty; the middle slice where neither holds any. It is seen as
    radiologists do: anterior up, the patient's right on the left. With a reference, reference and
    prediction are laid over FLAIR side by side; without one, the prediction is laid over T1ce and
    FLAIR. A sequence that is not there is replaced by the first.

    Args:
        path: PNG file to write or replace; its folder is made if missing.
        image: sequences, (s, x, y, z), in LPS voxel order with equal in-plane spacing; 0 is
            background.
        prediction: segmented regions, (r, x, y, z) bool.
        reference: true regions, (r, x, y, z) bool.
        sequences: s names, in the order of ``image``.
        regions: r names out of :data:`REGION_COLOURS`, in the order of ``prediction``, each
            region drawn over the ones before it.
        title: headline; none if empty.

    Raises:
        ValueError: shapes, names or channels do not fit together, a region has no colour, or
            ``path`` is no ``.png``.
        OSError: ``path`` cannot be written.
    """
    _check_path(path)
    _check(image, prediction, reference, sequences, regions)
    k = _busiest_slice(prediction if reference is None else reference, prediction)
    x, y = _brain_box(image[..., k])
    shown = dict(zip(sequences, image[:, x, y, k], strict=True))
    under = shown.get("flair", shown[sequences[0]])

    panels = [(SEQUENCE_TITLES.get(name, name), plane, None) for name, plane in shown.items()]
    found = prediction[:, x, y, k]
    overlays: list[tuple[str, Slice, NDArray[np.bool_] | None]]
    if reference is None:
        overlays = [
            (f"Prediction on {SEQUENCE_TITLES.get(name, name)}", shown[name], found)
            for name in dict.fromkeys(n if n in shown else sequences[0] for n in ("t1ce", "flair"))
        ]
    else:
        truth = reference[:, x, y, k]
        overlays = [("Reference", under, truth), ("Prediction", under, found)]
    figure = _draw([*panels, *overlays], regions, title)

    _save(figure, path)


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

    The slice is the one with the largest tumour in the prediction, or the middle one; it is seen
    as :func:`save_overlay` shows it. Maps of one kind share a scale, drawn beside them; the less a
    map says, the more of the scan shows through. Each region's outline is the prediction's.

    Args:
        path: PNG file to write or replace; its folder is made if missing.
        image: scan to lay maps over, (x, y, z), in LPS voxel order with equal in-plane spacing; 0
            is background.
        maps: kind, such as "Semantic attention", -> region -> (x, y, z).
        prediction: segmented regions, (r, x, y, z) bool.
        regions: r names out of :data:`REGION_COLOURS`, in the order of ``prediction``.
        title: headline; none if empty.

    Raises:
        ValueError: there is no map, shapes or names do not fit together, a map is not finite, or
            ``path`` is no ``.png``.
        OSError: ``path`` cannot be written.
    """
    _check_path(path)
    _check(image[None], prediction, None, ("image",), regions)
    _check_maps(image, maps, regions)
    k = _busiest_slice(prediction)
    x, y = _brain_box(image[None, ..., k])
    plane = image[x, y, k]
    columns = [name for name in regions if any(name in row for row in maps.values())]

    # Inches: panels keep the shape of the slice, names above them, a scale at the end of a row.
    width, gap, name_height, bar, head = 2.2, 0.12, 0.3, 1.1, 0.5 if title else 0.1
    height = width * plane.shape[1] / plane.shape[0]
    pitch = name_height + height + gap
    total = (gap + len(columns) * (width + gap) + bar, head + len(maps) * pitch)
    figure = Figure(figsize=total, dpi=160, facecolor=_PAPER)
    FigureCanvasAgg(figure)

    def box(left: float, top: float, wide: float, high: float) -> Box:
        """Place axes by their upper left corner, in inches."""
        return (left / total[0], 1 - (top + high) / total[1], wide / total[0], high / total[1])

    for row, (kind, by_region) in enumerate(maps.items()):
        scale = shared_scale(values[image != 0] for values in by_region.values())
        top = head + row * pitch + name_height
        for column, region in enumerate(columns):
            if region not in by_region:
                continue
            axes = figure.add_axes(box(gap + column * (width + gap), top, width, height))
            mask = prediction[[*regions].index(region), x, y, k]
            _draw_map(axes, plane, by_region[region][x, y, k], scale, mask, region)
            axes.set_title(f"{kind}, {region}", color=_INK, fontsize=10, pad=4)
        axes = figure.add_axes(box(total[0] - bar + 0.1, top + 0.1 * height, 0.14, 0.8 * height))
        _draw_scale(axes, scale)
    if title:
        _draw_title(figure, title, total[1])
    _save(figure, path)


def shared_scale(maps: Iterable[NDArray[np.floating]]) -> ScalarMappable:
    """Return one colour scale for maps that are to be compared; value 0 is dark.

    Maps without negative values run from 0 to their highest value, others as far below 0 as above.
    Both colour maps can be read by colour-blind people.
    """
    low = high = 0.0
    for values in maps:
        low, high = float(values.min(initial=low)), float(values.max(initial=high))
    if low == 0:
        return ScalarMappable(Normalize(0.0, high, clip=True), "inferno")
    reach = max(-low, high)
    return ScalarMappable(Normalize(-reach, reach, clip=True), "berlin")


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as tmp:
        figure.savefig(tmp, format="png", facecolor=_PAPER)


def _check_path(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise ValueError(f"path={path} does not end in .png; only PNG is written")


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
                    f"maps[{kind!r}][{region!r}] holds NaN or infinite voxels; repeat what made it"
                )


def _check(
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
        wanted = (len(regions), *image.shape[1:])
        if mask is not None and mask.shape != wanted:
            raise ValueError(
                f"{name} has shape {mask.shape} but image has shape {image.shape} and "
                f"regions={tuple(regions)}; pass {name} as {wanted}"
            )
    if unknown := [name for name in regions if name not in REGION_COLOURS]:
        raise ValueError(f"regions={unknown} have no colour; choose from {[*REGION_COLOURS]}")


def _busiest_slice(*masks: NDArray[np.bool_]) -> int:
    """Axial slice with the most tumour in the first mask that has any, else the middle one."""
    for mask in masks:
        area = mask.any(axis=0).sum(axis=(0, 1))
        if area.any():
            return int(area.argmax())
    return int(masks[0].shape[-1] // 2)


def _brain_box(planes: Slice) -> tuple[slice, slice]:
    """Return the brain's bounding box in one slice, (s, x, y), with a margin; all of it if empty."""
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
    """Lay the panels out in rows of three and put the legend below them."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    across, down = panels[0][1].shape
    # Inches: every panel keeps the shape of the slice, with room for its name above.
    width, gap, name, foot, head = 2.6, 0.12, 0.3, 0.5, 0.5 if title else 0.1
    height = width * down / across
    total = (columns * (width + gap) + gap, head + rows * (name + height) + foot)
    figure = Figure(figsize=total, dpi=160, facecolor=_PAPER)
    FigureCanvasAgg(figure)
    for i, (label, plane, masks) in enumerate(panels):
        row, column = divmod(i, columns)
        left = gap + column * (width + gap)
        top = head + row * (name + height) + name
        box = (left / total[0], 1 - (top + height) / total[1], width / total[0], height / total[1])
        axes = figure.add_axes(box)
        _draw_panel(axes, plane, masks, regions)
        axes.set_title(label, color=_INK, fontsize=11, pad=4)
    if title:
        _draw_title(figure, title, total[1])
    figure.legend(
        handles=[Patch(color=REGION_COLOURS[name], label=name) for name in regions],
        loc="center",
        bbox_to_anchor=(0.5, 0.5 * foot / total[1]),
        ncols=len(regions),
        frameon=False,
        labelcolor=_INK,
        fontsize=11,
    )
    return figure


def _draw_panel(
    axes: Axes,
    plane: Slice,
    masks: NDArray[np.bool_] | None,
    regions: Sequence[str],
) -> None:
    """Draw one slice, (x, y), and on it the regions, (r, x, y)."""
    # Colours show better on a darker brain.
    extent = _draw_scan(axes, plane, darker=0.0 if masks is None else 0.3)
    if masks is not None:
        fine = [_smooth(mask) for mask in masks]
        fill = np.zeros((*fine[0].shape, 4), np.float32)
        for mask, name in zip(fine, regions, strict=True):
            fill[mask > 0.5] = (*to_rgb(REGION_COLOURS[name]), 0.45)
        axes.imshow(fill.transpose(1, 0, 2), interpolation="nearest", extent=extent, aspect="auto")
        for mask, name in zip(fine, regions, strict=True):
            _draw_outline(axes, mask, name, extent)


def _draw_map(
    axes: Axes,
    plane: Slice,
    values: Slice,
    scale: ScalarMappable,
    mask: NDArray[np.bool_],
    region: str,
) -> None:
    """Draw one slice, (x, y), on it a map and the outline of its region, both (x, y) too."""
    extent = _draw_scan(axes, plane, darker=0.6)
    colours = np.asarray(scale.to_rgba(values))
    strength = np.abs(values) / (scale.norm.vmax or 1.0)
    colours[..., 3] = np.where(plane == 0, 0, 0.75 * np.minimum(1, 2 * strength))
    axes.imshow(colours.transpose(1, 0, 2), interpolation="bilinear", extent=extent, aspect="auto")
    _draw_outline(axes, _smooth(mask), region, extent)


def _draw_scan(axes: Axes, plane: Slice, *, darker: float) -> Box:
    """Draw one slice, (x, y), in grey, with sides marked; return where it lies in the axes."""
    axes.set_axis_off()
    brain = plane[plane != 0]
    low, high = (float(p) for p in np.percentile(brain, (0.5, 99.7))) if brain.size else (0.0, 1.0)
    low = min(low, 0.0)
    across, down = plane.shape
    extent = (-0.5, across - 0.5, down - 0.5, -0.5)
    # LPS order: x grows to the patient's left and to the right of the picture, y downwards.
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
            color=_FAINT,
            fontsize=8,
            transform=axes.transAxes,
            va="center",
            ha="left" if x < 0.5 else "right",
        )
    return extent


def _draw_outline(axes: Axes, mask: NDArray[np.float32], region: str, extent: Box) -> None:
    """Draw the outline of a region from its mask as :func:`_smooth` makes it."""
    if (mask > 0.5).any():
        axes.contour(
            mask.T,
            levels=[0.5],
            linewidths=1.4,
            colors=[REGION_COLOURS[region]],
            extent=extent,
            origin="upper",
        )


def _draw_scale(axes: Axes, scale: ScalarMappable) -> None:
    """Draw the colours of a scale, the highest value on top."""
    shades = np.linspace(0, 1, 256)[:, None]
    axes.imshow(shades, cmap=scale.cmap, origin="lower", aspect="auto", extent=(0, 1, 0, 1))
    axes.set_xticks([])
    low, high = scale.get_clim()
    axes.set_yticks([0, 0.5, 1], [f"{v:.2g}" for v in (low, 0.5 * (low + high), high)])
    axes.yaxis.tick_right()
    axes.tick_params(colors=_FAINT, labelsize=8, length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _draw_title(figure: Figure, title: str, height: float) -> None:
    """Draw the headline; ``height`` is that of the figure, in inches."""
    figure.text(
        0.5,
        1 - 0.28 / height,
        title,
        color=_INK,
        fontsize=13,
        weight="bold",
        ha="center",
        va="center",
    )


def _smooth(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A finer mask with rounded steps, 0 to 1; parts one voxel wide survive a cut at 0.5."""
    fine = np.kron(mask, np.ones((_FINER, _FINER), np.float32))
    return np.asarray(ndimage.gaussian_filter(fine, 0.45 * _FINER), np.float32)
