"""Compare our scores with medpy, surface-distance, panoptica and brats-evaluation.

    python -m venv peers
    peers/bin/pip install brats-evaluation medpy panoptica surface-distance-based-measures
    python examples/cross_check_metrics.py --python peers/bin/python

These packages need other versions of NumPy than we do, and brats-evaluation is under the AGPL, so
they run in an environment of their own. The script writes pairs of masks and our scores to a file,
then calls itself with the other Python to score the pairs there. The golden case of our tests comes
first; the other pairs are random, with empty masks, single voxels, masks at the ends of the volume,
stray voxels and voxels that are not cubes. Packages that are not installed are left out. Each
package is compared where its definition equals ours. For panoptica that is at 1 mm only, because
its distances of whole masks ignore the voxel size, and where the masks overlap, because other
distances are infinite there. The exit code is 1 if anything differs.

brats-evaluation, which scores BraTS 2026, gets label maps at 1 mm: the golden case without and with
a false positive, then the random pairs, whose voxels get labels in blocks. Its configurations GoAT
and mets are compared with protocol ``brats2026``, every region of every case with every number that
both give. Where it leaves an infinite HD95, we have 373 mm. It gives no number of metastases in
cases without a large one; we count them.
"""

import argparse
import contextlib
import csv
import json
import math
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
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


def draw_label_maps(pairs: list[Pair]) -> Iterator[tuple[Any, Any]]:
    """Give prediction and reference in the labels of 2023: the golden case, then the pairs."""
    for extra in (False, True):
        reference = np.zeros((96, 96, 80), np.uint8)
        prediction = reference.copy()
        for (start, stop), label in (((20, 50), 2), ((26, 44), 1), ((30, 40), 3)):
            cube = slice(start, stop)
            reference[cube, cube, cube] = label
            prediction[start + 2 : stop + 2, cube, cube] = label
        reference[70:76, 70:76, 60:66] = 3
        prediction[5:10, 80:85, 5:10] = 3 * extra
        yield prediction, reference
    for seed, (prediction, reference, _) in enumerate(pairs[3:]):
        blocks = np.random.default_rng(seed).integers(1, 4, (7, 7, 7)).astype(np.uint8)
        for axis in range(3):
            blocks = np.repeat(blocks, 4, axis=axis)
        labels = blocks[tuple(map(slice, prediction.shape))]
        yield labels * prediction, labels * reference


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


CHALLENGE = {
    "GoAT": {
        "dice": "global_dsc",
        "hd95_mm": "global_hd95",
        "nsd_05": "global_nsd",
        "lesion_dice": "lesionwise_dsc_mean",
        "lesion_hd95_mm": "lesionwise_hd95_mean",
        "lesion_nsd": "lesionwise_nsd_mean",
        "lesion_tp": "all_instance_tp",
        "lesion_fp": "all_instance_fp",
        "lesion_fn": "all_instance_fn",
        "lesion_f1": "all_instance_f1",
    },
    "mets": {
        "lesion_dice": "lesionwise_dsc_mean",
        "lesion_hd95_mm": "lesionwise_hd95_mean",
        "lesion_nsd": "lesionwise_nsd_mean",
        "lesion_tp": "large_instance_tp",
        "lesion_fp": "large_instance_fp",
        "lesion_fn": "large_instance_fn",
        "lesion_f1": "large_instance_f1",
        "small_lesion_tp": "small_instance_tp",
        "small_lesion_fn": "small_instance_fn",
        "small_lesion_f1": "small_instance_f1",
    },
}
"""Configuration of brats-evaluation -> our score -> its name there."""
TASKS = {"GoAT": "brats2026_goat", "mets": "brats2026_met"}
REGIONS = ("WT", "TC", "ET")


def our_challenge_scores(prediction: Any, reference: Any, config: str) -> Any:
    """Return our scores of a pair of label maps, (region, score), by protocol brats2026."""
    from clipseg3d.data.releases import BRATS_2023_GLI
    from clipseg3d.metrics.protocols import get_protocol
    from clipseg3d.metrics.region_scores import score_case

    scores = score_case(
        BRATS_2023_GLI.to_regions(prediction),
        BRATS_2023_GLI.to_regions(reference),
        regions=REGIONS,
        protocol=get_protocol("brats2026", release=TASKS[config]),
    )
    return [[row[name] for name in CHALLENGE[config]] for row in scores]


