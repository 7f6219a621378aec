"""The newest states of a fit, to go on from."""

from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint


class LastCheckpoints(ModelCheckpoint):
    """Keep the two newest states of a fit as ``last-STEP.ckpt``: one may be damaged.

    A state is saved at the end of every epoch, after every validation within one, and every so many
    steps. None is saved between a batch and the validation or the end of the epoch that follow it:
    a fit that went on from there would leave them out, as of Lightning 2.6. Nor is one while
    gradients are accumulated, which no checkpoint holds.

    Args:
        every_n_train_steps: steps that a kill costs at most, and a validation.
        dirpath: folder; None takes the logger's.
    """

    def __init__(self, every_n_train_steps: int = 100, *, dirpath: str | None = None) -> None:
        super().__init__(
            dirpath,
            filename="last-{step:07d}",
            monitor="step",
            mode="max",
            save_top_k=2,
            every_n_train_steps=every_n_train_steps,
            save_on_train_epoch_end=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save the state every so many steps, unless more belongs to this one."""
        if not self._ends_epoch(trainer) and not _validates(trainer, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the state after a validation within an epoch."""
        if not self._ends_epoch(trainer) and not trainer.fit_loop._should_accumulate():
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the state."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        """Save the state unless that of this step is."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    @staticmethod
    def _ends_epoch(trainer: Trainer) -> bool:
        """Say whether the last batch of the epoch is done."""
        return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def _validates(trainer: Trainer, batch_idx: int) -> bool:
    """Say whether a validation within the epoch follows a batch."""
    every = trainer.val_check_batch
    if trainer.check_val_every_n_epoch is None:
        batch_idx = trainer.fit_loop.total_batch_idx
    return trainer.enable_validation and every is not None and (batch_idx + 1) % every == 0
