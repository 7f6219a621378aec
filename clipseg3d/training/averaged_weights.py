"""An average of the weights instead of the newest weights."""

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging


class AveragedWeights(EMAWeightAveraging):
    """Validate, and keep in checkpoints, an exponential moving average of the weights.

    This is Lightning's callback, except that buffers are copied: counts and the strength of
    semantics must not be averaged. A resumed fit has both sets of weights.

    Args:
        decay: share of the average that is kept at every step, in [0, 1).

    Raises:
        ValueError: ``decay`` is outside [0, 1).
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} is not in [0, 1); 0.999 is usual")
        super().__init__(use_buffers=False, decay=decay)
        self.decay = decay

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the module, even if a resumed fit was finished and ran no step."""
        self.on_train_end(trainer, pl_module)
