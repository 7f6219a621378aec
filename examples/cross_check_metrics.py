"""Compare our scores with medpy, surface-distance and panoptica.

    python -m venv peers
    peers/bin/pip install medpy panoptica surface-distance-based-measures
    python examples/cross_check_metrics.py --python peers/bin/python

These packages need other versions of NumPy than we do, so they run in an environment of their own.
The script writes pairs of masks and our scores to a file, then calls itself with the other Python
to score the pairs there. The golden case of our tests comes first; the other pairs are random, with
empty masks, single voxels, masks at the ends of the volume, stray voxels and voxels that are not
cubes. Packages that are not installed are left out. Each package is compared where its definition
equals ours. For panoptica that is at 1 mm only, because its distances of whole masks ignore the
voxel size, and where the masks overlap, because other distances are infinite there. The exit code
is 1 if anything differs.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = 1e-6
"""Relative; the packages add and sort in other orders."""
NSD_TOLERANCE_MM = 1.0

Pair = tuple[Any, Any, tuple[float, ...]]
Scores = dict[str, Callable[[Any, Any, tuple[float, ...]], float]]


def draw_pairs(count: int) -> Iterator[Pair]:
    """Give prediction, reference and voxel size: first of the golden case, then random ones."""
    reference = np.zeros((96, 96, 80), np.uint8)
    prediction = reference.copy()
    for (start, stop), label in (((20, 50), 2), ((26, 44), 1), ((30, 40), 3)):
        cube = slice(start, stop)
        reference[cube, cube, cube] = label
        prediction[start + 2 : stop + 2, cube, cube] = label
    reference[70:76, 70:76, 60:66] = 3
    for labels in ((1, 2, 3), (1, 3), (3,)):
        yield np.isin(prediction, labels), np.isin(reference, labels), (1.0, 1.0, 1.0)
    for seed in range(count):
        rng = np.random.default_rng(seed)
        shape = tuple(rng.permutation([14, 19, 24]))
        spacing = (1.0,) * 3 if rng.random() < 0.5 else tuple(rng.uniform(0.4, 3, 3).round(2))
        grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
        masks = []
        for _ in range(2):
            mask = np.zeros(shape, bool)
            for _ in range(rng.integers(1, 6)):
                centre, radii = rng.uniform(0, shape), rng.uniform(1, 7, 3)
                mask |= (((grid - centre) / radii) ** 2).sum(axis=-1) < 1
            masks.append(mask)
        kind = seed % 6
        if kind == 1:
            masks[0] = np.roll(masks[1], tuple(rng.integers(-2, 3, 3)), axis=(0, 1, 2))
        elif kind == 2:
            masks[0] = masks[1] ^ (rng.random(shape) < 0.05)
        elif kind == 3:
            masks[0][0, 0, 0] = masks[0][-1, :, -1] = True
        elif kind == 4:
            masks[0][:] = False
            masks[0][tuple(rng.integers(0, shape))] = rng.random() < 0.7
        elif kind == 5 and rng.random() < 0.3:
            masks[1][:] = False
        yield *masks, spacing


def our_scores() -> Scores:
    """Return our scores, by name."""
    from clipseg3d.metrics.hausdorff import HD95_METHODS, HD95Method, hd95
    from clipseg3d.metrics.mask_pair import MaskPair
    from clipseg3d.metrics.nsd import surface_dice
    from clipseg3d.metrics.overlap import Overlap

    def distance(method: HD95Method) -> Callable[[Any, Any, tuple[float, ...]], float]:
        return lambda p, r, mm: hd95(p, r, spacing_mm=mm, method=method)

    return {
        "dice": lambda p, r, mm: Overlap.of(MaskPair.cut(p, r)).dice_empty_is_nan,
        "sensitivity": lambda p, r, mm: Overlap.of(MaskPair.cut(p, r)).sensitivity,
        "specificity": lambda p, r, mm: Overlap.of(MaskPair.cut(p, r)).specificity,
        "nsd": lambda p, r, mm: surface_dice(p, r, spacing_mm=mm, tolerance_mm=NSD_TOLERANCE_MM),
        **{f"hd95 {method}": distance(method) for method in HD95_METHODS},
    }


def peer_scores() -> dict[str, tuple[str, Callable[[Any, Any, tuple[float, ...]], float | None]]]:
    """Return name -> our score and the package's, None where it has none, of what is installed."""
    scores: dict[str, tuple[str, Callable[[Any, Any, tuple[float, ...]], float | None]]] = {}
    if find_spec("medpy"):
        from medpy.metric import binary

        def both(p: Any, r: Any) -> bool:
            return bool(p.any() and r.any())

        scores["medpy dc"] = "dice", lambda p, r, mm: binary.dc(p, r) if both(p, r) else None
        scores["medpy sensitivity"] = (
            "sensitivity",
            lambda p, r, mm: binary.sensitivity(p, r) if r.any() else None,
        )
        scores["medpy specificity"] = "specificity", lambda p, r, mm: binary.specificity(p, r)
        scores["medpy hd95"] = (
            "hd95 medpy",
            lambda p, r, mm: binary.hd95(p, r, voxelspacing=mm) if both(p, r) else None,
        )
    if find_spec("surface_distance"):
        import surface_distance

        np.Inf = np.inf  # type: ignore[attr-defined]  # surface-distance 0.1 predates NumPy 2

        scores["surface-distance robust hausdorff 95"] = (
            "hd95 surface",
            lambda p, r, mm: (
                surface_distance.compute_robust_hausdorff(
                    surface_distance.compute_surface_distances(r, p, mm), 95
                )
                if p.any() or r.any()
                else None
            ),
        )
        scores["surface-distance surface Dice"] = (
            "nsd",
            lambda p, r, mm: surface_distance.compute_surface_dice_at_tolerance(
                surface_distance.compute_surface_distances(r, p, mm), NSD_TOLERANCE_MM
            ),
        )
    if find_spec("panoptica"):
        from panoptica import InputType, Panoptica_Evaluator
        from panoptica.metrics import Metric

        evaluator = Panoptica_Evaluator(
            expected_input=InputType.MATCHED_INSTANCE,  # each mask is one instance
            instance_metrics=[Metric.DSC],
            global_metrics=[Metric.DSC, Metric.HD95],
        )

        def global_score(name: str) -> Callable[[Any, Any, tuple[float, ...]], float | None]:
            def score(p: Any, r: Any, mm: tuple[float, ...]) -> float | None:
                if not (p & r).any() or set(mm) != {1.0}:
                    return None
                (result,) = evaluator.evaluate(
                    p.astype(np.uint8), r.astype(np.uint8), verbose=False
                ).values()
                return float(getattr(result, name))

            return score

        scores["panoptica global DSC"] = "dice", global_score("global_bin_dsc")
        scores["panoptica global HD95"] = "hd95 medpy", global_score("global_bin_hd95")
    return scores


