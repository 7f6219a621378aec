"""Time and memory of a training step beside those of common networks for BraTS.

A step is forward, backward and optimiser on one crop of four sequences, in fp32. Every network has
its own process, which reports its peak memory above its memory before the network was built. The
networks step alternately: those that have a target ``--rounds`` times, the others once; those that
``--networks`` names all as often. The loss is the same for all. Ours also have heads for deep
supervision; the peers have none.

``ratio`` is the median over pairs of (the backbone of ``recommended``, with all its attention) /
(MONAI's ``DynUNet`` of equal channels, nnU-Net's layout), the highest of all sizes; if these are
not named, of (the first that ``--networks`` names) / (the last). For semantics, CLIP has the size
of ViT-B/32 and random weights, as in ``semantic_cost.py``.

Freed memory stays with a process within a step, as in ``clipseg3d fit``, and goes back to the
system after it. ``CLIPSEG3D_KEEP_FREED_MEMORY=0`` leaves the allocator as it is.
"""

import argparse
import ctypes
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from monai.networks.nets import DynUNet, SegResNet, SwinUNETR
from semantic_cost import full_size_clip, training_step
from torch import nn

from clipseg3d.cli.freed_memory import keep_freed_memory
from clipseg3d.losses import RegionLoss
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.clipseg3d import CLIPSeg3D
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.presets import network_config

RECOMMENDED = network_config("recommended")
BACKBONE, PEER, SEMANTICS, FAST, SWIN = (
    "recommended, backbone",
    "DynUNet, equal channels",
    "recommended",
    "fast",
    "SwinUNETR 48",
)
REPEATED = (PEER, BACKBONE, SEMANTICS, FAST)
RATIOS = {
    "ratio_backbone": (BACKBONE, PEER),
    "ratio_recommended_to_swinunetr": (SEMANTICS, SWIN),
    "ratio_fast": (FAST, PEER),
}
WARM_UP = 64


def ours(config: NetworkConfig) -> CLIPSeg3D:
    """Return a network of this library."""
    return build_clipseg3d(config, encoder=full_size_clip(32) if config.semantics else None)


def dynunet(channels: Sequence[int] = RECOMMENDED.channels) -> nn.Module:
    """Return nnU-Net's layout, by default with the channels of ``recommended``."""
    levels = len(channels)
    return DynUNet(
        spatial_dims=3,
        in_channels=4,
        out_channels=3,
        kernel_size=[3] * levels,
        strides=[1, *[2] * (levels - 1)],
        upsample_kernel_size=[2] * (levels - 1),
        filters=channels,
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    PEER: dynunet,
    BACKBONE: lambda: ours(replace(RECOMMENDED, semantics=False)),
    SEMANTICS: lambda: ours(RECOMMENDED),
    FAST: lambda: ours(network_config("fast")),
    "SegResNet 16": lambda: SegResNet(init_filters=16, in_channels=4, out_channels=3),
    "SegResNet 32": lambda: SegResNet(init_filters=32, in_channels=4, out_channels=3),
    SWIN: lambda: SwinUNETR(in_channels=4, out_channels=3, feature_size=48),
}


def peer_step(network: nn.Module, size: int) -> Callable[[], None]:
    """Return one step of a network that takes an image and returns logits."""
    image = torch.rand(1, 4, size, size, size)
    label = (torch.rand(1, 3, size, size, size) > 0.9).float()
    loss = RegionLoss()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss([network(image)], label).backward()
        optimizer.step()

    return step


def peak_bytes() -> int:
    """Return the peak memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def release_memory() -> None:
    """Return freed memory to the system as far as possible: the other processes need it."""
    process = ctypes.CDLL(None)
    if hasattr(process, "mallctl"):  # jemalloc; 4096 means all arenas
        process.mallctl(b"arena.4096.purge", None, None, None, ctypes.c_size_t(0))
    elif hasattr(process, "malloc_trim"):
        process.malloc_trim(0)


def work(name: str, threads: int) -> None:
    """Take a step for every size on standard input, and print its time and memory."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore")
    before = peak_bytes()
    network = NETWORKS[name]()
    trained = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    make = training_step if isinstance(network, CLIPSeg3D) else peer_step
    make(network, WARM_UP)()
    print(json.dumps({"parameters": trained}), flush=True)
    steps: dict[int, Callable[[], None]] = {}
    for line in sys.stdin:
        size = int(line)
        if size not in steps:
            steps = {size: make(network, size)}  # frees what the last size needed
        start = time.perf_counter()
        steps[size]()
        seconds = time.perf_counter() - start
        release_memory()
        print(json.dumps({"seconds": seconds, "bytes": peak_bytes() - before}), flush=True)


