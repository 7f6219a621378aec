r"""Score weights on scans as scanners give them: thick and tilted voxels, a grid per sequence.

    python examples/scanner_grids.py --data BraTS2018 --weights tiny --output scanner_grids.csv

Real cases at 1 mm are acquired again on other grids: a voxel is the mean of the brain in it, and an
expert mask holds it if half of it lies in the region. The scan is segmented, and the labels are
compared with the mask on the same grid. There is one row per grid, case and region. Cases named
``Brats18_TCIA*`` were in training and are left out. An interrupted run continues with the next one.
"""

import argparse
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from evaluate_tiny import read_rows, write_rows
from nibabel.affines import apply_affine, from_matvec, to_matvec
from scipy import ndimage
from scipy.spatial.transform import Rotation
from tqdm import tqdm
from train_tiny import is_training_case

from clipseg3d import Predictor
from clipseg3d.data.array_volume import ArrayVolume, VolumeSource
from clipseg3d.data.cases import Case, find_cases
from clipseg3d.data.nifti import open_nifti, read_voxels
from clipseg3d.data.releases import BRATS_2018
from clipseg3d.inference.segmentation import ScanWarning
from clipseg3d.metrics.dice import dice_empty_is_one
from clipseg3d.prepare.bias_field import correct_bias
from clipseg3d.vocabulary import REGIONS, SEQUENCES


class Grid(NamedTuple):
    """Voxels of a scanner."""

    sizes: Sequence[float]
    """In mm, along x, y and z of the original scan; whole numbers, or one divided by them."""
    degrees: float = 0.0
    """By how much all axes are tilted."""


ORIGINAL = Grid((1, 1, 1))
N4 = "original, shading removed by N4"
GRIDS = {
    "original": dict.fromkeys(SEQUENCES, ORIGINAL),
    N4: dict.fromkeys(SEQUENCES, ORIGINAL),
    "oblique by 10 degrees": dict.fromkeys(SEQUENCES, Grid((1, 1, 1), 10)),
    "2 mm": dict.fromkeys(SEQUENCES, Grid((2, 2, 2))),
    "2 mm, oblique by 10 degrees": dict.fromkeys(SEQUENCES, Grid((2, 2, 2), 10)),
    "1 x 1 x 3 mm": dict.fromkeys(SEQUENCES, Grid((1, 1, 3))),
    "0.5 x 0.5 x 5 mm": dict.fromkeys(SEQUENCES, Grid((0.5, 0.5, 5))),
    "one for each sequence": {
        "t1": Grid((3, 1, 1)),
        "t1ce": ORIGINAL,
        "t2": Grid((0.5, 0.5, 3)),
        "flair": Grid((1, 1, 3), 10),
    },
}
"""Name -> sequence -> grid; labels are scored on that of t1ce."""


def place(
    grid: Grid, affine: npt.NDArray[np.float64], shape: tuple[int, ...]
) -> tuple[npt.NDArray[np.float64], tuple[int, int, int]]:
    """Return affine and shape of a grid over an original one, tilted about its middle."""
    sizes = np.array(grid.sizes, float)
    x, y, z = np.ceil(np.array(shape) / sizes).astype(int).tolist()
    middle = apply_affine(affine, (np.array(shape) - 1) / 2)
    turn = Rotation.from_rotvec(np.deg2rad(grid.degrees) * np.ones(3) / 3**0.5).as_matrix()
    tilt = from_matvec(turn, middle - turn @ middle)
    return tilt @ affine @ from_matvec(np.diag(sizes), (sizes - 1) / 2), (x, y, z)


