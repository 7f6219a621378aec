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
        low: lower end of the 95 % interval of the mean.
        high: upper end of it.
        p_value: p value, two-sided; 1 if no case differs.
        num_cases: number of cases that have a score in both.
    """

    mean: float
    low: float
    high: float
    p_value: float
    num_cases: int


def paired_difference(first: Floats, second: Floats, *, seed: int = 0) -> PairedDifference:
    """Compare two predictions, case by case: bootstrap interval and Wilcoxon's signed-rank test.

    This says how two networks differ. Another seed might give other networks, and another
    difference: to compare two methods, see :func:`difference_over_seeds`.

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


def difference_over_seeds(first: Floats, second: Floats) -> PairedDifference:
    """Compare two methods that were trained with several seeds and scored on the same cases.

    Seeds and cases are both samples. A mixed model with crossed random effects of seed and case
    gives interval and t test. Its standard error grows with the spread of differences between seeds
    as well as with that between cases. With few seeds its degrees of freedom are few. Bootstrap
    samples of three seeds and Wilcoxon's test of means over seeds find differences too often where
    seeds matter.

    Args:
        first: (seed, case) scores; a case without a score (NaN) with some seed is left out.
        second: (seed, case) scores of the same seeds and cases in the same order.

    Returns:
        The difference; interval and p value are NaN with fewer than two seeds or two cases.

    Raises:
        ValueError: the numbers of seeds or cases differ.

    Source: Hillis, Statistics in Medicine 2007, DOI 10.1002/sim.2532, with seeds for readers.
    Differs: degrees of freedom are no more than those of a t test over cases.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(
            f"first {first.shape} and second {second.shape} are not the same seeds and cases"
        )
    change = first - second
    change = change[:, ~np.isnan(change).any(axis=0)]
    num_seeds, num_cases = change.shape
    if not change.size:
        return PairedDifference(np.nan, np.nan, np.nan, np.nan, 0)
    mean = float(change.mean())
    if num_seeds < 2 or num_cases < 2:
        return PairedDifference(mean, np.nan, np.nan, np.nan, num_cases)
    of_seeds, of_cases = change.mean(axis=1), change.mean(axis=0)
    rest = change - of_seeds[:, None] - of_cases + mean
    ms_seed = num_cases * of_seeds.var(ddof=1)
    ms_case = num_seeds * of_cases.var(ddof=1)
    ms_rest = (rest**2).sum() / ((num_seeds - 1) * (num_cases - 1))
    spread = ms_seed + max(ms_case - ms_rest, 0.0)
    if spread == 0:  # every seed and case differs by the same
        return PairedDifference(mean, mean, mean, 0.0 if mean else 1.0, num_cases)
    freedom = num_cases - 1.0  # where seeds agree, this is a t test over cases
    if ms_seed:
        freedom = min(freedom, (num_seeds - 1) * (spread / ms_seed) ** 2)
    error = np.sqrt(spread / (num_seeds * num_cases))
    half = float(stats.t.ppf(0.975, freedom) * error)
    p_value = float(2 * stats.t.sf(abs(mean) / error, freedom))
    return PairedDifference(mean, mean - half, mean + half, p_value, num_cases)


def holm(p_values: Floats) -> Floats:
    """Return p values corrected for their number by Holm's method; NaN stays, and is no test.

    Example:
        >>> holm(np.array([0.01, 0.04, np.nan, 0.03])).tolist()
        [0.03, 0.06, nan, 0.06]
    """
    corrected = np.full(len(p_values), np.nan)
    order = np.argsort(p_values)[: np.count_nonzero(~np.isnan(p_values))]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1)
    return corrected


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
