"""Predicted costs of the recipes in ``clipseg3d configs``: GPU memory, and hours on an A100.

    python examples/benchmarks/recipe_costs.py --output recipe_costs.csv

Nothing is trained. Memory is what ``clipseg3d fit --dry-run`` predicts. Hours are predicted without
a GPU, as a product of three factors: the time per step that nnU-Net's authors report for an A100;
the ratio of operations of a network with their layout and our channels, which is counted; and the
ratio of our time per step to that of this network on a CPU, which is measured (``step_time.py``).
Recomputed blocks cost another forward pass. Our own validation and communication between GPUs are
left out.
"""

import argparse
import csv
from pathlib import Path

import torch
import yaml
from semantic_cost import full_size_clip
from step_time import dynunet
from torch.utils.flop_counter import FlopCounterMode

from clipseg3d.atomic_write import atomic_write
from clipseg3d.configs import SHIPPED
from clipseg3d.networks.build import build_clipseg3d
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.training.memory import predict_peak_memory

NNUNET_CHANNELS = (32, 64, 128, 256, 320, 320)
NNUNET_SECONDS = 9 * 3600 / (1000 * 250 * 2)
"""Seconds per crop of 128 voxels a side on an A100 (PCIe, 40 GB): 1000 epochs of 250 steps of two
crops in 9 hours, with validation and loading (Isensee et al., arXiv 2404.09556, "nnU-Net (org.)").
"""
STEP_RATIO = 1.11
"""Time of `recommended` with semantics / DynUNet of equal channels at 128 voxels a side, as
``step_time.py`` once measured it; that result is not stored."""
RECOMPUTED = 4 / 3
"""A backward pass costs two forward passes; checkpointing adds one forward pass."""
CASES = {
    "BraTS2020DataModule": 369,
    "BraTS2021DataModule": 1251,
    "BraTS2023GLIDataModule": 1251,
    "MSDTask01DataModule": 484,
}
TEXTBRATS_TRAINING = 220
"""Cases in TextBraTS' Train.json."""


def operations(channels: tuple[int, ...]) -> int:
    """Return the operations of a forward pass of nnU-Net's layout on 128 x 128 x 128 voxels."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        dynunet(channels)(torch.empty(1, 4, 128, 128, 128))
    return int(counter.get_total_flops())


def training_cases(data: dict) -> int:
    """Return the number of training cases in a fold of a recipe."""
    options = data["init_args"]
    if "splits" in options:
        return TEXTBRATS_TRAINING
    cases = CASES[data["class_path"].rpartition(".")[2]]
    return cases - cases // options["num_folds"]


def main() -> None:
    """Predict the costs of all recipes for the full-size network, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("recipe_costs.csv"))
    arguments = parser.parse_args()
    clip = full_size_clip(32)
    columns = ("recipe", "crop", "crops per GPU", "GPUs", "epochs", "learning rate")
    rows = [(*columns, "GB per GPU", "hours on A100s")]
    for path in sorted(SHIPPED.glob("*.yaml")):
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        network, trainer = recipe["model"]["network"], recipe["trainer"]
        options = recipe["data"]["init_args"]
        if "clip" not in network:
            continue  # a small preset, to try things out
        config = NetworkConfig(**network)
        second = NNUNET_SECONDS * operations(config.channels) / operations(NNUNET_CHANNELS)
        second *= STEP_RATIO * (RECOMPUTED if config.checkpointing else 1)
        crop, count = options["patch_size"], options["batch_size"]
        second *= crop[0] * crop[1] * crop[2] / 128**3
        devices = trainer["devices"] * trainer.get("num_nodes", 1)
        epochs = trainer["max_epochs"]
        crops = training_cases(recipe["data"]) * epochs
        peak = predict_peak_memory(
            build_clipseg3d(config, encoder=clip),
            crop,
            batch_size=count,
            precision=trainer["precision"],
        )
        hours = crops * second / devices / 3600
        size = " x ".join(map(str, crop))
        sizes = (size, str(count), str(devices), str(epochs), f"{recipe['model']['lr']:.2g}")
        rows.append((path.stem, *sizes, f"{peak.total / 1e9:.1f}", f"{hours:.1f}"))
        print(*rows[-1], sep=", ", flush=True)
    with atomic_write(arguments.output) as tmp, tmp.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main()
