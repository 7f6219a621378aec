"""A small network and simulated patients, for tests of whole fits."""

from pathlib import Path

import pytest
from pytorch_lightning import Trainer, seed_everything

from clipseg3d.networks.config import NetworkConfig
from clipseg3d.phantom.datamodule import PhantomDataModule
from clipseg3d.training.checkpoint_io import AtomicCheckpointIO
from clipseg3d.training.module import CLIPSeg3DModule


class SmallFit:
    """Fits of a few seconds, with all that is random in one switched on."""

    network = NetworkConfig(
        channels=(4, 8),
        num_auxiliary=0,
        semantic_dim=16,
        num_heads=2,
        clip="tiny-random",
        dropout=0.2,
        region_contrast=0.5,
    )

    def __init__(self, patients: Path, cache: Path) -> None:
        self.patients, self.cache = patients, cache

    def data(self, **options):
        """Four patients to train on, in four batches of two crops; one to validate on."""
        defaults = {
            "num_cases": 5,
            "spacing_mm": 8.0,
            "num_folds": 5,
            "patch_size": (16, 16, 16),
            "batch_size": 2,
            "crops_per_case": 2,
            "num_workers": 0,
            "view_selection": self.network.view_selection,
            "cache_dir": str(self.cache),
        }
        return PhantomDataModule(str(self.patients), **{**defaults, **options})

    def module(self, network=network, **options):
        defaults = {
            "release": "phantom",
            "spacing_mm": 8.0,
            "plan": {"lr": 1e-2, "semantic_ramp": (1, 2)},
            "sequence_dropout": 0.5,
            "roi_size": (24, 24, 24),
        }
        return CLIPSeg3DModule(network, **{**defaults, **options})

    def trainer(self, folder, **options):
        defaults = {
            "max_epochs": 3,
            "accelerator": "cpu",
            "logger": False,
            "plugins": [AtomicCheckpointIO()],
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": bool(options.get("callbacks")),
            "default_root_dir": folder,
        }
        if "max_steps" in options:
            del defaults["max_epochs"]
        return Trainer(**{**defaults, **options})

    def __call__(self, folder, *, checkpoint=None, seed=3, module=None, data=None, **options):
        """Fit, and return module and trainer."""
        seed_everything(seed, verbose=False)
        module = module or self.module()
        trainer = self.trainer(folder, **options)
        trainer.fit(module, data or self.data(), ckpt_path=checkpoint)
        return module, trainer


@pytest.fixture(scope="session")
def small(phantom_folder, tmp_path_factory):
    return SmallFit(phantom_folder, tmp_path_factory.mktemp("cache"))
