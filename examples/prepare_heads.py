r"""Score `clipseg3d prepare` on simulated heads, whose brains and motions are known.

    python examples/prepare_heads.py --heads 10 --output examples/results/prepare_heads.csv

Each head is prepared twice: with all sequences, and with T1ce alone (``--given`` takes one of
them). There is one row per head and what was given: Dice of the brain mask, error of registration
to T1ce over the brain (the median and the largest over all sequences), the seconds of CPU time that
it took, and the Dice of the whole tumour: of the clean brain, segmented as it is; of the same scans
in their true places, with the true brain and N4; and of the head, prepared, segmented and carried
back to T1ce. What lies between the first two is lost by thick slices, noise and shading, whoever
prepares the scans. A head that `prepare` refuses has the reason in the place of numbers. An
interrupted run continues with the next head.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK
import torch
from evaluate_tiny import read_rows, write_rows
from nibabel.affines import apply_affine
from tqdm import tqdm

from clipseg3d import Predictor
from clipseg3d.data.nifti import read_voxels
from clipseg3d.data.resampling import carry
from clipseg3d.inference.segmentation import ScanWarning
from clipseg3d.phantom import Head, simulate_head, write_head, write_phantom
from clipseg3d.prepare import PreparedCase, carry_back, prepare_case
from clipseg3d.prepare.atlas import AFFINE, SHAPE
from clipseg3d.prepare.bias_field import correct_bias
from clipseg3d.prepare.volume import Affine
from clipseg3d.vocabulary import SEQUENCES

FIRST_SEED = 4_000_000
"""Of the heads; no training saw their brains."""
COLUMNS = (
    *("brain_dice", "brain_ml", "error_median_mm", "error_largest_mm", "cpu_seconds"),
    *("tumour_dice", "placed_tumour_dice", "clean_tumour_dice", "refused"),
)
GIVEN = {"all": SEQUENCES, "T1ce alone": ("t1ce",)}
"""What was given -> sequences."""


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Dice of two masks."""
    return 2 * float((one & other).sum()) / max(1.0, float(one.sum() + other.sum()))


def brain_dice(head: Head, case: PreparedCase) -> float:
    """Return the Dice of the brain of a case and the true one, on the grid of the case."""
    to_case = np.linalg.inv(case.matrices["t1ce"]) @ head.scans["t1ce"].motion
    truth = carry(head.brain.astype(np.float32), to_case @ head.phantom.affine, SHAPE, AFFINE)
    return dice(truth >= 0.5, case.sequences["t1ce"] != 0)


def registration_errors(head: Head, found: Mapping[str, Affine]) -> np.ndarray:
    """Return how far points of the brain are from where they should be, in mm.

    Args:
        head: with the true motions.
        found: sequence -> 4 x 4, from mm of T1ce to mm of the sequence.

    Returns:
        (sequences, points).
    """
    points = apply_affine(head.phantom.affine, np.argwhere(head.brain[::6, ::6, ::6]) * 6)
    fixed = apply_affine(head.scans["t1ce"].motion, points)
    errors = [
        np.linalg.norm(
            apply_affine(matrix, fixed) - apply_affine(head.scans[name].motion, points), axis=1
        )
        for name, matrix in found.items()
    ]
    return np.array(errors)


