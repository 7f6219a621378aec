"""Compare simulated patients with real cases, in numbers: contrasts and volumes.

    python examples/phantom_statistics.py --data BraTS2018 --output phantom_statistics.csv

Rows are medians and quartiles over cases. ``oedema``, ``core`` (necrosis and tumour that does not
enhance) and ``enhancing`` say how far the median intensity of that part is from the median of the
brain outside the tumour, in robust SDs (interquartile range / 1.349) of that brain. ``dark`` and
``bright`` are the 5th and 95th percentile of that brain in the same unit. They stand for the
contrast of normal tissues, since real cases have no tissue labels. Volumes are in ml.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from clipseg3d.atomic_write import atomic_write
from clipseg3d.data.cases import detect_release, find_cases
from clipseg3d.data.nifti import open_nifti, read_voxels
from clipseg3d.data.releases import PHANTOM
from clipseg3d.phantom.simulate import simulate_phantom
from clipseg3d.vocabulary import REGIONS, SEQUENCES

MIN_VOXELS = 50
"""A smaller part has no typical intensity."""
QUARTILES = (50, 25, 75)


def describe(image: np.ndarray, regions: np.ndarray, voxel_ml: float) -> dict[str, float]:
    """Return the statistics of one case.

    Args:
        image: (4, x, y, z), background 0.
        regions: (3, x, y, z) bool: WT, TC, ET.
        voxel_ml: volume of a voxel.
    """
    whole, core, enhancing = regions
    parts = {"oedema": whole & ~core, "core": core & ~enhancing, "enhancing": enhancing}
    statistics = {
        f"{region} ml": float(mask.sum() * voxel_ml)
        for region, mask in zip(REGIONS, regions, strict=True)
    }
    for sequence, scan in zip(SEQUENCES, image, strict=True):
        low, first, middle, third, high = np.percentile(
            scan[(scan != 0) & ~whole], (5, 25, 50, 75, 95)
        )
        spread = (third - first) / 1.349
        statistics[f"{sequence} dark"] = float((low - middle) / spread)
        statistics[f"{sequence} bright"] = float((high - middle) / spread)
        for name, mask in parts.items():
            if mask.sum() >= MIN_VOXELS:
                statistics[f"{sequence} {name}"] = float((np.median(scan[mask]) - middle) / spread)
    return statistics


def real(root: Path) -> Iterator[dict[str, float]]:
    """Describe every case below a folder."""
    release = detect_release(root)
    for case in tqdm(find_cases(root, release), desc="Real cases"):
        image = np.stack([read_voxels(path) for path in case.sequences.values()])
        spacing = open_nifti(case.label).header.get_zooms()
        label = np.rint(read_voxels(case.label)).astype(np.uint8)
        yield describe(image, release.to_regions(label), float(np.prod(spacing)) / 1000)


def simulated(count: int, spacing_mm: float) -> Iterator[dict[str, float]]:
    """Describe ``count`` phantoms."""
    for seed in tqdm(range(count), desc="Phantoms"):
        phantom = simulate_phantom(seed, spacing_mm=spacing_mm)
        yield describe(phantom.image, PHANTOM.to_regions(phantom.label), spacing_mm**3 / 1000)


def collect(cases: Iterator[dict[str, float]]) -> dict[str, np.ndarray]:
    """Return median and quartiles over cases of every statistic."""
    values = defaultdict(list)
    for statistics in cases:
        for name, value in statistics.items():
            values[name].append(value)
    return {name: np.percentile(row, QUARTILES) for name, row in values.items()}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of real BraTS cases")
    parser.add_argument("--phantoms", type=int, default=60)
    parser.add_argument("--spacing", type=float, default=2.0, help="of phantoms, in mm")
    parser.add_argument("--output", type=Path, default=Path("phantom_statistics.csv"))
    arguments = parser.parse_args()
    of_real = collect(real(arguments.data))
    of_phantoms = collect(simulated(arguments.phantoms, arguments.spacing))
    overlaps = []
    names = [
        f"{data} {part}" for data in ("real", "phantoms") for part in ("median", "low", "high")
    ]
    rows = [["statistic", *names, "quartiles overlap"]]
    print(f"{'':16s} {'real: median (quartiles)':>26s} {'phantoms':>26s}")
    for name, (middle, first, third) in of_real.items():
        a, b, c = of_phantoms[name]
        overlap = b <= third and first <= c
        mark = "" if overlap else "  quartiles apart"
        print(
            f"{name:16s} {middle:10.2f} ({first:6.2f} {third:6.2f}) "
            f"{a:10.2f} ({b:6.2f} {c:6.2f}){mark}"
        )
        overlaps.append(overlap)
        rows.append([name, *(f"{x:.3f}" for x in (middle, first, third, a, b, c)), str(overlap)])
    print(f"{sum(overlaps)} of {len(overlaps)} statistics have quartiles that overlap")
    with atomic_write(arguments.output) as tmp, tmp.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main()
