"""Numbers and tables as text."""

from collections.abc import Iterable, Sequence
from itertools import islice


def join_numbers(values: Iterable[float], *, at_most: int | None = None) -> str:
    """Return numbers as ``0, 1, 2``; with ``at_most``, only the first ones."""
    return ", ".join(f"{value:g}" for value in islice(values, at_most))


def join_sizes(sizes: Iterable[float]) -> str:
    """Return sizes as ``240x240x155``, to three decimals."""
    return "x".join(f"{round(float(size), 3):g}" for size in sizes)


def align_columns(rows: Sequence[Sequence[str]], *, left: int = 0) -> str:
    """Return a table as text, one line per row.

    Args:
        rows: cells of each row; all rows have the same number.
        left: number of columns at the left that are left-aligned; all others are right-aligned.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
