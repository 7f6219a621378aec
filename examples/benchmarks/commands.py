"""Wall time of commands as users type them: segment a batch and one patient, begin to score.

    python examples/benchmarks/commands.py --data BRATS2018

- ``segment, batch``: several patients in one command, seconds per patient.
- ``segment, one``: one patient, with the start of Python and all imports.
- ``evaluate`` and ``check-data``: one tiny case, so nearly all of it is their start.

``segment`` runs with freed memory kept, as it does by itself, and given back
(``CLIPSEG3D_KEEP_FREED_MEMORY=0``); labels must be equal to the bit. All commands run in turn.

``ratio`` is the median over rounds of the wall time of the batch that keeps memory / gives it back.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from clipseg3d.cli.freed_memory import SWITCH
from clipseg3d.phantom.write import write_phantoms

WAYS = {"kept": "1", "given back": "0"}


def seconds(arguments: Sequence[str | Path], threads: int, way: str = "kept") -> float:
    """Return the wall time of a command."""
    environment = {**os.environ, SWITCH: WAYS[way], "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "clipseg3d", *map(str, arguments)]
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    wall = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{arguments[0]} ended with {done.returncode}: {done.stderr[-1000:]}")
    return wall


def content(out: Path) -> str:
    """Return a hash of the labels in a folder."""
    digest = hashlib.sha256()
    for path in sorted(out.glob("*.nii.gz")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def find_patients(data: Path | None, count: int, work: Path) -> list[Path]:
    """Return folders of BraTS cases, or of simulated patients."""
    if data is None:
        data = work / "phantoms"
        write_phantoms(data, count, spacing_mm=1.0, seed=900)
    return sorted({path.parent for path in data.rglob("*_t1ce.nii.gz")})[:count]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of BraTS cases; phantoms without")
    parser.add_argument("--cases", type=int, default=6, help="of the batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        cases = find_patients(arguments.data, arguments.cases, work)
        small = work / "small"
        write_phantoms(small, 1, spacing_mm=8.0)
        (name,) = (path.name for path in small.iterdir())
        (work / "masks").mkdir()
        os.link(small / name / f"{name}_seg.nii.gz", work / "masks" / f"{name}.nii.gz")
        commands: dict[str, list[str | Path]] = {
            "evaluate": ["evaluate", work / "masks", small],
            "check-data": ["check-data", small, "--spacing", "8"],
        }
        for number in range(arguments.rounds):
            labels = set()
            for way in WAYS:
                for kind, chosen in {"batch": cases, "one": cases[:1]}.items():
                    out = work / f"{number} {way} {kind}"
                    line = ["segment", *chosen, "-o", out, "--device", "cpu"]
                    wall = seconds(line, arguments.threads, way)
                    times.setdefault(f"segment, {kind}, {way}", []).append(wall / len(chosen))
                labels.add(content(work / f"{number} {way} batch"))
            if len(labels) > 1:
                raise RuntimeError("labels differ if freed memory is kept")
            for kind, line in commands.items():
                times.setdefault(kind, []).append(seconds(line, arguments.threads))
            print(*(f"{key} {values[-1]:.2f} s" for key, values in times.items()), sep=", ")
    medians = {key: statistics.median(values) for key, values in times.items()}
    for key, value in medians.items():
        print(f"{key:30s}{value:8.2f} s")
    ratios = {
        kind: statistics.median(
            kept / given
            for kept, given in zip(
                times[f"segment, {kind}, kept"], times[f"segment, {kind}, given back"], strict=True
            )
        )
        for kind in ("batch", "one")
    }
    print(
        json.dumps(
            {
                "benchmark": "commands",
                "ratio": ratios["batch"],
                "ours": medians["segment, batch, kept"],
                "peer": medians["segment, batch, given back"],
                "unit": "s per patient of a batch, wall time",
                "ratio_one": ratios["one"],
                "medians": medians,
                "cases": len(cases),
                "rounds": arguments.rounds,
                "threads": arguments.threads,
            }
        )
    )


if __name__ == "__main__":
    main()
