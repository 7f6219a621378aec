"""Run the benchmarks of speed and store their results in ``results/speed.json``.

    python examples/benchmarks/record.py --data BRATS2018                # 25 minutes on two cores
    python examples/benchmarks/record.py --data BRATS2018 --only cbam    # some of them
    python examples/benchmarks/record.py --only commands --rounds 1      # a rehearsal

- ``commands``: a batch of six patients, one patient, starts, freed memory kept and given back.
- ``backbone``: a training step of the backbone of ``recommended`` beside DynUNet.
- ``swinunetr``: a training step of ``recommended`` beside SwinUNETR.
- ``cbam``: CBAM in slabs beside the plain form.
- ``semantics``: the semantic path of ``recommended``, in a training step and in prediction.
- ``loading``, ``peers``: only if they are named. ``peers`` takes ``--nnunet`` on.

Each entry is the last line of its script, with the machine. Others that are stored stay. Nothing
else should run on the machine: each script compares in one run, but absolute times are stored as
well.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

from clipseg3d.atomic_write import atomic_write

HERE = Path(__file__).parent
DEFAULT = ("commands", "backbone", "swinunetr", "cbam", "semantics")
NAMED = ("loading", "peers")


def options(name: str, arguments: argparse.Namespace) -> list[str]:
    """Return the script of an entry with its options."""
    rounds, threads = str(arguments.rounds), str(arguments.threads)
    data = [] if arguments.data is None else ["--data", str(arguments.data)]
    usual = ["--rounds", rounds, "--threads", threads]
    steps = ["step_time.py", "--rounds", rounds, rounds, "--threads", threads, "--networks"]
    nnunet = [] if arguments.nnunet is None else ["--nnunet", str(arguments.nnunet)]
    return {
        "commands": ["commands.py", *data, *usual],
        "backbone": [*steps, "DynUNet, equal channels", "recommended, backbone"],
        "swinunetr": [*steps, "recommended", "SwinUNETR 48"],
        "cbam": ["cbam.py", *usual],
        "semantics": ["semantic_cost.py", "--size", "96", *usual],
        "loading": ["loading.py", *data, "--rounds", rounds],
        "peers": ["peers.py", *data, *usual, *nnunet],
    }[name]


def machine() -> dict[str, str | int]:
    """Return what figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "?")
    return {
        "cpu": model,
        "cores": os.cpu_count() or 0,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": " ".join((platform.system(), *platform.libc_ver())),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Run, print and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of BraTS 2018 cases; phantoms without")
    parser.add_argument("--only", nargs="+", choices=(*DEFAULT, *NAMED), default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--nnunet", type=Path, help="Python of an environment with nnunetv2")
    parser.add_argument("--output", type=Path, default=HERE.parent / "results" / "speed.json")
    arguments = parser.parse_args()
    path = arguments.output
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name in arguments.only:
        script, *rest = options(name, arguments)
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(HERE / script), *rest], stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{script} ended with {done.returncode}")
        print(done.stdout, flush=True)
        minutes = (time.perf_counter() - start) / 60
        result = json.loads(done.stdout.splitlines()[-1])
        found[name] = {**result, "minutes": round(minutes, 1), "machine": machine()}
        with atomic_write(path) as tmp:
            tmp.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: found[name]["ratio"] for name in arguments.only}))


if __name__ == "__main__":
    main()