def peer_challenge_scores(content: Any, count: int, config: str) -> Any:
    """Return the scores that brats-evaluation gives, (case, region, score)."""
    import nibabel as nib
    import pandas as pd
    from brats_evaluation import (
        config_path,
        evaluate_single_exam,
        parse_mets_results,
        parse_seg_results,
    )
    from panoptica import Panoptica_Evaluator

    evaluator = Panoptica_Evaluator.load_from_config(str(config_path(config)))
    with tempfile.TemporaryDirectory() as folder:
        results = []
        for index in range(count):
            paths = []
            for kind in ("prediction", "reference"):
                image = nib.Nifti1Image(content[f"labels {kind} {index}"], np.eye(4))
                paths.append(f"{folder}/{kind}.nii.gz")
                nib.save(image, paths[-1])
            results.append(evaluate_single_exam(*paths, str(index), evaluator))
        source, table = f"{folder}/scores.json", f"{folder}/scores.csv"
        Path(source).write_text(json.dumps({"metrics": results, "missings": []}))
        if config == "mets":
            parse_mets_results(source, 20.0, 0.1, table)
        else:
            parse_seg_results(source, table)
        rows = pd.read_csv(table).iloc[:count]
    if len(rows) < count:  # it leaves cases with errors out, and prints them
        raise RuntimeError(f"brats-evaluation scored {len(rows)} of {count} cases")
    names = [[f"{name}_{r.lower()}" for name in CHALLENGE[config].values()] for r in REGIONS]
    return np.stack([rows[columns].to_numpy(float) for columns in names], axis=1)


def compare_challenge(content: Any) -> dict[str, dict[str, Any]]:
    """Compare with brats-evaluation, if it is installed."""
    report: dict[str, dict[str, Any]] = {}
    if not find_spec("brats_evaluation"):
        return report
    count = int(content["label maps"])
    for config, names in CHALLENGE.items():
        ours, theirs = content[f"{config} scores"], peer_challenge_scores(content, count, config)
        theirs = np.where(np.isinf(theirs), 373.0, theirs)
        for column, (name, peer) in enumerate(names.items()):
            actual, expected = ours[..., column].ravel(), theirs[..., column].ravel()
            if name.endswith(("_tp", "_fp", "_fn")):
                chosen = ~np.isnan(expected)
                actual, expected = actual[chosen], expected[chosen]
            same = np.isclose(actual, expected, rtol=TOLERANCE, atol=1e-9, equal_nan=True)
            report[f"brats-evaluation {config} {peer}"] = {
                "ours": f"brats2026 {name}",
                "pairs": len(actual),
                "differ": int((~same).sum()),
                "largest": float(np.nanmax(np.abs(actual - expected))),
            }
    return report


def versions() -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    names = ("brats-evaluation", "medpy", "panoptica", "surface-distance-based-measures")
    found = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


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
    return report | compare_challenge(content)


def main() -> int:
    """Write the pairs and our scores, let the other Python compare them, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", help="Python of the environment with the packages")
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--output", type=Path, help="write the table to this .csv file")
    parser.add_argument("--peers", type=Path, help=argparse.SUPPRESS)  # when called by itself
    arguments = parser.parse_args()
    if arguments.peers:
        print(json.dumps({"scores": compare(arguments.peers), "versions": versions()}))
        return 0
    if not arguments.python:
        parser.error("--python is missing; give the Python of an environment with medpy")
    pairs = list(draw_pairs(arguments.pairs))
    content: dict[str, Any] = {"spacing": np.array([mm for *_, mm in pairs])}
    for index, (prediction, reference, _) in enumerate(pairs):
        content |= {f"prediction {index}": prediction, f"reference {index}": reference}
    for name, score in our_scores().items():
        content[name] = np.array([score(*pair) for pair in pairs])
    maps = list(draw_label_maps(pairs))
    content["label maps"] = len(maps)
    for index, (prediction, reference) in enumerate(maps):
        content |= {
            f"labels prediction {index}": prediction,
            f"labels reference {index}": reference,
        }
    for config in CHALLENGE:
        content[f"{config} scores"] = np.array([our_challenge_scores(*m, config) for m in maps])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.npz"
        np.savez(path, **content)
        process = subprocess.run(
            [arguments.python, __file__, "--peers", path], stdout=subprocess.PIPE, check=True
        )
    result = json.loads(process.stdout.splitlines()[-1])
    report = result["scores"]
    print(", ".join(f"{name} {number}" for name, number in result["versions"].items()))
    for name, row in report.items():
        print(
            f"{name:48s} {row['ours']:26s} {row['pairs']:4d} pairs, {row['differ']} differ, "
            f"by at most {row['largest']:.2g}"
        )
    if not report:
        print("none of the packages is installed there")
    if arguments.output:
        with arguments.output.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["peer", "ours", "pairs", "differ", "largest difference"])
            for name, row in report.items():
                largest = f"{row['largest']:.2g}"
                writer.writerow([name, row["ours"], row["pairs"], row["differ"], largest])
    return 1 if not report or any(row["differ"] for row in report.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
