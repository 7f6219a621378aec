"""Predicted peak memory of a training step beside the allocations of PyTorch on the CPU.

Each case runs in its own process: two real steps of a whole network with its semantic path, while
PyTorch's profiler records every allocation. The peak memory of the process, above its memory before
the network was built, is shown as well. It includes the workspace of convolutions, which PyTorch's
allocator does not see.

``ratio`` is the allocator's peak / the predicted peak, of the case where they differ most.
"""

import argparse
import json
import resource
import subprocess
import sys
import warnings
from dataclasses import replace

import torch
from semantic_cost import REPORT
from torch.profiler import ProfilerActivity, profile

from clipseg3d.intensity import intensity_statistics
from clipseg3d.losses import RegionLoss
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.presets import network_config
from clipseg3d.training.memory import AUTOCAST, predict_peak_memory
from clipseg3d.training.plan import TrainingPlan
from clipseg3d.views import cut_views

CASES = (
    ("recommended", "32-true", False, 64),
    ("recommended", "32-true", False, 96),
    ("recommended", "32-true", False, 128),
    ("recommended", "bf16-mixed", False, 96),
    ("recommended", "32-true", True, 96),
    ("fast", "32-true", False, 128),
)
"""Preset, precision, checkpointing, edge in voxels."""


def work(preset: str, precision: str, checkpointing: bool, size: int) -> dict[str, int]:
    """Return predicted and measured bytes of one case."""
    config = replace(network_config(preset), checkpointing=checkpointing, clip="tiny-random")
    predicted = predict_peak_memory(build_clipseg3d(config), (size,) * 3, precision=precision)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    views = cut_views(torch.rand(1, 4, 48, 48, 48), selection=config.view_selection)
    dtype = AUTOCAST[precision]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        network = build_clipseg3d(config)
        optimizer = TrainingPlan().optimizer_for(network)
        image, label = torch.rand(1, 4, size, size, size), torch.zeros(1, 3, size, size, size)
        statistics = intensity_statistics(image)
        for _ in range(2):
            text, mask = network.embed_text([REPORT])
            semantics = network.encode_semantics(views, text, mask)
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                prediction = network.segment(image, semantics, statistics=statistics, deep=True)
                loss = RegionLoss()([prediction.logits, *prediction.auxiliary], label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            del prediction, loss, semantics
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    unit = 1 if sys.platform == "darwin" else 1024
    return {"predicted": predicted.total, "allocated": peak, "held": unit * held}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=128, help="skip larger edges")
    parser.add_argument("--threads", type=int, default=1, help="each has its own workspace")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    if arguments.worker is not None:
        print(json.dumps(work(*CASES[arguments.worker])))
        return

    heads = ("predicted GB", "allocated GB", "/ predicted", "process GB")
    print(f"{'case':44s}" + "".join(f"{head:>14s}" for head in heads))
    rows = []
    for index, (preset, precision, checkpointing, size) in enumerate(CASES):
        if size > arguments.largest:
            continue
        command = [sys.executable, __file__, "--worker", str(index)]
        command += ["--threads", str(arguments.threads)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        facts = json.loads(result.stdout.splitlines()[-1])
        ratio = facts["allocated"] / facts["predicted"]
        rows.append({**facts, "ratio": ratio})
        name = f"{preset} {size}^3 {precision}{' checkpointing' if checkpointing else ''}"
        print(
            f"{name:44s}{facts['predicted'] / 1e9:14.3f}{facts['allocated'] / 1e9:14.3f}"
            f"{ratio:14.3f}{facts['held'] / 1e9:14.3f}",
            flush=True,
        )
    worst = max(rows, key=lambda row: abs(row["ratio"] - 1))
    print(
        json.dumps(
            {
                "benchmark": "memory",
                "ratio": worst["ratio"],
                "ours": worst["predicted"],
                "peer": worst["allocated"],
                "unit": "bytes",
                "ratios": [row["ratio"] for row in rows],
            }
        )
    )


if __name__ == "__main__":
    main()
