"""Statistics of several predictions of the same cases: what is chance, and who comes first."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from clipseg3d.formatting import align_columns
from clipseg3d.metrics.score_table import ScoreTable

Floats = npt.NDArray[np.float64]
RESAMPLES = 10_000


@dataclass(frozen=True)
class PairedDifference:
    """How one score differs between two predictions of the same cases.

    Attributes:
        mean: of first - second, over cases that both have a score of; NaN without such cases.
        low: lower end of the 95 % bootstrap interval of the mean.
        high: upper end.
        p_value: of Wilcoxon's signed-rank test, two-sided; 1 where no case differs.
        num_cases: that both have a score of.
    """

    mean: float
    low: float
    high: float
    p_value: float
    num_cases: int


def paired_difference(first: Floats, second: Floats, *, seed: int = 0) -> PairedDifference:
    """Compare two predictions, case by case.

    Args:
        first: (case,); NaN where there is no score.
        second: (case,), of the same cases in the same order.
        seed: of the bootstrap: cases are drawn with replacement, ``RESAMPLES`` times.

    Raises:
        ValueError: the numbers of cases differ.
    """
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"first {first.shape} and second {second.shape} are not the same cases")
    change = first - second
    change = change[~np.isnan(change)]
    if not len(change):
        return PairedDifference(np.nan, np.nan, np.nan, np.nan, 0)
    low = high = float(change.mean())
    if len(change) > 1:  # SciPy resamples two values or more
        low, high = stats.bootstrap(
            (change,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=seed
        ).confidence_interval
    p_value = stats.wilcoxon(change).pvalue if change.any() else 1.0
    return PairedDifference(
        float(change.mean()), float(low), float(high), float(p_value), len(change)
    )


def difference_table(first: ScoreTable, second: ScoreTable) -> str:
    """Return how two predictions differ, one line per region and score.

    Raises:
        ValueError: they are not of the same cases.
    """
    if first.case_ids != second.case_ids:
        other = set(first.case_ids) ^ set(second.case_ids)
        raise ValueError(
            f"the tables are not of the same cases: {min(other, default='the order')} differs; "
            "compare scores of the same cases"
        )
    rows = [["", "", "mean", "low", "high", "p", "cases"]]
    for r, region in enumerate(first.regions):
        for s, score in enumerate(first.scores):
            test = paired_difference(first.values[:, r, s], second.values[:, r, s])
            numbers = [f"{value:+.4f}" for value in (test.mean, test.low, test.high)]
            rows.append([region, score, *numbers, f"{test.p_value:.3g}", str(test.num_cases)])
    return align_columns(rows)


def mean_ranks(values: Floats, higher_is_better: npt.NDArray[np.bool_]) -> Floats:
    """Rank predictions as BraTS does: in every case, region and score apart, then on average.

    Args:
        values: (prediction, case, region, score). What one of the predictions has no value of
            (NaN) ranks none of them.
        higher_is_better: (score,).

    Returns:
        (prediction,): mean rank, 1 being best; equals share the mean of their ranks. NaN where
        nothing can be ranked.
    """
    ranks = stats.rankdata(np.where(higher_is_better, -values, values), axis=0)
    known = ~np.isnan(values).any(axis=0)
    if not known.any():
        return np.full(len(values), np.nan)
    mean: Floats = ranks[:, known].mean(axis=1)
    return mean
