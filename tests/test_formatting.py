"""Mirrors clipseg3d/formatting.py."""

import pytest

from clipseg3d.formatting import align_columns, join_numbers


def test_numbers_are_joined_in_their_shortest_form():
    assert join_numbers([0, 1, 2.0, 0.5, 1e-7, 123456789]) == "0, 1, 2, 0.5, 1e-07, 1.23457e+08"
    assert join_numbers([]) == ""


def test_at_most_so_many_numbers_are_read():
    numbers = iter(range(5))
    assert join_numbers(numbers, at_most=3) == "0, 1, 2"
    assert list(numbers) == [3, 4]
    assert join_numbers([4, 5], at_most=3) == "4, 5"
    assert join_numbers([4, 5], at_most=0) == ""


ROWS = [("case", "WT", "note"), ("a", "0.5", ""), ("patient 12", "10.25", "empty")]


@pytest.mark.parametrize(
    ("left", "lines"),
    [
        (
            0,
            [
                "      case     WT   note",
                "         a    0.5       ",
                "patient 12  10.25  empty",
            ],
        ),
        (
            1,
            [
                "case           WT   note",
                "a             0.5       ",
                "patient 12  10.25  empty",
            ],
        ),
        (
            3,
            [
                "case        WT     note ",
                "a           0.5         ",
                "patient 12  10.25  empty",
            ],
        ),
    ],
)
def test_columns_are_aligned_left_or_right(left, lines):
    assert align_columns(ROWS, left=left).split("\n") == lines


def test_right_is_the_default():
    assert align_columns(ROWS) == align_columns(ROWS, left=0)


def test_no_rows_are_no_text():
    assert align_columns([]) == ""


def test_rows_must_have_the_same_number_of_cells():
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        align_columns([("a", "b"), ("c",)])
