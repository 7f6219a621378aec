"""CLIP-guided 3D segmentation of brain tumours (arXiv 2507.09966).

Public names load on first use, so that ``import clipseg3d`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipseg3d.data.brats import (
        BraTS2018DataModule,
        BraTS2019DataModule,
        BraTS2020DataModule,
        BraTS2021DataModule,
        BraTS2023GLIDataModule,
        BraTS2023MENDataModule,
        BraTS2023METDataModule,
        BraTS2023PEDDataModule,
        BraTS2023SSADataModule,
        BraTS2024GLIDataModule,
        BraTS2024PEDDataModule,
        BraTSDataModule,
        MSDTask01DataModule,
    )
    from clipseg3d.data.phantom_datamodule import PhantomDataModule
    from clipseg3d.inference.predictor import Predictor
    from clipseg3d.networks.clipseg3d import CLIPSeg3D
    from clipseg3d.networks.config import NetworkConfig
    from clipseg3d.networks.unet import UNet3D
    from clipseg3d.training.module import CLIPSeg3DModule

__version__ = "0.1.0"

_HOMES = {
    "BraTS2018DataModule": "data.brats",
    "BraTS2019DataModule": "data.brats",
    "BraTS2020DataModule": "data.brats",
    "BraTS2021DataModule": "data.brats",
    "BraTS2023GLIDataModule": "data.brats",
    "BraTS2023MENDataModule": "data.brats",
    "BraTS2023METDataModule": "data.brats",
    "BraTS2023PEDDataModule": "data.brats",
    "BraTS2023SSADataModule": "data.brats",
    "BraTS2024GLIDataModule": "data.brats",
    "BraTS2024PEDDataModule": "data.brats",
    "BraTSDataModule": "data.brats",
    "CLIPSeg3D": "networks.clipseg3d",
    "CLIPSeg3DModule": "training.module",
    "MSDTask01DataModule": "data.brats",
    "NetworkConfig": "networks.config",
    "PhantomDataModule": "data.phantom_datamodule",
    "Predictor": "inference.predictor",
    "UNet3D": "networks.unet",
}

__all__ = [
    "BraTS2018DataModule",
    "BraTS2019DataModule",
    "BraTS2020DataModule",
    "BraTS2021DataModule",
    "BraTS2023GLIDataModule",
    "BraTS2023MENDataModule",
    "BraTS2023METDataModule",
    "BraTS2023PEDDataModule",
    "BraTS2023SSADataModule",
    "BraTS2024GLIDataModule",
    "BraTS2024PEDDataModule",
    "BraTSDataModule",
    "CLIPSeg3D",
    "CLIPSeg3DModule",
    "MSDTask01DataModule",
    "NetworkConfig",
    "PhantomDataModule",
    "Predictor",
    "UNet3D",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'clipseg3d' has no attribute {name!r}")
    value = getattr(import_module(f"clipseg3d.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted(__all__)
