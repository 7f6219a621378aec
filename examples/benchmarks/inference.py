"""Segment a whole volume: this library against MONAI's sliding window over the uncropped volume.

Both use the same network, ROI size and overlap, Gaussian weights and the CPU, and alternate in one
run. The peer is MONAI's ``sliding_window_inference`` with one window at a time. Preparation is free
for the peer: the z-scored image, the semantics, which are computed once, and the crop box of each
window. The timed part of both is windows, stitching, and labels in the grid of the source.

The windows of the two have different positions, and the network normalises each window on its own,
so the two cannot agree everywhere; they agree less where the network is less certain. Normalising
by statistics from training was tried, and did not change this. ``equal_voxels`` is the share of all
voxels of the volume with the same label, the lowest over cases. Most of them are background, so
``equal_in_brain`` counts within the brain only. ``dice_between`` compares the tumour in the two
label maps.

``ratio`` is (MONAI's time) / (ours), summed over cases. ``memory_ratio`` is (our peak) / (MONAI's).
Each peak is measured in its own process: resident memory above the level with network and libraries
loaded. The image, which both hold, counts. Freed memory stays with the process that is timed, as in
``clipseg3d segment``; peaks are measured without that.

Without ``--weights`` the demo's network is trained first, on phantoms of 2 mm, and used on phantoms
of that size with its own ROI size of 64 voxels. A volume of 120 x 120 x 78 voxels then has as many
windows as one at 1 mm, each an eighth as large. For real cases of 1 mm (``--data``) give weights
that were trained at 1 mm; the demo's weights would run with a ROI size of 128, and segment poorly.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor

from clipseg3d.blocks.semantic_fusion import Semantics
from clipseg3d.cli.demo_training import train_demo
from clipseg3d.cli.freed_memory import keep_freed_memory
from clipseg3d.data.cases import Case, find_cases
from clipseg3d.data.preprocessing import preprocess
from clipseg3d.data.release import BraTSRelease
from clipseg3d.data.releases import BRATS_2018, PHANTOM
from clipseg3d.data.scan_grid import ScanGrid
from clipseg3d.inference.predictor import Predictor
from clipseg3d.inference.sliding_window import segment_volume
from clipseg3d.metrics.dice import dice_empty_is_one
from clipseg3d.networks.clipseg3d import CLIPSeg3D
from clipseg3d.phantom.write import write_phantoms
from clipseg3d.views import Views

OVERLAP = 0.5
Labels = np.ndarray


class Prepared(NamedTuple):
    """Input of either method."""

    image: Tensor
    """(1, 4, x, y, z) z-scored: the brain box, or the whole volume."""
    statistics: Tensor
    semantics: Semantics | None
    grid: ScanGrid
    release: BraTSRelease
    roi_size: tuple[int, int, int]


def ours(network: CLIPSeg3D, prepared: Prepared) -> Labels:
    """Segment the brain box, as :class:`Predictor` does."""
    logits = segment_volume(
        network,
        prepared.image,
        prepared.semantics,
        prepared.statistics,
        roi_size=prepared.roi_size,
        overlap=OVERLAP,
    )
    regions = (logits[0].sigmoid_() > 0.5).numpy()
    return prepared.grid.restore(prepared.release.to_labels(regions))


@torch.no_grad()
def monai(network: CLIPSeg3D, prepared: Prepared) -> Labels:
    """Segment the uncropped volume in the voxel order of the file (LPS in BraTS)."""
    box = prepared.grid.box
    starts = torch.tensor([start for start, _ in box], dtype=torch.float32)
    extent = torch.tensor([stop - start for start, stop in box], dtype=torch.float32)
    size = torch.tensor(prepared.roi_size, dtype=torch.float32)

    def predict(crop: Tensor, slices: list[list[slice]]) -> Tensor:
        corner = torch.tensor([axis.start for axis in slices[0][2:]], dtype=torch.float32)
        crop_box = torch.stack([(corner - starts) / extent, size / extent])
        return network.segment(
            crop, prepared.semantics, crop_box=crop_box[None], statistics=prepared.statistics
        ).logits

    logits = sliding_window_inference(
        prepared.image,
        prepared.roi_size,
        1,
        predict,
        overlap=OVERLAP,
        mode="gaussian",
        with_coord=True,
    )
    return prepared.release.to_labels((logits[0].sigmoid_() > 0.5).numpy())


METHODS: dict[str, Callable[[CLIPSeg3D, Prepared], Labels]] = {"monai": monai, "ours": ours}


def prepare(case: Case, predictor: Predictor) -> dict[str, Prepared]:
    """Return the input of each method."""
    network = predictor.network
    ready = preprocess(case, predictor.release, view_selection=network.view_selection)
    views = Views(*(part[None] for part in ready.views))
    with torch.no_grad():
        semantics = network.encode_semantics(views, *network.embed_text([case.report]))
    common = (ready.statistics[None], semantics, ready.grid, predictor.release, predictor.roi_size)
    volume = torch.from_numpy(ready.grid.restore(ready.image.numpy()))
    return {"monai": Prepared(volume[None], *common), "ours": Prepared(ready.image[None], *common)}


def load(weights: Path, *, real: bool) -> Predictor:
    """Load a network, for cases like those of its training or for real cases of 1 mm."""
    warnings.filterwarnings("ignore", message="the weights of the tiny CLIP are random")
    loaded = Predictor.from_checkpoint(weights, device="cpu")
    spacing_mm = 1.0 if real else loaded.spacing_mm
    edges = [round(edge * loaded.spacing_mm / spacing_mm) for edge in loaded.roi_size]
    return Predictor(
        loaded.network,
        release=BRATS_2018 if real else PHANTOM,
        spacing_mm=spacing_mm,
        roi_size=(edges[0], edges[1], edges[2]),
        overlap=OVERLAP,
        device="cpu",
    )


def send_peak(method: str, weights: Path, prepared: Path, threads: int, pipe: Connection) -> None:
    """Send the peak of resident memory above the level with the network loaded, in MB."""
    torch.set_num_threads(threads)
    network = load(weights, real=False).network
    before = memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak so far
    METHODS[method](network, torch.load(prepared, weights_only=False))
    pipe.send(memory_mb("VmHWM") - before)


def memory_mb(kind: str) -> float:
    """Return a line of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


