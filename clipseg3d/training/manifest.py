"""A record of everything that the weights of a fit depend on, in every checkpoint."""

import os
import platform
import subprocess
import sys
import time
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from clipseg3d import __file__ as package_file
from clipseg3d.data.sample_order import global_seed
from clipseg3d.training.checkpoint_io import MANIFEST

LIBRARIES = (
    *("clipseg3d", "torch", "pytorch-lightning", "transformers", "monai", "numpy", "scipy"),
    *("nibabel", "torchmetrics", "safetensors", "einops"),
)


class RunManifest(Callback):
    """Record in every checkpoint, as plain values, how it was trained.

    The record holds the configuration, the git state, versions, the cases of each part and check
    sums of their files, encoders and their hashes, hardware, seed, scores of the last
    validation, and the time of training summed over all runs of a resumed fit.
    :class:`clipseg3d.training.checkpoint_io.AtomicCheckpointIO` also writes it beside the
    checkpoint.

    Attributes:
        config: of the command line, as plain values; None if there was none.
    """

    def __init__(self) -> None:
        self.config: dict[str, Any] | None = None
        self._started = 0.0
        self._seconds_before = 0.0
        self._fixed: dict[str, Any] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect what does not change during a fit."""
        self._started = time.monotonic()
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._fixed = {
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": sys.argv,
            "config": self.config,
            "hyper_parameters": dict(pl_module.hparams),
            "seed": global_seed(),
            "git": {
                "working_folder": _git_state(Path.cwd()),
                "clipseg3d": _git_state(Path(package_file).parent),
            },
            "versions": {"python": platform.python_version(), **_versions()},
            "data": data.provenance() if hasattr(data, "provenance") else None,
            "hardware": _hardware(trainer),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the time that the fit has taken."""
        return {"seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Add the time of earlier runs."""
        self._seconds_before = state_dict["seconds"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the manifest to a checkpoint."""
        network: Any = pl_module.network
        checkpoint[MANIFEST] = {
            **_plain(self._fixed),
            "encoders": network.encoder_identities(),
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "scores": {
                name: float(score)
                for name, score in trainer.callback_metrics.items()
                if name.startswith("val/")
            },
            "seconds": round(self._seconds(), 1),
        }

    def _seconds(self) -> float:
        """Return how long the fit has run, summed over all its runs."""
        return self._seconds_before + time.monotonic() - self._started


def _git_state(folder: Path) -> dict[str, Any] | None:
    """Return commit and uncommitted changes of a folder's repository; None if there is none."""
    outputs = []
    for command in (("rev-parse", "HEAD"), ("status", "--porcelain")):
        try:
            process = subprocess.run(
                ["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=30
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        if process.returncode:
            return None
        outputs.append(process.stdout)
    return {"commit": outputs[0].strip(), "changes": outputs[1].splitlines()}


def _versions() -> dict[str, str | None]:
    """Return the versions of the libraries that weights depend on."""
    versions: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def _hardware(trainer: Trainer) -> dict[str, Any]:
    """Describe the devices and the machine of a fit."""
    device = trainer.strategy.root_device
    return {
        "devices": trainer.world_size,
        "nodes": trainer.num_nodes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "machine": platform.machine(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "cuda": torch.version.cuda,
    }


def _plain(value: Any) -> Any:
    """Return a value in the types of JSON, so that checkpoint and JSON file hold the same."""
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
