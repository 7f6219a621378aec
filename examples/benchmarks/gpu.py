"""What a GPU does with this library: all that was only measured on CPUs, in one run of 8 minutes.

    python examples/benchmarks/gpu.py > gpu.json
    python examples/benchmarks/gpu.py --device cpu --rehearse  # tiny networks and sizes

- ``steps``: time and peak memory of a training step of this library's networks and of MONAI's.
- ``loader``: share of the time that training waits for data, with two loader processes.
- ``memory``: what ``fit --dry-run`` predicts, beside what PyTorch allocates.
- ``inference``: seconds of one simulated patient, read and segmented.
- ``cbam``: time and memory of CBAM in slabs, beside the plain form.
- ``determinism``: operations that PyTorch names as not deterministic.
- ``ddp``: a step on one rank, with NCCL on a GPU and gloo on a CPU.

Each part that fails gives its error and does not stop the others; what the budget has no time for
is listed as skipped. Progress goes to standard error. The last line of standard output is one JSON
object. ``ratio`` is the time of a step of ``recommended`` / of MONAI's ``DynUNet``, both in bf16.

Memory on a GPU is the largest that PyTorch had allocated; on a CPU it is not measured (null). CLIP
has the size of ViT-B/32 and random weights.
"""

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from loading import Sampled
from monai.networks.nets import SegResNet, SwinUNETR
from semantic_cost import BRAIN, REPORT, full_size_clip
from step_time import dynunet
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from clipseg3d.batch import unpack
from clipseg3d.blocks import cbam
from clipseg3d.blocks.cbam import CBAM
from clipseg3d.cli.freed_memory import keep_freed_memory
from clipseg3d.clip.hugging_face_clip import HuggingFaceCLIP
from clipseg3d.data.cache import build_cache
from clipseg3d.data.cases import Case, find_cases
from clipseg3d.data.dataset import BraTSDataset
from clipseg3d.data.releases import PHANTOM
from clipseg3d.data.transforms import Augmentation
from clipseg3d.inference.predictor import Predictor
from clipseg3d.intensity import intensity_statistics
from clipseg3d.losses import RegionLoss
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.clipseg3d import CLIPSeg3D
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.presets import network_config
from clipseg3d.phantom.write import write_phantoms
from clipseg3d.training.memory import predict_peak_memory
from clipseg3d.views import cut_views

TINY = NetworkConfig(channels=(4, 8), num_auxiliary=0, semantic_dim=16, num_heads=2)
RECOMMENDED, FAST, PEER = "recommended", "fast", "DynUNet"
VARIANTS: dict[str, dict[str, bool]] = {
    "fp32": {},
    "bf16": {"bf16": True},
    "bf16 channels_last_3d": {"bf16": True, "channels_last": True},
    "bf16 compiled": {"bf16": True, "compiled": True},
}


def networks(rehearse: bool) -> dict[str, Callable[[], nn.Module]]:
    """Return the networks by name; tiny ones for a rehearsal."""

    def ours(preset: str) -> CLIPSeg3D:
        if rehearse:
            return build_clipseg3d(TINY, encoder=HuggingFaceCLIP.tiny_random())
        return build_clipseg3d(network_config(preset), encoder=full_size_clip(32))

    sizes = {"in_channels": 4, "out_channels": 3}
    return {
        RECOMMENDED: partial(ours, RECOMMENDED),
        PEER: partial(dynunet, (4, 8, 8)) if rehearse else dynunet,
        FAST: partial(ours, FAST),
        "SegResNet 32": lambda: SegResNet(init_filters=8 if rehearse else 32, **sizes),
        "SwinUNETR 48": lambda: SwinUNETR(feature_size=12 if rehearse else 48, **sizes),
    }