def measure_peak(method: str, weights: Path, prepared: Path, threads: int) -> float:
    """Return the peak memory of one method, measured in a new process."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_peak, args=(method, weights, prepared, threads, sender))
    process.start()
    sender.close()
    peak: float = receiver.recv()
    process.join()
    return peak


def compare(a: Labels, b: Labels, brain: np.ndarray, release: BraTSRelease) -> dict[str, float]:
    """Return how far two label maps agree."""
    masks = (torch.from_numpy(release.to_regions(labels)) for labels in (a, b))
    return {
        "equal_voxels": float((a == b).mean()),
        "equal_in_brain": float((a == b)[brain].mean()),
        "dice_between": float(dice_empty_is_one(*masks).mean()),
    }


def find(arguments: argparse.Namespace, predictor: Predictor, work: Path) -> list[Case]:
    """Return the cases to segment."""
    root = arguments.data
    if root is None:
        root = work / "phantoms"
        write_phantoms(root, arguments.cases, spacing_mm=predictor.spacing_mm, seed=900)
    return find_cases(root, predictor.release, spacing_mm=predictor.spacing_mm)[: arguments.cases]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="BraTS 2018 cases; default: phantoms")
    parser.add_argument("--weights", type=Path, help="checkpoint; default: train the demo's")
    parser.add_argument("--cases", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        weights = arguments.weights or train_demo(work / "demo").weights
        predictor = load(weights, real=arguments.data is not None)
        cases = find(arguments, predictor, work)
        rows = []
        for number, case in enumerate(cases):
            prepared = prepare(case, predictor)
            seconds, labels = {}, {}
            for method in list(METHODS) if number % 2 else list(METHODS)[::-1]:
                start = time.perf_counter()
                labels[method] = METHODS[method](predictor.network, prepared[method])
                seconds[method] = time.perf_counter() - start
            brain = (prepared["monai"].image[0] != 0).any(dim=0).numpy()
            row = {**seconds, **compare(labels["ours"], labels["monai"], brain, predictor.release)}
            rows.append(row)
            print(f"{case.case_id:24s}", *(f"{name} {value:.5g}" for name, value in row.items()))
        check = predictor(cases[-1]).label  # the timed function must do what the library does
        if not np.array_equal(check, labels["ours"]):
            raise RuntimeError(f"{int((check != labels['ours']).sum())} voxels differ; see ours()")
        peaks = {}
        for method in METHODS:
            torch.save(prepared[method], work / method)
            peaks[method] = measure_peak(method, weights, work / method, arguments.threads)
    total = {method: sum(row[method] for row in rows) for method in METHODS}
    print(f"peak memory: MONAI {peaks['monai']:.0f} MB, ours {peaks['ours']:.0f} MB")
    print(
        json.dumps(
            {
                "benchmark": "inference",
                "ratio": total["monai"] / total["ours"],
                "ours": total["ours"] / len(rows),
                "peer": total["monai"] / len(rows),
                "unit": "s per case",
                "equal_voxels": min(row["equal_voxels"] for row in rows),
                "equal_in_brain": min(row["equal_in_brain"] for row in rows),
                "dice_between": statistics.mean(row["dice_between"] for row in rows),
                "memory_ratio": peaks["ours"] / peaks["monai"],
                "peak_mb_ours": peaks["ours"],
                "peak_mb_peer": peaks["monai"],
                "cases": len(rows),
                "window": predictor.roi_size,
                "threads": arguments.threads,
                "cpus": os.cpu_count(),
            }
        )
    )


if __name__ == "__main__":
    main()
