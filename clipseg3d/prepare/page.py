"""The picture of each step of preparing a case: did it go well?"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from nibabel.affines import voxel_sizes

from clipseg3d.atomic_write import atomic_write
from clipseg3d.data.resampling import carry
from clipseg3d.prepare import atlas
from clipseg3d.vocabulary import SEQUENCE_TITLES

if TYPE_CHECKING:
    from clipseg3d.prepare.pipeline import PreparedCase

_BACKGROUND, _TEXT, _OUTLINE, _ATLAS = "#0d1117", "#f0f3f6", "#56B4E9", "#E69F00"
_PANEL = 2.1  # inches


def save_page(path: Path, case: "PreparedCase") -> None:
    """Save a PNG with a row for each sequence: the scan, and the prepared brain in three planes.

    The scan is shown as it came, through its middle. The head in the place of the case is shown
    with two outlines: that of its brain, which is the same in all rows, and that of the atlas. The
    brain alone is what is written.

    Args:
        path: PNG file to write or replace.
        case: what was prepared.
    """
    brain = np.any([volume != 0 for volume in case.sequences.values()], axis=0)
    average, mask = atlas.load_atlas()
    average_brain = carry(mask.astype(np.float32), average.affine, atlas.SHAPE, atlas.AFFINE)
    middle = [round(float(i.mean())) for i in np.nonzero(brain)]
    rows = len(case.sequences)
    figure = Figure(figsize=(5 * _PANEL, rows * (_PANEL + 0.35) + 0.5), facecolor=_BACKGROUND)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        rows, 5, left=0.01, right=0.99, bottom=0.01, top=1 - 0.75 / figure.get_figheight()
    )
    for row, (name, volume) in enumerate(case.sequences.items()):
        scan, matrix = case.scans[name], case.matrices[name]
        title = SEQUENCE_TITLES.get(name, name)
        axes = figure.add_subplot(grid[row, 0])
        _draw_native(axes, scan.voxels, voxel_sizes(scan.affine))
        axes.set_title(f"{title} as scanned", color=_TEXT, fontsize=9)
        head = carry(scan.voxels, np.linalg.inv(matrix) @ scan.affine, atlas.SHAPE, atlas.AFFINE)
        for column, axis in enumerate((2, 1, 0), start=1):
            axes = figure.add_subplot(grid[row, column])
            _draw(axes, _plane(head, middle, axis), axis)
            for outline, colour in ((average_brain, _ATLAS), (brain, _OUTLINE)):
                plane = _upright(_plane(outline, middle, axis), axis)
                axes.contour(plane, levels=[0.5], colors=[colour], linewidths=0.8)
            axes.set_title(f"{title} in place", color=_TEXT, fontsize=9)
        axes = figure.add_subplot(grid[row, 4])
        _draw(axes, _plane(volume, middle, 2), 2)
        axes.set_title(f"{title}, brain alone", color=_TEXT, fontsize=9)
    agreement = case.record["atlas"]["agreement"]
    figure.suptitle(
        f"{case.case_id}: brain {case.record['brain_ml']:.0f} ml (blue), atlas (orange), "
        f"Dice {agreement:.2f}",
        color=_TEXT,
        fontsize=11,
        y=1 - 0.2 / figure.get_figheight(),
    )
    with atomic_write(path) as tmp:
        figure.savefig(tmp, format="png", facecolor=_BACKGROUND, dpi=110)


def _plane(volume: npt.NDArray[Any], middle: Sequence[int], axis: int) -> npt.NDArray[np.float32]:
    """Return the plane of a volume through a voxel."""
    return np.asarray(np.moveaxis(volume, axis, 0)[middle[axis]], np.float32)


def _upright(plane: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.float32]:
    """Return rows and columns of a plane in LPS order, anterior or superior up."""
    return np.asarray(plane.T if axis == 2 else plane.T[::-1])


def _draw(axes: Axes, plane: npt.NDArray[np.float32], axis: int) -> None:
    """Draw a plane of the case."""
    axes.set_axis_off()
    axes.imshow(_upright(plane, axis), cmap="gray", vmin=0, vmax=_bright(plane))


def _draw_native(
    axes: Axes, voxels: npt.NDArray[np.float32], sizes: npt.NDArray[np.floating]
) -> None:
    """Draw the middle slice of a scan, in the order of its own voxels, across its thickest axis."""
    across = int(np.argmax(sizes))
    plane = _plane(voxels, [side // 2 for side in voxels.shape], across)
    height, width = (size for axis, size in enumerate(sizes) if axis != across)
    axes.set_axis_off()
    axes.imshow(plane.T, cmap="gray", vmin=0, vmax=_bright(plane), aspect=float(width / height))


def _bright(plane: npt.NDArray[np.float32]) -> float:
    """Return the value that is shown white."""
    return float(np.percentile(plane, 99.5)) or 1.0