class Objective(nn.Module):
    """A network and the loss of a crop, so that all networks are called alike."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.loss = RegionLoss()
        if isinstance(network, CLIPSeg3D):
            brain = torch.rand(1, 4, *(side // 2 for side in BRAIN)) + 0.1
            self.views = cut_views(brain, selection=network.view_selection)
            self.statistics = intensity_statistics(brain)
            self.text = network.embed_text([REPORT])

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        """Return the loss."""
        if not isinstance(self.network, CLIPSeg3D):
            return self.loss([self.network(image)], label)
        device = image.device
        views = type(self.views)(*(part.to(device) for part in self.views))
        text = (part.to(device) for part in self.text)
        semantics = self.network.encode_semantics(views, *text)
        statistics = self.statistics.to(device)
        prediction = self.network.segment(image, semantics, statistics=statistics, deep=True)
        return self.loss([prediction.logits, *prediction.auxiliary], label)


class Bench:
    """The parts of the benchmark, on one device.

    Args:
        arguments: of the command line.
        folder: for simulated patients.
    """

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.device = torch.device(arguments.device)
        self.rehearse: bool = arguments.rehearse
        self.size: int = arguments.size or (16 if self.rehearse else 128)
        self.repeats: int = arguments.repeats
        self.networks = networks(self.rehearse)
        self.folder = folder
        self.spacing_mm = 8.0 if self.rehearse else 1.0

    def synchronise(self) -> None:
        """Wait until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def measure(self, action: Callable[[], object], *, warm_up: int = 2) -> dict[str, Any]:
        """Return the median time of an action, and the peak memory."""
        for _ in range(warm_up):
            action()
        self.synchronise()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        seconds = []
        for _ in range(self.repeats):
            start = time.perf_counter()
            action()
            self.synchronise()
            seconds.append(time.perf_counter() - start)
        return {"ms": 1e3 * statistics.median(seconds), "peak_gb": self.peak_gb()}

    def peak_gb(self) -> float | None:
        """Return the peak of allocated memory; None on a CPU."""
        if self.device.type != "cuda":
            return None
        return torch.cuda.max_memory_allocated(self.device) / 1e9

    def crop(self, size: int) -> tuple[Tensor, Tensor]:
        """Return image and regions of a crop."""
        image = torch.rand(1, 4, size, size, size, device=self.device)
        label = (torch.rand(1, 3, size, size, size, device=self.device) > 0.9).float()
        return image, label

    def trainer(
        self,
        objective: nn.Module,
        *,
        bf16: bool = False,
    ) -> Callable[[Tensor, Tensor], None]:
        """Return a function that takes a training step."""
        weights = [weight for weight in objective.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, 1e-4)
        objective.train()

        def step(image: Tensor, label: Tensor) -> None:
            optimizer.zero_grad()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                loss = objective(image, label)
            loss.backward()
            optimizer.step()

        return step

    def step(
        self,
        name: str,
        *,
        bf16: bool = False,
        channels_last: bool = False,
        compiled: bool = False,
        size: int | None = None,
    ) -> dict[str, Any]:
        """Measure training steps of one network."""
        network = self.networks[name]()
        objective = Objective(network).to(self.device)
        if channels_last:
            body = network.unet if isinstance(network, CLIPSeg3D) else network
            body.to(memory_format=torch.channels_last_3d)
        if compiled and isinstance(network, CLIPSeg3D):  # as the callback Speedup does
            for method in ("encode", "decode"):
                setattr(network.unet, method, torch.compile(getattr(network.unet, method)))
        elif compiled:
            objective.network = torch.compile(network)
        step = self.trainer(objective, bf16=bf16)
        image, label = self.crop(size or self.size)
        return self.measure(lambda: step(image, label))

    def loader(self) -> dict[str, Any]:
        """Return how long training waits for two loader processes."""
        cases = self.patients(self.folder / "loader", 2)
        entries = build_cache(
            cases,
            PHANTOM,
            self.folder / "cache",
            view_selection="energy",
        )
        crop = (self.size,) * 3
        data = BraTSDataset(entries, PHANTOM, crop=crop, augment=Augmentation(), packed=True)
        samples = DataLoader(Sampled(data, 100_000), batch_size=1, num_workers=2, pin_memory=True)
        step = self.trainer(Objective(self.networks[RECOMMENDED]()).to(self.device), bf16=True)
        waited = total = 0.0
        batches = iter(samples)
        for number in range(4 + 4 * self.repeats):
            start = time.perf_counter()
            batch = next(batches)
            got = time.perf_counter()
            keys = [key for key, value in batch.items() if isinstance(value, Tensor)]
            batch |= {key: batch[key].to(self.device, non_blocking=True) for key in keys}
            batch = unpack(batch)
            step(batch["image"], batch["label"])
            self.synchronise()
            if number >= 4:  # the first were prefetched while the network warmed up
                waited += got - start
                total += time.perf_counter() - start
        return {"share_waiting": waited / total, "ms_per_step": 1e3 * total / (4 * self.repeats)}

    def patients(self, root: Path, count: int) -> list[Case]:
        """Return simulated patients."""
        write_phantoms(root, count, spacing_mm=self.spacing_mm, seed=900)
        return find_cases(root, PHANTOM, spacing_mm=self.spacing_mm)

    def memory(self, size: int) -> dict[str, Any]:
        """Return predicted and allocated memory of a training step."""
        network = self.networks[RECOMMENDED]()
        predicted = predict_peak_memory(network, (size,) * 3).total / 1e9
        del network
        allocated = self.step(RECOMMENDED, size=size)["peak_gb"]
        ratio = None if allocated is None else allocated / predicted
        return {"predicted_gb": predicted, "allocated_gb": allocated, "ratio": ratio}

    def inference(self) -> dict[str, Any]:
        """Return the time of one patient."""
        (case,) = self.patients(self.folder / "patient", 1)
        predictor = Predictor(
            self.networks[RECOMMENDED](),
            release=PHANTOM,
            spacing_mm=self.spacing_mm,
            roi_size=(self.size,) * 3,
            device=str(self.device),
        )
        start = time.perf_counter()
        read = predictor.read(case)
        reading = time.perf_counter() - start
        measured = self.measure(lambda: predictor(read), warm_up=1)
        return {
            "read_s": reading,
            "segment_s": measured["ms"] / 1e3,
            "peak_gb": measured["peak_gb"],
        }

    def cbam(self) -> dict[str, Any]:
        """Return time and memory of forward and backward, in slabs and in the plain form."""
        block = CBAM(32).to(self.device)
        size = (self.size,) * 3
        features = torch.rand(1, 32, *size, device=self.device, requires_grad=True)
        action = partial(_forward_and_backward, block, features)
        slabs = self.measure(action)
        with mock.patch.object(cbam, "runs_in_slabs", return_value=False):
            plain = self.measure(action)
        return {"slabs": slabs, "plain": plain, "ratio": slabs["ms"] / plain["ms"]}

    def determinism(self) -> dict[str, Any]:
        """Return what PyTorch warns of if a step shall be deterministic."""
        step = self.trainer(Objective(self.networks[RECOMMENDED]()).to(self.device))
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                step(*self.crop(self.size))
                self.synchronise()
        finally:
            torch.use_deterministic_algorithms(False)
        told = [str(w.message).partition("\n")[0][:200] for w in caught]
        told = [message for message in told if "determinis" in message]
        return {"count": len(told), "messages": sorted(set(told))}

    def ddp(self) -> dict[str, Any]:
        """Measure a step on one rank of distributed training."""
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        store = f"file://{self.folder / 'ranks'}"
        dist.init_process_group(backend, init_method=store, rank=0, world_size=1)
        try:
            objective = Objective(self.networks[RECOMMENDED]()).to(self.device)
            wrapped = DistributedDataParallel(objective)
            step = self.trainer(wrapped, bf16=True)
            image, label = self.crop(self.size)
            return {"backend": backend, **self.measure(lambda: step(image, label))}
        finally:
            dist.destroy_process_group()