def mean_in_voxels(
    volume: npt.NDArray[Any], affine: npt.NDArray[np.float64], grid: Grid
) -> npt.NDArray[np.float32]:
    """Return the mean of a volume in each voxel of a grid."""
    target, shape = place(grid, affine, volume.shape)
    counts = [max(1, round(size)) for size in grid.sizes]
    total = np.zeros(shape, np.float32)
    for index in product(*map(range, counts)):  # samples inside of each voxel
        within = [(i + 0.5) / count - 0.5 for i, count in zip(index, counts, strict=True)]
        steps = np.linalg.inv(affine) @ target @ from_matvec(np.eye(3), within)
        total += ndimage.affine_transform(
            volume.astype(np.float32), *to_matvec(steps), shape, order=1, mode="grid-constant"
        )
    return total / np.float32(np.prod(counts))


def acquire(case: Case, grids: Mapping[str, Grid]) -> tuple[Case, npt.NDArray[np.bool_]]:
    """Return a case without expert mask on other grids, and its regions on the grid of t1ce."""
    volumes: dict[str, VolumeSource] = {}
    for name, path in case.sequences.items():
        affine, voxels = open_nifti(path).affine, read_voxels(path)
        share = mean_in_voxels(voxels != 0, affine, grids[name])
        mean = mean_in_voxels(voxels, affine, grids[name]) / np.maximum(share, 0.5)
        there, _ = place(grids[name], affine, voxels.shape)
        volumes[name] = ArrayVolume(str(path), mean * (share >= 0.5), there)
    if case.label is None:
        raise ValueError(f"{case.case_id}: has no expert mask; give cases with one")
    regions = BRATS_2018.to_regions(read_voxels(case.label).astype(np.uint8))
    affine = open_nifti(case.label).affine
    truth = [mean_in_voxels(region, affine, grids["t1ce"]) >= 0.5 for region in regions]
    return replace(case, sequences=volumes, label=None), np.stack(truth)


def without_shading(case: Case) -> Case:
    """Return a case that :func:`acquire` made after N4, as ``clipseg3d prepare`` does it."""
    sequences: dict[str, VolumeSource] = {}
    for name, volume in case.sequences.items():
        if not isinstance(volume, ArrayVolume):
            raise TypeError(f"{volume}: is no ArrayVolume")
        even = correct_bias(volume.voxels, volume.voxels != 0, volume.affine)
        sequences[name] = replace(volume, voxels=even)
    return replace(case, sequences=sequences)


def score(predictor: Predictor, case: Case, name: str) -> list[dict[str, str]]:
    """Return a row of Dice per region."""
    changed, truth = acquire(case, GRIDS[name])
    if name == N4:
        changed = without_shading(changed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScanWarning)
        found = BRATS_2018.to_regions(predictor(changed).label)
    scores = dice_empty_is_one(*map(torch.from_numpy, (found, truth)))
    return [
        {"grid": name, "case": case.case_id, "region": region, "dice": f"{value:.4f}"}
        for region, value in zip(REGIONS, scores.tolist(), strict=True)
    ]


def main() -> None:
    """Score the grids and cases that have no score yet, and print means."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, help="folder of BraTS 2018; read only")
    parser.add_argument("--weights", default="tiny", help="name or folder")
    parser.add_argument("--output", type=Path, default=Path("scanner_grids.csv"))
    parser.add_argument("--num-cases", type=int, help="take the first ones alone")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cases = [
        case for case in find_cases(arguments.data, BRATS_2018) if not is_training_case(case, ())
    ][: arguments.num_cases]
    predictor = Predictor.from_checkpoints([arguments.weights])
    rows = read_rows(arguments.output)
    done = {(row["grid"], row["case"]) for row in rows}
    work = [(case, name) for case in cases for name in GRIDS if (name, case.case_id) not in done]
    for case, name in tqdm(work, unit="scan"):
        rows += score(predictor, case, name)
        write_rows(arguments.output, rows)
    for name in GRIDS:
        means = [
            np.mean([float(r["dice"]) for r in rows if (r["grid"], r["region"]) == (name, region)])
            for region in REGIONS
        ]
        parts = [f"{region} {mean:.3f}" for region, mean in zip(REGIONS, means, strict=True)]
        tqdm.write(f"{name}: {', '.join(parts)}, mean {np.mean(means):.3f}")


if __name__ == "__main__":
    main()
