"""Two swaps that show whether text is obeyed: of the text under one image, of the image under one.

Dice of cases with their own report shows neither. With t1ce withheld, only the report can tell
whether a tumour enhances, so the contradicting report should change the segmentation; with all
sequences, it should not.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from clipseg3d.batch import Batch
from clipseg3d.metrics.dice import dice_empty_is_one
from clipseg3d.texts.facts import measure_regions
from clipseg3d.texts.wording import statement_of, write_text
from clipseg3d.training.sequence_dropout import withhold_sequences


def swap_reports(
    batch: Batch,
    segment: Callable[[Batch], Tensor],
    *,
    sequences: Sequence[str],
    regions: Sequence[str],
    spacing_mm: float,
    seed: int,
) -> tuple[float, float] | None:
    """Return how far text is obeyed, and how far the image is; None for a case without core.

    Reports are written from the expert mask; the contradicting one says the opposite of enhancement
    and is otherwise equal.

    Args:
        batch: one whole case.
        segment: returns the regions (1, r, x, y, z) bool that the network finds.
        sequences: names of the sequences; with t1ce.
        regions: names of the regions; with WT, TC and ET.
        spacing_mm: voxel size.
        seed: of the wording.

    Returns:
        ET Dice with the true report minus that with the contradicting one, without t1ce: 1 is
        perfect, 0 is deaf. And mean Dice with the contradicting report minus that with the true
        one, with all sequences: 0 is perfect, -1 is blind.
    """
    label = batch["label"] > 0
    masks = dict(zip(regions, label[0].cpu().numpy(), strict=True))
    brain = (batch["image"][0] != 0).any(dim=0).cpu().numpy()
    facts = measure_regions(masks, brain, spacing_mm=spacing_mm)
    if facts is None:
        return None
    true = statement_of(facts)
    if facts.enhancing:
        false = replace(true, enhancement="none", necrosis=None)
    else:
        false = replace(true, enhancement="rim", necrosis=None)
    reports = [write_text(said, np.random.default_rng(seed)) for said in (true, false)]
    kept = torch.tensor([[name != "t1ce" for name in sequences]], device=label.device)
    image, statistics, views = withhold_sequences(
        batch["image"],
        batch["statistics"],
        batch["views"],
        kept,
        reduced_views=batch["reduced_views"],
        sequences=sequences,
    )
    blind: Batch = {**batch, "image": image, "statistics": statistics, "views": views}
    without = [_dice(segment({**blind, "report": [report]}), label) for report in reports]
    whole = [_dice(segment({**batch, "report": [report]}), label) for report in reports]
    et = list(regions).index("ET")
    return float(without[0][et] - without[1][et]), float((whole[1] - whole[0]).mean())


def _dice(prediction: Tensor, label: Tensor) -> Tensor:
    """Return the Dice of each region, (r,)."""
    return dice_empty_is_one(prediction, label)[0]
