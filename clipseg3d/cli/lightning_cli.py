"""LightningCLI with this library's module and data, for ``clipseg3d fit | validate | test``."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.core.datamodule import LightningDataModule
from pytorch_lightning.plugins.io import TorchCheckpointIO

from clipseg3d.atomic_write import atomic_write
from clipseg3d.cli.presets import expand_presets
from clipseg3d.networks.config import NetworkConfig, network_config
from clipseg3d.pretrained.checkpoint import read_checkpoint_file
from clipseg3d.training.checkpoint_io import AtomicCheckpointIO, find_last
from clipseg3d.training.dry_run import dry_run
from clipseg3d.training.last_checkpoints import LastCheckpoints
from clipseg3d.training.manifest import RunManifest
from clipseg3d.training.module import CLIPSeg3DModule

DRY_RUN = "--dry-run"


def release_name(data: Any) -> str:
    """Return the name of the release that a data module reads."""
    name: str = data.release.name
    return name


def view_selection(network: Any, ablation: str | None) -> Any:
    """Return which views a network needs."""
    return _config(network, ablation).view_selection


def is_shuffled(network: Any, ablation: str | None) -> bool:
    """Return whether a network is trained with the reports of other cases."""
    return _config(network, ablation).text == "shuffled"


def _config(network: Any, ablation: str | None) -> NetworkConfig:
    """Return the configuration for the parser's value of a network: a preset's name, or values."""
    if isinstance(network, Namespace):
        network = network.get("init_args", network).as_dict()
    try:
        return network_config(network, ablation=ablation)
    except ValueError:  # raised again, without words of the parser, when the module is built
        return NetworkConfig()


class CLIPSeg3DCLI(LightningCLI):
    """LightningCLI that links data to module, and keeps the best and the last checkpoints."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Offer what this library's module implements."""
        methods = LightningCLI.subcommands()
        return {name: methods[name] for name in ("fit", "validate", "test")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link data to module; add both callbacks for checkpoints, and ``--scores``."""
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
                "checkpoint.filename": "best",
                "checkpoint.enable_version_counter": False,  # best.ckpt keeps its name
            }
        )
        parser.add_lightning_class_args(LastCheckpoints, "last")
        parser.link_arguments("checkpoint.dirpath", "last.dirpath")
        parser.add_argument(
            "--scores",
            type=str | None,
            help="write the Dice of every case to this .csv file; after fit, those of the best "
            "checkpoint",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line; to validate and test, a checkpoint overrides its model.

        LightningCLI would also let a checkpoint override the model of a fit, and read files of
        older formats as they are. So the checkpoint's path is hidden from it until then.

        Raises:
            ValueError: the checkpoint cannot be read.
        """
        self.config = parser.parse_args(expand_presets(args))
        command = self.config.subcommand
        self._ckpt_path = self.config[command].pop("ckpt_path")
        if command != "fit" and self._ckpt_path and Path(self._ckpt_path).is_file():
            trained = read_checkpoint_file(Path(self._ckpt_path))["hyper_parameters"]
            self.config = parser.parse_object({command: {"model": trained}}, self.config)

    def before_instantiate_classes(self) -> None:
        """Put the path of the checkpoint back."""
        self.config[self.subcommand].ckpt_path = self._ckpt_path

    def after_instantiate_classes(self) -> None:
        """Write checkpoints atomically, and put the configuration into their manifest."""
        strategy = self.trainer.strategy
        if type(strategy.checkpoint_io) is TorchCheckpointIO:  # no plugin was given
            strategy.checkpoint_io = AtomicCheckpointIO()
        config = json.loads(self.parser.dump(self.config, skip_none=False, format="json"))
        self.trainer_defaults["callbacks"].config = config[self.subcommand]

    def before_fit(self) -> None:
        """For ``--ckpt_path last``, find the newest intact checkpoint, and go on in its folder."""
        if self.config_init.fit.ckpt_path != "last":
            return
        path = self.config_init.fit.ckpt_path = find_last(self.trainer)
        for callback in self.trainer.checkpoint_callbacks:
            if path and isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(path.parent)

    def after_fit(self) -> None:
        """Score the best checkpoint, if scores are asked for.

        Raises:
            ValueError: there is none.
        """
        if self.config.fit.scores is None:
            return
        best = self.config_init.fit.checkpoint.best_model_path
        if not best:
            raise ValueError(
                f"no epoch was validated, so --scores {self.config.fit.scores} has none to score; "
                "lower trainer.check_val_every_n_epoch"
            )
        self.trainer.validate(self.model, self.datamodule, ckpt_path=best, verbose=False)
        self.after_validate()

    def after_validate(self) -> None:
        """Write the Dice of every case as a CSV table, if scores are asked for."""
        path = self.config[self.subcommand].scores
        if path is not None and self.trainer.is_global_zero:
            with atomic_write(Path(path)) as tmp:
                tmp.write_text(self.model.scores.csv(), encoding="utf-8")

    after_test = after_validate


class SetupCLI(CLIPSeg3DCLI):
    """The same, but ``fit`` only builds module, data and trainer."""

    def fit(self, **_: Any) -> None:
        """Train nothing."""

    def after_fit(self) -> None:
        """Score nothing."""


def run_lightning(arguments: Sequence[str]) -> None:
    """Run one LightningCLI command, such as ``["fit", "--config", "tiny.yaml"]``.

    With ``--dry-run`` anywhere after ``fit``, only print what the fit will need.

    Raises:
        ValueError: the dry run has found faults.
    """
    if arguments[0] != "fit" or DRY_RUN not in arguments:
        _run(CLIPSeg3DCLI, arguments)
        return
    cli = _run(SetupCLI, [argument for argument in arguments if argument != DRY_RUN])
    result = dry_run(cli.model, cli.datamodule, cli.trainer)
    sys.stdout.write(f"{result}\n")
    if result.faults:
        raise ValueError(f"this fit would fail: {len(result.faults)} faults, listed above")


def count_folds(arguments: Sequence[str]) -> int:
    """Return how many folds the data of a fit have; nothing is trained.

    Args:
        arguments: of the fit, from ``fit`` on.

    Raises:
        ValueError: the fit cannot be set up.
    """
    count: int = _run(SetupCLI, arguments).datamodule.count_folds()
    return count


def _run(kind: type[CLIPSeg3DCLI], arguments: Sequence[str]) -> CLIPSeg3DCLI:
    """Build and run one command."""
    return kind(
        CLIPSeg3DModule,
        LightningDataModule,
        subclass_mode_data=True,
        seed_everything_default=0,
        trainer_defaults={"callbacks": RunManifest()},
        save_config_kwargs={"overwrite": True},  # a resumed fit writes it again
        args=list(arguments),
        auto_configure_optimizers=False,
        parser_kwargs={"prog": "clipseg3d"},
    )
