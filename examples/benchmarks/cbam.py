"""CBAM in slabs beside the plain form, on the CPU, in training and in inference.

The block has the channels of ``recommended`` at full resolution. The two alternate. In training a
run is forward and backward. Outputs of the two must be equal to within rounding.

``ratio`` is the median over rounds of (time in slabs) / (plain), the highest of all.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from unittest import mock

import torch

from clipseg3d.blocks import cbam
from clipseg3d.blocks.cbam import CBAM
from clipseg3d.cli.freed_memory import keep_freed_memory
from clipseg3d.networks.presets import network_config

CHANNELS = network_config("recommended").channels[0]
PLAIN, SLABS = "plain", "slabs"


def form(name: str) -> AbstractContextManager:
    """Return the context in which the block has one of its forms."""
    if name == SLABS:
        return nullcontext()
    return mock.patch.object(cbam, "runs_in_slabs", return_value=False)


def actions(size: int) -> dict[str, Callable[[], torch.Tensor]]:
    """Return training and inference of a block."""
    block = CBAM(CHANNELS)
    features = torch.rand(1, CHANNELS, size, size, size, requires_grad=True)

    def training() -> torch.Tensor:
        output: torch.Tensor = block(features)
        output.sum().backward()
        return output.detach()

    def inference() -> torch.Tensor:
        with torch.no_grad():
            result: torch.Tensor = block(features)
        return result

    return {"training": training, "inference": inference}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 128], help="edges, in voxels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    ratios, medians = {}, {}
    for size in arguments.sizes:
        for task, action in actions(size).items():
            times: dict[str, list[float]] = {PLAIN: [], SLABS: []}
            for number in range(arguments.rounds + 1):
                outputs = {}
                for name in times:
                    with form(name):
                        start = time.perf_counter()
                        outputs[name] = action()
                        if number:  # the first warms up
                            times[name].append(time.perf_counter() - start)
                torch.testing.assert_close(outputs[SLABS], outputs[PLAIN])
            key = f"{task}, {size}^3"
            ratios[key] = statistics.median(
                slabs / plain for slabs, plain in zip(times[SLABS], times[PLAIN], strict=True)
            )
            medians[key] = {name: statistics.median(values) for name, values in times.items()}
            print(f"{key:20s}", medians[key], f"x {ratios[key]:.2f}", flush=True)
    worst = max(ratios, key=lambda key: ratios[key])
    print(
        json.dumps(
            {
                "benchmark": "cbam",
                "ratio": ratios[worst],
                "ours": medians[worst][SLABS],
                "peer": medians[worst][PLAIN],
                "unit": f"s, {worst}",
                "ratios": ratios,
                "medians": medians,
                "rounds": arguments.rounds,
                "threads": arguments.threads,
            }
        )
    )


if __name__ == "__main__":
    main()
