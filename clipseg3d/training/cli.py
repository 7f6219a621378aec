"""``clipseg3d fit | validate | test``: LightningCLI with this library's module and data."""

import sys
from collections.abc import Sequence
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.core.datamodule import LightningDataModule

from clipseg3d.networks.config import NetworkConfig, network_config
from clipseg3d.training.module import CLIPSeg3DModule


def release_name(data: Any) -> str:
    """Return the name of the release that a data module reads."""
    name: str = data.release.name
    return name


def view_selection(network: Any, ablation: str | None) -> Any:
    """Return the views that a network, by name or as values, is to see."""
    return _config(network, ablation).view_selection


def is_shuffled(network: Any, ablation: str | None) -> bool:
    """Return whether a network is to be trained with the reports of other cases."""
    return _config(network, ablation).text == "shuffled"


def _config(network: Any, ablation: str | None) -> NetworkConfig:
    """Return the config of what the parser holds: a name, values, or a namespace of them."""
    values = network.as_dict() if isinstance(network, Namespace) else network
    if isinstance(values, dict):  # the parser wraps the values of a class, with its name beside
        values = values.get("init_args", values)
    try:
        return network_config(values, ablation=ablation)
    except ValueError:  # the module, built from the same, says what is wrong
        return NetworkConfig()


class CLIPSeg3DCLI(LightningCLI):
    """LightningCLI that keeps data and module in step and the best full-volume checkpoint."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Offer what this library's module implements."""
        every = LightningCLI.subcommands()
        return {name: every[name] for name in ("fit", "validate", "test")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Keep data and module in step; keep the best and the last checkpoint."""
        parser.link_arguments(
            "data", "model.release", compute_fn=release_name, apply_on="instantiate"
        )
        parser.link_arguments("data.spacing_mm", "model.spacing_mm", apply_on="instantiate")
        choice = ("model.network", "model.ablation")
        parser.link_arguments(choice, "data.init_args.view_selection", compute_fn=view_selection)
        parser.link_arguments(choice, "data.init_args.shuffle_reports", compute_fn=is_shuffled)
        parser.link_arguments(
            "model.sequence_dropout", "data.init_args.allow_missing_sequences", compute_fn=bool
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/dice_mean",
                "checkpoint.mode": "max",
                "checkpoint.save_last": True,
                "checkpoint.filename": "best",
                "checkpoint.enable_version_counter": False,  # best.ckpt keeps its name
            }
        )


def run(arguments: Sequence[str]) -> None:
    """Run one LightningCLI command, such as ``["fit", "--config", "tiny.yaml"]``."""
    CLIPSeg3DCLI(
        CLIPSeg3DModule,
        LightningDataModule,
        subclass_mode_data=True,
        seed_everything_default=0,
        # Lightning reads the command line itself, and warns if it is handed over as well.
        args=None if list(arguments) == sys.argv[1:] else list(arguments),
        auto_configure_optimizers=False,
        parser_kwargs={"prog": "clipseg3d"},
    )
