"""Figures of validation cases, to watch how training goes."""

from pathlib import Path
from typing import Any

import matplotlib.image
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger

from clipseg3d.batch import Batch
from clipseg3d.reporting.figures import save_overlay


class Previews(Callback):
    """After every validation, save figures of prediction and expert mask side by side.

    Files are ``previews/{case}_{step}.png`` in the folder of the first logger, or in the trainer's
    if there is none. TensorBoard and W&B show them too, if they are among the loggers.

    Args:
        num_cases: how many validation cases to show; always the first ones.

    Raises:
        ValueError: ``num_cases`` is not positive.
        OSError: a figure cannot be written.
    """

    def __init__(self, num_cases: int = 2) -> None:
        if num_cases < 1:
            raise ValueError(f"num_cases={num_cases} shows nothing; give 1 or more")
        self.num_cases = num_cases
        self._folder = Path()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the folder; all ranks must ask, since the trainer broadcasts its name."""
        self._folder = Path(trainer.log_dir or trainer.default_root_dir) / "previews"

    def on_validation_batch_end(  # type: ignore[override]  # this library's batch and outputs
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: dict[str, Any],
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the case, if it is one of the first."""
        if not trainer.is_global_zero or trainer.sanity_checking or batch_idx >= self.num_cases:
            return
        step = trainer.global_step
        (case_id,) = batch["case_id"]
        path = self._folder / f"{case_id}_{step:06d}.png"
        save_overlay(
            path,
            batch["image"][0].float().cpu().numpy(),
            **_names(pl_module),
            prediction=outputs["prediction"][0].cpu().numpy(),
            reference=(batch["label"][0] > 0).cpu().numpy(),
            title=f"{case_id}, step {step}",
        )
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                picture = matplotlib.image.imread(path)
                logger.experiment.add_image(f"val/{case_id}", picture, step, dataformats="HWC")
            elif isinstance(logger, WandbLogger):
                logger.log_image(f"val/{case_id}", [str(path)])


def _names(module: LightningModule) -> dict[str, list[str]]:
    """Return the names of sequences and regions, where the module has a release."""
    release = getattr(module, "release", None)
    if release is None:
        return {}
    return {"sequences": list(release.sequences), "regions": list(release.regions)}
