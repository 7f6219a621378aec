"""LightningCLI with this library's module and data: fit, validate, test and predict."""

import json
import shlex
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from jsonargparse import Namespace
from jsonargparse.typing import register_type
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.core.datamodule import LightningDataModule
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch.nn.modules.loss import _Loss

from clipseg3d.atomic_write import atomic_write, naming_full_disk
from clipseg3d.cli.config_reader import named_configs
from clipseg3d.cli.config_writer import ConfigWriter
from clipseg3d.cli.fit_progress import FitProgress, dice_in_words
from clipseg3d.cli.lightning_options import HELP_ALL
from clipseg3d.cli.lightning_parser import MODEL, OneLineLightningParser
from clipseg3d.cli.preset_options import expand_presets
from clipseg3d.cli.quiet import quiet
from clipseg3d.cli.terminal import (
    INTERRUPTED,
    TERMINATED,
    UsageError,
    raised_in,
    require_output,
    say,
    unwrapped,
)
from clipseg3d.data import brats  # noqa: F401 - so that --data takes their names
from clipseg3d.data.releases import release_values
from clipseg3d.networks.config import NetworkConfig
from clipseg3d.networks.presets import network_config
from clipseg3d.phantom import datamodule  # noqa: F401
from clipseg3d.pretrained.checkpoint import read_checkpoint_file
from clipseg3d.ranges import require_count, require_not_negative
from clipseg3d.reporting.curves import save_curves
from clipseg3d.training.checkpoint_io import MANIFEST, AtomicCheckpointIO, find_last
from clipseg3d.training.dry_run import dry_run
from clipseg3d.training.fit_settings import fit_settings
from clipseg3d.training.last_checkpoints import LastCheckpoints
from clipseg3d.training.manifest import RunManifest
from clipseg3d.training.module import CLIPSeg3DModule
from clipseg3d.training.segmentation_writer import SegmentationWriter

DRY_RUN = "--dry-run"
LIGHTNING = ("pytorch_lightning", "lightning_fabric")
MAX_SEED = 2**32 - 1
PARTS = ("train", "val", "test")
PARTS_OF_FIT = ("loss", "optimizer", "lr_scheduler")
"""Options that replace a part of the training plan, or its loss."""


# The type of a key of a sample in MONAI's transforms, which would not be written into files.
register_type(Hashable, lambda key: key, lambda key: key, fail_already_registered=False)


def release_of(data: Any) -> str | dict[str, Any]:
    """Return the release that a data module reads: its name, or its values."""
    return release_values(data.release)


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
    elif isinstance(network, str) and network.lstrip().startswith("{"):
        network = yaml.safe_load(network)  # a mapping with faults, which the parser takes for text
    return network_config(network, ablation=ablation)


