"""The newest states of a fit, to resume it from."""

from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from clipseg3d.ranges import require_count


class LastCheckpoints(ModelCheckpoint):
    """Keep the two newest states of a fit as ``last-STEP.ckpt``: one may be damaged.

    A state is saved at the end of every epoch, after every validation within one, and every so many
    steps. None is saved between a batch and the validation or the end of the epoch that follows it:
    a fit resumed from it would leave those out, as of Lightning 2.6. Nor is one saved while
    gradients are accumulated, because no checkpoint holds them. A resumed fit also removes older
    states of the fit that it goes on with, which Lightning or a kill has left.

    Args:
        every_n_train_steps: interval, which is also what a kill costs at most, apart from a
            validation; 0 for no state within an epoch but those after a validation.
        dirpath: folder; None takes the logger's.

    Raises:
        ValueError: ``every_n_train_steps`` is negative.
    """

    def __init__(self, every_n_train_steps: int = 100, *, dirpath: str | None = None) -> None:
        require_count(every_n_train_steps=every_n_train_steps, at_least=0)
        super().__init__(
            dirpath,
            filename="last-{step:07d}",
            monitor="step",
            mode="max",
            save_top_k=2,
            every_n_epochs=1,
            save_on_train_epoch_end=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        self.every_n_train_steps = every_n_train_steps

    @property
    def newest_path(self) -> Path | None:
        """Newest state on the disk, without one whose writing was interrupted; None if none is."""
        return max(filter(Path.is_file, map(Path, self.best_k_models)), default=None)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save the state every so many steps, unless a validation follows."""
        every = self.every_n_train_steps
        if every and trainer.global_step % every == 0 and not _validates(trainer, batch_idx):
            self._save_within_epoch(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the state; of a resumed fit, remove the older ones that are left."""
        super().on_train_epoch_end(trainer, pl_module)
        if self.dirpath is None or trainer.ckpt_path is None or not trainer.is_global_zero:
            return
        folder, resumed = Path(self.dirpath).absolute(), Path(trainer.ckpt_path).absolute()
        if resumed.parent != folder:
            return
        kept = {Path(path).name for path in self.best_k_models}
        for path in folder.glob("last-*.ckpt"):
            # Later ones than the resumed one are of another fit, or damaged.
            if path.name <= resumed.name and path.name not in kept:
                trainer.strategy.remove_checkpoint(path)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the state after a validation within an epoch."""
        self._save_within_epoch(trainer, pl_module)

    def _save_within_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the state, unless the epoch is about to end or gradients are accumulated."""
        loop = trainer.fit_loop
        ends = loop.epoch_loop.batch_progress.is_last_batch
        accumulates = (loop.batch_idx + 1) % trainer.accumulate_grad_batches != 0
        if not ends and not accumulates:
            # The only public method that saves at any step; each step is saved once.
            self.on_train_epoch_end(trainer, pl_module)


def _validates(trainer: Trainer, batch_idx: int) -> bool:
    """Return whether a validation within the epoch follows a batch."""
    every = trainer.val_check_batch
    if trainer.check_val_every_n_epoch is None:
        batch_idx = trainer.fit_loop.total_batch_idx
    return trainer.enable_validation and every is not None and (batch_idx + 1) % every == 0
