"""HD95 of the three regions of a case: ours against MONAI's ``compute_hausdorff_distance``.

Both get the same bool masks of whole volumes, on one thread, alternating. Both must give the same
numbers to the last bit, by MONAI's definition (``method="monai"``). Predictions come from
``--predictions``, or from the network in ``--weights``. Without either, they are references with
smoothly moved surfaces, by about 2 mm. This is what a good network makes, and faster to score than
the errors of a bad one. Difficult shapes are timed separately, on the whole tumour of the first
case.

``ratio`` is MONAI's time / ours; both are sums over cases of the median over rounds. MONAI converts
bool masks to numbers first; ``ratio_float`` is against MONAI with numbers.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics import compute_hausdorff_distance
from scipy.ndimage import distance_transform_edt, gaussian_filter

from clipseg3d.cli.freed_memory import keep_freed_memory
from clipseg3d.data.cases import Case, find_cases
from clipseg3d.data.label_pairs import find_predictions
from clipseg3d.data.nifti import read_voxels
from clipseg3d.data.release import BraTSRelease
from clipseg3d.data.releases import BRATS_2018, PHANTOM
from clipseg3d.inference.predictor import Predictor
from clipseg3d.metrics.hausdorff import hd95
from clipseg3d.phantom.write import write_phantoms
from clipseg3d.vocabulary import REGIONS

Masks = npt.NDArray[np.bool_]


def move_surface(mask: Masks, rng: np.random.Generator, sd: float = 2.0) -> Masks:
    """Move the surface of a mask (x, y, z) in and out, smoothly, by ``sd`` voxels."""
    inside = np.argwhere(mask)
    if not len(inside):
        return mask
    box = tuple(
        slice(max(low - 12, 0), high + 13)
        for low, high in zip(inside.min(axis=0), inside.max(axis=0), strict=True)
    )
    part = mask[box]
    shift = gaussian_filter(rng.standard_normal(part.shape), 4)
    depth = distance_transform_edt(part) - distance_transform_edt(~part)
    result = np.zeros_like(mask)
    result[box] = depth + sd * shift / shift.std() > 0
    return result


def hard_shapes(prediction: Masks, brain: Masks, rng: np.random.Generator) -> dict[str, Masks]:
    """Return predictions (x, y, z) with large errors."""
    stray = prediction.copy()
    stray[2, 2, 2] = stray[-3, -3, -3] = True
    return {
        "two stray voxels": stray,
        "2 % of the brain flipped": prediction ^ (brain & (rng.random(brain.shape) < 0.02)),
        "2 % of the volume flipped": prediction ^ (rng.random(brain.shape) < 0.02),
        "whole brain": brain,
    }


def milliseconds(action: Callable[[], Any]) -> tuple[float, Any]:
    """Return the time of a call, in ms, and its result."""
    start = time.perf_counter()
    result = action()
    return (time.perf_counter() - start) * 1e3, result


def compare(prediction: Masks, reference: Masks, rounds: int) -> dict[str, float]:
    """Return the median time of each method for masks (r, x, y, z), in ms.

    Raises:
        RuntimeError: the results differ.
    """
    pair = [torch.from_numpy(masks)[None] for masks in (prediction, reference)]
    numbers = [masks.float() for masks in pair]
    options = {"include_background": True, "percentile": 95}
    times: dict[str, list[float]] = {"ours": [], "peer": [], "peer_float": []}
    for _ in range(rounds):
        spent, expected = milliseconds(lambda: compute_hausdorff_distance(*pair, **options))
        times["peer"].append(spent)
        spent, actual = milliseconds(
            lambda: [
                hd95(*masks, method="monai") for masks in zip(prediction, reference, strict=True)
            ]
        )
        times["ours"].append(spent)
        spent, _ = milliseconds(lambda: compute_hausdorff_distance(*numbers, **options))
        times["peer_float"].append(spent)
        finite = np.isfinite(actual)  # MONAI has NaN where a mask is empty
        if not np.array_equal(np.array(actual)[finite], expected[0].numpy()[finite]):
            raise RuntimeError(f"ours is {actual}, MONAI's {expected[0].tolist()}")
    return {method: statistics.median(spent) for method, spent in times.items()}


def load_cases(data: Path | None, count: int, folder: Path) -> tuple[list[Case], BraTSRelease]:
    """Return real cases, or phantoms of the same size."""
    if data is not None:
        return find_cases(data, BRATS_2018)[:count], BRATS_2018
    write_phantoms(folder, min(count, 4), spacing_mm=1.0)
    return find_cases(folder, PHANTOM), PHANTOM


def predictor(
    arguments: argparse.Namespace, cases: list[Case], release: BraTSRelease
) -> tuple[str, Callable[[Case, Masks], Masks]]:
    """Return where predictions come from, and a function that makes them.

    The function takes a case and its reference masks.
    """
    if arguments.predictions is not None:
        references = {case.case_id: case.label for case in cases}
        files = find_predictions(arguments.predictions, references)
        return str(arguments.predictions), lambda case, _: release.to_regions(
            np.rint(read_voxels(files[case.case_id])).astype(np.uint8)
        )
    if arguments.weights is not None:
        network = Predictor.from_checkpoint(arguments.weights)
        return str(arguments.weights), lambda case, _: release.to_regions(network(case).label)
    rng = np.random.default_rng(0)
    return "moved references", lambda _, reference: np.stack(
        [move_surface(m, rng) for m in reference]
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of BraTS 2018 cases; phantoms without")
    parser.add_argument("--predictions", type=Path, help="folder of CASE.nii.gz, one for each case")
    parser.add_argument("--weights", type=Path, help="checkpoint that makes the predictions")
    parser.add_argument("--cases", type=int, default=18)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="monai")
    rng = np.random.default_rng(1)

    with tempfile.TemporaryDirectory() as name:
        cases, release = load_cases(arguments.data, arguments.cases, Path(name))
        source, predict = predictor(arguments, cases, release)
        print(f"{len(cases)} cases, predictions: {source}; ms for {', '.join(REGIONS)} together")
        rows = []
        for case in cases:
            reference = release.to_regions(read_voxels(case.label).astype(np.uint8))
            prediction = predict(case, reference)
            if not rows:  # warm up: what happens once is not timed
                compare(prediction, reference, 1)
                first = prediction, reference, read_voxels(case.sequences["flair"]) > 0
            rows.append(compare(prediction, reference, arguments.rounds))
            row = rows[-1]
            print(
                f"{case.case_id:24s} ours {row['ours']:6.1f}  MONAI {row['peer']:7.1f}  "
                f"x {row['peer'] / row['ours']:5.1f}",
                flush=True,
            )
        prediction, reference, brain = first
        hard = {}
        for shape, masks in hard_shapes(prediction[0], brain, rng).items():
            row = compare(masks[None], reference[:1], arguments.rounds)
            hard[shape] = round(row["peer"] / row["ours"], 2)
            print(
                f"WT, {shape:26s} ours {row['ours']:6.1f}  MONAI {row['peer']:7.1f}  "
                f"x {hard[shape]:5.1f}"
            )

    total = {method: sum(row[method] for row in rows) for method in rows[0]}
    print(
        json.dumps(
            {
                "benchmark": "hd95",
                "ratio": round(total["peer"] / total["ours"], 2),
                "ours": round(total["ours"] / len(rows), 2),
                "peer": round(total["peer"] / len(rows), 2),
                "unit": "ms per case",
                "data": "phantoms" if arguments.data is None else "brats2018",
                "predictions": source,
                "cases": len(rows),
                "rounds": arguments.rounds,
                "ratio_float": round(total["peer_float"] / total["ours"], 2),
                "hard_shapes": hard,
            }
        )
    )


if __name__ == "__main__":
    main()
