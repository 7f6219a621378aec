"""Mirrors clipseg3d/metrics/score_table.py."""

import math

import numpy as np

from clipseg3d.metrics.score_table import ScoreTable, aligned

NAN = math.nan
VALUES = np.array([[[0.5, 4.0], [NAN, 30.0]], [[0.7, 8.0], [0.25, NAN]], [[0.6, NAN], [NAN, NAN]]])
TABLE = ScoreTable(("a", "b,c", "d"), ("WT", "ET"), ("dice", "hd95_mm"), VALUES)


def test_means_and_sds_leave_out_what_is_not_known():
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


def test_columns_are_as_wide_as_their_widest_cell():
    assert aligned([["a", "bcd"], ["ef", "g"]]) == " a  bcd\nef    g"
