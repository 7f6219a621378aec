"""CPU time and memory of commands that keep freed memory, and of the same ones that give it back.

Each command runs as users run it, in a process of its own, with and without
``CLIPSEG3D_KEEP_FREED_MEMORY=0``, alternating. CPU time is that of the program and of the kernel,
loader processes included; peak memory is that of the largest process. What both write must be equal
to the bit: labels of ``segment``, weights of ``fit``.

``ratio`` is the median over rounds of (CPU time of ``segment`` that keeps memory) / (that gives it
back).
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from clipseg3d.cli.freed_memory import SWITCH
from clipseg3d.phantom.write import write_phantoms

CONFIG = Path(__file__).parents[1] / "configs" / "phantom_tiny.yaml"
WAYS = {"given back": "0", "kept": "1"}


def run(arguments: Sequence[str], way: str, threads: int) -> dict[str, float]:
    """Return seconds of the program and of the kernel, and the peak memory in MB, of a command."""
    environment = {**os.environ, SWITCH: WAYS[way], "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "clipseg3d", *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return {"program": usage.ru_utime, "kernel": usage.ru_stime, "peak": usage.ru_maxrss / 1024}


def segment(cases: Sequence[Path], out: Path) -> list[str]:
    """Return the arguments that segment cases by the bundled weights."""
    return ["segment", *map(str, cases), "-o", str(out), "--weights", "tiny"]


def fit(phantoms: Path, out: Path) -> list[str]:
    """Return the arguments of a short fit with a loader process."""
    options = {
        "data.root": phantoms,
        "data.num_cases": 8,
        "trainer.max_epochs": 2,
        "trainer.check_val_every_n_epoch": 2,
        "trainer.logger": "false",
        "trainer.enable_progress_bar": "false",
        "trainer.default_root_dir": out,
        "checkpoint.dirpath": out,
    }
    flags = (part for key, value in options.items() for part in (f"--{key}", str(value)))
    return ["fit", "--config", str(CONFIG), *flags]


def content(out: Path) -> str:
    """Return a hash of the labels, or of the weights, in a folder."""
    digest = hashlib.sha256()
    for path in sorted(out.glob("*.nii.gz")):
        digest.update(path.read_bytes())
    for path in sorted(out.glob("last*.ckpt")):
        for weights in torch.load(path, weights_only=True)["state_dict"].values():
            digest.update(weights.numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of BraTS 2018 cases; phantoms without")
    parser.add_argument("--cases", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        root = arguments.data
        if root is None:
            root = work / "cases"
            write_phantoms(root, arguments.cases, spacing_mm=1.0, seed=900)
        cases = sorted(path for path in root.iterdir() if path.is_dir())[: arguments.cases]
        phantoms = work / "phantoms"
        run(fit(phantoms, work / "first"), "kept", arguments.threads)  # simulates the patients
        rows: dict[str, dict[str, list[dict[str, float]]]] = {"segment": {}, "fit": {}}
        for number in range(arguments.rounds):
            made: dict[str, set[str]] = {"segment": set(), "fit": set()}
            for way in WAYS:
                out = work / f"{number} {way}"
                commands = {
                    "segment": segment(cases, out / "segment"),
                    "fit": fit(phantoms, out / "fit"),
                }
                for name, command in commands.items():
                    row = run(command, way, arguments.threads)
                    rows[name].setdefault(way, []).append(row)
                    made[name].add(content(out / name))
                    values = ", ".join(f"{key} {value:.1f}" for key, value in row.items())
                    print(f"{name:8s} {way:10s} {values}", flush=True)
            if different := [name for name, hashes in made.items() if len(hashes) > 1]:
                raise RuntimeError(f"{different[0]} gives other results if memory is kept")
    result: dict[str, Any] = {name: compare(ways) for name, ways in rows.items()}
    print(
        json.dumps(
            {
                "benchmark": "freed_memory",
                "ratio": result["segment"]["ratio"],
                "ours": result["segment"]["cpu_s_kept"] / len(cases),
                "peer": result["segment"]["cpu_s_given_back"] / len(cases),
                "unit": "CPU s per case of segment",
                "cases": len(cases),
                "rounds": arguments.rounds,
                "threads": arguments.threads,
                **result,
            }
        )
    )


def compare(ways: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Return ratios of CPU time and peak memory over rounds, and medians."""
    pairs = list(zip(ways["kept"], ways["given back"], strict=True))
    ratios = [_seconds(kept) / _seconds(given) for kept, given in pairs]
    medians = {
        f"cpu_s_{way.replace(' ', '_')}": statistics.median(map(_seconds, ways[way]))
        for way in WAYS
    }
    kernel = {
        f"kernel_s_{way.replace(' ', '_')}": statistics.median(row["kernel"] for row in ways[way])
        for way in WAYS
    }
    memory = statistics.median(kept["peak"] / given["peak"] for kept, given in pairs)
    return {"ratio": statistics.median(ratios), "ratio_peak_memory": memory, **medians, **kernel}


def _seconds(row: dict[str, float]) -> float:
    """Return the CPU time of a run."""
    return row["program"] + row["kernel"]


if __name__ == "__main__":
    main()
