"""The configuration of a fit, written beside its results."""

from pathlib import Path

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import SaveConfigCallback

from clipseg3d.atomic_write import atomic_write


class ConfigWriter(SaveConfigCallback):
    """Write config.yaml as Lightning does, but completely or not at all."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it; the one of an interrupted fit is replaced by that of the resumed one."""
        folder = trainer.log_dir  # processes agree on it
        if trainer.is_global_zero and folder is not None and not self.already_saved:
            text = self.parser.dump(self.config, skip_none=False)
            with atomic_write(Path(folder, self.config_filename)) as tmp:
                tmp.write_text(text, encoding="utf-8")
        self.already_saved = True