def _forward_and_backward(block: nn.Module, features: Tensor) -> None:
    """Run a block and its gradients."""
    block(features).sum().backward()


def parts_of(bench: Bench, variants: Sequence[str]) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return all parts by name, in their order."""
    parts: dict[str, Callable[[], dict[str, Any]]] = {}
    for variant in variants:
        if "compiled" not in variant:
            for name in bench.networks:
                parts[f"steps/{name}/{variant}"] = partial(bench.step, name, **VARIANTS[variant])
    for size in sorted({bench.size // 2, 3 * bench.size // 4, bench.size}):
        parts[f"memory/{size}"] = partial(bench.memory, size)
    parts |= {
        "inference": bench.inference,
        "loader": bench.loader,
        "cbam": bench.cbam,
        "determinism": bench.determinism,
        "ddp": bench.ddp,
    }
    for variant in variants:  # last, since compilers take longest
        if "compiled" in variant:
            for name in bench.networks:
                parts[f"steps/{name}/{variant}"] = partial(bench.step, name, **VARIANTS[variant])
    return parts


def run(parts: Mapping[str, Callable[[], dict[str, Any]]], budget: float) -> dict[str, Any]:
    """Run parts until the budget (s) is spent; failures become text."""
    start = time.perf_counter()
    results: dict[str, Any] = {}
    for name, part in parts.items():
        if time.perf_counter() - start > budget:
            results[name] = {"skipped": f"the budget of {budget:g} s is spent"}
            continue
        begun = time.perf_counter()
        try:
            results[name] = part()
        except Exception as error:  # of any library; the others are still to be measured
            results[name] = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        results[name]["seconds"] = round(time.perf_counter() - begun, 2)
        print(name, json.dumps(results[name]), file=sys.stderr, flush=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--budget", type=float, default=420, help="s after which nothing is begun")
    parser.add_argument("--size", type=int, help="patch edge in voxels; 128")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--networks", nargs="+", help="of those that are compared")
    parser.add_argument("--rehearse", action="store_true", help="tiny networks and sizes")
    arguments = parser.parse_args()
    keep_freed_memory()
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, Path(folder))
        parts = parts_of(bench, arguments.variants)
        if arguments.networks:
            names = (*arguments.networks,)
            chosen = {p for p in parts if not p.startswith("steps/") or p.split("/")[1] in names}
            parts = {name: part for name, part in parts.items() if name in chosen}
        results = run(parts, arguments.budget)
    ours, peer = (results.get(f"steps/{n}/bf16", {}).get("ms") for n in (RECOMMENDED, PEER))
    on_gpu = bench.device.type == "cuda"
    print(
        json.dumps(
            {
                "benchmark": "gpu",
                "ratio": ours / peer if ours and peer else None,
                "ours": ours,
                "peer": peer,
                "unit": f"ms per training step at {bench.size}^3 in bf16",
                "device": torch.cuda.get_device_name(bench.device) if on_gpu else "cpu",
                "torch": torch.__version__,
                "rehearsal": bench.rehearse,
                "failed": [name for name, result in results.items() if "error" in result],
                "skipped": [name for name, result in results.items() if "skipped" in result],
                "parts": results,
            }
        )
    )


if __name__ == "__main__":
    main()