class CLIPSeg3DCLI(LightningCLI):
    """LightningCLI that links data to module, and keeps the best and the last checkpoints."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Offer what this library's module implements."""
        methods = LightningCLI.subcommands()
        return {**methods, "predict": methods["predict"] | {"return_predictions"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add loss, optimiser and schedule, callbacks for checkpoints, ``--scores``; link parts."""
        parser.set_defaults({"model": {"class_path": MODEL}})
        parser.add_argument(
            "--loss",
            type=_Loss | Callable | None,
            help="called as loss(logits, label) for each supervised level, instead of Dice + BCE",
        )
        parser.add_optimizer_args()
        parser.add_lr_scheduler_args()
        model, data = "model.init_args", "data.init_args"
        parser.link_arguments(
            "data", f"{model}.release", compute_fn=release_of, apply_on="instantiate"
        )
        parser.link_arguments("data.spacing_mm", f"{model}.spacing_mm", apply_on="instantiate")
        choice = (f"{model}.network", f"{model}.ablation")
        parser.link_arguments(choice, f"{data}.view_selection", compute_fn=view_selection)
        parser.link_arguments(choice, f"{data}.shuffle_reports", compute_fn=is_shuffled)
        parser.link_arguments(
            f"{model}.sequence_dropout", f"{data}.allow_missing_sequences", compute_fn=bool
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
            "--output", type=str | None, help="write the labels that predict gives to this folder"
        )
        parser.add_argument(
            "--prompts",
            type=list[str] | None,
            help="what predict also segments, one mask each: '[the enhancing rim, oedema]'",
        )
        parser.add_argument(
            "--scores",
            type=str | None,
            help="write the Dice of every case to this .csv file; after fit, those of the best "
            "checkpoint",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line; to validate and test, a checkpoint overrides its model.

        LightningCLI would also let a checkpoint override the model of a fit, and read files of
        older formats as they are. So the path is taken out here, and put back before the
        classes are built.

        Raises:
            ValueError: an option is unknown or has a wrong value; the checkpoint cannot be read.
        """
        self.config = parser.parse_args(expand_presets(args))
        command = self.config.subcommand
        _require_ranges(self.config[command])
        self._ckpt_path = self.config[command].pop("ckpt_path")
        if command != "fit" and self._ckpt_path and Path(self._ckpt_path).is_file():
            values = read_checkpoint_file(Path(self._ckpt_path))["hyper_parameters"]
            model = self.config[command].model.as_dict()
            # A file that may come from anybody must not name a class to be built.
            model["init_args"] |= {
                name: value
                for name, value in values.items()
                if name != "encoder" and not _names_class(value)
            }
            self.config = parser.parse_object({command: {"model": model}}, self.config)

    def before_instantiate_classes(self) -> None:
        """Put the path of the checkpoint back."""
        self.config[self.subcommand].ckpt_path = self._ckpt_path

    def instantiate_classes(self) -> None:
        """Build data, module and trainer.

        Raises:
            ValueError: there is no checkpoint to score or to segment with; Lightning refuses an
                argument, such as a device that is not there.
        """
        config = self.config[self.subcommand]
        if self.subcommand in ("validate", "test") and config.ckpt_path is None:
            raise ValueError(f"{self.subcommand} needs --ckpt_path; give the best.ckpt of a fit")
        if self.subcommand == "predict":
            if config.output is None or config.ckpt_path is None:
                raise ValueError("predict needs --ckpt_path and --output; give both")
            self._writer = SegmentationWriter(config.output, prompts=config.prompts or ())
            self.trainer_defaults["callbacks"].append(self._writer)
        with _refusals(Exception):
            super().instantiate_classes()

    def instantiate_trainer(self, **options: Any) -> Trainer:
        """Build the trainer: with a log in CSV unless another is given, and one line of progress.

        Lightning would take TensorBoard where it happens to be installed.
        """
        given = self.config_init[self.subcommand].trainer
        if given.logger is None or given.logger is True:
            options["logger"] = CSVLogger(given.default_root_dir or Path.cwd())
        callbacks = given.callbacks if isinstance(given.callbacks, list) else [given.callbacks]
        own_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
        if self.subcommand == "fit" and given.enable_progress_bar is not False and not own_bar:
            self.trainer_defaults["callbacks"].append(FitProgress())
        return super().instantiate_trainer(**options)

    def after_instantiate_classes(self) -> None:
        """Write checkpoints atomically, and put the configuration into their manifest."""
        strategy = self.trainer.strategy
        if type(strategy.checkpoint_io) is TorchCheckpointIO:  # no plugin was given
            strategy.checkpoint_io = AtomicCheckpointIO()
        dumped = self.parser.dump(self.config, skip_none=False, format="json")
        config = json.loads(dumped)[self.subcommand]
        self.trainer_defaults["callbacks"][0].config = config
        self._replace_parts(config)

    def _replace_parts(self, config: dict[str, Any]) -> None:
        """Give the module the loss, the optimiser and the schedule of the command line.

        Args:
            config: the configuration as plain values.
        """
        module: Any = self.model
        given = {name: config[name] for name in PARTS_OF_FIT if config[name] is not None}
        module.replace_parts(given, loss=self.config_init[self.subcommand].loss)
        if self.subcommand != "fit" or not self.trainer.is_global_zero:
            return
        plan = module.plan
        instead_of = {
            "loss": "DiceBCELoss",
            "optimizer": f"the plan's {plan.optimizer}, lr={plan.lr:g} and weight_decay="
            f"{plan.weight_decay:g}",
            "lr_scheduler": f"the plan's {plan.schedule}",
        }
        for name, value in given.items():
            note = f"--{name} {_in_words(value)}, not {instead_of[name]}"
            say(f"clipseg3d: note: {note}", stream=sys.stderr)

    def before_fit(self) -> None:
        """For ``--ckpt_path last``, find the newest intact checkpoint, and go on in its folder.

        Raises:
            OSError: a folder of results cannot be written.
        """
        self._require_outputs()
        if self.config_init.fit.ckpt_path != "last":
            return
        module: Any = self.model
        now = fit_settings(module, self.trainer, self.datamodule, content=False)
        path = self.config_init.fit.ckpt_path = find_last(self.trainer, now)
        for callback in self.trainer.checkpoint_callbacks:
            if path and isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(path.parent)

    def before_validate(self) -> None:
        """Find out whether scores can be written."""
        self._require_outputs()

    before_test = before_validate

    def before_predict(self) -> None:
        """Find out whether labels can be written."""
        if self.trainer.is_global_zero:
            require_output(Path(self.config.predict.output), folder=True)

    def fit(self, **arguments: Any) -> None:
        """Train, alone in the folder for checkpoints, and score the best one.

        Raises:
            ValueError: another fit writes to that folder.
            SystemExit: it was interrupted (code 130), or asked to end (143).
        """
        with self._lock(), naming_full_disk(self._folder()):
            try:
                with _refusals(MisconfigurationException, RuntimeError):
                    self.trainer.fit(**arguments)
            except SystemExit as stop:  # Lightning says nothing, and ends with 0 if asked to end
                if self.trainer.is_global_zero:
                    say(f"clipseg3d: {self._interrupted()}", stream=sys.stderr)
                raise SystemExit(
                    TERMINATED if isinstance(stop, SIGTERMException) else INTERRUPTED
                ) from None
            resumed = Path(arguments.get("ckpt_path") or "")
            step = read_checkpoint_file(resumed).get("global_step") if resumed.is_file() else None
            if step == self.trainer.global_step and self.trainer.is_global_zero:
                note = f"{_short(resumed)}: this fit was complete, so nothing was trained"
                say(f"clipseg3d: note: {note}; more epochs are another fit", stream=sys.stderr)
            self._score_best()
            self._say_results()

    def _interrupted(self) -> str:
        """Return how far an interrupted fit is, and how it goes on."""
        where = f"interrupted in epoch {self.trainer.current_epoch + 1}"
        newest = self.config_init.fit.last.newest_path
        if newest is None:
            return f"{where}, before its first checkpoint; run the same command again"
        return f"{where}; the same command with --ckpt_path last goes on from {_short(newest)}"

    def validate(self, **arguments: Any) -> None:
        """Score the cases for validation."""
        with naming_full_disk(self._folder()):
            self.trainer.validate(**arguments)

    def test(self, **arguments: Any) -> None:
        """Score the cases for the final test."""
        with naming_full_disk(self._folder()):
            self.trainer.test(**arguments)

    def predict(self, **arguments: Any) -> None:
        """Segment the cases of the data module; each process writes its own.

        Raises:
            ValueError: some cases of this process failed.
        """
        self.trainer.predict(**arguments, return_predictions=False)
        results = self._writer.results
        failed = [result.case.case_id for result in results if result.status == "failed"]
        if failed:
            raise ValueError(
                f"{len(failed)} of {len(results)} cases failed, for the reasons above: "
                f"{', '.join(failed)}"
            )

    def _folder(self) -> Path:
        """Return the folder that loggers write to, without a message of their own."""
        folders = (log.save_dir for log in self.trainer.loggers)
        return Path(next(filter(None, folders), self.trainer.default_root_dir))

    def _lock(self) -> AbstractContextManager[Any]:
        """Return a lock on the folder for checkpoints; on a new folder, none is needed.

        Raises:
            ValueError: another fit holds the lock.
        """
        trainer: Any = self.trainer
        if not trainer.is_global_zero or not trainer.checkpoint_callbacks:
            return nullcontext()
        folder = trainer.checkpoint_callbacks[0].dirpath
        if folder is None and trainer.loggers:
            folder = _take_version(trainer.loggers[0])
            if folder is None:
                return nullcontext()
        path = Path(folder or Path(trainer.default_root_dir, "checkpoints")).absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = fit_lock(path)
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise ValueError(
                f"{path}: another fit is writing its checkpoints there; wait for it, or give "
                "another --checkpoint.dirpath or --trainer.default_root_dir"
            ) from error
        return lock

    def _require_outputs(self) -> None:
        """Raise an OSError if results cannot be written, before anything is computed."""
        config: Any = self.config[self.subcommand]
        trainer: Any = self.trainer
        if not trainer.is_global_zero:
            return
        if self.subcommand == "fit" and not trainer.fast_dev_run:
            folders = [callback.dirpath for callback in trainer.checkpoint_callbacks]
            folders += [log.save_dir for log in trainer.loggers]
            for folder in dict.fromkeys(filter(None, [*folders, trainer.default_root_dir])):
                require_output(Path(folder), folder=True)
        if config.scores is not None:
            require_output(Path(config.scores))

    def _score_best(self) -> None:
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

    def _say_results(self) -> None:
        """Print the best epoch, its scores, where files are, and how to segment with the weights.

        The weights are those of the best epoch or, if none was validated, of the last.
        Curves are drawn from a log in CSV, if there is one.
        """
        trainer: Any = self.trainer
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        best = self.config_init.fit.checkpoint.best_model_path
        weights = best or self.config_init.fit.last.best_model_path
        lines = []
        if best:
            manifest = read_checkpoint_file(Path(best))[MANIFEST]
            dice = dice_in_words(manifest.get("scores", {}))
            lines.append(f"Best epoch  {manifest['epoch'] + 1} of {trainer.current_epoch}: {dice}")
        else:
            every = trainer.check_val_every_n_epoch
            lines.append(
                f"Best epoch  none was validated (trainer.check_val_every_n_epoch={every})"
            )
        if weights:
            lines.append(f"Weights     {_short(weights)}")
        for logger in trainer.loggers:
            log = Path(logger.log_dir or "", "metrics.csv")
            if isinstance(logger, CSVLogger) and log.is_file():
                save_curves(log.with_name("curves.png"), log)
                lines.append(f"Log         {_short(log)}")
                lines.append(f"Curves      {_short(log.with_name('curves.png'))}")
        if weights:
            command = ["clipseg3d", "segment", "CASE", "-o", "labels", "--weights", _short(weights)]
            lines.append(f"Segment     {shlex.join(map(str, command))}")
        say("\n".join(lines))

    def after_validate(self) -> None:
        """Write the Dice of every case as a CSV table, if scores are asked for."""
        path = self.config[self.subcommand].scores
        if path is not None and self.trainer.is_global_zero:
            with atomic_write(Path(path)) as tmp:
                tmp.write_text(self.model.scores.csv(), encoding="utf-8")

    after_test = after_validate


@contextmanager
def _refusals(*kinds: type[Exception]) -> Iterator[None]:
    """Turn errors that Lightning itself raises into one line."""
    try:
        yield
    except kinds as error:
        cause = unwrapped(error)
        if not raised_in(cause, LIGHTNING):
            raise
        reason = " ".join(str(cause).split()).rstrip(".!")
        raise ValueError(f"{reason}; change the options of --trainer") from error


def fit_lock(folder: Path) -> FileLock:
    """Return the lock that a fit holds while it writes checkpoints to a folder."""
    path = folder.absolute()
    return FileLock(path.with_name(f".{path.name}.lock"))


def _names_class(value: Any) -> bool:
    """Return whether a value of the configuration, or a part of it, names a class."""
    if isinstance(value, dict):
        return "class_path" in value or any(map(_names_class, value.values()))
    return isinstance(value, list | tuple) and any(map(_names_class, value))


def _in_words(part: dict[str, Any] | str) -> str:
    """Return a class path with its arguments in one line."""
    if isinstance(part, str):
        return part
    values = part.get("init_args", {}).items()
    return f"{part['class_path']}({', '.join(f'{name}={value}' for name, value in values)})"


def _take_version(logger: Any) -> Path | None:
    """Make the folder of a logger's next version, so that no fit that starts now takes it too.

    Returns:
        The folder, if it exists already; None if it is new, or the logger has none.
    """
    if logger.root_dir is None:
        return None
    root = Path(logger.root_dir)
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".version.lock"):  # Lightning draws the version when it is first read
        folder = Path(logger.log_dir)
        if folder.is_dir():
            return folder
        folder.mkdir(parents=True)
    return None


def _require_ranges(config: Namespace) -> None:
    """Raise a ValueError if Lightning would take a wrong value without a word, or die of it.

    Raises:
        UsageError: a value stands where options should.
        ValueError: a value is out of its range.
    """
    for part in ("trainer", "checkpoint", "last"):
        if not isinstance(config[part], Namespace):
            raise UsageError(f"--{part}: value {config[part]!r} cannot be used; give its options")
    seed = config.seed_everything
    if not isinstance(seed, bool) and seed is not None:
        require_count(seed_everything=seed, at_least=0, at_most=MAX_SEED)
    trainer = {name: value for name, value in config.trainer.items() if value is not None}
    for name in ("max_epochs", "max_steps"):
        if trainer.get(name, -1) != -1:  # -1 is no limit
            require_count(**{name: trainer[name]})
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        if name in trainer:
            require_count(**{name: trainer[name]})
    for name in ("gradient_clip_val", *(f"limit_{part}_batches" for part in PARTS)):
        if name in trainer:
            require_not_negative(**{name: trainer[name]})


class SetupCLI(CLIPSeg3DCLI):
    """The same, but ``fit`` only builds module, data and trainer."""

    def before_fit(self) -> None:
        """Write nothing."""

    def fit(self, **arguments: Any) -> None:
        """Train nothing."""


def run_lightning(arguments: Sequence[str]) -> None:
    """Run one LightningCLI command, such as ``["fit", "--config", "tiny.yaml"]``.

    With ``--dry-run`` anywhere after ``fit``, only print what the fit will need; with
    ``--help-all``, print all options.

    Raises:
        ValueError: the dry run has found faults.
    """
    arguments = ["--help" if argument == HELP_ALL else argument for argument in arguments]
    if arguments[0] != "fit" or DRY_RUN not in arguments:
        _run(CLIPSeg3DCLI, arguments)
        return
    cli = _run(SetupCLI, [argument for argument in arguments if argument != DRY_RUN])
    with quiet():
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
    with quiet():
        return _built(kind, arguments)


def _built(kind: type[CLIPSeg3DCLI], arguments: Sequence[str]) -> CLIPSeg3DCLI:
    """Build one command, which runs it."""
    return kind(
        CLIPSeg3DModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        trainer_defaults={
            "callbacks": [RunManifest()],
            "enable_model_summary": False,
            "log_every_n_steps": 1,
        },
        save_config_callback=ConfigWriter,
        args=named_configs(arguments),
        auto_configure_optimizers=False,
        parser_class=OneLineLightningParser,
        parser_kwargs={"prog": "clipseg3d"},
    )


def _short(path: str | Path) -> Path:
    """Return a path from here, if it lies in this folder."""
    here = Path.cwd()
    return Path(path).relative_to(here) if Path(path).is_relative_to(here) else Path(path)
