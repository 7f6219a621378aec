"""Files of cases that a trainer predicts: those of ``clipseg3d segment``, on many devices."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from clipseg3d.data.cases import Case
from clipseg3d.inference.batch_prediction import CaseResult, segment_cases
from clipseg3d.inference.predictor import Predictor
from clipseg3d.inference.prompting import check_prompts


class SegmentationWriter(Callback):
    """Write what ``trainer.predict`` segments, as :func:`clipseg3d.inference.segment_cases` does.

    Each rank writes its own cases. Finished cases are skipped, and a case that fails does not stop
    the others.

    Args:
        folder: to write to; made if missing.
        prompts: what else to segment in each case, a mask of its own for each.
        probabilities: whether to write the probability of each region.
        uncertainty: whether to write uncertainty maps.
        html: whether to write a page of each case.
        overwrite: whether to repeat finished cases, and to replace files that were made otherwise.

    Raises:
        ValueError: a prompt is empty or too long.

    Attributes:
        results: of this rank's cases.
    """

    def __init__(
        self,
        folder: str,
        *,
        prompts: Sequence[str] = (),
        probabilities: bool = False,
        uncertainty: bool = False,
        html: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.options: dict[str, Any] = {
            "prompts": check_prompts(prompts),
            "probabilities": probabilities,
            "uncertainty": uncertainty,
            "html": html,
            "overwrite": overwrite,
        }
        self.results: list[CaseResult] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the module segment cases into the folder."""
        module: Any = pl_module
        self.results = []
        module.segment_case = self._segment

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the module return segmentations again."""
        module: Any = pl_module
        module.segment_case = Predictor.__call__

    def _segment(self, predictor: Predictor, case: Case) -> CaseResult:
        """Segment one case into the folder."""
        (result,) = segment_cases(predictor, [case], self.folder, **self.options)
        for message in (*result.notes, *([str(result.error)] if result.error else [])):
            warnings.warn(message, stacklevel=2)
        self.results.append(result)
        return result
