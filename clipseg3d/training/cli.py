"""``clipseg3d fit | validate | test``: LightningCLI with this library's module and data."""

import sys
from collections.abc import Sequence
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.core.datamodule import LightningDataModule

from clipseg3d.networks.config import NetworkConfig, network_config
from clipseg3d.training.dry_run import dry_run
from clipseg3d.training.module import CLIPSeg3DModule

DRY_RUN = "--dry-run"


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


class DryRunCLI(CLIPSeg3DCLI):
    """The same, but ``fit`` says what it would need, and trains and writes nothing."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Know the switch that has led here."""
        super().add_arguments_to_parser(parser)
        parser.add_argument(DRY_RUN, action="store_true")

    def fit(self, **_: Any) -> None:
        """Print what a fit will need.

        Raises:
            ValueError: the fit would fail.
        """
        found = dry_run(self.model, self.datamodule, self.trainer)
        sys.stdout.write(f"{found}\n")
        if found.faults:
            raise ValueError(f"this fit would fail: {len(found.faults)} faults, listed above")


def run(arguments: Sequence[str]) -> None:
    """Run one LightningCLI command, such as ``["fit", "--config", "tiny.yaml"]``.

    ``--dry-run`` anywhere behind ``fit`` says what the fit will need instead.
    """
    dry = arguments[0] == "fit" and DRY_RUN in arguments
    (DryRunCLI if dry else CLIPSeg3DCLI)(
        CLIPSeg3DModule,
        LightningDataModule,
        subclass_mode_data=True,
        seed_everything_default=0,
        # Lightning reads the command line itself, and warns if it is handed over as well.
        args=None if list(arguments) == sys.argv[1:] else list(arguments),
        auto_configure_optimizers=False,
        parser_kwargs={"prog": "clipseg3d"},
    )
