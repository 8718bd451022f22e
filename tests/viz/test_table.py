from __future__ import annotations

from s2d.viz import text_table


def test_columns_are_aligned():
    assert text_table(["name", "n"], [["a", "1"], ["longer", "12,345"]]).splitlines() == [
        "name         n",
        "------  ------",
        "a            1",
        "longer  12,345",
    ]


def test_a_table_without_rows_is_its_header():
    assert text_table(["name", "n"], []).splitlines() == ["name  n", "----  -"]
