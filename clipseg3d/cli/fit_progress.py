"""How far a fit is, in one line."""

import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from math import inf
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar
from tqdm import tqdm

from clipseg3d.cli.terminal import say
from clipseg3d.data.brats import BraTSDataModule

_DICE = "val/dice_"


def dice_in_words(scores: Mapping[str, Any]) -> str:
    """Return the Dice among some metrics as ``Dice 0.71 (WT 0.84, TC 0.70, ET 0.59)``."""
    dice = {
        name.removeprefix(_DICE): float(score)
        for name, score in scores.items()
        if name.startswith(_DICE)
    }
    if "mean" not in dice:
        return ""
    mean = dice.pop("mean")
    regions = ", ".join(f"{name.upper()} {score:.3f}" for name, score in dice.items())
    return f"Dice {mean:.3f} ({regions})"


class FitProgress(ProgressBar):
    """Show epoch, loss, Dice and the time left: as a bar in a terminal, else a line per epoch."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: Any = None
        self._losses: list[float] = []
        self._dice = ""
        self._started = (0.0, 0)

    def disable(self) -> None:
        """Show nothing, as on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show it again."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is trained on, and begin the bar, at the step a resumed fit goes on from."""
        if self._enabled:
            self._say(_plan(trainer))
        self._started = time.monotonic(), trainer.global_step
        self._bar = tqdm(
            total=_steps(trainer),
            initial=trainer.global_step,
            unit="step",
            dynamic_ncols=True,
            disable=None if self._enabled else True,  # None: where the output is no terminal
        )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the number of the epoch."""
        self._losses = []
        self._bar.set_description(f"Epoch {_epoch(trainer)}", refresh=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the mean loss of the epoch so far."""
        if "train/loss" in trainer.callback_metrics:
            self._losses.append(float(trainer.callback_metrics["train/loss"]))
        self._show()
        self._bar.update(trainer.global_step - self._bar.n)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the Dice."""
        if self._bar is not None and not trainer.sanity_checking:
            self._dice = dice_in_words(trainer.callback_metrics)
            self._show()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Where there is no terminal, print the epoch; its Dice too, if it was validated."""
        if self._enabled and self._bar.disable:
            self._say(f"Epoch {_epoch(trainer)}: {self._state()}{self._left(trainer)}")
            self._dice = ""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the bar."""
        self._bar.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """End the bar, so that what is wrong stands on a line of its own."""
        if self._bar is not None:
            self._bar.close()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print what a module says, above the bar."""
        if self._enabled:
            self._say(" ".join(map(str, args)))

    def _say(self, line: str) -> None:
        """Print a line at once, so that a log can be followed."""
        with tqdm.external_write_mode(file=sys.stderr):
            say(line, stream=sys.stderr)
        sys.stderr.flush()

    def _show(self) -> None:
        """Put loss and Dice behind the bar."""
        self._bar.set_postfix_str(self._state().partition(" (")[0], refresh=False)

    def _state(self) -> str:
        """Return the mean loss of the epoch, and the Dice of the last validation."""
        loss = f"loss {sum(self._losses) / len(self._losses):.3f}" if self._losses else ""
        return ", ".join(filter(None, [loss, self._dice]))

    def _left(self, trainer: Trainer) -> str:
        """Return how long the rest of the fit will take, if it goes on as so far."""
        (started, first), total = self._started, _steps(trainer)
        done = trainer.global_step - first
        if total is None or done < 1:
            return ""
        seconds = (time.monotonic() - started) / done * (total - trainer.global_step)
        return f", {timedelta(seconds=round(seconds))} left" if seconds >= 1 else ""


def _plan(trainer: Trainer) -> str:
    """Return cases, epochs, steps and device of a fit, as ``12 cases to train on, ...``."""
    parts = []
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, BraTSDataModule):
        used, left = ({case.case_id for case in s.cases} for s in (data.train_set, data.val_set))
        parts.append(f"{len(used)} cases to train on, {len(left)} to validate on")
    epochs, steps = trainer.max_epochs, _steps(trainer)
    if epochs is not None and epochs > 0:
        parts.append(f"{epochs} epochs")
    if steps is not None:
        parts.append(f"{steps} steps")
    if trainer.global_step:
        parts.append(f"from step {trainer.global_step} on")
    device = trainer.strategy.root_device.type
    count = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
    parts.append(f"on {count}{device}")
    return ", ".join(parts)


def _steps(trainer: Trainer) -> int | None:
    """Return the steps of a fit; None without end."""
    steps = trainer.estimated_stepping_batches
    return None if steps == inf else int(steps)


def _epoch(trainer: Trainer) -> str:
    """Return the epoch, counted from 1, and how many there will be."""
    last = trainer.max_epochs
    return f"{trainer.current_epoch + 1}" + (f"/{last}" if last and last > 0 else "")