def compare(path: Path) -> dict[str, dict[str, Any]]:
    """Score the pairs of a file with every installed package, and compare."""
    content = np.load(path)
    count = len(content["spacing"])
    report = {}
    for name, (ours, score) in peer_scores().items():
        pairs, differing, largest = 0, 0, 0.0
        for index in range(count):
            masks = content[f"prediction {index}"], content[f"reference {index}"]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = score(*masks, tuple(content["spacing"][index].tolist()))
            if expected is None:
                continue
            pairs += 1
            actual = float(content[ours][index])
            same = math.isnan(actual) and math.isnan(expected)
            if not same and not math.isclose(actual, expected, rel_tol=TOLERANCE, abs_tol=1e-9):
                differing += 1
            if math.isfinite(actual) and math.isfinite(expected):
                largest = max(largest, abs(actual - expected))
        report[name] = {"ours": ours, "pairs": pairs, "differ": differing, "largest": largest}
    return report


def main() -> int:
    """Write the pairs and our scores, let the other Python compare them, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", help="Python of the environment with the packages")
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--peers", type=Path, help=argparse.SUPPRESS)  # when called by itself
    arguments = parser.parse_args()
    if arguments.peers:
        print(json.dumps(compare(arguments.peers)))
        return 0
    if not arguments.python:
        parser.error("--python is missing; give the Python of an environment with medpy")
    pairs = list(draw_pairs(arguments.pairs))
    content: dict[str, Any] = {"spacing": np.array([mm for *_, mm in pairs])}
    for index, (prediction, reference, _) in enumerate(pairs):
        content |= {f"prediction {index}": prediction, f"reference {index}": reference}
    for name, score in our_scores().items():
        content[name] = np.array([score(*pair) for pair in pairs])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.npz"
        np.savez(path, **content)
        process = subprocess.run(
            [arguments.python, __file__, "--peers", path], stdout=subprocess.PIPE, check=True
        )
    report = json.loads(process.stdout.splitlines()[-1])
    for name, row in report.items():
        print(
            f"{name:40s} {row['ours']:14s} {row['pairs']:4d} pairs, {row['differ']} differ, "
            f"by at most {row['largest']:.2g}"
        )
    if not report:
        print("none of the packages is installed there")
    return 1 if not report or any(row["differ"] for row in report.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
