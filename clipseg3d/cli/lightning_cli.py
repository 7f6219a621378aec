"""LightningCLI with this library's module and data, for ``clipseg3d fit | validate | test``."""

import json
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from pytorch_lightning import Trainer
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
                "checkpoint.filename": "best",
                "checkpoint.enable_version_counter": False,  # best.ckpt keeps its name
            }
        )
        parser.add_lightning_class_args(LastCheckpoints, "last")
        parser.link_arguments("checkpoint.dirpath", "last.dirpath")
        parser.add_argument(
            "--scores",
            type=str | None,
            help="write Dice of every case to a .csv file; behind fit, of the best checkpoint",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, with presets written out where they are changed.

        A checkpoint decides what is validated or tested, but not what is fitted: a fit that is
        resumed must be given its settings again, and is told where they differ.

        Raises:
            ValueError: the checkpoint cannot be read.
        """
        self.config = parser.parse_args(expand_presets(args))
        command = self.config.subcommand
        values = self.config[command]
        # Kept from LightningCLI, which would also let a fit take its settings from there.
        self._ckpt_path, values.ckpt_path = values.ckpt_path, None
        if command != "fit" and self._ckpt_path and Path(self._ckpt_path).is_file():
            trained = read_checkpoint_file(Path(self._ckpt_path))["hyper_parameters"]
            self.config = parser.parse_object({command: {"model": trained}}, self.config)

    def before_instantiate_classes(self) -> None:
        """Refuse values of the wrong type in a network: for the parser they are any dict.

        Raises:
            ValueError: naming the value.
        """
        self.config[self.subcommand].ckpt_path = self._ckpt_path
        network = self.config[self.subcommand].model.network
        if isinstance(network, dict):
            parser = ArgumentParser(exit_on_error=False)
            parser.add_class_arguments(NetworkConfig, "network")
            try:
                parser.parse_object({"network": network})
            except ArgumentError as error:
                raise ValueError(f"model: {' '.join(str(error).split())}") from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Have checkpoints written whole, with a manifest that knows the configuration."""
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # unless plugins say else
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        manifest = self.trainer_defaults["callbacks"]
        config = json.loads(self.parser.dump(self.config, skip_none=False, format="json"))
        manifest.config = config[self.subcommand]
        return trainer

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
        self._write_scores(self.config.fit.scores)

    def after_validate(self) -> None:
        """Write scores, if they are asked for."""
        self._write_scores(self.config.validate.scores)

    def after_test(self) -> None:
        """Write scores, if they are asked for."""
        self._write_scores(self.config.test.scores)

    def _write_scores(self, path: str | None) -> None:
        """Write Dice of every case as a CSV table."""
        if path is not None and self.trainer.is_global_zero:
            with atomic_write(Path(path)) as tmp:
                tmp.write_text(self.model.scores.csv(), encoding="utf-8")

    def before_fit(self) -> None:
        """Find the newest checkpoint that is whole, if asked for, and resume in its folder."""
        if self.config_init.fit.ckpt_path != "last":
            return
        path = self.config_init.fit.ckpt_path = find_last(self.trainer)
        for callback in self.trainer.checkpoint_callbacks:
            if path and isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(path.parent)


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

    def after_fit(self) -> None:
        """Score nothing: nothing was trained."""


class SurveyCLI(DryRunCLI):
    """The same, but ``fit`` only keeps how many folds there are."""

    folds: int

    def fit(self, **_: Any) -> None:
        """Count the folds."""
        self.folds = self.datamodule.count_folds()


def run_lightning(arguments: Sequence[str]) -> None:
    """Run one LightningCLI command, such as ``["fit", "--config", "tiny.yaml"]``.

    ``--dry-run`` anywhere behind ``fit`` says what the fit will need instead.
    """
    dry = arguments[0] == "fit" and DRY_RUN in arguments
    _run(DryRunCLI if dry else CLIPSeg3DCLI, arguments)


def count_folds(arguments: Sequence[str]) -> int:
    """Return how many folds the data of a fit have; nothing is trained.

    Args:
        arguments: of the fit, from ``fit`` on.

    Raises:
        ValueError: the fit cannot be set up.
    """
    found: SurveyCLI = _run(SurveyCLI, arguments)
    return found.folds


def _run(kind: type[CLIPSeg3DCLI], arguments: Sequence[str]) -> Any:
    """Build and run one command."""
    return kind(
        CLIPSeg3DModule,
        LightningDataModule,
        subclass_mode_data=True,
        seed_everything_default=0,
        trainer_defaults={"callbacks": RunManifest()},
        save_config_kwargs={"overwrite": True},  # a fit that goes on writes it again
        args=list(arguments),
        auto_configure_optimizers=False,
        parser_kwargs={"prog": "clipseg3d"},
    )
