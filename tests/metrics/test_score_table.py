"""Mirrors clipseg3d/metrics/score_table.py."""

import math

import numpy as np
import pytest

from clipseg3d.metrics.score_table import ScoreTable, join_tables

NAN = math.nan
VALUES = np.array([[[0.5, 4.0], [NAN, 30.0]], [[0.7, 8.0], [0.25, NAN]], [[0.6, NAN], [NAN, NAN]]])
TABLE = ScoreTable(("a", "b,c", "d"), ("WT", "ET"), ("dice", "hd95_mm"), VALUES)


def test_means_and_sds_leave_out_missing_scores():
    np.testing.assert_allclose(TABLE.means(), [[0.6, 6.0], [0.25, 30.0]])
    np.testing.assert_allclose(TABLE.sds(), [[0.1, math.sqrt(8)], [NAN, NAN]])
    assert TABLE.numbers().tolist() == [[3, 2], [1, 1]]


def test_no_case_at_all():
    table = TABLE._replace(case_ids=(), values=VALUES[:0])
    assert np.isnan(table.means()).all()
    assert np.isnan(table.sds()).all()
    assert table.summary().split() == ["dice", "hd95_mm", "WT", "-", "-", "ET", "-", "-"]


def test_summary():
    rows = [line.split() for line in TABLE.summary().splitlines()]
    assert rows == [
        ["dice", "hd95_mm"],
        ["WT", "0.600", "±", "0.100", "6.000", "±", "2.828"],
        ["ET", "0.250", "30.00"],
    ]
    assert len({len(line) for line in TABLE.summary().splitlines()}) == 1


def test_csv():
    assert TABLE.csv().splitlines() == [
        "case,region,dice,hd95_mm",
        "a,WT,0.5,4.0",
        "a,ET,,30.0",
        '"b,c",WT,0.7,8.0',
        '"b,c",ET,0.25,',
        "d,WT,0.6,",
        "d,ET,,",
    ]


def test_a_table_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text(TABLE.csv())
    result = ScoreTable.read(path)
    assert result[:3] == TABLE[:3]
    np.testing.assert_array_equal(result.values, TABLE.values)


@pytest.mark.parametrize(
    "text", ["", "case,region,dice\na,WT,x\n", "case,region,dice\na,WT,1\na,ET,1\nb,WT,1\n"]
)
def test_a_file_without_a_table_is_refused(tmp_path, text):
    path = tmp_path / "scores.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"scores.csv: not a table of scores .* remove it"):
        ScoreTable.read(path)


def test_tables_of_other_cases_are_joined_by_name():
    first = TABLE._replace(case_ids=("f", "c", "e"))
    joined = join_tables([first, TABLE])
    assert joined.case_ids == ("a", "b,c", "c", "d", "e", "f")
    np.testing.assert_array_equal(joined.values[[5, 2, 4]], VALUES)
    np.testing.assert_array_equal(joined.values[[0, 1, 3]], VALUES)
    with pytest.raises(ValueError, match="scores of a are in two tables"):
        join_tables([TABLE, TABLE])
    with pytest.raises(ValueError, match="tables differ in regions or scores"):
        join_tables([TABLE, first._replace(regions=("WT", "TC"))])
