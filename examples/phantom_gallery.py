"""Draw simulated patients side by side: four sequences, and their labels over FLAIR.

    python examples/phantom_gallery.py --output examples/phantoms.png

Each column is a patient, shown in the axial slice with the most tumour core, as radiologists see
it: anterior up, the patient's right on the left.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from clipseg3d.data.releases import PHANTOM
from clipseg3d.phantom.simulate import Phantom, simulate_phantom
from clipseg3d.reporting.figures import REGION_COLOURS
from clipseg3d.vocabulary import SEQUENCE_TITLES


def planes(phantom: Phantom, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one slice of the sequences, (4, side, side) in [0, 1], and of the label map."""
    core = np.isin(phantom.label, (1, 4))
    k = int(core.sum(axis=(0, 1)).argmax())
    inside = np.argwhere(phantom.image[..., k].any(axis=0))
    x, y = (
        slice(int(start), int(start) + side)
        for start in np.maximum((inside.min(axis=0) + inside.max(axis=0) - side) // 2, 0)
    )
    slices = []
    for scan in phantom.image:
        low, high = np.percentile(scan[scan > 0], (1, 99.7))
        slices.append(np.clip((scan[x, y, k] - 0.6 * low) / (high - 0.6 * low), 0, 1))
    return np.stack(slices), phantom.label[x, y, k]


def main() -> None:
    """Simulate and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("phantoms.png"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 3, 4, 7, 12, 13, 17, 22])
    parser.add_argument("--spacing", type=float, default=1.5, help="voxel size in mm")
    arguments = parser.parse_args()
    side = round(180 / arguments.spacing)
    count = len(arguments.seeds)
    figure = Figure(figsize=(1.5 * count, 1.5 * 5), facecolor="black", dpi=120)
    FigureCanvasAgg(figure)
    grid = figure.subplots(5, count, squeeze=False)
    for column, seed in zip(grid.T, arguments.seeds, strict=True):
        image, label = planes(simulate_phantom(seed, spacing_mm=arguments.spacing), side)
        # the slice of each sequence, then FLAIR again, for the labels
        for axes, scan in zip(column, (*image, image[-1]), strict=True):
            axes.imshow(scan.T, cmap="gray", vmin=0, vmax=1)
            axes.set_axis_off()
        for mask, colour in zip(PHANTOM.to_regions(label), REGION_COLOURS.values(), strict=True):
            shade = np.ma.masked_where(~mask, mask)
            column[-1].imshow(shade.T, cmap=ListedColormap([colour]), alpha=0.75)
    for axes, title in zip(grid[:, 0], (*SEQUENCE_TITLES.values(), "WT TC ET"), strict=True):
        axes.text(2, 10, title, color="white", fontsize=8)
    figure.subplots_adjust(0, 0, 1, 1, 0.01, 0.01)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output, facecolor="black")


if __name__ == "__main__":
    main()
