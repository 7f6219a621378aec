"""Samples per second of random crops: this library's cache against three datasets of MONAI.

Every loader gives crops of four z-scored sequences with their labels, two thirds of them with
tumour, in batches of one from worker processes. Ours also turns labels into regions, and gives the
crop box and the views that CLIP sees. Each batch is copied into float32 buffers that are reused, as
a transfer to a device would read it. Our batches are packed; unpacking and augmentation, which
loader processes only draw, happen on the device and are timed separately. The loaders alternate.
Caches are filled and workers started before timing begins.

``ratio`` is the median over rounds of our samples per second / those of MONAI's transforms on the
.nii.gz files. Memory is what one more worker adds to the peak of all processes together; shared
pages count once. Augmentation and unpacking are timed in this process, on one thread.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from monai.data import CacheDataset, PersistentDataset
from monai.data import Dataset as FileDataset
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    RandCropByPosNegLabeld,
    SpatialPadd,
)
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipseg3d.batch import unpack
from clipseg3d.cli.freed_memory import keep_freed_memory
from clipseg3d.data.cache import CachedCase, build_cache
from clipseg3d.data.cases import Case, find_cases
from clipseg3d.data.dataset import BraTSDataset
from clipseg3d.data.nifti import open_nifti
from clipseg3d.data.release import BraTSRelease
from clipseg3d.data.releases import BRATS_2018, PHANTOM
from clipseg3d.data.transforms import Augmentation
from clipseg3d.phantom.write import write_phantoms

KEYS = ("image", "label")
OURS, FILES = "clipseg3d cache", "MONAI from files"
STEP_SECONDS = 0.25
"""Time of a training step on a GPU with which loaders must keep up."""


def monai_transforms(size: int) -> Compose:
    """Return MONAI's transforms from files to a list of one crop."""
    shape = (size,) * 3
    return Compose(
        [
            LoadImaged(KEYS),  # a list of files becomes channels
            EnsureChannelFirstd("label"),
            CropForegroundd(KEYS, source_key="image", allow_smaller=True),
            NormalizeIntensityd("image", nonzero=True, channel_wise=True),
            SpatialPadd(KEYS, shape),
            RandCropByPosNegLabeld(KEYS, "label", shape, pos=2, neg=1, num_samples=1),
        ]
    )


def monai_items(cases: list[Case]) -> list[dict[str, Any]]:
    """Return cases in the form that MONAI's transforms read."""
    return [
        {"image": [str(path) for path in case.sequences.values()], "label": str(case.label)}
        for case in cases
    ]


class Source:
    """Endless batches of one dataset, and the buffers that they are copied into."""

    def __init__(self, dataset: Dataset[Any], num_workers: int) -> None:
        self.loader = DataLoader(dataset, batch_size=1, shuffle=True, num_workers=num_workers)
        self.buffers: dict[str, Tensor] = {}

    def batches(self) -> Iterator[Any]:
        """Yield batches, epoch after epoch."""
        while True:
            yield from self.loader

    def take(self, batch: Any) -> None:
        """Copy a batch into the buffers."""
        crop = batch[0] if isinstance(batch, list) else batch
        for key in KEYS:
            if key not in self.buffers:
                self.buffers[key] = torch.empty(crop[key].shape)
            self.buffers[key].copy_(crop[key])

    def speed(self, num_samples: int) -> float:
        """Return samples per second, without the start of the workers."""
        batches = self.batches()
        for _ in range(2 * self.loader.num_workers + 2):  # prefetched by the workers
            self.take(next(batches))
        start = time.perf_counter()
        for _ in range(num_samples):
            self.take(next(batches))
        return num_samples / (time.perf_counter() - start)


class Sampled(Dataset[Any]):
    """A dataset that is repeated: an epoch of few cases would end before all workers run."""

    def __init__(self, dataset: Any, length: int) -> None:
        self.dataset = dataset
        self.length = length

    def __len__(self) -> int:
        """Return the length."""
        return self.length

    def __getitem__(self, index: int) -> Any:
        """Return a sample of the dataset."""
        return self.dataset[index % len(self.dataset)]


def memory_of(process: int) -> float:
    """Return the proportional set size of a process and its children, in MB."""
    total = 0.0
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) / 1024
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:  # the process has ended
        return total
    return total + sum(memory_of(int(child)) for child in children)


def memory_added(dataset: Dataset[Any], num_workers: int, num_samples: int) -> float:
    """Return the memory that loading adds to this process and its workers, in MB."""
    before = peak = memory_of(os.getpid())
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, memory_of(os.getpid()))
            time.sleep(0.02)

    source = Source(dataset, num_workers)
    watcher = threading.Thread(target=watch)
    watcher.start()
    source.speed(num_samples)
    done.set()
    watcher.join()
    return peak - before


def milliseconds(action: Callable[[int], Any], count: int) -> float:
    """Return the mean time of an action in this process."""
    start = time.perf_counter()
    for index in range(count):
        action(index)
    return (time.perf_counter() - start) / count * 1e3


