"""How long one simulated patient takes on one core, at 2 mm and at other voxel sizes.

Voxel sizes alternate, each with the same patients. Reading the tissue maps, once per process, is
timed separately. Times are CPU times, so that other work on the machine has less influence.

``ratio`` is the target, 2 s, divided by the median time of a 2 mm phantom.
"""

import argparse
import json
import statistics
import time

from threadpoolctl import threadpool_limits

from clipseg3d.phantom.simulate import simulate_phantom

TARGET_S = 2.0


def seconds(seed: int, spacing_mm: float) -> float:
    """Return the CPU time of a phantom."""
    start = time.process_time()
    simulate_phantom(seed, spacing_mm=spacing_mm)
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--patients", type=int, default=10)
    parser.add_argument(
        "--spacings", type=float, nargs="*", default=[6.0, 3.0], help="besides 2 mm"
    )
    arguments = parser.parse_args()
    spacings = sorted({2.0, *arguments.spacings}, reverse=True)
    with threadpool_limits(1):
        start = time.process_time()
        for spacing_mm in spacings:
            simulate_phantom(0, spacing_mm=spacing_mm)
        first = time.process_time() - start
        rounds = [
            {spacing_mm: seconds(seed, spacing_mm) for spacing_mm in spacings}
            for seed in range(1, 1 + arguments.patients)
        ]
    medians = {s: statistics.median(row[s] for row in rounds) for s in spacings}
    for spacing_mm, median in medians.items():
        print(f"{spacing_mm:4.1f} mm  {median:6.2f} s")
    print(f"first of each, tissue maps included  {first:6.2f} s")
    print(
        json.dumps(
            {
                "benchmark": "phantom",
                "ratio": TARGET_S / medians[2.0],
                "ours": medians[2.0],
                "peer": TARGET_S,
                "unit": "s per 2 mm phantom on one core",
                "patients": arguments.patients,
                "medians": {f"{s:g} mm": median for s, median in medians.items()},
                "slowest": max(row[2.0] for row in rounds),
            }
        )
    )


if __name__ == "__main__":
    main()