class Worker:
    """A network in a process of its own."""

    def __init__(self, name: str, threads: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", name, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.parameters = 0.0
        self.seconds: dict[int, list[float]] = {}
        self.gigabytes: dict[int, float] = {}

    def wait(self) -> None:
        """Wait until its network is built and warm."""
        self.parameters = self._answer()["parameters"] / 1e6

    def step(self, size: int) -> None:
        """Take one step."""
        self.process.stdin.write(f"{size}\n")
        self.process.stdin.flush()
        facts = self._answer()
        self.seconds.setdefault(size, []).append(facts["seconds"])
        self.gigabytes[size] = facts["bytes"] / 1e9

    def stop(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, float]:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the process of a network ended early; is there enough memory?")
        facts: dict[str, float] = json.loads(line)
        return facts


def ratio(workers: dict[str, Worker], name: str, peer: str, size: int) -> float:
    """Return the median over rounds in which both took a step."""
    pairs = zip(workers[name].seconds[size], workers[peer].seconds[size], strict=False)
    return statistics.median(mine / other for mine, other in pairs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 128], help="edges, in voxels")
    parser.add_argument("--rounds", type=int, nargs="+", default=[3, 2], help="one for each size")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, metavar="NAME")
    parser.add_argument("--worker", choices=NETWORKS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        work(arguments.worker, arguments.threads)
        return
    sizes: list[int] = arguments.sizes
    if len(arguments.rounds) != len(sizes) or any(a >= b for a, b in pairwise(sizes)):
        parser.error(
            "give sizes from small to large, because memory is the peak so far, and one number of "
            "rounds for each"
        )

    chosen = arguments.networks or list(NETWORKS)
    repeated = arguments.networks or REPEATED
    peer = PEER if PEER in chosen else chosen[-1]
    mine = BACKBONE if BACKBONE in chosen else chosen[0]
    workers = {name: Worker(name, arguments.threads) for name in chosen}
    for worker in workers.values():
        worker.wait()
    for size, rounds in zip(sizes, arguments.rounds, strict=True):
        for index in range(rounds):
            for name in chosen if index == 0 else repeated:
                workers[name].step(size)
    for worker in workers.values():
        worker.stop()

    heads = ("network", "M param.", "size", "s/step", "GB", "s/M", "GB/M", f"x {peer[:9]}")
    print("{:26s}{:>9s}{:>6s}{:>9s}{:>8s}{:>9s}{:>9s}{:>11s}".format(*heads))
    for size in sizes:
        for name, worker in workers.items():
            seconds, peak = statistics.median(worker.seconds[size]), worker.gigabytes[size]
            millions = worker.parameters
            print(
                f"{name:26s}{millions:9.1f}{size:6d}{seconds:9.2f}{peak:8.2f}"
                f"{seconds / millions:9.3f}{peak / millions:9.3f}"
                f"{ratio(workers, name, peer, size):11.3f}"
            )
    largest = sizes[-1]
    print(
        json.dumps(
            {
                "benchmark": "step_time",
                "ratio": max(ratio(workers, mine, peer, size) for size in sizes),
                "ours": statistics.median(workers[mine].seconds[largest]),
                "peer": statistics.median(workers[peer].seconds[largest]),
                "unit": f"s per training step at {largest}^3",
                "sizes": sizes,
                "rounds": arguments.rounds,
                "threads": arguments.threads,
                "networks": chosen,
                **{
                    key: {size: ratio(workers, name, other, size) for size in sizes}
                    for key, (name, other) in RATIOS.items()
                    if name in chosen and other in chosen
                },
                "seconds": {
                    name: {size: statistics.median(worker.seconds[size]) for size in sizes}
                    for name, worker in workers.items()
                },
                "gigabytes": {name: worker.gigabytes for name, worker in workers.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