def disk_share(cases: list[Case], entries: list[CachedCase]) -> float:
    """Return the size of the cache as a share of the uncompressed float32 volumes."""
    volumes = [open_nifti(path) for case in cases for path in case.sequences.values()]
    uncompressed = sum(4 * math.prod(volume.shape) for volume in volumes)
    return sum(entry.path.stat().st_size for entry in entries) / uncompressed


def load_cases(data: Path | None, count: int, folder: Path) -> tuple[list[Case], BraTSRelease]:
    """Return real cases, or phantoms of the same size."""
    if data is not None:
        return find_cases(data, BRATS_2018)[:count], BRATS_2018
    write_phantoms(folder, count, spacing_mm=1.0)
    return find_cases(folder, PHANTOM), PHANTOM


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of BraTS 2018 cases; phantoms without")
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--size", type=int, default=128, help="crop edge in voxels")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=10, help="from files; more from caches")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="This DataLoader will create")

    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        cases, release = load_cases(arguments.data, arguments.cases, folder / "phantoms")
        start = time.perf_counter()
        entries = build_cache(cases, release, folder / "cache", view_selection="energy")
        seconds = time.perf_counter() - start
        share = disk_share(cases, entries)
        print(
            f"{len(cases)} cases, cached in {seconds / len(cases):.1f} s each, "
            f"{share:.1%} of their float32 volumes"
        )
        crop = (arguments.size,) * 3
        ours = BraTSDataset(entries, release, crop=crop, packed=True)
        augmented = BraTSDataset(entries, release, crop=crop, augment=Augmentation(), packed=True)
        memory = {}
        for name, dataset in {"plain": ours, "augmented": augmented}.items():
            one, three = (
                memory_added(Sampled(dataset, 100_000), workers, 20 * workers) for workers in (1, 3)
            )
            memory[name] = (three - one) / 2
            print(f"{name}: one worker takes {one:.0f} MB, each further one {memory[name]:.0f} MB")
        transforms, items = monai_transforms(arguments.size), monai_items(cases)
        peers = {
            FILES: FileDataset(items, transforms),
            "MONAI PersistentDataset": PersistentDataset(items, transforms, folder / "persistent"),
            "MONAI CacheDataset in RAM": CacheDataset(items, transforms, progress=False),
        }
        for index in range(len(cases)):
            peers["MONAI PersistentDataset"][index]  # written on first use
        loaders = {OURS: ours, **peers, "clipseg3d cache, augmented": augmented}
        counts = {name: arguments.samples * (1 if name == FILES else 6) for name in loaders}
        sources = {
            name: Source(Sampled(dataset, 100_000), arguments.workers)
            for name, dataset in loaders.items()
        }
        rounds = [
            {name: source.speed(counts[name]) for name, source in sources.items()}
            for _ in range(arguments.rounds)
        ]
        speeds = {name: statistics.median(row[name] for row in rounds) for name in loaders}
        ratios = {
            name: statistics.median(row[OURS] / row[name] for row in rounds) for name in loaders
        }
        for name in loaders:
            print(f"{name:28s} {speeds[name]:7.1f} samples/s   ours x {ratios[name]:.1f}")

        plain = milliseconds(lambda index: ours[index % len(ours)], 20)
        drawn = milliseconds(lambda index: augmented[index % len(ours)], 20) - plain
        batch = next(Source(ours, 0).batches())
        unpacking = milliseconds(lambda index: unpack(batch), 10)
        endless = Source(augmented, 0).batches()
        batches = [next(endless) for _ in range(60)]
        changed = milliseconds(lambda index: unpack(batches[index]), 60)
        print(
            f"a crop {plain:.0f} ms, drawing its augmentation {drawn:.1f} ms; unpacking "
            f"{unpacking:.0f} ms, augmentation {changed - unpacking:.0f} ms more, on one thread"
        )

    fed = speeds["clipseg3d cache, augmented"] * STEP_SECONDS
    print(
        json.dumps(
            {
                "benchmark": "loading",
                "ratio": round(ratios[FILES], 2),
                "ours": round(speeds[OURS], 2),
                "peer": round(speeds[FILES], 3),
                "unit": "samples per second",
                "data": "phantoms" if arguments.data is None else "brats2018",
                "cases": len(cases),
                "workers": arguments.workers,
                "size": arguments.size,
                "rounds": arguments.rounds,
                "ratio_persistent": round(ratios["MONAI PersistentDataset"], 2),
                "ratio_ram": round(ratios["MONAI CacheDataset in RAM"], 2),
                "augmented": round(speeds["clipseg3d cache, augmented"], 2),
                "augmentation_ms": round(changed - unpacking, 1),
                "steps_fed": round(fed, 2),
                "unpack_ms": round(unpacking, 1),
                "memory_per_worker_mb": round(memory["plain"], 1),
                "memory_per_augmenting_worker_mb": round(memory["augmented"], 1),
                "disk_share": round(share, 4),
                "build_seconds_per_case": round(seconds / len(cases), 2),
            }
        )
    )


if __name__ == "__main__":
    main()
