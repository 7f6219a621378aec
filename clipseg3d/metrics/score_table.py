"""A table of scores case by case, with means and standard deviations."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from clipseg3d.formatting import align_columns

Floats = npt.NDArray[np.float64]


class ScoreTable(NamedTuple):
    """Scores of cases, each case once.

    It is a tuple because torchmetrics copies the results of metrics item by item.

    Attributes:
        case_ids: names of the cases.
        regions: names of the regions.
        scores: names of the scores.
        values: (case, region, score); NaN where a case has no score.
    """

    case_ids: tuple[str, ...]
    regions: tuple[str, ...]
    scores: tuple[str, ...]
    values: Floats

    @classmethod
    def read(cls, path: Path) -> "ScoreTable":
        """Read a file with the text of :meth:`csv`.

        Raises:
            ValueError: the file does not hold such a table.
        """
        try:
            with path.open(encoding="utf-8", newline="") as file:
                (_, _, *scores), *rows = csv.reader(file)
            cases, regions = (tuple(dict.fromkeys(row[k] for row in rows)) for k in (0, 1))
            values = np.array([[float(x or "nan") for x in row[2:]] for row in rows])
            shaped = values.reshape(len(cases), len(regions), len(scores))
        except (IndexError, ValueError, csv.Error) as error:
            raise ValueError(
                f"{path}: not a table of scores ({error}); remove it, and score again"
            ) from error
        return cls(cases, regions, tuple(scores), shaped)

    def numbers(self) -> npt.NDArray[np.intp]:
        """Return how many cases have each score, (region, score)."""
        counts: npt.NDArray[np.intp] = (~np.isnan(self.values)).sum(axis=0)
        return counts

    def means(self) -> Floats:
        """Return the mean of each score over the cases that have it, (region, score)."""
        with np.errstate(invalid="ignore"):
            mean: Floats = np.nansum(self.values, axis=0) / self.numbers()
        return mean

    def sds(self) -> Floats:
        """Return the standard deviation of each score, (region, score); NaN below two cases."""
        squares = np.nansum((self.values - self.means()) ** 2, axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = squares / (self.numbers() - 1)
        return np.sqrt(np.where(self.numbers() > 1, variance, np.nan))

    def summary(self) -> str:
        """Return mean ± SD over cases, one line per region."""
        rows = [["", *self.scores]]
        for region, *columns in zip(self.regions, self.means(), self.sds(), strict=True):
            rows.append([region, *(_mean_sd(*pair) for pair in zip(*columns, strict=True))])
        return align_columns(rows)

    def csv(self) -> str:
        """Return the table as CSV, one row per case and region; NaN is an empty cell."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["case", "region", *self.scores])
        for case_id, regions in zip(self.case_ids, self.values.tolist(), strict=True):
            for region, row in zip(self.regions, regions, strict=True):
                writer.writerow([case_id, region, *("" if math.isnan(x) else x for x in row)])
        return text.getvalue()


def join_tables(tables: Sequence[ScoreTable]) -> ScoreTable:
    """Return one table with the cases of all tables, sorted by name.

    Raises:
        ValueError: a case is in two tables, or regions or scores differ.
    """
    first = tables[0]
    names = [name for table in tables for name in table.case_ids]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"scores of {min(twice)} are in two tables; give every case once")
    if any((table.regions, table.scores) != (first.regions, first.scores) for table in tables):
        raise ValueError("tables differ in regions or scores; join tables with the same ones")
    order = np.argsort(names)
    values = np.concatenate([table.values for table in tables])[order]
    return ScoreTable(tuple(sorted(names)), first.regions, first.scores, values)


def _mean_sd(mean: float, sd: float) -> str:
    """Format a mean and a standard deviation: 3 decimals below 10, else 2."""
    if math.isnan(mean):
        return "-"
    digits = 3 if mean < 10 else 2
    return f"{mean:.{digits}f}" + ("" if math.isnan(sd) else f" ± {sd:.{digits}f}")