def in_true_places(head: Head, case: PreparedCase) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the scans that a case was made of as they should be: sequences, and the tumour.

    Their motions and the brain are the true ones; N4 is as in ``prepare``.
    """
    to_case = np.linalg.inv(case.matrices["t1ce"]) @ head.scans["t1ce"].motion

    def placed(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
        return carry(volume.astype(np.float32), to_case @ affine, SHAPE, AFFINE)

    brain = placed(head.brain, head.phantom.affine) >= 0.5
    sequences = {}
    for name in case.sequences:
        scan = head.scans[name]
        volume = placed(scan.voxels, np.linalg.inv(scan.motion) @ scan.affine)
        least = np.float32(1e-3) * volume[brain].max()  # 0 would be background
        sequences[name] = correct_bias(
            np.where(brain, np.maximum(volume, least), 0), brain, np.asarray(AFFINE)
        )
    return sequences, placed(head.phantom.label > 0, head.phantom.affine) >= 0.5


def score(head: Head, given: str, predictor: Predictor, folder: Path) -> dict[str, str]:
    """Return what was measured of a head."""
    scans = write_head(head, folder, "scans")
    files = {name: scans / f"scans_{name}.nii.gz" for name in GIVEN[given]}
    start = time.process_time()
    try:
        case = prepare_case(files, name="head")
    except ValueError as error:
        return dict.fromkeys(COLUMNS, "") | {"refused": str(error).replace(str(scans), "...")}
    seconds = time.process_time() - start
    to_case = np.linalg.inv(case.matrices["t1ce"])
    others = {name: matrix @ to_case for name, matrix in case.matrices.items() if name != "t1ce"}
    errors = registration_errors(head, others)
    row = {
        "brain_dice": f"{brain_dice(head, case):.4f}",
        "brain_ml": f"{case.record['brain_ml']:.0f}",
        "error_median_mm": f"{np.median(errors):.2f}" if errors.size else "",
        "error_largest_mm": f"{errors.max():.2f}" if errors.size else "",
        "cpu_seconds": f"{seconds:.0f}",
    }
    prepared = case.save(folder)
    predictor(prepared).save(folder / "label.nii.gz")
    carry_back(folder / "label.nii.gz", prepared, folder)
    found = read_voxels(folder / "label_t1ce.nii.gz") > 0
    row["tumour_dice"] = f"{dice(found, head.on_scan(head.phantom.label > 0, 't1ce') >= 0.5):.4f}"
    sequences, tumour = in_true_places(head, case)
    row["placed_tumour_dice"] = f"{dice(predictor(sequences, AFFINE).label > 0, tumour):.4f}"
    clean = write_phantom(head.phantom, folder, "clean")
    (clean / "clean_flair_text.txt").unlink()  # the report; the head has none
    if given != "all":
        for name in set(SEQUENCES) - set(GIVEN[given]):
            (clean / f"clean_{name}.nii.gz").unlink()
    found = predictor(clean).label > 0
    row["clean_tumour_dice"] = f"{dice(found, head.phantom.label > 0):.4f}"
    return row | {"refused": ""}


def main() -> None:
    """Score the heads that have no row yet, and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--heads", type=int, default=10, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--given", nargs="+", choices=GIVEN, default=list(GIVEN))
    parser.add_argument("--output", type=Path, default=Path("prepare_heads.csv"))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(arguments.threads)
    predictor = Predictor.from_pretrained("tiny")
    rows = read_rows(arguments.output)
    done = {(row["head"], row["given"]) for row in rows}
    for seed in tqdm(range(arguments.first, arguments.first + arguments.heads), unit="head"):
        missing = [given for given in arguments.given if (str(seed), given) not in done]
        head = simulate_head(FIRST_SEED + seed) if missing else None
        for given in missing:
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore", ScanWarning)
                row = score(head, given, predictor, Path(folder))
            rows.append({"head": str(seed), "given": given, **row})
            write_rows(arguments.output, rows)
    for given in GIVEN:
        own = [row for row in rows if row["given"] == given and not row["refused"]]
        for column in ("brain_dice", "error_median_mm", "error_largest_mm", "cpu_seconds"):
            values = [float(row[column]) for row in own if row[column]]
            if values:
                tqdm.write(
                    f"{given}, {len(values)} heads, {column}: median {np.median(values):.3g}, from "
                    f"{min(values):.3g} to {max(values):.3g}"
                )
        lost = [float(row["clean_tumour_dice"]) - float(row["tumour_dice"]) for row in own]
        tqdm.write(f"{given}, Dice of the tumour lost on the way: mean {np.mean(lost):.3f}")


if __name__ == "__main__":
    main()
