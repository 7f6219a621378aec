"""Statistics that compare several predictions of the same cases: tests and ranks."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from clipseg3d.formatting import align_columns
from clipseg3d.metrics.score_table import ScoreTable

Floats = npt.NDArray[np.float64]
RESAMPLES = 10_000
"""Number of bootstrap samples."""


@dataclass(frozen=True)
class PairedDifference:
    """Difference of one score between two predictions of the same cases.

    Attributes:
        mean: mean of first - second, over cases that have a score in both; NaN without such cases.
        low: lower end of the 95 % bootstrap interval of the mean.
        high: upper end of it.
        p_value: p value of Wilcoxon's signed-rank test, two-sided; 1 if no case differs.
        num_cases: number of cases that have a score in both.
    """

    mean: float
    low: float
    high: float
    p_value: float
    num_cases: int


def paired_difference(first: Floats, second: Floats, *, seed: int = 0) -> PairedDifference:
    """Compare two predictions, case by case.

    Args:
        first: (case,) scores; NaN where there is no score.
        second: (case,) scores of the same cases in the same order.
        seed: seed of the bootstrap, which draws cases with replacement, ``RESAMPLES`` times.

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
    if len(change) > 1:  # SciPy needs two values or more
        low, high = stats.bootstrap(
            (change,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=seed
        ).confidence_interval
    p_value = stats.wilcoxon(change).pvalue if change.any() else 1.0
    return PairedDifference(
        float(change.mean()), float(low), float(high), float(p_value), len(change)
    )


def difference_table(first: ScoreTable, second: ScoreTable) -> str:
    """Return the differences of two predictions as text, one line per region and score.

    Raises:
        ValueError: the tables do not hold the same cases.
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
    """Rank predictions as BraTS does: separately by case, region and score; then take the mean.

    Args:
        values: (prediction, case, region, score). If one prediction has no value (NaN) for a case,
            region and score, these are left out for all predictions.
        higher_is_better: (score,) bool.

    Returns:
        (prediction,): mean rank, 1 is best; equal values share the mean of their ranks. NaN if
        nothing can be ranked.
    """
    ranks = stats.rankdata(np.where(higher_is_better, -values, values), axis=0)
    is_complete = ~np.isnan(values).any(axis=0)
    if not is_complete.any():
        return np.full(len(values), np.nan)
    mean: Floats = ranks[:, is_complete].mean(axis=1)
    return mean
