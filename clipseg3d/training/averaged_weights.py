"""An average of the weights, instead of the last ones."""

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging


class AveragedWeights(EMAWeightAveraging):
    """Validate, and keep in checkpoints, an exponential moving average of the weights.

    Lightning's own, but buffers are copied: an average of counts and of the strength of semantics
    would be none that a fit ever had. A fit that goes on has both sets of weights.

    Args:
        decay: share of the average that stays at every step, in [0, 1).

    Raises:
        ValueError: ``decay`` is outside [0, 1).
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} is not in [0, 1); 0.999 is usual")
        super().__init__(use_buffers=False, decay=decay)
        self.decay = decay

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the module, also where a finished fit had no step to go on with."""
        self.on_train_end(trainer, pl_module)
