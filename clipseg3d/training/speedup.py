"""The same training, faster on some hardware: memory layout and compilation."""

import os
import shutil
import sys
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from clipseg3d.networks.unet import UNet3D


class Speedup(Callback):
    """Change the memory layout of the U-Net, which takes nearly all the time, or compile it.

    Results stay the same apart from rounding. Precision and accumulated batches are arguments of
    Lightning's Trainer; checkpointing is one of the network.

    Args:
        channels_last: store the channels of a voxel side by side.
        compile: compile the U-Net; the first step, and the first with crops of another size, takes
            minutes.

    Raises:
        ValueError: ``compile`` is set, and there is no compiler.
    """

    def __init__(self, *, channels_last: bool = False, compile: bool = False) -> None:
        if compile:
            _require_compiler()
        self.channels_last = channels_last
        self.compile = compile

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare the U-Net of a module."""
        unet = _unet(pl_module)
        if self.channels_last:
            # Convolutions take the layout of their weights.
            unet.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        if self.compile:
            # Only methods of the U-Net: semantics branch on values of tensors, and a compiled
            # module would rename its weights.
            for name in _METHODS:
                setattr(unet, name, torch.compile(getattr(unet, name)))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the U-Net's own methods, so that it can be copied and saved."""
        for name in _METHODS:
            vars(_unet(pl_module)).pop(name, None)


_METHODS = ("encode", "decode")
_COMPILERS = {"darwin": "clang++", "win32": "cl"}


def _require_compiler() -> None:
    """Raise a ValueError if torch.compile would find no compiler, after all data are prepared."""
    names = [os.environ.get("CXX") or _COMPILERS.get(sys.platform, "g++")]
    if torch.cuda.is_available():  # kernels of a GPU are launched by code in C
        names += [os.environ.get("CC") or "gcc", "clang"]
    if not any(map(shutil.which, names)):
        raise ValueError(
            f"compile: torch.compile found no C++ compiler ({', '.join(names)}); install one, set "
            "CXX to it, or leave out compile"
        )


def _unet(module: Any) -> UNet3D:
    """Return the U-Net of a module."""
    unet: UNet3D = module.network.unet
    return unet
