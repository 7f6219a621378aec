"""An average of the weights instead of the newest weights."""

from functools import partial

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class AveragedWeights(WeightAveraging):
    """Validate, and keep in checkpoints, an exponential moving average of the weights.

    Early in a fit, the average forgets faster: after n steps it keeps ``min(decay, n / (9 + n))``
    at every step. With a constant decay of 0.998, a fit of 400 steps would end with 45 % of the
    weights of its first step, and what starts at zero would stay half of what it is. After 400
    steps as here, nothing of them is left (1e-18).

    This is Lightning's callback otherwise, except that buffers are copied: counts and the strength
    of semantics must not be averaged. A resumed fit has both sets of weights.

    Args:
        decay: share of the average that is kept at every step, in [0, 1).

    Raises:
        ValueError: ``decay`` is outside [0, 1).
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} is not in [0, 1); 0.999 is usual")
        super().__init__(use_buffers=False, multi_avg_fn=partial(_average, decay))
        self.decay = decay

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the module, even if a resumed fit was finished and ran no step."""
        self.on_train_end(trainer, pl_module)


def _average(decay: float, averages: list[Tensor], weights: list[Tensor], steps: Tensor) -> None:
    """Move averages towards the weights, after so many steps."""
    count = int(steps)
    update = get_ema_multi_avg_fn(min(decay, count / (9 + count)))  # type: ignore[no-untyped-call]
    update(averages, weights, steps)
