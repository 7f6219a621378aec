"""Base classes that the Trainer of ``pytorch_lightning`` takes, and that of ``lightning`` too.

Either package is a copy of the other, and refuses the modules of the other.
"""

from typing import TYPE_CHECKING

import pytorch_lightning

if TYPE_CHECKING:
    from pytorch_lightning import LightningDataModule, LightningModule
else:
    try:
        import lightning.pytorch as lightning
    except ImportError:  # not installed, or broken
        LightningModule = pytorch_lightning.LightningModule
        LightningDataModule = pytorch_lightning.LightningDataModule
    else:

        class LightningModule(pytorch_lightning.LightningModule, lightning.LightningModule):
            """A module of both packages."""

            # Both ask whether a hook has other code than in their own class. The code of these
            # differs between the two; None counts as not overridden.
            configure_model = configure_sharded_model = None
            train_dataloader = val_dataloader = test_dataloader = predict_dataloader = None

        class LightningDataModule(
            pytorch_lightning.LightningDataModule, lightning.LightningDataModule
        ):
            """A data module of both packages."""


__all__ = ["LightningDataModule", "LightningModule"]
